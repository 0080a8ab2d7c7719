"""PW-OPSD (arXiv 2605.21606): OPSD with less weight on the beginning of a response, where its teacher is less reliable.

KL(p_T || p_S) with every word's term clamped at 0.05, times w_t = w_min + (1 - w_min) sigmoid((f_t - tau) / s) with
f_t = (t - 1/2) / n of token t = 1…n; the mean over a response's tokens, then over responses. The weights are not
normalised: of a long response their mean is .77. Defaults are the official code's moderate setting. It divides all
logits by 1.1, which here is rollout.temperature; what opsd says of the official teacher and prompts holds as well.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from dasd_jax.fields import Fields, above, at_least, field, one_of, span
from dasd_jax.objective.contract import BLANK, OFFERED, Method, Scored, Shape, Signal, View
from dasd_jax.objective.divergence import Divergence, gjsd
from dasd_jax.objective.normalise import sequence_mean


@dataclasses.dataclass(frozen=True)
class PwOpsdParams(Fields):
    """Constants of PW-OPSD."""

    weight_min: float = field(0.25, span(0, 1), "w_min, of a response's first tokens; 1: all weigh alike")
    middle: float = field(0.3, span(0, 1), "tau, the place in a response, from 0 to 1, that has the mean weight")
    width: float = field(0.1, above(0), "s, of the rise around it")
    entry_max: float = field(0.05, at_least(0, "nats", off=True), "bound of each word's term")
    context: str = field("", one_of(*OFFERED), "shown; empty: data.privileged")


def signal(scored: Scored, shape: Shape, hp: PwOpsdParams) -> Signal:
    """The mean divergence by response, later tokens with more weight."""
    keep = scored.mask & scored.views["teacher"].shown[0][:, None]
    length = jnp.maximum(jnp.sum(keep, axis=1, keepdims=True), 1)
    place = (jnp.cumsum(keep, axis=1) - 0.5) / length
    weight = hp.weight_min + (1 - hp.weight_min) * jax.nn.sigmoid((place - hp.middle) / hp.width)
    each = sequence_mean(keep, shape)
    return Signal(kl=each * weight, logged={"weight": jnp.where(keep, weight, 0.0)})


def divergence(hp: PwOpsdParams) -> Divergence:
    """Forward KL with the clamp."""
    return gjsd("teacher", 0.0, hp.entry_max or math.inf)


METHOD = Method(
    fields=PwOpsdParams,
    signal=signal,
    views=lambda hp: {"teacher": View(hp.context, "frozen")},
    divergence=divergence,
    guards=(BLANK,),
)
