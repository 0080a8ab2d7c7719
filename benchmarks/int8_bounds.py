"""What a rollout takes at least on the slices of docs/tpu.md, in the compute dtype and in int8; writes its table there.

python -m benchmarks.int8_bounds

Counted from the architecture, nothing is compiled: the larger of matrix products at the chip's peak rate and bytes at
its memory's, every response at full length in as many slots as fit.
"""

import datetime

import jax

from benchmarks.marks import put
from benchmarks.tpu_tables import PAGE, SLICES
from dasd_jax import cli
from dasd_jax.compile import three_digits
from dasd_jax.cost.chips import slice_of
from dasd_jax.mesh import abstract_mesh
from dasd_jax.model.presets import preset
from dasd_jax.run import models
from dasd_jax.run.programs import programs

KINDS = {"compute": (), "int8 weights": ("weights",), "int8 cache": ("cache",), "both": ("weights", "cache")}


def rollout_of(argument: str, topology: str, in_int8: tuple[str, ...]) -> tuple[int, float]:
    """(slots a chip, lower bound in seconds) of the rollout program of a flagship."""
    flags = [f"--config=configs/qwen_math.py:{argument}", *(f"--config.rollout.{name}=int8" for name in in_int8)]
    config = cli.parse(cli.parser(""), flags, quiet=True).config
    chip, count = slice_of(topology)
    mesh = abstract_mesh(config.mesh, count)
    with jax.sharding.use_abstract_mesh(mesh):
        model = models.configured(config, preset(config.model.preset), "tpu")
        program = next(each for each in programs(config, model, mesh, chip.hbm) if each.name == "rollout")
    return program.slots, max(program.flops / count / chip.flops, program.traffic / chip.hbm_rate)


def main() -> None:
    """Writes the table."""
    lines = [f"| slice | {' | '.join(KINDS)} | both / compute |", "|---" * (len(KINDS) + 2) + "|"]
    for argument, topology in SLICES.items():
        found = [rollout_of(argument, topology, in_int8) for in_int8 in KINDS.values()]
        cells = [f"{three_digits(seconds)} s, {slots} slots" for slots, seconds in found]
        lines.append(f"| {argument} | {' | '.join(cells)} | {found[-1][1] / found[0][1]:.2f} |")
    put(PAGE, "int8", "\n".join([*lines, "", f"`python -m benchmarks.int8_bounds`, {datetime.date.today()}."]))


if __name__ == "__main__":
    main()
