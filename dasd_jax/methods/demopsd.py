"""DemoPSD (arXiv 2607.02502): the policy imitates its teacher less where the teacher disagrees with the unaided view.

With d the Jensen-Shannon divergence of teacher and unaided view at a token, a = 2 a_max (sigmoid(b d) - 1/2), the
target is proportional to p_T^(1 - a) p_U^a and the loss is KL(p_S || target), over the student's 100 likeliest words
and one more that holds the rest. Teacher and unaided view, on the student's own prompt, are read by one average of the
weights that moves by 5 % a rollout batch. Only rollouts with a right sibling are in the loss.

Read in the full text; no official code was found. The paper draws the right sibling at random, ours is the first other
one of the group. Which words the 100 are, and that d and the target are of the whole vocabulary, are a reconstruction.
"""

import dataclasses

from dasd_jax.fields import Fields, at_least, field, inside, one_of, span
from dasd_jax.methods import sdpo
from dasd_jax.objective.contract import BLANK, OFFERED, Method, View
from dasd_jax.objective.divergence import Divergence, geometric, top_k_tail


@dataclasses.dataclass(frozen=True)
class DemopsdParams(Fields):
    """Constants of DemoPSD."""

    share_max: float = field(0.15, span(0, 1), "a_max, bound of the unaided view's share; 0: KL(student || teacher)")
    steepness: float = field(
        50.0, at_least(0, "1/nat"), "b, how fast that share grows; the paper has 25 to 100, the value is our choice"
    )
    top_k: int = field(100, at_least(1), "likeliest words of the student that are told apart")
    rate: float = field(0.05, inside(0, 1), "student's share in each update of the weights of both views")
    context: str = field("sibling", one_of(*OFFERED), "shown; empty: data.privileged")


def views(hp: DemopsdParams) -> dict[str, View]:
    """The teacher, and the same weights on the student's prompt."""
    return {"teacher": View(hp.context, "ema", rate=hp.rate), "unaided": View("none", "ema", rate=hp.rate)}


def divergence(hp: DemopsdParams) -> Divergence:
    """Reverse KL to the geometric target."""
    return geometric(top_k_tail("teacher", hp.top_k, b=1.0), ("teacher", "unaided"), hp.share_max, hp.steepness)


METHOD = Method(
    fields=DemopsdParams,
    signal=sdpo.signal,  # the mean over the tokens of rollouts that have a context
    views=views,
    divergence=divergence,
    guards=(BLANK,),
)
