"""PPO's clipped surrogate by hand and against float64, and minibatches put together from its terms."""

import jax
import jax.numpy as jnp
import numpy as np
import objective_oracle as oracle
import pytest

from dasd_jax.objective.contract import Shape
from dasd_jax.objective.normalise import token_mean
from dasd_jax.objective.surrogate import ClipRange, clipped

CLIP = ClipRange(low=0.2, high=0.28)


@jax.jit
def gradients(logp, old_logp, advantage, weight):
    """(Σ weight · gain, its slopes by the first three arguments, where the clip stops the gradient)."""

    def total(*terms):
        gain, held = clipped(*terms, CLIP)
        return jnp.sum(weight * gain), held

    (gain, held), slopes = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(logp, old_logp, advantage)
    return gain, slopes, held


@pytest.mark.parametrize(
    ("advantage", "ratio", "gain", "slope", "stopped"),
    [
        (1.0, 0.5, 0.5, 0.5, False),  # a good token that lost probability is pulled back up
        (1.0, 1.1, 1.1, 1.1, False),
        (1.0, 1.5, 1.28, 0.0, True),  # gained enough
        (-1.0, 0.5, -0.8, 0.0, True),  # a bad token lost enough
        (-1.0, 0.9, -0.9, -0.9, False),
        (-1.0, 1.5, -1.5, -1.5, False),  # a bad token that gained is pushed down without bound
        (0.0, 1.5, 0.0, 0.0, False),
        (2.0, 1.0, 2.0, 2.0, False),  # the policy that wrote the token is the policy trained
    ],
)
def test_the_surrogate_by_hand(advantage, ratio, gain, slope, stopped):
    one = np.ones((1, 1), np.float32)
    got, slopes, held = gradients(np.log(ratio) * one - 3, -3 * one, advantage * one, one)
    np.testing.assert_allclose([got.item(), slopes[0].item()], [gain, slope], atol=1e-5)
    assert held.item() == stopped


def tokens(rows=4, width=6, seed=0):
    """(logp, old_logp, advantage, keep) with ratios on both sides of the clip, none within 1e-3 of its edges."""
    rng = np.random.default_rng(seed)
    logp = -rng.exponential(1.0, (rows, width))
    ratio = rng.choice([0.3, 0.7, 0.9, 1.05, 1.2, 1.4, 2.0], (rows, width))
    advantage = rng.normal(size=(rows, width))
    keep = np.arange(width) < np.array([6, 1, 0, 4])[:, None]
    return *(x.astype(np.float32) for x in (logp, logp - np.log(ratio), advantage)), keep


def test_gain_gradient_and_clip_are_those_of_float64_and_finite_differences():
    logp, old_logp, advantage, _ = tokens()
    weight = np.random.default_rng(1).random(logp.shape).astype(np.float32)

    def reference(logp):
        ratio = np.exp(logp - old_logp.astype(np.float64))
        return (weight * np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.28) * advantage)).sum()

    (slope,) = oracle.central_differences(reference, [logp])
    gain, slopes, held = gradients(logp, old_logp, advantage, weight)
    np.testing.assert_allclose(gain, reference(logp.astype(np.float64)), rtol=1e-5)
    np.testing.assert_allclose(slopes[0], slope, atol=1e-5)
    np.testing.assert_array_equal(held, np.abs(slope) < 1e-9)
    assert 0 < held.sum() < held.size


def test_the_old_policy_and_the_advantage_receive_exactly_no_gradient():
    *terms, keep = tokens()
    _, slopes, _ = gradients(*terms, keep.astype(np.float32))
    assert np.asarray(slopes[0]).any() and not np.asarray(slopes[1]).any() and not np.asarray(slopes[2]).any()


def test_a_token_without_weight_has_no_gradient_and_changes_no_other():
    logp, old_logp, advantage, keep = tokens()
    want = gradients(logp, old_logp, advantage, keep.astype(np.float32))
    other = (np.where(keep, x, 2.5 * x - 1) for x in (logp, old_logp, advantage))
    got = gradients(*other, keep.astype(np.float32))
    assert got[0] == want[0]
    np.testing.assert_array_equal(got[1][0], want[1][0])
    assert not np.asarray(want[1][0])[~keep].any()


def test_parts_of_a_minibatch_weighed_by_its_token_mean_add_up_to_the_mean():
    logp, old_logp, advantage, keep = tokens()
    weight = np.asarray(token_mean(keep, Shape(rollouts=2, minibatches=1, max_new_tokens=6)))
    whole = gradients(logp, old_logp, advantage, weight)
    parts = [gradients(*(x[i : i + 2] for x in (logp, old_logp, advantage, weight))) for i in (0, 2)]
    assert parts[0][0] + parts[1][0] == pytest.approx(float(whole[0]), rel=1e-6)
    np.testing.assert_array_equal(np.concatenate([part[1][0] for part in parts]), whole[1][0])
    gain, _ = clipped(logp, old_logp, advantage, CLIP)
    assert whole[0] == pytest.approx(np.asarray(gain, np.float64)[keep].mean(), rel=1e-6)


def test_negative_log_likelihood_by_token_mean_pulls_each_token_with_the_same_force():
    keep = np.array([[True, True, False], [True, False, False]])
    logp = np.array([[-1.0, -2.0, -9.0], [-0.5, -9.0, -9.0]], np.float32)
    weight = token_mean(keep, Shape(rollouts=2, minibatches=1, max_new_tokens=3))
    loss, slope = jax.value_and_grad(lambda logp: -jnp.sum(weight * logp))(logp)
    assert loss == pytest.approx(3.5 / 3)
    np.testing.assert_allclose(slope, -1.0 * keep / 3, rtol=1e-6)
