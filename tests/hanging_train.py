"""A training that hangs in a function of its own, where Python hears no signal: at once or in its second step.

python tests/hanging_train.py start-up|score|update FLAGS…
"""

import ctypes
import sys

import jax
import tiny

from dasd_jax import cli, train
from dasd_jax.run import setup

PLACES = {"start-up": (setup, "open_prompts"), "score": (train, "score"), "update": (train, "train_step")}


def hang_in(owner, name: str) -> None:
    """Puts a function that never returns in the place of one of the run's."""
    whole = getattr(owner, name)

    def hang(*args, **named):
        states = [getattr(x, "state", x) for x in args]
        if owner is setup or int(next(x.step for x in states if hasattr(x, "step"))) == 1:
            print("hangs", flush=True)
            while True:
                ctypes.CDLL(None).sleep(60)
        return whole(*args, **named)

    setattr(owner, name, hang)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)  # as in the tests' process, whose programs it finds compiled
    tiny.alike()
    hang_in(*PLACES[sys.argv.pop(1)])
    cli.run(train.main)
