"""One decoder layer, shared by all passes: normalisation, projections, feed-forward, and the layout of its weights.

The residual stream and all that stands between two products is float32; the compute dtype is that of the products'
arguments. Each rounding that is left out makes two passes over the same tokens, padded in different ways, agree better
(docs/numerics.md).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from dasd_jax.batch import Array, Params
from dasd_jax.mesh import TRAIN, gather, spec
from dasd_jax.model import param_table
from dasd_jax.model.config import ModelConfig
from dasd_jax.model.rope import rotate
from dasd_jax.quantised import Quantised, quantise
from dasd_jax.vocab import EXACT


def apply_layer(
    config: ModelConfig, weights: Params, x: Array, rope: tuple[Array, Array], attention: Callable
) -> tuple[Array, object]:
    """The residual stream f32[rows, S, D] after one layer, and the second result of `attention`.

    Args:
        weights: one layer's, from `table`, `join_weights` or `quantise_weights`.
        rope: from `rope_table`.
        attention: (query f32[rows, S, N, H], key and value f32[rows, S, K, H]) → ([rows, S, N, H], anything).
    """
    weights = gather_weights(config, weights)
    query, key, value = _qkv(config, weights, x, rope)
    seen, new = attention(query, key, value)
    flat = (*seen.shape[:2], config.num_heads * config.head_dim)
    mixed = _project(jax.lax.reshape(seen, flat, out_sharding=spec("rows", None, "heads")), weights["o"])
    x = x + (rms_norm(config, mixed, weights["attn_norm"]) if config.post_norm else mixed)
    return x + _mlp(config, weights, x), new


def rms_norm(config: ModelConfig, x: Array, scale: Array, axes=-1) -> Array:
    """RMS normalisation of float32 x over `axes`, times `scale`."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=axes, keepdims=True) + config.norm_eps) * scale


def _qkv(config: ModelConfig, weights: Params, x: Array, rope: tuple[Array, Array]) -> tuple[Array, Array, Array]:
    if not config.post_norm:
        x = rms_norm(config, x, weights["attn_norm"])
    heads = _product("rsd,dkmh->rskmh", x, weights["qkv"])
    if config.qkv_bias:
        heads = heads + weights["qkv_bias"]
    query, key, value = heads[..., :-2, :], heads[..., -2, :], heads[..., -1, :]
    shape = (*x.shape[:2], config.num_heads, config.head_dim)
    query = jax.lax.reshape(query, shape, out_sharding=spec("rows", None, "heads", None))
    if config.qk_norm != "none":
        axes = (-2, -1) if config.qk_norm == "all" else -1
        query, key = (
            rms_norm(config, part, weights[f"{name}_norm"], axes) for name, part in (("q", query), ("k", key))
        )
    return rotate(query, *rope), rotate(key, *rope), value


def _mlp(config: ModelConfig, weights: Params, x: Array) -> Array:
    if not config.post_norm:
        x = rms_norm(config, x, weights["mlp_norm"])
    gate_up = _product("rsd,duf->rsuf", x, weights["gate_up"])
    out = _project(_gated(gate_up, weights["down"].dtype), weights["down"])
    return rms_norm(config, out, weights["mlp_norm"]) if config.post_norm else out


def _gated(gate_up: Array, dtype: jnp.dtype) -> Array:
    """silu(gate) · up: f32[rows, S, 2, F] → f32[rows, S, F]; `dtype` is what its backward pass stores of the argument.

    The widest array of a layer: in float32 it would decide how long a response may be.
    """

    def activation(gate: Array, up: Array) -> Array:
        return jax.nn.silu(gate) * up

    def backward(kept: Array, gradient: Array) -> tuple[Array]:
        kept = kept.astype(jnp.float32)
        # Put together here: JAX's own rule for the two halves would pad both to the whole and add them.
        return (jnp.stack(jax.vjp(activation, kept[..., 0, :], kept[..., 1, :])[1](gradient), axis=-2),)

    stored = jax.custom_vjp(lambda gate_up: activation(gate_up[..., 0, :], gate_up[..., 1, :]))
    stored.defvjp(lambda gate_up: (stored(gate_up), gate_up.astype(dtype)), backward)
    return stored(gate_up)


def _project(x: Array, weight: Array | Quantised) -> Array:
    """A product with output width D, summed over the devices of the tensor axis.

    Each of several devices sends its part of the sum in the dtype of the weight: half the bytes of float32.
    """
    alone = jax.sharding.get_abstract_mesh().shape[TRAIN["heads"]] == 1
    return _product("rsf,fd->rsd", x, weight, spec("rows", None, None), jnp.float32 if alone else weight.dtype)


def _product(
    equation: str, x: Array, weight: Array | Quantised, out_sharding=None, result: jnp.dtype = jnp.float32
) -> Array:
    """einsum of x, rounded to the dtype of the weight, and the weight: f32, summed in float32 on each device.

    The backward pass is that of an einsum in the dtype of the weight: by JAX's own rule for a float32 result its
    products would have one float32 argument, which a TPU multiplies at a fraction of its speed.

    Args:
        weight: where it is quantised, in decoding, the product is multiplied by its scales.
        result: dtype to which a device rounds its sum.
    """
    if isinstance(weight, Quantised):
        return _product(equation, x, weight.unscaled, out_sharding, result) * weight.scale
    narrow = partial(jnp.einsum, equation, precision=EXACT, out_sharding=out_sharding)
    if weight.dtype == jnp.float32:
        return narrow(x, weight)

    def forward(x: Array, weight: Array):
        x = x.astype(weight.dtype)
        return narrow(x, weight, preferred_element_type=result).astype(jnp.float32), (x, weight)

    def backward(arguments, gradient: Array):
        by_x, by_weight = jax.vjp(narrow, *arguments)[1](gradient.astype(weight.dtype))
        return by_x.astype(x.dtype), by_weight

    product = jax.custom_vjp(lambda x, weight: forward(x, weight)[0])
    product.defvjp(forward, backward)
    return product(x, weight)


def gather_weights(config: ModelConfig, weights: Params) -> Params:
    """One layer's weights for `apply_layer`: matrices in the compute dtype, gathered over the model width, joined."""
    if "qkv" in weights:
        return weights
    # Joined before the gather: the backward pass then reduce-scatters the products' gradients with nothing in between.
    narrow = {name: param_table.rounded(config, f"layers/{name}", x) for name, x in weights.items()}
    joined = join_weights(config, narrow, TRAIN)
    layout = {
        "qkv": ("embed", "heads", None, None),
        "gate_up": ("embed", None, "ff"),
        "o": ("heads", "embed"),
        "down": ("ff", "embed"),
    }
    return joined | {name: gather(joined[name], *axes) for name, axes in layout.items()}


def join_weights(config: ModelConfig, weights: Params, rules: dict) -> Params:
    """Weights with the same input joined into one matrix, laid out by `rules`; of one layer or of a stack of layers.

    "qkv" [..., D, K, N/K + 2, H]: for each key head its queries, the key and the value, so that a split over heads
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


# The axis of a joined matrix that its product sums over.
_SUMMED = {"qkv": -4, "gate_up": -3, "o": -2, "down": -2}


def quantise_weights(joined: Params) -> Params:
    """The result of `join_weights` with its matrices in int8 and a scale for each output; norms and biases stay."""
    return joined | {name: quantise(joined[name], axis) for name, axis in _SUMMED.items()}


def _by_kv_head(config: ModelConfig, lead: tuple, rules: dict, query: Array, key: Array, value: Array) -> Array:
    """Query [..., N, H], key and value [..., K, H] → [..., K, N/K + 2, H]; `lead` names the leading axes."""
    heads = (config.num_kv_heads, config.num_heads // config.num_kv_heads, config.head_dim)
    out_sharding = spec(*lead, "heads", None, None, rules=rules)
    query = jax.lax.reshape(query, (*query.shape[:-2], *heads), out_sharding=out_sharding)
    return jnp.concatenate([query, key[..., None, :], value[..., None, :]], axis=-2)
