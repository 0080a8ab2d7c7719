"""One HTML page about runs, which needs no network: python -m dasd_jax.report RUN [RUN …] --output=report.html

Curves of all runs over each other, the plane of entropy and gap, every logged rollout token by token, answers before
and after, and the warnings of the guards. Runs whose settings differ in run.seed alone are one curve with a band. The
page opens from a file or a mail in a current Chromium or Firefox (docs/report.md).
"""

import re
from pathlib import Path

from dasd_jax import cli, config, terminal
from dasd_jax.errors import UserError
from dasd_jax.page import build
from dasd_jax.run import guards, records


def main(argv: list[str]) -> None:
    """The command."""
    flags = cli.Parser(description=__doc__, formatter_class=terminal.HelpFormatter, allow_abbrev=False)
    flags.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, finished or not")
    flags.add_argument("--output", required=True, metavar="FILE.html", help="the page; a file of that name is replaced")
    flags.add_argument(
        "--max_mb", default="15", metavar="MB", help="size limit in 10^6 bytes; rollouts of some steps are dropped"
    )
    given = flags.parse_intermixed_args(argv)
    output, max_mb = Path(given.output).expanduser(), _megabytes(given.max_mb)
    if output.is_dir():
        raise UserError(f"--output: {output} is a folder: expected the name of a file")
    if output.suffix != ".html":  # a slip must not replace the files of a run
        raise UserError(f"--output: {output}: expected a file that ends in .html")
    if not output.parent.is_dir():
        raise UserError(f"--output: {output}: there is no folder {output.parent}: expected a file in one that exists")
    made = build.report([Path(run).expanduser() for run in given.runs], max_mb, warnings)
    size = build.write(output, made.html)
    print(f"{output}: {len(given.runs)} {'run' if len(given.runs) == 1 else 'runs'}, {size / build.MEGABYTE:.1f} MB")
    for note in made.notes:
        print(f"note: {note}")


def _megabytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"--max_mb: {text}: expected a number above 0")
    return value


def warnings(run: Path) -> list[dict] | None:
    """What the guards have said of a run, made again from its log: {"step", "until", "text"} each, first and last step.

    None where its config.json was written by another version of this program: the levels are unknown.
    """
    raw = records.config(run)
    if config.older(raw):
        return None
    settings, lines = config.from_dict(raw), records.metrics(run)
    found: list[dict] = []
    for count in range(1, len(lines) + 1):
        if (step := lines[count - 1]["step"]) == 0:
            continue
        judged = guards.judge(lines[:count], settings)
        for text in [*judged.warnings, *([judged.stop] if judged.stop else [])]:
            # The same warning at the next step is one that lasts.
            kind = re.sub(r"[-+.\d]+", "", text)
            last = next((each for each in found if each["kind"] == kind and each["until"] == step - 1), None)
            if last:
                last["until"] = step
            else:
                found.append({"kind": kind, "step": step, "until": step, "text": text.removeprefix("warning: ")})
    return [{name: each[name] for name in ("step", "until", "text")} for each in found]


if __name__ == "__main__":
    cli.run(main)
