"""The folder of a run: whose it is, whether all hosts see it, and what it keeps of evaluations and skipped updates."""

import contextlib
import fcntl
import os
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from dasd_jax import files, hosts, recorded
from dasd_jax.config import Config
from dasd_jax.errors import TrainingError, UserError
from dasd_jax.learner.step import Experience
from dasd_jax.mesh import fetch
from dasd_jax.recorded import Change
from dasd_jax.run import user_files

_SHARED_WITHIN_S = 30  # a mounted bucket shows new files late


def check(config: Config, workdir: Path) -> list[Change]:
    """Refuses a folder that cannot be written or belongs to a run that cannot go on with this config or these files.

    Returns:
        What the run in it changes if it goes on; nothing where there is none.

    Raises:
        UserError: saying why, or naming the first field or file that cannot change.
    """
    files.check_writable(workdir, "--workdir")
    theirs = recorded.read(workdir)
    if not theirs:
        return []
    user_files.check_same(config, theirs, workdir)
    return recorded.changes(config, theirs, workdir)


def check_finished(workdir: Path, asked: Sequence[Change]) -> bool:
    """Whether a run that is finished is to go on: with more steps than it has done.

    Raises:
        UserError: it is to have fewer, or something else changes and no step is left for it to count in.
    """
    steps = next((change for change in asked if change.field == "run.steps"), None)
    if steps and steps.after > steps.before:
        return True
    if steps:
        raise _too_few(workdir, steps.after, steps.before)
    for change in asked:
        raise UserError(
            f"{change.field}: {change.after!r}: the run in {workdir} is finished with {change.before!r}: expected more "
            "run.steps as well, in which the change counts, or another --workdir"
        )
    return False


def check_steps(workdir: Path, steps: int, done: int) -> None:
    """Refuses a number of steps that a run cannot end at, `done` of which its newest checkpoint has.

    Raises:
        UserError: it has done more, or as many and was not evaluated there, as at its end.
    """
    if steps < done or (steps == done and not (workdir / "heldout" / f"{done}.json").exists()):
        raise _too_few(workdir, steps, done)


def _too_few(workdir: Path, steps: int, done: int) -> UserError:
    return UserError(f"run.steps: {steps}: the run in {workdir} has done {done}: expected more, or another --workdir")


def check_shared(path: Path) -> None:
    """Refuses a workdir of which this process does not see what process 0 has written or found.

    Raises:
        UserError: it is not there.
    """
    until = time.monotonic() + _SHARED_WITHIN_S
    while not path.exists():
        if time.monotonic() > until:
            raise UserError(
                f"--workdir: process {jax.process_index()} does not see {path}, which process 0 does: "
                "expected a folder that all hosts share"
            )
        time.sleep(0.5)


def forget_evaluations(workdir: Path, step: int) -> None:
    """Removes heldout/N.json and N.jsonl of steps N after `step`, the last one that a run goes on from; -1: all.

    The run does those steps again, perhaps with other settings or without evaluating after them.
    """
    for path in (workdir / "heldout").glob("*.json*"):
        if path.suffix in (".json", ".jsonl") and path.stem.isdecimal() and int(path.stem) > step:
            path.unlink()


class Lock:
    """Holds a folder for one training on this machine: a second would cut back and overwrite what the first writes.

    Process 0 alone has one. Where a file system knows no locks there is none.
    """

    def __init__(self, workdir: Path):
        self._workdir, self._folder = workdir, None

    def __enter__(self) -> "Lock":
        self.take()
        return self

    def __exit__(self, *_exc) -> None:
        if self._folder is not None:
            os.close(self._folder)

    def take(self) -> None:
        """Takes it, if the folder is there and it is not held yet.

        Raises:
            UserError: another process holds it.
        """
        if self._folder is not None or not hosts.is_main() or not self._workdir.is_dir():
            return
        self._folder = os.open(self._workdir, os.O_RDONLY)
        try:
            fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--workdir: {self._workdir}: another process trains in it: expected its end, or another --workdir"
            ) from None
        except OSError:
            pass


@contextlib.contextmanager
def writing(workdir: Path):
    """Says in one line which file could not be written.

    Raises:
        TrainingError: of the system's errors.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise TrainingError(
            f"{error.filename or workdir}: {error.strerror or error}: expected files that can be read, and room and "
            "permission to write. The same command goes on from the last checkpoint"
        ) from error


def keep_skipped(workdir: Path, step: int, experience: Experience, newest: int, **more: np.ndarray) -> None:
    """Writes what an update that was not finite was made of to not_finite/; the newest files stay."""
    paths, _ = jax.tree_util.tree_flatten_with_path(experience)
    batch = fetch({jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in paths})
    if not hosts.is_main():
        return
    folder = workdir / "not_finite"
    folder.mkdir(exist_ok=True)
    draft = folder / "draft.npz"
    np.savez(draft, **batch, **more)
    draft.rename(folder / f"{step:06d}.npz")
    for old in sorted(folder.glob("*.npz"))[:-newest]:
        old.unlink()
