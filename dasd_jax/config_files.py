"""Configuration files: where they lie, what they are called, and what they start from.

A configuration file has a function get_config(arg) that returns the groups of fields:

    from dasd_jax.config_files import base, shipped


    def get_config(arg=""):
        config = base()                 # every field at its default; or: shipped("qwen_math:8b")
        config.run.steps = 50
        return config

Those that come with the program are the folder configs/ of the repository, `configs` of an installed package; a name
such as qwen_math stands for them from any folder. They are loaded by their path and never imported, so that none of
their names can shadow a module.
"""

import difflib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import ml_collections

from dasd_jax import config as config_module
from dasd_jax.errors import UserError
from dasd_jax.fields import type_words
from dasd_jax.methods import METHODS

_HERE = Path(__file__).resolve().parent
SHIPPED = _HERE / "configs" if (_HERE / "configs").is_dir() else _HERE.parent / "configs"


def base(method: str = config_module.default_method()) -> ml_collections.ConfigDict:
    """The default config groups of a method, locked: setting an unknown name is an error.

    Fields, defaults, ranges and descriptions are declared in dasd_jax/config.py and, for each method, in
    dasd_jax/methods; `--help-config` and docs/fields.md list them.
    """
    config = ml_collections.ConfigDict(config_module.defaults(method))
    # Not a config field: if --config.objective.method differs, it shows which values the file has changed.
    object.__setattr__(config, "base_method", method)
    return config.lock()


def shipped(name: str) -> ml_collections.ConfigDict:
    """What a configuration file of the program returns, as NAME or NAME:ARG, to start from.

    Raises:
        UserError: there is none of that name, or it does not know the argument.
    """
    name, _, arg = name.partition(":")
    return call_file("--config", str(SHIPPED / f"{name}.py"), "get_config", arg)


def names() -> list[str]:
    """The names of the shipped files."""
    return sorted(path.stem for path in SHIPPED.glob("*.py"))


def located(given: str) -> str:
    """The path of a configuration file that is given by its path or by the name of a shipped one; a path wins.

    Raises:
        UserError: it is neither.
    """
    if os.path.isfile(given):
        return given
    if given in names():
        return str(SHIPPED / f"{given}.py")
    stem = os.path.splitext(os.path.basename(given))[0]
    near = difflib.get_close_matches(stem, names(), n=1)
    meant = f"; did you mean --config={near[0]}?" if near else ""
    raise UserError(
        f"--config: {given} is not a Python file: expected one with get_config(arg), the config.json of a run, or the "
        f"name of a shipped one: {', '.join(names())}{meant}"
    )


def call_file(flag: str, path: str, function: str, *args: str) -> Any:
    """What a function of a Python file returns.

    Raises:
        UserError: starting with the flag: there is no such file, or it fails.
    """
    if not os.path.isfile(path) or not path.endswith(".py"):
        raise UserError(
            f"{flag}: {path} is not a Python file: expected one with {function}({', '.join(args and ['arg'])})"
        )
    # A person's file may import its neighbours, as `configs.mine`, from wherever the command is run. Beside shipped
    # ones lie modules of the package, whose names must not become those of top-level modules.
    root = Path(path).resolve().parent.parent
    if root != _HERE and str(root) not in sys.path:
        sys.path.insert(0, str(root))
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return getattr(module, function)(*args)
    except UserError:
        raise
    except Exception as error:
        if wrong := _field_error(error, path):
            raise UserError(f"{flag}: {wrong}") from error
        reason = " ".join(str(error).split())
        raise UserError(f"{flag}: {path} failed: {type(error).__name__}: {reason}") from error


def _field_error(error: Exception, path: str) -> str:
    """FILE:LINE: GROUP.FIELD and what is wrong with it, where a config file sets one in a wrong way; "" otherwise.

    The exceptions of ml_collections name neither file nor group: both are read from the frames that they passed.
    """
    line, owner, key, value, trace = 0, None, "", None, error.__traceback__
    while trace:
        here = trace.tb_frame.f_locals
        if trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        if isinstance(here.get("self"), ml_collections.ConfigDict):
            owner, key, value = here["self"], here.get("key", here.get("attribute")), here.get("value")
        trace = trace.tb_next
    if owner is None or not isinstance(key, str) or not isinstance(error, AttributeError | KeyError | TypeError):
        return ""
    method = next((name for name in METHODS if name == owner.get("method")), config_module.default_method())
    groups = config_module.declared(method)
    group = max(["", *groups], key=lambda name: len(owner.keys() & (groups[name] if name else groups).keys()))
    name = f"{group}.{key}" if group else key
    if key not in owner:
        return f"{path}:{line}: {name}: {config_module.unknown(name, method)}"
    if isinstance(error, TypeError) and group and key in groups[group]:
        return f"{path}:{line}: {name}: {value!r:.80}: expected {type_words(groups[group][key].type)}"
    return ""
