"""The tiny configuration, changed as a command line changes it."""

from dasd_jax import cli
from dasd_jax.config import Config

TINY = "--config=configs/qwen_math.py:tiny"


def config(*overrides: str) -> Config:
    """The frozen configuration with overrides such as "run.steps=3"."""
    return cli.parse(cli.parser(""), [TINY, *(f"--config.{override}" for override in overrides)], quiet=True).config
