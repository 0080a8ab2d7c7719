"""The same short trainings in two checkouts: python -m benchmarks.same_numbers --other=PATH [--full] [--keep=DIR]

Each run goes through this checkout and through the other, each time in a process of its own that starts at the root of
the checkout: three steps of `configs/qwen_math.py:tiny` and of `configs/smollm2_math.py` with dasd, grpo and sft. Then
are compared

    parameters    after the last step, bit by bit
    rollouts      of every step: question, tokens, reward, and whether the response ended
    scalars       of every step, to 1e-6, absolute or relative; the mean reward exactly. Times are left out; names that
                  only one of the two has are listed, and fail nothing

Exit status 1 if any differs. A gradient norm of 0 says that a run compares little: in the tiny one every reward is 0,
and with it the gradient of grpo.

`--full` adds one step of the full form of DASD, of which the gradient is compared instead of the parameters, each
tensor to 1e-6 of its largest entry. `--only=smollm2-dasd,smollm2-full` takes some of the runs.

`--keep=DIR` keeps the other checkout's runs there. The next time they are taken as they are, if commit, flags and
machine are the same.

`--time` compares speed and memory instead of numbers: the steps of DASD on SmolLM2, the two checkouts in turn, and what
each program of the tiny run takes when it is compiled for a TPU (make libtpu).
"""

import argparse
import dataclasses
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from rich.console import Console
from rich.table import Table

from benchmarks.runs import ROOT, numbers, python, read_lines
from benchmarks.timing import Times, hardware
from dasd_jax.run import records

CONFIGS = {"tiny": "configs/qwen_math.py:tiny", "smollm2": "configs/smollm2_math.py"}
METHODS = ("dasd", "grpo", "sft")
FULL = "smollm2-full"
STEPS = 3
LIMIT = 1e-6
EXACT = ("step", "reward/mean")  # of the scalars
SHOWN = 6  # things of a kind that differ in a run
WIDTH = 120  # of the tables, in columns

TIMED_STEPS, TURNS = 5, 2  # the first step compiles and is left out
TIMES = {"rollout": ("time/rollout_s",), "score and update": ("time/score_s", "time/update_s")}
# Problems enough to split the parts of a minibatch over the four chips of the smallest slice.
COMPILED = (f"--config={CONFIGS['tiny']}", "--config.rollout.problems=16", "--topology=v5e:2x2")


def flags(config: str, steps: int, *more: str) -> list[str]:
    """What `train` is told: a small evaluation, every rollout in the log, and no checkpoint but the last."""
    return [
        f"--config={CONFIGS[config]}",
        f"--config.run.steps={steps}",
        "--config.run.checkpoint_every=1000",
        "--config.run.eval_problems=8",
        "--config.run.eval_samples=8",  # with one, a batch has as many prompts as rows, and takes longer
        "--config.run.logged_rollouts=1000",
        *more,
    ]


RUNS = {
    f"{name}-{method}": flags(name, STEPS, f"--config.objective.method={method}")
    for name in CONFIGS
    for method in METHODS
}
RUNS[FULL] = flags("smollm2", 1, "--config.objective.form=full")


def main() -> None:
    """Reads the command line; compares and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, required=True, metavar="PATH", help="root of the other checkout")
    parser.add_argument("--only", metavar="RUN,RUN", help=f"some of {', '.join(RUNS)} (default: all but the last)")
    parser.add_argument("--full", action="store_true", help=f"adds {FULL}")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where the other checkout's runs stay")
    parser.add_argument("--time", action="store_true", help="compares times and memory instead of numbers")
    args = parser.parse_args()
    chosen = RUNS.keys() - {FULL} if args.only is None else set(args.only.split(","))
    if args.full:
        chosen |= {FULL}
    if unknown := chosen - RUNS.keys():
        parser.error(f"--only: {', '.join(sorted(unknown))}: expected some of {', '.join(RUNS)}")
    other = args.other.resolve()
    if not (other / "dasd_jax").is_dir():
        parser.error(f"--other: {other} holds no dasd_jax: expected the root of a checkout")
    print(hardware())
    for which, checkout in (("here", ROOT), ("other", other)):
        print(f"{which}: {checkout}, {commit(checkout) or 'no commit'}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if args.time:
            compare_memory(other)
            compare_times(other, Path(folder))
        else:
            kept = (args.keep or Path(folder) / "other").resolve()
            compare_numbers([name for name in RUNS if name in chosen], other, Path(folder), kept)


def commit(checkout: Path) -> str:
    """The commit of a checkout, with -dirty after it where files have changed since; empty where there is none."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


# ------------------------------------------------------------------------------------------------ numbers


@dataclasses.dataclass(frozen=True)
class Part:
    """What came of comparing the things of one kind.

    Attributes:
        count: how many there are.
        differing: a line on each that differs.
        largest: difference among all that both have.
    """

    count: int
    differing: list[str]
    largest: float = 0.0

    def __str__(self) -> str:
        """How many differ."""
        return f"{len(self.differing)} of {self.count}"


def compare_numbers(names: list[str], other: Path, folder: Path, kept: Path) -> None:
    """Trains, compares and prints; exit status 1 where something differs."""
    table = Table("run", "tensors differ", "by", "rollouts differ", "scalars differ", "by", "gradient norm", "")
    differing: dict[str, list[Part]] = {}
    for name in names:
        theirs = train_once(other, name, kept)
        ours = folder / name
        train(ROOT, ours, RUNS[name], programs=kept / "programs")
        tensors = compare_tensors(ours, theirs, gradient=name == FULL)
        rollouts, scalars = compare_rollouts(ours, theirs), compare_scalars(numbers(ours), numbers(theirs))
        norm = statistics.mean(line["optim/grad_norm"] for line in numbers(ours) if line["step"])
        shutil.rmtree(ours)  # a checkpoint of SmolLM2 takes 1.6 GB
        differing[name] = [part for part in (tensors, rollouts, scalars) if part.differing]
        table.add_row(
            name, str(tensors), f"{tensors.largest:.1e}", str(rollouts), str(scalars), f"{scalars.largest:.1e}",
            f"{norm:.3g}", "differs" if differing[name] else "equal",
        )  # fmt: skip
    show(table)
    for name, parts in differing.items():
        for part in parts:
            print(f"{name}:", *part.differing[:SHOWN], sep="\n    ")
            if len(part.differing) > SHOWN:
                print(f"    and {len(part.differing) - SHOWN} more")
    if any(differing.values()):
        sys.exit(f"differ: {', '.join(name for name, parts in differing.items() if parts)}")
    print("equal")


def train(checkout: Path, workdir: Path, told: list[str], *, programs: Path) -> None:
    """Trains to the end in a checkout; what is compiled lies in `programs`, for the next that needs the same."""
    started = time.monotonic()
    where = {"checkout": checkout, "JAX_COMPILATION_CACHE_DIR": str(programs)}
    python("dasd_jax.train", *told, f"--workdir={workdir}", **where)
    print(f"{workdir.name} in {checkout}: {time.monotonic() - started:.0f} s", flush=True)


def train_once(checkout: Path, name: str, kept: Path) -> Path:
    """The workdir of a run in the other checkout: it lies in `kept`, or it is made there."""
    workdir, note, version = kept / name, kept / f"{name}.json", commit(checkout)
    made_by = {"commit": version, "flags": RUNS[name], "hardware": hardware()}
    known = version and not version.endswith("-dirty")
    if known and note.exists() and json.loads(note.read_text()) == made_by:
        print(f"{name} in {checkout}: taken from {workdir}", flush=True)
        return workdir
    note.unlink(missing_ok=True)
    shutil.rmtree(workdir, ignore_errors=True)
    train(checkout, workdir, RUNS[name], programs=kept / "programs")
    note.write_text(json.dumps(made_by))
    return workdir


def compare_tensors(ours: Path, theirs: Path, *, gradient: bool) -> Part:
    """The parameters of the last checkpoints bit by bit, or the gradients of a first step to the limit."""
    here, there = ((first_moment if gradient else parameters)(workdir) for workdir in (ours, theirs))
    names, differing, largest = sorted(here.keys() | there.keys()), [], 0.0
    if not names:
        differing.append("no tensors where they were looked for")
    for name in names:
        a, b = here.get(name), there.get(name)
        if a is None or b is None or (a.shape, a.dtype) != (b.shape, b.dtype):
            differing.append(f"{name}: only in one of the two, or of another shape or type")
            continue
        apart = np.abs(a.astype(np.float64) - b).max()
        if gradient:
            apart /= np.abs(b).max() or 1.0
        largest = max(largest, apart)
        if not (apart <= LIMIT if gradient else a.tobytes() == b.tobytes()):
            differing.append(f"{name}: by {apart:.3g}")
    return Part(len(names), differing, largest)


def parameters(workdir: Path) -> dict[str, np.ndarray]:
    """Those of the last checkpoint, by name."""
    return arrays(last_checkpoint(workdir) / "params")


def first_moment(workdir: Path) -> dict[str, np.ndarray]:
    """Adam's, by parameter: after one step it is the clipped gradient times 1 - b1.

    A factor that clipping took from the gradient is not lost: the norm before clipping is among the scalars.
    """
    mark = "/mu/"
    rest = arrays(last_checkpoint(workdir) / "rest")
    return {name.partition(mark)[2]: array for name, array in rest.items() if mark in name}


def last_checkpoint(workdir: Path) -> Path:
    """Its folder."""
    return max((workdir / "checkpoints").glob("[0-9]*"))


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """What Orbax wrote to a folder, by name, whatever tree and devices it is of."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(folder).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        restored = checkpointer.restore(folder, restore_args=as_numpy)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): array
        for path, array in jax.tree.leaves_with_path(restored)
    }


def compare_rollouts(ours: Path, theirs: Path) -> Part:
    """The rollouts of samples.jsonl in their order."""
    fields = ("step", "question", "tokens", "reward", "finished")

    def rollouts(run: Path) -> Iterator[dict]:
        for problem in records.samples(run):
            yield from ({**problem, **rollout} for rollout in problem["rollouts"])

    pairs = list(zip_longest(rollouts(ours), rollouts(theirs), fillvalue={}))
    differing = []
    for number, (here, there) in enumerate(pairs, start=1):
        if odd := [field for field in fields if field not in here or here[field] != there.get(field)]:
            differing.append(f"samples.jsonl, rollout {number}: {', '.join(odd)}")
    return Part(len(pairs), differing)


def compare_scalars(ours: list[dict], theirs: list[dict]) -> Part:
    """metrics.jsonl without times; says which names are in one of the two alone."""
    count, differing, largest = 0, [], 0.0
    if len(ours) != len(theirs):
        differing.append(f"metrics.jsonl: {len(ours)} and {len(theirs)} lines")
    for here, there in zip(ours, theirs, strict=False):
        for name in sorted(here.keys() & there.keys()):
            apart = abs(here[name] - there[name]) / max(1.0, abs(here[name]), abs(there[name]))
            count, largest = count + 1, max(largest, apart)
            if apart > (0 if name in EXACT else LIMIT):
                differing.append(f"step {here['step']}: {name}: {here[name]} and {there[name]}")
        for which, alone in (("here", here.keys() - there.keys()), ("in the other", there.keys() - here.keys())):
            if alone:
                print(f"    step {here['step']}: only {which}: {', '.join(sorted(alone))}", flush=True)
    return Part(count, differing, largest)


# ------------------------------------------------------------------------------------------------ times and memory


def compare_times(other: Path, folder: Path) -> None:
    """Trains in turns and prints the seconds of a step's parts."""
    checkouts = {"here": ROOT, "other": other}
    seconds = {}
    for turn in range(TURNS):
        for which, checkout in checkouts.items():
            workdir = folder / "smollm2-dasd"
            train(checkout, workdir, flags("smollm2", TIMED_STEPS), programs=folder / "programs")
            steps = [line for line in read_lines(workdir / "metrics.jsonl") if line["step"] > 1]
            for part, names in TIMES.items():
                seconds[part, which, turn] = tuple(sum(step[name] for name in names) for step in steps)
            shutil.rmtree(workdir)
    table = Table(
        f"seconds, steps 2 to {TIMED_STEPS}",
        *checkouts,
        "ratio",
        *(f"{which}: last / first turn" for which in checkouts),
    )
    for part in TIMES:
        turns = {which: [Times(seconds[part, which, turn], None) for turn in range(TURNS)] for which in checkouts}
        whole = {which: Times(sum((times.runs for times in of), ()), None) for which, of in turns.items()}
        again = (f"{of[-1].median / of[0].median:.3f}" for of in turns.values())
        ratio = whole["here"].median / whole["other"].median
        table.add_row(part, *map(str, whole.values()), f"{ratio:.3f}", *again)
    show(table)


def compare_memory(other: Path) -> None:
    """Compiles the tiny run for a TPU, in both forms, and prints what each program takes."""
    table = Table("form", "program", "temp, bytes here", "other", "ratio", "peak, bytes here", "other", "ratio")
    for form in ("sampled", "full"):
        here, there = (compiled(checkout, form) for checkout in (ROOT, other))
        for program in here | there:
            cells = []
            for size in ("temp", "peak"):
                a, b = (rows.get(program, {}).get(size) for rows in (here, there))
                cells += [str(a), str(b), f"{a / b:.3f}" if a and b else "–"]
            table.add_row(form, program, *cells)
    show(table)


def compiled(checkout: Path, form: str) -> dict[str, dict]:
    """What `python -m dasd_jax.compile` says of each program, by its name."""
    report = python("dasd_jax.compile", "--json", *COMPILED, f"--config.objective.form={form}", checkout=checkout)
    return {row["program"]: row for row in json.loads(report)["programs"]}


def show(table: Table) -> None:
    """Prints a table, whole also where the output is no terminal."""
    Console(width=WIDTH).print("", table, sep="\n")


if __name__ == "__main__":
    main()
