"""Truncated importance weights and rows left out, against NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasd_jax.learner.step import loss_of
from dasd_jax.methods import METHODS
from dasd_jax.objective.contract import Signal
from dasd_jax.objective.correction import Correction, corrected
from dasd_jax.objective.surrogate import ClipRange

MASK = np.arange(6) < np.array([6, 1, 0, 4])[:, None]


def batch(seed=0):
    """(log p, log q, a signal with all three weights); what stands behind a response is no log-probability."""
    rng = np.random.default_rng(seed)
    logp = -rng.exponential(1.0, MASK.shape)
    sampled = logp - rng.normal(scale=0.6, size=MASK.shape) - np.array([0.3, 0.0, 0.0, -0.5])[:, None]
    logp[~MASK], sampled[~MASK] = 1e3, 0.0
    weight = np.where(MASK, rng.random(MASK.shape), 0)
    advantage, kl, nll = rng.normal(size=MASK.shape), 2 * weight, 3 * weight
    arrays = (np.float32(x) for x in (logp, sampled, advantage, weight, kl, nll))
    logp, sampled, *parts = arrays
    return logp, sampled, Signal(**dict(zip(("advantage", "weight", "kl", "nll"), parts, strict=True)))


apply = jax.jit(corrected, static_argnums=4)


@pytest.mark.parametrize("cap", [1.1, 2.0, 1e9])
def test_a_tokens_weight_is_multiplied_by_its_truncated_ratio(cap, mesh):
    logp, sampled, signal = batch()
    found, metrics = apply(signal, logp, sampled, MASK, Correction(cap=cap))
    ratio = np.exp((np.float64(logp) - sampled)[MASK])
    assert cap == 1e9 or 0 < (ratio > cap).mean() < 1
    np.testing.assert_allclose(found.weight[MASK], signal.weight[MASK] * np.minimum(ratio, cap), rtol=1e-5)
    assert not found.weight[~MASK].any()
    for name in ("advantage", "kl", "nll"):
        np.testing.assert_array_equal(getattr(found, name), getattr(signal, name))
    assert metrics["policy/tis_mean"] == pytest.approx(np.minimum(ratio, cap).mean(), rel=1e-5)
    assert metrics["policy/tis_capped_frac"] == pytest.approx((ratio > cap).mean())


def test_a_divergence_is_multiplied_where_it_is_of_the_drawn_token_alone(mesh):
    logp, sampled, signal = batch()
    factor = np.minimum(np.exp(np.where(MASK, logp - sampled, 0.0)), 2.0)
    found, _ = corrected(signal, logp, sampled, MASK, Correction(cap=2.0), of_divergence=True)
    np.testing.assert_allclose(found.kl, signal.kl * factor, rtol=1e-5)
    alone = signal.replace(weight=None, advantage=None)
    assert corrected(alone, logp, sampled, MASK, Correction(cap=2.0))[1] == {}  # nothing was, and nothing says so


def test_rows_far_from_the_sampler_on_either_side_leave_the_loss(mesh):
    logp, sampled, signal = batch()
    means = [np.exp((np.float64(logp) - sampled)[row][MASK[row]].mean()) for row in (0, 1, 3)]
    for limit in (1.05, 1.3, 1.6, 9.0):
        found, metrics = apply(signal, logp, sampled, MASK, Correction(row_max=limit))
        kept = np.ones(4, bool)
        kept[[0, 1, 3]] = [1 / limit <= mean <= limit for mean in means]
        for name in ("weight", "kl", "nll"):
            np.testing.assert_array_equal(getattr(found, name), getattr(signal, name) * kept[:, None])
        assert metrics["policy/row_ratio_dropped_frac"] == pytest.approx((~kept).sum() / 3)
    assert sorted(mean > 1 for mean in means) != [True] * 3  # both sides occur


def test_nothing_changes_where_it_is_off_or_sampler_and_score_pass_are_one(mesh):
    logp, sampled, signal = batch()
    off, metrics = apply(signal, logp, sampled, MASK, Correction())
    same, of_same = apply(signal, logp, logp, MASK, Correction(cap=2.0, row_max=1.01))
    for found in (off, same):
        for name in ("weight", "kl", "nll"):
            np.testing.assert_array_equal(getattr(found, name), getattr(signal, name))
    assert not metrics
    assert (of_same["policy/tis_mean"], of_same["policy/row_ratio_dropped_frac"]) == (1, 0)


def test_the_gradient_goes_through_the_current_log_probability_alone(mesh):
    """Of Σ weight · min(p/q, cap) · surrogate: that of the plain one times a constant, and none by log q."""
    logp, sampled, signal = batch()
    signal = signal.replace(kl=None, nll=None)
    method, clip = METHODS["grpo"], ClipRange(0.2, 0.2)

    def loss(now, sampled, correction):
        made, _ = corrected(signal, logp, sampled, MASK, correction)
        return loss_of(method, clip, made, jnp.asarray(MASK), now, None, logp)[0]

    gradient = jax.jit(jax.grad(loss), static_argnums=2)
    now = logp + np.float32(0.01)
    plain, found = (gradient(now, sampled, correction) for correction in (Correction(), Correction(cap=2.0)))
    ratio = np.minimum(np.exp(np.where(MASK, np.float64(logp) - sampled, 0)), 2.0)
    np.testing.assert_allclose(found, plain * ratio, rtol=1e-5, atol=1e-7)
    assert np.abs(found).max() > 0
