"""Corrections where the sampler's arithmetic is coarser than the score pass's, as with rollouts in int8.

Tokens are then drawn from q, the sampler's distribution, and trained as if they came from p, the score pass's of the
same weights. Truncated importance sampling multiplies each by min(p/q, cap) in front of PPO's own ratio, whose
denominator is p. Source: Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training", 2025.
"""

import dataclasses
import math

import jax.numpy as jnp

from dasd_jax.batch import Array
from dasd_jax.objective.contract import Signal
from dasd_jax.objective.masked import masked_mean


@dataclasses.dataclass(frozen=True)
class Correction:
    """Static; 0 is off.

    Attributes:
        cap: the largest weight p/q of a token in the surrogate.
        row_max: a row leaves the loss if the geometric mean of its p/q is above this, or below its inverse.
    """

    cap: float = 0.0
    row_max: float = 0.0


def corrected(
    signal: Signal, logp: Array, sampled_logp: Array, mask: Array, correction: Correction, of_divergence: bool = False
) -> tuple[Signal, dict[str, Array]]:
    """The signal with its weights multiplied, and what was done in numbers; divisors stay those of all tokens.

    Args:
        logp, sampled_logp: f32[rows, R], log p and log q of each token, in nats.
        mask: bool[rows, R], response tokens.
        of_divergence: whether the divergence of a token is multiplied too, as SDPO's official code does. Others are
            sums over the whole vocabulary, which word was drawn does not enter them.

    Returns:
        (signal, f32[] each: policy/tis_mean, the mean weight, and policy/tis_capped_frac, the share of tokens at the
        cap, where something was multiplied; policy/row_ratio_dropped_frac, the share of rows left out).
    """
    if correction == Correction():
        return signal, {}
    gap, metrics = jnp.where(mask, logp - sampled_logp, 0.0), {}
    of_drawn = {"weight": signal.weight, "kl": signal.kl if of_divergence else None}
    of_drawn = {name: weight for name, weight in of_drawn.items() if weight is not None}
    if correction.cap and of_drawn:
        ratio = jnp.exp(gap)
        capped = jnp.minimum(ratio, correction.cap)
        metrics["policy/tis_mean"] = masked_mean(capped, mask)
        metrics["policy/tis_capped_frac"] = masked_mean(ratio > correction.cap, mask)
        signal = signal.replace(**{name: weight * capped for name, weight in of_drawn.items()})
    if correction.row_max:
        kept = jnp.abs(masked_mean(gap, mask, axis=1)) <= math.log(correction.row_max)
        metrics["policy/row_ratio_dropped_frac"] = masked_mean(~kept, jnp.any(mask, axis=1))
        weights = {name: getattr(signal, name) for name in ("weight", "kl", "nll")}
        signal = signal.replace(
            **{name: jnp.where(kept[:, None], x, 0.0) for name, x in weights.items() if x is not None}
        )
    return signal, metrics
