"""What a run's kept answers come to: accuracy, Pass@k, StepAcc, E(y), revision, diversity, length."""

from collections.abc import Sequence
from math import comb
from pathlib import Path

import numpy as np

from benchmarks.lab import task
from dasd_jax.health import figures as health
from dasd_jax.run import records

K = (1, 2, 4, 8, 16, 32, 64)


def of_file(path: Path) -> dict[str, dict[str, float]]:
    """Split → figure → number, of heldout/STEP.jsonl or eval/NAME.jsonl."""
    by_split: dict[str, list[dict]] = {}
    for line in records.answers(path):
        by_split.setdefault(Path(line["source"].partition(":")[2]).stem, []).append(line)
    return {
        split: {name: round(float(value), 5) for name, value in of_answers(lines).items()}
        for split, lines in by_split.items()
    }


def of_answers(lines: Sequence[dict]) -> dict[str, float]:
    """The figures of the samples of some problems.

    avg and pass@k are means over problems, all other figures of the responses together: exploration_per_1k, which
    stands for E(y), counts the signs of doubt (`?` and `~`) per 1,000 tokens; step_accuracy is the share of equations
    that are true, checked_accuracy of those that were calculated again; revised_frac the share of responses that try
    again or check, retried_success the accuracy of those that try again, first_success that of the others. What
    nothing defines is left out, as in docs/health.md.
    """
    rewards = np.array([line["reward"] for line in lines]) > 0.5
    samples, right = rewards.shape[1], rewards.sum(axis=1)
    texts = [text for line in lines for text in line["text"]]
    lengths = np.array([length for line in lines for length in line["length"]])
    found = [equation for text in texts for equation in task.equations(text)]
    retried = np.array(["?" in text for text in texts])
    checks, retries = (sum(text.count(sign) for text in texts) for sign in "~?")
    figures = {
        "avg": float(rewards.mean()),
        **{
            f"pass@{k}": float(np.mean([1 - comb(samples - int(n), k) / comb(samples, k) for n in right]))
            for k in K
            if k <= samples
        },
        "step_accuracy": sum(equation.holds for equation in found) / max(len(found), 1),
        "exploration_per_1k": 1000 * (checks + retries) / lengths.sum(),
        "retries": retries / len(texts),
        "checks": checks / len(texts),
        "revised_frac": float(np.mean(["?" in text or "~" in text for text in texts])),
        "equations": len(found) / len(texts),
        "length": float(lengths.mean()),
        "finished_frac": float(np.mean([done for line in lines for done in line["finished"]])),
    }
    of_groups = health.of_groups([line["text"] for line in lines], [line["extracted"] for line in lines])
    if "dist3" in of_groups:
        figures["dist3"] = of_groups["dist3"]
    right_at_once = rewards.reshape(-1) & ~retried
    figures["first_success"] = float(right_at_once.mean())
    checked = [equation.holds for equation in found if equation.checks]
    if checked:
        figures["checked_accuracy"] = sum(checked) / len(checked)
    if retried.any():
        figures["retried_success"] = float(rewards.reshape(-1)[retried].mean())
    return figures
