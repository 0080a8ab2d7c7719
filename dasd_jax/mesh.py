"""The device mesh and the rules that map logical axes to it; the only file that names mesh axes.

    data    rows are split, parameters are copied
    fsdp    rows are split, parameters are split along their model width and gathered layer by layer
    tensor  heads, feed-forward and vocabulary are split

Axes are explicit: a layout that does not fit fails when the program is traced, and not silently on the device.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dasd_jax.errors import UserError
from dasd_jax.fields import Fields, Range, field

AXES = ("data", "fsdp", "tensor")

TRAIN = {"rows": ("data", "fsdp"), "embed": "fsdp", "heads": "tensor", "ff": "tensor", "vocab": "tensor"}
# Decoding reads every parameter once a token: gathered over fsdp beforehand, it costs no traffic in the loop.
ROLLOUT = TRAIN | {"embed": None}


_SIZE = Range(lambda size: size == -1 or size >= 1, "a positive number, or -1")


@dataclasses.dataclass(frozen=True)
class MeshConfig(Fields):
    """Devices along each axis; -1 on one of them takes all that the others leave."""

    group: ClassVar[str] = "mesh"

    data: int = field(1, _SIZE, "devices that split rows and copy parameters")
    fsdp: int = field(-1, _SIZE, "devices that split rows and parameters; -1: all that are left")
    tensor: int = field(1, _SIZE, "devices that split heads, feed-forward and vocabulary")

    def shape(self, num_devices: int) -> tuple[int, int, int]:
        """(data, fsdp, tensor) whose product is num_devices.

        Raises:
            UserError: the sizes cannot multiply to num_devices.
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
    # An axis may be a part of one of the slice's, such as 32 × 2 of a torus of 8 × 8.
    placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def spec(*axes: str | None, rules: dict = TRAIN) -> PartitionSpec:
    """The PartitionSpec of an array whose dimensions carry these logical axes (None = not split).

    Inside `per_shard` the axes that split rows are not there: every array is a shard's own.
    """
    manual = jax.sharding.get_abstract_mesh().manual_axes

    def placed(axis: str | None):
        names = rules.get(axis) if axis else None
        names = (names,) if isinstance(names, str) else names or ()
        names = tuple(name for name in names if name not in manual)
        return names if len(names) > 1 else (names[0] if names else None)

    return PartitionSpec(*map(placed, axes))


def reshard(x: jax.Array, *axes: str | None, rules: dict = TRAIN) -> jax.Array:
    """`x` laid out as `spec(*axes)` says, inside a jitted program."""
    return jax.sharding.reshard(x, spec(*axes, rules=rules))


def gather(x: jax.Array, *axes: str | None) -> jax.Array:
    """A parameter laid out as `spec(*axes)` says, "embed" among them, made whole along it inside a jitted program.

    Its gradient is summed over the devices that split the rows and split again by one reduce-scatter, however often the
    parameter is used: until then it stays a sum that no device has made. What is gathered already stays as it is.
    """
    over, now, dim = _row_splits(), jax.typeof(x).sharding.spec, axes.index("embed")
    if now.reduced or set(over) & set(jax.sharding.get_abstract_mesh().manual_axes):
        return x

    def whole(part: jax.Array) -> jax.Array:
        for name in over:
            if now[dim] == name:
                part = jax.lax.all_gather(part, name, axis=dim, tiled=True, to="reduced")
            else:
                part = jax.lax.pcast(part, name, to="reduced")
        return part

    if not over:
        return jax.sharding.reshard(x, spec(*axes, rules=ROLLOUT))
    return jax.shard_map(whole, out_specs=PartitionSpec(*spec(*axes, rules=ROLLOUT), reduced=set(over)))(x)


def left_to_sum(part: jax.Array) -> jax.Array:
    """Inside a `shard_map` over all axes: a device's part of a gradient of what `gather` returned."""
    over = _row_splits()
    return jax.lax.pcast(part, over, to="unreduced") if over else jax.lax.psum(part, TRAIN["rows"])


def sum_to_be(*axes: str | None) -> PartitionSpec:
    """Its layout outside: a sum over the rows' devices that is not made."""
    return PartitionSpec(*spec(*axes), unreduced=set(_row_splits()))


def _row_splits() -> tuple[str, ...]:
    """The mesh axes that split rows; none where there is nothing to sum."""
    return TRAIN["rows"] if row_shards(jax.sharding.get_abstract_mesh()) > 1 else ()


def named(mesh: Mesh, *axes: str | None, rules: dict = TRAIN) -> NamedSharding:
    """The same layout as a sharding of `mesh`, for arrays that enter or leave a program."""
    return NamedSharding(mesh, spec(*axes, rules=rules))


def on_mesh(mesh: Mesh, abstract: jax.ShapeDtypeStruct) -> NamedSharding:
    """The sharding of a traced array on real devices: tracing knows the layout, not the devices (None: on each)."""
    return NamedSharding(mesh, abstract.sharding.spec if abstract.sharding else PartitionSpec())


def per_shard(function, in_axes, out_axes):
    """`function` run by every shard of the rows on its own part, each in its own time; heads stay split as they are.

    Args:
        in_axes: for each argument "rows" where its leading axis is split over the shards, None where all of it goes to
            every one of them.
        out_axes: the same for the results.
    """
    in_specs, out_specs = jax.tree.map(
        lambda axis: spec(axis) if axis else spec(), (in_axes, out_axes), is_leaf=lambda x: x is None
    )
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=out_specs, axis_names=set(TRAIN["rows"]), check_vma=False
    )


def per_device(function, in_axes, out_axes):
    """`function` run by every device on its own part of the arrays.

    Args:
        in_axes: for each argument a tuple with the logical axis of each dimension.
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
    """[B, G, ...] → [rows, ...] with rows = B·G: no data moves."""
    shape = (x.shape[0] * x.shape[1], *x.shape[2:])
    return jax.lax.reshape(x, shape, out_sharding=spec("rows", *(None,) * (len(shape) - 1)))


def split_rows(x: jax.Array, group: int, axis: int = 0) -> jax.Array:
    """[rows, ...] → [B, G, ...], the inverse of `merge_rows`, or the same one axis further in."""
    shape = (*x.shape[:axis], x.shape[axis] // group, group, *x.shape[axis + 1 :])
    axes = (*(None,) * axis, "rows", *(None,) * (len(shape) - axis - 1))
    return jax.lax.reshape(x, shape, out_sharding=spec(*axes))


def row_shards(mesh: Mesh) -> int:
    """How many parts the rows of a batch are split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def put_rows(mesh: Mesh, tree):
    """Host arrays with a leading row axis, equal in every process, placed with their rows split over the mesh.

    A process places the rows of its own devices and nothing else.
    """
    return jax.tree.map(lambda x: _place(x, named(mesh, "rows", *(None,) * (np.ndim(x) - 1))), tree)


def replicate(mesh: Mesh, tree):
    """Host arrays, equal in every process, placed whole on every device."""
    return jax.tree.map(lambda x: _place(x, named(mesh)), tree)


def _place(x, sharding: NamedSharding) -> jax.Array:
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def fetch(tree):
    """Arrays of the mesh as NumPy arrays, whole and in every process; all processes have to call it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def check_divides(mesh: Mesh, what: str, size: int, axis: str | None, rules: dict) -> None:
    """Refuses a dimension that the mesh cannot split evenly.

    Raises:
        UserError: naming the mesh axis, its size and the dimension.
    """
    split_over = rules.get(axis) if axis else None
    for name in (split_over,) if isinstance(split_over, str) else split_over or ():
        if size % mesh.shape[name]:
            raise UserError(f"mesh.{name}: {mesh.shape[name]} does not divide the {size} of {what} ({axis})")
