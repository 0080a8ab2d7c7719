"""Atomic writes of files and folders."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from dasd_jax.errors import UserError


def check_writable(folder: Path, flag: str) -> None:
    """Checks that a folder is writable or can be created.

    Raises:
        UserError: it is not; starts with the flag.
    """
    if "://" in str(folder) or str(folder).startswith("gs:"):
        shown = str(folder).replace("gs:/", "gs://", 1)  # a Path drops the second slash
        raise UserError(f"{flag}: {shown}: expected a local or mounted folder")
    try:
        existing = _nearest_existing(folder)
    except (OSError, ValueError) as error:  # a name that is too long or has invalid characters
        raise UserError(f"{flag}: {folder}: {error}: expected a folder") from error
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"{flag}: {folder}: {existing} is not a writable folder")


@contextlib.contextmanager
def new_folder(target: Path, flag: str) -> Iterator[Path]:
    """Yields an empty temporary folder that is renamed to `target` on exit; a failure leaves nothing behind.

    Its files get the permissions of new files, also those of libraries that write for their owner alone.

    Raises:
        UserError: it cannot be created or moved; starts with the flag.
    """
    check_writable(target, flag)
    try:
        # In the nearest existing parent, on the same file system, so that the finished folder can be renamed.
        with tempfile.TemporaryDirectory(dir=_nearest_existing(target), prefix=f".{target.name}.") as draft:
            folder = Path(draft) / target.name
            folder.mkdir()
            yield folder
            mode = 0o666 & (folder.stat().st_mode & 0o777)  # that of a new folder is 777 less the umask
            for path in folder.rglob("*"):
                if path.is_file():
                    path.chmod(mode)
            target.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(target)
    except OSError as error:
        raise UserError(f"{flag}: {target}: {error.strerror or error}: expected a writable folder") from error


@contextlib.contextmanager
def replacing(target: Path, flag: str) -> Iterator[Path]:
    """Yields a new file's path that becomes `target` on exit; a failure leaves nothing behind, and `target` as it was.

    Raises:
        UserError: it cannot be written or moved; starts with the flag.
    """
    draft = target.with_name(f".{target.name}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        draft.rename(target)
    except OSError as error:
        raise UserError(f"{flag}: {target}: {error.strerror or error}: expected a writable file") from error
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def reading(path: Path, flag: str) -> Iterator[None]:
    """Converts the errors of reading a damaged file of ours, and of using its content, into a UserError."""
    try:
        yield
    except (
        OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, StopIteration, RecursionError
    ) as error:  # fmt: skip
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{flag}: {path} is damaged ({reason}): restore the file or remove it") from error


def write_json(path: Path, content: dict) -> None:
    """Writes the file atomically; creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(content, indent=1))
    draft.rename(path)


def write_lines(path: Path, lines: Iterable[dict]) -> None:
    """Writes one JSON object a line, atomically; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    with draft.open("w", encoding="utf-8") as file:
        file.writelines(json_line(line) for line in lines)
    draft.rename(path)


def json_line(content: dict) -> str:
    """The object as a line of a .jsonl file; half a surrogate pair, which UTF-8 has no bytes for, as JSON's escape."""
    return json.dumps(content, ensure_ascii=False).encode(errors="backslashreplace").decode() + "\n"


def _nearest_existing(folder: Path) -> Path:
    """The folder itself, or its nearest existing parent."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
