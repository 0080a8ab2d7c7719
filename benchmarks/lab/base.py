"""Base models: made by supervised fine-tuning, kept beside the code, and shown to have what the question needs."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.lab import figures, problems, task
from benchmarks.lab.runs import LAB, ROOT, WORK, called, said_to
from benchmarks.runs import read_lines

FOLDER = LAB / "base"
_ROLLOUTS = 64  # of each problem whose entropies are read


def make(seed: int) -> None:
    """Trains the base model of a seed and keeps it as a Hugging Face folder; goes on where it was interrupted."""
    from dasd_jax import convert, train

    kept, run = FOLDER / str(seed), WORK / "base" / str(seed)
    if kept.exists():
        return
    traces = WORK / "traces" / f"{seed}.jsonl"
    if not traces.exists():
        problems.write_traces(traces, seed)
    with said_to(run.with_suffix(".log")):
        called(train.main, [f"--config={ROOT / 'configs' / 'lab.py'}:base,seed={seed}", f"--workdir={run}"])
        called(convert.main, [f"--source={run}", f"--output={kept}", "--format=hf"])
    for path in kept.glob("tokenizer*"):
        path.unlink()  # all have the one in LAB


def properties(seed: int) -> dict[str, float]:
    """What a base model does on held-out problems, alone and shown a way, and how its entropies lie."""
    from dasd_jax import train

    run = WORK / "properties" / str(seed)
    shutil.rmtree(run, ignore_errors=True)
    sets = ",".join(repr(f"jsonl:{LAB / 'problems' / f'{split}.jsonl'}") for split in ("easy", "hard", "shown"))
    asked = {
        "run.steps": 1, "data.benchmarks": f"({sets})", "run.eval_samples": 16, "rollout.prompt_length": 18,
        "run.logged_rollouts": 8 * _ROLLOUTS, "rollout.rollouts": _ROLLOUTS,
    }  # fmt: skip
    with said_to(run.with_suffix(".log")):
        overrides = [f"--config.{name}={value}" for name, value in asked.items()]
        called(train.main, [f"--config={ROOT / 'configs' / 'lab.py'}:grpo,seed={seed}", f"--workdir={run}", *overrides])
    of_split = figures.of_file(run / "heldout" / "0.jsonl")
    easy, shown = of_split["easy"], of_split["shown"]
    rollouts = [rollout for line in read_lines(run / "samples.jsonl") for rollout in line["rollouts"]]
    return {
        "Avg@16, easy": easy["avg"],
        "Avg@16, hard": of_split["hard"]["avg"],
        "Avg@16 shown a way": shown["avg"],
        "false equations": 1 - easy["step_accuracy"],
        "right at the first attempt": easy["first_success"],
        "right of those that try again": easy["retried_success"],
        "attempts given up a response": easy["retries"],
        "the same shown a way": shown["retries"],
        "checks a response": easy["checks"],
        "the same shown a way ": shown["checks"],
        **_entropies(rollouts),
    }


def _entropies(rollouts: list[Mapping]) -> dict[str, float]:
    entropy = np.concatenate([rollout["entropy"] for rollout in rollouts])
    forks = np.concatenate([is_choice(rollout["text"], len(rollout["entropy"])) for rollout in rollouts])
    top = entropy >= np.quantile(entropy, 0.9)
    return {
        "entropy, median": float(np.median(entropy)),
        "entropy, 80th percentile": float(np.quantile(entropy, 0.8)),
        "choices among the top tenth by entropy": float(forks[top].mean()),
        "choices among all tokens": float(forks.mean()),
    }


def is_choice(text: str, count: int) -> np.ndarray:
    """bool[count]: the tokens of a response at which a writer who does not know the way has to choose.

    They are the digit that an attempt starts from and the operations.
    """
    chosen = np.zeros(count, bool)
    starts = [0, *(place + 1 for place, char in enumerate(text) if char == "?")]
    for place in [*starts, *(place for place, char in enumerate(text) if char in "+-*")]:
        if place < min(len(text), count) and text[place] in "123456789+-*":
            chosen[place] = True
    return chosen


def check_of(text: str) -> tuple[int, int]:
    """(true equations, equations) among those that a response checked."""
    checked = [equation for equation in task.equations(text) if equation.checks]
    return sum(equation.holds for equation in checked), len(checked)
