"""Files and folders in a bucket, gs://…, copied to and from this machine.

Every failure is a `UserError` that starts with the field or flag, where one is given, and the path.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePath

from etils import epath

from dasd_jax.errors import UserError

_COPIED_AT_ONCE = 2**20  # bytes


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether a path begins like gs://."""
    return "://" in os.fspath(path)


@contextlib.contextmanager
def reaching(path: str | os.PathLike, flag: str = "") -> Iterator[None]:
    """Turns whatever the client of a bucket raises into a `UserError`; paths of this machine are left alone."""
    try:
        yield
    except Exception as error:
        # They share no class: a missing client is an ImportError, credentials and HTTP have classes of their own.
        if isinstance(error, UserError) or not is_bucket(path):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        where = f"{flag}: {os.fspath(path)}" if flag else os.fspath(path)
        raise UserError(f"{where}: cannot be reached ({reason})") from error


@contextlib.contextmanager
def local_copy(folder: epath.Path) -> Iterator[Path]:
    """The files of a bucket's folder in a folder of this machine, for as long as the context lasts."""
    with tempfile.TemporaryDirectory() as copy:
        with reaching(folder):
            for path in folder.iterdir():
                if path.is_file():
                    _copy(path, Path(copy) / path.name)
        yield Path(copy)


@contextlib.contextmanager
def new_folder(target: epath.Path, flag: str, last: str) -> Iterator[Path]:
    """A local folder, empty, whose files are copied to `target` at the end; after a failure none of them is left there.

    Args:
        last: the file that is copied behind all others, as the sign that they are whole: a bucket cannot rename a
            folder, and a kill may come between two files.
    """
    with tempfile.TemporaryDirectory() as draft:
        yield Path(draft)
        files = sorted(Path(draft).iterdir(), key=lambda path: path.name == last)
        try:
            with reaching(target, flag):
                target.mkdir(parents=True, exist_ok=True)
                for path in files:
                    _copy(path, target / path.name)
        except BaseException:
            with contextlib.suppress(Exception):  # what stopped the copy may stop this too
                target.rmtree()
            raise


def _copy(source: PurePath, target: PurePath) -> None:
    with source.open("rb") as content, target.open("wb") as copy:
        shutil.copyfileobj(content, copy, _COPIED_AT_ONCE)
