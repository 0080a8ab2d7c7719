"""GRPO (arXiv 2402.03300): the group-relative advantage alone, the same for every token of a response.

With DAPO's token mean over the minibatch instead of the paper's mean over responses, and no KL to a reference.
"""

import jax.numpy as jnp

from dasd_jax.batch import Array
from dasd_jax.fields import Fields
from dasd_jax.objective.advantage import group_advantage
from dasd_jax.objective.contract import Method, Scored, Shape, Signal
from dasd_jax.objective.masked import masked_mean
from dasd_jax.objective.normalise import token_mean


def signal(scored: Scored, shape: Shape, hp: Fields) -> Signal:
    """The verifier's advantage at every token."""
    verifier = group_advantage(scored.reward, scored.live, shape.rollouts)
    return of_verifier(scored, verifier, token_mean(scored.mask, shape))


def of_verifier(scored: Scored, verifier: Array, weight: Array) -> Signal:
    """The signal of an advantage f32[rows] alone, with the weight f32[rows, R] of each token."""
    credit = jnp.where(scored.mask, verifier[:, None], 0.0)
    return Signal(
        advantage=credit,
        weight=weight,
        logged={"credit": credit},
        metrics={"credit/verifier_abs_mean": masked_mean(jnp.abs(verifier), scored.live)},
    )


METHOD = Method(fields=Fields, signal=signal, watched=("credit/verifier_abs_mean",))
