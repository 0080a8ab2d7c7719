"""The decoder as pure functions of one parameter tree, with a KV cache passed between them.

    forward            prompts: prefill
    response_hidden    prompts and their responses: scoring and the update
    decode             one more token per row, appended to the row's own response

A prompt is stored once for the G rows that continue it. All passes share `apply_layer`; they differ in what attention
sees.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from dasd_jax import vocab
from dasd_jax.batch import Array, Params
from dasd_jax.mesh import ROLLOUT, gather, spec
from dasd_jax.model import param_table
from dasd_jax.model.attention import RESULT, Prompts, attend
from dasd_jax.model.attention_cached import Span, attend_cached
from dasd_jax.model.cache import KVCache, Segment, layer_of, write_token
from dasd_jax.model.config import ModelConfig
from dasd_jax.model.layer import apply_layer, gather_weights, join_weights, quantise_weights, rms_norm
from dasd_jax.model.layout import join_rollouts, repeat_rows, split_rollouts
from dasd_jax.model.rope import rope_table
from dasd_jax.quantised import Quantised, quantise


def prompt_positions(mask: Array) -> Array:
    """Positions of left-padded tokens, counted from the first valid one: bool[B, P] → i32[B, P]."""
    return jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)


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
        hidden f32[rows, S, D], and a cache of these prompts in the compute dtype. Where mask is False the hidden state
        is finite and meaningless.
    """
    ropes = _rope_tables(config, positions)

    def layer(shared, x, inputs):
        mask, ropes = shared
        _, slides, weights = inputs
        x, new = apply_layer(config, weights, x, _of_kind(slides, ropes), _attention(config, slides, mask))
        return x, tuple(part.astype(config.compute_dtype) for part in new)

    body = partial(_remat(config, layer), (mask, ropes))
    x, new = _through_layers(config, body, embed(params, tokens), params["layers"])
    if isinstance(new, list):
        new = (tuple(part[None] for part in parts) for parts in zip(*new, strict=True))
    cache = KVCache(Segment(*new, jnp.sum(mask, axis=1, dtype=jnp.int32)))
    return rms_norm(config, x, params["final_norm"]), cache


def response_hidden(
    config: ModelConfig,
    params: Params,
    prompt: Array,
    prompt_mask: Array,
    response: Array,
    response_mask: Array,
) -> Array:
    """The hidden state that predicts each response token; the prompt is computed once for its G responses.

    response[:, 0] is predicted by the prompt's last state, response[:, r] by the state of response[:, r - 1].

    Args:
        prompt, prompt_mask: i32 and bool [B, P], left-padded.
        response, response_mask: i32 and bool [B*G, R], right-padded, problem-major.

    Returns:
        f32[B*G, R, D].
    """
    (rows, width), problems = response.shape, prompt.shape[0]
    new, new_mask = response[:, :-1], response_mask[:, :-1]
    length = jnp.sum(prompt_mask, axis=1, dtype=jnp.int32)
    start = repeat_rows(length, rows // problems)[:, None]
    ropes = [
        _rope_tables(config, positions)
        for positions in (prompt_positions(prompt_mask), start + jnp.arange(width - 1, dtype=jnp.int32))
    ]

    # Prompts and responses go through each layer together, so that its weights are gathered once and their gradient
    # is reduced once.
    def layer(shared, streams, inputs):
        prompt_mask, new_mask, (prompt_ropes, response_ropes) = shared
        prompt, rest = streams
        _, slides, weights = inputs
        weights = gather_weights(config, weights)
        attention = _attention(config, slides, prompt_mask)
        prompt, cached = apply_layer(config, weights, prompt, _of_kind(slides, prompt_ropes), attention)
        if width > 1:
            attention = _attention(config, slides, new_mask, Prompts(*cached, prompt_mask))
            rest, _ = apply_layer(config, weights, rest, _of_kind(slides, response_ropes), attention)
        return (prompt, rest), None

    # One embedding lookup for both, for the same reason.
    tokens = jnp.concatenate([prompt, join_rollouts(new, problems)], axis=1)
    embedded = embed(params, tokens)
    split = prompt.shape[1]
    streams = embedded[:, :split], split_rollouts(embedded[:, split:], rows)
    body = partial(_remat(config, layer), (prompt_mask, new_mask, ropes))
    (first, rest), _ = _through_layers(config, body, streams, params["layers"])
    hidden = jnp.concatenate([repeat_rows(first[:, -1:], rows // problems), rest], axis=1)
    return rms_norm(config, hidden, params["final_norm"])


def for_decoding(config: ModelConfig, params: Params, weights: str = "compute") -> Params:
    """Parameters laid out for a loop that reads all of them for every token, inside a jitted program.

    In the compute dtype, gathered over the model width, weights with the same input joined. With `config.unroll` the
    layers are a tuple instead of a stack, since on CPU XLA copies a layer out of its stack before each product.

    Args:
        weights: compute | int8: every matrix in int8, with a scale for each output of its product, the embedding with
            one for each word.
    """
    params = param_table.relayout(config, params, ROLLOUT)
    layers = join_weights(config, params["layers"], ROLLOUT)
    if weights == "int8":
        params = params | {name: quantise(params[name], -1) for name in ("embed", "unembed") if name in params}
        layers = quantise_weights(layers)
    if config.unroll:
        layers = tuple(jax.tree.map(lambda x, i=i: x[i], layers) for i in range(config.num_layers))
    return params | {"layers": layers}


def decode(config: ModelConfig, params: Params, token: Array, live: Array, cache: KVCache) -> tuple[Array, KVCache]:
    """The hidden state of one more token of every row, after the final norm.

    Args:
        params: from `for_decoding`.
        token: i32[rows], the token that follows what the row has in the cache.
        live: bool[rows]. Other rows keep their cache; their hidden states are finite and meaningless.
        cache: with prompts and responses.

    Returns:
        hidden f32[rows, D], and the cache with the token in it.
    """
    prompt, response = cache.prompt, cache.response
    rows = token.shape[0]
    columns = prompt.columns
    prompt_length = repeat_rows(prompt.length, rows // prompt.length.shape[0])
    place = response.length
    position = prompt_length + place
    # For each kind of layer its rotary table and the first position that a row sees, which a window moves forward.
    kinds = [
        (
            rope_table(config, position[:, None], scaled=not slides),
            jnp.maximum(position - config.window + 1, 0) if slides else jnp.zeros_like(position),
        )
        for slides in _kinds(config)
    ]

    def layer(carry, inputs):
        x, keys, values = carry
        index, slides, weights = inputs
        rope, oldest = _of_kind(slides, kinds)

        def attention(query, key, value):
            query, key, value = (x.astype(config.compute_dtype) for x in (query, key, value))
            written = [write_token(whole, index, new[:, 0], place) for whole, new in ((keys, key), (values, value))]
            spans = [
                Span(
                    *layer_of((prompt.key, prompt.value), index),
                    first=columns - prompt_length + oldest,
                    last=jnp.where(live, columns, 0),
                ),
                Span(
                    *layer_of(tuple(written), index),
                    first=jnp.maximum(oldest - prompt_length, 0),
                    last=jnp.where(live, place + 1, 0),
                ),
            ]
            return attend_cached(query[:, 0], spans)[:, None], written

        x, written = apply_layer(config, weights, x, rope, attention)
        return (x, *written), None

    x = embed(params, token[:, None])
    (x, *written), _ = _through_layers(config, layer, (x, response.key, response.value), params["layers"])
    response = Segment(*written, place + live)
    return rms_norm(config, x, params["final_norm"])[:, 0], cache.replace(response=response)


def unembedding(config: ModelConfig, params: Params) -> Array | Quantised:
    """The [V, D] matrix in the compute dtype, gathered over fsdp once for a whole pass over the vocabulary.

    Quantised where the parameters are, from `for_decoding`.
    """
    name = "embed" if config.tied else "unembed"
    if isinstance(params[name], Quantised):
        return params[name]
    return gather(param_table.rounded(config, name, params[name]), "vocab", "embed")


def with_embedding(config: ModelConfig, params: Params) -> Params:
    """Parameters with the embedding gathered, so that all its uses in a pass share one gather and one gradient sum.

    In float32: of a token that occurs thousands of times a sum of gradients in bfloat16 would lose most.
    """
    return params | {"embed": gather(params["embed"], "vocab", "embed")}


def unembed(config: ModelConfig, params: Params, hidden: Array) -> Array:
    """Logits f32[rows, S, V] of hidden [rows, S, D]; for small batches and tests, since the whole array is stored."""
    return vocab.logits(hidden, unembedding(config, params), 1.0, out_sharding=spec("rows", None, "vocab"))


def embed(params: Params, tokens: Array) -> Array:
    """The first residual stream, f32[rows, S, D]."""
    table = params["embed"]
    if isinstance(table, Quantised):
        return _of_tokens(table.values, tokens).astype(jnp.float32) * _of_tokens(table.scale, tokens)[..., None]
    return _of_tokens(gather(table, "vocab", "embed"), tokens).astype(jnp.float32)


def _of_tokens(table: Array, tokens: Array) -> Array:
    """[V, ...], i32[rows, S] → [rows, S, ...]."""
    # JAX wants an explicit result layout for indexing along the split axis of the vocabulary.
    return table.at[tokens].get(out_sharding=spec("rows", *(None,) * table.ndim))


def _remat(config: ModelConfig, layer: Callable) -> Callable:
    """layer(shared, streams, inputs) → (streams, new), with what `model.remat` stores for its backward pass.

    Args:
        layer: of arrays that all layers share, the residual streams, and what is the layer's own; a closure over none.
    """
    if config.remat == "none":
        return layer
    if config.remat == "dots":
        policies = jax.checkpoint_policies
        stored = policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(RESULT)
        return jax.checkpoint(layer, policy=policies.save_from_both_policies(*stored), prevent_cse=False)

    # jax.checkpoint would store the residual streams in float32. The compute dtype is enough for a layer computed anew,
    # whose products round them to it anyway, and takes half the memory.
    def forward(shared, streams, inputs):
        stored = jax.tree.map(lambda x: x.astype(config.compute_dtype), streams)
        return layer(shared, streams, inputs), (shared, stored, inputs)

    def backward(residuals, gradients):
        shared, stored, inputs = residuals
        streams = jax.tree.map(lambda x: x.astype(jnp.float32), stored)
        return jax.vjp(layer, shared, streams, inputs)[1](gradients)

    recomputed = jax.custom_vjp(layer)
    recomputed.defvjp(forward, backward)
    return recomputed


def _through_layers(config: ModelConfig, body, carry, layers):
    """Runs body(carry, (index, slides, weights)) → (carry, new) over all layers: (carry, all new).

    A stack of layers is scanned and `new` stacked; a tuple of layers is unrolled and `new` is a list.
    """
    if not isinstance(layers, tuple):
        slides = jnp.array(config.sliding or (False,) * config.num_layers)
        return jax.lax.scan(body, carry, (jnp.arange(config.num_layers), slides, layers))
    news = []
    for index, weights in enumerate(layers):
        slides = bool(config.sliding) and config.sliding[index]
        carry, new = body(carry, (index, slides, weights))
        news.append(new)
    return carry, news


# Two kinds of layers: with full attention, and with sliding-window attention and unscaled rotary embeddings. Within a
# scan the kind of a layer is a traced boolean.


def _kinds(config: ModelConfig) -> list[bool]:
    """The kinds of layers in the model, by whether they slide, full attention first."""
    return sorted(set(config.sliding)) or [False]


def _rope_tables(config: ModelConfig, positions: Array) -> list[tuple[Array, Array]]:
    """The rotary table of each kind of layer."""
    return [rope_table(config, positions, scaled=not slides) for slides in _kinds(config)]


def _attention(config: ModelConfig, slides, mask: Array, prompts: Prompts | None = None):
    """A layer's attention over whole sequences: (query, key, value) → (result, keys and values for a cache)."""
    by_kind = [
        partial(attend, config.attention, valid=mask, prompts=prompts, window=config.window if slides else 0)
        for slides in _kinds(config)
    ]

    def attention(query: Array, key: Array, value: Array):
        if config.attention != "xla":  # the fused kernels are made for the compute dtype
            query, key, value = (x.astype(config.compute_dtype) for x in (query, key, value))
        new = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
        return _call_kind(slides, by_kind, query, key, value), new

    return attention


def _of_kind(slides, by_kind: list):
    """The value for a layer's kind, from one value for each of `_kinds`."""
    if len(by_kind) == 1:
        return by_kind[0]
    if isinstance(slides, bool):
        return by_kind[slides]
    return jax.tree.map(lambda *both: jnp.where(slides, both[1], both[0]), *by_kind)


def _call_kind(slides, by_kind: list[Callable], *args):
    """The result of the function for a layer's kind, from one function for each of `_kinds`."""
    if len(by_kind) == 1:
        return by_kind[0](*args)
    if isinstance(slides, bool):
        return by_kind[slides](*args)
    return jax.lax.cond(slides, by_kind[1], by_kind[0], *args)
