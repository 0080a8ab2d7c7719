"""AD-OPSD (arXiv 2607.10805): OPSD whose teacher is mixed with the starting model where the policy is torn.

At the 20 % most uncertain tokens of a response, where log p_S > log p_T of the drawn token, u = sigmoid(p_S (log p_S -
log p_T) / tau), and u = 0 elsewhere. The loss is KL(target || p_S) with target = u p_0 + (1 - u) p_T, without a clamp.
Teacher and p_0, on the student's own prompt, are the model that the run started from.

Read in the full text; no official code was found. That the 20 % are of each response and exact by rank, ties to the
first, is a reconstruction. u is made with the weights that wrote the tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp

from dasd_jax.fields import Fields, Range, above, field, one_of
from dasd_jax.objective.contract import OFFERED, TEACHER_GUARDS, Method, Scored, Shape, Signal, View
from dasd_jax.objective.divergence import arithmetic, gjsd
from dasd_jax.objective.masked import largest, masked_mean
from dasd_jax.objective.normalise import token_mean


@dataclasses.dataclass(frozen=True)
class AdOpsdParams(Fields):
    """Constants of AD-OPSD."""

    share: float = field(
        0.2,
        Range(lambda value: 0 < value <= 1, "a number in (0, 1]"),
        "of a response's tokens, by entropy, that may be mixed",
    )
    tau: float = field(1.0, above(0, "nats"), "scale of the student's excess over the teacher")
    context: str = field("", one_of(*OFFERED), "shown; empty: data.privileged")


def signal(scored: Scored, shape: Shape, hp: AdOpsdParams) -> Signal:
    """The mean divergence over the tokens whose teacher is shown something, and the prior's share at each."""
    view = scored.views["teacher"]
    keep = scored.mask & view.shown[0][:, None]
    excess = jnp.where(keep, scored.logp - view.logp[0], 0.0)
    risky = largest(scored.entropy, keep, hp.share) & (excess > 0)
    share = jnp.where(risky, jax.nn.sigmoid(jnp.exp(jnp.where(risky, scored.logp, 0.0)) * excess / hp.tau), 0.0)
    return Signal(
        kl=token_mean(keep, shape),
        given=share,
        logged={"prior": share},
        metrics={"ad_opsd/mixed_frac": masked_mean(risky, keep), "gap/mean_abs": masked_mean(jnp.abs(excess), keep)},
    )


METHOD = Method(
    fields=AdOpsdParams,
    signal=signal,
    views=lambda hp: {"teacher": View(hp.context, "frozen"), "base": View("none", "frozen")},
    scored=lambda hp: ("teacher",),
    divergence=lambda hp: arithmetic(gjsd("teacher", 0.0), ("teacher", "base")),
    guards=TEACHER_GUARDS,
    watched=("ad_opsd/mixed_frac",),
)
