"""Attention of decoding: one query per row over the KV cache, read in blocks up to the longest live row."""

import jax
import jax.numpy as jnp
from flax import struct

from dasd_jax.batch import Array
from dasd_jax.mesh import spec
from dasd_jax.model.attention import MASKED
from dasd_jax.quantised import Quantised
from dasd_jax.vocab import EXACT

# Cached columns that are read at a time: small blocks cost more iterations, large ones read more masked columns.
_KEY_BLOCK = 128


@struct.dataclass
class Span:
    """Cached keys and values, and what each row sees of one layer of them.

    Attributes:
        keys, values: [L, n, K, T, H]; each of the n sequences is shared by rows/n consecutive rows. Where they are
            quantised, they are so for each token and head.
        layer: i32[], the index into L.
        first, last: i32[rows]; a row sees the columns first ≤ t < last.
    """

    keys: Array | Quantised
    values: Array | Quantised
    layer: Array | int
    first: Array
    last: Array


def attend_cached(query: Array, spans: list[Span]) -> Array:
    """Softmax attention of one query per row over the union of its spans, in blocks of columns that some row sees.

    A block that a row does not see leaves its sums bit-identical, so that a row's result does not depend on the lengths
    of other rows. A row that sees nothing gets zeros.

    Args:
        query: [rows, N, H].

    Returns:
        [rows, N, H] in the dtype of the query.
    """
    rows, heads, width = query.shape
    kv_heads = spans[0].keys.shape[2]
    split = (rows, kv_heads, heads // kv_heads)
    grouped = jax.lax.reshape(query, (*split, width), out_sharding=spec("rows", "heads", None, None))
    sums = (
        jnp.full(split, MASKED, jnp.float32, out_sharding=spec("rows", "heads", None)),
        jnp.zeros(split, jnp.float32, out_sharding=spec("rows", "heads", None)),
        jnp.zeros((*split, width), jnp.float32, out_sharding=spec("rows", "heads", None, None)),
    )
    for span in spans:
        sums = _over_blocks(grouped, span, sums)
    _, total, mixed = sums
    out = mixed / jnp.where(total > 0, total, 1.0)[..., None]
    return jax.lax.reshape(out.astype(query.dtype), query.shape, out_sharding=spec("rows", "heads", None))


def _over_blocks(query: Array, span: Span, sums):
    """Adds a span to the running (largest score, sum of weights, weighted values), f32[rows, K, N/K, ...] each."""
    width = span.keys.shape[3]
    size = min(width, _KEY_BLOCK)
    if width == size:
        return _block(query, span, 0, size, sums)
    seen = span.last > span.first
    first = jnp.min(jnp.where(seen, span.first, width)) // size
    last = -(-jnp.max(jnp.where(seen, span.last, 0)) // size)
    return jax.lax.fori_loop(first, last, lambda i, sums: _block(query, span, i * size, size, sums), sums)


def _block(query: Array, span: Span, new: Array | int, size: int, sums):
    """Adds to the running sums the columns from `new` on, `size` of them or up to the end."""
    count, _, columns, width = span.keys.shape[1:]
    # A last block that would reach beyond the end overlaps with the one before, whose columns are masked.
    start = jnp.minimum(new, columns - size)

    def columns_of(x: Array) -> Array:
        at, sizes = (span.layer, 0, 0, start, 0), (1, *x.shape[1:3], size, *x.shape[4:])
        return jax.lax.dynamic_slice(x, at[: x.ndim], sizes)[0]

    keys, values = jax.tree.map(columns_of, (span.keys, span.values))
    place = start + jnp.arange(size, dtype=jnp.int32)
    seen = (place >= jnp.maximum(span.first, new)[:, None]) & (place < span.last[:, None])
    seen = seen[:, None, None, :]
    scores = _by_row(_scaled(_product(_by_key(query, count), keys, contract=3), keys), query.shape[0])
    scores = jnp.where(seen, scores * width**-0.5, MASKED)

    top, total, mixed = sums
    new_top = jnp.maximum(top, jnp.max(scores, axis=-1))
    kept = jnp.exp(top - new_top)
    weights = jnp.where(seen, jnp.exp(scores - new_top[..., None]), 0.0)
    mixing = weights if isinstance(values, Quantised) else weights.astype(values.dtype)  # rounded once
    mixing = _scaled(_by_key(mixing, count), values).astype(values.dtype)
    added = _by_row(_product(mixing, values, contract=2), query.shape[0])
    return new_top, total * kept + jnp.sum(weights, axis=-1), mixed * kept[..., None] + added


def _scaled(x: Array, cached: Array | Quantised) -> Array:
    """x [n, K, q, T] times the scale of each cached column, if it has one."""
    return x * cached.scale[:, :, None] if isinstance(cached, Quantised) else x


def _product(rows: Array, cached: Array | Quantised, contract: int) -> Array:
    """rows [n, K, q, ·] times cached [n, K, T, H] without its scales, contracted over H (3) or T (2): f32[n, K, q, ·].

    Not an einsum, which would swap the operands into an order for which XLA has no fast product on CPU.
    """
    if isinstance(cached, Quantised):
        cached = cached.unscaled
    dimensions = (((3,), (contract,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(rows, cached, dimensions, precision=EXACT, preferred_element_type=jnp.float32)


def _by_key(x: Array, count: int) -> Array:
    """[rows, K, M, ·] → [n, K, rows/n * M, ·]: the queries of all rows that share a key, side by side."""
    rows, kv_heads, per_kv, width = x.shape
    shared = rows // count
    x = jax.lax.reshape(
        x, (count, shared, kv_heads, per_kv, width), out_sharding=spec("rows", None, "heads", None, None)
    )
    x = jnp.swapaxes(x, 1, 2)
    return jax.lax.reshape(x, (count, kv_heads, shared * per_kv, width), out_sharding=spec("rows", "heads", None, None))


def _by_row(x: Array, rows: int) -> Array:
    """The inverse of `_by_key`."""
    count, kv_heads, queries, width = x.shape
    shared = rows // count
    x = jax.lax.reshape(
        x, (count, kv_heads, shared, queries // shared, width), out_sharding=spec("rows", "heads", None, None, None)
    )
    x = jnp.swapaxes(x, 1, 2)
    return jax.lax.reshape(
        x, (rows, kv_heads, queries // shared, width), out_sharding=spec("rows", "heads", None, None)
    )
