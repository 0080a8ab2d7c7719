"""Host memory of reading a Hugging Face folder: python -m benchmarks.load_memory

Writes a Llama of 0.5 B random parameters in bfloat16, in files of 512 MB, reads it in a process of its own and prints
the peak of that process beside the float32 parameters, which on a CPU lie in the same memory, and the largest file.
What the process holds after it has read a model of a thousandth of the size counts as there before.
"""

import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

from dasd_jax.mesh import MeshConfig, make_mesh
from dasd_jax.model import params as param_table
from dasd_jax.model import weights
from dasd_jax.model.config import ModelConfig

MODEL = ModelConfig(
    vocab_size=32_000, num_layers=24, width=1280, num_heads=20, num_kv_heads=20, head_dim=64, ff=3456, context=4096
)
READ = """
import re, sys
from pathlib import Path
import jax
from dasd_jax.mesh import MeshConfig, make_mesh
from dasd_jax.model import params, weights
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
    """Writes, reads, prints."""
    mesh = make_mesh(MeshConfig())
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as small, jax.set_mesh(mesh):
        tiny = dataclasses.replace(MODEL, vocab_size=320, num_layers=1, width=64, num_heads=1, num_kv_heads=1, ff=64)
        weights.save_hf(Path(small), tiny, param_table.init(tiny, mesh, 0))
        weights.MAX_SHARD_BYTES = 512 * 10**6
        weights.save_hf(Path(folder), MODEL, param_table.init(MODEL, mesh, 0))
        largest = max(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
        count = len(list(Path(folder).glob("*.safetensors")))
        done = subprocess.run([sys.executable, "-c", READ, folder, small], check=True, capture_output=True, text=True)
    before, peak = map(int, done.stdout.split())
    parameters = 4 * MODEL.num_params
    beside = peak - before - parameters
    print(f"{MODEL.num_params / 1e6:.0f} M parameters, {count} files, the largest of {largest / 1e6:.0f} MB")
    print(f"peak {peak / 1e6:.0f} MB = {before / 1e6:.0f} MB before + {parameters / 1e6:.0f} MB float32 parameters")
    print(f"       + {beside / 1e6:.0f} MB beside them: {beside / largest:.2f} of the largest file (limit 1.3)")


if __name__ == "__main__":
    main()
