"""What a process that waits for signals says and how it ends, without a training in it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Argument: held, in the middle of an update, or free, between two.
PROCESS = """
import ctypes, sys
from dasd_jax.run.stopping import StopRequest

with StopRequest(600) as stop:
    stop.save = lambda: "after step 3; the same command goes on from here"
    stop.stands = lambda: "at once; the same command goes on after step 2"
    if sys.argv[1] == "held":
        stop.hold()
    print("waits", flush=True)
    while True:
        ctypes.CDLL(None).sleep(60)
"""
NAMES = {signal.SIGTERM: "a signal", signal.SIGINT: "Ctrl-C"}


def ended(state, numbers):
    """(exit code, lines it said) of a process that gets these signals."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, state],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    said = [process.stdout.readline()]
    for number in numbers:
        process.send_signal(number)
        if number == signal.SIGINT and len(said) == 1:
            said.append(process.stdout.readline())  # it has heard the first one
    code = process.wait(timeout=120)
    return code, [*said, *process.stdout.readlines()][1:]


STEP = """
import time
from dasd_jax.run.stopping import StopRequest, exit_code

with StopRequest(0.05) as stop:
    stop.save = lambda: "nowhere"
    print("waits", flush=True)
    while not stop.reason:
        time.sleep(0.01)
    time.sleep(0.5)
    print(f"finishes its step, stopped {stop.reason}, exit code {exit_code(stop.reason)}", flush=True)
    if sys.argv[1] == "on":
        while True:
            time.sleep(60)
"""


@pytest.mark.parametrize("then", ["ends", "on"])
def test_sigusr1_leaves_all_the_time_for_the_step_and_sigterm_after_it_does_not(then):
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys" + STEP, then],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    process.stdout.readline()
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == "finishes its step, stopped by SIGUSR1, exit code 0\n"
    if then == "on":
        process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 0
    assert process.stdout.readlines() == (["stopped by a signal nowhere\n"] if then == "on" else [])


AGAIN = "Ctrl-C: saving; press Ctrl-C again to exit immediately\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_between_two_updates_a_signal_saves_and_says_where_it_goes_on(number, code):
    found, said = ended("free", [number])
    assert found == code
    assert said[-1] == f"stopped by {NAMES[number]} after step 3; the same command goes on from here\n"
    assert said[:-1] == ([AGAIN] if number == signal.SIGINT else [])


def test_in_an_update_a_second_ctrl_c_ends_the_process_and_says_where_it_goes_on():
    found, said = ended("held", [signal.SIGINT, signal.SIGINT])
    assert found == 130
    assert said == [AGAIN, "ended by Ctrl-C at once; the same command goes on after step 2\n"]
