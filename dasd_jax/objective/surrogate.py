"""Policy-gradient terms of a token; the learner multiplies them by `Signal.weight` and adds them up."""

import dataclasses

import jax
import jax.numpy as jnp

from dasd_jax.batch import Array


@dataclasses.dataclass(frozen=True)
class ClipRange:
    """[1 - low, 1 + high]: the ratios of new to old probability beyond which a token gains nothing more.

    Attributes:
        dual: of tokens with a negative advantage, the ratio above which they lose nothing more; 0: without end.
    """

    low: float
    high: float
    dual: float = 0.0


def clipped(logp: Array, old_logp: Array, advantage: Array, clip: ClipRange) -> tuple[Array, Array]:
    """PPO's surrogate min(r A, clip(r, 1 - low, 1 + high) A), r = exp(logp - old_logp).

    Args:
        logp: f32[rows, R], of the policy that is trained; the gradient goes through it alone.
        old_logp: f32[rows, R], of the policy that wrote the tokens, from the score pass.
        advantage: f32[rows, R].

    Returns:
        (the gain to be maximised, f32[rows, R]; bool[rows, R], where the clip stops the gradient).
        Source: arXiv 1707.06347, equation 7; `clip.dual`: arXiv 1912.09729, equation 5.
    """
    old_logp, advantage = jax.lax.stop_gradient((old_logp, advantage))
    ratio = jnp.exp(logp - old_logp)
    free = ratio * advantage
    held = jnp.clip(ratio, 1 - clip.low, 1 + clip.high) * advantage
    gain, stopped = jnp.minimum(free, held), held < free
    if not clip.dual:
        return gain, stopped
    floor = clip.dual * advantage
    too_low = (advantage < 0) & (gain < floor)
    return jnp.where(too_low, floor, gain), stopped | too_low


def plain(logp: Array, old_logp: Array, advantage: Array, clip: ClipRange) -> tuple[Array, Array]:
    """A · logp, without a ratio or a clip: the policy gradient of the weights that wrote the tokens.

    Exact in the first update of a rollout batch. Arguments and result as in `clipped`.
    """
    gain = jax.lax.stop_gradient(advantage) * logp
    return gain, jnp.zeros_like(gain, bool)
