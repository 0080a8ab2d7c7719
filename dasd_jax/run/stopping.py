"""How a run is asked to end before its last step: by SIGTERM, Ctrl-C, SIGUSR1, or Google's notice of maintenance."""

import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import NoReturn

import jax

from dasd_jax import hosts
from dasd_jax.errors import TrainingError

_METADATA = "metadata.google.internal"  # where GCE_METADATA_HOST, which Google's own libraries read, names no other
_NOTICE_EVERY_S = 5
_SIGNALS = {signal.SIGTERM: "a signal", signal.SIGINT: "Ctrl-C", signal.SIGUSR1: "SIGUSR1"}
_BY_HAND = f"by {_SIGNALS[signal.SIGINT]}"
_NOT_BEGUN = "in start-up; the same command starts again"


class StopRequest:
    """Waits for a request to stop while the run goes on; a context.

    SIGTERM, or Ctrl-C's SIGINT, leaves `grace_s` seconds. One process alone is ended at once where nothing would be
    lost but the phase that it is in: `save` writes what the last step has left. Between `hold` and `release`, where
    parameters, log and checkpoints move from one step to the next, and with several processes, which have to agree, the
    step is finished if the time suffices. A second signal ends the process in that moment. A notice of maintenance
    comes minutes ahead, and SIGUSR1 leaves all the time that it takes, so the step is finished. A separate thread
    listens, since the main one is blocked while a device program runs.

    The exit code is 0 after SIGTERM, as schedulers and spot machines send it to runs that are to go on; after Ctrl-C it
    is 130, so that a shell does not begin what follows; after a second signal 128 + its number.

    Attributes:
        reason: why the run is to end after this step; "" as long as it is not.
        save: checkpoints the last finished step and returns in words where the run has got to; None before it starts.
        stands: returns in words where a run that is ended at once goes on from; must not wait.
        say: shows a line; to a person who presses Ctrl-C, since a step may take minutes to finish.
    """

    def __init__(self, grace_s: float):
        """Listens to nothing yet."""
        self.reason = ""
        self.save: Callable[[], str] | None = None
        self.stands: Callable[[], str] = lambda: _NOT_BEGUN
        self.say: Callable[[str], None] = lambda line: print(line, flush=True)
        self._grace_s, self._lock, self._over = grace_s, threading.Lock(), threading.Event()

    def hold(self) -> None:
        """From here on a step is finished before the process ends."""
        self._lock.acquire()

    def release(self) -> None:
        """The step is finished, in memory and in the log."""
        self._lock.release()

    def __enter__(self):
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        # The handler itself has nothing to do; that there is one makes Python write the signal's number.
        self._before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
        self._before_fd = signal.set_wakeup_fd(self._writer.fileno())
        threading.Thread(target=self._listen, name="signals", daemon=True).start()
        if metadata := os.environ.get("GCE_METADATA_HOST", _METADATA if jax.default_backend() == "tpu" else ""):
            threading.Thread(target=self._await_notice, args=(metadata,), name="maintenance", daemon=True).start()
        return self

    def __exit__(self, *_):
        self._over.set()
        signal.set_wakeup_fd(self._before_fd)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._writer.close()

    def _listen(self) -> None:
        try:
            while (first := self._heard(None)) == signal.SIGUSR1:
                self.reason = self.reason or f"by {_SIGNALS[first]}"
            if first is None:
                return
            self.reason = f"by {_SIGNALS[first]}"
            if first == signal.SIGINT:
                self.say("Ctrl-C: saving; press Ctrl-C again to exit immediately")
            if jax.process_count() == 1 or self.save is None:
                threading.Thread(target=self._end_between_steps, name="last save", daemon=True).start()
            until = time.monotonic() + self._grace_s
            while (second := self._heard(until)) == signal.SIGUSR1:
                pass  # asks for less than what has begun
            if second is not None:
                print(f"ended by {_SIGNALS[second]} {self.stands()}", flush=True)
                os._exit(128 + second)
        except TimeoutError:
            self._end(
                f"stopped {self.reason} {self._grace_s:g} s after it, in the middle of a step; the same command goes "
                "on from the last checkpoint"
            )
        finally:
            self._reader.close()

    def _heard(self, until: float | None) -> int | None:
        """Waits for one of the signals, and returns its number, or for the end of the context: None.

        Raises:
            TimeoutError: neither came in time.
        """
        while True:
            self._reader.settimeout(None if until is None else max(until - time.monotonic(), 1e-3))
            number = self._reader.recv(1)
            if not number:
                return None
            if number[0] in _SIGNALS:
                return number[0]

    def _end_between_steps(self) -> None:
        with self._lock:
            if self._over.is_set():
                return
            try:
                stands = self.save() if self.save else _NOT_BEGUN
            except TrainingError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            self._end(f"stopped {self.reason} {stands}")

    def _end(self, line: str) -> NoReturn:
        print(line, flush=True)
        code = exit_code(self.reason)
        hosts.stop_others(code, line)
        os._exit(code)

    def _await_notice(self, metadata: str) -> None:
        url = f"http://{metadata}/computeMetadata/v1/instance/maintenance-event"
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        while not self._over.wait(_NOTICE_EVERY_S):
            try:
                with urllib.request.urlopen(request, timeout=_NOTICE_EVERY_S) as reply:
                    notice = reply.read(100).decode(errors="replace").strip()
            except OSError:  # asked again, as long as the run lasts
                continue
            if notice and notice != "NONE":
                self.reason = self.reason or f"for maintenance ({notice})"
                return


def exit_code(reason: str) -> int:
    """Of a process that ended for a reason of `StopRequest` after it had saved."""
    return 128 + signal.SIGINT if reason == _BY_HAND else 0
