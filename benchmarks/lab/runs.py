"""One run of the laboratory, from its command line to its line in a results file, and many of them side by side."""

import contextlib
import dataclasses
import datetime
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.lab import figures, plan
from benchmarks.runs import ROOT, read_lines
from dasd_jax import files

LAB = ROOT / "benchmarks" / "lab"
WORK = ROOT / "runs" / "lab"  # what can be made again
RESULTS = LAB / "results"
CURVES = ("reward/mean", "entropy/mean", "rollout/length_mean")
_LAST = 5  # steps whose mean stands for the end of a run


@dataclasses.dataclass(frozen=True)
class Job:
    """A run that is asked for.

    Attributes:
        kind: of the results file: trials, runs or probes.
        name: of the arm in the table; with `seed` and `fields` it identifies the run.
        arm: the name in `plan.METHODS` that the run starts from.
        fields: overrides, GROUP.FIELD → value.
        reported: held-out problems are answered as well.
    """

    kind: str
    name: str
    arm: str
    seed: int
    fields: Mapping[str, Any]
    reported: bool = True

    @property
    def key(self) -> str:
        """Identifies it within its kind."""
        return json.dumps([self.name, self.seed, sorted(self.fields.items())])

    @property
    def folder(self) -> Path:
        """Its workdir."""
        words = [self.name, f"seed{self.seed}", *(f"{field.split('.')[-1]}{value}" for field, value in self.fields.items())]
        return WORK / self.kind / "-".join(words)


def results(kind: str) -> dict[str, dict]:
    """Key → line of the finished runs of a kind."""
    path = RESULTS / f"{kind}.jsonl"
    lines = read_lines(path) if path.exists() else []
    return {json.dumps([line["name"], line["seed"], sorted(line["fields"].items())]): line for line in lines}


def run_all(jobs: Sequence[Job], workers: int) -> None:
    """Runs what is not in the results yet, each worker on a core of its own, and appends each line as it is done."""
    done = {kind: results(kind) for kind in {job.kind for job in jobs}}
    todo = [job for job in jobs if job.key not in done[job.kind]]
    print(f"{len(jobs) - len(todo)} of {len(jobs)} runs are done", flush=True)
    started, context = time.monotonic(), multiprocessing.get_context("spawn")
    places = context.Queue()
    for place in range(workers):
        places.put(place)
    # A worker keeps every program that it has compiled: a new one from time to time frees the memory.
    with ProcessPoolExecutor(workers, context, _on_one_core, (places,), max_tasks_per_child=None) as pool:
        asked = {pool.submit(run, job): job for job in todo}
        for count, future in enumerate(as_completed(asked), start=1):
            job, line = asked[future], future.result()
            append(job.kind, line)
            left = (time.monotonic() - started) / count * (len(todo) - count) / 60
            print(f"{count}/{len(todo)} · {job.folder.name} · {line['seconds']:.0f} s · {left:.0f} min left", flush=True)


def _on_one_core(places: Any) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[places.get() % len(cores)]})
    import jax

    jax.config.update("jax_compilation_cache_dir", str(WORK / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def append(kind: str, line: Mapping[str, Any]) -> None:
    """Adds a line to a results file."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{kind}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def run(job: Job) -> dict[str, Any]:
    """Trains and evaluates; the same commands by hand leave the same numbers.

    A folder of an earlier, interrupted try is removed: a run is shorter than going on would be worth.
    """
    from dasd_jax import evaluate, train

    started, folder = time.monotonic(), job.folder
    shutil.rmtree(folder, ignore_errors=True)
    overrides = [f"--config.{field}={value}" for field, value in job.fields.items()]
    config = f"--config={ROOT / 'configs' / 'lab.py'}:{job.arm},seed={job.seed}"
    with said_to(folder.with_suffix(".log")):
        called(train.main, [config, f"--workdir={folder}", *overrides])
        if job.reported:
            splits = ",".join(f"jsonl:{LAB / 'problems' / f'{split}.jsonl'}" for split in ("easy", "hard"))
            asked = {
                "data.benchmarks": splits, "rollout.max_new_tokens": plan.LENGTH, "rollout.problems": 64,
                "run.eval_samples": plan.SAMPLES, "run.eval_problems": plan.PROBLEMS,
            }  # fmt: skip
            called(evaluate.main, [f"--workdir={folder}", *(f"--config.{name}={value}" for name, value in asked.items())])
    line = {
        "name": job.name,
        "seed": job.seed,
        "fields": dict(job.fields),
        "validation": figures.of_file(folder / "heldout" / f"{plan.STEPS}.jsonl")["validation"],
    }
    if job.reported:
        line |= figures.of_file(folder / "eval" / f"{plan.STEPS}.jsonl")
        metrics = read_lines(folder / "metrics.jsonl")[1:]
        line["curves"] = {name: [float(f"{step[name]:.4g}") for step in metrics] for name in CURVES}
    seconds = time.monotonic() - started
    return line | {"seconds": round(seconds, 1), "finished": datetime.datetime.now().isoformat(timespec="seconds")}


def called(main: Callable[[list[str]], None], argv: list[str]) -> None:
    """Runs a command of dasd_jax in this process.

    Raises:
        RuntimeError: it failed.
    """
    try:
        main(argv)
    except SystemExit as stopped:
        if stopped.code:
            raise RuntimeError(f"{' '.join(argv)} ended with exit code {stopped.code}") from stopped


@contextlib.contextmanager
def said_to(path: Path) -> Iterator[None]:
    """Sends what is printed to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield
