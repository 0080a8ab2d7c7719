"""RLRT (arXiv 2605.10781): RLSD with the teacher reversed, on right rollouts alone.

With D_t = log p_S - log p_T of the drawn token, right rollouts have A_t = A_G · ((1 - λ) + λ · clip(exp(sign(A_G) ·
D_t), 1 ± eps)) and all others A_t = A_G: what a right rollout wrote although the informed teacher finds it unlikely
counts more. Without the restriction to right rollouts lengths and entropy grow without end (its ablation). The paper's
eps is 1 for base models, .5 for instruct and .2 for thinking ones, and its λ falls to 0 in 30 steps for the latter
two. No official code exists; read in the full text.
"""

import dataclasses

import jax.numpy as jnp

from dasd_jax.fields import Fields, Range, at_least, field, one_of, span
from dasd_jax.methods.rlsd import of_factor, share
from dasd_jax.objective.advantage import group_advantage
from dasd_jax.objective.contract import OFFERED, TEACHER_GUARDS, Method, Scored, Shape, Signal, View
from dasd_jax.objective.masked import masked_mean


@dataclasses.dataclass(frozen=True)
class RlrtParams(Fields):
    """Constants of RLRT."""

    mix: float = field(0.5, span(0, 1), "λ at the first step, the teacher's share of the advantage")
    decay_steps: int = field(30, at_least(0, "steps", off=True), "steps in which λ falls to 0")
    eps: float = field(0.5, Range(lambda value: 0 < value <= 1, "a number in (0, 1]"), "bound of the factor, 1 ± eps")
    context: str = field("sibling", one_of(*OFFERED), "shown; empty: data.privileged")


def signal(scored: Scored, shape: Shape, hp: RlrtParams) -> Signal:
    """The verifier's advantage times the clipped evidence ratio of student and teacher, on right rollouts."""
    view = scored.views["teacher"]
    reversed_gap = scored.logp - view.logp[0]
    gap = jnp.where(scored.mask & (scored.correct > 0.5)[:, None], reversed_gap, 0.0)
    verifier = group_advantage(scored.reward, scored.live, shape.rollouts)
    made = of_factor(scored, shape, verifier, gap, share(scored.knobs, hp.mix, hp.decay_steps), hp.eps)
    told = scored.mask & view.shown[0][:, None]
    return made.replace(metrics=made.metrics | {"gap/mean_abs": masked_mean(jnp.abs(reversed_gap), told)})


METHOD = Method(
    fields=RlrtParams,
    signal=signal,
    views=lambda hp: {"teacher": View(hp.context)},
    scored=lambda hp: ("teacher",),
    anneals=True,
    guards=TEACHER_GUARDS,
    watched=("credit/dense_abs_mean", "credit/verifier_abs_mean"),
)
