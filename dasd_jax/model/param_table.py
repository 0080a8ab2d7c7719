"""The table of parameters: one row for each, with shape, logical axes, initialiser and checkpoint name.

Initialisation, shardings, restoring and conversion all derive from it; a parameter that is not in it is an error.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh

from dasd_jax.batch import Array, Params
from dasd_jax.mesh import ROLLOUT, TRAIN, check_divides, named, reshard
from dasd_jax.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter.

    Attributes:
        shape: input dimensions before output dimensions; per-layer parameters are stacked on a leading axis of L.
        axes: the logical axis of each dimension, None if it is never split.
        std: standard deviation of the normal initialiser; 0 means ones for norms and zeros for biases.
        name: its name in a Hugging Face checkpoint, with `{}` for the index of the layer.
        inputs: how many dimensions of `layer_shape` are inputs of a matrix product; 0 if it is not a weight matrix.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    std: float
    name: str
    inputs: int = 0

    @property
    def matrix(self) -> bool:
        """Whether it is an argument of products."""
        return bool(self.inputs) or "vocab" in self.axes

    @property
    def stacked(self) -> bool:
        """Whether it is one tensor per layer in a checkpoint and one stack of them here."""
        return "{}" in self.name

    @property
    def tensor_names(self) -> list[str]:
        """Its names in a checkpoint, one per layer if it is stacked."""
        return [self.name.format(i) for i in range(self.shape[0])] if self.stacked else [self.name]

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """The shape without the axis of layers."""
        return self.shape[1:] if self.stacked else self.shape

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of one of its tensors in a checkpoint: [outputs, inputs] for weight matrices, biases flat."""
        shape = self.layer_shape
        if self.inputs:
            return (math.prod(shape[self.inputs :]), math.prod(shape[: self.inputs]))
        return (math.prod(shape),) if self.stacked else shape


def table(config: ModelConfig) -> dict[str, Leaf]:
    """Every parameter of the model, keyed by its path in the tree ("layers/q")."""
    c, std = config, 0.02
    out_std = std / (2 * c.num_layers) ** 0.5  # the residual stream is a sum of 2 L outputs
    attn, mlp = "model.layers.{}.self_attn.", "model.layers.{}.mlp."

    rows = {
        "embed": Leaf((c.vocab_size, c.width), ("vocab", "embed"), std, "model.embed_tokens.weight"),
        "final_norm": Leaf((c.width,), (None,), 0.0, "model.norm.weight"),
    }
    if not c.tied:
        rows["unembed"] = Leaf((c.vocab_size, c.width), ("vocab", "embed"), std, "lm_head.weight")

    def layer(path, shape, axes, std, name, inputs=0):
        rows["layers/" + path] = Leaf((c.num_layers, *shape), (None, *axes), std, name, inputs)

    norms = ("input", "post_attention") if not c.post_norm else ("post_attention", "post_feedforward")
    layer("attn_norm", (c.width,), (None,), 0.0, f"model.layers.{{}}.{norms[0]}_layernorm.weight")
    for path, heads in (("q", c.num_heads), ("k", c.num_kv_heads), ("v", c.num_kv_heads)):
        shape, axes = (c.width, heads, c.head_dim), ("embed", "heads", None)
        layer(path, shape, axes, std, f"{attn}{path}_proj.weight", inputs=1)
        if c.qkv_bias:
            layer(f"{path}_bias", shape[1:], axes[1:], 0.0, f"{attn}{path}_proj.bias")
        if c.qk_norm != "none" and path != "v":
            of = slice(1, None) if c.qk_norm == "all" else slice(2, None)
            layer(f"{path}_norm", shape[of], axes[of], 0.0, f"{attn}{path}_norm.weight")
    o_shape, o_axes = (c.num_heads, c.head_dim, c.width), ("heads", None, "embed")
    layer("o", o_shape, o_axes, out_std, f"{attn}o_proj.weight", inputs=2)
    layer("mlp_norm", (c.width,), (None,), 0.0, f"model.layers.{{}}.{norms[1]}_layernorm.weight")
    layer("gate", (c.width, c.ff), ("embed", "ff"), std, f"{mlp}gate_proj.weight", inputs=1)
    layer("up", (c.width, c.ff), ("embed", "ff"), std, f"{mlp}up_proj.weight", inputs=1)
    layer("down", (c.ff, c.width), ("ff", "embed"), out_std, f"{mlp}down_proj.weight", inputs=1)
    return rows


def num_params(config: ModelConfig) -> int:
    """How many numbers the parameters of the model hold."""
    return sum(math.prod(leaf.shape) for leaf in table(config).values())


def tree(leaves: dict[str, object]) -> Params:
    """{"layers/q": x} → {"layers": {"q": x}}."""
    return traverse_util.unflatten_dict(leaves, sep="/")


def shardings(config: ModelConfig, mesh: Mesh, rules: dict = TRAIN) -> Params:
    """The sharding of every parameter.

    Raises:
        UserError: a mesh axis does not divide a dimension that it splits.
    """
    for path, leaf in table(config).items():
        for size, axis in zip(leaf.shape, leaf.axes, strict=True):
            check_divides(mesh, path, size, axis, rules)
    return tree({path: named(mesh, *leaf.axes, rules=rules) for path, leaf in table(config).items()})


def abstract(config: ModelConfig, mesh: Mesh, rules: dict = TRAIN, dtype: str = "float32") -> Params:
    """The parameter tree with shape, dtype and sharding in place of arrays.

    Raises:
        UserError: a mesh axis does not divide a dimension that it splits.
    """
    shapes = tree({path: leaf.shape for path, leaf in table(config).items()})
    return jax.tree.map(
        lambda sharding, shape: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding),
        shardings(config, mesh, rules),
        shapes,
        is_leaf=lambda x: not isinstance(x, dict),
    )


def decoding(config: ModelConfig, mesh: Mesh, weights: str = "compute") -> tuple[Params, Params]:
    """What a rollout reads, abstract: the parameters in the layout for decoding, and the scales of those in int8.

    Args:
        weights: compute | int8, as for `transformer.for_decoding`.
    """
    if weights != "int8":
        return abstract(config, mesh, ROLLOUT, config.compute_dtype), {}
    scales = {}
    for path, leaf in table(config).items():
        if leaf.matrix:
            # One for each output of a product: the dimensions that it sums over are left out.
            outputs = slice(1, 1 + leaf.inputs) if leaf.inputs else slice(1, None)
            shape, axes = list(leaf.shape), list(leaf.axes)
            del shape[outputs], axes[outputs]
            scales[path] = jax.ShapeDtypeStruct(shape, "float32", sharding=named(mesh, *axes, rules=ROLLOUT))
    return abstract(config, mesh, ROLLOUT, "int8"), tree(scales)


def init(config: ModelConfig, mesh: Mesh, seed: int) -> Params:
    """Random float32 parameters, created in their shardings; the values do not depend on the mesh."""

    def make() -> Params:
        leaves = {}
        for index, (path, leaf) in enumerate(table(config).items()):
            if leaf.std:
                key = jax.random.fold_in(jax.random.key(seed), index)
                leaves[path] = leaf.std * jax.random.normal(key, leaf.shape, jnp.float32)
            else:
                leaves[path] = (jnp.zeros if path.endswith("bias") else jnp.ones)(leaf.shape, jnp.float32)
        return tree(leaves)

    return jax.jit(make, out_shardings=shardings(config, mesh))()


def relayout(config: ModelConfig, params: Params, rules: dict) -> Params:
    """The parameters as they are computed with, resharded by `rules`, inside a jitted program."""
    flat, rows = traverse_util.flatten_dict(params, sep="/"), table(config)
    return tree({path: reshard(rounded(config, path, x), *rows[path].axes, rules=rules) for path, x in flat.items()})


def rounded(config: ModelConfig, path: str, x: jax.Array) -> jax.Array:
    """A parameter as it is computed with: matrices in the compute dtype; norms and biases cost nothing in float32."""
    return x.astype(config.compute_dtype) if table(config)[path].matrix else x


@jax.jit
def fingerprint(params: Params) -> Array:
    """A number of the bits of all weights, u32[]: weights that differ anywhere have another, but for one in 2³²."""

    def of(x: Array) -> Array:
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32)  # parameters are float32
        return jnp.sum(bits * (bits >> 7 | 1), dtype=jnp.uint32)

    found = jnp.uint32(0)
    for x in jax.tree.leaves(params):
        found = found * jnp.uint32(1_000_003) + of(x)
    return found
