"""Compiled programs that outlive the process."""

import os
import subprocess
import sys

PROGRAM = """
import jax
from dasd_jax.run import compiled
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None)
compiled.keep_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x * 2 + 1)(1.0)
print(len(hits) > 0, compiled.kept_in())
"""


def run(home, **more):
    left = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    environment = left | {"HOME": str(home), "JAX_PLATFORMS": "cpu"} | more
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    hit, _, folder = done.stdout.strip().partition(" ")
    return hit == "True", folder


def test_the_next_process_compiles_nothing_again(tmp_path):
    (first, folder), (second, _) = run(tmp_path), run(tmp_path)
    assert not first
    assert second
    assert folder.startswith(str(tmp_path / ".cache" / "dasd_jax" / "compiled"))


def test_variables_of_jax_come_first(tmp_path):
    place = str(tmp_path / "elsewhere")
    assert run(tmp_path, JAX_COMPILATION_CACHE_DIR=place) == (False, place)
    assert run(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false") == (False, "")
    assert not (tmp_path / ".cache").exists()
