"""SGSD (arXiv 2605.28791): K teachers with retrieved skills and mistakes; who was right decides whether they attract.

With Δ_k = log p_T^k - log p_S of the drawn token, teacher k supports a response by a_k, the mean of clip(Δ_k, ±3) over
its tokens; where |a_k| <= .05 it has no say. Its polarity p_k is the sign of a_k for a right response and the opposite
for a wrong one: it attracts where it agrees with the verifier, and repels where it does not. The loss is

    L = mean over responses of Σ_k α_k p_k · mean_t l(Δ_k),   l(Δ) = log 2 - softplus(-Δ² / (2 tau)),

whose gradient is that of -A_t log p_S with A_t = Σ_k α_k p_k σ(-Δ_k² / (2 tau)) Δ_k / tau: at tau 1 at most .393, and 0
both where the views agree and where they are far apart. Without a ratio it is exact with optim.minibatches = 1, the
default here. Format tokens (control tokens, tags of thinking, runs of newlines) count nowhere.

The weights α_k are the softmax of the similarities by which the pairs were retrieved (data/skills.py); the official
code has no temperature, ours is 1 for that. Right is a reward above 0, as there.

Where the official code differs: Δ is taken at temperature 1 whatever samples; its teacher is asked to think and its
student is not; its bank is rewritten by a language model, every 25 steps from the run's own responses. Ours has one
rollout.temperature, the same template for both, and a bank that stays. Its variant with a divergence over the
likeliest words in the place of Δ² is left out.
"""

import dataclasses

import jax
import jax.numpy as jnp

from dasd_jax.batch import Array
from dasd_jax.fields import Fields, above, at_least, field, span
from dasd_jax.objective.contract import TEACHER_GUARDS, Method, Scored, Shape, Signal, View, ViewStats
from dasd_jax.objective.masked import looked_up, masked_mean
from dasd_jax.objective.normalise import sequence_mean
from dasd_jax.objective.surrogate import plain


@dataclasses.dataclass(frozen=True)
class SgsdParams(Fields):
    """Constants of SGSD."""

    contexts: int = field(8, span(1, 32), "pairs of a skill and a mistake from data.skills, K: as many teachers")
    retrieval_temperature: float = field(1.0, above(0), "temperature of the softmax over their similarities")
    tau: float = field(1.0, above(0, "nats²"), "beyond a squared gap of this order the loss saturates")
    clip: float = field(3.0, above(0, "nats"), "bound of a token's gap in a teacher's support of a response")
    neutral: float = field(0.05, at_least(0, "nats"), "a teacher with |support| up to this is ignored")


def views(hp: SgsdParams) -> dict[str, View]:
    """One teacher with K prompts."""
    return {"teacher": View("skills", count=hp.contexts)}


def signal(scored: Scored, shape: Shape, hp: SgsdParams) -> Signal:
    """The weight of each token's log-probability in the gradient of the loss."""
    view, form = scored.views["teacher"], looked_up(scored.tables["format"], scored.tokens)
    keep = scored.mask & ~form & jnp.any(view.shown, axis=0)[:, None]
    gap = jnp.where(keep, view.logp - scored.logp, 0.0)
    support = masked_mean(jnp.clip(gap, -hp.clip, hp.clip), keep, axis=-1)
    outcome = jnp.where(scored.reward > 0, 1.0, -1.0)
    polarity = outcome * jnp.where(jnp.abs(support) > hp.neutral, jnp.sign(support), 0.0)
    pressure = jax.nn.sigmoid(-jnp.square(gap) / (2 * hp.tau)) * gap / hp.tau
    credit = jnp.sum((shares(view, hp) * polarity)[..., None] * pressure, axis=0)
    live = jnp.broadcast_to(scored.live, view.shown.shape)
    judged = view.shown & jnp.any(keep, axis=-1)
    return Signal(
        advantage=credit,
        weight=sequence_mean(keep, shape),
        logged={"credit": credit, "dense": credit},
        metrics={
            "sgsd/attract_frac": masked_mean(polarity > 0, judged),
            "sgsd/repel_frac": masked_mean(polarity < 0, judged),
            "sgsd/support_mean": masked_mean(support, judged),
            "sgsd/shown_frac": masked_mean(view.shown, live),
            "sgsd/format_frac": masked_mean(form, scored.mask),
            "gap/mean_abs": masked_mean(jnp.abs(gap[0]), keep & view.shown[0][:, None]),
            "credit/dense_abs_mean": masked_mean(jnp.abs(credit), keep),
        },
    )


def shares(view: ViewStats, hp: SgsdParams) -> Array:
    """α: the softmax of the similarities over the contexts that are shown, f32[K, rows]; 0 where none is."""
    nearest = jnp.max(jnp.where(view.shown, view.weight, -jnp.inf), axis=0)
    parts = jnp.where(view.shown, jnp.exp((view.weight - nearest) / hp.retrieval_temperature), 0.0)
    return parts / jnp.maximum(jnp.sum(parts, axis=0), 1.0)  # the nearest alone is 1


METHOD = Method(
    fields=SgsdParams,
    signal=signal,
    views=views,
    scored=lambda hp: ("teacher",),
    tables=("format",),
    surrogate=plain,
    shared={"optim.minibatches": 1},
    guards=TEACHER_GUARDS,
    watched=("sgsd/attract_frac", "sgsd/repel_frac", "credit/dense_abs_mean"),
)
