"""Checkpoints: Orbax writes the arrays, our manifest marks them as complete and valid.

    checkpoints/000020/params/      the parameters, sufficient for evaluation and generation
    checkpoints/000020/rest/        every other field of TrainState: optimiser state, step, data position, teachers
    checkpoints/000020/tokenizer.json …    the tokenizer's files, as `text.tokenizer_files.copy_tokenizer` names them
    checkpoints/000020/manifest.json    architecture, whether it is the best so far, data position, sha256 of every
                                        file; written last

Every process writes the arrays of its own devices to a shared folder, then process 0 writes the manifest. A folder is
valid only if its files match its manifest: Orbax itself restores corrupted bytes silently and takes an empty folder for
the latest step.
"""

import contextlib
import dataclasses
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
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
from dasd_jax.learner import kept, teachers
from dasd_jax.mesh import on_mesh
from dasd_jax.model import param_table
from dasd_jax.model.config import ModelConfig
from dasd_jax.objective.contract import View


class Writer:
    """Writes the checkpoints of one run asynchronously.

    A failed write is raised by the next call of any method.

    Attributes:
        finished: the step of the newest complete checkpoint; 0 where there is none.
    """

    def __init__(
        self,
        workdir: Path,
        model: ModelConfig,
        *,
        keep: int,
        keep_every: int = 0,
        finished: int = 0,
        beside: Mapping[str, bytes] | None = None,
    ):
        """Keeps the newest `keep` finished checkpoints, the best, and those of every `keep_every`-th step (0: none).

        Args:
            finished: the step that the run goes on from.
            beside: name → content of small files that belong into every checkpoint: the tokenizer's.
        """
        self.finished, self._beside = finished, dict(beside or {})
        self._workdir, self._model, self._keep, self._keep_every = workdir, model, keep, keep_every
        self._thread, self._failure, self._warnings = None, None, []

    def save(self, state: TrainState, *, best: bool = False) -> Path:
        """Waits for the previous write, then starts to write the state as the newest checkpoint.

        Args:
            state: copied before this returns, so that it may be donated.
            best: it has the best held-out average so far, and is kept until there is a better one.

        Returns:
            The folder; it is complete once `wait` has returned.

        Raises:
            TrainingError: this checkpoint, or the previous one, could not be written.
        """
        self.wait()
        folder = self._workdir / "checkpoints" / f"{int(state.step):06d}"
        try:
            if hosts.is_main():
                shutil.rmtree(folder, ignore_errors=True)
            hosts.barrier()
            trees = {"params": state.params, "rest": _rest(state)}
            noted = {"best": best, "batches_drawn": int(state.batches_drawn)}
            finish = begin(folder, self._model, trees, noted, self._beside)
        except Exception as error:
            raise self._failed(folder, error) from error
        self._thread = threading.Thread(target=self._finish, args=(folder, finish), name="checkpoint")
        self._thread.start()
        return folder

    def check(self) -> None:
        """Raises the error of a failed write, if any; does not wait."""
        if self._failure:
            raise self._failure

    def take_warnings(self) -> list[str]:
        """Those that no call has returned before."""
        warnings, self._warnings = self._warnings, []
        return warnings

    def wait(self) -> None:
        """Returns when the last checkpoint is complete; raises if its write failed."""
        if self._thread:
            self._thread.join()
        self.check()

    def _finish(self, folder: Path, finish: Callable[[], None]) -> None:
        try:
            finish()
            self.finished = int(folder.name)
            if hosts.is_main():
                self._remove_old()
        except Exception as error:  # any error of the storage backend must reach the main thread
            self._failure = self._failed(folder, error)
            self._failure.__cause__ = error

    def _failed(self, folder: Path, error: Exception) -> TrainingError:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:300]
        return TrainingError(
            f"checkpoint {folder.name} could not be written: {reason}: expected free space and write permission in "
            f"{folder.parent}. Earlier checkpoints are kept; the same command resumes from the last one"
        )

    def _remove_old(self) -> None:
        best = kept.best(self._workdir)
        for old in kept.folders(self._workdir)[: -self._keep]:
            if old.name != best and not (self._keep_every and int(old.name) % self._keep_every == 0):
                try:
                    shutil.rmtree(old)
                except OSError as error:  # the new one is whole, and the next write tries again
                    self._warnings.append(f"warning: checkpoint {old.name} could not be removed: {error.strerror}")


def write(folder: Path, model: ModelConfig, trees: dict[str, Any]) -> None:
    """Writes each tree of arrays into a subfolder of its name, then the manifest of all files in `folder`."""
    begin(folder, model, trees, {"best": False}, {})()


def begin(
    folder: Path, model: ModelConfig, trees: dict[str, Any], noted: dict[str, Any], beside: dict[str, bytes]
) -> Callable[[], None]:
    """Starts `write`; the arrays are copied to host memory before it returns.

    Args:
        noted: entries of the manifest beside architecture and files.
        beside: name → content of further files.

    Returns:
        A function that finishes the write, in any thread: it waits until the arrays are written, then adds the
        manifest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as started:
        for name, tree in trees.items():
            # Compression saves a tenth of the bytes and takes four times the CPU time.
            handler = ocp.PyTreeCheckpointHandler(use_compression=False)
            writer = started.enter_context(ocp.AsyncCheckpointer(handler))
            writer.save((folder / name).absolute(), ocp.args.PyTreeSave(tree))
        writing = started.pop_all()

    def finish() -> None:
        writing.close()  # waits; in process 0 also for the parts of the other processes
        if hosts.is_main():
            for name, content in beside.items():
                (folder / name).write_bytes(content)
            manifest = {"architecture": dataclasses.asdict(model), **noted, "files": kept.checksums(folder)}
            files.write_json(folder / "manifest.json", manifest)

    return finish


def restore_params(folder: Path, mesh: Mesh) -> tuple[ModelConfig, Params]:
    """Architecture and parameters of a valid checkpoint, sharded for training on `mesh`.

    Raises:
        UserError: the manifest or the arrays are not those of a checkpoint of ours.
    """
    model = architecture(folder)
    return model, _restore_tree(folder / "params", param_table.abstract(model, mesh))


def architecture(folder: Path) -> ModelConfig:
    """The architecture of a checkpoint, without reading its arrays.

    Raises:
        UserError: the manifest is not that of a checkpoint of ours.
    """
    try:
        return ModelConfig.from_dict(formats.read_object(folder / "manifest.json")["architecture"])
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"checkpoint {folder}: its manifest has no known architecture: {error}") from error


def restore(
    folder: Path, mesh: Mesh, optimizer: optax.GradientTransformation, views: Mapping[str, View]
) -> tuple[ModelConfig, TrainState]:
    """Architecture and state of a valid checkpoint, sharded for training on `mesh`."""
    model, params = restore_params(folder, mesh)
    rest = _rest(abstract_state(params, mesh, optimizer, views))
    return model, TrainState(params=params, **_restore_tree(folder / "rest", rest))


def restore_fields(folder: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """Some fields of the state of a valid checkpoint, other than the parameters.

    Args:
        fields: name → abstract arrays, as those of `abstract_state`; other dtypes than the checkpoint's are cast to.

    Raises:
        UserError: it does not have them.
    """
    target = ocp.args.PyTreeRestore(
        fields, restore_args=ocp.checkpoint_utils.construct_restore_args(fields), partial_restore=True
    )
    with _reading(folder), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore((folder / "rest").absolute(), target)


def _rest(state: TrainState) -> dict[str, Any]:
    """All fields of the state except the parameters."""
    return {name: value for name, value in vars(state).items() if name != "params"}


def _restore_tree(folder: Path, target: Any) -> Any:
    with _reading(folder), ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder.absolute(), target)


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Orbax, TensorStore and their parsers have no common base class
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"checkpoint {folder}: its arrays do not match its manifest: {reason}") from error


def new_state(params: Params, optimizer: optax.GradientTransformation, views: Mapping[str, View]) -> TrainState:
    """The state before the first step; under jit the optimiser state is created directly in its shardings."""
    counts = {name: jnp.zeros((), jnp.int32) for name in ("step", "batches_drawn")}
    return TrainState(params=params, opt_state=optimizer.init(params), teachers=teachers.start(params, views), **counts)


def abstract_state(
    params: Params, mesh: Mesh, optimizer: optax.GradientTransformation, views: Mapping[str, View]
) -> TrainState:
    """Shapes, dtypes and shardings of `new_state`, from parameters or their abstract arrays."""
    fresh = jax.eval_shape(lambda params: new_state(params, optimizer, views), params)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_mesh(mesh, x)), fresh)
