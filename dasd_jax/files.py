"""Files that are written whole or not at all."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dasd_jax.errors import UserError


def check_writable(folder: Path, flag: str) -> None:
    """Refuses a folder that cannot be written or made.

    Raises:
        UserError: starting with the flag.
    """
    if "://" in str(folder) or str(folder).startswith("gs:"):
        shown = str(folder).replace("gs:/", "gs://", 1)  # a Path drops the second slash
        raise UserError(f"{flag}: {shown}: expected a folder of this machine or one that is mounted on it")
    try:
        existing = _nearest(folder)
    except (OSError, ValueError) as error:  # a name that is too long, or holds what no name may
        raise UserError(f"{flag}: {folder}: {error}: expected a folder") from error
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"{flag}: {folder}: {existing} is not a folder that can be written")


@contextlib.contextmanager
def new_folder(target: Path, flag: str) -> Iterator[Path]:
    """A draft folder, empty, that becomes `target` at the end; after a failure neither it nor anything of it is left.

    Raises:
        UserError: starting with the flag, when there is no place for it.
    """
    check_writable(target, flag)
    try:
        # In the nearest folder that exists, so that the finished one is moved and not copied.
        with tempfile.TemporaryDirectory(dir=_nearest(target), prefix=f".{target.name}.") as draft:
            folder = Path(draft) / target.name
            folder.mkdir()
            yield folder
            target.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(target)
    except OSError as error:
        raise UserError(
            f"{flag}: {target}: {error.strerror or error}: expected a folder that can be written"
        ) from error


@contextlib.contextmanager
def reading(path: Path, flag: str) -> Iterator[None]:
    """Turns what a damaged file of ours raises, where it is read and where its content is used, into a UserError."""
    try:
        yield
    except (
        OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, StopIteration, RecursionError
    ) as error:  # fmt: skip
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{flag}: {path} is damaged ({reason}): expected it as it was written, or removed") from error


def write_json(path: Path, content: dict) -> None:
    """Writes the file whole or not at all, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(content, indent=1))
    draft.rename(path)


def _nearest(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
