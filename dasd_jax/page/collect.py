"""What the runs of a report are: their names, settings, histories, groups of seeds and kept answers."""

import dataclasses
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

from dasd_jax import files
from dasd_jax.errors import UserError
from dasd_jax.page.curves import before_and_after, evaluated_since, evaluations
from dasd_jax.page.pack import clean, clipped, evenly, packed
from dasd_jax.run import records

_LONGEST_ANSWER = 20_000  # characters
# Of a run and not of what it tries: the moment of its first start, which a template may tell the prompts, and its seed.
_MOMENT = {"data.now", "problems.training prompts", "problems.prompts to evaluate"}
_OWN = {"run.seed", *_MOMENT}


def names(runs: Sequence[Path]) -> list[str]:
    """What to call each run: its folder, after as many of the folders above as tell it from the others.

    Raises:
        UserError: two are the same folder.
    """
    whole = [run.resolve() for run in runs]
    for i, run in enumerate(whole):
        if run in whole[:i]:
            raise UserError(f"RUN: {runs[i]} is given twice: expected each run once")
    for depth in range(1, max(len(run.parts) for run in whole) + 1):
        found = [os.path.join(*run.parts[-depth:]) for run in whole]
        if len(set(found)) == len(found):
            break
    return found


def settings(config: dict) -> dict:
    """GROUP.FIELD → value."""
    return {
        f"{group}.{name}": value
        for group, fields in config.items()
        for name, value in (fields.items() if isinstance(fields, dict) else ())
    }


def differing(configs: Sequence[dict]) -> list[dict]:
    """The settings that are not the same in all runs: {"name", "values": one per run, None where it has no such}."""
    flat = [settings(config) for config in configs]
    every = dict.fromkeys(itertools.chain.from_iterable(flat))
    rows = [{"name": name, "values": [each.get(name) for each in flat]} for name in every if name not in _MOMENT]
    return [row for row in rows if any(value != row["values"][0] for value in row["values"])]


@dataclasses.dataclass(frozen=True)
class History:
    """What config.json does not say of a run, since it holds the newest settings alone.

    Attributes:
        changes: of `records.changes`.
        origin: of `records.origin`.
    """

    changes: list[dict]
    origin: dict | None

    def key(self) -> tuple:
        """Equal for runs that began and were changed alike; where the checkpoint lay does not matter."""
        begun = self.origin and {name: value for name, value in self.origin.items() if name != "run"}
        return self.changes, begun

    def notes(self) -> list[str]:
        """The same in words, but for the rate that follows from other changes, which has a curve of its own."""
        fields = [line for line in self.changes if "/" not in line["field"]]
        found = [f"{records.change_as_text(line)} from step {line['step']}" for line in fields]
        if self.origin:
            moments = ", with the optimiser’s moments" if self.origin["optimizer"] else ""
            found.insert(0, f"started from step {self.origin['step']} of {self.origin['run']}{moments}")
        return found


def history(run: Path) -> History:
    """That of the run in a folder."""
    return History(records.changes(run), records.origin(run))


def groups(labels: Sequence[str], configs: Sequence[dict], histories: Sequence[History]) -> list[dict]:
    """The series of the curves: {"name", "runs": places}; runs that differ in their seed alone are one."""
    found: list[tuple[tuple, list[int]]] = []
    for place, (config, past) in enumerate(zip(configs, histories, strict=True)):
        key = {name: value for name, value in settings(config).items() if name not in _OWN}, past.key()
        same = next((places for other, places in found if other == key), None)
        if same is None:
            found.append((key, [place]))
        else:
            same.append(place)
    return [{"name": _group_name([labels[place] for place in places]), "runs": places} for _, places in found]


def _group_name(labels: Sequence[str]) -> str:
    if len(labels) == 1:
        return labels[0]
    shared = re.sub(r"[\W_]*(seed)?[\W_]*$", "", os.path.commonprefix(labels))
    return f"{shared or labels[0]}, {len(labels)} seeds"


def head(run: Path, label: str, config: dict, past: History, lines: Sequence[dict]) -> dict:
    """What the page shows of a run at once, but for its curves."""
    flat = settings(config)
    done = (run / "done.json").is_file()
    return {
        "name": label,
        "method": flat.get("objective.method", ""),
        "model": Path(str(flat.get("model.weights") or flat.get("model.preset") or "")).name,
        "seed": flat.get("run.seed"),
        "steps": max((line["step"] for line in lines), default=0),
        "planned": flat.get("run.steps"),
        "finished": done,
        "heldout": before_and_after(run, lines),
        "evaluated_since": evaluated_since(run),
        "notes": past.notes(),
    }


def answers(run: Path, lines: Sequence[dict]) -> dict:
    """The kept answers to held-out problems at the first and the last evaluation that kept some.

    Args:
        lines: the objects of metrics.jsonl.

    Returns:
        "steps": one or two, or none; "problems": those of the first one, each with "sides": lists with a
        {text, right, extracted, length, finished} per sample, for each of the steps.
    """
    kept = [step for step, _ in evaluations(run, lines) if _has_answers(run / "heldout" / f"{step}.jsonl")]
    steps = sorted({*kept[:1], *kept[-1:]})
    problems: dict = {}
    for place, step in enumerate(steps):
        path = run / "heldout" / f"{step}.jsonl"
        with files.reading(path, "RUN"):
            for line in records.answers(path):
                about = {name: line[name] for name in ("source", "question", "answer")}
                problem = problems.setdefault(line["example_id"], {**clean(about), "sides": [[] for _ in steps]})
                problem["sides"][place] = _samples(line)
    return {"steps": steps, "problems": list(problems.values())}


def _has_answers(path: Path) -> bool:
    return next(records.answers(path), None) is not None


def _samples(line: dict) -> list[dict]:
    columns = ("extracted", "length", "finished")
    return [
        {
            "text": clipped(text, _LONGEST_ANSWER),
            "right": records.is_right({"reward": line["reward"][i]}),
            **clean({name: line[name][i] for name in columns}),
        }
        for i, text in enumerate(line["text"])
    ]


def fitted(kept: dict, most: int) -> tuple[str, int]:
    """(the answers packed, how many problems are in it): evenly spaced ones, halved until at most `most` characters."""
    problems = kept["problems"]
    while True:
        block = packed({"steps": kept["steps"], "problems": problems})
        if len(block) <= most or not problems:
            return block, len(problems)
        problems = evenly(problems, len(problems) // 2)
