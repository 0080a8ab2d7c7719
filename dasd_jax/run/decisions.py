"""Which version of each solution is trained on, by the scores of `selection`: TATA's rule (arXiv 2502.12022)."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from dasd_jax.data.anchors import Anchor
from dasd_jax.data.versions import Versioned
from dasd_jax.errors import UserError
from dasd_jax.run.evaluation import standard_error
from dasd_jax.run.selection import Example, Score

BOTH = "both"  # the decision to train on both versions
_DIGITS = 9  # after the point, to which differences are rounded: .3 - .2 and .4 - .3 are equal


def decide(
    first: np.ndarray, second: np.ndarray, quantiles: tuple[float, float]
) -> tuple[np.ndarray, tuple[float, float]]:
    """Which of two versions of each problem are trained on.

    The first alone where first - second is above the upper quantile of all differences, the second alone where it is
    below the lower one, and both in between: a difference that equals a quantile is between. Quantiles are
    interpolated linearly.

    Args:
        first, second: f64[problems], scores.
        quantiles: lower and upper, 0 to 1.

    Returns:
        (i64[problems], 1: the first alone, -1: the second alone, 0: both; the two thresholds).
    """
    difference = np.round(first - second, _DIGITS)
    # Rounded alike: interpolation may miss the difference that it should equal by a last bit.
    low, high = (round(float(np.quantile(difference, q)), _DIGITS) for q in quantiles)
    return np.where(difference > high, 1, np.where(difference < low, -1, 0)), (low, high)


def chosen(
    versioned: Sequence[Versioned],
    names: Sequence[str],
    whole: Sequence[int],
    anchors: Sequence[Anchor],
    scores: dict[Example, Score],
    quantiles: tuple[float, float],
) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """The data set, and the report.

    Args:
        names: of the two versions.
        whole: the places of the problems that have both.
        scores: of the examples that fit.

    Returns:
        (rows: a problem's fields with the text of a version as its response, in the order of the problems; figures
        for JSON).

    Raises:
        UserError: no problem is left.
    """
    known = {example for example, score in scores.items() if score.rewards is not None}
    scored = [i for i in whole if known.issuperset(Example(i, name) for name in names)]
    if not scored:
        raise UserError(
            f"rollout.prompt_length: all {len(whole)} problems have a version that does not fit before each anchor: "
            "expected a larger one, or shorter versions"
        )
    by_name = {name: [scores[Example(i, name)] for i in scored] for name in names}
    mean = {name: np.array([score.mean for score in of_name]) for name, of_name in by_name.items()}
    first, second = names
    decisions, thresholds = decide(mean[first], mean[second], quantiles)
    taken = {1: [first], -1: [second], 0: names}
    rows = [
        _row(versioned[i], name) for i, decision in zip(scored, decisions, strict=True) for name in taken[int(decision)]
    ]
    found = Counter(taken[int(decision)][0] if decision else BOTH for decision in decisions)
    alone = scores[Example()]
    return rows, {
        "problems": {"with a version that is too long": len(whole) - len(scored), "scored": len(scored)},
        "decisions": {name: found[name] for name in (*names, BOTH)},
        "examples": len(rows),
        "quantiles": dict(zip(map(str, quantiles), thresholds, strict=True)),
        "scores": {
            name: {
                "mean": float(x.mean()),
                "standard_error": standard_error(x),
                "unjudged_frac": float(np.mean([score.unjudged for score in by_name[name]])),
            }
            for name, x in mean.items()
        },
        "without_example": {
            "mean": alone.mean,
            "standard_error": standard_error(np.array(alone.rewards)),
            "unjudged_frac": alone.unjudged,
        },
        "anchors": [
            {"question": versioned[anchor.place].problem.question, "cluster": anchor.cluster, "reward": reward}
            for anchor, reward in zip(anchors, alone.rewards, strict=True)
        ],
    }


def _row(each: Versioned, name: str) -> dict[str, str]:
    problem = each.problem
    optional = {field: value for field in ("solution", "hint") if (value := getattr(problem, field))}
    asked = {"question": problem.question, "answer": problem.answer}
    return {**asked, **optional, "response": each.texts[name], "version": name}
