"""Another run's checkpoint that a run starts from: --from=RUN[:STEP], which from.json in the workdir remembers.

    {"run": "/data/runs/first", "step": 24, "weights": "<sha256>", "optimizer": false}

The new run takes the weights, and the place in the data where it draws the same batches; with --from-optimizer also the
optimiser's moments. Steps, schedule, logs, guards and the teachers' copies start over.
"""

import argparse
import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from dasd_jax import files, formats, hosts, recorded
from dasd_jax.batch import TrainState
from dasd_jax.config import PROBLEMS, Config
from dasd_jax.errors import UserError
from dasd_jax.learner import checkpoint, kept
from dasd_jax.learner.optim import begun_anew
from dasd_jax.model.config import ModelConfig
from dasd_jax.run import models, user_files

NAME = "from.json"

# With the training problems that are left and their order, what decides which of them a batch of a given number holds.
_DRAWS = ("run.seed", "rollout.problems")
_MODEL = ("model.weights", "model.preset", "model.tokenizer")


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a run starts from.

    Attributes:
        run: the other run's workdir, absolute.
        step: of its checkpoint.
        weights: sha256 of what the checkpoint's manifest says of the files of its parameters.
        optimizer: the optimiser's moments are taken along.
    """

    run: str
    step: int
    weights: str
    optimizer: bool

    @property
    def folder(self) -> Path:
        """Of the checkpoint."""
        return Path(self.run) / "checkpoints" / f"{self.step:06d}"


def add_flags(flags: argparse.ArgumentParser) -> None:
    """Adds --from and --from-optimizer."""
    flags.add_argument(
        "--from",
        dest="from_run",
        default="",
        metavar="RUN[:STEP]",
        help="start with the weights of a checkpoint of the run in this folder (default: its newest), or :best",
    )
    flags.add_argument("--from-optimizer", action="store_true", help="with --from: take the optimiser's moments too")


def resolve(asked: str, optimizer: bool, workdir: Path) -> Origin | None:
    """What the run in `workdir` starts from, equal in all processes: by --from, or as from.json says.

    Raises:
        UserError: no such checkpoint, a damaged one, or another one than the run in `workdir` started from.
    """

    def found() -> dict[str, Any] | None:
        origin = _resolve(asked, optimizer, workdir)
        return origin and dataclasses.asdict(origin)

    origin = hosts.from_main(found)
    return origin and Origin(**origin)


def _resolve(asked: str, optimizer: bool, workdir: Path) -> Origin | None:
    begun = os.path.exists(workdir / recorded.NAME)
    known = read(workdir)
    if not asked:
        if optimizer and not (known and known.optimizer):
            raise UserError("--from-optimizer: expected --from=RUN with it, whose optimiser is meant")
        return known
    run, which = _split(asked)
    if run.absolute() == workdir.absolute():
        raise UserError(f"--from: {run} is the --workdir: expected another run, or another --workdir to start in")
    if begun:
        if known is None:
            raise UserError(
                f"--from: {workdir} holds a run that did not start from another: expected another --workdir"
            )
        same_step = not which.isdecimal() or int(which) == known.step
        if (str(run.absolute()), True, optimizer) != (known.run, same_step, known.optimizer):
            moments = " with --from-optimizer" if known.optimizer else ""
            raise UserError(
                f"--from: {asked}: the run in {workdir} started from {known.run}:{known.step}{moments}: expected the "
                "same, or no --from, or another --workdir"
            )
        return known
    if recorded.read(run) is None:
        raise UserError(f"--from: {run} holds no {recorded.NAME}: expected the --workdir of a run")
    folder = kept.find(run, which, "--from")
    return Origin(str(run.absolute()), int(folder.name), _weights(folder), optimizer)


def write(workdir: Path, origin: Origin) -> None:
    """Writes from.json."""
    files.write_json(workdir / NAME, dataclasses.asdict(origin))


def load(
    origin: Origin, config: Config, mesh: Mesh, optimizer: optax.GradientTransformation, problems: dict[str, str]
) -> tuple[ModelConfig, TrainState, str]:
    """Architecture, the state before the first step, and in words what of it is the other run's.

    Args:
        problems: of `user_files.of_problems`.

    Raises:
        UserError: a checkpoint that is gone, damaged or not the one that the run started from, of another model, or
            without what is asked of it.
    """
    folder, views = origin.folder, config.method.views(config.hp)
    if problem := hosts.from_main(lambda: _problem(origin)):
        raise UserError(f"--from: {folder} {problem}")
    if other := _first_other(config, Path(origin.run), _MODEL):
        name, mine, value = other
        raise UserError(
            f"--from: {name} = {mine!r}, but the run in {origin.run} has {value!r}: expected the same model"
        )
    model, params = checkpoint.restore_params(folder, mesh)
    if config.model.preset:
        models.check_architecture(model, config.model.preset, str(folder))
    fresh = checkpoint.abstract_state(params, mesh, optimizer, {})
    moments = checkpoint.restore_fields(folder, {"opt_state": fresh.opt_state}) if origin.optimizer else {}
    state = jax.jit(lambda p: checkpoint.new_state(p, optimizer, views), donate_argnums=0)(params)
    if moments:
        state = state.replace(opt_state=begun_anew(moments["opt_state"]))
    taken = "weights and moments" if origin.optimizer else "weights"
    drawn = formats.read_object(folder / "manifest.json").get("batches_drawn")
    if other := _first_other(config, Path(origin.run), _DRAWS):
        data = f"the data start over, since {other[0]} differs"
    elif type(drawn) is not int or not (theirs := hosts.from_main(lambda: _trained_on(Path(origin.run)))):
        data = "the data start over: that run was written by an older version, which did not record its place in them"
    elif theirs != problems[user_files.TRAINED_ON]:
        data = f"the data start over, since the {user_files.TRAINED_ON} differ"
    else:
        state = state.replace(batches_drawn=state.batches_drawn + drawn)
        data = f"the data go on after {drawn} batches"
    said = f"starts from step {origin.step} of {origin.run}: {taken}; {data}"
    return models.configured(config, model), state, said


def _first_other(config: Config, run: Path, names: tuple[str, ...]) -> tuple[str, Any, Any] | None:
    """(GROUP.FIELD, value, that of the run in a folder) of the first of some fields that differs."""
    mine, theirs = recorded.as_json(config), recorded.read(run) or {}
    for full in names:
        group, _, name = full.partition(".")
        with files.reading(run / recorded.NAME, "--from"):
            other = theirs.get(group, {}).get(name)
        if mine[group][name] != other:
            return full, mine[group][name], other
    return None


def _trained_on(run: Path) -> str:
    """The sha256 of the problems that the run in a folder was trained on; "" if an older version has kept none."""
    theirs = recorded.read(run) or {}
    with files.reading(run / recorded.NAME, "--from"):
        return theirs.get(PROBLEMS, {}).get(user_files.TRAINED_ON, "")


def _split(asked: str) -> tuple[Path, str]:
    """(the run's folder, which checkpoint) of RUN[:STEP]."""
    run, _, which = asked.rpartition(":")
    if run and (which.isdecimal() or which == "best"):
        return Path(run).expanduser(), which
    return Path(asked).expanduser(), ""


def read(workdir: Path) -> Origin | None:
    path = workdir / NAME
    if not os.path.exists(path):
        return None
    with files.reading(path, "--workdir"):
        origin = Origin(**formats.read_object(path))
        kinds = (str, int, str, bool)
        if not all(type(value) is kind for value, kind in zip(vars(origin).values(), kinds, strict=True)):
            raise ValueError("a value of another type")
    return origin


def _problem(origin: Origin) -> str:
    """What is wrong with the checkpoint that a run is to start from; "" if nothing is."""
    try:
        if problem := kept.damage(origin.folder):
            return f"is damaged: {problem}"
        if _weights(origin.folder) != origin.weights:
            return "is another one than that which the run in --workdir started from: expected another --workdir"
        if origin.optimizer and not kept.goes_on(origin.folder):
            return "was written or left without its optimiser (run.keep_optimizer): expected no --from-optimizer"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return ""


def _weights(folder: Path) -> str:
    listed = formats.read_object(folder / "manifest.json")["files"].items()
    return hashlib.sha256(
        json.dumps(sorted(pair for pair in listed if pair[0].startswith("params/"))).encode()
    ).hexdigest()
