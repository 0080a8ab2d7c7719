"""Targets with every fault that the fuzz runner has to see; `tests/test_fuzz.py` runs them."""

import os
import time

from dasd_jax.errors import UserError


def write_samples(folder):
    (folder / "valid").touch()


def _target(read):
    return lambda rng, valid, folder: (f"{rng.randrange(10**9)}", lambda: read(folder))


def _refused(_folder):
    raise UserError("field: value: expected another")


def _two_lines(_folder):
    error = UserError("one")
    error.args = ("one\ntwo",)
    raise error


def _left_behind(folder):
    (folder / "half").write_text("half a file")
    raise UserError("field: value: expected another")


class Panic(BaseException):
    """As Rust libraries raise it."""


def _panic(_folder):
    raise Panic


TARGETS = {
    name: (_target(read), 1)
    for name, read in {
        "read": lambda folder: None,
        "refused": _refused,
        "raises": lambda folder: {}["key"],
        "panic": _panic,
        "two_lines": _two_lines,
        "left_behind": _left_behind,
        "dies": lambda folder: os._exit(3),
        "hangs": lambda folder: time.sleep(60),
        "after": lambda folder: None,
    }.items()
}
