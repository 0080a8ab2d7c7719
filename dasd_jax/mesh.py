"""The device mesh and the rules that map logical axes to it; the only file that names mesh axes.

    data    rows are sharded, parameters are replicated
    fsdp    rows are sharded, parameters are sharded along the model width and gathered layer by layer
    tensor  heads, feed-forward and vocabulary are sharded

Axes are explicit: an inconsistent sharding is an error when the program is traced.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from dasd_jax.errors import UserError
from dasd_jax.fields import Fields, Range, field

AXES = ("data", "fsdp", "tensor")

TRAIN = {"rows": ("data", "fsdp"), "embed": "fsdp", "heads": "tensor", "ff": "tensor", "vocab": "tensor"}
# Decoding reads every parameter once per token: gathered over fsdp beforehand, the loop needs no communication.
ROLLOUT = TRAIN | {"embed": None}


_SIZE = Range(lambda size: size == -1 or size >= 1, "a positive number, or -1")


@dataclasses.dataclass(frozen=True)
class MeshConfig(Fields):
    """Devices along each axis; -1 on one axis takes all remaining devices."""

    group: ClassVar[str] = "mesh"

    data: int = field(1, _SIZE, "devices that shard rows and replicate parameters")
    fsdp: int = field(-1, _SIZE, "devices that shard rows and parameters; -1: all remaining ones")
    tensor: int = field(1, _SIZE, "devices that shard heads, feed-forward and vocabulary")

    def shape(self, num_devices: int) -> tuple[int, int, int]:
        """(data, fsdp, tensor) with product num_devices.

        Raises:
            UserError: the product cannot be num_devices.
        """
        sizes = [self.data, self.fsdp, self.tensor]
        known = math.prod(size for size in sizes if size != -1)
        if sizes.count(-1) == 1 and known > 0 and num_devices % known == 0:
            sizes[sizes.index(-1)] = num_devices // known
        if math.prod(sizes) != num_devices or min(sizes) < 1:
            raise UserError(
                f"mesh: data={self.data} fsdp={self.fsdp} tensor={self.tensor} does not fit {num_devices} device(s): "
                f"expected positive sizes whose product is {num_devices}, at most one of them -1"
            )
        return tuple(sizes)


def make_mesh(config: MeshConfig, devices=None) -> Mesh:
    """The explicit (data, fsdp, tensor) mesh over `devices` (default: all of them)."""
    devices = jax.devices() if devices is None else devices
    shape = config.shape(len(devices))
    # A mesh axis may split a physical axis, as for 32 × 2 on a torus of 8 × 8.
    placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def abstract_mesh(config: MeshConfig, devices: int) -> AbstractMesh:
    """The same over so many devices that need not be there: for shapes and shardings, not for computing."""
    return AbstractMesh(config.shape(devices), AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def spec(*axes: str | None, rules: dict = TRAIN) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axes (None = not sharded).

    Inside `per_shard` the row axes are manual and left out: every array is local to its shard.
    """
    manual = jax.sharding.get_abstract_mesh().manual_axes

    def placed(axis: str | None):
        names = rules.get(axis) if axis else None
        names = (names,) if isinstance(names, str) else names or ()
        names = tuple(name for name in names if name not in manual)
        return names if len(names) > 1 else (names[0] if names else None)

    return PartitionSpec(*map(placed, axes))


def reshard(x: jax.Array, *axes: str | None, rules: dict = TRAIN) -> jax.Array:
    """`x` resharded to `spec(*axes)`, inside a jitted program."""
    return jax.sharding.reshard(x, spec(*axes, rules=rules))


def gather(x: jax.Array, *axes: str | None) -> jax.Array:
    """All-gathers a parameter sharded as `spec(*axes)` along its "embed" axis, inside a jitted program.

    Its gradient is reduce-scattered over the row axes once, however often the parameter is used: until then it stays
    unreduced. A parameter that is already gathered is returned as it is.
    """
    over, now, dim = _row_splits(), jax.typeof(x).sharding.spec, axes.index("embed")
    if now.reduced or set(over) & set(jax.sharding.get_abstract_mesh().manual_axes):
        return x

    def gathered(part: jax.Array) -> jax.Array:
        for name in over:
            if now[dim] == name:
                part = jax.lax.all_gather(part, name, axis=dim, tiled=True, to="reduced")
            else:
                part = jax.lax.pcast(part, name, to="reduced")
        return part

    if not over:
        return jax.sharding.reshard(x, spec(*axes, rules=ROLLOUT))
    return jax.shard_map(gathered, out_specs=PartitionSpec(*spec(*axes, rules=ROLLOUT), reduced=set(over)))(x)


def left_to_sum(part: jax.Array) -> jax.Array:
    """Inside a `shard_map` over all axes: marks a device's partial gradient of a gathered parameter as unreduced."""
    over = _row_splits()
    return jax.lax.pcast(part, over, to="unreduced") if over else jax.lax.psum(part, TRAIN["rows"])


def sum_to_be(*axes: str | None) -> PartitionSpec:
    """The PartitionSpec of such a gradient outside the `shard_map`: unreduced over the row axes."""
    return PartitionSpec(*spec(*axes), unreduced=set(_row_splits()))


def _row_splits() -> tuple[str, ...]:
    """The mesh axes that shard rows; empty if there is one shard and nothing to reduce."""
    return TRAIN["rows"] if row_shards(jax.sharding.get_abstract_mesh()) > 1 else ()


def named(mesh: Mesh, *axes: str | None, rules: dict = TRAIN) -> NamedSharding:
    """`spec(*axes)` as a NamedSharding of `mesh`, for inputs and outputs of a program."""
    return NamedSharding(mesh, spec(*axes, rules=rules))


def on_mesh(mesh: Mesh, abstract: jax.ShapeDtypeStruct) -> NamedSharding:
    """The sharding of a traced array on `mesh`: tracing knows the spec, not the devices (None: replicated)."""
    return NamedSharding(mesh, abstract.sharding.spec if abstract.sharding else PartitionSpec())


def per_shard(function, in_axes, out_axes):
    """`function` mapped over the row shards, which need not run in lockstep; the tensor axis stays automatic.

    Args:
        in_axes: for each argument "rows" if its leading axis is sharded over rows, None if it is replicated.
        out_axes: the same for the results.
    """
    in_specs, out_specs = jax.tree.map(
        lambda axis: spec(axis) if axis else spec(), (in_axes, out_axes), is_leaf=lambda x: x is None
    )
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=out_specs, axis_names=set(TRAIN["rows"]), check_vma=False
    )


def per_device(function, in_axes, out_axes):
    """`function` mapped over all devices, on local shards.

    Args:
        in_axes: for each argument a tuple of the logical axes of its dimensions.
        out_axes: the same for the result.
    """
    manual = jax.sharding.get_abstract_mesh().manual_axes
    in_specs = tuple(spec(*axes) for axes in in_axes)
    return jax.shard_map(
        function,
        in_specs=in_specs,
        out_specs=spec(*out_axes),
        axis_names=set(AXES) - set(manual),
        check_vma=False,
    )


def merge_rows(x: jax.Array) -> jax.Array:
    """[B, G, ...] → [rows, ...] with rows = B·G, without data movement."""
    shape = (x.shape[0] * x.shape[1], *x.shape[2:])
    return jax.lax.reshape(x, shape, out_sharding=spec("rows", *(None,) * (len(shape) - 1)))


def split_rows(x: jax.Array, group: int, axis: int = 0) -> jax.Array:
    """[rows, ...] → [B, G, ...], the inverse of `merge_rows`; `axis` is the position of rows."""
    shape = (*x.shape[:axis], x.shape[axis] // group, group, *x.shape[axis + 1 :])
    axes = (*(None,) * axis, "rows", *(None,) * (len(shape) - axis - 1))
    return jax.lax.reshape(x, shape, out_sharding=spec(*axes))


def row_shards(mesh: Mesh) -> int:
    """The number of shards of the row axis."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def put_rows(mesh: Mesh, tree):
    """Places host arrays, equal in every process, with their leading row axis sharded over the mesh.

    Each process places only the rows of its own devices.
    """
    return jax.tree.map(lambda x: _place(x, named(mesh, "rows", *(None,) * (np.ndim(x) - 1))), tree)


def replicate(mesh: Mesh, tree):
    """Places host arrays, equal in every process, replicated on every device."""
    return jax.tree.map(lambda x: _place(x, named(mesh)), tree)


def _place(x, sharding: NamedSharding) -> jax.Array:
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def fetch(tree):
    """Full NumPy copies of sharded arrays in every process. Collective: every process must call it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def check_divides(mesh: Mesh, what: str, size: int, axis: str | None, rules: dict) -> None:
    """Checks that the mesh divides a dimension evenly.

    Raises:
        UserError: it does not; names the mesh axis, its size and the dimension.
    """
    split_over = rules.get(axis) if axis else None
    for name in (split_over,) if isinstance(split_over, str) else split_over or ():
        if size % mesh.shape[name]:
            raise UserError(f"mesh.{name}: {mesh.shape[name]} does not divide the {size} of {what} ({axis})")
