"""Losses over the tokens of a batch: sums, so that parts of a minibatch add up; the caller divides once."""

import jax
import jax.numpy as jnp

from dasd_jax.batch import Array


def clipped_surrogate(
    logp: Array, old_logp: Array, advantage: Array, keep: Array, *, clip_low: float, clip_high: float
) -> tuple[Array, Array]:
    """PPO's surrogate -Σ_t min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t), r_t = exp(logp - old_logp).

    Args:
        logp: f32[rows, R], of the policy that is trained; the gradient goes through it alone.
        old_logp: f32[rows, R], of the policy that is left behind, from the score pass.
        advantage: f32[rows, R].
        keep: bool[rows, R], the tokens of the loss.
        clip_low, clip_high: in (0, 1) and > 0.

    Returns:
        (loss f32[], the sum over kept tokens; number of tokens at which the clip stops the gradient, f32[]).
        Source: arXiv 1707.06347, equation 7.
    """
    old_logp, advantage = jax.lax.stop_gradient((jnp.where(keep, old_logp, 0.0), jnp.where(keep, advantage, 0.0)))
    ratio = jnp.exp(jnp.where(keep, logp, 0.0) - old_logp)
    free = ratio * advantage
    held = jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantage
    loss = -jnp.sum(jnp.where(keep, jnp.minimum(free, held), 0.0))
    return loss, jnp.sum(keep & (held < free), dtype=jnp.float32)


def directional_kl(expected_gap: Array, route: Array, keep: Array) -> Array:
    """The signed directional KL over the whole vocabulary: -Σ_t route_t · E_{v ~ student}[gate(d(v)) · d(v)].

    It is the exact expectation of the sampled form's dense term over the token drawn, bounded on both arms; with clip
    and gate off and scale 1 its gradient is that of Σ_t route_t · KL(student || teacher).

    Args:
        expected_gap: f32[rows, R], from `token_logp_and_expectation` with `credit.gated_gap` as the value.
        route: f32[rows, R], β times the router, taken as a constant.
        keep: bool[rows, R].

    Returns:
        f32[], the sum over kept tokens.
    """
    route = jax.lax.stop_gradient(jnp.where(keep, route, 0.0))
    return -jnp.sum(route * jnp.where(keep, expected_gap, 0.0))


def negative_log_likelihood(logp: Array, keep: Array) -> Array:
    """-Σ_t logp_t over kept tokens, nats: the loss of supervised fine-tuning."""
    return -jnp.sum(jnp.where(keep, logp, 0.0))
