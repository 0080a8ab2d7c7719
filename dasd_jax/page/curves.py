"""The numbers of a run over its steps, and its evaluations before and after."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dasd_jax import files, formats
from dasd_jax.page.pack import evenly, rounded
from dasd_jax.run import records

_MOST_POINTS = 1000  # of one curve; a panel is 400 pixels wide


@dataclasses.dataclass(frozen=True)
class Numbers:
    """The numbers of a run over its steps.

    Attributes:
        points: name → step → value, of the log and of the evaluations.
        errors: name → step → standard error, of the averages of evaluations.
    """

    points: dict[str, dict[int, float]]
    errors: dict[str, dict[int, float]]


def numbers(run: Path, lines: Sequence[dict]) -> Numbers:
    """Every number of the log over the steps that have it, and those of `evaluations`.

    Args:
        lines: the objects of metrics.jsonl.
    """
    since = evaluated_since(run)
    points: dict[str, dict[int, float]] = {}
    errors: dict[str, dict[int, float]] = {}
    for line in lines:
        for name, value in line.items():
            # The line of that step has the evaluation that was made the other way.
            if name != "step" and not (name.startswith("eval/") and line["step"] <= since > 0):
                points.setdefault(name, {})[line["step"]] = value
    for step, result in evaluations(run, lines):
        for label, figures in [("", result), *((f"{name}/", each) for name, each in result["benchmarks"].items())]:
            average = f"avg@{result['samples']}"
            for figure in (average, f"pass@{result['samples']}"):
                points.setdefault(f"eval/{label}{figure}", {})[step] = figures[figure]
            if figures["standard_error"] is not None:
                errors.setdefault(f"eval/{label}{average}", {})[step] = figures["standard_error"]
    return Numbers(points, errors)


def curves(series: Sequence[Numbers]) -> list[dict]:
    """The curves of the runs of one series, which are drawn as one: all keep the same steps, as far as they have them.

    Returns:
        Of each run "step_lists": lists of steps; "values": name → [which of these lists, a value per step]; "errors":
        name → a standard error per step, for the averages of evaluations. Four significant digits.
    """
    logged: dict[str, set[int]] = {}
    for each in series:
        for name, points in each.points.items():
            logged.setdefault(name, set()).update(points)
    kept = {name: set(evenly(sorted(steps), _MOST_POINTS)) for name, steps in logged.items()}
    return [_curves(each, kept) for each in series]


def _curves(run: Numbers, kept: dict[str, set[int]]) -> dict:
    places: dict[tuple[int, ...], int] = {}
    values = {}
    for name in sorted(run.points):
        steps = sorted(run.points[name].keys() & kept[name])
        place = places.setdefault(tuple(steps), len(places))
        values[name] = [place, [rounded(run.points[name][step]) for step in steps]]
    lists = [list(steps) for steps in places]
    bars = {
        name: [rounded(of_step.get(step, math.nan)) for step in lists[values[name][0]]]
        for name, of_step in run.errors.items()
    }
    return {"step_lists": lists, "values": values, "errors": bars}


def evaluated_since(run: Path) -> int:
    """The step since whose end held-out problems have been answered in one way; 0: always."""
    return records.evaluated_alike_from(records.changes(run))


def evaluations(run: Path, lines: Sequence[dict]) -> list[tuple[int, dict]]:
    """(step, figures) of heldout/STEP.json, in the order of the steps; see `run.evaluation.summary`.

    Those that were made in another way than the last one are left out: they are not compared with it. So are those of
    steps after the last one of the log, which a run that went back to a checkpoint may have left behind.

    Args:
        lines: the objects of metrics.jsonl.
    """
    found, since = [], evaluated_since(run)
    last = lines[-1]["step"] if lines else -1
    for path in (run / "heldout").glob("*.json"):
        if path.stem.isdecimal() and since <= int(path.stem) <= last:
            with files.reading(path, "RUN"):
                result = formats.read_object(path)
                k = result["samples"]
                for figures in (result, *result["benchmarks"].values()):
                    error = figures["standard_error"]  # null of one problem
                    [float(x) for x in (figures[f"avg@{k}"], figures[f"pass@{k}"], *([] if error is None else [error]))]
                found.append((int(path.stem), result))
    return sorted(found, key=lambda pair: pair[0])


def before_and_after(run: Path, lines: Sequence[dict]) -> dict | None:
    """The first and the last evaluation, and the change of the average by problem; None without evaluations.

    Args:
        lines: the objects of metrics.jsonl.

    Returns:
        "samples"; "before" and "after" with step, average, error (of the average), passed; "rise" and "rise_error",
        None where the two did not evaluate the same number of problems, or are one. Errors of one problem are None.
    """
    found = evaluations(run, lines)
    if not found:
        return None
    (_, first), (_, last) = found[0], found[-1]
    sides = {}
    for side, (step, result) in (("before", found[0]), ("after", found[-1])):
        average, passed = (result[f"{name}@{result['samples']}"] for name in ("avg", "pass"))
        sides[side] = {"step": step, "average": average, "error": result["standard_error"], "passed": passed}
    rise = error = None
    each = [result.get("per_problem", []) for result in (first, last)]
    if len(found) > 1 and len(each[0]) == len(each[1]) > 0:
        with files.reading(run / "heldout", "RUN"):
            change = np.subtract(each[1], each[0])
        rise = float(change.mean())
        error = float(change.std(ddof=1) / math.sqrt(len(change))) if len(change) > 1 else None
    return {"samples": last["samples"], **sides, "rise": rise, "rise_error": error}
