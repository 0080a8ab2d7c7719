"""Purified OPSD (arXiv 2607.02234): OPSD without what the reference says even to a reader who has not seen the problem.

With D = log p_T - log p_R over the vocabulary less its mean, where R is shown the reference without the problem, the
target is softmax(log p_0 + c tanh(D / c) / beta) and the loss the generalised Jensen-Shannon divergence from it, mean
over tokens, without a clamp. T, R and p_0, on the student's own prompt, are the model that the run started from.

Read in the full text, which gives c = 10 and beta = 1; no official code was found.
"""

import dataclasses

from dasd_jax.fields import Fields, above, field, span
from dasd_jax.objective.contract import BLANK, Method, Scored, Shape, Signal, View
from dasd_jax.objective.divergence import Divergence, evidence, gjsd
from dasd_jax.objective.normalise import token_mean


@dataclasses.dataclass(frozen=True)
class PurifiedOpsdParams(Fields):
    """Constants of Purified OPSD; its views are shown data.privileged."""

    b: float = field(
        0.0, span(0, 1), "target's share of the mixture; 0: KL(target || student), 1: the reverse; reconstructed"
    )
    bound: float = field(10.0, above(0, "nats"), "c, of a word's evidence")
    beta: float = field(1.0, above(0), "divides the evidence in the target")


def views(hp: PurifiedOpsdParams) -> dict[str, View]:
    """Problem and reference, the reference alone, the problem alone."""
    contexts = {"teacher": "", "reference": "without_problem", "base": "none"}
    return {name: View(context, "frozen") for name, context in contexts.items()}


def signal(scored: Scored, shape: Shape, hp: PurifiedOpsdParams) -> Signal:
    """The mean divergence over the tokens whose teacher and reference are shown something."""
    shown = scored.views["teacher"].shown[0] & scored.views["reference"].shown[0]
    return Signal(kl=token_mean(scored.mask & shown[:, None], shape))


def divergence(hp: PurifiedOpsdParams) -> Divergence:
    """The divergence from the purified target."""
    return evidence(gjsd("teacher", hp.b), ("teacher", "reference", "base"), hp.bound, hp.beta)


METHOD = Method(
    fields=PurifiedOpsdParams,
    signal=signal,
    views=views,
    divergence=divergence,
    guards=(BLANK,),
)
