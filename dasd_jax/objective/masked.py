"""Means, quantiles and largest values over the True part of a mask."""

from collections.abc import Sequence

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
    ordered = jnp.sort(jnp.where(mask, x, jnp.inf), axis=1)
    count = jnp.sum(mask, axis=1)
    at = q * jnp.maximum(count - 1, 0).astype(jnp.float32)
    low = jnp.floor(at).astype(jnp.int32)
    high = jnp.minimum(low + 1, jnp.maximum(count - 1, 0))
    below, above = (jnp.where(count > 0, jax.vmap(lambda row, i: row[i])(ordered, index), 0.0) for index in (low, high))
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
    values = jnp.where(mask, x, -jnp.inf)
    count = jnp.sum(mask, axis=-1, keepdims=True).astype(jnp.float32)
    # Less what float32 adds to a product that is a whole number.
    top = jnp.ceil(share * count * (1 - 1e-6))
    return mask & (jnp.argsort(jnp.argsort(-values, axis=-1, stable=True), axis=-1) < top)


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
    """Several of them, from one sort."""
    ordered = jnp.sort(reshard(jnp.where(mask, x, -1.0), None, None).reshape(-1))
    count = jnp.sum(mask)

    def of_rank(rank: Array) -> Array:
        return jnp.maximum(ordered[ordered.size - count + jnp.maximum(rank - 1, 0)], 0.0)

    return [of_rank(jnp.ceil(q * count).astype(jnp.int32)) for q in qs]
