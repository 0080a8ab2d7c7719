"""What the results come to: the choice of settings, paired differences, the five expectations, tables and curves."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from benchmarks.lab import plan
from benchmarks.lab.runs import results

Lines = Mapping[str, Mapping[int, dict]]  # arm → seed → line of the results


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of two arms over the same seeds.

    Attributes:
        mean, low, high: of the paired differences, with the ends of their 95 % interval (t).
        p: one-sided, that the true difference is not above `above`.
    """

    mean: float
    low: float
    high: float
    p: float


def paired(first: Sequence[float], second: Sequence[float], above: float = 0.0) -> Difference:
    """first - second, seed by seed."""
    change = np.asarray(first) - np.asarray(second)
    error = stats.sem(change)
    if error == 0:
        return Difference(change[0], change[0], change[0], float(change[0] <= above))
    low, high = stats.t.interval(0.95, len(change) - 1, loc=change.mean(), scale=error)
    p = stats.t.sf((change.mean() - above) / error, len(change) - 1)
    return Difference(float(change.mean()), float(low), float(high), float(p))


def holm(ps: Sequence[float]) -> list[float]:
    """p-values corrected for their number. Source: Holm 1979."""
    order, corrected, largest = np.argsort(ps), [0.0] * len(ps), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = largest
    return corrected


@dataclasses.dataclass(frozen=True)
class Claim:
    """`figure` of `higher` is above that of `lower` by more than `above`."""

    figure: str
    higher: str
    lower: str
    above: float = 0.0


# One split for all, where searching matters most. An expectation of two claims needs both: its p is the larger one.
SPLIT = "hard"
EXPECTATIONS = {
    "(i) conformity explores less than GRPO and finds fewer problems' answers": (
        Claim("exploration_per_1k", "grpo", "conformity"),
        Claim("pass@16", "grpo", "conformity"),
    ),
    "(ii) novelty breaks steps": (Claim("step_accuracy", "grpo", "novelty"),),
    "(iii) DASD's steps are not worse than GRPO's, and it explores more": (
        Claim("step_accuracy", "dasd", "grpo", above=-0.02),
        Claim("exploration_per_1k", "dasd", "grpo"),
    ),
    "(iv) DASD finds more problems' answers than GRPO": (Claim("pass@16", "dasd", "grpo"),),
    "(v) the low arm carries the steps, the high arm exploration": (
        Claim("step_accuracy", "flip_high", "flip_low"),
        Claim("exploration_per_1k", "flip_low", "flip_high"),
    ),
}


def chosen(arm: str) -> dict[str, float] | None:
    """The trial with the highest validation Avg@16, the first of equals; None before all of them are done."""
    known = results("trials")
    lines = [line for line in known.values() if line["name"] == arm]
    if len(lines) < len(plan.ARMS[arm].trials()):
        return None
    order = plan.ARMS[arm].trials()
    return max(lines, key=lambda line: (line["validation"]["avg"], -order.index(line["fields"])))["fields"]


def judged(lines: Lines) -> list[tuple[str, list[tuple[Claim, Difference]], float]]:
    """(expectation, each claim with its difference, p after Holm's correction), of those whose runs are done."""
    found = []
    for name, claims in EXPECTATIONS.items():
        if all(set(plan.SEEDS) <= set(lines.get(arm, ())) for claim in claims for arm in (claim.higher, claim.lower)):
            of_claims = [
                (
                    claim,
                    paired(
                        *(values(lines[arm], claim.figure, SPLIT) for arm in (claim.higher, claim.lower)), claim.above
                    ),
                )
                for claim in claims
            ]
            found.append((name, of_claims))
    corrected = holm([max(difference.p for _, difference in of_claims) for _, of_claims in found])
    return [(*each, p) for each, p in zip(found, corrected, strict=True)]


def values(of_arm: Mapping[int, dict], figure: str, split: str) -> list[float]:
    """A figure of an arm, by seed."""
    return [of_arm[seed][split].get(figure, np.nan) for seed in plan.SEEDS if seed in of_arm]
