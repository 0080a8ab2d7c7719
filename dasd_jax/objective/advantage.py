"""The verifier's part of a token's credit: group-relative advantages, one number per response."""

import jax.numpy as jnp

from dasd_jax.batch import Array


def group_advantage(reward: Array, live: Array, group: int, *, standardised: bool = True) -> Array:
    """GRPO's advantage: (reward - mean) / (sample standard deviation + 1e-6) within each group.

    Args:
        reward: f32[rows], problem-major.
        live: bool[rows]; other rows are padding and do not count.
        group: G ≥ 2, rollouts of each problem.
        standardised: False: reward - mean alone (Dr. GRPO, arXiv 2503.20783).

    Returns:
        f32[rows]; 0 for padding and in groups whose rewards are all equal. Source: arXiv 2402.03300, equation 3.
    """
    live = live.reshape(-1, group)
    reward = jnp.where(live, reward.reshape(-1, group), 0.0)
    count = jnp.sum(live, axis=1, keepdims=True)
    centred = jnp.where(live, reward - jnp.sum(reward, axis=1, keepdims=True) / jnp.maximum(count, 1), 0.0)
    std = jnp.sqrt(jnp.sum(centred**2, axis=1, keepdims=True) / jnp.maximum(count - 1, 1))
    # Equal rewards leave rounding in `centred`, which 1e-6 would blow up.
    return jnp.where(std > 1e-5, centred / (std + 1e-6) if standardised else centred, 0.0).reshape(-1)


def smallest_advantage(group: int) -> float:
    """The smallest non-zero |A| of 0/1 rewards in a group of G: that of the majority in a split of 1 against G - 1.

    With the sample standard deviation it is 1 / √G; a larger term of another source can flip the verifier's sign.
    """
    return group**-0.5
