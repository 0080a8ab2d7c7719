"""Divisors of the loss, as weights per token in `Signal.weight`: the loss is then a plain sum over tokens.

Minibatch m holds the problems m, m + M, m + 2M, …, which the score step knows, so every divisor is written here once,
for the whole minibatch and all devices; microbatches and shards then only add up.
"""

import jax.numpy as jnp

from dasd_jax.batch import Array
from dasd_jax.mesh import reshard
from dasd_jax.objective.contract import Shape
from dasd_jax.objective.masked import largest


def token_mean(keep: Array, shape: Shape) -> Array:
    """1 / (kept tokens of the row's minibatch) at kept tokens, 0 elsewhere: every token counts alike (DAPO).

    Args:
        keep: bool[rows, R], the tokens of the loss.

    Returns:
        f32[rows, R]; their sum over a minibatch is 1, or 0 if it keeps nothing.
    """
    count = minibatch_sum(jnp.sum(keep, axis=1, dtype=jnp.float32), shape)
    return jnp.where(keep, 1.0 / jnp.maximum(count, 1.0)[:, None], 0.0)


def sequence_mean(keep: Array, shape: Shape) -> Array:
    """1 / (kept tokens of the row · rows of its minibatch that keep any): every response counts alike (GRPO's paper).

    Arguments and result as in `token_mean`.
    """
    length = jnp.sum(keep, axis=1, dtype=jnp.float32)
    rows = minibatch_sum(jnp.sign(length), shape)
    return jnp.where(keep, 1.0 / jnp.maximum(length * rows, 1.0)[:, None], 0.0)


def constant(keep: Array, shape: Shape) -> Array:
    """1 / (rows of the minibatch · max_new_tokens): no length enters the divisor (Dr. GRPO, arXiv 2503.20783).

    Arguments and result as in `token_mean`, but the sum over a minibatch is the share of positions that are kept.
    """
    rows = keep.shape[0] // shape.minibatches
    return jnp.where(keep, jnp.float32(1.0 / (rows * shape.max_new_tokens)), 0.0)


def minibatch_top(x: Array, keep: Array, share: float, shape: Shape) -> Array:
    """The ceil(share · n) largest of the n kept values of each minibatch; of equal ones the first.

    Args:
        x: f32[rows, R].
        keep: bool[rows, R].
        share: in (0, 1].

    Returns:
        bool[rows, R].
    """

    values = jnp.moveaxis(_by_minibatch(x, shape), 1, 0)
    flat = (shape.minibatches, -1)
    kept = jnp.moveaxis(_by_minibatch(keep, shape), 1, 0).reshape(flat)
    chosen = largest(values.reshape(flat), kept, share).reshape(values.shape)
    return reshard(jnp.moveaxis(chosen, 0, 1).reshape(x.shape), "rows", None)


def minibatch_sum(x: Array, shape: Shape) -> Array:
    """Sum over the rows of a minibatch, given to each of its rows: f32[rows] → f32[rows]."""
    by_minibatch = _by_minibatch(x, shape)
    sums = jnp.broadcast_to(jnp.sum(by_minibatch, axis=(0, 2))[None, :, None], by_minibatch.shape)
    return reshard(sums.reshape(x.shape), "rows")


def _by_minibatch(x: Array, shape: Shape) -> Array:
    """[rows, ...] → [B/M, M, G, ...], on every device: a minibatch may have fewer problems than there are devices."""
    whole = reshard(x, *(None,) * x.ndim)
    return whole.reshape(-1, shape.minibatches, shape.rollouts, *x.shape[1:])
