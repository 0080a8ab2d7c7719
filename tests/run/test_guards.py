"""What a run's own numbers call for: hand-written histories, and a count of 4-grams by a plain loop."""

import dataclasses
import re

import numpy as np
import pytest
from tiny import config

from dasd_jax import recorded
from dasd_jax.config import GuardsGroup
from dasd_jax.methods import METHODS
from dasd_jax.rollout.repetition import repeated_frac
from dasd_jax.run.guards import TEACHER_WEIGHT, judge

HEALTHY = {
    "entropy/mean": 0.4,
    "rollout/length_mean": 100.0,
    "rollout/length_p95": 200.0,
    "rollout/repeated_frac": 0.1,
    "teacher/blank_frac": 0.2,
    "gap/repel_kl": 0.2,
    "gap/mean_abs": 0.2,
    "gap/noise_mean_abs": 0.01,
    "router/attract_mass": 0.1,
    "router/repel_mass": 0.3,
    "policy/logp_gap_mean": 0.001,
    "reward/mixed_groups_frac": 0.5,
}
# Field, the key of the log, and values beyond its two levels.
COLLAPSES = [
    ("entropy", "entropy/mean", 0.03, 0.001),
    ("length", "rollout/length_mean", 20.0, 2.0),
    ("tail", "rollout/length_p95", 550.0, 2000.0),
    ("blank", "teacher/blank_frac", 0.8, 1.0),
    ("repetition", "rollout/repeated_frac", 0.7, 0.95),
    ("repel_kl", "gap/repel_kl", 6.0, 30.0),
    ("arm", "router/attract_mass", 0.006, 0.0),
    ("signal_noise", "gap/mean_abs", 0.02, 0.005),
]


def configured(method="dasd", **fields):
    levels = {
        "window": 2,
        "repel_kl_stop": 20.0,
        "tail_stop": 5.0,
        "blank_warn": 0.55,
        "blank_stop": 0.95,
        "arm_warn": 0.1,
        "arm_stop": 0.01,
        "signal_noise_stop": 1.0,
        "equal_rewards_warn": 3.0,
        "equal_rewards_stop": 5.0,
    }
    guards = (f"guards.{name}={value}" for name, value in (levels | fields).items())
    return config(f"objective.method={method}", *guards)


def history(*changes):
    """metrics.jsonl of a run: the evaluation before it, and a step with each of these changes."""
    return [{"step": 0, "eval/avg@4": 0.1}, *({"step": i} | HEALTHY | new for i, new in enumerate(changes, start=1))]


def test_healthy_numbers_call_for_nothing():
    found = judge(history({}, {}, {}), configured())
    assert (found.warnings, found.stop, found.teacher_weight) == ([], "", 1.0)


@pytest.mark.parametrize(("field", "name", "bad", "_worse"), COLLAPSES)
def test_a_crossed_level_warns_once_and_again_after_the_number_has_come_back(field, name, bad, _worse):
    said = [
        judge(history(*[{}, {}, {name: bad}, {name: bad}, {name: bad}, {}, {}, {name: bad}, {name: bad}][:count]),
              configured()).warnings
        for count in range(1, 10)
    ]  # fmt: skip
    # A step alone does not move the mean of two beyond it, except where the level is far below the number.
    assert [bool(lines) for lines in said] == [False, False, False, True, False, False, False, False, True]
    assert said[3][0].startswith("warning: steps 3-4: ") and name in said[3][0]
    assert re.search(rf"(above|below) guards.{field}_warn = ", said[3][0])


def test_a_number_of_every_tenth_step_warns_once_and_halves_the_weight_once():
    """What is read of rescored steps alone neither vanishes between them nor counts again."""
    name, step = "gap/mean_abs", {key: value for key, value in HEALTHY.items() if key != "gap/mean_abs"}
    lines = [{"step": i} | step | ({name: 0.02} if i % 10 == 1 else {}) for i in range(1, 36)]
    sparse = configured(window=5)
    said = [line for count in range(1, 36) for line in judge(lines[:count], sparse).warnings]
    assert len(said) == 1 and said[0].startswith("warning: 1 of the steps 7-11: gap/mean_abs")
    weights, collapse = [], configured(window=5, on_collapse="anneal")
    for count in range(1, 36):
        line = {"step": count} | step | ({name: 0.005} if count % 10 == 1 and count < 30 else {})
        lines[count - 1] = (
            line | ({name: 0.2} if count == 31 else {}) | {TEACHER_WEIGHT: weights[-1] if weights else 1.0}
        )
        weights.append(judge(lines[:count], collapse).teacher_weight)
    assert weights[9:12] == [1.0, 0.5, 0.5] and weights[20:30] == [0.25] * 10 and weights[30] == 0.25


@pytest.mark.parametrize(("field", "name", "_bad", "worse"), COLLAPSES)
def test_beyond_the_stop_level_a_run_stops_or_the_teachers_weight_halves(field, name, _bad, worse):
    lines = history({}, {name: worse}, {name: worse})
    found = judge(lines, configured())
    assert (
        found.stop.startswith("steps 2-3: ")
        and name in found.stop
        and re.search(rf"(above|below) guards.{field}_stop = ", found.stop)
    )
    assert found.teacher_weight == 1.0

    found = judge(lines, configured(on_collapse="anneal"))
    assert not found.stop and found.teacher_weight == 0.5
    assert "the teacher's weight falls to 0.5 of its value" in found.warnings[0]
    lines[-1][TEACHER_WEIGHT] = 0.5
    assert judge([*lines, lines[-1] | {"step": 4}], configured(on_collapse="anneal")).teacher_weight == 0.25
    back = [lines[-1] | HEALTHY | {"step": step} for step in (4, 5)]
    assert judge([*lines, *back], configured(on_collapse="anneal")).teacher_weight == 0.5

    # Without a teacher there is nothing to take away, and no guard of what a teacher does.
    without = judge(lines, configured(method="grpo", on_collapse="anneal"))
    assert bool(without.stop) == (field in ("entropy", "length", "tail", "repetition"))
    # A factor on the whole loss is undone by AdamW: the run stops, as without `anneal`.
    whole = judge(lines, configured(method="opsd", on_collapse="anneal"))
    assert bool(whole.stop) == (field in ("entropy", "length", "tail", "repetition", "blank"))
    assert whole.teacher_weight == without.teacher_weight
    off = {f"{field}_warn": 0.0, f"{field}_stop": 0.0}
    found = judge(lines, configured(**off))
    assert (found.warnings, found.stop) == ([], "")


def test_the_weaker_arm_is_named_and_both_may_be_empty():
    run = configured(arm_warn=0.1, arm_stop=0.0)
    for attract, repel, said in (
        (0.3, 0.01, "the share of router/repel_mass in both arms is 0.03226"),
        (0.001, 0.3, "the share of router/attract_mass in both arms is 0.003322"),
        (0.0, 0.0, "the share of router/attract_mass in both arms is 0,"),
    ):
        step = {"router/attract_mass": attract, "router/repel_mass": repel}
        assert said in judge(history(step, step), run).warnings[0]


@pytest.mark.parametrize("route", ["attract_only", "repel_only", "conformity", "novelty"])
def test_a_route_with_one_arm_by_design_is_not_judged_by_the_other(route):
    run = config(f"objective.route={route}", "guards.window=1")
    assert judge(history({"router/repel_mass": 0.0}), run).warnings == []


def test_a_gap_to_the_sampler_warns_before_it_stops_the_run():
    found = judge(history({}, *[{"policy/logp_gap_mean": 0.015}] * 2), configured())
    assert "policy/logp_gap_mean is 0.015, above guards.logp_gap_mean_warn = 0.01: " in found.warnings[0]
    assert not found.stop


def test_a_gap_of_rollouts_in_int8_has_a_level_of_its_own():
    lines = history({}, {"policy/logp_gap_mean": 0.015})
    rounded = ("rollout.cache=int8", "guards.window=1")
    assert not judge(lines, config(*rounded)).warnings
    found = judge(lines, config(*rounded, "guards.int8_gap_mean_warn=0.014"))
    assert "policy/logp_gap_mean is 0.015, above guards.int8_gap_mean_warn = 0.014: " in found.warnings[0]


def test_equal_rewards_are_counted_in_a_row_and_always_stop():
    equal = {"reward/mixed_groups_frac": 0.0}
    said = [judge(history({}, *[equal] * count), configured(on_collapse="anneal")) for count in range(2, 7)]
    assert [len(found.warnings) for found in said] == [0, 0, 1, 0, 0]
    assert [bool(found.stop) for found in said] == [False] * 4 + [True]
    assert "steps in a row without a mixed group is 6" in said[-1].stop
    assert not judge(history(*[equal] * 9, {}), configured()).stop


def test_skipped_updates_warn_and_several_in_a_row_stop_the_run():
    skipped = {"optim/skipped_frac": 0.5}
    run = configured(skipped_steps_stop=2, window=5)
    found = judge(history({}, skipped), run)
    assert found.warnings == ["warning: step 2: loss or gradient is not finite in 50% of its minibatches: skipped"]
    assert not found.stop and not judge(history(skipped, {}, skipped), run).stop
    assert judge(history({}, skipped, skipped), run).stop.startswith("steps 2-3: loss or gradient is not finite")
    assert judge(history(skipped, skipped, {}), run).stop == ""


def test_ten_steps_in_a_row_with_nothing_in_the_loss_stop_the_run():
    empty = {"optim/empty_frac": 1.0}
    assert not judge(history(*[empty] * 9), configured()).stop
    assert judge(history(*[empty] * 10), configured()).stop.startswith("steps 1-10: no token was in the loss")
    assert not judge(history(*[empty] * 9, {"optim/empty_frac": 0.5}), configured()).stop


def test_before_the_first_step_there_is_nothing_to_judge():
    assert judge([{"step": 0, "eval/avg@4": 0.1}], configured()).teacher_weight == 1.0


def test_a_run_without_these_numbers_is_not_judged():
    found = judge([{"step": step, "loss/total": 1.0} for step in range(1, 5)], configured("sft"))
    assert (found.warnings, found.stop) == ([], "")


def test_repeated_frac_counts_as_a_plain_loop_does():
    rng = np.random.default_rng(0)
    response = rng.integers(0, 2, (5, 40)).astype(np.int32)
    lengths = np.array([40, 3, 4, 0, 17])
    total = repeated = 0
    for tokens, length in zip(response.tolist(), lengths, strict=True):
        seen = set()
        for start in range(length - 3):
            gram = tuple(tokens[start : start + 4])
            total, repeated = total + 1, repeated + (gram in seen)
            seen.add(gram)
    assert repeated > 10
    assert repeated_frac(response, np.arange(40) < lengths[:, None]) == repeated / total
    assert repeated_frac(response[:, :3], np.ones((5, 3), bool)) == 0.0


def test_a_teacher_that_the_student_has_left_behind_is_warned_of():
    lines = history(*[{"gap/reverse_kl": value} for value in (0.1, 3.0, 3.0)])
    (warning,) = judge(lines, configured(method="rlsd")).warnings
    assert warning.startswith("warning: steps 2-3: gap/reverse_kl is 3, above guards.teacher_kl_warn = 2.0: ")
    assert not judge(lines, configured(method="grpo")).warnings


def test_what_decides_the_teachers_weight_is_noted_where_it_changes_and_no_other_guard_is():
    """Of every field of the group, in every method that anneals: whether another value leads to another weight."""
    log = history(*({"gap/reverse_kl": 1.0, "gap/noise_mean_abs": 0.1},) * 4)
    fields, found = dataclasses.fields(GuardsGroup), set()
    off = {each.name: 0.0 for each in fields if each.name.endswith(("_warn", "_stop")) and type(each.default) is float}
    off |= {"window": 3, "on_collapse": "anneal"}
    for method in (name for name, each in METHODS.items() if each.anneals):
        of_method = config(f"objective.method={method}", "rollout.rollouts=8")

        def weight(levels, of_method=of_method):
            return judge(log, dataclasses.replace(of_method, guards=GuardsGroup(**levels))).teacher_weight

        for base in (off, off | {"entropy_stop": 9.0}):
            for each in fields:
                others = {str: ("stop",), int: (1, 9), float: (1e-6, 1e6)}[type(each.default)]
                if any(weight(base | {each.name: other}) != weight(base) for other in others):
                    found.add(f"guards.{each.name}")
    assert found == {name for name in recorded.FROM_A_STEP if name.startswith("guards.")}
