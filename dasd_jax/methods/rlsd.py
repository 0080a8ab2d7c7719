"""RLSD, Self-Distilled RLVR (arXiv 2604.03128): the teacher changes how large a token's advantage is, never its sign.

A_t = A_G · ((1 - λ) + λ · clip(exp(sign(A_G) · gap_t), 1 ± eps)), and λ falls to 0 in a straight line. Defaults are
those of the official launch script, which overrides its YAML (no decay, a teacher that never moves); re-implementations
decay over 50 steps and copy the teacher every 10. The official gap is that of the current weights, ours that of the
weights that wrote the tokens: the same in the first update of a rollout batch.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp

from dasd_jax.batch import Array
from dasd_jax.fields import Fields, at_least, field, inside, one_of, span
from dasd_jax.objective.advantage import group_advantage
from dasd_jax.objective.contract import OFFERED, TEACHER_GUARDS, Method, Scored, Shape, Signal, View
from dasd_jax.objective.masked import masked_mean
from dasd_jax.objective.normalise import token_mean


@dataclasses.dataclass(frozen=True)
class RlsdParams(Fields):
    """Constants of RLSD."""

    mix: float = field(0.5, span(0, 1), "λ at the first step, the teacher's share of the advantage")
    decay_steps: int = field(60, at_least(0, "steps", off=True), "steps in which λ falls to 0")
    eps: float = field(0.2, inside(0, 1), "bound of the factor, 1 ± eps")
    refresh: int = field(20, at_least(0, "steps"), "steps between two copies for the teacher; 0: it stays the first")
    context: str = field("", one_of(*OFFERED), "shown; empty: data.privileged")


def views(hp: RlsdParams) -> dict[str, View]:
    """One teacher."""
    return {"teacher": View(hp.context, "snapshot", every=hp.refresh) if hp.refresh else View(hp.context, "frozen")}


def signal(scored: Scored, shape: Shape, hp: RlsdParams) -> Signal:
    """The verifier's advantage times the clipped evidence ratio of teacher and student."""
    view = scored.views["teacher"]
    gap = jnp.where(scored.mask, view.logp[0] - scored.logp, 0.0)
    verifier = group_advantage(scored.reward, scored.live, shape.rollouts)
    made = of_factor(scored, shape, verifier, gap, share(scored.knobs, hp.mix, hp.decay_steps), hp.eps)
    more = {"gap/mean_abs": masked_mean(jnp.abs(gap), scored.mask & view.shown[0][:, None])}
    if hp.refresh:
        more["teacher/age"] = (scored.knobs["step"] - 1) % hp.refresh
    return made.replace(metrics=made.metrics | more)


def share(knobs: Mapping[str, Array], mix: float, decay_steps: int) -> Array:
    """λ of this step: f32[]; traced, so that its fall compiles nothing."""
    left = 1 - (knobs["step"] - 1) / decay_steps if decay_steps else 1.0
    return mix * knobs["teacher_weight"] * jnp.maximum(left, 0.0)


def of_factor(
    scored: Scored, shape: Shape, verifier: Array, gap: Array, mix: Array, eps: float, gate: Array | float = 1.0
) -> Signal:
    """The signal A · ((1 - λ) + λ · gate · clip(exp(sign(A) · gap), 1 ± eps)); without a gate a gap of 0 leaves A."""
    factor = jnp.clip(jnp.exp(jnp.sign(verifier)[:, None] * gap), 1 - eps, 1 + eps)
    credit = jnp.where(scored.mask, verifier[:, None] * (1 - mix + mix * gate * factor), 0.0)
    # What the teacher's opinion adds; what a gate takes off whatever that is does not pull toward it or push away.
    dense = jnp.where(scored.mask, verifier[:, None] * mix * gate * (factor - 1), 0.0)
    return Signal(
        advantage=credit,
        weight=token_mean(scored.mask, shape),
        logged={"credit": credit, "dense": dense},
        metrics={
            "credit/mix": mix,
            "credit/dense_abs_mean": masked_mean(jnp.abs(dense), scored.mask),
            "credit/held_frac": masked_mean(jnp.abs(factor - 1) >= eps * (1 - 1e-6), scored.mask),
            "credit/verifier_abs_mean": masked_mean(jnp.abs(verifier), scored.live),
        },
    )


METHOD = Method(
    fields=RlsdParams,
    signal=signal,
    views=views,
    scored=lambda hp: ("teacher",),
    anneals=True,
    guards=TEACHER_GUARDS,
    watched=("credit/dense_abs_mean", "credit/verifier_abs_mean"),
)
