"""One run of the laboratory, from its command line to its line in a results file, and many of them side by side."""

import contextlib
import dataclasses
import datetime
import importlib
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

LAB = ROOT / "benchmarks" / "lab"
WORK = ROOT / "runs" / "lab"  # what can be made again
RESULTS = LAB / "results"
CURVES = ("reward/mean", "entropy/mean", "rollout/length_mean")


@dataclasses.dataclass(frozen=True)
class Job:
    """A run that is asked for.

    Attributes:
        kind: of the results file: trials, runs or probes.
        name: of the arm in the table; with `seed` and `fields` it identifies the run.
        arm: the name in `plan.ARMS` that the run starts from.
        fields: overrides, GROUP.FIELD → value.
        reported: held-out problems are answered as well.
        problems: the split that it is trained on, "" for that of the arm; the name of the run tells it, since the
            results hold no path.
    """

    kind: str
    name: str
    arm: str
    seed: int
    fields: Mapping[str, Any]
    reported: bool = True
    problems: str = ""

    @property
    def key(self) -> str:
        """Identifies it within its kind."""
        return json.dumps([self.name, self.seed, sorted(self.fields.items())])

    def __str__(self) -> str:
        return self.folder.name

    @property
    def folder(self) -> Path:
        """Its workdir."""
        words = [
            self.name,
            f"seed{self.seed}",
            *(f"{field.split('.')[-1]}{value}" for field, value in self.fields.items()),
        ]
        return WORK / self.kind / "-".join(words)


def results(kind: str) -> dict[str, dict]:
    """Key → line of the finished runs of a kind."""
    path = RESULTS / f"{kind}.jsonl"
    lines = read_lines(path) if path.exists() else []
    return {json.dumps([line["name"], line["seed"], sorted(line["fields"].items())]): line for line in lines}


def by_name(kind: str) -> dict[str, dict[int, dict]]:
    """Name → seed → line of the finished runs of a kind."""
    found: dict[str, dict[int, dict]] = {}
    for line in results(kind).values():
        found.setdefault(line["name"], {})[line["seed"]] = line
    return found


def run_all(jobs: Sequence[Job], workers: int) -> None:
    """Runs what is not in the results yet, and appends each line as it is done."""
    done = {kind: results(kind) for kind in {job.kind for job in jobs}}
    todo = [job for job in jobs if job.key not in done[job.kind]]
    if todo:
        print(f"{len(jobs) - len(todo)} of {len(jobs)} runs are done", flush=True)
    for job, line in side_by_side(run, todo, workers):
        append(job.kind, line)


def side_by_side(work: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Iterator[tuple[Any, Any]]:
    """(item, result) as they are done, each worker on a core of its own; says how far it is."""
    started, context = time.monotonic(), multiprocessing.get_context("spawn")
    places = context.Queue()
    for place in range(workers):
        places.put(place)
    with ProcessPoolExecutor(workers, context, _on_one_core, (places,)) as pool:
        asked = {pool.submit(work, item): item for item in items}
        for count, future in enumerate(as_completed(asked), start=1):
            if future.exception():
                pool.shutdown(cancel_futures=True)
            yield asked[future], future.result()
            left = (time.monotonic() - started) / count * (len(items) - count) / 60
            print(f"{count}/{len(items)} · {asked[future]} · {left:.0f} min left", flush=True)


def _on_one_core(places: Any) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[places.get() % len(cores)]})
    import jax  # now: it starts as many threads as there are cores

    # Methods and seeds share most programs.
    jax.config.update("jax_compilation_cache_dir", str(WORK / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def append(kind: str, line: Mapping[str, Any]) -> None:
    """Adds a line to a results file."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{kind}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def run(job: Job) -> dict[str, Any]:
    """Trains and evaluates; the same commands by hand leave the same numbers.

    A training that was interrupted begins again: it is shorter than going on would be worth.
    """
    started, folder = time.monotonic(), job.folder
    if not (folder / "done.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        split = job.problems or plan.ARMS[job.arm].problems
        train(job.arm, job.seed, folder, {**job.fields, "data.sources": sources(split)})
    line = {
        "name": job.name,
        "seed": job.seed,
        "fields": dict(job.fields),
        "validation": figures.of_file(folder / "heldout" / f"{plan.STEPS}.jsonl")["validation"],
    }
    if job.reported:
        asked = {
            "data.benchmarks": sources("easy", "hard"), "rollout.max_new_tokens": plan.LENGTH,
            "rollout.problems": 64, "run.eval_samples": plan.SAMPLES, "run.eval_problems": plan.PROBLEMS,
        }  # fmt: skip
        if not (folder / "eval" / f"{plan.STEPS}.json").exists():
            _command("evaluate", [f"--workdir={folder}", *_overrides(asked)], _log(folder, "evaluate"))
        line |= figures.of_file(folder / "eval" / f"{plan.STEPS}.jsonl")
        metrics = read_lines(folder / "metrics.jsonl")[1:]
        line["curves"] = {name: [float(f"{step[name]:.4g}") for step in metrics] for name in CURVES}
    import jax  # after `_on_one_core`

    # A process may map 65,530 regions of memory, which the programs of seventy runs exceed.
    jax.clear_caches()
    seconds = time.monotonic() - started
    return line | {"seconds": round(seconds, 1), "finished": datetime.datetime.now().isoformat(timespec="seconds")}


def train(name: str, seed: int, folder: Path, fields: Mapping[str, Any]) -> None:
    """`python -m dasd_jax.train --config=configs/lab.py:NAME,seed=SEED --workdir=FOLDER …` in this process."""
    config = f"--config={ROOT / 'configs' / 'lab.py'}:{name},seed={seed}"
    _command("train", [config, f"--workdir={folder}", *_overrides(fields)], _log(folder, "train"))


def convert(run: Path, output: Path) -> None:
    """The weights of a run as a Hugging Face folder, in bfloat16."""
    _command(
        "convert", [f"--source={run}", f"--output={output}", "--format=hf", "--dtype=bfloat16"], _log(run, "convert")
    )


def intervene(seed: int, folder: Path, split: str, shown: str, samples: int) -> None:
    """`python -m dasd_jax.intervene FOLDER --checkpoint=start …` on the base model of a seed."""
    config = f"--config={ROOT / 'configs' / 'lab.py'}:dasd,seed={seed}"
    asked = {
        "data.benchmarks": sources(split), "rollout.max_new_tokens": plan.LENGTH, "rollout.problems": 64,
        "run.eval_samples": samples, "run.eval_problems": plan.PROBLEMS,
    }  # fmt: skip
    argv = [str(folder), config, "--checkpoint=start", f"--context={shown}", *_overrides(asked)]
    _command("intervene", argv, _log(folder, "intervene"))


def sources(*splits: str) -> tuple[str, ...]:
    """The problems of some splits, as data.sources and data.benchmarks name them."""
    return tuple(f"jsonl:{LAB / 'problems' / f'{split}.jsonl'}" for split in splits)


def _log(folder: Path, command: str) -> Path:
    """Beside the folder, whose name may hold points."""
    return folder.with_name(f"{folder.name}.{command}.log")


def _overrides(fields: Mapping[str, Any]) -> list[str]:
    return [f"--config.{name}={value}" for name, value in fields.items()]


def _command(name: str, argv: list[str], log: Path) -> None:
    """Runs a command of dasd_jax in this process; what it prints goes to a file.

    Raises:
        RuntimeError: it failed.
    """
    main = importlib.import_module(f"dasd_jax.{name}").main
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            main(argv)
        except SystemExit as stopped:
            if stopped.code:
                raise RuntimeError(f"{name} {' '.join(argv)} ended with exit code {stopped.code}: {log}") from stopped
