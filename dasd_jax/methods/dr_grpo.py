"""Dr. GRPO (arXiv 2503.20783): GRPO without the two divisors that depend on a response or its group.

The advantage is reward minus group mean, not divided by the standard deviation, and a token's divisor is the budget
rollout.max_new_tokens times the rows, not the length. At 1/G the smallest advantage is smaller than GRPO's 1/√G.
"""

from dasd_jax.fields import Fields
from dasd_jax.methods import grpo
from dasd_jax.objective.advantage import group_advantage
from dasd_jax.objective.contract import Method, Scored, Shape, Signal
from dasd_jax.objective.normalise import constant


def signal(scored: Scored, shape: Shape, hp: Fields) -> Signal:
    """Reward minus group mean at every token, over a constant."""
    verifier = group_advantage(scored.reward, scored.live, shape.rollouts, standardised=False)
    return grpo.of_verifier(scored, verifier, constant(scored.mask, shape))


METHOD = Method(fields=Fields, signal=signal, watched=("credit/verifier_abs_mean",))
