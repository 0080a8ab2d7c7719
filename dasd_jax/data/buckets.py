"""Copies files and folders between a bucket (gs://…) and the local machine.

Every failure is a `UserError` that starts with the field or flag, if one is given, and the path.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePath

from etils import epath

from dasd_jax.errors import UserError

_COPY_CHUNK = 2**20  # bytes


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether a path has a URL scheme, such as gs://."""
    return "://" in os.fspath(path)


@contextlib.contextmanager
def client_errors(path: str | os.PathLike, flag: str = "") -> Iterator[None]:
    """Converts any exception of the bucket client into a `UserError`; errors on local paths pass through."""
    try:
        yield
    except Exception as error:
        # No common base class: a missing client is an ImportError, credentials and HTTP have their own classes.
        if isinstance(error, UserError) or not is_bucket(path):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        where = f"{flag}: {os.fspath(path)}" if flag else os.fspath(path)
        raise UserError(f"{where}: cannot be reached ({reason})") from error


@contextlib.contextmanager
def local_copy(folder: epath.Path) -> Iterator[Path]:
    """Copies the files of a bucket's folder into a temporary local folder, removed on exit."""
    with tempfile.TemporaryDirectory() as copy:
        with client_errors(folder):
            for path in folder.iterdir():
                if path.is_file():
                    _copy(path, Path(copy) / path.name)
        yield Path(copy)


@contextlib.contextmanager
def new_folder(target: epath.Path, flag: str, last: str) -> Iterator[Path]:
    """Yields an empty local folder whose files are copied to `target` on exit; a failure leaves nothing in `target`.

    Args:
        last: the file that is copied after all others and marks the folder as complete: a bucket cannot rename a
            folder, and the process may be killed between two files.
    """
    with tempfile.TemporaryDirectory() as draft:
        yield Path(draft)
        files = sorted(Path(draft).iterdir(), key=lambda path: path.name == last)
        try:
            with client_errors(target, flag):
                target.mkdir(parents=True, exist_ok=True)
                for path in files:
                    _copy(path, target / path.name)
        except BaseException:
            with contextlib.suppress(Exception):  # the cause of the failed copy may fail this too
                target.rmtree()
            raise


def _copy(source: PurePath, target: PurePath) -> None:
    with source.open("rb") as content, target.open("wb") as copy:
        shutil.copyfileobj(content, copy, _COPY_CHUNK)
