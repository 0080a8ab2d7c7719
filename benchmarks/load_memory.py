"""Host memory of reading a Hugging Face folder: python -m benchmarks.load_memory

Writes a Llama of 0.5 B random parameters in bfloat16, in files of several sizes, reads it in a process of its own and
prints its peak beside the float32 parameters, which on a CPU lie in the same memory, and the largest file.
What the process holds after it has read a model of a thousandth of the size counts as there before.
"""

import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

from dasd_jax.mesh import MeshConfig, make_mesh
from dasd_jax.model import hf, param_table
from dasd_jax.model.config import ModelConfig

MODEL = ModelConfig(
    vocab_size=32_000, num_layers=24, width=1280, num_heads=20, num_kv_heads=20, head_dim=64, ff=3456, context=4096
)
READ = """
import re, sys
from pathlib import Path
import jax
from dasd_jax.mesh import MeshConfig, make_mesh
from dasd_jax.model import weights
from benchmarks.load_memory import MODEL

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

mesh = make_mesh(MeshConfig())
with jax.set_mesh(mesh):
    weights.load(sys.argv[2], mesh)
    before = peak()
    model, loaded = weights.load(sys.argv[1], mesh)
    jax.block_until_ready(loaded)
    print(before, peak())
"""


def main() -> None:
    """Writes, reads and prints for each size of files."""
    mesh = make_mesh(MeshConfig())
    count = param_table.num_params(MODEL)
    print(f"{count / 1e6:.0f} M parameters, {4 * count / 1e6:.0f} MB in float32\n")
    print(
        "| largest file, MB | files | peak, MB | before, MB | beside parameters and before, MB | of the largest file |"
    )
    print("|---|---|---|---|---|---|")
    with jax.set_mesh(mesh):
        params = param_table.init(MODEL, mesh, 0)
        tiny = dataclasses.replace(MODEL, vocab_size=320, num_layers=1, width=64, num_heads=1, num_kv_heads=1, ff=64)
        for size in (256 * 10**6, 512 * 10**6, 4 * 10**9):
            with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as small:
                hf.MAX_SHARD_BYTES = size
                hf.save(Path(small), tiny, param_table.init(tiny, mesh, 0))
                hf.save(Path(folder), MODEL, params)
                read(Path(folder), small)


def read(folder: Path, small: str) -> None:
    """Reads a folder in another process and prints its row."""
    sizes = [file.stat().st_size for file in folder.glob("*.safetensors")]
    done = subprocess.run([sys.executable, "-c", READ, folder, small], check=True, capture_output=True, text=True)
    before, peak = map(int, done.stdout.split())
    beside = peak - before - 4 * param_table.num_params(MODEL)
    numbers = (max(sizes), peak, before, beside)
    largest, peak, before, beside = (f"{number / 1e6:.0f}" for number in numbers)
    print(f"| {largest} | {len(sizes)} | {peak} | {before} | {beside} | {numbers[3] / numbers[0]:.2f} |")


if __name__ == "__main__":
    main()
