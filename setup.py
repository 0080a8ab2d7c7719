"""What pyproject.toml cannot say: that packages are found and one lies elsewhere, and that one extra is a file's list.

The configuration files are shipped as dasd_jax/configs, where their names (methods.py) are none of top-level modules.
"""

from pathlib import Path

from setuptools import find_packages, setup

_TEST = Path(__file__).with_name("tests") / "requirements.txt"

setup(
    packages=[*find_packages(include=["dasd_jax", "dasd_jax.*"]), "dasd_jax.configs"],
    package_dir={"dasd_jax.configs": "configs"},
    package_data={
        "dasd_jax": [f"**/*.{ending}" for ending in ("txt", "js", "css", "html")],
        "dasd_jax.configs": ["*.jsonl"],
    },
    # Resolved together with requirements.txt, so that the plug-ins are those of the jax that it allows.
    extras_require={"cuda": ["jax[cuda12]"], "tpu": ["jax[tpu]"], "test": _TEST.read_text().split("\n")},
)
