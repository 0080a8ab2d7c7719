"""Tensors of weight files streamed to the devices.

Tensors are read one at a time in the order of the files, and each device's part of each goes straight to that device,
so that the host needs memory for one tensor in addition to the parameters of its own devices.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from dasd_jax.batch import Params
from dasd_jax.errors import UserError
from dasd_jax.mesh import named
from dasd_jax.model.config import ModelConfig
from dasd_jax.model.param_table import Leaf, shardings, table, tree

_BLOCK_ROWS = 4096


def place(
    config: ModelConfig,
    mesh: Mesh,
    path: Path,
    found: dict[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, Callable[[tuple[slice, ...]], np.ndarray]]],
) -> Params:
    """The parameters of a model in float32, laid out for training, from tensors that are read one after the other.

    Args:
        path: of the files, for errors.
        found: shape of every tensor in the files, by its Hugging Face name.
        tensors: name of each, and a function that reads the part at a tuple of slices.

    Raises:
        UserError: a parameter is missing, has another shape, or does not belong to the architecture.
    """
    check(config, path, found)
    rows = table(config)
    places = {name: (leaf_path, i) for leaf_path, leaf in rows.items() for i, name in enumerate(leaf.tensor_names)}
    layout = traverse_util.flatten_dict(shardings(config, mesh), sep="/")
    leaves = {
        leaf_path: jax.jit(partial(jnp.zeros, leaf.shape, jnp.float32), out_shardings=layout[leaf_path])()
        for leaf_path, leaf in rows.items()
        if leaf.stacked
    }
    for name, read in tensors:
        leaf_path, layer = places[name]
        leaf = rows[leaf_path]
        axes = leaf.axes[1:] if leaf.stacked else leaf.axes
        tensor = jax.make_array_from_callback(leaf.layer_shape, named(mesh, *axes), partial(_read_part, leaf, read))
        leaves[leaf_path] = _write_layer(leaves[leaf_path], tensor, layer) if leaf.stacked else tensor
    return tree(leaves)


def check(config: ModelConfig, path: Path, found: dict[str, tuple[int, ...]]) -> None:
    """Refuses files whose tensors are not the parameters of the model.

    Args:
        path, found: as in `place`.

    Raises:
        UserError: a parameter is missing, has another shape, or does not belong to the architecture.
    """
    shapes = {name: leaf.stored_shape for leaf in table(config).values() for name in leaf.tensor_names}
    missing, extra = sorted(shapes.keys() - found.keys()), sorted(found.keys() - shapes.keys())
    if missing or extra:
        problem = f"lacks {missing[0]}" if missing else f"contains {extra[0]}, which this architecture does not have"
        raise UserError(f"model.weights: {path} {problem} ({len(missing)} missing, {len(extra)} unexpected)")
    for name, shape in shapes.items():
        if found[name] != shape:
            raise UserError(f"model.weights: {path}: {name} has shape {found[name]}: expected {shape}")


@partial(jax.jit, donate_argnums=0)
def _write_layer(stack: jax.Array, tensor: jax.Array, layer: int) -> jax.Array:
    """The stack with one layer replaced; donated, so that it is updated in place."""
    return jax.lax.dynamic_update_index_in_dim(stack, tensor, layer, 0)


def _read_part(leaf: Leaf, read: Callable, index: tuple[slice, ...]) -> np.ndarray:
    """One device's part of a tensor in float32, shaped like `leaf.layer_shape`.

    Of several dimensions that are flattened into one in the file, only the first is ever split, so that a part is a
    slice in the file too.

    Args:
        read: reads the part of the tensor at a tuple of slices in its `leaf.stored_shape`.
        index: where the part lies in `leaf.layer_shape`.
    """
    shape = leaf.layer_shape
    bounds = [slice(*part.indices(size)[:2]) for part, size in zip(index, shape, strict=True)]

    def flat(dims: range) -> slice:
        inner = math.prod(shape[dim] for dim in dims[1:])
        return slice(bounds[dims[0]].start * inner, bounds[dims[0]].stop * inner)

    here = tuple(bound.stop - bound.start for bound in bounds)
    if leaf.inputs:
        outputs, inputs = range(leaf.inputs, len(shape)), range(leaf.inputs)
        return np.ascontiguousarray(read((flat(outputs), flat(inputs))).T.reshape(here), np.float32)
    if len(leaf.stored_shape) == 1:
        return np.asarray(read((flat(range(len(shape))),)), np.float32).reshape(here)
    # Embedding and unembedding are by far the largest tensors: converted in blocks of rows, they need no second copy.
    values = np.empty(here, np.float32)
    for start in range(0, here[0], _BLOCK_ROWS):
        rows = slice(bounds[0].start + start, min(bounds[0].start + start + _BLOCK_ROWS, bounds[0].stop))
        values[start : start + _BLOCK_ROWS] = read((rows, bounds[1]))
    return values
