"""SDPO (arXiv 2601.20802): the policy imitates itself after it has seen a right response of its own group.

The loss is the generalised Jensen-Shannon divergence over the student's 100 likeliest words and one more that holds
the rest, times min(p_S / p_old, 2) of the drawn token; the mean is over the tokens of rollouts that have such a
sibling, and the others are left out. The teacher's weights are an average that moves by 5 % once a rollout batch. No
verifier's advantage enters it. Defaults are those of the official YAML, which override those of its code (alpha 0, no
tail).

Where ours differs: feedback of an environment is not a context here, and the teacher's `trust region` mixing is left
out.
"""

import dataclasses

from dasd_jax.fields import Fields, at_least, field, inside, one_of, span
from dasd_jax.objective.contract import BLANK, OFFERED, Method, Scored, Shape, Signal, View
from dasd_jax.objective.divergence import Divergence, top_k_tail
from dasd_jax.objective.normalise import token_mean

RATIO_CAP = 2.0


@dataclasses.dataclass(frozen=True)
class SdpoParams(Fields):
    """Constants of SDPO."""

    alpha: float = field(0.5, span(0, 1), "teacher's share of the mixture; 0: KL(teacher || student), 1: the reverse")
    top_k: int = field(100, at_least(1), "likeliest words of the student that are told apart")
    rate: float = field(0.05, inside(0, 1), "student's share in each update of the teacher's weights")
    context: str = field("sibling", one_of(*OFFERED), "shown; empty: data.privileged")


def views(hp: SdpoParams) -> dict[str, View]:
    """One teacher."""
    return {"teacher": View(hp.context, "ema", rate=hp.rate)}


def signal(scored: Scored, shape: Shape, hp: SdpoParams) -> Signal:
    """The mean divergence over the tokens whose teacher is shown something."""
    keep = scored.mask & scored.views["teacher"].shown[0][:, None]
    return Signal(kl=token_mean(keep, shape))


def divergence(hp: SdpoParams) -> Divergence:
    """Jensen-Shannon over the likeliest words and the rest."""
    return top_k_tail("teacher", hp.top_k, hp.alpha)


METHOD = Method(
    fields=SdpoParams,
    signal=signal,
    views=views,
    divergence=divergence,
    ratio_cap=RATIO_CAP,
    guards=(BLANK,),
)
