"""AntiSD (arXiv 2605.11609): every token is pushed away from the teacher, as long as the teacher is uncertain enough.

A_t = A_G - λ · phi(log p_T - log p_S) with phi(u) = (softplus(u) - log 2) / 2: what only the informed teacher likes is
punished in proportion, what it dislikes is rewarded by at most λ · .347. A Schmitt gate on the median of the teacher's
entropies over the batch holds the term back: λ is 0 until `measured_steps` steps have had a median, and the median of
these is H_warm; the gate goes off when the median falls below .93 H_warm, and on again at H_warm. A step in which no
rollout has a context has no median and leaves the gate as it is. Without a context the term feeds itself and collapses
within some 70 steps (its ablation); rollouts without one have none of it.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dasd_jax.fields import Fields, at_least, field, inside, one_of
from dasd_jax.objective.advantage import group_advantage
from dasd_jax.objective.contract import OFFERED, TEACHER_GUARDS, Method, Scored, Shape, Signal, View
from dasd_jax.objective.masked import masked_mean, pooled_quantile
from dasd_jax.objective.normalise import token_mean

_ENTROPY, _GATE = "antisd/teacher_entropy_median", "antisd/gate"


@dataclasses.dataclass(frozen=True)
class AntisdParams(Fields):
    """Constants of AntiSD."""

    strength: float = field(0.5, at_least(0), "λ, weight of the teacher's term while the gate is on; 0 is GRPO")
    measured_steps: int = field(5, at_least(1, "steps"), "first steps, without the term, that measure the entropy")
    off_below: float = field(0.93, inside(0, 1), "share of the measured entropy below which the gate goes off")
    context: str = field(
        "sibling_or_solution",
        one_of(*OFFERED, "sibling_or_solution"),
        "shown; empty: data.privileged",
    )


def signal(scored: Scored, shape: Shape, hp: AntisdParams) -> Signal:
    """The verifier's advantage less the gated evidence of the teacher."""
    view, mask, knobs = scored.views["teacher"], scored.mask, scored.knobs
    gap = jnp.where(mask, view.logp[0] - scored.logp, 0.0)
    verifier = group_advantage(scored.reward, scored.live, shape.rollouts)
    told = mask & view.shown[0][:, None]
    median = jnp.where(jnp.any(told), pooled_quantile(view.entropy[0], told, 0.5), jnp.nan)
    measured, gate = knobs["antisd_warm"], knobs["antisd_gate"]  # a median that is NaN is on no side of a level
    gate = jnp.where(median >= measured, 1.0, jnp.where(median < hp.off_below * measured, 0.0, gate))
    push = gate * hp.strength * knobs["teacher_weight"] * 0.5 * (jax.nn.softplus(gap) - jnp.log(2.0))
    credit = jnp.where(mask, verifier[:, None] - push, 0.0)
    return Signal(
        advantage=credit,
        weight=token_mean(mask, shape),
        logged={"credit": credit, "dense": jnp.where(mask, -push, 0.0)},
        metrics={
            _ENTROPY: median,
            _GATE: gate,
            "gap/mean_abs": masked_mean(jnp.abs(gap), told),
            "credit/dense_abs_mean": masked_mean(jnp.abs(push), mask),
            "credit/verifier_abs_mean": masked_mean(jnp.abs(verifier), scored.live),
        },
    )


def memory(lines: Sequence[dict], hp: AntisdParams) -> dict[str, float]:
    """H_warm and the gate after the last step; until enough steps have measured H_warm, no median reaches it."""
    measured = [line for line in lines if _ENTROPY in line]
    if len(measured) < hp.measured_steps:
        return {"antisd_warm": math.inf, "antisd_gate": 0.0}
    warm = measured[: hp.measured_steps]
    later = [line[_GATE] for line in lines if line["step"] > warm[-1]["step"]]
    # On at the first step after these, unless the entropy of that step says otherwise.
    return {
        "antisd_warm": float(np.median([line[_ENTROPY] for line in warm])),
        "antisd_gate": later[-1] if later else 1.0,
    }


METHOD = Method(
    fields=AntisdParams,
    signal=signal,
    views=lambda hp: {"teacher": View(hp.context)},
    scored=lambda hp: ("teacher",),
    memory=memory,
    anneals=True,
    guards=TEACHER_GUARDS,
    watched=("antisd/gate", "credit/dense_abs_mean", "credit/verifier_abs_mean"),
)
