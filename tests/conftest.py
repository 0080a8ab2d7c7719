"""Eight fake devices, and a mesh in context: the program has explicit axes and needs one even on one device."""

import gc
import os
import tempfile
from pathlib import Path

# Most of the time of a small test is XLA's compiler, most of it in optimisations that these flags turn off. What the
# tests state holds without them.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_llvm_disable_expensive_passes=true",
)

# The same programs in test after test and process after process: each is compiled once. Workers of pytest-xdist have
# the folder of the process that started them.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory()
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": _CACHE.name, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}

import jax  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

import pytest  # noqa: E402

from dasd_jax.mesh import MeshConfig, make_mesh  # noqa: E402


@pytest.fixture(autouse=True)
def few_mappings():
    """XLA keeps mappings of memory for every program; past the kernel's 65,530 a process its next one is a crash."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > 50_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def mesh():
    """The mesh of one device that every test runs under."""
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(one):
        yield one


@pytest.fixture
def mesh8(mesh):
    """Two devices along each of data, fsdp and tensor, in the place of the single one."""
    eight = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(eight):
        yield eight


# The longest files first: with several workers, none of them is left alone with one at the end.
_LONGEST = (
    "test_step",
    "test_faults",
    "test_commands",
    "test_transformer",
    "test_sampler",
    "test_verifier",
    "test_compile",
    "test_checkpoint",
)


def pytest_collection_modifyitems(items):
    """Orders files, and keeps the order within each."""
    rank = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(_LONGEST)))
