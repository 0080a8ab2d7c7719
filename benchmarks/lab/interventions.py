"""The paper's figure 7 on the base models: what becomes of a response in which the teacher chooses one token."""

import shutil
from collections.abc import Sequence

from benchmarks.lab import figures, table
from benchmarks.lab.runs import WORK, intervene
from benchmarks.runs import read_lines

# What the teacher is shown: a way, as in training, or nothing, which leaves the effect of being greedy once.
SHOWN = ("solution", "none")
ARMS = ("low entropy", "high entropy", "random")
SAMPLES = 16  # responses to a problem, each with one pair an arm
# What is written at the place of the change, by the character before it.
WRITTEN = {"+": "operand", "-": "operand", "*": "operand", "=": "result"}


def measure(shown: str, seed: int) -> dict:
    """Arm → figures of both sides and their difference, over the pairs of the base model of a seed."""
    run = WORK / "interventions" / f"{shown}-{seed}"
    shutil.rmtree(run, ignore_errors=True)
    intervene(seed, run, table.SPLIT, shown, SAMPLES)
    _, *pairs = read_lines(next((run / "intervene").glob("*.jsonl")))
    return line_of(shown, seed, pairs)


def line_of(shown: str, seed: int, pairs: Sequence[dict]) -> dict:
    """What is kept of the pairs that `intervene` writes."""
    line: dict = {"name": shown, "seed": seed, "fields": {"run.eval_samples": SAMPLES}}
    for arm in ARMS:
        of_arm = [pair for pair in pairs if pair["arm"] == arm]
        sides = {side: of_side([pair[side] for pair in of_arm]) for side in ("control", "treated")}
        changes = {name: sides["treated"][name] - sides["control"][name] for name in sides["control"]}
        agrees = sum(pair["student_agrees"] for pair in of_arm) / len(of_arm)
        line[arm] = {**sides, "change": changes, "pairs": len(of_arm), "student_agrees": agrees}
        line[arm]["written"] = by_what_is_written(of_arm)
    return line


def by_what_is_written(pairs: Sequence[dict]) -> dict[str, dict[str, float]]:
    """operand, result, other → share of the pairs, and change of accuracy."""
    changes: dict[str, list[float]] = {}
    for pair in pairs:
        before = pair["control"]["text"][: pair["place"]][-1:]
        change = pair["treated"]["reward"] - pair["control"]["reward"]
        changes.setdefault(WRITTEN.get(before, "other"), []).append(change)
    return {
        name: {"share": len(found) / len(pairs), "change": sum(found) / len(found)} for name, found in changes.items()
    }


def of_side(outcomes: Sequence[dict]) -> dict[str, float]:
    """The figures of one side of all pairs, by the names of `figures.of_answers`."""
    names = ("text", "reward", "length", "finished", "extracted")
    answers = [{name: [outcome[name]] for name in names} for outcome in outcomes]
    found = figures.of_answers(answers)
    return {name: found[name] for name in ("avg", "step_accuracy", "exploration_per_1k", "length")}
