"""Assembles the page: template, style and scripts of ours, and the data of the runs as blocks beside them.

The page holds all that it shows and loads nothing. Its policy lets our script and our style run, by their sha256, and
nothing else; texts of models stand in data blocks alone and become text nodes.
"""

import base64
import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from dasd_jax import files
from dasd_jax.errors import UserError
from dasd_jax.page import collect, curves
from dasd_jax.page.pack import clean, element, evenly
from dasd_jax.page.rollouts import Rollouts
from dasd_jax.page.words import words
from dasd_jax.run import records

MEGABYTE = 1_000_000
_HERE = Path(__file__).parent
_SCRIPTS = ("base.js", "head.js", "curves.js", "plane.js", "tokens.js", "answers.js")
_END = "</body>\n</html>\n"
_ANSWERS_SHARE = 0.2  # of the room beside the numbers: at most this for kept answers, the rest for rollouts


@dataclasses.dataclass(frozen=True)
class Report:
    """The page, and what was left out of it.

    Attributes:
        html: in parts, one after the other.
        notes: one line each, for the person who runs the command; the page says the same.
    """

    html: list[str]
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class _Run:
    """All that a run offers to the page: what is read at once, rollouts by step, and kept answers."""

    head: dict
    rollouts: Rollouts
    answers: dict

    @property
    def most(self) -> int:
        """Steps with rollouts."""
        return len(self.rollouts.blocks)

    def steps(self, count: int) -> list[int]:
        """`count` of the steps with rollouts, evenly spaced."""
        return evenly(sorted(self.rollouts.blocks), count)


def report(runs: Sequence[Path], max_mb: float, warnings: Callable[[Path], list[dict] | None]) -> Report:
    """The page about some runs.

    Args:
        max_mb: of the file, in 10^6 bytes.
        warnings: run → the warnings of its guards, {"step", "until", "text"} each; None where they cannot be known.

    Raises:
        UserError: a folder is no run, or is damaged; the page has no room for its numbers.
    """
    for run in runs:
        records.check(run)
    labels, configs = collect.names(runs), [records.config(run) for run in runs]
    histories = [collect.history(run) for run in runs]
    found, numbers = [], []
    for run, label, config, past in zip(runs, labels, configs, histories, strict=True):
        lines = records.metrics(run)
        rollouts = Rollouts(len(lines))
        with files.reading(run / "samples.jsonl", "RUN"):
            of_words = words(rollouts.passing(records.samples(run)))
        head = collect.head(run, label, config, past, lines) | {"warnings": warnings(run), "words": of_words}
        found.append(_Run(head, rollouts, collect.answers(run, lines)))
        numbers.append(curves.numbers(run, lines))
    groups = collect.groups(labels, configs, histories)
    for group in groups:
        for i, drawn in zip(group["runs"], curves.curves([numbers[i] for i in group["runs"]]), strict=True):
            found[i].head.update(drawn)
    shared = {"groups": groups, "settings": collect.differing(configs)}
    planes = [element(f"plane-{i}", plane) for i, run in enumerate(found) if (plane := run.rollouts.plane)]

    # The index of all steps is longer than that of those that will be kept.
    most = [run.most for run in found]
    needed = _size([*_skeleton(_data(shared, found, most, [0] * len(found))), *planes, _END])
    room = int(max_mb * MEGABYTE) - needed
    if room < 0:
        least = needed / MEGABYTE + 0.005  # never rounded down
        raise UserError(f"--max_mb: {max_mb:g}: expected at least {least:.2f}, what the page without rollouts needs")
    fitted = [collect.fitted(run.answers, int(_ANSWERS_SHARE * room / len(found))) for run in found]
    answers = [element(f"answers-{i}", block) for i, (block, count) in enumerate(fitted) if count]
    answered, counts = [count for _, count in fitted], _counts(found, room - _size(answers))
    steps = (block for i, run in enumerate(found) for block in _blocks(run, i, counts[i]))
    html = [*_skeleton(_data(shared, found, counts, answered)), *planes, *answers, *steps, _END]
    return Report(html, list(_notes(found, counts, answered)))


def _data(shared: dict, found: Sequence[_Run], counts: Sequence[int], answered: Sequence[int]) -> str:
    """The block that the page reads first.

    Args:
        counts: of each run the steps that keep their rollouts.
        answered: of each run the problems that keep their answers.
    """
    runs = [
        run.head
        | {"plane": run.rollouts.plane is not None, "logged_steps": run.most}
        | {"index": [[step, run.rollouts.verdicts[step]] for step in run.steps(count)]}
        | {"answers": kept, "all_answers": len(run.answers["problems"])}
        for run, count, kept in zip(found, counts, answered, strict=True)
    ]
    return element("data", clean({**shared, "runs": runs}))


def _blocks(run: _Run, place: int, count: int) -> Iterable[str]:
    """The elements with the rollouts of `count` steps of the run at a place."""
    return (element(f"step-{place}-{step}", run.rollouts.blocks[step]) for step in run.steps(count))


def _counts(found: Sequence[_Run], room: int) -> list[int]:
    """For each run how many steps keep their rollouts: as many of each run as there are, or as all have room for."""
    low, high = 0, max(run.most for run in found)
    while low < high:
        middle = (low + high + 1) // 2
        fits = sum(_size(_blocks(run, i, middle)) for i, run in enumerate(found)) <= room
        low, high = (middle, high) if fits else (low, middle - 1)
    # The first and the last step, or none.
    return [min(low, run.most) if low >= min(2, run.most) else 0 for run in found]


def _notes(found: Sequence[_Run], counts: Sequence[int], answered: Sequence[int]) -> Iterable[str]:
    for run, steps, problems in zip(found, counts, answered, strict=True):
        for what, kept, every in (
            ("steps with rollouts", steps, run.most),
            ("problems with kept answers", problems, len(run.answers["problems"])),
        ):
            if kept < every:
                yield f"{run.head['name']}: of {every} {what} {kept} are in the page, evenly spaced (--max_mb)"


def _size(parts: Iterable[str]) -> int:
    return sum(len(part.encode()) for part in parts)


def _skeleton(data: str) -> list[str]:
    """The template with policy, style, the first data block and script; other blocks and the end follow."""
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    script = '"use strict";\n' + "\n".join((_HERE / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    policy = (
        f"default-src 'none'; script-src '{_sha256(script)}'; style-src '{_sha256(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    rest = (_HERE / "page.html").read_text(encoding="utf-8")
    parts = []
    for name, content in (("POLICY", policy), ("STYLE", style), ("DATA", data), ("SCRIPT", script)):
        before, _, rest = rest.partition(f"@{name}@")
        parts += [before, content]
    return [*parts, rest]


def _sha256(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def write(path: Path, parts: Sequence[str]) -> int:
    """Writes the page, whole or not at all; returns its bytes.

    Raises:
        UserError: it cannot be written.
    """
    draft = path.with_name(f".{path.name}.tmp")
    try:
        try:
            with draft.open("w", encoding="utf-8") as file:
                file.writelines(parts)
            draft.replace(path)
        finally:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"--output: {path}: {error.strerror or error}: expected a file that can be written") from error
