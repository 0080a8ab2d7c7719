"""Attention over segments of keys, merged by log-sum-exp.

A query looks at up to two segments: the prompt, stored once for the rollouts that share it, and the tokens of its own
row. Each segment gives a partial result with the log of its weight; merging them is exact.
"""

import jax
import jax.numpy as jnp

from dasd_jax.batch import Array
from dasd_jax.mesh import spec
from dasd_jax.vocab import EXACT

# Finite, so that a row that may look at nothing gives a finite, meaningless result instead of NaN.
_BLOCKED = -1e30


def attend(query: Array, segments: list[tuple[Array, Array, Array]]) -> Array:
    """Softmax attention of every query over the union of the segments.

    Args:
        query: [rows, S, N, H].
        segments: (keys, values, allowed) each: keys and values [n, T, K, H], where n divides rows and each of the n
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
    count, _, kv_heads, _ = key.shape
    shared, per_kv = rows // count, heads // kv_heads
    grouped = jax.lax.reshape(
        query,
        (count, shared, new, kv_heads, per_kv, width),
        out_sharding=spec("rows", None, None, "heads", None, None),
    )
    scores = jnp.einsum("ngskmh,ntkh->nkgsmt", grouped, key, precision=EXACT, preferred_element_type=jnp.float32)
    scores = jnp.where(allowed[:, None, None, :, None, :], scores * width**-0.5, _BLOCKED)
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jnp.einsum(
        "nkgsmt,ntkh->ngskmh",
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
