"""The rule that decides by scores, and the data set and report that follow; nothing is sampled here."""

import json
import math

import numpy as np
import pytest

from dasd_jax.data.anchors import Anchor
from dasd_jax.data.sources import Problem
from dasd_jax.data.versions import Versioned
from dasd_jax.errors import UserError
from dasd_jax.run import selection
from dasd_jax.run.decisions import chosen, decide
from dasd_jax.run.selection import Example, Score

NAMES = ["cot", "tir"]


def test_the_rule_by_hand():
    """Differences -.5, -.1, 0, .2, .6: a quarter of the way is -.1, three quarters are .2; both are between."""
    first, second = np.array([0.0, 0.4, 0.3, 0.5, 0.9]), np.array([0.5, 0.5, 0.3, 0.3, 0.3])
    decisions, thresholds = decide(first, second, (0.25, 0.75))
    assert decisions.tolist() == [-1, 0, 0, 0, 1]
    assert thresholds == pytest.approx((-0.1, 0.2))
    # Between the ranks: .1 of the four steps lies .4 of the way from -.5 to -.1, .85 lies .4 of the way from .2 to .6.
    decisions, thresholds = decide(first, second, (0.1, 0.85))
    assert thresholds == pytest.approx((-0.34, 0.36)) and decisions.tolist() == [-1, 0, 0, 0, 1]


@pytest.mark.parametrize("quantiles", [(0.0, 1.0), (0.25, 0.75), (0.5, 0.5), (0.4, 0.9), (0.0, 0.3)])
def test_the_rule_against_a_count(quantiles):
    """An independent count in exact hundredths: ranks of the differences, interpolated by hand."""
    random = np.random.default_rng(5)
    first, second = random.integers(0, 11, (2, 41)) * 10
    ordered = sorted((first - second).tolist())

    def threshold(q):
        low = math.floor(q * 40)
        return ordered[low] + (q * 40 - low) * (ordered[min(low + 1, 40)] - ordered[low])

    low, high = map(threshold, quantiles)
    expected = [1 if d > high + 1e-6 else -1 if d < low - 1e-6 else 0 for d in (first - second).tolist()]
    decisions, thresholds = decide(first / 100, second / 100, quantiles)
    assert decisions.tolist() == expected
    assert thresholds == pytest.approx((low / 100, high / 100), abs=1e-8)


def test_equal_differences_get_equal_decisions_however_they_are_rounded():
    """.3 - .2 and .4 - .3 differ in their last bit; all problems are ties, and get both versions."""
    first, second = np.array([0.3, 0.4, 0.8, 1.0]), np.array([0.2, 0.3, 0.7, 0.9])
    assert len(set((first - second).tolist())) > 1
    for quantiles in ((0.25, 0.75), (0.5, 0.5), (0.0, 1.0)):
        assert decide(first, second, quantiles)[0].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("q", [0.07, 0.14, 0.28, 0.3, 0.35, 0.58, 0.7])
def test_what_a_quantile_falls_on_is_between(q):
    for n in range(5, 400):
        rank = round(q * (n - 1))
        if abs(q * (n - 1) - rank) < 1e-9:
            difference = np.arange(n) / 100
            assert decide(difference, 0 * difference, (q, 1.0))[0][rank] == 0
            assert decide(difference, 0 * difference, (0.0, q))[0][rank] == 0
    ties = np.array([0.0] * 63 + [0.1] * 28)
    assert not decide(ties, 0 * ties, (0.3, 0.7))[0].any()


def test_names_can_be_exchanged_and_a_constant_changes_nothing():
    first, second = np.random.default_rng(2).uniform(size=(2, 60))
    decisions, thresholds = decide(first, second, (0.125, 0.75))
    exchanged, others = decide(second, first, (0.25, 0.875))
    assert exchanged.tolist() == (-decisions).tolist() and others == pytest.approx((-thresholds[1], -thresholds[0]))
    assert decide(first - 0.25, second, (0.125, 0.75))[0].tolist() == decisions.tolist()
    assert {-1, 0, 1} == set(decisions.tolist())
    assert decide(first, second, (0.0, 1.0))[0].tolist() == [0] * 60


def test_a_score_is_the_mean_over_the_anchors_but_for_its_own_problem():
    assert Score(Example(3, "cot"), (0.5, None, 1.0)).mean == 0.75
    assert math.isnan(Score(Example(3, "cot"), None).mean)


def test_a_kept_score_is_read_as_it_was_written():
    for score in (Score(Example(3, "cot"), (0.5, None, 1.0), 0.25), Score(Example(), None)):
        assert selection.of_line(json.loads(json.dumps(score.as_line()))) == score
    line = Score(Example(3, "cot"), (0.5,)).as_line()
    for change in ({"rewards": 0.5}, {"rewards": ["1"]}, {"problem": None}, {"version": 1}, {"unjudged_frac": "0"}):
        with pytest.raises(ValueError, match="a line is"):
            selection.of_line(json.loads(json.dumps(line | change)))
    with pytest.raises(KeyError):
        selection.of_line({"problem": 1, "version": "cot"})
    del line["unjudged_frac"]  # of an older version
    assert selection.of_line(line) == Score(Example(3, "cot"), (0.5,))


def versioned(number, **texts):
    problem = Problem(
        question=f"{number}?", answer=str(number), solution="s" * (number % 2), source="a", index=number, scorer="math"
    )
    return Versioned(problem, texts)


def selected(means, too_long=(), quantiles=(0.25, 0.75)):
    """(rows, report) where problem i has these means of both versions, or None for a version that it lacks."""
    problems = [versioned(i, **{n: f"{n} {i}" for n, m in zip(NAMES, pair, strict=True) if m is not None})
                for i, pair in enumerate(means)]  # fmt: skip
    whole = [i for i, pair in enumerate(means) if None not in pair]
    scores = {
        Example(i, name): Score(Example(i, name), None if (i, name) in too_long else (mean, mean))
        for i in whole
        for name, mean in zip(NAMES, means[i], strict=True)
    } | {Example(): Score(Example(), (0.25, 0.75))}
    return chosen(problems, NAMES, whole, [Anchor(1, 5), Anchor(0, 2)], scores, quantiles)


MEANS = [(0.0, 0.5), (0.4, 0.5), (None, 0.9), (0.3, 0.3), (0.5, 0.3), (0.7, None), (0.9, 0.3), (0.1, 0.9)]


def test_the_data_set_holds_the_chosen_versions_in_the_order_of_the_problems():
    rows, report = selected(MEANS, too_long={(7, "tir")})
    assert [row["response"] for row in rows] == [
        "tir 0", "cot 1", "tir 1", "cot 3", "tir 3", "cot 4", "tir 4", "cot 6",
    ]  # fmt: skip
    assert rows[0] == {"question": "0?", "answer": "0", "response": "tir 0", "version": "tir"}
    assert rows[1] == {"question": "1?", "answer": "1", "solution": "s", "response": "cot 1", "version": "cot"}
    assert report["problems"] == {"with a version that is too long": 1, "scored": 5}
    assert report["decisions"] == {"cot": 1, "tir": 1, "both": 3} and report["examples"] == len(rows) == 8
    assert report["quantiles"] == pytest.approx({"0.25": -0.1, "0.75": 0.2})
    cot = np.array([0.0, 0.4, 0.3, 0.5, 0.9])
    assert report["scores"]["cot"] == pytest.approx(
        {"mean": cot.mean(), "standard_error": cot.std(ddof=1) / np.sqrt(5), "unjudged_frac": 0.0}
    )
    assert report["without_example"] == pytest.approx({"mean": 0.5, "standard_error": 0.25, "unjudged_frac": 0.0})
    assert report["anchors"] == [
        {"question": "1?", "cluster": 5, "reward": 0.25}, {"question": "0?", "cluster": 2, "reward": 0.75},
    ]  # fmt: skip
    json.dumps(report)


def test_nothing_but_versions_that_are_too_long_is_an_error():
    with pytest.raises(UserError, match="rollout.prompt_length: all 2 problems have a version that"):
        selected([(0.5, 0.5), (0.1, 0.5), (None, 0.5)], too_long={(0, "cot"), (1, "tir")})
