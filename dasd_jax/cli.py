"""The command-line entry point: flags and a config file in, frozen dataclasses out; user errors print one line.

absl and ml_collections answer an unknown key with a page of traceback and exit code 1, so the flags are parsed here:

    --config=FILE.py[:ARG]           a file with get_config(arg) → ConfigDict, the name of a shipped one, or the
                                     config.json of a run, which evaluate and generate take from --workdir where no
                                     other is given
    --config.GROUP.FIELD=VALUE       an override, read as the field's type; a space may replace the =
    --help-config [GROUP or word]    the fields, with their values under this command line
    --print-config                   the resolved configuration, as config.json holds it
"""

import argparse
import dataclasses
import difflib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from dasd_jax import config as config_module
from dasd_jax import field_help, hosts, terminal
from dasd_jax.config import Config, Raw, names, unknown
from dasd_jax.config_files import call_file as call_file
from dasd_jax.config_files import located
from dasd_jax.credentials import refuse_secrets as refuse_secrets
from dasd_jax.errors import TrainingError, UserError
from dasd_jax.field_names import nearest
from dasd_jax.methods import METHODS
from dasd_jax.resolve import base_of, resolve
from dasd_jax.terminal import Parser as Parser

_PREFIX = "--config."


class _Show(argparse.Action):
    """A flag that only shows something: what the command requires besides need not be given."""

    def __call__(self, parser, namespace, values, option_string=None):
        for action in parser._actions:
            action.required = False
        setattr(namespace, self.dest, values or "")


def parser(description: str, of_a_run: bool = False) -> argparse.ArgumentParser:
    """An argument parser with the flags that all commands share.

    Args:
        of_a_run: the command uses what a run has left: without --config it takes the config.json in --workdir.
    """
    flags = Parser(
        description=description,
        formatter_class=terminal.HelpFormatter,
        allow_abbrev=False,
        epilog="--config.GROUP.FIELD=VALUE overrides a field; --help-config explains each of them.",
    )
    flags.set_defaults(of_a_run=of_a_run)
    source = "configuration: a file or a shipped name" + (" (default: config.json of --workdir)" if of_a_run else "")
    flags.add_argument("--config", required=not of_a_run, metavar="FILE.py|NAME[:ARG]", help=source)
    flags.add_argument("--workdir", metavar="DIR", help="folder of the run (default: runs/NAME of the config)")
    flags.add_argument(
        "--help-config", action=_Show, nargs="?", metavar="WORD", help="explain a group's fields, or those about a word"
    )
    flags.add_argument("--print-config", action=_Show, nargs=0, help="print the resolved configuration as JSON")
    return flags


@dataclasses.dataclass(frozen=True)
class Command:
    """A parsed command line."""

    flags: argparse.Namespace
    config: Config
    workdir: Path

    def settings(self) -> dict[str, Any]:
        """By flag or field, all that decides what the command does."""
        groups = self.config.to_dict()
        fields = {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}
        return {"--workdir": str(self.workdir), **fields}


def parse(flags: argparse.ArgumentParser, argv: Sequence[str], quiet: bool = False) -> Command:
    """Reads flags, config file and overrides.

    A note on stderr says what a config file sets that the chosen method does not have, unless it is to be quiet.

    Raises:
        UserError: anything on the command line or in the config file that is not as expected.
        SystemExit: with code 0, after --help, --help-config or --print-config.
    """
    refuse_secrets(argv)
    known, rest = flags.parse_known_args(joined(argv))
    overrides = {}
    for item in rest:
        name, equals, value = item.removeprefix(_PREFIX).partition("=")
        if not item.startswith(_PREFIX):
            raise UserError(f"{item}: unknown flag{_hint(item, flags)}")
        if not equals:
            raise UserError(f"{item}: no value: expected {item}=VALUE")
        overrides[name] = value
    path, _, arg = (known.config or "").partition(":")
    only_shows = known.help_config is not None or known.print_config is not None
    if path:
        raw, base = _loaded(path, arg)
    elif known.of_a_run and (known.workdir or not only_shows):
        path = os.path.join(os.path.expanduser(known.workdir or ""), "config.json")
        raw, base = _of_run(path, known.workdir)
    else:
        base = config_module.default_method()
        raw = config_module.defaults(base)
    raw, dropped = resolve(raw, base, overrides)
    refuse_secrets(_texts(raw), "the configuration")
    if known.help_config is not None:
        field_help.show(known.help_config, raw)
        raise SystemExit(0)
    config = config_module.from_dict(raw)
    if dropped and not quiet:
        method = config.objective.method
        print(f"note: {path} sets {', '.join(dropped)}: dropped, method {method} has no such field", file=sys.stderr)
    if known.print_config is not None:
        print(json.dumps(config.to_dict(), indent=2))
        raise SystemExit(0)
    default = Path("runs") / (Path(path).stem + (f"-{arg}" if arg else ""))
    return Command(known, config, Path(known.workdir).expanduser() if known.workdir else default)


def joined(argv: Sequence[str]) -> list[str]:
    """The words of a command line with every override as one word: `--config.run.steps 3` is --config.run.steps=3."""
    words: list[str] = []
    for word in argv:
        last = words[-1] if words else ""
        if last.startswith(_PREFIX) and "=" not in last and not word.startswith("--"):
            words[-1] = f"{last}={word}"
        else:
            words.append(word)
    return words


def _hint(item: str, flags: argparse.ArgumentParser) -> str:
    """What a person may have meant by a flag that does not exist."""
    word, equals, value = item.lstrip("-").partition("=")
    known = [flag for action in flags._actions for flag in action.option_strings if flag.startswith("--")]
    if near := difflib.get_close_matches("--" + word, known, 1, 0.8):
        return f"; did you mean {near[0]}?"
    every = dict.fromkeys(name for method in METHODS for name in names(method))
    if near := nearest(word, every):
        return f"; did you mean {_PREFIX}{near}{equals}{value:.80}?"
    return f": expected {_PREFIX}GROUP.FIELD=VALUE or a flag that --help lists"


def load_config(path: str, arg: str = "") -> ml_collections.ConfigDict:
    """The groups that a config file sets, by its path or shipped name, for its method, as a locked ConfigDict.

    Raises:
        UserError: there is no such file, it fails, or it does not return a ConfigDict with the fields of its method.
    """
    raw, base = _loaded(path, arg)
    return ml_collections.ConfigDict(resolve(raw, base, {})[0]).lock()


def _loaded(path: str, arg: str) -> tuple[Raw, str]:
    """(what a config file sets, the method from whose defaults it started)."""
    if path.endswith(".json"):
        raw, base = _json_config(path), None
    else:
        loaded = call_file("--config", located(path), "get_config", arg)
        if not isinstance(loaded, ml_collections.ConfigDict):
            raise UserError(f"--config: get_config of {path} returned {type(loaded).__name__}: expected a ConfigDict")
        raw, base = loaded.to_dict(), getattr(loaded, "base_method", None)
    known, usual = {name for method in METHODS for name in names(method)}, config_module.default_method()
    for group, fields in raw.items():
        if not isinstance(fields, dict):
            raise UserError(f"--config: {group} of {path} is a {type(fields).__name__}: expected a group of fields")
        for name in fields:
            if f"{group}.{name}" not in known:
                raise UserError(f"--config: {path}: {group}.{name}: {unknown(f'{group}.{name}', usual)}")
    config_module.require_group("objective", raw.get("objective"))
    return raw, base if base in METHODS else base_of(raw)


def _of_run(path: str, workdir: str | None) -> tuple[Raw, str]:
    """The same of the config.json that a run has left in its workdir."""
    if not workdir:
        raise UserError("--workdir: missing: expected the folder of a run, or --config=FILE.py")
    if not os.path.isdir(os.path.dirname(path)):
        raise UserError(f"--workdir: {workdir} does not exist: expected the folder of a run, or --config=FILE.py")
    if not os.path.isfile(path):
        raise UserError(f"--workdir: {workdir} holds no config.json: expected the folder of a run, or --config=FILE.py")
    raw = _json_config(path)
    if config_module.older(raw):
        raise UserError(
            f"--workdir: {path} was written by another version of this program: expected --config=FILE.py with the "
            "settings of that run"
        )
    return raw, base_of(raw)


def _json_config(path: str) -> Raw:
    try:
        raw = json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--config: {path} is not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"--config: {path} is not a JSON object: expected the config.json of a run")
    # What stands beside the groups is made anew where it is used.
    return {group: fields for group, fields in raw.items() if group not in config_module.BESIDE}


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
    """Runs a command and ends the process: 0 when done, 2 with one line for a user error, 1 for the rest.

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
        hosts.leave(130, "interrupted; train, evaluate and select go on with the same command")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        hosts.leave(1, "")
    except Exception:
        traceback.print_exc()
        hosts.leave(
            1, "unexpected failure (above); a training run goes on from its last checkpoint with the same command"
        )
