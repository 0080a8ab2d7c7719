"""EGRSD (arXiv 2605.13255): RLSD's factor times a gate that trusts the teacher less where the teacher is uncertain.

A_t = A_G · g_t · clip(exp(sign(A_G) · gap_t), 1 ± eps), g_t = floor + (1 - floor) (1 - min(1, H_t / q)) with H_t the
teacher's entropy and q its 95 % quantile over the batch. lookahead > 0 is the variant CL: H_t is then the least of the
token's own entropy and those of the next ones, so that what soon becomes certain keeps its weight.

Only the abstract was at hand, and no official code was found: direction, magnitude and a gate by the teacher's entropy
that never closes are the paper's, the minimum ahead a secondary source's; the gate's formula, the live teacher and all
constants are a reconstruction. Rollouts without a context keep A_G.
"""

import dataclasses
from functools import reduce

import jax.numpy as jnp

from dasd_jax.fields import Fields, at_least, field, inside, one_of, span
from dasd_jax.methods.rlsd import of_factor
from dasd_jax.objective.advantage import group_advantage
from dasd_jax.objective.contract import OFFERED, TEACHER_GUARDS, Method, Scored, Shape, Signal, View
from dasd_jax.objective.masked import masked_mean, pooled_quantile


@dataclasses.dataclass(frozen=True)
class EgrsdParams(Fields):
    """Constants of EGRSD, all of them reconstructed."""

    eps: float = field(0.2, inside(0, 1), "bound of the factor, 1 ± eps; reconstructed: that of rlsd")
    floor: float = field(0.3, span(0, 1), "smallest gate; 1: no gate; reconstructed")
    quantile: float = field(
        0.95, inside(0, 1), "of the teacher's entropies, at which the gate is smallest; reconstructed"
    )
    lookahead: int = field(0, at_least(0, "tokens", off=True), "later tokens whose entropy counts too; CL: e.g. 8")
    context: str = field("", one_of(*OFFERED), "shown; empty: data.privileged")


def signal(scored: Scored, shape: Shape, hp: EgrsdParams) -> Signal:
    """The verifier's advantage times the clipped evidence ratio and the gate."""
    view, mask = scored.views["teacher"], scored.mask
    told = mask & view.shown[0][:, None]
    ahead = jnp.pad(jnp.where(told, view.entropy[0], jnp.inf), ((0, 0), (0, hp.lookahead)), constant_values=jnp.inf)
    least = reduce(jnp.minimum, (ahead[:, k : k + mask.shape[1]] for k in range(hp.lookahead + 1)))
    scale = jnp.maximum(pooled_quantile(view.entropy[0], told, hp.quantile), 1e-6)
    gate = jnp.where(told, 1 - (1 - hp.floor) * jnp.minimum(least / scale, 1.0), 1.0)
    gap = jnp.where(mask, view.logp[0] - scored.logp, 0.0)
    verifier = group_advantage(scored.reward, scored.live, shape.rollouts)
    made = of_factor(scored, shape, verifier, gap, scored.knobs["teacher_weight"], hp.eps, gate)
    more = {"gap/mean_abs": masked_mean(jnp.abs(gap), told), "egrsd/gate_mean": masked_mean(gate, told)}
    return made.replace(logged=made.logged | {"gate": jnp.where(mask, gate, 0.0)}, metrics=made.metrics | more)


METHOD = Method(
    fields=EgrsdParams,
    signal=signal,
    views=lambda hp: {"teacher": View(hp.context)},
    scored=lambda hp: ("teacher",),
    anneals=True,
    guards=TEACHER_GUARDS,
    watched=("egrsd/gate_mean", "credit/dense_abs_mean", "credit/verifier_abs_mean"),
)
