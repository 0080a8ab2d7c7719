"""The door of every command: flags and config file in, frozen dataclasses out, one clear line for every mistake.

absl and ml_collections answer an unknown key with a page of traceback and exit code 1, so the flags are parsed here:

    --config=FILE.py[:ARG]           a file with get_config(arg) → ConfigDict
    --config.GROUP.FIELD=VALUE       an override, read as the type that the field has
"""

import argparse
import ast
import dataclasses
import difflib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_collections

from dasd_jax import config as config_module
from dasd_jax import hosts
from dasd_jax.config import Config
from dasd_jax.errors import TrainingError, UserError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UserErrors."""

    def error(self, message: str):
        raise UserError(f"{message} (--help lists the flags)")


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser with the flags that all commands share."""
    flags = Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="--config.GROUP.FIELD=VALUE overrides a field; configs/common.py explains each of them.",
    )
    flags.add_argument("--config", required=True, metavar="FILE.py[:ARG]", help="configuration file and its argument")
    flags.add_argument("--workdir", metavar="DIR", help="folder of the run (default: runs/NAME of the config)")
    return flags


@dataclasses.dataclass(frozen=True)
class Command:
    """A parsed command line."""

    flags: argparse.Namespace
    config: Config
    workdir: Path

    def settings(self) -> dict[str, Any]:
        """By flag or field, all that decides what the command does."""
        groups = dataclasses.asdict(self.config)
        fields = {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}
        return {"--workdir": str(self.workdir), **fields}


def parse(flags: argparse.ArgumentParser, argv: list[str]) -> Command:
    """Reads flags, config file and overrides.

    Raises:
        UserError: anything on the command line or in the config file that is not as expected.
    """
    refuse_secrets(argv)
    known, rest = flags.parse_known_args(argv)
    overrides = {}
    for item in rest:
        name, equals, value = item.removeprefix("--config.").partition("=")
        if not item.startswith("--config.") or not equals:
            raise UserError(f"{item}: unknown flag: expected --config.GROUP.FIELD=VALUE or a flag that --help lists")
        overrides[name] = value
    path, _, arg = known.config.partition(":")
    raw = load_config(path, arg)
    for name, value in overrides.items():
        _override(raw, name, value)
    refuse_secrets(_texts(raw.to_dict()), "the configuration")
    default = Path("runs") / (Path(path).stem + (f"-{arg}" if arg else ""))
    workdir = Path(known.workdir).expanduser() if known.workdir else default
    return Command(known, config_module.from_dict(raw.to_dict()), workdir)


def load_config(path: str, arg: str = "") -> ml_collections.ConfigDict:
    """The locked ConfigDict that get_config(arg) of a file returns.

    Raises:
        UserError: there is no such file, it fails, or it does not return a ConfigDict.
    """
    loaded = call_file("--config", path, "get_config", arg)
    if not isinstance(loaded, ml_collections.ConfigDict):
        raise UserError(f"--config: get_config of {path} returned {type(loaded).__name__}: expected a ConfigDict")
    for group, fields in loaded.items():
        if not isinstance(fields, ml_collections.ConfigDict):
            raise UserError(f"--config: {group} of {path} is a {type(fields).__name__}: expected a group of fields")
    return loaded.lock()


def call_file(flag: str, path: str, function: str, *args: str) -> Any:
    """What a function of a Python file returns.

    Raises:
        UserError: starting with the flag: there is no such file, or it fails.
    """
    if not os.path.isfile(path) or not path.endswith(".py"):
        raise UserError(
            f"{flag}: {path} is no Python file: expected one with {function}({', '.join(args and ['arg'])})"
        )
    # The file may import its neighbours as `configs.common`, from wherever the command is run.
    root = str(Path(path).resolve().parent.parent)
    if root not in sys.path:
        sys.path.insert(0, root)
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return getattr(module, function)(*args)
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{flag}: {path} failed: {type(error).__name__}: {reason}") from error


def _override(raw: ml_collections.ConfigDict, name: str, text: str) -> None:
    fields = {f"{group}.{field}": value for group, values in raw.to_dict().items() for field, value in values.items()}
    if name not in fields:
        near = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"--config.{name}: no such field{hint} (expected GROUP.FIELD with a group of {', '.join(raw)})")
    group, field = name.split(".")
    old = fields[name]
    try:
        raw[group][field] = _read(text, type(old))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:  # the last two: too deep
        kind = type(old).__name__
        raise UserError(f"--config.{name}: {text!r} is not a value of its type: expected {kind}, as {old!r}") from error


def _read(text: str, kind: type):
    if kind is str:
        return text
    if kind is bool:
        return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else int("")
    if kind in (int, float):
        return kind(text)
    value = ast.literal_eval(text)
    if not isinstance(value, list | tuple):
        raise ValueError(text)
    return tuple(value)


# A name that ends like this names a secret, and these are the shapes of well-known ones.
_SECRET_NAME = r"[A-Z0-9_]*(?:TOKEN|KEY|SECRET|PASSWORD|CREDENTIALS?)"
_SECRET_SHAPE = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bgh[opsu]_[A-Za-z0-9]{16,}|\bgithub_pat_\w{16,}|\bsk-[\w-]{16,}|\bAKIA[A-Z0-9]{12,}"
    r"|\bAIza[\w-]{16,}|\bya29\.[\w-]{16,}|\beyJ[\w-]+\.eyJ[\w-]+|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|://[^/\s:@]*:[^/\s@]+@"  # a password in an address
    r"|[?&](?:access_token|token|api_key|sig|signature|x-goog-signature|x-amz-signature)=",
    re.IGNORECASE,
)
_SHORTEST_SECRET = 8  # characters; a shorter value of a variable stands in other words by chance


def refuse_secrets(words: Iterable[str], where: str = "the command line") -> None:
    """Lets no secret in, so that config.json, logs, reports and dry runs have none to write.

    Secret is the value of an environment variable whose name ends in TOKEN, KEY, SECRET, PASSWORD or CREDENTIALS, an
    assignment to such a name, and what has the shape of a well-known token, a private key, or an address with a
    password or a signature.

    Raises:
        UserError: there is one; it is not repeated.
    """
    values = [
        value
        for name, value in os.environ.items()
        if re.fullmatch(_SECRET_NAME, name) and len(value) >= _SHORTEST_SECRET and not value.startswith("/")
    ]
    for word in words:
        named = re.search(rf"(?<!\w){_SECRET_NAME}=", word)
        # The launcher's flag names a variable; a value behind it is refused there.
        named = named and not word.startswith("--secret=")
        if named or _SECRET_SHAPE.search(word) or any(value in word for value in values):
            raise UserError(
                f"a secret stands in {where}: expected it in the environment alone "
                "(launchers.tpu_vm: --secret=VARIABLE, without its value)"
            )


def _check_text(words: Iterable[str]) -> None:
    for word in words:
        # Half pairs are what Python makes of bytes that are no text.
        if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in word):
            raise UserError(f"{word!r}: expected text in UTF-8 on the command line")


def _texts(value: Any) -> Iterator[str]:
    """Every text in a tree of dictionaries and sequences."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _texts(child)


# Without it a reduce-scatter on a torus of three dimensions (v5p) is compiled as an all-reduce: twice the bytes.
_TPU_FLAGS = "--xla_tpu_enable_sparse_core_collective_offload_nd_reduce_scatter=true"


def run(main: Callable[[list[str]], None]) -> None:
    """Runs a command and ends the process: 0 when done, 2 with one line for a person's mistake, 1 for the rest.

    Where several processes run one command, the failure of one ends all of them with its line and code.
    """
    # XLA and Orbax speak of their own affairs; a person's terminal is for this program's.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # The compiler reads it when JAX first looks for devices; of a flag that stands twice the last holds.
    os.environ["LIBTPU_INIT_ARGS"] = f"{_TPU_FLAGS} {os.environ.get('LIBTPU_INIT_ARGS', '')}".strip()
    try:
        _check_text(sys.argv[1:])
        refuse_secrets(sys.argv[1:])
        main(sys.argv[1:])
    except UserError as error:
        hosts.leave(2, f"error: {error}")
    except TrainingError as error:
        hosts.leave(1, f"error: {error}")
    except KeyboardInterrupt:
        hosts.leave(130, "interrupted; a training run goes on from its last checkpoint with the same command")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        hosts.leave(1, "")
    except Exception:
        traceback.print_exc()
        hosts.leave(
            1, "unexpected failure (above); a training run goes on from its last checkpoint with the same command"
        )
