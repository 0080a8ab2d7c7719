"""The decoder as pure functions over one parameter tree: forward, unembed, and the KV cache that forward returns.

One `forward` serves training, scoring, prefill and decoding. What it does with the cache follows from the cache:

    cache=None                prefill: the new tokens see one another; their keys and values come back as a prompt
    prompt, no response       score: the new tokens see the prompt and one another; nothing is written
    prompt and response       decode: the new tokens are written behind the response and see all before them

A prompt is stored once for the G rows that continue it.
"""

import jax
import jax.numpy as jnp
from flax import struct

from dasd_jax.batch import Array, Params
from dasd_jax.mesh import reshard, spec
from dasd_jax.model import params as param_table
from dasd_jax.model.attention import attend
from dasd_jax.model.config import ModelConfig
from dasd_jax.vocab import EXACT


@struct.dataclass
class Segment:
    """Keys and values of a run of tokens: [L, n, T, K, H] each, in the compute dtype."""

    key: Array
    value: Array
    length: Array  # prompt: i32[n], valid tokens, at the right end. response: i32[], tokens written in every row


@struct.dataclass
class KVCache:
    """Opaque to callers; returned by `forward`, never mutated."""

    prompt: Segment
    response: Segment | None = None


def open_response(cache: KVCache, rollouts: int, width: int) -> KVCache:
    """An empty response segment of `width` tokens for `rollouts` rows of each prompt: the cache is ready to decode."""
    layers, prompts, _, kv_heads, head_dim = cache.prompt.key.shape
    empty = jnp.zeros(
        (layers, prompts * rollouts, width, kv_heads, head_dim),
        cache.prompt.key.dtype,
        out_sharding=_CACHE,
    )
    return cache.replace(response=Segment(empty, empty, jnp.zeros((), jnp.int32)))


def prompt_positions(mask: Array) -> Array:
    """Positions of left-padded tokens, counted from the first valid one: bool[B, P] → i32[B, P]."""
    return jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)


def forward(
    config: ModelConfig,
    params: Params,
    tokens: Array,
    positions: Array,
    mask: Array,
    cache: KVCache | None = None,
) -> tuple[Array, KVCache]:
    """Hidden states of the new tokens, after the final norm.

    Args:
        tokens: i32[rows, S].
        positions: i32[rows, S], position of each token in its own sequence.
        mask: bool[rows, S], validity of the new tokens only. Left-padded without a cache.
        cache: what came before; see the module's table.

    Returns:
        hidden [rows, S, D] in the compute dtype, and the cache with the new tokens in it (scoring writes nothing).
        Where mask is False the hidden state is finite and meaningless.
    """
    dtype = jnp.dtype(config.compute_dtype)
    rotary = _rotary(config, positions)
    write = None if cache is None else cache.response
    new_allowed = _causal(mask) if write is None else None

    def layer(carry, inputs):
        x, stored = carry
        index, weights, prompt = inputs
        weights = _gathered(config, weights)
        query, key, value = _qkv(config, weights, x, rotary)
        if write is None:
            segments = [(key, value, new_allowed)]
        else:
            stored = tuple(
                jax.lax.dynamic_update_slice(whole, new[None], (index, 0, write.length, 0, 0))
                for whole, new in zip(stored, (key, value), strict=True)
            )
            segments = [(*(whole[index] for whole in stored), _written(write, tokens.shape[1]))]
        if cache is not None:
            segments.append((*prompt, _prompt_allowed(cache.prompt)))
        x = x + _project(attend(query, segments), weights["o"], "rsnh,nhd->rsd")
        x = x + _mlp(config, weights, x)
        return (x, stored), ((key, value) if cache is None else None)

    # Gathering by id from a table that is split along its rows is written as a lookup in the vocabulary's own layout.
    embedding = reshard(params["embed"].astype(dtype), "vocab", None)
    x = embedding.at[tokens].get(out_sharding=spec("rows", None, None))
    stored = None if write is None else (write.key, write.value)
    prompt = None if cache is None else (cache.prompt.key, cache.prompt.value)
    inputs = (jnp.arange(config.num_layers), params["layers"], prompt)
    (x, stored), new = jax.lax.scan(_remat(config, layer), (x, stored), inputs)

    if cache is None:
        cache = KVCache(Segment(*new, jnp.sum(mask, axis=1, dtype=jnp.int32)))
    elif write is not None:
        cache = cache.replace(response=Segment(*stored, write.length + tokens.shape[1]))
    return _rms_norm(config, x, params["final_norm"]), cache


def unembedding(config: ModelConfig, params: Params) -> Array:
    """The [V, D] matrix in the compute dtype, gathered over fsdp once for a whole pass over the vocabulary."""
    weight = params["embed" if config.tied else "unembed"]
    return reshard(weight.astype(config.compute_dtype), "vocab", None)


def unembed(config: ModelConfig, params: Params, hidden: Array) -> Array:
    """Logits f32[rows, S, V] of hidden [rows, S, D]; for small uses and tests, since it makes the whole array."""
    return jnp.einsum(
        "rsd,vd->rsv",
        hidden,
        unembedding(config, params),
        precision=EXACT,
        preferred_element_type=jnp.float32,
        out_sharding=spec("rows", None, "vocab"),
    )


def response_hidden(
    config: ModelConfig,
    params: Params,
    prompt: Array,
    prompt_mask: Array,
    response: Array,
    response_mask: Array,
) -> Array:
    """The hidden state that predicts each response token; the prompt is computed once for its G responses.

    The state that predicts response[:, 0] is the prompt's last one; the one that predicts response[:, r] is that of
    response[:, r - 1].

    Args:
        prompt, prompt_mask: i32 and bool [B, P], left-padded.
        response, response_mask: i32 and bool [B*G, R], right-padded, problem-major.

    Returns:
        [B*G, R, D] in the compute dtype.
    """
    (rows, width), problems = response.shape, prompt.shape[0]
    first, cache = forward(config, params, prompt, prompt_positions(prompt_mask), prompt_mask)
    first = repeat_rows(first[:, -1:], rows // problems)
    if width == 1:
        return first
    start = repeat_rows(cache.prompt.length, rows // problems)
    positions = start[:, None] + jnp.arange(width - 1, dtype=jnp.int32)
    rest, _ = forward(config, params, response[:, :-1], positions, response_mask[:, :-1], cache)
    return jnp.concatenate([first, rest], axis=1)


def repeat_rows(x: Array, times: int) -> Array:
    """Each row `times` times in a row, problem-major: [B, ...] → [B*times, ...], split over rows."""
    inner = x.shape[1:]
    shape = (x.shape[0], times, *inner)
    wide = jax.lax.broadcast_in_dim(
        x, shape, (0, *range(2, len(shape))), out_sharding=spec("rows", *(None,) * (len(shape) - 1))
    )
    return jax.lax.reshape(wide, (x.shape[0] * times, *inner), out_sharding=spec("rows", *(None,) * len(inner)))


_CACHE = spec(None, "rows", None, "heads", None)


def _remat(config: ModelConfig, layer):
    policies = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
    if config.remat == "none":
        return layer
    return jax.checkpoint(layer, policy=policies[config.remat], prevent_cse=False)


def _gathered(config: ModelConfig, weights: Params) -> Params:
    """One layer's weights in the compute dtype, whole along the model width (no work where they already are)."""
    rows = param_table.table(config)
    return {
        name: reshard(weight.astype(config.compute_dtype), *(a if a != "embed" else None for a in axes))
        for name, weight in weights.items()
        for axes in [rows["layers/" + name].axes[1:]]
    }


def _causal(mask: Array) -> Array:
    """bool[rows, S] → bool[rows, S, S]: query s may look at key t when t ≤ s and t is valid."""
    new = mask.shape[1]
    return jnp.tril(jnp.ones((new, new), bool)) & mask[:, None, :]


def _written(response: Segment, new: int) -> Array:
    """bool[1, S, T]: the response so far, and of the S new tokens those up to the query's own."""
    width = response.key.shape[2]
    last = response.length + jnp.arange(new, dtype=jnp.int32)
    return jnp.arange(width)[None, None, :] <= last[None, :, None]


def _prompt_allowed(prompt: Segment) -> Array:
    """bool[B, 1, P]: the valid tokens at the right end of each prompt."""
    width = prompt.key.shape[2]
    return (jnp.arange(width) >= width - prompt.length[:, None])[:, None, :]


def _project(x: Array, weight: Array, letters: str) -> Array:
    """A product that ends in the model width, summed over the devices of the tensor axis."""
    return jnp.einsum(letters, x, weight, precision=EXACT, out_sharding=spec("rows", None, None))


def _qkv(config: ModelConfig, weights: Params, x: Array, rotary) -> tuple[Array, Array, Array]:
    x = _rms_norm(config, x, weights["attn_norm"])
    heads = {}
    for name in ("q", "k", "v"):
        head = jnp.einsum("rsd,dnh->rsnh", x, weights[name], precision=EXACT)
        if config.qkv_bias:
            head = head + weights[f"{name}_bias"]
        if config.qk_norm and name != "v":
            head = _rms_norm(config, head, weights[f"{name}_norm"])
        heads[name] = head if name == "v" else _rotate(head, *rotary)
    return heads["q"], heads["k"], heads["v"]


def _mlp(config: ModelConfig, weights: Params, x: Array) -> Array:
    x = _rms_norm(config, x, weights["mlp_norm"])
    gate = jnp.einsum("rsd,df->rsf", x, weights["gate"], precision=EXACT)
    up = jnp.einsum("rsd,df->rsf", x, weights["up"], precision=EXACT)
    return _project(jax.nn.silu(gate) * up, weights["down"], "rsf,fd->rsd")


def _rms_norm(config: ModelConfig, x: Array, scale: Array) -> Array:
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + config.norm_eps)
    return wide.astype(x.dtype) * scale.astype(x.dtype)


def _rotary(config: ModelConfig, positions: Array) -> tuple[Array, Array]:
    """cos and sin of the rotary angles, f32[rows, S, 1, H/2].

    float32 whatever the compute dtype: bfloat16 cannot tell position 256 from 257.
    """
    half = config.head_dim // 2
    frequency = config.rope_base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if config.rope_scaling is not None:
        scaling = config.rope_scaling
        wavelengths = scaling.original_context * frequency / (2 * jnp.pi)  # that fit into the original context
        blend = (wavelengths - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        blend = jnp.clip(blend, 0.0, 1.0)
        frequency = blend * frequency + (1 - blend) * frequency / scaling.factor
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequency
    return jnp.cos(angles), jnp.sin(angles)


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotates the pairs (h, h + H/2) of each head: [rows, S, heads, H]."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
