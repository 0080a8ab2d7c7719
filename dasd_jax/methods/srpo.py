"""SRPO (arXiv 2604.02288): rollouts that are wrong learn from a right sibling, all others from the verifier.

A wrong rollout whose teacher is shown something has SDPO's divergence with the token weight exp(-b · H_T), divided by
its mean over such tokens; every other rollout has GRPO's surrogate. Both sums share one divisor, the tokens of either
kind, so that no coefficient mixes them. The route is the verdict, never the sign of the advantage: in a group of equal
rewards the advantage is 0, and a public version that reads the sign sends right rollouts to the teacher.
"""

import dataclasses

import jax.numpy as jnp

from dasd_jax.fields import at_least, field
from dasd_jax.methods import sdpo
from dasd_jax.objective.advantage import group_advantage
from dasd_jax.objective.contract import BLANK, Method, Scored, Shape, Signal
from dasd_jax.objective.masked import masked_mean
from dasd_jax.objective.normalise import minibatch_sum, token_mean


@dataclasses.dataclass(frozen=True)
class SrpoParams(sdpo.SdpoParams):
    """Constants of SRPO: SDPO's, and the weight of uncertain teachers."""

    sharpness: float = field(1.0, at_least(0, "a nat"), "b of the token weight exp(-b · teacher's entropy)")


def signal(scored: Scored, shape: Shape, hp: SrpoParams) -> Signal:
    """GRPO's advantage on one part of the rows, the weighted divergence on the other."""
    view, mask = scored.views["teacher"], scored.mask
    verifier = group_advantage(scored.reward, scored.live, shape.rollouts)
    taught = mask & (view.shown[0] & (scored.correct < 0.5))[:, None]
    each = token_mean(mask, shape)  # one divisor for both parts
    sure = jnp.where(taught, jnp.exp(-hp.sharpness * view.entropy[0]), 0.0)
    tokens, total = (minibatch_sum(jnp.sum(x, axis=1, dtype=jnp.float32), shape) for x in (taught, sure))
    relative = sure * (tokens / jnp.maximum(total, 1e-30))[:, None]
    credit = jnp.where(mask & ~taught, verifier[:, None], 0.0)
    # For the log alone: where the teacher acts, which way and how strongly.
    dense = jnp.where(taught, relative * (view.logp[0] - scored.logp), 0.0)
    return Signal(
        advantage=credit,
        weight=jnp.where(taught, 0.0, each),
        kl=scored.knobs["teacher_weight"] * each * relative,
        logged={"credit": credit, "weight": relative, "dense": dense},
        metrics={
            "srpo/taught_frac": masked_mean(jnp.any(taught, axis=1), scored.live),
            "credit/verifier_abs_mean": masked_mean(jnp.abs(verifier), scored.live),
        },
    )


METHOD = Method(
    fields=SrpoParams,
    signal=signal,
    views=sdpo.views,
    scored=lambda hp: ("teacher",),
    divergence=sdpo.divergence,
    ratio_cap=sdpo.RATIO_CAP,
    anneals=True,
    guards=(BLANK,),
    watched=("srpo/taught_frac", "credit/verifier_abs_mean"),
)
