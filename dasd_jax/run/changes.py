"""What was changed in a run on its way: changes.jsonl, one line per field and step from which it counts.

    {"step": 24, "field": "optim.learning_rate", "before": 1e-06, "after": 3e-06}
    {"step": 24, "field": "optim/learning_rate", "before": 4e-07, "after": 1.2e-06}

The second line says what the rate of the next update would have been and is, by the schedule. config.json holds the
newest values. The file is written before it: a run that was killed between the two is told the same change again, and
one that goes back to an earlier checkpoint has its later changes count from there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dasd_jax import config as config_module
from dasd_jax import files, recorded
from dasd_jax.config import Config
from dasd_jax.learner.optim import make_schedule
from dasd_jax.recorded import Change
from dasd_jax.run import records

RATE = "optim/learning_rate"  # as in metrics.jsonl


def read(workdir: Path) -> list[dict[str, Any]]:
    """The lines of the file, in order; none if there is no file.

    Raises:
        UserError: it is damaged.
    """
    return records.changes(workdir, "--workdir")


def write(workdir: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Writes the file anew; without lines there is none."""
    path = workdir / recorded.CHANGES
    if lines:
        files.write_lines(path, lines)
    else:
        path.unlink(missing_ok=True)


def until(lines: Sequence[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    """Those that were in force at a step."""
    return [line for line in lines if line["step"] <= step]


def after(
    lines: Sequence[dict[str, Any]], step: int, asked: Sequence[Change], config: Config, updates: int
) -> list[Change]:
    """What changes from the step after `step` on, the learning rate of its first update last, if that differs.

    Args:
        lines: of the file; those of later steps were made when the run had come further than it stands now.
        step: the last one of the checkpoint that the run goes on from.
        asked: what differs between config.json and `config`.
        config: from now on.
        updates: of the optimiser, as far as the checkpoint.

    Raises:
        UserError: a value before is none that its field can have: the file was not written by this program.
    """
    before: dict[str, Any] = {}
    for line in lines:
        if line["step"] > step and line["field"] != RATE:
            before.setdefault(line["field"], line["before"])
    for change in asked:
        before.setdefault(change.field, change.before)
    now = recorded.as_json(config)
    values = {f"{group}.{name}": value for group, fields in now.items() for name, value in fields.items()}
    found = [Change(name, old, values[name]) for name, old in before.items() if old != values.get(name, old)]
    for change in found:
        group, _, name = change.field.partition(".")
        now[group][name] = change.before
    rates = [rate(each, updates) for each in (config_module.from_dict(now), config)]
    return found + ([Change(RATE, *rates)] if rates[0] != rates[1] else [])


def rate(config: Config, updates: int) -> float:
    """The learning rate of the optimiser's step after so many, to the digits of a float32."""
    return float(f"{float(make_schedule(config.optim, config.run.steps * config.optim.minibatches)(updates)):.7g}")


def as_lines(changes: Sequence[Change], step: int) -> list[dict[str, Any]]:
    """The lines of changes that count from the step after `step` on."""
    return [{"step": step + 1, "field": each.field, "before": each.before, "after": each.after} for each in changes]


def as_text(line: dict[str, Any]) -> str:
    """What is said of a line."""
    return f"from step {line['step']} on: {records.change_as_text(line)}"
