"""Checkpoints: Orbax writes the arrays, a manifest of ours says what is valid.

    checkpoints/000020/params/      the model, all that evaluation and generation need
    checkpoints/000020/rest/        every other field of TrainState: optimiser state, step, data position, teachers
    checkpoints/000020/manifest.json    architecture, whether it is the best yet, sha256 of every file; written last

Every process writes the arrays of its own devices, process 0 the manifest when all have: the folder is shared by all.
A folder without a manifest, or whose files differ from it, does not count, whatever its name: Orbax restores flipped
bytes without a word and takes an empty folder for the latest step.
"""

import contextlib
import dataclasses
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from dasd_jax import files, formats, hosts
from dasd_jax.batch import Params, TrainState
from dasd_jax.errors import TrainingError, UserError
from dasd_jax.learner import teachers
from dasd_jax.mesh import on_mesh
from dasd_jax.model import param_table
from dasd_jax.model.config import ModelConfig
from dasd_jax.model.weights import file_sha256
from dasd_jax.objective.contract import View


class Writer:
    """Writes the checkpoints of one run while the run goes on.

    A save that does not happen is an error, raised at the next call of any method.
    """

    def __init__(self, workdir: Path, model: ModelConfig, *, keep: int, keep_every: int = 0):
        """Of finished ones stay the newest `keep`, the best, and those of every `keep_every`-th step (0: none)."""
        self._workdir, self._model, self._keep, self._keep_every = workdir, model, keep, keep_every
        self._thread, self._failure = None, None

    def save(self, state: TrainState, *, best: bool = False) -> Path:
        """Starts to write the state as the newest checkpoint, when the one before is finished.

        Args:
            state: copied when this returns: its memory may be given up.
            best: it has the best held-out average so far: it stays until there is a better one.

        Returns:
            The folder; it counts once `wait` has returned.

        Raises:
            TrainingError: it, or the one before, could not be written.
        """
        self.wait()
        folder = self._workdir / "checkpoints" / f"{int(state.step):06d}"
        try:
            if hosts.is_main():
                shutil.rmtree(folder, ignore_errors=True)
            hosts.barrier()
            finish = begin(folder, self._model, {"params": state.params, "rest": _rest(state)}, best=best)
        except Exception as error:
            raise self._failed(folder, error) from error
        self._thread = threading.Thread(target=self._finish, args=(folder, finish), name="checkpoint")
        self._thread.start()
        return folder

    def check(self) -> None:
        """Raises what went wrong since; does not wait."""
        if self._failure:
            raise self._failure

    def wait(self) -> None:
        """Returns when the last one is whole."""
        if self._thread:
            self._thread.join()
        self.check()

    def _finish(self, folder: Path, finish: Callable[[], None]) -> None:
        try:
            finish()
            if hosts.is_main():
                self._remove_old()
        except Exception as error:  # of whatever storage lies below: it must reach the run
            self._failure = self._failed(folder, error)
            self._failure.__cause__ = error

    def _failed(self, folder: Path, error: Exception) -> TrainingError:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:300]
        return TrainingError(
            f"checkpoint {folder.name} could not be written: {reason}: expected room and permission in "
            f"{folder.parent}. Those before it stay, and the same command goes on from there"
        )

    def _remove_old(self) -> None:
        best = _best(self._workdir)
        for old in _folders(self._workdir)[: -self._keep]:
            if old.name != best and not (self._keep_every and int(old.name) % self._keep_every == 0):
                shutil.rmtree(old)


def write(folder: Path, model: ModelConfig, trees: dict[str, Any], *, best: bool = False) -> None:
    """Writes trees of arrays, each into a folder of its name, and the manifest of all that then lies in `folder`."""
    begin(folder, model, trees, best=best)()


def begin(folder: Path, model: ModelConfig, trees: dict[str, Any], *, best: bool = False) -> Callable[[], None]:
    """The first half of `write`: the arrays are copied when it returns.

    Returns:
        The second half, which may run in another thread: it waits for the arrays to lie in `folder`, and adds the
        manifest that makes them count.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as started:
        for name, tree in trees.items():
            # Compressed, floats are a tenth smaller and take a core four times as long.
            handler = ocp.PyTreeCheckpointHandler(use_compression=False)
            writer = started.enter_context(ocp.AsyncCheckpointer(handler))
            writer.save((folder / name).absolute(), ocp.args.PyTreeSave(tree))
        writing = started.pop_all()

    def finish() -> None:
        writing.close()  # waits, in process 0 until the others have written their parts
        if hosts.is_main():
            manifest = {"architecture": dataclasses.asdict(model), "best": best, "files": _checksums(folder)}
            files.write_json(folder / "manifest.json", manifest)

    return finish


def latest(workdir: Path, *, set_aside: bool) -> Path | None:
    """The newest whole checkpoint, or None.

    Args:
        set_aside: rename newer ones that are damaged and remove those that were never finished, with a line on stdout;
            only for the run that owns the folder, since another may be writing one at this moment.

    Raises:
        UserError: with `set_aside`, there were finished ones and none of them is whole.
        OSError: one could not be read, which says nothing of what is in it.
    """
    for folder in reversed(_folders(workdir)):
        problem = damage(folder)
        if not problem:
            return folder
        if not set_aside:
            continue
        if not (folder / "manifest.json").exists():
            shutil.rmtree(folder)
            print(f"checkpoint {folder.name}: {problem}; removed")
            continue
        aside = folder.with_name(folder.name + ".damaged")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        print(f"checkpoint {folder.name}: {problem}; set aside as {aside.name}")
    if set_aside and (damaged := sorted((workdir / "checkpoints").glob("*.damaged"))):
        raise UserError(
            f"--workdir: {workdir}: no checkpoint is whole, the newest is {damaged[-1].name}: expected another "
            "--workdir, or this one without checkpoints/ and metrics.jsonl, where the run begins again"
        )
    return None


def find(workdir: Path, which: str) -> Path:
    """The checkpoint that a person names: "" for the newest, "best", a step number, or a path.

    Raises:
        UserError: it does not exist, is not whole or cannot be read.
    """
    try:
        return _find(workdir, which)
    except OSError as error:
        where = error.filename or workdir
        raise UserError(f"--checkpoint: {where}: {error.strerror or error}: expected files that can be read") from error


def _find(workdir: Path, which: str) -> Path:
    if not which:
        folder = latest(workdir, set_aside=False)
        if folder is None:
            raise UserError(f"--checkpoint: {workdir} holds no whole checkpoint: expected one; has the run started?")
        return folder
    if which == "best":
        which = _best(workdir)
        if not which:
            raise UserError(f"--checkpoint: best: {workdir} has none: expected a run with run.eval_every")
    folder = workdir / "checkpoints" / f"{int(which):06d}" if which.isdecimal() else Path(which).expanduser()
    try:
        there = folder.is_dir()
    except OSError:  # no name that a folder could have
        there = False
    if not there:
        have = ", ".join(str(int(path.name)) for path in _folders(workdir)) or "none"
        raise UserError(f"--checkpoint: {which}: {folder} does not exist: expected a path or a step of {have}")
    problem = damage(folder)
    if problem:
        raise UserError(f"--checkpoint: {which}: {folder} is damaged: {problem}")
    return folder


def restore_params(folder: Path, mesh: Mesh) -> tuple[ModelConfig, Params]:
    """Architecture and parameters of a whole checkpoint, laid out for training on `mesh`.

    Raises:
        UserError: its manifest vouches for what is no checkpoint of ours.
    """
    try:
        model = ModelConfig.from_dict(formats.read_object(folder / "manifest.json")["architecture"])
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"checkpoint {folder}: its manifest names no architecture that is known: {error}") from error
    return model, _restore_tree(folder / "params", param_table.abstract(model, mesh))


def restore(
    folder: Path, mesh: Mesh, optimizer: optax.GradientTransformation, views: Mapping[str, View]
) -> tuple[ModelConfig, TrainState]:
    """Architecture and state of a whole checkpoint, laid out for training on `mesh`."""
    model, params = restore_params(folder, mesh)
    rest = _rest(abstract_state(params, mesh, optimizer, views))
    return model, TrainState(params=params, **_restore_tree(folder / "rest", rest))


def _rest(state: TrainState) -> dict[str, Any]:
    """All but the parameters; a field without arrays is left as it is made."""
    return {name: value for name, value in vars(state).items() if name != "params"}


def _restore_tree(folder: Path, target: Any) -> Any:
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(folder.absolute(), target)
    except Exception as error:  # of Orbax, TensorStore and their parsers, which share no class
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"checkpoint {folder}: it is not what its manifest says: {reason}") from error


def new_state(params: Params, optimizer: optax.GradientTransformation, views: Mapping[str, View]) -> TrainState:
    """The state before the first step; under jit the optimiser's arrays are made in place in their shardings."""
    counts = {name: jnp.zeros((), jnp.int32) for name in ("step", "batches_drawn")}
    return TrainState(params=params, opt_state=optimizer.init(params), teachers=teachers.start(params, views), **counts)


def abstract_state(
    params: Params, mesh: Mesh, optimizer: optax.GradientTransformation, views: Mapping[str, View]
) -> TrainState:
    """Shapes, dtypes and shardings of `new_state`, from parameters or from theirs."""
    fresh = jax.eval_shape(lambda params: new_state(params, optimizer, views), params)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_mesh(mesh, x)), fresh)


def _folders(workdir: Path) -> list[Path]:
    return sorted(path for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdigit())


def _best(workdir: Path) -> str:
    """The name of the newest finished checkpoint that was the best when it was written, "" where none was."""
    for folder in reversed(_folders(workdir)):
        # The manifest says both, so that a kill cannot come between them.
        with contextlib.suppress(OSError, ValueError, KeyError):
            if formats.read_object(folder / "manifest.json")["best"]:
                return folder.name
    return ""


def _checksums(folder: Path) -> dict[str, str]:
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(folder)): file_sha256(path) for path in found}


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint, in a few words; empty when it is whole.

    Raises:
        OSError: a file of it could not be read.
    """
    try:
        expected = formats.read_object(folder / "manifest.json")["files"]
    except FileNotFoundError:
        return "it was never finished"
    except (ValueError, KeyError):
        return "its manifest is damaged"
    if not isinstance(expected, dict):
        return "its manifest is damaged"
    found = _checksums(folder)
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            return f"{name} differs from its manifest"
    return ""
