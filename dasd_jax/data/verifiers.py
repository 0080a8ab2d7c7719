"""Names of verifiers: what data.verifier, and `verifier=` in the spec of a source, may say.

    math                     the answer of a response equals the reference (verify/grading.py)
    choice, regex, numeric   it is the reference's letter, matches it, is near it (verify/shipped.py)
    task                     the score of a reasoning-gym task, for its own problems
    checksum                 right if a checksum of the response is even: for trying a set-up with any model
    path/file.py:function    a reward function of the user's own (verify/own.py)
    package.module:function  the same, in a module that Python finds

Without a name, problems of reasoning-gym have `task` and all others `math`.
"""

import hashlib
import math
import sys
from pathlib import Path

from dasd_jax.errors import UserError

SHIPPED = ("math", "task", "choice", "regex", "numeric", "checksum")
_RELATIVE = 1e-6  # of the reference, how far an answer of `numeric` may be from it


def is_own(name: str) -> bool:
    """Whether it is a reward function of the user's own."""
    return ":" in name


def check(name: str, of_task: bool) -> None:
    """Refuses what is no verifier for the problems of a source; imports nothing.

    Args:
        of_task: they are those of a reasoning-gym task.

    Raises:
        UserError: it is not.
    """
    if is_own(name):
        file_of(name)
    elif name.startswith("numeric?"):
        tolerance(name)
    elif name not in SHIPPED:
        raise UserError(
            f"unknown verifier, expected one of {', '.join(SHIPPED)}, path/file.py:function or package.module:function"
        )
    elif name == "task" and not of_task:
        raise UserError("expected another verifier: only problems of a gym: source have a task")


def tolerance(name: str) -> float:
    """How far an answer may be from the reference of `numeric` or `numeric?rel=…`, as a share of it.

    Raises:
        UserError: it names something else.
    """
    if name == "numeric":
        return _RELATIVE
    key, _, text = name.removeprefix("numeric?").partition("=")
    try:
        found = float(text) if key == "rel" else math.nan
    except ValueError:
        found = math.nan
    if not 0 <= found < 1:
        raise UserError("expected numeric, or numeric?rel= with a number from 0 to 1, as in numeric?rel=1e-3")
    return found


def file_of(name: str) -> Path:
    """The file that holds a reward function of the user's own, found without importing anything.

    Raises:
        UserError: there is none.
    """
    where, _, function = name.rpartition(":")
    if not function.isidentifier():
        raise UserError(f"{function!r} is no name of a function, expected path/file.py:function")
    if _is_path(where):
        path = Path(where).expanduser().absolute()
        if path.suffix != ".py" or not path.is_file():
            raise UserError(f"no Python file {where!r}, expected path/file.py:function")
        return path
    found = _module_file(where)
    if found is None:
        raise UserError(f"no module {where!r} that Python finds, expected path/file.py:function or one on its path")
    return found


def located(name: str) -> tuple[str, str]:
    """A reward function of the user's own as a process in another folder finds it, and the sha256 of its file.

    Raises:
        UserError: the file is not there, or cannot be read.
    """
    path = file_of(name)
    where, _, function = name.rpartition(":")
    return f"{path if _is_path(where) else where}:{function}", sha256(path)


def sha256(path: Path) -> str:
    """That of a file of the user's, in hexadecimal.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"data.verifier: {path} cannot be read ({error.strerror or error})") from error


def _is_path(where: str) -> bool:
    return "/" in where or where.endswith(".py")


def _module_file(module: str) -> Path | None:
    """The file of a module; importlib.util.find_spec would import, and so run, the packages around it."""
    places, spec, parts = None, None, module.split(".")
    if not all(part.isidentifier() for part in parts):
        return None
    for end in range(1, len(parts) + 1):
        finders = (finder.find_spec(".".join(parts[:end]), places) for finder in sys.meta_path)
        spec = next(filter(None, finders), None)
        if spec is None or (end < len(parts) and spec.submodule_search_locations is None):
            return None
        places = spec.submodule_search_locations
    return Path(spec.origin) if spec.has_location else None
