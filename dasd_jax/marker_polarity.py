"""Shows the words that a teacher suppresses and favours: python -m dasd_jax.marker_polarity RUN

RUN is the --workdir of a run whose method has a teacher. Its samples.jsonl says by how much the teacher finds each
sampled token likelier than the student does; docs/health.md says how z is computed from that.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import rich.console
import rich.table
import rich.text

from dasd_jax import cli, terminal
from dasd_jax.errors import UserError
from dasd_jax.health import polarity
from dasd_jax.run import records
from dasd_jax.text.shown import shown

_WIDTH = 80  # columns


def main(argv: list[str]) -> None:
    """The command."""
    flags = cli.Parser(description=__doc__, formatter_class=terminal.HelpFormatter, allow_abbrev=False)
    flags.add_argument("run", metavar="RUN", help="folder of the run")
    flags.add_argument("--steps", default="", metavar="A-B", help="its rollouts of these steps alone (default: all)")
    flags.add_argument("--top", default="20", metavar="N", help="words of each side (default: 20)")
    asked = flags.parse_args(argv)
    first, last = _steps(asked.steps)
    if not re.fullmatch(r"[1-9]\d{0,5}", asked.top):
        raise UserError(f"--top: {asked.top}: expected a whole number from 1 to 999999")
    run = Path(asked.run).expanduser()
    records.check(run)
    logged = [problem for problem in records.samples(run) if first <= problem["step"] <= last]
    rollouts = [rollout for problem in logged for rollout in problem["rollouts"]]
    if not rollouts:
        where = f"--steps: {asked.steps}" if asked.steps else f"RUN: {run}"
        raise UserError(f"{where}: samples.jsonl holds no rollouts of these steps: expected steps that were logged")
    rollouts = [rollout for rollout in rollouts if "gap" in rollout]
    if not rollouts:
        raise UserError(
            f"RUN: {run}: its rollouts hold no gap (method {_method(run)}): expected the run of a method with a teacher"
        )
    words = polarity.polarity(rollouts)
    tokens = sum(len(rollout["gap"]) for rollout in rollouts)
    console = rich.console.Console(width=_WIDTH)
    console.print(_table(words, int(asked.top)) if words else "No word has enough tokens to be compared.")
    console.print(
        f"{len(rollouts)} rollouts, {tokens} tokens. Counts are suppressed / favoured: tokens with a gap below "
        f"-{polarity.THRESHOLD} / above {polarity.THRESHOLD} nats, of words with at least {polarity.MINIMUM}.",
        highlight=False,
    )


def _steps(text: str) -> tuple[float, float]:
    """First and last step."""
    if not text:
        return 0, float("inf")
    steps = re.fullmatch(r"(\d{1,9})-(\d{1,9})", text)
    if steps is None or int(steps[1]) > int(steps[2]):
        raise UserError(f"--steps: {text}: expected A-B, two whole numbers with A at most B")
    return int(steps[1]), int(steps[2])


def _method(run: Path) -> str:
    return str(records.config(run).get("objective", {}).get("method", "unknown"))


def _table(words: Sequence[polarity.Word], top: int) -> rich.table.Table:
    """Suppressed words on the left, favoured ones on the right, the strongest first."""
    suppressed = [word for word in words if word.z > 0][:top]
    favoured = [word for word in reversed(words) if word.z < 0][:top]
    table = rich.table.Table(box=None, pad_edge=False, width=_WIDTH)
    for side in ("suppressed", "favoured"):
        table.add_column(side, ratio=1, no_wrap=True, overflow="ellipsis")
        table.add_column("z", justify="right", no_wrap=True)
        table.add_column("counts", justify="right", no_wrap=True)
    for row in range(max(len(suppressed), len(favoured))):
        table.add_row(*_cells(suppressed[row : row + 1]), *_cells(favoured[row : row + 1]))
    return table


def _cells(words: Sequence[polarity.Word]) -> list[rich.text.Text]:
    """The three cells of a word; empty ones where a side has no more."""
    if not words:
        return [rich.text.Text()] * 3
    word = words[0]
    # As Text: square brackets of a model's text are no markup.
    texts = (shown(word.word), f"{word.z:+.2f}", f"{word.suppressed} / {word.favoured}")
    return [rich.text.Text(text) for text in texts]


if __name__ == "__main__":
    cli.run(main)
