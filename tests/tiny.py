"""The tiny configuration, changed as a command line changes it, and its training in the tests' own process."""

import functools
import sys

import jax

from dasd_jax import cli, train
from dasd_jax.config import Config
from dasd_jax.mesh import make_mesh
from dasd_jax.run import start

TINY = "--config=configs/qwen_math.py:tiny"
# Four problems of two rollouts, where nothing that is tested depends on the size of a batch.
SMALL = ("rollout.problems=4", "rollout.rollouts=2", "run.eval_problems=4", "run.eval_samples=2")

_make_optimizer = functools.cache(start.make_optimizer)


def config(*overrides: str) -> Config:
    """The frozen configuration with overrides such as "run.steps=3"."""
    return cli.parse(cli.parser(""), [TINY, *(f"--config.{override}" for override in overrides)], quiet=True).config


def of_one_length(optim, planned: int = 12):
    """The optimiser of runs of any length, so that their update is compiled once."""
    return _make_optimizer(optim, 12)


def here(monkeypatch, main=train.main):
    """call(*argv) → exit code of a command in this process, on one of its devices."""
    monkeypatch.setattr(train, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
    monkeypatch.setattr(start, "make_optimizer", of_one_length)

    def call(*argv: str) -> int:
        monkeypatch.setattr(sys, "argv", ["dasd_jax", *argv])
        try:
            cli.run(main)
        except SystemExit as ended:
            return ended.code or 0
        return 0

    return call
