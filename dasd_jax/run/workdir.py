"""The folder of a run: whose it is, whether all hosts see it, and what is kept in it of updates that were skipped."""

import contextlib
import time
from pathlib import Path

import jax
import numpy as np

from dasd_jax import files, hosts, recorded
from dasd_jax.config import Config
from dasd_jax.errors import TrainingError, UserError
from dasd_jax.learner.step import Experience
from dasd_jax.mesh import fetch
from dasd_jax.run import user_files

_SHARED_WITHIN_S = 30  # a mounted bucket shows new files late


def check(config: Config, workdir: Path) -> None:
    """Refuses a folder that cannot be written or belongs to another config, or to other files of the user's.

    Raises:
        UserError: saying why, or naming the first field or file that differs.
    """
    files.check_writable(workdir, "--workdir")
    if theirs := recorded.read(workdir):
        recorded.check_same(config, theirs, workdir)
        user_files.check_same(config, theirs, workdir)


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
