"""Compiles a run for TPUs that are not here: python -m dasd_jax.compile --config=… --topology=v5e:4x4 [--json]

Compiles every program of the run for the chips of a slice, without a TPU and without weights, and prints what each
needs and what bounds it; docs/tpu.md says how to read it. Exit code 1 when something does not fit.

Needs Google's compiler, which is taken from the folder libtpu/ of the environment if it is not installed: make libtpu.
"""

import dataclasses
import difflib
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

from dasd_jax import cli
from dasd_jax.config import Config
from dasd_jax.cost import hlo
from dasd_jax.cost.chips import CHIPS, Chip
from dasd_jax.errors import UserError
from dasd_jax.learner import session
from dasd_jax.learner.programs import Program, programs
from dasd_jax.mesh import make_mesh
from dasd_jax.model.config import ModelConfig, preset

# Where `make libtpu` puts it: installed, it would look for chips whenever JAX starts.
COMPILER = os.path.join(sys.prefix, "libtpu")
_GIB = 2**30
_RELIEF = {
    "re-layout": "mesh.tensor or mesh.fsdp (more chips)",
    "rollout": "rollout.slots (fewer), mesh.tensor (larger)",
    "evaluation": "rollout.slots (fewer), mesh.tensor (larger)",
    "score": "optim.microbatches (more), mesh.tensor (larger), objective.token_chunk (smaller)",
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
        raise UserError("model.preset: empty: expected the architecture's name, since no weights are read")
    mesh = make_mesh(config.mesh, devices)
    with jax.set_mesh(mesh):
        model = session.settle(config, preset(config.model.preset), "tpu")
        rows = []
        for program in programs(config, model, mesh, chip.hbm):
            if not command.flags.json:
                print(f"compiling {program.name} …", file=sys.stderr, flush=True)
            rows.append(measure(program, chip, mesh, model))
    report = _report(command.flags.config, command.flags.topology, config, model, mesh, chip, rows)
    print(json.dumps(report, indent=1) if command.flags.json else markdown(report))
    if not all(row["fits"] for row in rows):
        for row in rows:
            if not row["fits"]:
                print(f"error: {misfit(row, chip)}", file=sys.stderr)
        sys.exit(1)


def open_topology(name: str) -> tuple[Chip, list]:
    """The chips of a slice as the compiler sees them.

    Raises:
        UserError: the compiler is not installed, or there is no such slice.
    """
    generation, _, shape = name.partition(":")
    if generation not in CHIPS:
        raise UserError(f"--topology: {name!r}: expected GENERATION:SHAPE with a generation of {', '.join(CHIPS)}")
    chip = CHIPS[generation]
    if shape not in chip.shapes:
        near = difflib.get_close_matches(shape, chip.shapes, n=3, cutoff=0.0)
        raise UserError(f"--topology: {name!r}: expected such as {', '.join(f'{generation}:{each}' for each in near)}")
    sys.path.append(COMPILER)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("--topology: the TPU compiler is missing: expected libtpu: make libtpu")
    # It looks for chips of this machine and for another process that has them; here it only compiles.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    jax.config.update("jax_platforms", "cpu")
    return chip, topologies.get_topology_desc(platform="tpu", topology_name=name).devices


def measure(program: Program, chip: Chip, mesh: Mesh, model: ModelConfig) -> dict[str, Any]:
    """Compiles a program; bytes are a chip's."""
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
    parameters = sum(sent[kind] for kind in ("all-gather", "reduce-scatter", "all-reduce")) / program.parts
    whole = [one for one in found if one.kind == "all-gather" and f"[{model.vocab_size // tensor(mesh)}," in one.shape]
    needed = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
        + program.beside
    )
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
    return mesh.size // session.row_shards(mesh)


def largest_buffers(message: str) -> list[str]:
    """The first of the buffers that the compiler names when memory does not suffice, or what it says at all."""
    found = re.findall(r"Size: (\S+)(?:\s+Operator: op_name=\"([^\"]*)\")?\s+Shape: (\S+?)\{", message)
    if not found:
        return [re.sub(r"^\w+: (E\d+: \w+: )?", "", message.splitlines()[0])]
    return [
        f"{size} {shape}" + (f" ({'/'.join(name.split('/')[-3:])})" if name else "") for size, name, shape in found[:4]
    ]


def _largest(memory: Any, program: Program) -> list[str]:
    """The parts of what a compiled program takes, the largest first."""
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "resident beside it": program.beside,
    }
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    return [f"{size / _GIB:.2f} GiB {name}" for name, size in ordered]


def misfit(row: dict[str, Any], chip: Chip) -> str:
    """One line on a program that does not fit."""
    return (
        f"{row['program']} does not fit into {chip.hbm / _GIB:.2f} GiB a chip: {'; '.join(row['largest'])}. "
        f"Change {_RELIEF[row['program']]}"
    )


def _report(
    config_name: str, topology: str, config: Config, model: ModelConfig, mesh: Mesh, chip: Chip, rows: list
) -> dict[str, Any]:
    return {
        "config": config_name,
        "topology": topology,
        "chips": mesh.size,
        "parameters": model.num_params,
        "mesh": dict(mesh.shape),
        "batch": dataclasses.asdict(config.rollout) | {"microbatches": config.optim.microbatches},
        "chip": {field: getattr(chip, field) for field in ("flops", "hbm", "hbm_rate", "ici_rate")},
        "programs": rows,
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    batch, chip = report["batch"], report["chip"]
    mesh = ", ".join(f"{name} {size}" for name, size in report["mesh"].items())
    lines = [
        f"### {report['config']} on {report['topology']}: {report['chips']} chips",
        "",
        f"{report['parameters'] / 1e9:.2f} B parameters; mesh {mesh}; {batch['problems']} × {batch['rollouts']} "
        f"responses of up to {batch['max_new_tokens']:,} tokens, {batch['microbatches']} microbatch(es); "
        f"{chip['hbm'] / _GIB:.2f} GiB a chip.",
        "",
        "| program | compile s | arguments | temp | peak | beside | needed | fits | slots | model PFLOP | all-gather "
        "| reduce-scatter | all-reduce | other | × FSDP | unembedding | bound |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["programs"]:
        flops = f"{row['model_flops'] / 1e15:.3g}" if row["model_flops"] else "–"
        start = f"| {row['program']} | {row['compile_s']:.0f} |"
        if "needed" not in row:
            lines.append(f"{start} | | | | | no | {row['slots'] or '–'} | {flops} |" + " |" * 7)
            continue
        sizes = " | ".join(f"{row[name] / _GIB:.2f}" for name in ("arguments", "temp", "peak", "beside", "needed"))
        sent = row["collectives"]
        other = sent["all-to-all"] + sent["collective-permute"]
        traffic = [sent["all-gather"], sent["reduce-scatter"], sent["all-reduce"], other]
        ratio = f"{row['fsdp_ratio']:.2f}" if row["fsdp_ratio"] is not None else "–"
        gathers = f"{row['embedding_gathers']:.0f}" if row["fsdp_ratio"] is not None else "–"
        bound = f"{row['bound']}, {row['seconds'][row['bound']]:.3g} s"
        lines.append(
            f"{start} {sizes} | {'yes' if row['fits'] else 'no'} | {row['slots'] or '–'} | {flops} | "
            + " | ".join(f"{size / _GIB:.2f}" for size in traffic)
            + f" | {ratio} | {gathers} | {bound} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
