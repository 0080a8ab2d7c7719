"""How a run is asked to end before its last step: by SIGTERM, or by Google's notice of maintenance on a TPU VM."""

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


class StopRequest:
    """Waits for a request to stop while the run goes on; a context.

    A signal leaves `grace_s` seconds. One process alone is ended at once where nothing would be lost but the phase that
    it is in: `save` writes what the last step has left. Between `hold` and `release`, where parameters, log and
    checkpoints move from one step to the next, and with several processes, which have to agree, the step is finished if
    the time suffices. A second signal ends the process in that moment. A notice of maintenance comes minutes ahead, so
    the step is finished. A separate thread listens, since the main one is blocked while a device program runs.

    Attributes:
        reason: why the run is to end after this step; "" as long as it is not.
        save: checkpoints the last finished step and returns in words where the run has got to; None before it starts.
    """

    def __init__(self, grace_s: float):
        """Listens to nothing yet."""
        self.reason = ""
        self.save: Callable[[], str] | None = None
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
        self._before = signal.signal(signal.SIGTERM, lambda *_: None), signal.set_wakeup_fd(self._writer.fileno())
        threading.Thread(target=self._listen, name="signals", daemon=True).start()
        if metadata := os.environ.get("GCE_METADATA_HOST", _METADATA if jax.default_backend() == "tpu" else ""):
            threading.Thread(target=self._await_notice, args=(metadata,), name="maintenance", daemon=True).start()
        return self

    def __exit__(self, *_):
        self._over.set()
        signal.set_wakeup_fd(self._before[1])
        signal.signal(signal.SIGTERM, self._before[0])
        self._writer.close()

    def _listen(self) -> None:
        try:
            if not self._heard(None):
                return
            self.reason = "by a signal"
            if jax.process_count() == 1 or self.save is None:
                threading.Thread(target=self._end_between_steps, name="last save", daemon=True).start()
            if self._heard(time.monotonic() + self._grace_s):
                os._exit(128 + signal.SIGTERM)
        except TimeoutError:
            self._end(
                f"stopped by a signal {self._grace_s:g} s after it, in the middle of a step; the same command goes on "
                "from the last checkpoint"
            )
        finally:
            self._reader.close()

    def _heard(self, until: float | None) -> bool:
        """Waits for a SIGTERM, or for the end of the context: False.

        Raises:
            TimeoutError: neither came in time.
        """
        while True:
            self._reader.settimeout(None if until is None else max(until - time.monotonic(), 1e-3))
            number = self._reader.recv(1)
            if not number or number[0] == signal.SIGTERM:
                return bool(number)

    def _end_between_steps(self) -> None:
        with self._lock:
            if self._over.is_set():
                return
            try:
                stands = self.save() if self.save else "before the run has begun; the same command begins it"
            except TrainingError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            self._end(f"stopped by a signal {stands}")

    def _end(self, line: str) -> NoReturn:
        print(line, flush=True)
        hosts.stop_others(0, line)
        os._exit(0)

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
