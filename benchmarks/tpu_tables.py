"""What the paper's run takes on six TPU slices, and one with longer responses on four.

Writes each table of docs/tpu.md as soon as its slice is compiled.

python -m benchmarks.tpu_tables                         all of them
python -m benchmarks.tpu_tables 8b,v5p-64 …             those alone; the others stay as they are
"""

import datetime
import importlib.metadata
import subprocess
import sys
from pathlib import Path

from benchmarks.marks import put
from benchmarks.timing import hardware
from dasd_jax.compile import COMPILER

PAGE = Path(__file__).parents[1] / "docs" / "tpu.md"
# Argument of configs/qwen_math.py → topology of the slice, in chips.
SLICES = {
    "1p7b,v5e-16": "v5e:4x4",
    "1p7b,v6e-8": "v6e:2x4",
    "4b,v5p-16": "v5p:2x2x2",
    "4b,v6e-16": "v6e:4x4",
    "8b,v5p-64": "v5p:2x4x4",
    "8b,v6e-64": "v6e:8x8",
    "1p7b,v5e-16,32k": "v5e:4x4",
    "1p7b,v6e-8,32k": "v6e:2x4",
    "8b,v5p-64,32k": "v5p:2x4x4",
    "8b,v6e-64,32k": "v6e:8x8",
}


def main() -> None:
    """Compiles for one slice after the other."""
    failed = []
    for argument in sys.argv[1:] or SLICES:
        command = ["dasd_jax.compile", f"--config=configs/qwen_math.py:{argument}", f"--topology={SLICES[argument]}"]
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=PAGE.parents[1], stdout=subprocess.PIPE, text=True, check=False
        )
        if done.stdout:
            put(PAGE, argument, done.stdout.strip() + f"\n\n`python -m {' '.join(command)}`, {conditions()}.")
        if done.returncode:
            failed.append(argument)
    if failed:
        sys.exit(f"error: {', '.join(failed)}: does not compile or does not fit")


def conditions() -> str:
    """The date, the machine that compiled, and versions."""
    sys.path.append(COMPILER)
    return f"{datetime.date.today()}, libtpu {importlib.metadata.version('libtpu')}, {hardware()}"


if __name__ == "__main__":
    main()
