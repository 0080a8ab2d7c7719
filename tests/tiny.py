"""The tiny configuration, changed as a command line changes it, and its training in the tests' own process."""

import functools
import sys

import jax

from dasd_jax import cli, train
from dasd_jax.config import Config
from dasd_jax.mesh import make_mesh
from dasd_jax.run import start

TINY = "--config=configs/qwen_math.py:tiny"
# Four problems of two rollouts and one schedule, where nothing that is tested depends on them: compiled once for all.
SMALL = (
    "rollout.problems=4", "rollout.rollouts=2", "run.eval_problems=4", "run.eval_samples=2",
    "optim.schedule=constant", "optim.warmup_steps=5", "optim.learning_rate=5e-4",
)  # fmt: skip


def config(*overrides: str) -> Config:
    """The frozen configuration with overrides such as "run.steps=3"."""
    return cli.parse(cli.parser(""), [TINY, *(f"--config.{override}" for override in overrides)], quiet=True).config


_make_optimizer = functools.cache(start.make_optimizer)


def alike(setattr=setattr) -> None:
    """From now on trainings of any length have one optimiser, whose update is traced once, on one of the devices."""
    setattr(train, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
    setattr(start, "make_optimizer", lambda optim, planned: _make_optimizer(optim, 12))


def command(monkeypatch):
    """call(*argv) → exit code of `train` through its command-line entry point, in this process."""
    alike(monkeypatch.setattr)

    def call(*argv: str) -> int:
        monkeypatch.setattr(sys, "argv", ["train", *argv])
        try:
            cli.run(train.main)
        except SystemExit as ended:
            return ended.code or 0
        return 0

    return call
