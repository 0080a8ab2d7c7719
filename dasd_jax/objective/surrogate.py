"""Policy-gradient terms of a token; the learner multiplies them by `Signal.weight` and adds them up."""

import dataclasses

import jax
import jax.numpy as jnp

from dasd_jax.batch import Array


@dataclasses.dataclass(frozen=True)
class ClipRange:
    """[1 - low, 1 + high]: the ratios of new to old probability beyond which a token gains nothing more."""

    low: float
    high: float


def clipped(logp: Array, old_logp: Array, advantage: Array, clip: ClipRange) -> tuple[Array, Array]:
    """PPO's surrogate min(r A, clip(r, 1 - low, 1 + high) A), r = exp(logp - old_logp).

    Args:
        logp: f32[rows, R], of the policy that is trained; the gradient goes through it alone.
        old_logp: f32[rows, R], of the policy that wrote the tokens, from the score pass.
        advantage: f32[rows, R].

    Returns:
        (the gain to be maximised, f32[rows, R]; bool[rows, R], where the clip stops the gradient).
        Source: arXiv 1707.06347, equation 7.
    """
    old_logp, advantage = jax.lax.stop_gradient((old_logp, advantage))
    ratio = jnp.exp(logp - old_logp)
    free = ratio * advantage
    held = jnp.clip(ratio, 1 - clip.low, 1 + clip.high) * advantage
    return jnp.minimum(free, held), held < free
