"""Functions that build the points of a sweep: each point is a dictionary of overrides, GROUP.FIELD → value.

A sweep file defines get_sweep() → points; `launchers/sweep.py` runs them. The functions nest:

    grid(each("objective.beta", (0.0, 0.1)), seeds(3))      6 points
    zipped(each("rollout.problems", (64, 128)), each("optim.minibatches", (2, 4)))      2 points
    [{"objective.method": "grpo"}, *each("objective.rho", (0.1, 0.2))]      3 points
"""

import itertools
from collections.abc import Iterable
from typing import Any

Point = dict[str, Any]


def each(field: str, values: Iterable[Any]) -> list[Point]:
    """One point for each value of a field."""
    return [{field: value} for value in values]


def seeds(count: int) -> list[Point]:
    """One point for each of the seeds 0 … count - 1."""
    return each("run.seed", range(count))


def grid(*parts: Iterable[Point]) -> list[Point]:
    """The Cartesian product of the parts, merged; the last part varies fastest.

    Raises:
        ValueError: two parts set the same field.
    """
    return [_merged(points) for points in itertools.product(*parts)]


def zipped(*parts: Iterable[Point]) -> list[Point]:
    """Merges the first points of all parts, then the second ones, and so on.

    Raises:
        ValueError: parts of different lengths, or two that set the same field.
    """
    return [_merged(points) for points in zip(*parts, strict=True)]


def _merged(points: tuple[Point, ...]) -> Point:
    merged: Point = {}
    for point in points:
        if twice := merged.keys() & point.keys():
            raise ValueError(f"{', '.join(sorted(twice))} is set by two parts")
        merged |= point
    return merged
