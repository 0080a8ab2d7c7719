"""The config.json of a run: what the next start of the run may change, and what other commands take from it."""

import dataclasses
import datetime
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dasd_jax import files, formats, hosts
from dasd_jax.config import Config, GuardsGroup, older
from dasd_jax.errors import UserError

NAME = "config.json"

# What may change between two starts of the same run: where and how it is computed, exact to the bit on the same mesh.
OPERATIONAL = {
    "mesh.data", "mesh.fsdp", "mesh.tensor", "rollout.verifier_workers", "rollout.verifier_memory_mb",
    "run.checkpoint_every", "run.keep_checkpoints", "run.keep_every", "run.grace_s", "run.profile_step",
    "run.tracker", "run.project",
    *(f"guards.{field.name}" for field in dataclasses.fields(GuardsGroup) if field.name != "on_collapse"),
}  # fmt: skip

# What decides which prompts the model of a checkpoint has learnt to answer, and which problems it has not seen.
PROMPTS = {
    "model.weights", "model.preset", "model.tokenizer", "data.sources", "data.heldout", "data.shots",
    "data.instruction", "data.thinking", "data.now",
}  # fmt: skip


def read(workdir: Path) -> dict[str, Any] | None:
    """The config.json of the run in a folder; None if there is none.

    Raises:
        UserError: it cannot be read.
    """
    path = workdir / NAME
    if not os.path.exists(path):  # False for names that no file can have, too
        return None
    with files.reading(path, "--workdir"):
        return formats.read_object(path)


def check_same(config: Config, theirs: dict[str, Any], workdir: Path) -> None:
    """Refuses to continue a run with another config, or to take its result for that of another.

    Args:
        theirs: the content of its config.json.
        workdir: of the run, for the message.

    Raises:
        UserError: naming the first field that differs, but for the operational ones.
    """
    if older(theirs):
        raise UserError(
            f"--workdir: {workdir} was written by another version of this program, whose runs cannot be continued: "
            "expected another --workdir; evaluate and generate still read its checkpoints"
        )
    if found := _difference(config, theirs, workdir, lambda name: name not in OPERATIONAL):
        name, value, other = found
        raise UserError(
            f"--workdir: {workdir} belongs to a run with {name} = {other!r}, not {value!r}: "
            "expected the same config, or another --workdir"
        )


def for_checkpoint(config: Config, workdir: Path, which: str) -> Config:
    """The config of a command that uses a checkpoint, with the run's own moment.

    Args:
        which: the flag --checkpoint; a path belongs to the run that it lies in, anything else to that of `workdir`.

    Raises:
        UserError: model, tokenizer or prompts would not be those of the run.
    """
    if which and which not in ("best", "start") and not which.isdecimal():
        workdir = Path(which).expanduser().absolute().parent.parent
    theirs = read(workdir) or {}
    if found := _difference(config, theirs, workdir, lambda name: name in PROMPTS):
        name, value, other = found
        raise UserError(
            f"--config: {name} = {value!r}, but the run in {workdir} has {other!r}: expected the run's own, which is "
            f"taken from its {NAME} where --config is left out"
        )
    return dated(config, workdir)


def dated(config: Config, workdir: Path) -> Config:
    """The same, with `data.now` as the run in `workdir` has it, or else the present; equal in all processes."""
    if config.data.now:
        return config

    def moment() -> str:
        theirs = read(workdir) or {}
        with files.reading(workdir / NAME, "--workdir"):
            return theirs.get("data", {}).get("now") or datetime.datetime.now().isoformat(timespec="seconds")

    return dataclasses.replace(config, data=dataclasses.replace(config.data, now=hosts.from_main(moment)))


def _difference(
    config: Config, theirs: dict[str, Any], workdir: Path, matters: Callable[[str], bool]
) -> tuple[str, Any, Any] | None:
    """(GROUP.FIELD, value, theirs) of the first field that matters and differs, among those that both have."""
    for group, fields in json.loads(json.dumps(config.to_dict())).items():
        for name, value in fields.items():
            full = f"{group}.{name}"
            with files.reading(workdir / NAME, "--workdir"):
                other = theirs.get(group, {}).get(name, value)
            # No moment is asked for where it is empty.
            if other != value and matters(full) and not (full == "data.now" and value == ""):
                return full, value, other
    return None
