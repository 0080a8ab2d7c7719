"""A run's numbers in W&B or trackio, if `run.tracker` asks for one of them; docs/trackers.md.

The tracker's package is loaded by a process of its own (`dasd_jax.run.tracker_process`), which reads metrics.jsonl. The
run tells it when a step has been written, and never waits for it but at its end, and then for `ENDS_S` at most.
"""

import contextlib
import dataclasses
import importlib.util
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from dasd_jax import hosts
from dasd_jax.config import Config
from dasd_jax.errors import UserError
from dasd_jax.run.tracker_process import ENDS_S, STATE, State, read

_HANGS_S = 180.0  # without a step sent; W&B itself gives up its start after 90


def check(config: Config) -> None:
    """Refuses a tracker whose package is not installed; imports nothing.

    Raises:
        UserError: it is not.
    """
    name = config.run.tracker
    if not name or not hosts.is_main():
        return
    found = importlib.util.find_spec(name)
    # A folder of that name, as W&B leaves it where it is used, looks like a package without an origin.
    if found is None or found.origin is None:
        raise UserError(f"run.tracker: {name!r}: its package is not installed: expected `pip install {name}` first")


def start(
    config: Config, workdir: Path, say: Callable[[str], None], step: int = -1, differently: bool = False
) -> "Tracker | None":
    """The tracker that the config names, which sends nothing before `Tracker.wake`; None without one.

    With several processes, process 0 alone has one. config.json is in the workdir already.

    Args:
        say: prints a message.
        step: the last one that is not done again; -1 of a run that begins.
        differently: the later ones may come out in another way than before. A tracker that was sent some of them cannot
            take them back, so that the run gets a new id there and is sent as a whole.

    Raises:
        UserError: tracker.json is not what was written.
    """
    name = config.run.tracker
    if not name or not hosts.is_main():
        return None
    project = config.run.project
    state = read(workdir) if (workdir / STATE).exists() else None
    if state and differently and state.sent > step:
        say(f"{name}: steps after {step} are done again with other settings: they go to a new run there")
        state = None
    if state is None or (state.tracker, state.project) != (name, project):
        state = State(name, project, uuid.uuid4().hex[:8], sent=-1)
    dataclasses.replace(state, failed="").write(workdir)
    return Tracker(name, workdir, say)


class Tracker:
    """The process that sends a run's log, as the run sees it.

    If it fails, or sends nothing for `_HANGS_S` although there is something to send, it is ended for good. That is said
    once, and at the end of the run how many steps it was not given.
    """

    def __init__(self, name: str, workdir: Path, say: Callable[[str], None]):
        """Starts the process."""
        self._name, self._workdir, self._say = name, workdir, say
        self._written, self._sent, self._since = -1, -1, time.monotonic()
        self._works = True
        package_root = str(Path(__file__).parents[2])
        python_path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dasd_jax.run.tracker_process", str(workdir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": python_path},
            start_new_session=True,  # Ctrl-C and a supervisor's SIGTERM are for the run
        )
        os.set_blocking(self._process.stdin.fileno(), False)

    def wake(self, step: int) -> None:
        """Says that metrics.jsonl goes up to `step` now, and looks whether the earlier ones are on their way."""
        if not self._works:
            self._written = step
            return
        sent, now = self._read_sent(), time.monotonic()
        if sent > self._sent or sent >= self._written:
            self._sent, self._since = sent, now
        self._written = step
        with contextlib.suppress(BrokenPipeError, BlockingIOError):  # it has ended, or has 64 Ki bytes to read
            self._process.stdin.write(b"\n")
        if self._process.poll() is not None:
            self._give_up(self._why())
        elif now - self._since > _HANGS_S:
            self._give_up(f"no step was sent for {_HANGS_S:.0f} s")

    def close(self) -> None:
        """Waits until all is sent, for `ENDS_S` at most, and says how many steps were not."""
        self._process.stdin.close()
        if self._works:
            try:
                if self._process.wait(ENDS_S):
                    self._give_up(self._why())
            except subprocess.TimeoutExpired:
                self._give_up(f"it did not end within {ENDS_S:.0f} s")
        unsent = self._written - self._read_sent()
        if unsent > 0:
            self._say(f"{self._name}: {unsent} of {self._written + 1} steps were not sent; metrics.jsonl has them all")

    def _read_sent(self) -> int:
        """The last step that was sent, as far as is known."""
        with contextlib.suppress(UserError):
            return read(self._workdir).sent
        return self._sent

    def _why(self) -> str:
        """Why the process has ended before its time."""
        with contextlib.suppress(UserError):
            if failed := read(self._workdir).failed:
                return failed
        return f"its process ended with code {self._process.returncode}"

    def _give_up(self, why: str) -> None:
        """Ends the process and all that it has started."""
        self._works = False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._say(f"warning: {self._name} is given up, and the run goes on without it: {why}")
