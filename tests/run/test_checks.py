"""What has to hold before an update: hand-written numbers, and the lines that refuse them."""

import numpy as np
import pytest
from tiny import config

from dasd_jax.errors import TrainingError
from dasd_jax.objective.contract import NOISE
from dasd_jax.run.checks import sampler_agrees, views_agree


@pytest.mark.parametrize(
    ("mean", "p999", "noise", "refused"),
    [
        (0.001, 0.1, 0.0, ""),
        (0.03, 0.1, 0.0, "policy/logp_gap_mean is 0.03 nats > guards.logp_gap_mean_max = 0.02"),
        (0.03, 0.1, 0.009, "policy/logp_gap_mean"),
        (0.03, 0.1, 0.011, ""),  # three times the rounding are as much
        (0.001, 0.6, 0.3, "policy/logp_gap_p999 is 0.6 nats > guards.logp_gap_p999_max = 0.5"),
        (float("nan"), 0.1, 0.0, "policy/logp_gap_mean is nan"),
    ],
)
def test_the_sampler_may_differ_by_the_limit_or_by_three_times_the_rounding(mean, p999, noise, refused):
    metrics = {"policy/logp_gap_mean": mean, "policy/logp_gap_p999": p999, NOISE: noise}
    if not refused:
        sampler_agrees(config(), 7, metrics)
        return
    with pytest.raises(TrainingError, match="^step 7: ") as error:
        sampler_agrees(config(), 7, metrics)
    assert refused in str(error.value) and "nothing was updated" in str(error.value)


def test_rollouts_in_int8_have_limits_of_their_own():
    metrics = {"policy/logp_gap_mean": 0.03, "policy/logp_gap_p999": 0.6}
    for which in ("weights", "cache"):
        rounded = config(f"rollout.{which}=int8")
        sampler_agrees(rounded, 7, metrics)
        for name, limit in (("mean", rounded.guards.int8_gap_mean_max), ("p999", rounded.guards.int8_gap_p999_max)):
            with pytest.raises(TrainingError, match=f"int8_gap_{name}_max = {limit}: .*Set rollout.weights and"):
                sampler_agrees(rounded, 7, metrics | {f"policy/logp_gap_{name}": 1.01 * limit})


def test_views_without_context_may_differ_by_three_times_the_rounding():
    """At the first token of responses alone, and at those that have one."""
    mask = np.array([[True, True], [True, False], [False, False]])
    gap = np.array([[0.02, 9.0], [-0.04, 9.0], [9.0, 9.0]], np.float32)
    views_agree(config(), 1, 0.0101, mask, lambda: {"teacher": gap})
    with pytest.raises(TrainingError, match="step 1: without privileged context the teacher is 0.03 nats from the stu"):
        views_agree(config(), 1, 0.0099, mask, lambda: {"teacher": gap})
    views_agree(config("objective.method=grpo"), 1, 0.0, mask, lambda: pytest.fail("no view is scored"))
