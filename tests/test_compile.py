"""The compile command: what it refuses, what it says of what does not fit, and a tiny run on the smallest slice."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from dasd_jax import cli
from dasd_jax import compile as command
from dasd_jax.cost.chips import Chip

ROOT = Path(__file__).parents[1]
TINY = "--config=configs/qwen_math.py:tiny"
CHIP = Chip(flops=1e12, hbm=2**30, hbm_rate=1e11, ici_rate=1e10, shapes=("1x1",))
PROGRAMS = ["re-layout", "rollout", "evaluation", "score", "noise", "samples", "update"]
NEAR = "--topology: 'v5e:3x4': expected a known slice, nearest are v5e:4x4, v5e:2x4, v5e:8x8"


@pytest.fixture
def say(monkeypatch, capsys):
    """Exit code, stdout and stderr of the command in this process, on the CPU devices in the place of a slice."""

    def run(*argv, chip=None, devices=1):
        if chip is not None:
            monkeypatch.setattr(command, "open_topology", lambda name: (chip, jax.devices()[:devices]))
        monkeypatch.setattr(sys, "argv", ["compile", *argv])
        monkeypatch.setattr(sys, "path", list(sys.path))
        code = 0
        try:
            cli.run(command.main)
        except SystemExit as stopped:
            code = stopped.code
        return code or 0, *capsys.readouterr()

    return run


def test_what_a_person_has_to_mend_is_one_line(say, monkeypatch):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    for args, expected in (
        ([TINY, "--topology=v5e:3x4"], NEAR),
        ([TINY, "--topology=v4:2x2x2"], "--topology: 'v4:2x2x2': expected GENERATION:SHAPE with a generation of v5e"),
        ([TINY, "--topology=v5e:2x2"], "--topology: the TPU compiler libtpu is missing: run `make libtpu`"),
        ([TINY], "the following arguments are required: --topology"),
    ):
        code, _, error = say(*args)
        assert code == 2 and error.startswith(f"error: {expected}") and error.count("\n") == 1, error
    code, _, error = say(TINY, "--topology=v5e:1x1", "--config.model.preset=", chip=CHIP)
    assert code == 2 and error.startswith("error: model.preset: empty: expected the architecture's name")


def test_what_does_not_fit_is_named_with_its_parts_and_what_would_help(say):
    """Beside the parameters of 119,168 floats and their two moments, 1.43 MB, no second copy of them fits."""
    chip = Chip(flops=1e12, hbm=1_700_000, hbm_rate=1e11, ici_rate=1e10, shapes=("1x1",))
    code, shown, error = say(TINY, "--topology=v5e:1x1", "--json", "--config.rollout.slots=1", chip=chip)
    report = json.loads(shown)
    rows = {row["program"]: row for row in report["programs"]}
    assert list(rows) == PROGRAMS and code == 1
    assert [name for name, row in rows.items() if not row["fits"]] == ["re-layout", "rollout", "evaluation"]
    (line,) = [line for line in error.splitlines() if line.startswith("error: rollout")]
    assert "does not fit into 0.00 GiB per chip: 0.00 GiB other resident arrays; 0.00 GiB arguments; " in line
    assert line.endswith("Change rollout.slots (fewer), mesh.tensor (larger)")
    for program in PROGRAMS:
        assert ". Change " in command.misfit({"program": program, "largest": []}, chip)
    columns = command.heading(report).splitlines()[-2].count("|")
    assert [command.line(row).count("|") for row in report["programs"]] == [columns] * len(PROGRAMS)


def test_on_a_terminal_the_table_follows_the_last_program_and_folds(say, monkeypatch):
    """What a program takes is known as soon as it is compiled; which columns fit beside each other, after the last."""
    monkeypatch.setattr(command, "programs", lambda *_: [SimpleNamespace(name=name) for name in PROGRAMS])
    monkeypatch.setattr(command, "measure", lambda program, *_: ROW | {"program": program.name})
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    code, shown, _ = say(TINY, "--topology=v5e:1x1", chip=CHIP)
    assert code == 0 and "|" not in shown and max(map(len, shown.split("\n"))) <= 80
    first, *_ = lines = shown.split("\n")
    assert first == "configs/qwen_math.py:tiny on v5e:1x1: 1 chips"
    assert [line for line in lines if "compiled in" in line] == [f"{name}: compiled in 12 s" for name in PROGRAMS]
    blocks = [part.split("\n") for part in shown.split("\n\n") if part.startswith("program ")]
    assert all([line.split()[0] for line in block[2:] if line] == PROGRAMS for block in blocks)
    heads = " ".join(block[0].removeprefix("program") for block in blocks)
    assert heads.split() == " ".join(command.COLUMNS[1:]).split()


# A program as `measure` describes it.
ROW = {
    "slots": 8, "model_flops": 1e15, "compile_s": 12.3, "fits": True, "needed": 2**30, "largest": [],
    **dict.fromkeys(("arguments", "temp", "peak", "beside"), 2**29),
    "collectives": dict.fromkeys(("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute"), 1),
    "fsdp_ratio": 1.0, "embedding_gathers": 2, "seconds": {"compute": 1.5}, "bound": "compute",
}  # fmt: skip


# What the compiler said of an update that 317.5 KiB were missing for.
OUT_OF_MEMORY = """RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory in memory space hbm.

  Largest program allocations in hbm:

  1. Size: 7.00G
     Operator: op_name="jit(train_step)/while/body/closed_call/while/body/checkpoint/add"
     Shape: bf16[28,8,8192,2048]{3,2,1,0:T(8,128)(2,1)}
     Unpadded size: 7.00G

  2. Size: 1.00M
     Shape: u8[1048576]{0}
"""


def test_the_compilers_largest_buffers_are_quoted():
    assert command.largest_buffers(OUT_OF_MEMORY) == [
        "7.00G bf16[28,8,8192,2048] (body/checkpoint/add)",
        "1.00M u8[1048576]",
    ]
    assert command.largest_buffers("RESOURCE_EXHAUSTED: E1: Hbm: more than there is\nmore") == ["more than there is"]


@pytest.mark.skipif(not (Path(sys.prefix) / "libtpu" / "ready").exists(), reason="`make test` installs the compiler")
@pytest.mark.parametrize(
    ("topology", "more"),
    [
        pytest.param("v5e:2x2", ["--config.model.compute_dtype=bfloat16"], id="v5e"),
        # On a torus of three dimensions a reduce-scatter stays one only by a flag of the compiler's.
        pytest.param("v5p:2x2x2", ["--config.rollout.problems=16"], id="v5p", marks=pytest.mark.slow),
    ],
)
def test_a_tiny_run_compiles_for_a_small_slice(topology, more):
    done = subprocess.run(
        [sys.executable, "-m", "dasd_jax.compile", TINY, f"--topology={topology}", "--json",
         "--config.optim.microbatches=1", *more],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    report = json.loads(done.stdout)
    rows = {row["program"]: row for row in report["programs"]}
    assert report["chips"] == report["mesh"]["fsdp"] == {"v5e": 4, "v5p": 8}[topology[:3]]
    assert list(rows) == PROGRAMS
    for name, row in rows.items():
        assert row["fits"] and 0 < row["needed"] < 2**30, name
    # Split over every chip: nothing is sent while tokens are decoded, and no more than it takes for parameters and
    # gradients, which are scattered.
    assert sum(rows["rollout"]["collectives"].values()) < 1000
    assert 0 < rows["update"]["fsdp_ratio"] <= 1.3
    assert rows["update"]["collectives"]["reduce-scatter"] > 0
    assert rows["update"]["embedding_gathers"] <= 1
