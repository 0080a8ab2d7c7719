"""The logged rollouts of a run: found by their lines when opened, parsed when asked for, and selected."""

import functools
import math
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dasd_jax import files, formats
from dasd_jax.errors import UserError
from dasd_jax.run import records

Place = tuple[int, int]  # (line of samples.jsonl from 0, rollout of that line from 0)
VERDICTS = ("right", "wrong", "truncated")

_LINES_KEPT = 16  # parsed ones, for going back and forth; a line may have megabytes
_STEP = re.compile(rb'\{"step": (\d+)[,}]')  # how the lines of a run begin


def verdict(rollout: dict) -> str:
    """One of VERDICTS; a response that was cut off is "truncated", whatever it earned."""
    if not rollout.get("finished", True):
        return "truncated"
    return "right" if records.is_right(rollout) else "wrong"


@dataclass(frozen=True)
class Brief:
    """What rollouts are selected and ordered by."""

    verdict: str
    largest_gap: float  # nats, absolute; 0 without a teacher


class Samples:
    """samples.jsonl of a run, by line, as it was when it was opened.

    Opening reads the file once for its line ends and steps (about 1 GB/s) and parses nothing.

    Attributes:
        path: of the file.
        steps: of each line.
    """

    def __init__(self, run: Path):
        """Opens the file; a half-written last line is left out.

        Raises:
            UserError: not a run, no logged rollouts, or a line without a step.
        """
        records.check(run)
        self.path = run / "samples.jsonl"
        self.steps: list[int] = []
        self._spans: list[tuple[int, int]] = []  # bytes of each line
        self._briefs: dict[int, list[Brief]] = {}
        if self.path.is_file() and self.path.stat().st_size:
            with self.path.open("rb") as file:
                # A run that goes on replaces the file by a shorter one: this stays the old one.
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._find_lines()
        if not self.steps:
            raise UserError(
                f"RUN: {run} holds no rollouts in samples.jsonl: expected a run with "
                "--config.run.logged_rollouts above 0, after its first step"
            )
        self.problem = functools.lru_cache(_LINES_KEPT)(self._problem)

    def __len__(self) -> int:
        return len(self.steps)

    def _find_lines(self) -> None:
        begin = 0
        while (end := self._data.find(b"\n", begin)) != -1:
            self._spans.append((begin, end))
            found = _STEP.match(self._data, begin, end)
            self.steps.append(int(found[1]) if found else self._parsed(len(self.steps))["step"])
            begin = end + 1

    def _parsed(self, line: int) -> dict:
        begin, end = self._spans[line]
        try:
            content = formats.parse_object(self._data[begin:end], f"line {line + 1}")
            if type(content.get("step")) is not int:
                raise ValueError(f"line {line + 1} has no step")
        except ValueError as error:
            raise UserError(f"RUN: {self.path}: {error}: expected the file as it was written, or removed") from error
        return content

    def _problem(self, line: int) -> dict:
        """The problem of a line with its rollouts, in the form that `records` describes.

        Raises:
            UserError: the line is damaged.
        """
        content = self._parsed(line)
        return content if "rollouts" in content else records.of_older(content)

    def briefs(self, line: int) -> list[Brief]:
        """One for each rollout of a line; kept, since every filter reads them again."""
        if line not in self._briefs:
            with files.reading(self.path, "RUN"):
                self._briefs[line] = [
                    Brief(verdict(rollout), max((abs(gap) for gap in rollout.get("gap", ())), default=0.0))
                    for rollout in self.problem(line)["rollouts"]
                ]
        return self._briefs[line]


class Selection:
    """Some rollouts of a run, found line by line.

    Attributes:
        only: the verdict of all of them, or None.
        lines: those that can hold some.
    """

    def __init__(self, samples: Samples, step: int | None = None, problem: str | None = None, only: str | None = None):
        """Selects by step, problem and verdict; None selects all.

        Args:
            problem: a whole number is an example id, anything else a text in the question, whatever its case.

        Raises:
            UserError: the step has no rollouts.
        """
        self.samples, self.step, self.only, self._problem = samples, step, only, problem
        self.lines = [line for line, of in enumerate(samples.steps) if step in (None, of)]
        if not self.lines:
            known = sorted(set(samples.steps))
            below, above = [of for of in known if of < step][-1:], [of for of in known if of > step][:1]
            nearest = " and ".join(map(str, below + above))
            raise UserError(f"--step: {step}: no logged rollouts: the nearest steps with some: {nearest}")

    def with_verdict(self, only: str | None) -> "Selection":
        """The same selection with another verdict."""
        return Selection(self.samples, self.step, self._problem, only)

    def of(self, line: int) -> list[Place]:
        """The selected rollouts of a line."""
        if self._problem is not None:
            problem = self.samples.problem(line)
            if self._problem.isdecimal():
                chosen = problem["example_id"] == int(self._problem)
            else:
                chosen = self._problem.casefold() in problem["question"].casefold()
            if not chosen:
                return []
        briefs = self.samples.briefs(line)
        return [(line, number) for number, brief in enumerate(briefs) if self.only in (None, brief.verdict)]

    def after(self, place: Place) -> Iterator[Place | None]:
        """The selected rollouts after a place in order; None for each line without one, so that a caller can stop."""
        for line in self.lines:
            if line >= place[0]:
                yield from [found for found in self.of(line) if found > place] or [None]

    def before(self, place: Place) -> Iterator[Place | None]:
        """Those before a place, the nearest first; None as in `after`."""
        for line in reversed(self.lines):
            if line <= place[0]:
                yield from [found for found in reversed(self.of(line)) if found < place] or [None]

    def all(self) -> Iterator[Place | None]:
        """All selected rollouts in order; None as in `after`."""
        return self.after((0, -1))

    def in_step(self, step: int) -> Iterator[Place | None]:
        """The selected rollouts of one step; None as in `after`."""
        for line in self.lines:
            if self.samples.steps[line] == step:
                yield from self.of(line) or [None]

    def by_gap(self, places: list[Place]) -> list[Place]:
        """The places with the largest gap first, equal ones in their order."""
        gaps = {place: self.samples.briefs(place[0])[place[1]].largest_gap for place in places}
        return sorted(places, key=lambda place: -gaps[place] if math.isfinite(gaps[place]) else 0)

    def nothing(self) -> UserError:
        """What to say where no rollout is selected: the narrowest flag that has no match."""
        if self._problem is not None and not any(self.with_verdict(None).of(line) for line in self.lines):
            asked = "that example id" if self._problem.isdecimal() else "that text in its question"
            return UserError(f"--problem: {self._problem!r:.80}: no logged problem has {asked}")
        return UserError(
            f"--only: {self.only}: no rollout is {self.only} of those that the other flags leave: leave --only out"
        )
