"""Where every parameter of every preset lies on the meshes that docs/tpu.md uses, held to files that a person can read.

A layout that is meant to change is written anew by `python -m tests.model.test_golden_layouts`.
"""

from pathlib import Path

import jax
import pytest
from flax import traverse_util
from jax.sharding import AbstractMesh, AxisType

from dasd_jax.errors import UserError
from dasd_jax.mesh import AXES, ROLLOUT, TRAIN
from dasd_jax.model import param_table
from dasd_jax.model.presets import PRESETS, preset

FOLDER = Path(__file__).parent / "layouts"
MESHES = ((1, 8, 1), (1, 16, 1), (1, 32, 1), (1, 32, 2), (2, 4, 2))


def layout(name: str) -> str:
    """One preset on every mesh: leaf, shape, and for training and for decoding the spec and a device's part."""
    lines = [
        f"{name}, {param_table.num_params(preset(name)):,} parameters",
        f"  {'leaf':18} {'shape':18} {'training':28} {'of a device':22}  {'decoding':28} of a device",
    ]
    for shape in MESHES:
        mesh = AbstractMesh(shape, AXES, axis_types=(AxisType.Explicit,) * len(AXES))
        lines += ["", ", ".join(f"{axis} {size}" for axis, size in zip(AXES, shape, strict=True))]
        try:
            trees = [param_table.abstract(preset(name), mesh, rules) for rules in (TRAIN, ROLLOUT)]
        except UserError as error:
            lines.append(f"  {error}")
            continue
        training, decoding = (traverse_util.flatten_dict(tree, sep="/") for tree in trees)
        for path, leaf in training.items():
            both = "  ".join(f"{_spec(one):28} {_sizes(one):22}" for one in (leaf, decoding[path]))
            lines.append(f"  {path:18} {' '.join(map(str, leaf.shape)):18} {both}".rstrip())
    return "\n".join(lines) + "\n"


def _spec(leaf: jax.ShapeDtypeStruct) -> str:
    return "(" + ", ".join(name or "-" for name in leaf.sharding.spec) + ")"


def _sizes(leaf: jax.ShapeDtypeStruct) -> str:
    return " ".join(map(str, leaf.sharding.shard_shape(leaf.shape)))


@pytest.mark.parametrize("name", PRESETS)
def test_layouts_are_those_of_the_files(name):
    assert layout(name) == (FOLDER / f"{name}.txt").read_text()


if __name__ == "__main__":
    for each in PRESETS:
        (FOLDER / f"{each}.txt").write_text(layout(each))
