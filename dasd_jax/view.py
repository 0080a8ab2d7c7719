"""Shows the logged rollouts of a run, token by token: python -m dasd_jax.view RUN [--step=N] [--problem=TEXT] …

In a terminal it is a program with keys (? lists them); anywhere else it prints the rollouts as plain text. At blue
tokens the method pulls toward the teacher, at tokens on orange it pushes away; forks are underlined.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from dasd_jax import terminal
from dasd_jax.errors import UserError
from dasd_jax.show.logged import VERDICTS, Samples, Selection
from dasd_jax.show.text import LEGEND, Rollout


def main(argv: list[str]) -> None:
    """The command."""
    flags = terminal.Parser(description=__doc__, formatter_class=terminal.HelpFormatter, allow_abbrev=False)
    flags.add_argument("run", metavar="RUN", help="folder of a run, the --workdir of python -m dasd_jax.train")
    flags.add_argument("--step", type=int, metavar="N", help="rollouts of this step alone")
    flags.add_argument(
        "--problem",
        metavar="TEXT_OR_ID",
        help="problems with this text in their question, or, for a whole number, with this example id",
    )
    flags.add_argument("--only", choices=VERDICTS, help="rollouts with this verdict alone")
    flags.add_argument("--by", choices=("step", "gap"), default="step", help="order: by step, or the largest gap first")
    asked = flags.parse_args(argv)
    selection = Selection(Samples(Path(asked.run).expanduser()), asked.step, asked.problem, asked.only)
    if not any(selection.all()):
        raise selection.nothing()
    if sys.stdin.isatty() and sys.stdout.isatty():
        from dasd_jax.show.app import Viewer  # textual takes longer to import than the rest, and only this needs it

        if failure := Viewer(selection, by_gap=asked.by == "gap").run():
            raise failure
    else:
        _print(selection, by_gap=asked.by == "gap")


def _print(selection: Selection, by_gap: bool) -> None:
    """Prints all selected rollouts as plain text."""
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal's encoding may lack what a model writes
    places = (place for place in selection.all() if place)
    print(LEGEND)
    for place in selection.by_gap(list(places)) if by_gap else places:
        print()
        for line in Rollout(selection.samples, place).plain():
            print(line)


def _run(command: Callable[[list[str]], None]) -> None:
    """`cli.run` without JAX: ends the process with 0 when done, 2 with one line for a user error."""
    try:
        command(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    _run(main)
