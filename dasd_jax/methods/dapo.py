"""DAPO (arXiv 2503.14476): GRPO with a wider upper clip, and groups of equal rewards replaced by others.

Shared fields that it changes: `clip_high` (clip-higher) and `rollout.resample` (dynamic sampling). Its overlong
penalty is `objective.overlong_tokens`, at half its size since rewards here are 0 and 1 and not -1 and 1; its token
mean over the minibatch is that of `grpo`. The official recipe bounds the loss of negative advantages as well:
`objective.clip_dual` 10.
"""

from dasd_jax.fields import Fields
from dasd_jax.methods import grpo
from dasd_jax.objective.contract import Method

METHOD = Method(
    fields=Fields,
    signal=grpo.signal,
    shared={"objective.clip_high": 0.28, "rollout.resample": 2},
    watched=("credit/verifier_abs_mean",),
)
