"""Command lines and config files: words that no command expects, in every place of one."""

import contextlib
import io
import random
import string
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax

from benchmarks.fuzz import mutate
from dasd_jax import cli, convert, evaluate, generate, prepare, train
from dasd_jax import compile as compile_command
from dasd_jax.config_files import base
from dasd_jax.errors import UserError
from dasd_jax.field_names import MOVED
from dasd_jax.mesh import make_mesh
from dasd_jax.methods import METHODS
from launchers import tpu_vm

ROOT = Path(__file__).parents[2]
TINY = f"--config={ROOT}/configs/qwen_math.py:tiny"
_FIELDS = [(group, field) for group, fields in base().to_dict().items() for field in fields]
_OLD_NAMES = [tuple(name.split(".")) for name in MOVED]


def command(main: Callable[[list[str]], None], *argv: str) -> None:
    """Runs a command; exit code 2 with one line becomes a UserError, any other failure a find."""
    said = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["fuzz", *argv]),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(said),
    ):
        try:
            cli.run(main)
        except SystemExit as ended:
            error = said.getvalue()
            if ended.code == 2 and error.startswith("error: ") and error.count("\n") == 1:
                raise UserError(error.removeprefix("error: ").rstrip("\n")) from ended
            if ended.code not in (0, None):
                raise AssertionError(f"exit code {ended.code}: {error}") from ended


def _train(*argv: str) -> None:
    """The training command up to where its loop would begin."""

    def one_device(config):
        return make_mesh(config, jax.devices()[:1])

    with mock.patch.object(train, "make_mesh", one_device), mock.patch.object(train, "loop"):
        command(train.main, *argv)


def overrides(rng: random.Random, _samples: Path, folder: Path):
    """Values of --config.GROUP.FIELD on the command line of `train`."""
    argv = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        group, field = rng.choice(_FIELDS if rng.random() < 0.95 else _OLD_NAMES)
        value = str(rng.choice(mutate.NASTY)) if rng.random() < 0.6 else text_of(rng)
        if rng.random() < 0.08:
            field = rng.choice(("", field + "x", field.upper(), "__class__", "get", "\ud800"))
        if rng.random() < 0.03:
            group = rng.choice(("", "loss", "__dict__", "lock"))
        argv += [f"--config.{group}.{field}", value] if rng.random() < 0.1 else [f"--config.{group}.{field}={value}"]
    if rng.random() < 0.1:
        argv.insert(rng.randrange(len(argv)), f"--config.objective.method={rng.choice(list(METHODS))}")
    if rng.random() < 0.05:
        argv.append(
            rng.choice(("--print-config", "--help-config", "--help-config=[red]", "--help-config=" + text_of(rng)))
        )
    if rng.random() < 0.1:
        argv.append(
            rng.choice(("--workdir=", "--workdir=" + "w" * 300, "--config=", "--x", "x", "--", "--config.a", ""))
        )
    what = " ".join(argv)
    return what, lambda: _train(TINY, f"--workdir={folder / 'w'}", *argv)


def text_of(rng: random.Random) -> str:
    """A value as somebody might type it: brackets without end, numbers of other forms, words of other types."""
    return rng.choice(
        (
            lambda: mutate.nested(rng.choice((10, 500, 20_000))).replace("[", "(").replace("]", ",)"),
            lambda: mutate.nested(rng.choice((150, 900))),
            lambda: "9" * rng.choice((20, 400, 5000)),
            lambda: rng.choice("+-") + str(rng.randrange(10**6)) + rng.choice(("", ".", ".5", "e9", "e999", "_0", "٣")),
            lambda: "".join(rng.choices(string.printable, k=rng.randrange(40))),
            lambda: rng.choice(
                ("__import__('os').system('true')", "(1 for _ in ())", "lambda: 0", "('a',)", "('a','a')")
            ),
            lambda: rng.choice(("0", "1", "2", "4", "8", "0.5", "1.0", "1e-3", "true", "none", "full")),
            lambda: rng.choice(("NaN", "inf", "-inf", "1e-400", "True", "FALSE", "none", "0x10", "1_000", "²")),
        )
    )()


def config_files(rng: random.Random, _samples: Path, folder: Path):
    """What get_config of a config file returns."""
    tiny = cli.load_config(str(ROOT / "configs/qwen_math.py"), "tiny").to_dict()
    places = [(group, field) for group in tiny for field in tiny[group]]
    group, field = rng.choice(places)
    if rng.random() < 0.8:
        tiny[group][field] = rng.choice((*mutate.NASTY, 1, 2, 4, 8, 0.25, 1e-3, "none"))
        what = f"{group}.{field} = {tiny[group][field]!r:.50}"
    else:
        tiny[group] = rng.choice(mutate.NASTY)
        what = f"{group} = {tiny[group]!r:.50}"
    if rng.random() < 0.1:
        del tiny[rng.choice(list(tiny))]
    elif rng.random() < 0.1 and isinstance(tiny["objective"], dict):
        tiny["objective"]["method"] = rng.choice(list(METHODS))
    file = folder / "config.py"
    head = "from math import inf, nan\nimport ml_collections\n\n\ndef get_config(arg):\n"
    file.write_text(f"{head}    return ml_collections.ConfigDict({tiny!r})\n", errors="surrogatepass")
    return what, lambda: _train(f"--config={file}", f"--workdir={folder / 'w'}")


def command_flags(rng: random.Random, samples: Path, folder: Path):
    """Flags of the other commands."""
    name = rng.choice(list(_COMMANDS))
    main, flags = _COMMANDS[name]
    flags = [flag.format(samples=samples, folder=folder, config=TINY) for flag in flags]
    place = rng.randrange(len(flags))
    flags[place] = flags[place].partition("=")[0] + "=" + rng.choice((*map(str, mutate.NASTY), "x" * 300, str(samples)))
    return f"{name} {' '.join(flags)}", lambda: command(main, *flags)


_COMMANDS = {
    "prepare": (prepare.main, ["--input={samples}/rows.jsonl", "--output={folder}/set", "--layout=auto"]),
    "convert": (convert.main, ["--source={samples}/hf", "--output={folder}/out", "--format=hf"]),
    "evaluate": (evaluate.main, ["{config}", "--workdir={folder}/w", "--checkpoint=9"]),
    "generate": (generate.main, ["{config}", "--workdir={folder}/w", "--checkpoint=9", "--prompt=1 + 1?"]),
    "compile": (compile_command.main, ["{config}", "--topology=v5e:2x4"]),
}


def launcher_flags(rng: random.Random, _samples: Path, folder: Path):
    """Flags of the launcher and of sweeps."""
    flags = ["run", "--name=n", "--project=my-project-123", "--zone=us-west4-a", "--slice=v5e-8", "--bucket=bbb", "--"]
    flags += ["python", "-m", "dasd_jax.train", TINY, "--workdir=/bucket/runs/a"]
    for _ in range(rng.choice((1, 2))):
        place = rng.randrange(len(flags))
        name, equals, _ = flags[place].partition("=")
        flags[place] = name + equals + str(rng.choice(mutate.NASTY)) if rng.random() < 0.7 else text_of(rng)
    file = folder / "my.flags"
    if rng.random() < 0.3:
        file.write_bytes(mutate.damaged(rng, " ".join(flags[1:6]).encode())[1])
        flags[1:6] = [f"@{file}"]
    return " ".join(flags), lambda: command(tpu_vm.main, "--dry-run", *flags)
