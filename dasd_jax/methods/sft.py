"""Supervised fine-tuning on the reference responses: a warm start, and the baseline of imitation."""

from dasd_jax.fields import Fields
from dasd_jax.objective.contract import Method, Scored, Shape, Signal
from dasd_jax.objective.normalise import token_mean


def signal(scored: Scored, shape: Shape, hp: Fields) -> Signal:
    """Negative log-likelihood, averaged over the tokens of a minibatch."""
    return Signal(nll=token_mean(scored.mask, shape))


METHOD = Method(fields=Fields, signal=signal, rollouts=False)
