"""Compiles a run for a TPU slice, without one: python -m dasd_jax.compile --config=… --topology=v5e:4x4 [--json]

Compiles every program of the run for the chips of a slice, without a TPU and without weights, and prints the memory,
traffic and lower time bound of each; docs/tpu.md explains the table. Exit code 1 if a program does not fit.

Needs Google's TPU compiler, libtpu; if it is not installed, the copy that `make libtpu` downloads is used.
"""

import dataclasses
import importlib.util
import json
import os
import re
import sys
import time
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from dasd_jax import cli, terminal
from dasd_jax.config import Config
from dasd_jax.cost import hlo
from dasd_jax.cost.chips import Chip, slice_of
from dasd_jax.errors import UserError
from dasd_jax.mesh import make_mesh
from dasd_jax.model import param_table
from dasd_jax.model.config import ModelConfig
from dasd_jax.model.presets import preset
from dasd_jax.run import models, setup
from dasd_jax.run.programs import Program, programs, teacher_bytes

# Where `make libtpu` puts it: an installed libtpu would search for chips whenever JAX starts.
COMPILER = os.path.join(sys.prefix, "libtpu")
_GIB = 2**30
_FOR_SCORING = "optim.microbatches (more), mesh.tensor (larger), objective.token_chunk (smaller)"
COLUMNS = (
    "program", "compile s", "arguments", "temp", "peak", "beside", "needed", "fits", "slots", "model PFLOP",
    "all-gather", "reduce-scatter", "all-reduce", "other", "× FSDP", "unembedding", "bound",
)  # fmt: skip
_REMEDIES = {
    "re-layout": "mesh.tensor or mesh.fsdp (more chips)",
    "rollout": "rollout.slots (fewer), mesh.tensor (larger)",
    "evaluation": "rollout.slots (fewer), mesh.tensor (larger)",
    "score": _FOR_SCORING,
    "noise": _FOR_SCORING,
    "probe": _FOR_SCORING,
    "samples": "run.logged_rollouts (fewer), mesh.tensor (larger)",
    "update": "optim.microbatches (more), mesh.tensor (larger), model.remat (full), objective.token_chunk (smaller)",
}


def main(argv: list[str]) -> None:
    """The command."""
    flags = cli.parser(__doc__)
    flags.add_argument(
        "--topology", required=True, metavar="v5e:4x4", help="generation and shape of the slice, in chips"
    )
    flags.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    command = cli.parse(flags, argv)
    chip, devices = open_topology(command.flags.topology)
    config = command.config
    if not config.model.preset:
        raise UserError("model.preset: empty: expected the architecture's name, since weights are not read")
    mesh = make_mesh(config.mesh, devices)
    with jax.set_mesh(mesh):
        model = models.configured(config, preset(config.model.preset), "tpu")
        report = _report(command.flags.config, command.flags.topology, config, model, mesh, chip)
        console = terminal.console()
        console.quiet = command.flags.json
        if console.is_terminal:
            terminal.say(console, f"{title(report)}\n{about(report)}\n")
        else:
            terminal.show(console, heading(report))
        for program in programs(config, model, mesh, chip.hbm):
            row = measure(program, chip, mesh, model)
            report["programs"].append(row)
            # Which columns fit beside each other is known after the last row.
            terminal.show(console, progress(row) if console.is_terminal else line(row))
    if command.flags.json:
        print(json.dumps(report, indent=1))
    elif console.is_terminal:
        rows = [cells(row) for row in report["programs"]]
        terminal.show(console, f"\n{terminal.table(COLUMNS, rows, terminal.width_of(console))}")
    misfits = [misfit(row, chip) for row in report["programs"] if not row["fits"]]
    for each in misfits:
        print(f"error: {each}", file=sys.stderr)
    if misfits:
        sys.exit(1)


def open_topology(name: str) -> tuple[Chip, list]:
    """The chip and the compile-only devices of a slice.

    Raises:
        UserError: the compiler is not installed, or there is no such slice.
    """
    chip, _ = slice_of(name)
    sys.path.append(COMPILER)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("--topology: the TPU compiler libtpu is missing: run `make libtpu`")
    # Compile only: skip the search for local chips and for other processes that use them. The last two replace values
    # from Google's metadata server, without which libtpu logs errors; --topology determines the devices.
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    }
    jax.config.update("jax_platforms", "cpu")
    return chip, topologies.get_topology_desc(platform="tpu", topology_name=name).devices


def measure(program: Program, chip: Chip, mesh: Mesh, model: ModelConfig) -> dict[str, Any]:
    """Compiles a program and measures it; bytes are per chip."""
    started = time.monotonic()
    row = {"program": program.name, "slots": program.slots, "model_flops": program.flops}
    try:
        compiled = program.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return row | {"fits": False, "compile_s": time.monotonic() - started, "largest": largest_buffers(str(error))}
    memory, seconds = compiled.memory_analysis(), time.monotonic() - started
    found = hlo.collectives(compiled.as_text())
    sent = hlo.totals(found, steps=program.steps)
    # Collectives within a tensor group reduce activations; all others move parameters and gradients.
    tensor_group = set(range(tensor(mesh)))
    of_parameters = hlo.totals([one for one in found if not set(one.group) <= tensor_group], steps=program.steps)
    parameters = sum(of_parameters[kind] for kind in ("all-gather", "reduce-scatter", "all-reduce")) / program.parts
    whole = [one for one in found if one.kind == "all-gather" and f"[{model.vocab_size // tensor(mesh)}," in one.shape]
    # The compiler rejects a program that alone exceeds the chip's memory, but does not know of other resident arrays.
    needed = memory.peak_memory_in_bytes + memory.generated_code_size_in_bytes + program.beside
    seconds_of = {
        "compute": program.flops / mesh.size / chip.flops,
        "HBM": program.traffic / chip.hbm_rate,
        "interconnect": sum(sent.values()) / chip.ici_rate,
    }
    return row | {
        "compile_s": seconds,
        "arguments": memory.argument_size_in_bytes,
        "temp": memory.temp_size_in_bytes,
        "peak": memory.peak_memory_in_bytes,
        "beside": program.beside,
        "needed": needed,
        "fits": needed <= chip.hbm,
        "largest": [] if needed <= chip.hbm else _largest(memory, program),
        "collectives": sent,
        "fsdp_ratio": parameters / program.fsdp_minimum if program.fsdp_minimum else None,
        "embedding_gathers": sum(one.times for one in whole) / program.parts,
        "seconds": seconds_of,
        "bound": max(seconds_of, key=seconds_of.get),
    }


def tensor(mesh: Mesh) -> int:
    """Devices that split the vocabulary."""
    return mesh.size // setup.row_shards(mesh)


def largest_buffers(message: str) -> list[str]:
    """The largest buffers in the compiler's out-of-memory message, or its first line if it names none."""
    found = re.findall(r"Size: (\S+)(?:\s+Operator: op_name=\"([^\"]*)\")?\s+Shape: (\S+?)\{", message)
    if not found:
        return [re.sub(r"^\w+: (E\d+: \w+: )?", "", message.splitlines()[0])]
    return [
        f"{size} {shape}" + (f" ({'/'.join(name.split('/')[-3:])})" if name else "") for size, name, shape in found[:4]
    ]


def _largest(memory: Any, program: Program) -> list[str]:
    """The parts of the memory that a compiled program needs, largest first."""
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "temporaries and results": memory.peak_memory_in_bytes - memory.argument_size_in_bytes,
        "other resident arrays": program.beside,
    }
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    return [f"{size / _GIB:.2f} GiB {name}" for name, size in ordered]


def misfit(row: dict[str, Any], chip: Chip) -> str:
    """One line for a program that does not fit."""
    return (
        f"{row['program']} does not fit into {chip.hbm / _GIB:.2f} GiB per chip: {'; '.join(row['largest'])}. "
        f"Change {_REMEDIES[row['program']]}"
    )


def _report(
    config_name: str, topology: str, config: Config, model: ModelConfig, mesh: Mesh, chip: Chip
) -> dict[str, Any]:
    return {
        "config": config_name,
        "topology": topology,
        "chips": mesh.size,
        "parameters": param_table.num_params(model),
        "mesh": dict(mesh.shape),
        "teachers": teacher_bytes(config, model, mesh),
        "batch": dataclasses.asdict(config.rollout) | {"microbatches": config.optim.microbatches},
        "chip": {field: getattr(chip, field) for field in ("flops", "hbm", "hbm_rate", "ici_rate")},
        "programs": [],
    }


def _copies(teachers: dict[str, int]) -> str:
    """What the copies of the weights that teachers read take."""
    if not teachers:
        return "Teachers read the live weights."
    sizes = ", ".join(f"{policy} {size / _GIB:.2f} GiB" for policy, size in teachers.items())
    return f"Copies of the weights for teachers, a chip, part of `beside` or `arguments`: {sizes}."


def _in_int8(batch: dict[str, Any]) -> str:
    """What rollouts are rounded to, where it is not the compute dtype."""
    names = [name for name in ("weights", "cache") if batch[name] == "int8"]
    return f" Rollouts with {' and '.join(names)} in int8." if names else ""


def title(report: dict[str, Any]) -> str:
    """What is compiled for what."""
    return f"{report['config']} on {report['topology']}: {report['chips']} chips"


def about(report: dict[str, Any]) -> str:
    """The sizes that the rows depend on."""
    batch, chip = report["batch"], report["chip"]
    mesh = ", ".join(f"{name} {size}" for name, size in report["mesh"].items())
    return (
        f"{report['parameters'] / 1e9:.2f} B parameters; mesh {mesh}; {batch['problems']} × {batch['rollouts']} "
        f"responses of up to {batch['max_new_tokens']:,} tokens, {batch['microbatches']} microbatch(es); "
        f"{chip['hbm'] / _GIB:.2f} GiB a chip. {_copies(report['teachers'])}{_in_int8(batch)}"
    )


def heading(report: dict[str, Any]) -> str:
    """What stands above the rows in a file, as Markdown."""
    head = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    return "\n".join([f"### {title(report)}", "", about(report), "", *head])


def line(row: dict[str, Any]) -> str:
    """One program as a row of the table, as Markdown."""
    return f"| {' | '.join(cells(row))} |"


def progress(row: dict[str, Any]) -> str:
    """One program as a line that says that it is compiled."""
    return f"{row['program']}: compiled in {row['compile_s']:.0f} s" + ("" if row["fits"] else ", does not fit")


def cells(row: dict[str, Any]) -> list[str]:
    """One program's cell of each column."""
    flops = three_digits(row["model_flops"] / 1e15) if row["model_flops"] else "–"
    slots, seconds = str(row["slots"] or "–"), f"{row['compile_s']:.0f}"
    if "needed" not in row:
        return [row["program"], seconds, "", "", "", "", "", "no", slots, flops] + [""] * 7
    sizes = [f"{row[name] / _GIB:.2f}" for name in ("arguments", "temp", "peak", "beside", "needed")]
    sent = row["collectives"]
    other = sent["all-to-all"] + sent["collective-permute"]
    traffic = [sent["all-gather"], sent["reduce-scatter"], sent["all-reduce"], other]
    counted = row["fsdp_ratio"] is not None
    return [
        row["program"],
        seconds,
        *sizes,
        "yes" if row["fits"] else "no",
        slots,
        flops,
        *(f"{size / _GIB:.2f}" for size in traffic),
        f"{row['fsdp_ratio']:.2f}" if counted else "–",
        f"{row['embedding_gathers']:.3g}" if counted else "–",
        f"{row['bound']}, {three_digits(row['seconds'][row['bound']])} s",
    ]


def three_digits(x: float) -> str:
    """A number with three significant digits, a large one in whole numbers."""
    return f"{x:,.0f}" if x >= 1000 else f"{x:.3g}"


if __name__ == "__main__":
    cli.run(main)
