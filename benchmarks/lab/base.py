"""Base models: made by supervised fine-tuning, kept beside the code, and shown to have what the question needs."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from benchmarks.lab import figures, plan, problems
from benchmarks.lab.runs import LAB, RESULTS, WORK, append, convert, side_by_side, sources, train
from benchmarks.runs import read_lines

FOLDER = LAB / "base"
_ROLLOUTS = 32  # of each of 8 problems whose entropies are read

# Property → (what the question needs, how it is read from a line of `measured`).
PROPERTIES: dict[str, tuple[str, Callable[[Mapping], float]]] = {
    "accuracy, easy": (".2 to .5", lambda line: line["easy"]["avg"]),
    "accuracy, hard": ("", lambda line: line["hard"]["avg"]),
    "accuracy of the teacher, shown a way": ("≥ .9", lambda line: line["shown"]["avg"]),
    "false equations": (".05 to .15", lambda line: 1 - line["easy"]["step_accuracy"]),
    "right at the first attempt": ("", lambda line: line["easy"]["first_success"]),
    "right in the end of those that try again": ("above 0", lambda line: line["easy"]["retried_success"]),
    "attempts given up, a response": ("", lambda line: line["easy"]["retries"]),
    "the same, shown a way": ("fewer", lambda line: line["shown"]["retries"]),
    "results calculated again, a response": ("", lambda line: line["easy"]["checks"]),
    "the same of the teacher": ("fewer", lambda line: line["shown"]["checks"]),
    "false equations among those checked": ("fewer", lambda line: 1 - line["easy"]["checked_accuracy"]),
    "entropy, median, nats": ("near 0", lambda line: line["entropies"]["median"]),
    "entropy, 80th percentile, nats": ("≥ .3", lambda line: line["entropies"]["p80"]),
    "share of choices in the top tenth by entropy": ("most", lambda line: line["entropies"]["choices_of_top"]),
    "share of choices among all tokens": ("", lambda line: line["entropies"]["choices"]),
}


def make_all(seeds: Iterable[int], workers: int) -> None:
    """Makes those that are missing."""
    for _ in side_by_side(make, [seed for seed in seeds if not (FOLDER / str(seed)).exists()], workers):
        pass


def make(seed: int) -> None:
    """Trains the base model of a seed and keeps it as a Hugging Face folder; goes on where it was interrupted."""
    traces, run = WORK / "traces" / f"{seed}.jsonl", WORK / "base" / str(seed)
    if not traces.exists():
        problems.write_traces(traces, seed)
    train("base", seed, run, {})
    convert(run, FOLDER / str(seed))


def measured() -> dict[int, dict]:
    """Seed → what `measure` found."""
    path = RESULTS / "properties.jsonl"
    lines = read_lines(path) if path.exists() else []
    return {line["seed"]: line for line in sorted(lines, key=lambda line: line["seed"])}


def write_properties(seeds: Iterable[int], workers: int) -> None:
    """Measures the base models that have not been."""
    for _, line in side_by_side(measure, [seed for seed in seeds if seed not in measured()], workers):
        append("properties", line)


def measure(seed: int) -> dict:
    """The figures of a base model on the reported problems, alone and shown a way, and its entropies."""
    run = WORK / "properties" / str(seed)
    shutil.rmtree(run, ignore_errors=True)
    asked = {
        "run.steps": 1, "data.benchmarks": sources("easy", "hard", "shown"), "run.eval_samples": plan.SAMPLES,
        "run.eval_problems": plan.PROBLEMS, "rollout.prompt_length": 18, "rollout.max_new_tokens": plan.LENGTH,
        "run.logged_rollouts": 8 * _ROLLOUTS, "rollout.rollouts": _ROLLOUTS,
    }  # fmt: skip
    train("grpo", seed, run, asked)
    rollouts = [rollout for line in read_lines(run / "samples.jsonl") for rollout in line["rollouts"]]
    return {"name": "base", "seed": seed, "fields": {}, **figures.of_file(run / "heldout" / "0.jsonl")} | {
        "entropies": {name: round(value, 5) for name, value in entropies(rollouts).items()}
    }


def entropies(rollouts: Sequence[Mapping]) -> dict[str, float]:
    """How the entropies of logged rollouts lie, in nats, and whether the highest are those of choices."""
    entropy = np.concatenate([rollout["entropy"] for rollout in rollouts])
    choices = np.concatenate([is_choice(rollout["text"], len(rollout["entropy"])) for rollout in rollouts])
    top = entropy >= np.quantile(entropy, 0.9)
    return {
        "mean": float(entropy.mean()),
        "median": float(np.median(entropy)),
        "p80": float(np.quantile(entropy, 0.8)),
        "choices_of_top": float(choices[top].mean()),
        "choices": float(choices.mean()),
    }


def is_choice(text: str, count: int) -> np.ndarray:
    """bool[count]: the tokens at which a writer who does not know the way has to choose.

    They are the digit that an attempt starts from, and the operations.
    """
    chosen = np.zeros(count, bool)
    for place, char in enumerate(text[:count]):
        chosen[place] = char in "+-*" or (char.isdecimal() and (place == 0 or text[place - 1] == "?"))
    return chosen
