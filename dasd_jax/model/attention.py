"""Attention over a shared prompt and a row's own tokens: many queries a row for the passes, one for decoding.

A prompt is stored once for the rollouts that continue it. `attend` is the one entry for passes over whole sequences,
`attend_cached` for the sampler's loop.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from dasd_jax.batch import Array
from dasd_jax.errors import UserError
from dasd_jax.mesh import per_device, spec
from dasd_jax.vocab import EXACT

KINDS = ("xla", "splash", "cudnn")

# Finite, so that a row that may look at nothing gives a finite, meaningless result instead of NaN.
_BLOCKED = -1e30

# Queries whose scores XLA holds at a time: what it needs grows with them times the keys.
_QUERIES = 512

# Keys that decoding reads at a time, up to the longest row's last: fewer make more turns, more read what is not there.
_BLOCK = 128


def choose(kind: str, platform: str, compute_dtype: str) -> str:
    """The kernel behind `attend`: "auto" takes the fused one of the platform, which are made for bfloat16.

    Raises:
        UserError: the kind does not run there.
    """
    fused = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}.get(platform) if compute_dtype == "bfloat16" else None
    if kind == "auto":
        return fused or "xla"
    if kind not in ("xla", fused):
        raise UserError(
            f"model.attention: {kind}: expected xla or auto with {compute_dtype} on {platform}: splash is for bfloat16 "
            "on TPU, cudnn for bfloat16 on GPU"
        )
    return kind


@struct.dataclass
class Prompts:
    """Keys and values [n, K, P, H] of prompts, each for rows/n neighbouring rows, and bool[n, P] where they are valid.

    Left-padded: the rows' own tokens follow directly behind.
    """

    keys: Array
    values: Array
    valid: Array


def attend(
    kind: str,
    query: Array,
    key: Array,
    value: Array,
    valid: Array,
    prompts: Prompts | None = None,
    window: int = 0,
) -> Array:
    """Causal softmax attention of new tokens over one another and over the prompt that they continue.

    Args:
        kind: one of KINDS; they differ by rounding.
        query: [rows, S, N, H].
        key, value: [rows, S, K, H], K divides N.
        valid: bool[rows, S], a run of neighbours in each row.
        window: tokens that a query sees, itself among them; 0: all that come before.

    Returns:
        [rows, S, N, H], dtype of the query; finite and meaningless where a token is not valid.
    """
    key, value = (jnp.swapaxes(x, 1, 2) for x in (key, value))
    if kind == "xla":
        return _by_queries(query, key, value, valid, prompts, window)
    heads = ("rows", None, "heads", None)
    cached = ("rows", "heads", None, None)
    in_axes = [heads, cached, cached, ("rows", None)]
    arrays = [query, key, value, valid]
    if prompts is not None:
        in_axes += [cached, cached, ("rows", None)]
        arrays += [prompts.keys, prompts.values, prompts.valid]
    fused = partial(_joined, {"splash": _splash, "cudnn": _cudnn}[kind], window)
    return per_device(fused, tuple(in_axes), heads)(*arrays)


# ------------------------------------------------------------------------------------------------ fused kernels


def _joined(kernel, window: int, query, key, value, valid, *prompt) -> Array:
    """A kernel over prompt and new tokens as one sequence a row, on one device's rows and heads."""
    parts = key, value, valid
    if prompt:
        shared = key.shape[0] // prompt[0].shape[0]
        parts = (
            jnp.concatenate([jnp.repeat(before, shared, axis=0), new], axis=-2 if new.ndim == 4 else -1)
            for before, new in zip(prompt, parts, strict=True)
        )
    return kernel(window, query, *parts)


def _splash(window: int, query: Array, key: Array, value: Array, valid: Array) -> Array:
    """JAX's own kernel for TPU: the queries are the last S of the T places, invalid places a sequence of their own."""
    new, heads, width = query.shape[1:]
    places = key.shape[2]
    new_block, block = (min(512, -(-size // 128) * 128) for size in (new, places))

    def padded(x: Array, axis: int, multiple: int) -> Array:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, -x.shape[axis] % multiple)
        return jnp.pad(x, widths)

    query = padded(jnp.swapaxes(query, 1, 2) * width**-0.5, 2, new_block).astype(query.dtype)
    key, value = padded(key, 2, block), padded(value, 2, block)
    segments = splash.SegmentIds(
        q=padded(valid[:, places - new :], 1, new_block).astype(jnp.int32),
        kv=padded(valid, 1, block).astype(jnp.int32),
    )
    shape = (query.shape[2], key.shape[2])
    mask = splash_mask.LocalMask(shape, (window - 1 if window else None, 0), offset=places - new)
    kernel = splash.make_splash_mha(
        splash_mask.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(
            block_q=new_block,
            block_kv=block,
            block_q_dkv=new_block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            block_q_dq=new_block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
    )
    return jnp.swapaxes(jax.vmap(kernel)(query, key, value, segments)[:, :, :new], 1, 2)


def _cudnn(window: int, query: Array, key: Array, value: Array, valid: Array, implementation: str = "cudnn") -> Array:
    """cuDNN's kernel through JAX: it wants valid places first, and a query at every place."""
    new, places = query.shape[1], key.shape[2]
    first = jnp.argmax(valid, axis=1)

    def turned(x: Array, by: Array) -> Array:
        return jax.vmap(partial(jnp.roll, axis=0))(x, by)

    query = turned(jnp.pad(query, ((0, 0), (places - new, 0), (0, 0), (0, 0))), -first)
    key, value = (turned(jnp.swapaxes(x, 1, 2), -first) for x in (key, value))
    length = jnp.maximum(jnp.sum(valid, axis=1, dtype=jnp.int32), 1)
    out = jax.nn.dot_product_attention(
        query,
        key,
        value,
        is_causal=True,
        query_seq_lengths=length,
        key_value_seq_lengths=length,
        local_window_size=(window - 1, 0) if window else None,
        implementation=implementation,
    )
    return turned(out, first)[:, places - new :]


# ------------------------------------------------------------------------------------------------ XLA


def _by_queries(query, key, value, valid, prompts: Prompts | None, window: int) -> Array:
    """`attend` in blocks of queries, each of which is computed again for its gradient where there are several."""
    new = query.shape[1]

    def block(queries: Array, start: Array | int) -> Array:
        place = start + jnp.arange(queries.shape[1])[:, None]
        distance = place - jnp.arange(new)
        seen = (distance >= 0) & (distance < window) if window else distance >= 0
        segments = [(key, value, seen & valid[:, None, :])]
        if prompts is not None:
            width = prompts.keys.shape[2]
            seen = (place + width - jnp.arange(width) < window) if window else jnp.ones((1, width), bool)
            segments.append((prompts.keys, prompts.values, seen & prompts.valid[:, None, :]))
        return _merged(queries, segments)

    if new <= _QUERIES:
        return block(query, 0)
    blocks = jnp.pad(query, ((0, 0), (0, -new % _QUERIES), (0, 0), (0, 0)))
    blocks = jnp.moveaxis(blocks.reshape(blocks.shape[0], -1, _QUERIES, *blocks.shape[2:]), 1, 0)
    starts = _QUERIES * jnp.arange(blocks.shape[0])
    out = jnp.moveaxis(jax.lax.map(lambda xs: jax.checkpoint(block, prevent_cse=False)(*xs), (blocks, starts)), 0, 1)
    return out.reshape(out.shape[0], -1, *out.shape[3:])[:, :new]


def _merged(query: Array, segments: list[tuple[Array, Array, Array]]) -> Array:
    """Attention over the union of segments, merged by log-sum-exp, which is exact.

    Args:
        segments: (keys, values, allowed) each: [n, K, T, H] twice, and bool[n, S or 1, T].
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


# ------------------------------------------------------------------------------------------------ decoding


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
