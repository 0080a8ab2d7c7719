"""What the benchmarks that train share: commands in processes of their own, and the logs of their runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
_LAST_LINES = 20  # of a command that failed


def python(module: str, *args: str, checkout: Path = ROOT, **environment: str) -> str:
    """What `python -m MODULE ARGS` prints at the root of this checkout or another; ends this process if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", module, *args],
        cwd=checkout,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print(*(done.stdout + done.stderr).splitlines()[-_LAST_LINES:], sep="\n", file=sys.stderr)
        sys.exit(f"error: {checkout}: python -m {module} {' '.join(args)} failed with exit code {done.returncode}")
    return done.stdout


def read_lines(path: Path) -> list[dict]:
    """The objects of a .jsonl file."""
    # Lines of bytes: str.splitlines would also cut at U+2028, which model text may hold.
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def numbers(workdir: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    return [
        {name: value for name, value in line.items() if not name.startswith("time/") and not name.endswith("_per_s")}
        for line in read_lines(workdir / "metrics.jsonl")
    ]
