"""HEPO, "Beyond the 80/20 rule" (arXiv 2506.01939): DAPO on the tokens of highest entropy alone.

The kept tokens are the share of highest student entropy among all response tokens of a minibatch. The official code
pools them over its micro-batch, whose size is a matter of memory, and takes the entropy of the current policy instead
of the one that wrote the tokens; both are the same in the first update of a rollout batch with one microbatch. Like
the official code it divides by the kept tokens; `norm=all` divides by all of them, a step 1 / `share` times smaller.
"""

import dataclasses

from dasd_jax.fields import Fields, Range, field, one_of
from dasd_jax.methods import dapo, grpo
from dasd_jax.objective.advantage import group_advantage
from dasd_jax.objective.contract import Method, Scored, Shape, Signal
from dasd_jax.objective.masked import masked_mean
from dasd_jax.objective.normalise import minibatch_top, token_mean


@dataclasses.dataclass(frozen=True)
class HepoParams(Fields):
    """Constants of HEPO."""

    share: float = field(
        0.2,
        Range(lambda value: 0 < value <= 1, "a number in (0, 1]"),
        "of a minibatch's tokens that are kept, highest entropy first",
    )
    norm: str = field("kept", one_of("kept", "all"), "tokens that the loss is divided by")


def signal(scored: Scored, shape: Shape, hp: HepoParams) -> Signal:
    """The verifier's advantage at the kept tokens."""
    kept = minibatch_top(scored.entropy, scored.mask, hp.share, shape)
    weight = token_mean(kept if hp.norm == "kept" else scored.mask, shape) * kept
    made = grpo.of_verifier(scored, group_advantage(scored.reward, scored.live, shape.rollouts), weight)
    return made.replace(
        logged=made.logged | {"kept": kept.astype(weight.dtype)},
        metrics=made.metrics | {"hepo/entropy_kept": masked_mean(scored.entropy, kept)},
    )


METHOD = Method(fields=HepoParams, signal=signal, shared=dapo.METHOD.shared, watched=("credit/verifier_abs_mean",))
