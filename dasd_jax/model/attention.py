"""Attention over whole sequences: the choice of a kernel, and `attend`, the entry point to all of them.

A prompt is stored once for the rollouts that continue it. The fused kernels of JAX read prompt and new tokens as one
sequence; the XLA version computes attention over both separately and merges the results.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from dasd_jax.batch import Array
from dasd_jax.errors import UserError
from dasd_jax.mesh import per_device, spec
from dasd_jax.vocab import product

KINDS = ("xla", "splash", "cudnn")

# The score of a masked key. Finite, so that a row that sees nothing gives a finite, meaningless result instead of NaN.
MASKED = -1e30

# Queries whose scores XLA computes at a time: its memory grows with their number times that of the keys.
_QUERY_BLOCK = 512
# XLA takes queries by quarters, in multiples of a tile: of the scores that causality hides it computes a fourth.
_QUARTERS, _QUERY_TILE = 4, 64

# What `model.remat=dots` stores of attention, under this name: its results, from which the scores are made again.
RESULT = "attention"


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
    """`attend` in XLA: quarters of the queries, each over the keys that one of its queries may see."""
    new = query.shape[1]
    size = -(-new // (_QUARTERS * _QUERY_TILE)) * _QUERY_TILE
    parts = []
    for start in range(0, new, size):
        end, first = min(start + size, new), max(start - window + 1, 0) if window else 0
        seen = key[:, :, first:end], value[:, :, first:end], valid[:, first:end]
        parts.append(_of_quarter(query[:, start:end], *seen, prompts, window, start, first))
    return jnp.concatenate(parts, axis=1)


def _of_quarter(query, key, value, valid, prompts: Prompts | None, window: int, start: int, first: int) -> Array:
    """The queries from place `start` on, over the keys from place `first` on, in blocks of at most _QUERY_BLOCK."""
    places = first + jnp.arange(key.shape[2])

    def block(queries: Array, start: Array | int) -> Array:
        place = start + jnp.arange(queries.shape[1])[:, None]
        distance = place - places
        seen = (distance >= 0) & (distance < window) if window else distance >= 0
        segments = [(key, value, seen & valid[:, None, :])]
        if prompts is not None:
            width = prompts.keys.shape[2]
            seen = (place + width - jnp.arange(width) < window) if window else jnp.ones((1, width), bool)
            segments.append((prompts.keys, prompts.values, seen & prompts.valid[:, None, :]))
        return _over_segments(queries, segments)

    new = query.shape[1]
    if new <= _QUERY_BLOCK:
        return block(query, start)
    blocks = jnp.pad(query, ((0, 0), (0, -new % _QUERY_BLOCK), (0, 0), (0, 0)))
    blocks = jnp.moveaxis(blocks.reshape(blocks.shape[0], -1, _QUERY_BLOCK, *blocks.shape[2:]), 1, 0)
    starts = start + _QUERY_BLOCK * jnp.arange(blocks.shape[0])
    out = jnp.moveaxis(jax.lax.map(lambda xs: block(*xs), (blocks, starts)), 0, 1)
    return out.reshape(out.shape[0], -1, *out.shape[3:])[:, :new]


def _over_segments(query: Array, segments: list[tuple[Array, Array, Array]]) -> Array:
    """Attention over the union of segments: exact, from each segment's result and the log-sum-exp of its scores.

    Args:
        query: [rows, S, N, H].
        segments: (keys, values, allowed) of each: [n, K, T, H] twice, and bool[n, S or 1, T].
    """
    attention = jax.custom_vjp(lambda *arguments: _forward(*arguments)[0])
    attention.defvjp(_forward, _backward)
    return attention(query, segments)


def _forward(query: Array, segments: list[tuple[Array, Array, Array]]):
    """The result, and what the backward pass needs: nothing of the size of the scores, which it makes again."""
    parts = [_attend_segment(query, *segment) for segment in segments]
    top = parts[0][1]
    for _, weight in parts[1:]:
        top = jnp.maximum(top, weight)
    shares = [jnp.exp(weight - top) for _, weight in parts]
    total = sum(shares)
    out = sum((share / total)[..., None] * value for (value, _), share in zip(parts, shares, strict=True))
    out, norm = (checkpoint_name(x, RESULT) for x in (out.astype(query.dtype), top + jnp.log(total)))
    return out, (query, segments, out, norm)


def _backward(residuals, gradient: Array):
    """With p the weights and g the gradient: dv = pᵀ g, ds = p (g vᵀ - Σ g out), dq = ds k, dk = dsᵀ q.

    Source: arXiv 2205.14135, section B.2.
    """
    query, segments, out, norm = residuals
    of_query, of_segments = 0.0, []
    mean = jnp.sum(gradient.astype(jnp.float32) * out, axis=-1)
    for key, value, allowed in segments:
        grouped, given = _by_kv_head(query, key), _by_kv_head(gradient, key)
        norms, means = (jnp.transpose(_by_kv_head(x[..., None], key), (0, 3, 1, 2, 4, 5)) for x in (norm, mean))
        scores, scale = _scores(grouped, key), query.shape[-1] ** -0.5
        weights = jnp.where(allowed[:, None, None, :, None, :], jnp.exp(scores * scale - norms), 0.0)
        slopes = weights * (_scores(given, value) - means) * scale
        by_key, by_value = (
            product("nkgsmt,ngskmh->nkth", x.astype(key.dtype), of).astype(key.dtype)
            for x, of in ((slopes, grouped), (weights, given))
        )
        of_segments.append((by_key, by_value, None))
        by_query = product("nkgsmt,nkth->ngskmh", slopes.astype(key.dtype), key)
        of_query += jax.lax.reshape(by_query, query.shape, out_sharding=spec("rows", None, "heads", None))
    return of_query.astype(query.dtype), of_segments


def _by_kv_head(x: Array, key: Array) -> Array:
    """[rows, S, N, ·] → [n, rows/n, S, K, N/K, ·]: by the sequence and the head of keys [n, K, T, H] that each sees."""
    rows, new, heads, width = x.shape
    count, kv_heads = key.shape[:2]
    shape = count, rows // count, new, kv_heads, heads // kv_heads, width
    return jax.lax.reshape(x, shape, out_sharding=spec("rows", None, None, "heads", None, None))


def _scores(grouped: Array, key: Array) -> Array:
    """Products of queries from `_by_kv_head` with the keys [n, K, T, H]: f32[n, K, rows/n, S, N/K, T]."""
    return product("ngskmh,nkth->nkgsmt", grouped, key)


def _attend_segment(query: Array, key: Array, value: Array, allowed: Array) -> tuple[Array, Array]:
    """Attention over one segment f32[rows, S, N, H], and the log-sum-exp of its scores f32[rows, S, N]."""
    scores = _scores(_by_kv_head(query, key), key)
    scores = jnp.where(allowed[:, None, None, :, None, :], scores * query.shape[-1] ** -0.5, MASKED)
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = product("nkgsmt,nkth->ngskmh", (weights / total).astype(value.dtype), value)
    log_weight = jnp.transpose((top + jnp.log(total))[..., 0], (0, 2, 3, 1, 4))
    out_sharding = spec("rows", None, "heads", None)
    return (
        jax.lax.reshape(mixed, query.shape, out_sharding=out_sharding),
        jax.lax.reshape(log_weight, query.shape[:-1], out_sharding=spec("rows", None, "heads")),
    )
