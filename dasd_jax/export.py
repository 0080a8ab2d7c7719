"""Writes the logs of runs as one CSV file: python -m dasd_jax.export RUN [RUN …] --output=metrics.csv

RUN is the --workdir of a run, which may still be going on. The columns are the run, as it stands on the command line,
the step, and every name that one of the logs holds, sorted; what a run did not log in a step is empty.
"""

import csv
from pathlib import Path

from dasd_jax import cli, files, terminal
from dasd_jax.errors import UserError
from dasd_jax.run import records


def main(argv: list[str]) -> None:
    """The command."""
    flags = cli.Parser(description=__doc__, formatter_class=terminal.HelpFormatter, allow_abbrev=False)
    flags.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    flags.add_argument("--output", required=True, metavar="FILE.csv", help="file to write; an older one is replaced")
    asked = flags.parse_args(argv)
    output = Path(asked.output).expanduser()
    if output.is_dir() or output.suffix != ".csv":
        raise UserError(f"--output: {asked.output}: expected a file that ends in .csv")
    if twice := [run for run in asked.runs if asked.runs.count(run) > 1]:
        raise UserError(f"RUN: {twice[0]} is given twice: expected each run once")
    files.check_writable(output.parent, "--output")
    logs = {run: _lines(Path(run).expanduser()) for run in asked.runs}
    names = sorted({name for lines in logs.values() for line in lines for name in line} - {"step"})
    with files.replacing(output, "--output") as draft, draft.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["run", "step", *names])
        for run, lines in logs.items():
            table.writerows([run, line["step"], *(line.get(name, "") for name in names)] for line in lines)
    rows = sum(map(len, logs.values()))
    print(f"{output}: {rows} steps of {len(logs)} {'run' if len(logs) == 1 else 'runs'}, {len(names)} names")


def _lines(run: Path) -> list[dict]:
    records.check(run)
    return records.metrics(run)


if __name__ == "__main__":
    cli.run(main)
