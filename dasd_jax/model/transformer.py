"""The decoder as pure functions over one parameter tree, and the KV cache between them.

    forward            prompts: prefill
    response_hidden    prompts and the responses behind them: scoring and the update
    decode             one new token a row, written behind the row's own response

A prompt is stored once for the G rows that continue it. All passes share the pieces of a layer; they differ in what
attention looks at.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from dasd_jax import vocab
from dasd_jax.batch import Array, Params
from dasd_jax.mesh import ROLLOUT, TRAIN, gather, per_device, spec
from dasd_jax.model import params as param_table
from dasd_jax.model.attention import Prompts, Span, attend, attend_cached
from dasd_jax.model.config import Llama3Scaling, ModelConfig, YarnScaling
from dasd_jax.vocab import EXACT


@struct.dataclass
class Segment:
    """Keys and values of runs of tokens, in the compute dtype.

    [L, n, K, T, H] each; a tuple of L arrays [1, n, K, T, H] where the layers stand apart (`for_decoding`).
    """

    key: Array | tuple[Array, ...]
    value: Array | tuple[Array, ...]
    length: Array  # i32[n], valid tokens: at the right end of a prompt, at the left end of a response


@struct.dataclass
class KVCache:
    """Opaque to callers; returned by `forward` and `decode`, never mutated."""

    prompt: Segment
    response: Segment | None = None


def open_response(cache: KVCache, rollouts: int, width: int) -> KVCache:
    """An empty response segment of `width` tokens for `rollouts` rows of each prompt: the cache is ready to decode."""
    prompt = cache.prompt
    blank = jax.tree.map(lambda key: _blank(key, key.shape[1] * rollouts, width), prompt.key)
    length = jnp.zeros((prompt.length.shape[0] * rollouts,), jnp.int32, out_sharding=spec("rows"))
    return cache.replace(response=Segment(blank, blank, length))


def own_prompts(cache: KVCache, rows: int) -> KVCache:
    """A cache for `rows` rows whose prompts, one a row, are put there by `take_prompt`."""
    blank = jax.tree.map(lambda key: _blank(key, rows, key.shape[3]), cache.prompt.key)
    return KVCache(Segment(blank, blank, jnp.zeros((rows,), jnp.int32, out_sharding=spec("rows"))))


def take_prompt(cache: KVCache, row: Array, prompts: Segment, index: Array) -> KVCache:
    """Row `row` starts anew behind prompt `index` of `prompts`; other rows are not touched."""

    here = jnp.arange(cache.prompt.length.shape[0]) == row

    def copy(whole: Array, source: Array) -> Array:
        one = jax.lax.dynamic_slice_in_dim(source, index, 1, axis=1)
        return jax.lax.dynamic_update_slice_in_dim(whole, one, row, axis=1)

    return KVCache(
        prompt=Segment(
            key=jax.tree.map(copy, cache.prompt.key, prompts.key),
            value=jax.tree.map(copy, cache.prompt.value, prompts.value),
            length=jnp.where(here, prompts.length[index], cache.prompt.length),
        ),
        response=cache.response.replace(length=jnp.where(here, 0, cache.response.length)),
    )


def prompt_positions(mask: Array) -> Array:
    """Positions of left-padded tokens, counted from the first valid one: bool[B, P] → i32[B, P]."""
    return jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)


def for_decoding(config: ModelConfig, params: Params) -> Params:
    """Parameters laid out for a loop that reads all of them for every token, inside a jitted program.

    Whole along the model width, in the compute dtype, products of the same input joined; with `config.unroll` a tuple
    of layers instead of stacks, since a CPU copies a layer out of its stack before it multiplies.
    """
    params = param_table.relayout(config, params, ROLLOUT)
    layers = _joined(config, params["layers"], ROLLOUT)
    if config.unroll:
        layers = tuple(jax.tree.map(lambda x, i=i: x[i], layers) for i in range(config.num_layers))
    return params | {"layers": layers}


def forward(
    config: ModelConfig,
    params: Params,
    tokens: Array,
    positions: Array,
    mask: Array,
) -> tuple[Array, KVCache]:
    """Hidden states of prompts, after the final norm, and their keys and values.

    Args:
        tokens: i32[rows, S].
        positions: i32[rows, S], position of each token in its own sequence.
        mask: bool[rows, S]; left-padded.

    Returns:
        hidden [rows, S, D] in the compute dtype, and a cache of these prompts. Where mask is False the hidden state is
        finite and meaningless.
    """
    rotary = _rotaries(config, positions)

    def layer(x, inputs):
        _, slides, weights = inputs
        return _layer(config, weights, x, _of_kind(slides, rotary), _look(config, slides, mask))

    x, new = _through_layers(config, _remat(config, layer), _embed(config, params, tokens), params["layers"])
    if isinstance(new, list):
        new = (tuple(part[None] for part in parts) for parts in zip(*new, strict=True))
    cache = KVCache(Segment(*new, jnp.sum(mask, axis=1, dtype=jnp.int32)))
    return _rms_norm(config, x, params["final_norm"]), cache


def decode(config: ModelConfig, params: Params, token: Array, live: Array, cache: KVCache) -> tuple[Array, KVCache]:
    """The hidden state behind one more token of every row, after the final norm.

    Args:
        params: from `for_decoding`.
        token: i32[rows], at the position behind what the row has cached.
        live: bool[rows]. Other rows are computed along, with finite and meaningless results, and stay as they are.
        cache: with prompts and responses.

    Returns:
        hidden [rows, D] in the compute dtype, and the cache with the token in it.
    """
    prompt, response = cache.prompt, cache.response
    rows = token.shape[0]
    columns = _columns(prompt)
    before = repeat_rows(prompt.length, rows // prompt.length.shape[0])
    place = response.length
    position = before + place
    # Of each kind of layer the angles, and the first position that a row sees: layers that slide forget.
    kinds = [
        (
            _rotary(config, position[:, None], scaled=not slides),
            jnp.maximum(position - config.window + 1, 0) if slides else jnp.zeros_like(position),
        )
        for slides in _kinds(config)
    ]

    def layer(carry, inputs):
        x, keys, values = carry
        index, slides, weights = inputs
        rotary, oldest = _of_kind(slides, kinds)

        def look(query, key, value):
            written = [_write(whole, index, new[:, 0], place) for whole, new in ((keys, key), (values, value))]
            spans = [
                Span(
                    *_of_layer((prompt.key, prompt.value), index),
                    first=columns - before + oldest,
                    last=jnp.where(live, columns, 0),
                ),
                Span(
                    *_of_layer(tuple(written), index),
                    first=jnp.maximum(oldest - before, 0),
                    last=jnp.where(live, place + 1, 0),
                ),
            ]
            return attend_cached(query[:, 0], spans)[:, None], written

        x, written = _layer(config, weights, x, rotary, look)
        return (x, *written), None

    x = _embed(config, params, token[:, None])
    (x, *written), _ = _through_layers(config, layer, (x, response.key, response.value), params["layers"])
    response = Segment(*written, place + live)
    return _rms_norm(config, x, params["final_norm"])[:, 0], cache.replace(response=response)


def unembedding(config: ModelConfig, params: Params) -> Array:
    """The [V, D] matrix in the compute dtype, gathered over fsdp once for a whole pass over the vocabulary."""
    return gather(params["embed" if config.tied else "unembed"].astype(config.compute_dtype), "vocab", "embed")


def with_embedding(config: ModelConfig, params: Params) -> Params:
    """The same with the embedding gathered, so that all its uses in a pass share it, and one sum of its gradient."""
    return params | {"embed": gather(params["embed"].astype(config.compute_dtype), "vocab", "embed")}


def unembed(config: ModelConfig, params: Params, hidden: Array) -> Array:
    """Logits f32[rows, S, V] of hidden [rows, S, D]; for small uses and tests, since it makes the whole array."""
    return vocab.logits(hidden, unembedding(config, params), 1.0, out_sharding=spec("rows", None, "vocab"))


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
    new, new_mask = response[:, :-1], response_mask[:, :-1]
    length = jnp.sum(prompt_mask, axis=1, dtype=jnp.int32)
    start = repeat_rows(length, rows // problems)[:, None]
    before = _rotaries(config, prompt_positions(prompt_mask))
    behind = _rotaries(config, start + jnp.arange(width - 1, dtype=jnp.int32))

    # One walk through the layers for both, so that each layer's weights are gathered once and reduced once.
    def layer(carry, inputs):
        prompt, rest = carry
        _, slides, weights = inputs
        weights = _gathered(config, weights)
        prompt, cached = _layer(config, weights, prompt, _of_kind(slides, before), _look(config, slides, prompt_mask))
        look = _look(config, slides, new_mask, Prompts(*cached, prompt_mask))
        rest, _ = _layer(config, weights, rest, _of_kind(slides, behind), look) if width > 1 else (rest, None)
        return (prompt, rest), None

    # The tokens of both are looked up as one for the same reason.
    tokens = jnp.concatenate([prompt, _beside(new, problems)], axis=1)
    embedded = _embed(config, params, tokens)
    split = prompt.shape[1]
    carry = embedded[:, :split], _apart(embedded[:, split:], rows)
    (first, rest), _ = _through_layers(config, _remat(config, layer), carry, params["layers"])
    hidden = jnp.concatenate([repeat_rows(first[:, -1:], rows // problems), rest], axis=1)
    return _rms_norm(config, hidden, params["final_norm"])


def _beside(x: Array, problems: int) -> Array:
    """The rows of each problem one behind the other: [B*G, S] → [B, G*S]."""
    return jax.lax.reshape(x, (problems, x.size // problems), out_sharding=spec("rows", None))


def _apart(x: Array, rows: int) -> Array:
    """The inverse of `_beside`, of vectors: [B, G*S, D] → [B*G, S, D]."""
    problems, width, size = x.shape
    return jax.lax.reshape(x, (rows, problems * width // rows, size), out_sharding=spec("rows", None, None))


def repeat_rows(x: Array, times: int) -> Array:
    """Each row `times` times in a row, problem-major: [B, ...] → [B*times, ...], split over rows."""
    inner = x.shape[1:]
    shape = (x.shape[0], times, *inner)
    wide = jax.lax.broadcast_in_dim(
        x, shape, (0, *range(2, len(shape))), out_sharding=spec("rows", *(None,) * (len(shape) - 1))
    )
    return jax.lax.reshape(wide, (x.shape[0] * times, *inner), out_sharding=spec("rows", *(None,) * len(inner)))


_CACHE = (None, "rows", "heads", None, None)


def _blank(key: Array, rows: int, columns: int) -> Array:
    """Room for the keys or values of other rows in the layers of `key`."""
    layers, _, kv_heads, _, head_dim = key.shape
    return jnp.zeros((layers, rows, kv_heads, columns, head_dim), key.dtype, out_sharding=spec(*_CACHE))


def _columns(segment: Segment) -> int:
    return jax.tree.leaves(segment.key)[0].shape[3]


def _embed(config: ModelConfig, params: Params, tokens: Array) -> Array:
    # Gathering by id from a table that is split along its rows is written as a lookup in the vocabulary's own layout.
    table = gather(params["embed"].astype(config.compute_dtype), "vocab", "embed")
    return table.at[tokens].get(out_sharding=spec("rows", None, None))


def _remat(config: ModelConfig, layer):
    policies = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
    if config.remat == "none":
        return layer
    return jax.checkpoint(layer, policy=policies[config.remat], prevent_cse=False)


def _through_layers(config: ModelConfig, body, carry, layers):
    """body(carry, (index, slides, weights)) → (carry, new), one layer after the other."""
    if not isinstance(layers, tuple):
        slides = jnp.array(config.sliding or (False,) * config.num_layers)
        return jax.lax.scan(body, carry, (jnp.arange(config.num_layers), slides, layers))
    news = []
    for index, weights in enumerate(layers):
        slides = bool(config.sliding) and config.sliding[index]
        carry, new = body(carry, (index, slides, weights))
        news.append(new)
    return carry, news


def _of_layer(parts: tuple, index) -> tuple:
    """(keys, values, which layer of them) of a segment's parts, which are stacks or tuples of layers."""
    return (*(part[index] for part in parts), 0) if isinstance(parts[0], tuple) else (*parts, index)


def _write(whole, index, new: Array, place: Array):
    """Keys or values with new [rows, K, H] in column place[row] of every row."""
    if isinstance(whole, tuple):
        return (*whole[:index], _write(whole[index], 0, new, place), *whole[index + 1 :])

    def write(whole: Array, index: Array, new: Array, place: Array) -> Array:
        rows = jnp.arange(place.shape[0])
        return whole.at[index, rows, :, place].set(new, unique_indices=True, mode="drop")

    # Each device writes its own rows and heads: a scatter into a split array is otherwise refused, or gathers it.
    in_axes = (_CACHE, (), ("rows", "heads", None), ("rows",))
    return per_device(write, in_axes, _CACHE)(whole, jnp.int32(index), new, place)


def _layer(config: ModelConfig, weights: Params, x: Array, rotary, look) -> tuple[Array, object]:
    """One layer: x [rows, S, D] → the same, and what `look(query, key, value)` returns beside the attended values."""
    weights = _gathered(config, weights)
    query, key, value = _qkv(config, weights, x, rotary)
    seen, new = look(query, key, value)
    flat = (*seen.shape[:2], config.num_heads * config.head_dim)
    mixed = _project(jax.lax.reshape(seen, flat, out_sharding=spec("rows", None, "heads")), weights["o"])
    x = x + (_rms_norm(config, mixed, weights["attn_norm"]) if config.post_norm else mixed)
    return x + _mlp(config, weights, x), new


def _gathered(config: ModelConfig, weights: Params) -> Params:
    """One layer's weights as `_layer` wants them: in the compute dtype, whole along the model width, joined."""
    if "qkv" in weights:
        return weights
    # Joined first: what is gathered forward is reduced and scattered backward, with nothing in between.
    joined = _joined(config, {name: weight.astype(config.compute_dtype) for name, weight in weights.items()}, TRAIN)
    layout = {
        "qkv": ("embed", "heads", None, None),
        "gate_up": ("embed", None, "ff"),
        "o": ("heads", "embed"),
        "down": ("ff", "embed"),
    }
    return joined | {name: gather(joined[name], *axes) for name, axes in layout.items()}


def _joined(config: ModelConfig, weights: Params, rules: dict) -> Params:
    """Products of the same input as one, and matrices where a layer multiplies by matrices; laid out by `rules`.

    "qkv" [..., D, K, N/K + 2, H]: a key head behind its queries and its value head last, so that a split over heads
    splits all three alike. "gate_up" [..., D, 2, F]. "o" [..., N*H, D].
    """
    rest = {name: x for name, x in weights.items() if name[0] not in "qkv" or name.endswith("norm")}
    lead = (None,) * (weights["o"].ndim - 3)
    joined = {"qkv": _by_kv_head(config, (*lead, "embed"), rules, *(weights[name] for name in "qkv"))}
    if config.qkv_bias:
        joined["qkv_bias"] = _by_kv_head(config, lead, rules, *(weights[f"{name}_bias"] for name in "qkv"))
    joined["gate_up"] = jnp.stack([rest.pop("gate"), rest.pop("up")], axis=-2)
    shape = (*rest["o"].shape[:-3], config.num_heads * config.head_dim, config.width)
    joined["o"] = jax.lax.reshape(rest.pop("o"), shape, out_sharding=spec(*lead, "heads", "embed", rules=rules))
    return rest | joined


def _by_kv_head(config: ModelConfig, lead: tuple, rules: dict, query: Array, key: Array, value: Array) -> Array:
    """[…, N, H] and twice […, K, H] → […, K, N/K + 2, H]; `lead` names the axes in front."""
    heads = (config.num_kv_heads, config.num_heads // config.num_kv_heads, config.head_dim)
    out_sharding = spec(*lead, "heads", None, None, rules=rules)
    query = jax.lax.reshape(query, (*query.shape[:-2], *heads), out_sharding=out_sharding)
    return jnp.concatenate([query, key[..., None, :], value[..., None, :]], axis=-2)


def _kinds(config: ModelConfig) -> list[bool]:
    """Whether layers slide, once for each kind of layer that there is."""
    return sorted(set(config.sliding)) or [False]


def _rotaries(config: ModelConfig, positions: Array) -> list[tuple[Array, Array]]:
    """The rotary angles of each kind of layer."""
    return [_rotary(config, positions, scaled=not slides) for slides in _kinds(config)]


def _look(config: ModelConfig, slides, mask: Array, prompts: Prompts | None = None):
    """look(query, key, value) of a layer's new tokens: (what they see, their keys and values for a cache)."""
    of_kinds = [
        partial(attend, config.attention, valid=mask, prompts=prompts, window=config.window if slides else 0)
        for slides in _kinds(config)
    ]

    def look(query: Array, key: Array, value: Array):
        new = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
        return _by_kind(slides, of_kinds, query, key, value), new

    return look


def _of_kind(slides, of_kinds: list):
    """What a layer takes: where there are two kinds, the second is that of layers that slide."""
    if len(of_kinds) == 1:
        return of_kinds[0]
    if isinstance(slides, bool):
        return of_kinds[slides]
    return jax.tree.map(lambda *both: jnp.where(slides, both[1], both[0]), *of_kinds)


def _by_kind(slides, of_kinds: list[Callable], *args):
    """What the function of a layer's kind makes of the arguments."""
    if len(of_kinds) == 1:
        return of_kinds[0](*args)
    if isinstance(slides, bool):
        return of_kinds[slides](*args)
    return jax.lax.cond(slides, of_kinds[1], of_kinds[0], *args)


def _project(x: Array, weight: Array) -> Array:
    """A product that ends in the model width, summed over the devices of the tensor axis."""
    return jnp.einsum("rsf,fd->rsd", x, weight, precision=EXACT, out_sharding=spec("rows", None, None))


def _qkv(config: ModelConfig, weights: Params, x: Array, rotary) -> tuple[Array, Array, Array]:
    if not config.post_norm:
        x = _rms_norm(config, x, weights["attn_norm"])
    heads = jnp.einsum("rsd,dkmh->rskmh", x, weights["qkv"], precision=EXACT)
    if config.qkv_bias:
        heads = heads + weights["qkv_bias"]
    query, key, value = heads[..., :-2, :], heads[..., -2, :], heads[..., -1, :]
    shape = (*x.shape[:2], config.num_heads, config.head_dim)
    query = jax.lax.reshape(query, shape, out_sharding=spec("rows", None, "heads", None))
    if config.qk_norm != "none":
        axes = (-2, -1) if config.qk_norm == "all" else -1
        query, key = (
            _rms_norm(config, part, weights[f"{name}_norm"], axes) for name, part in (("q", query), ("k", key))
        )
    return _rotate(query, *rotary), _rotate(key, *rotary), value


def _mlp(config: ModelConfig, weights: Params, x: Array) -> Array:
    if not config.post_norm:
        x = _rms_norm(config, x, weights["mlp_norm"])
    gate_up = jnp.einsum("rsd,duf->rsuf", x, weights["gate_up"], precision=EXACT)
    gated = jax.nn.silu(gate_up[..., 0, :]) * gate_up[..., 1, :]
    out = _project(gated, weights["down"])
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
