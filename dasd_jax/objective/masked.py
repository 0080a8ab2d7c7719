"""Means, quantiles and largest values over the True part of a mask."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from dasd_jax.batch import Array
from dasd_jax.mesh import reshard, spec


def masked_mean(x: Array, mask: Array, axis=None) -> Array:
    """Mean of x where mask is True, 0 where nothing is; x may be anything, NaN too, where mask is False."""
    return jnp.sum(jnp.where(mask, x, 0.0), axis=axis) / jnp.maximum(jnp.sum(mask, axis=axis), 1)


def looked_up(table: Array, tokens: Array) -> Array:
    """What a table of the vocabulary says of each token: [V], i32[rows, R] → [rows, R]."""
    return jnp.asarray(table).at[tokens].get(out_sharding=spec("rows", None))


def row_quantile(x: Array, mask: Array, q: float) -> Array:
    """Quantile of each row's masked values, linear between neighbours: f32[rows, R] → f32[rows]; 0 for empty rows."""
    last = jnp.maximum(jnp.sum(mask, axis=1) - 1, 0)
    at = q * last.astype(jnp.float32)
    low = jnp.floor(at).astype(jnp.int32)
    below, above = _of_ranks(x, mask, jnp.stack([low, jnp.minimum(low + 1, last)])[..., None], axis=1)[..., 0]
    return below + (at - low) * (above - below)


def largest(x: Array, mask: Array, share: float) -> Array:
    """The ceil(share · n) largest of each line's n masked values, along the last axis; of equal ones the first.

    Args:
        x: f32[..., R].
        mask: bool[..., R].
        share: in (0, 1].

    Returns:
        bool[..., R].
    """
    count = jnp.sum(mask, axis=-1, keepdims=True)
    # Less what float32 adds to a product that is a whole number.
    top = jnp.ceil(share * count.astype(jnp.float32) * (1 - 1e-6)).astype(jnp.int32)
    [least] = _of_ranks(x, mask, (count - top)[None], axis=-1)
    above, equal = mask & (x > least), mask & (x == least)
    left = top - jnp.sum(above, axis=-1, keepdims=True)
    return above | (equal & (jnp.cumsum(equal, axis=-1) <= left))


def pooled_count(x: Array, mask: Array) -> Array:
    """How often the value of each place occurs among all masked places: i32[rows, R] → i32[rows, R], at least 1."""
    values = reshard(x, None, None)
    ordered = jnp.sort(jnp.where(reshard(mask, None, None), values, jnp.iinfo(x.dtype).max).reshape(-1))
    found = jnp.searchsorted(ordered, values, side="right") - jnp.searchsorted(ordered, values, side="left")
    return reshard(jnp.maximum(found, 1), "rows", None)


def pooled_quantile(x: Array, mask: Array, q: float) -> Array:
    """The nearest-rank quantile of all masked values of non-negative f32[rows, R] together: f32[]."""
    return pooled_quantiles(x, mask, [q])[0]


def pooled_quantiles(x: Array, mask: Array, qs: Sequence[float]) -> list[Array]:
    """Several of them."""
    count = jnp.sum(mask)
    ranks = jnp.maximum(jnp.ceil(jnp.array(qs) * count).astype(jnp.int32) - 1, 0)
    return list(jnp.maximum(_of_ranks(x, mask, ranks[:, None, None], axis=None)[:, 0, 0], 0.0))


@partial(jax.jit, static_argnames=("axis",))  # else a loop is compiled anew in each call outside of a program
def _of_ranks(x: Array, mask: Array, ranks: Array, axis: int | None) -> Array:
    """The masked values with so many smaller ones along an axis, or among all: f32 like `ranks`; 0 without any.

    Bit by bit, from the highest: a bit is set where no more values than that are below what is found so far with this
    bit. 32 passes over the values for all ranks, and exact. A sort of a step's eight million entropies takes XLA's TPU
    compiler half a minute, and has to gather them.

    Args:
        ranks: i32[n, ...]: n of them, each of the shape of x with the axis kept as 1.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    # In the order of the numbers: negative ones have their highest bit set, and grow as the others fall.
    keys = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))

    def below(tried: Array) -> Array:
        return jnp.sum(mask & (keys < tried), axis=axis, keepdims=True, dtype=jnp.int32)

    def with_bit(place: Array, found: Array) -> Array:
        tried = found | (jnp.uint32(1 << 31) >> place.astype(jnp.uint32))
        return jnp.where(jax.vmap(below)(tried) <= ranks, tried, found)

    found = jax.lax.fori_loop(0, 32, with_bit, jnp.zeros_like(ranks, jnp.uint32))
    value = jnp.where(found >> 31 == 1, found & jnp.uint32((1 << 31) - 1), ~found)
    some = jnp.any(mask, axis=axis, keepdims=True)
    return jnp.where(some, jax.lax.bitcast_convert_type(value, jnp.float32), 0.0)
