"""Attention over whole sequences: the choice of a kernel, and `attend`, the entry point to all of them.

A prompt is stored once for the rollouts that continue it. The fused kernels of JAX read prompt and new tokens as one
sequence; the XLA version computes attention over both separately and merges the results.
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

# The score of a masked key. Finite, so that a row that sees nothing gives a finite, meaningless result instead of NaN.
MASKED = -1e30

# Queries whose scores XLA computes at a time: its memory grows with their number times that of the keys.
_QUERY_BLOCK = 512


def choose(kind: str, platform: str, compute_dtype: str) -> str:
    """The kernel for `attend`, one of KINDS; "auto" is the platform's fused one in bfloat16, else xla.

    Args:
        kind: auto or one of KINDS.
        platform: of the devices, as JAX calls it.

    Raises:
        UserError: the kernel does not run with this platform and dtype.
    """
    fused = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}.get(platform) if compute_dtype == "bfloat16" else None
    if kind == "auto":
        return fused or "xla"
    if kind not in ("xla", fused):
        raise UserError(
            f"model.attention: {kind}: expected xla or auto with {compute_dtype} on {platform}: splash needs bfloat16 "
            "on TPU, cudnn bfloat16 on GPU"
        )
    return kind


@struct.dataclass
class Prompts:
    """Keys and values [n, K, P, H] of left-padded prompts, each shared by rows/n consecutive rows; valid bool[n, P]."""

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
    """Causal softmax attention of new tokens over themselves and over the prompt that they continue.

    Args:
        kind: one of KINDS, whose results differ by rounding.
        query: [rows, S, N, H].
        key, value: [rows, S, K, H], K divides N.
        valid: bool[rows, S], contiguous in each row.
        window: tokens that a query sees, including its own; 0: all up to its own.

    Returns:
        [rows, S, N, H] in the dtype of the query; finite and meaningless where a token is not valid.
    """
    key, value = (jnp.swapaxes(x, 1, 2) for x in (key, value))
    if kind == "xla":
        return _by_query_blocks(query, key, value, valid, prompts, window)
    heads = ("rows", None, "heads", None)
    cached = ("rows", "heads", None, None)
    in_axes = [heads, cached, cached, ("rows", None)]
    arrays = [query, key, value, valid]
    if prompts is not None:
        in_axes += [cached, cached, ("rows", None)]
        arrays += [prompts.keys, prompts.values, prompts.valid]
    fused = partial(_as_one_sequence, {"splash": _splash, "cudnn": _cudnn}[kind], window)
    return per_device(fused, tuple(in_axes), heads)(*arrays)


# ------------------------------------------------------------------------------------------------ fused kernels


def _as_one_sequence(kernel, window: int, query, key, value, valid, *prompt) -> Array:
    """Runs a kernel over prompt and new tokens as one sequence per row, on one device's rows and heads."""
    parts = key, value, valid
    if prompt:
        shared = key.shape[0] // prompt[0].shape[0]
        parts = (
            jnp.concatenate([jnp.repeat(before, shared, axis=0), new], axis=-2 if new.ndim == 4 else -1)
            for before, new in zip(prompt, parts, strict=True)
        )
    return kernel(window, query, *parts)


def _splash(window: int, query: Array, key: Array, value: Array, valid: Array) -> Array:
    """JAX's splash attention: queries at the last S of T positions; invalid positions form a segment of their own."""
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
    """cuDNN's flash attention through JAX, which needs valid positions first and a query at every position.

    Its backward pass takes an even number of positions, so an odd one gets another that is not valid.
    """
    new, places = query.shape[1], key.shape[2]
    odd = places % 2
    first = jnp.argmax(valid, axis=1)

    def rolled(x: Array, by: Array) -> Array:
        return jax.vmap(partial(jnp.roll, axis=0))(x, by)

    query = rolled(jnp.pad(query, ((0, 0), (places - new, odd), (0, 0), (0, 0))), -first)
    key, value = (jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, odd), (0, 0), (0, 0))) for x in (key, value))
    key, value = rolled(key, -first), rolled(value, -first)
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
    return rolled(out, first)[:, places - new : places]


# ------------------------------------------------------------------------------------------------ XLA


def _by_query_blocks(query, key, value, valid, prompts: Prompts | None, window: int) -> Array:
    """`attend` in XLA, in blocks of queries; if there are several, the backward pass recomputes each."""
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
        return _merge_segments(queries, segments)

    if new <= _QUERY_BLOCK:
        return block(query, 0)
    blocks = jnp.pad(query, ((0, 0), (0, -new % _QUERY_BLOCK), (0, 0), (0, 0)))
    blocks = jnp.moveaxis(blocks.reshape(blocks.shape[0], -1, _QUERY_BLOCK, *blocks.shape[2:]), 1, 0)
    starts = _QUERY_BLOCK * jnp.arange(blocks.shape[0])
    out = jnp.moveaxis(jax.lax.map(lambda xs: jax.checkpoint(block, prevent_cse=False)(*xs), (blocks, starts)), 0, 1)
    return out.reshape(out.shape[0], -1, *out.shape[3:])[:, :new]


def _merge_segments(query: Array, segments: list[tuple[Array, Array, Array]]) -> Array:
    """Attention over the union of segments: exact, from each segment's result and the log-sum-exp of its scores.

    Args:
        query: [rows, S, N, H].
        segments: (keys, values, allowed) of each: [n, K, T, H] twice, and bool[n, S or 1, T].
    """
    parts = [_attend_segment(query, *segment) for segment in segments]
    top = parts[0][1]
    for _, weight in parts[1:]:
        top = jnp.maximum(top, weight)
    shares = [jnp.exp(weight - top) for _, weight in parts]
    total = sum(shares)
    out = sum((share / total)[..., None] * value for (value, _), share in zip(parts, shares, strict=True))
    return out.astype(query.dtype)


def _attend_segment(query: Array, key: Array, value: Array, allowed: Array) -> tuple[Array, Array]:
    """Attention over one segment f32[rows, S, N, H], and the log-sum-exp of its scores f32[rows, S, N]."""
    rows, new, heads, width = query.shape
    count, kv_heads = key.shape[:2]
    shared, per_kv = rows // count, heads // kv_heads
    grouped = jax.lax.reshape(
        query,
        (count, shared, new, kv_heads, per_kv, width),
        out_sharding=spec("rows", None, None, "heads", None, None),
    )
    scores = jnp.einsum("ngskmh,nkth->nkgsmt", grouped, key, precision=EXACT, preferred_element_type=jnp.float32)
    scores = jnp.where(allowed[:, None, None, :, None, :], scores * width**-0.5, MASKED)
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
