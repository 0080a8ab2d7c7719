"""The decoder as pure functions over one parameter tree: forward, unembed, and the KV cache that forward returns.

One `forward` serves training, scoring, prefill and decoding. What it does with the cache follows from the cache:

    cache=None                prefill: the new tokens see one another; their keys and values come back as a prompt
    prompt, no response       score: the new tokens see the prompt and one another; nothing is written
    prompt and response       decode: the new tokens are written behind the response and see all before them

A prompt is stored once for the G rows that continue it.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from dasd_jax.batch import Array, Params
from dasd_jax.mesh import reshard, spec
from dasd_jax.model import params as param_table
from dasd_jax.model.attention import attend
from dasd_jax.model.config import Llama3Scaling, ModelConfig, YarnScaling
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
    write = None if cache is None else cache.response
    # Layers that see everything and layers that slide differ in what a query may look at and in its angles.
    kinds = sorted(set(config.sliding)) or [False]
    looks = [_look(config, positions, mask, cache, slides) for slides in kinds]

    def layer(carry, inputs):
        x, stored = carry
        index, slides, weights, prompt = inputs
        weights = _gathered(config, weights)
        rotary, new_seen, prompt_seen = _of_kind(slides, looks)
        query, key, value = _qkv(config, weights, x, rotary)
        if write is None:
            segments = [(key, value, new_seen)]
        else:
            stored = tuple(
                jax.lax.dynamic_update_slice(whole, new[None], (index, 0, write.length, 0, 0))
                for whole, new in zip(stored, (key, value), strict=True)
            )
            segments = [(*(whole[index] for whole in stored), new_seen)]
        if cache is not None:
            segments.append((*prompt, prompt_seen))
        mixed = _project(attend(query, segments), weights["o"], "rsnh,nhd->rsd")
        x = x + (_rms_norm(config, mixed, weights["attn_norm"]) if config.post_norm else mixed)
        x = x + _mlp(config, weights, x)
        return (x, stored), ((key, value) if cache is None else None)

    # Gathering by id from a table that is split along its rows is written as a lookup in the vocabulary's own layout.
    embedding = reshard(params["embed"].astype(dtype), "vocab", None)
    x = embedding.at[tokens].get(out_sharding=spec("rows", None, None))
    stored = None if write is None else (write.key, write.value)
    prompt = None if cache is None else (cache.prompt.key, cache.prompt.value)
    slides = jnp.array(config.sliding or (False,) * config.num_layers)
    inputs = (jnp.arange(config.num_layers), slides, params["layers"], prompt)
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


Within = Callable[[Array], Array]  # tokens that a key lies behind its query → whether the query may look at it
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


def _look(config: ModelConfig, positions: Array, mask: Array, cache: KVCache | None, slides: bool):
    """(rotary angles, what the new tokens see of themselves and the response, what they see of the prompt or None)."""

    def within(distance: Array) -> Array:
        return (distance >= 0) & (distance < config.window) if slides else distance >= 0

    write = None if cache is None else cache.response
    new_seen = _new_seen(within, mask) if write is None else _written(within, write, mask)
    prompt_seen = None if cache is None else _prompt_seen(within, cache.prompt, positions if slides else None)
    return _rotary(config, positions, scaled=not slides), new_seen, prompt_seen


def _of_kind(slides: Array, looks: list):
    """The look of a layer: where there are two kinds of layers, the second is that of those that slide."""
    return looks[0] if len(looks) == 1 else jax.tree.map(lambda *both: jnp.where(slides, both[1], both[0]), *looks)


def _new_seen(within: Within, mask: Array) -> Array:
    """bool[rows, S] → bool[rows, S, S]: query s may look at key t when it is within reach and valid."""
    place = jnp.arange(mask.shape[1])
    return within(place[:, None] - place[None, :]) & mask[:, None, :]


def _written(within: Within, response: Segment, mask: Array) -> Array:
    """bool[1, S, T]: the response so far, and of the S new tokens those up to the query's own."""
    own = response.length + jnp.arange(mask.shape[1], dtype=jnp.int32)
    return within(own[None, :, None] - jnp.arange(response.key.shape[2])[None, None, :])


def _prompt_seen(within: Within, prompt: Segment, positions: Array | None) -> Array:
    """The valid tokens at the right end of each prompt: bool[B, 1, P], or bool[B, S, P] with positions of queries.

    The rows of one prompt stand at the same positions, since they are scored or decoded side by side.
    """
    count, width = prompt.length.shape[0], prompt.key.shape[2]
    place = reshard((jnp.arange(width) - (width - prompt.length[:, None]))[:, None, :], "rows", None, None)
    if positions is None:
        return place >= 0
    shape = (count, positions.shape[0] // count, positions.shape[1])
    query = jax.lax.reshape(positions, shape, out_sharding=spec("rows", None, None))[:, 0, :, None]
    return (place >= 0) & within(query - place)


def _project(x: Array, weight: Array, letters: str) -> Array:
    """A product that ends in the model width, summed over the devices of the tensor axis."""
    return jnp.einsum(letters, x, weight, precision=EXACT, out_sharding=spec("rows", None, None))


def _qkv(config: ModelConfig, weights: Params, x: Array, rotary) -> tuple[Array, Array, Array]:
    if not config.post_norm:
        x = _rms_norm(config, x, weights["attn_norm"])
    heads = {}
    for name in ("q", "k", "v"):
        head = jnp.einsum("rsd,dnh->rsnh", x, weights[name], precision=EXACT)
        if config.qkv_bias:
            head = head + weights[f"{name}_bias"]
        if config.qk_norm != "none" and name != "v":
            axes = (-2, -1) if config.qk_norm == "all" else -1
            head = _rms_norm(config, head, weights[f"{name}_norm"], axes)
        heads[name] = head if name == "v" else _rotate(head, *rotary)
    return heads["q"], heads["k"], heads["v"]


def _mlp(config: ModelConfig, weights: Params, x: Array) -> Array:
    if not config.post_norm:
        x = _rms_norm(config, x, weights["mlp_norm"])
    gate = jnp.einsum("rsd,df->rsf", x, weights["gate"], precision=EXACT)
    up = jnp.einsum("rsd,df->rsf", x, weights["up"], precision=EXACT)
    out = _project(jax.nn.silu(gate) * up, weights["down"], "rsf,fd->rsd")
    return _rms_norm(config, out, weights["mlp_norm"]) if config.post_norm else out


def _rms_norm(config: ModelConfig, x: Array, scale: Array, axes=-1) -> Array:
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=axes, keepdims=True) + config.norm_eps)
    return wide.astype(x.dtype) * scale.astype(x.dtype)


def _rotary(config: ModelConfig, positions: Array, scaled: bool) -> tuple[Array, Array]:
    """cos and sin of the rotary angles, f32[rows, S, 1, H/2].

    float32 whatever the compute dtype: bfloat16 cannot tell position 256 from 257.
    """
    half = config.head_dim // 2
    frequency = config.rope_base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    scaling, size = config.rope_scaling if scaled else None, 1.0
    if scaling is not None:
        keep = _unstretched(scaling, frequency, config.rope_base)
        frequency = keep * frequency + (1 - keep) * frequency / scaling.factor
        size = getattr(scaling, "attention_factor", 1.0)
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequency
    return size * jnp.cos(angles), size * jnp.sin(angles)


def _unstretched(scaling: Llama3Scaling | YarnScaling, frequency: Array, base: float) -> Array:
    """The share of each frequency that stays as it is, f32[H/2] in [0, 1]: 1 for fast ones, 0 for slow ones."""
    if isinstance(scaling, Llama3Scaling):
        turns = scaling.original_context * frequency / (2 * jnp.pi)  # within the original context
        share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    else:
        # Where along the frequencies they make beta turns, rounded outward: the share is linear in the index.
        half = frequency.shape[0]
        fast, slow = (
            half * math.log(scaling.original_context / (beta * 2 * math.pi)) / math.log(base)
            for beta in (scaling.beta_fast, scaling.beta_slow)
        )
        first, last = max(math.floor(fast), 0), min(math.ceil(slow), 2 * half - 1)
        share = 1 - (jnp.arange(half) - first) / max(last - first, 1e-3)
    return jnp.clip(share, 0.0, 1.0)


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotates the pairs (h, h + H/2) of each head: [rows, S, heads, H]."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
