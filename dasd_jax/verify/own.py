"""Reward functions of the user's own: (problem, response) → a number from 0 to 1, alone or among other parts.

The code here runs in the verifier's worker processes. The function is trusted, as a config file is; what it is given is
not: it may loop, exhaust memory or raise on what a model wrote.
"""

import hashlib
import importlib
import importlib.util
import inspect
import math
import numbers
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

SIGNATURE = "expected a function (problem: dict, response: str) → a number from 0 to 1, or a dict with reward"
MOST_PARTS = 16  # beside the reward; with the names' length it keeps a worker's reply below PIPE_BUF
_PART = re.compile(r"[A-Za-z_]\w{0,63}", re.ASCII)
_OF_THE_LOG = re.compile("mean|score_mean|.*_frac")  # names under reward/ that the log has already


def load(name: str, sha256: str) -> Callable | str:
    """The function of `data.verifiers.located`, or why there is none.

    Args:
        sha256: of its file, as this command found it first.
    """
    where, _, function = name.rpartition(":")
    try:
        module = _of_file(where) if where.endswith(".py") else importlib.import_module(where)
        content = Path(module.__file__).read_bytes()
    except BaseException as error:  # SystemExit too
        return f"{where} cannot be imported: {said(error)}"
    if hashlib.sha256(content).hexdigest() != sha256:
        return f"{module.__file__} has changed since this command began"
    found = getattr(module, function, None)
    if not callable(found):
        return f"{where} has no function {function!r}"
    try:
        inspect.signature(found).bind({}, "")
    except TypeError as error:
        return f"{function} cannot be called with a problem and a response: {error}"
    except ValueError:  # written in C, without a signature
        pass
    return found


def _of_file(path: str) -> ModuleType:
    # A name of its own: a file called math.py is not what others import as math.
    spec = importlib.util.spec_from_file_location(f"reward_of_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # data classes look for their module there
    spec.loader.exec_module(module)
    return module


def reward(function: Callable, problem: dict[str, Any], response: str) -> tuple[float, dict[str, float]]:
    """(reward, other parts) that a function of the user's own gives a response.

    Raises:
        ValueError: it returned something else. And whatever the function raises.
    """
    given = function(problem, response)
    parts = dict(given) if isinstance(given, Mapping) else {"reward": given}
    if "reward" not in parts:
        raise ValueError(f"returned {given!r:.60} without 'reward': {SIGNATURE}")
    value = parts.pop("reward")
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"returned {value!r:.60}: expected a number from 0 to 1")
    if len(parts) > MOST_PARTS:
        raise ValueError(f"returned {len(parts)} parts beside the reward: expected at most {MOST_PARTS}")
    for name, part in parts.items():
        if not isinstance(name, str) or not _PART.fullmatch(name) or _OF_THE_LOG.fullmatch(name):
            raise ValueError(
                f"returned a part {name!r:.60}: expected letters, digits and _, but not mean, score_mean or …_frac"
            )
        if not _is_number(part):
            raise ValueError(f"returned {name} = {part!r:.60}: expected a finite number")
    return float(value), {name: float(part) for name, part in parts.items()}


def said(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def _is_number(value: Any) -> bool:
    """NumPy's numbers are among them, and true and false."""
    return isinstance(value, numbers.Real) and math.isfinite(value)
