"""On-Policy Self-Distillation (arXiv 2601.18734): the policy imitates itself with the solution in view, at every token.

The loss is the generalised Jensen-Shannon divergence over the whole vocabulary, b · KL(p_T || m) + (1 - b) · KL(p_S ||
m) with m = (1 - b) p_S + b p_T; no verifier enters it. Two configurations circulate: b = 0.5 without a clamp (the
first scripts), and b = 0 with every word's term clamped at 0.05 (the official ones since April 2026). Ours is the
second.

Where the official code differs: its teacher is the policy with its LoRA adapter switched off, ours a frozen copy of
the whole starting model; its student prompts lack the chat template during training, ours have it.

form=sampled is its variant with the drawn token alone, whose gradient is (log p_T - log p_S) ∇ log p_S; it takes the
gap from the weights that wrote the tokens, so that it is exact with optim.minibatches = 1.
"""

import dataclasses
import math

import jax.numpy as jnp

from dasd_jax.fields import Fields, above, at_least, field, one_of, span
from dasd_jax.objective.contract import BLANK, OFFERED, Method, Scored, Shape, Signal, View
from dasd_jax.objective.divergence import Divergence, gjsd, softened
from dasd_jax.objective.masked import masked_mean
from dasd_jax.objective.normalise import token_mean
from dasd_jax.objective.surrogate import plain


@dataclasses.dataclass(frozen=True)
class OpsdParams(Fields):
    """Constants of OPSD."""

    form: str = field("full", one_of("full", "sampled"), "over the vocabulary, or of the drawn token alone")
    b: float = field(0.0, span(0, 1), "teacher's share of the mixture; 0: KL(teacher || student), 1: the reverse")
    entry_max: float = field(0.05, at_least(0, "nats", off=True), "bound of each word's term")
    softening: float = field(1.0, above(0), "divides the logits of both views, after rollout.temperature")
    context: str = field("", one_of(*OFFERED), "shown; empty: data.privileged")
    teacher: str = field("frozen", one_of("frozen", "live"), "whose weights read it")


def views(hp: OpsdParams) -> dict[str, View]:
    """One teacher."""
    return {"teacher": View(hp.context, hp.teacher)}


def signal(scored: Scored, shape: Shape, hp: OpsdParams) -> Signal:
    """The mean divergence over the tokens whose teacher is shown something."""
    view = scored.views["teacher"]
    keep = scored.mask & view.shown[0][:, None]
    weight = token_mean(keep, shape)
    if hp.form == "full":
        return Signal(kl=weight)
    gap = jnp.where(keep, view.logp[0] - scored.logp, 0.0)
    return Signal(
        advantage=gap,
        weight=weight,
        logged={"credit": gap, "dense": gap},
        metrics={"gap/mean_abs": masked_mean(jnp.abs(gap), keep)},
    )


def divergence(hp: OpsdParams) -> Divergence | None:
    """Of the full form."""
    if hp.form == "sampled":
        return None
    return softened(gjsd("teacher", hp.b, hp.entry_max or math.inf), hp.softening)


METHOD = Method(
    fields=OpsdParams,
    signal=signal,
    views=views,
    scored=lambda hp: ("teacher",) if hp.form == "sampled" else (),
    surrogate=plain,
    divergence=divergence,
    guards=(BLANK,),
)
