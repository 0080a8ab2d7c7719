"""Outcomes of interventions, and what they come to: paired differences with standard errors by problem."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from dasd_jax.run import records
from dasd_jax.run.evaluation import Answers, remarked, standard_error
from dasd_jax.run.places import ARMS, Pair
from dasd_jax.verify.verifier import UNJUDGED

_TAIL = ("length_p95", "length_max")  # of one response they are its length
Figures = Callable[[Sequence[str], Sequence[int]], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one side of a pair: the whole response, its beginning among it."""

    text: str
    reward: float
    extracted: str | None  # as the verifier read it
    length: int  # tokens, the stop token among them
    finished: bool
    error: str  # as in Verdict


@dataclasses.dataclass(frozen=True)
class Result:
    """One pair with the outcomes of both sides."""

    pair: Pair
    control: Outcome
    treated: Outcome


def summary(
    results: Sequence[Result],
    answers: Sequence[Answers],
    figures: Figures,
) -> dict:
    """The figures of all arms, as a dictionary for JSON.

    Every problem counts once, by the mean over its pairs; standard errors are by problem. A figure is compared over
    the pairs of which both sides have it, and is left out where there is none.

    Args:
        answers: the responses themselves, at least one problem's.
        figures: (texts, lengths in tokens) → figure → number; see `health.figures.of_responses`.
    """
    responses = sum(len(each.reward) for each in answers)
    averages = np.array([np.mean([right(reward) for reward in each.reward]) for each in answers])
    arms = {}
    for arm in ARMS:
        of_arm = [result for result in results if result.pair.arm == arm]
        agrees = [result.pair.student_agrees for result in of_arm if result.pair.student_agrees is not None]
        arms[arm] = {
            "pairs": len(of_arm),
            "problems": len({result.pair.example_id for result in of_arm}),
            "left_out": responses - len(of_arm),
            **({"unjudged_frac": _unjudged(of_arm)} if of_arm else {}),
            **({"student_agrees_frac": float(np.mean(agrees))} if agrees else {}),
            "figures": _compared(of_arm, figures),
        }
    return {
        "problems": len(answers),
        "responses": responses,
        "accuracy": float(averages.mean()),
        "standard_error": standard_error(averages),
        **remarked(answers),
        "arms": arms,
    }


def right(reward: float) -> float:
    """1 for a response that counts as right, 0 for another."""
    return float(records.is_right({"reward": reward}))


def _unjudged(results: Sequence[Result]) -> float:
    """The share of both sides of which the scorer came to no verdict."""
    return float(np.mean([side.error in UNJUDGED for each in results for side in (each.control, each.treated)]))


def _compared(results: Sequence[Result], figures: Figures) -> dict[str, dict]:
    """Figure → control, treated, their paired difference, its standard error, and the numbers of pairs and problems."""

    def of(outcome: Outcome) -> dict[str, float]:
        found = figures([outcome.text], [outcome.length])
        kept = {name: value for name, value in found.items() if name not in _TAIL}
        return {"accuracy": right(outcome.reward), "reward": outcome.reward, "length": outcome.length, **kept}

    by_figure: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for result in results:
        control, treated = of(result.control), of(result.treated)
        for name in [name for name in control if name in treated]:
            of_problem = by_figure.setdefault(name, {}).setdefault(result.pair.example_id, [])
            of_problem.append((control[name], treated[name]))
    compared = {}
    for name, by_problem in by_figure.items():
        means = np.array([np.mean(each, axis=0) for each in by_problem.values()])
        change = means[:, 1] - means[:, 0]
        compared[name] = {
            "control": float(means[:, 0].mean()),
            "treated": float(means[:, 1].mean()),
            "difference": float(change.mean()),
            "standard_error": standard_error(change),
            "pairs": sum(map(len, by_problem.values())),
            "problems": len(by_problem),
        }
    return compared
