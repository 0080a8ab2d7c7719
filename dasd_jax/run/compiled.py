"""Compiled programs are kept between processes: a command that is repeated starts without the compiler."""

import hashlib
import platform
import re
from pathlib import Path

import jax

_MAX_BYTES = 4 * 2**30  # of all that is kept; JAX removes what was not used for longest
_MIN_SECONDS = 0.2  # of compilation that make a program worth keeping


def keep_programs() -> None:
    """Turns JAX's persistent cache on, in ~/.cache/dasd_jax/compiled.

    JAX's own variables come first: JAX_COMPILATION_CACHE_DIR names another place, as on several hosts one that all of
    them share, and JAX_ENABLE_COMPILATION_CACHE=false turns it off.
    """
    if not jax.config.jax_compilation_cache_dir:
        folder = Path.home() / ".cache" / "dasd_jax" / "compiled" / _machine()
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_SECONDS)


def kept_in() -> str:
    """Where programs are kept; "" if they are not."""
    return jax.config.jax_compilation_cache_dir if jax.config.jax_enable_compilation_cache else ""


def _machine() -> str:
    """A name for processors with the same instructions: JAX's keys leave them out, and homes are shared."""
    try:
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    features = sorted(found[1].split()) if found else [platform.processor()]
    return f"{platform.machine()}-{hashlib.sha256(' '.join(features).encode()).hexdigest()[:12]}"
