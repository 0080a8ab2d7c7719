"""Attention over segments of keys, merged by log-sum-exp.

A query looks at up to two segments: the prompt, stored once for the rollouts that share it, and the tokens of its own
row. Each segment gives a partial result with the log of its weight; merging them is exact.
"""

import jax
import jax.numpy as jnp
from flax import struct

from dasd_jax.batch import Array
from dasd_jax.mesh import spec
from dasd_jax.vocab import EXACT

# Finite, so that a row that may look at nothing gives a finite, meaningless result instead of NaN.
_BLOCKED = -1e30


# Keys that decoding reads at a time, up to the longest row's last: fewer make more turns, more read what is not there.
_BLOCK = 128


def attend(query: Array, segments: list[tuple[Array, Array, Array]]) -> Array:
    """Softmax attention of every query over the union of the segments.

    Args:
        query: [rows, S, N, H].
        segments: (keys, values, allowed) each: keys and values [n, K, T, H], where n divides rows and each of the n
            serves rows/n neighbouring rows; allowed bool[n, S or 1, T], True where a query may look.

    Returns:
        [rows, S, N, H], dtype of the query.
    """
    parts = [_segment(query, *segment) for segment in segments]
    top = parts[0][1]
    for _, weight in parts[1:]:
        top = jnp.maximum(top, weight)
    shares = [jnp.exp(weight - top) for _, weight in parts]
    total = sum(shares)
    out = sum((share / total)[..., None] * value for (value, _), share in zip(parts, shares, strict=True))
    return out.astype(query.dtype)


def _segment(query: Array, key: Array, value: Array, allowed: Array) -> tuple[Array, Array]:
    """One segment's normalised result f32[rows, S, N, H] and its log-sum-exp f32[rows, S, N]."""
    rows, new, heads, width = query.shape
    count, kv_heads = key.shape[:2]
    shared, per_kv = rows // count, heads // kv_heads
    grouped = jax.lax.reshape(
        query,
        (count, shared, new, kv_heads, per_kv, width),
        out_sharding=spec("rows", None, None, "heads", None, None),
    )
    scores = jnp.einsum("ngskmh,nkth->nkgsmt", grouped, key, precision=EXACT, preferred_element_type=jnp.float32)
    scores = jnp.where(allowed[:, None, None, :, None, :], scores * width**-0.5, _BLOCKED)
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jnp.einsum(
        "nkgsmt,nkth->ngskmh",
        (weights / total).astype(value.dtype),
        value,
        precision=EXACT,
        preferred_element_type=jnp.float32,
    )
    log_weight = jnp.transpose((top + jnp.log(total))[..., 0], (0, 2, 3, 1, 4))
    out_sharding = spec("rows", None, "heads", None)
    return (
        jax.lax.reshape(mixed, query.shape, out_sharding=out_sharding),
        jax.lax.reshape(log_weight, (rows, new, heads), out_sharding=spec("rows", None, "heads")),
    )


@struct.dataclass
class Span:
    """Cached keys and values of a layer, and what each row sees of them.

    Attributes:
        keys, values: [L, n, K, T, H]; each of the n serves rows/n neighbouring rows.
        layer: i32[], which of the L.
        first, last: i32[rows], a row sees the columns first ≤ t < last.
    """

    keys: Array
    values: Array
    layer: Array | int
    first: Array
    last: Array


def attend_cached(query: Array, spans: list[Span]) -> Array:
    """Softmax attention of one query a row over the union of its spans, block by block up to what the rows see.

    A block that a row does not see leaves its sums as they are to the bit: what a row gets does not depend on how far
    its neighbours have come. A row that sees nothing gets zeros.

    Args:
        query: [rows, N, H].

    Returns:
        [rows, N, H], dtype of the query.
    """
    rows, heads, width = query.shape
    kv_heads = spans[0].keys.shape[2]
    split = (rows, kv_heads, heads // kv_heads)
    grouped = jax.lax.reshape(query, (*split, width), out_sharding=spec("rows", "heads", None, None))
    sums = (
        jnp.full(split, _BLOCKED, jnp.float32, out_sharding=spec("rows", "heads", None)),
        jnp.zeros(split, jnp.float32, out_sharding=spec("rows", "heads", None)),
        jnp.zeros((*split, width), jnp.float32, out_sharding=spec("rows", "heads", None, None)),
    )
    for span in spans:
        sums = _over_blocks(grouped, span, sums)
    _, total, mixed = sums
    out = mixed / jnp.where(total > 0, total, 1.0)[..., None]
    return jax.lax.reshape(out.astype(query.dtype), query.shape, out_sharding=spec("rows", "heads", None))


def _over_blocks(query: Array, span: Span, sums):
    """(largest score, sum of weights, weighted values) so far and over one more span; f32[rows, K, N/K, …]."""
    width = span.keys.shape[3]
    size = min(width, _BLOCK)
    if width == size:
        return _block(query, span, 0, size, sums)
    seen = span.last > span.first
    first = jnp.min(jnp.where(seen, span.first, width)) // size
    last = -(-jnp.max(jnp.where(seen, span.last, 0)) // size)
    return jax.lax.fori_loop(first, last, lambda i, sums: _block(query, span, i * size, size, sums), sums)


def _block(query: Array, span: Span, new: Array | int, size: int, sums):
    """The sums with the columns from `new` on, `size` of them or up to the end."""
    count, _, columns, width = span.keys.shape[1:]
    # A last block that would reach beyond the end begins with columns of the one before, which are not seen again.
    start = jnp.minimum(new, columns - size)
    keys, values = (
        jax.lax.dynamic_slice(x, (span.layer, 0, 0, start, 0), (1, *x.shape[1:3], size, width))[0]
        for x in (span.keys, span.values)
    )
    place = start + jnp.arange(size, dtype=jnp.int32)
    seen = (place >= jnp.maximum(span.first, new)[:, None]) & (place < span.last[:, None])
    seen = seen[:, None, None, :]
    scores = _by_row(_product(_by_key(query, count), keys, contract=3), query.shape[0])
    scores = jnp.where(seen, scores * width**-0.5, _BLOCKED)

    top, total, mixed = sums
    new_top = jnp.maximum(top, jnp.max(scores, axis=-1))
    kept = jnp.exp(top - new_top)
    weights = jnp.where(seen, jnp.exp(scores - new_top[..., None]), 0.0)
    added = _by_row(_product(_by_key(weights.astype(values.dtype), count), values, contract=2), query.shape[0])
    return new_top, total * kept + jnp.sum(weights, axis=-1), mixed * kept[..., None] + added


def _product(rows: Array, cached: Array, contract: int) -> Array:
    """rows [n, K, q, ·] times cached [n, K, T, H], summed over H (3) or T (2): f32[n, K, q, ·].

    Spelled out, since einsum would swap the two, and XLA then has no fast product for it on CPU.
    """
    dimensions = (((3,), (contract,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(rows, cached, dimensions, precision=EXACT, preferred_element_type=jnp.float32)


def _by_key(x: Array, count: int) -> Array:
    """[rows, K, M, ·] → [n, K, rows/n * M, ·]: the queries of a key together, of all rows that it serves."""
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
