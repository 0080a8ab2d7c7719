"""The config.json of a run: what the next start of the run may change, and what other commands take from it."""

import dataclasses
import datetime
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dasd_jax import files, formats, hosts
from dasd_jax.config import SHARED, Config, GuardsGroup, declared, from_dict, older
from dasd_jax.errors import UserError
from dasd_jax.field_names import EVALUATION

NAME = "config.json"
CHANGES = "changes.jsonl"  # of the same folder; run/changes.py

# What guards.on_collapse=anneal reads when it lowers the teacher's weight: the window and every stop level but those of
# what ends a run in any case.
_ANNEAL = {"guards.on_collapse", "guards.window"} | {
    f"guards.{field.name}"
    for field in dataclasses.fields(GuardsGroup)
    if field.name.endswith("_stop")
    and field.name not in ("equal_rewards_stop", "skipped_steps_stop", "empty_steps_stop")
}

# What may change between two starts of the same run: where and how it is computed, exact to the bit on the same mesh.
OPERATIONAL = {
    "mesh.data", "mesh.fsdp", "mesh.tensor", "rollout.verifier_workers",
    "run.checkpoint_every", "run.checkpoint_minutes", "run.keep_checkpoints", "run.keep_every", "run.keep_optimizer",
    "run.grace_s", "run.profile_step", "run.logged_rollouts", "run.samples_mb", "run.eval_every",
    "run.tracker", "run.project",
    *({f"guards.{field.name}" for field in dataclasses.fields(GuardsGroup)} - _ANNEAL),
}  # fmt: skip

# What may change from one step of a run to the next, and is noted: each step reads it anew, and the training state
# holds nothing that was made with it. A method's own numbers are added in `_may_change`.
FROM_A_STEP = {
    *_ANNEAL,
    "run.steps", "run.noise_every", "run.rescore_every", "optim.learning_rate", "optim.schedule", "optim.warmup_steps",
    "optim.weight_decay", "optim.eps", "optim.grad_clip", "optim.microbatches",
    "objective.clip_low", "objective.clip_high", "objective.clip_dual", "objective.token_chunk", "rollout.slots",
    "objective.tis", "objective.row_ratio_max", "rollout.weights", "rollout.cache",
    "model.remat", "model.attention",
}  # fmt: skip

# A method's own numbers that decide which copies its teachers keep, which prompts they have, or what it remembers.
REMEMBERED = {
    "objective.rate", "objective.refresh", "objective.wrong", "objective.measured_steps", "objective.off_below",
    "objective.contexts", "objective.hold", "objective.look_ahead", "objective.discount", "objective.probe_weight",
    "objective.entropy_target", "objective.entropy_weight", "objective.controller_rate", "objective.controller_batch",
    "objective.progress_steps",
}  # fmt: skip

# By field or group, what of a run would not hold with another value.
_LOST = {
    "run": "the order of its data and its random draws",
    "model": "what its weights are, and are read and computed with",
    "data.verifier": "rewards that compare with those before",
    **dict.fromkeys(
        ("data.privileged", "data.privileged_wording", "data.transition", "data.skills"),
        "a teacher that is shown the same",
    ),
    "data": "its place in the data and the problems held out of it",
    "rollout": "its place in the data, and rewards and lengths that compare with those before",
    "objective": "what its method remembers, and rewards that compare with those before",
    "optim": "the optimiser's moments and the count of its updates",
}

# What decides which prompts the model of a checkpoint has learnt to answer, and which problems it has not seen.
PROMPTS = {
    "model.weights", "model.preset", "model.tokenizer", "data.sources", "data.heldout", "data.shots",
    "data.instruction", "data.system", "data.thinking", "data.now",
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


@dataclasses.dataclass(frozen=True)
class Change:
    """A field, as GROUP.FIELD, with its value in the run so far and from now on."""

    field: str
    before: Any
    after: Any


def check_same(config: Config, theirs: dict[str, Any], workdir: Path) -> None:
    """Refuses to take the result of a run for that of a run with another config.

    Args:
        theirs: the content of its config.json.
        workdir: of the run.

    Raises:
        UserError: naming the first field that differs, but for the operational ones, or that was changed on the way.
    """
    _check_version(theirs, workdir)
    if found := _difference(config, theirs, workdir, lambda name: name not in OPERATIONAL):
        raise UserError(f"{_belongs(workdir, *found)}: expected the same config, or another --workdir")
    if os.path.exists(workdir / CHANGES):
        raise UserError(
            f"--workdir: {workdir} holds a run that was changed on the way ({CHANGES}): expected one with the same "
            "config from its first step on, or another --workdir"
        )


def changes(config: Config, theirs: dict[str, Any], workdir: Path) -> list[Change]:
    """What the next start of a run changes from its next step on; operational fields are not among it.

    Args:
        theirs: the content of its config.json.
        workdir: of the run, for the message.

    Raises:
        UserError: naming the first field that cannot change within a run, and what would be lost.
    """
    _check_version(theirs, workdir)
    if found := _difference(config, theirs, workdir, lambda name: not _may_change(name, config)):
        lost = _LOST.get(found[0]) or _LOST[found[0].partition(".")[0]]
        raise UserError(
            f"{_belongs(workdir, *found)}, which would lose {lost}: expected the same "
            f"config, or a new run from its weights: the same command with --workdir={workdir}-2 --from={workdir}"
        )
    differences = list(_differences(config, theirs, workdir, lambda name: name not in OPERATIONAL))
    if differences:
        try:
            from_dict(theirs)
        except UserError as error:
            raise UserError(f"--workdir: {workdir / NAME}: {error}: restore the file") from error
    return [Change(name, before=other, after=value) for name, value, other in differences]


def _may_change(name: str, config: Config) -> bool:
    group, _, field = name.partition(".")
    if group == "objective" and field not in SHARED:
        return declared(config.objective.method)[group][field].type in (int, float) and name not in REMEMBERED
    return name in OPERATIONAL | EVALUATION | FROM_A_STEP


def _check_version(theirs: dict[str, Any], workdir: Path) -> None:
    if older(theirs):
        raise UserError(
            f"--workdir: {workdir} was written by another version of this program, whose runs cannot be continued: "
            "expected another --workdir; evaluate and generate still read its checkpoints"
        )


def _belongs(workdir: Path, name: str, value: Any, other: Any) -> str:
    return f"--workdir: {workdir} belongs to a run with {name} = {other!r}, not {value!r}"


def run_of(workdir: Path, which: str) -> Path:
    """The folder of the run that --checkpoint means: for a path the run that it lies in, for all else `workdir`."""
    return Path(which).expanduser().absolute().parent.parent if is_path(which) else workdir


def is_path(which: str) -> bool:
    """Whether --checkpoint is a path, and not a step, best, start or the newest."""
    return bool(which) and which not in ("best", "start") and not which.isdecimal()


def benchmarks(workdir: Path, which: str) -> tuple[str, ...] | None:
    """data.benchmarks of the run that --checkpoint means, equal in all processes; None where no run says any."""
    run = run_of(workdir, which)
    theirs = hosts.from_main(lambda: read(run)) or {}
    with files.reading(run / NAME, "--workdir"):
        found = theirs.get("data", {}).get("benchmarks")
        return None if found is None else tuple(found)


def for_checkpoint(config: Config, workdir: Path, which: str) -> Config:
    """The config of a command that uses a checkpoint, with the run's own moment.

    Args:
        which: the flag --checkpoint.

    Raises:
        UserError: model, tokenizer or prompts would not be those of the run.
    """
    run = run_of(workdir, which)
    theirs = read(run) or {}
    if found := _difference(config, theirs, run, lambda name: name in PROMPTS):
        name, value, other = found
        # Without --config it is that of --workdir, which may be another run's.
        given = "" if run.absolute() == workdir.absolute() else f" and --workdir={run} is given"
        raise UserError(
            f"--config: {name} = {value!r}, but the run in {run} has {other!r}: expected the run's own, which is "
            f"taken from its {NAME} where --config is left out{given}"
        )
    return dated(config, run)


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
    """The first of `_differences`; None if there is none."""
    return next(_differences(config, theirs, workdir, matters), None)


def _differences(
    config: Config, theirs: dict[str, Any], workdir: Path, matters: Callable[[str], bool]
) -> Iterator[tuple[str, Any, Any]]:
    """(GROUP.FIELD, value, theirs) of the fields that matter and differ, among those that both have."""
    for group, fields in as_json(config).items():
        for name, value in fields.items():
            full = f"{group}.{name}"
            with files.reading(workdir / NAME, "--workdir"):
                other = theirs.get(group, {}).get(name, value)
            # No moment is asked for where it is empty.
            if other != value and matters(full) and not (full == "data.now" and value == ""):
                yield full, value, other


def as_json(config: Config) -> dict[str, dict[str, Any]]:
    """Group → field → value, as they are read back from config.json."""
    return json.loads(json.dumps(config.to_dict()))
