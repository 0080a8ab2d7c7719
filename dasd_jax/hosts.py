"""Several processes that run one program, on several hosts: their start, what they agree on, and how they end.

Every process runs the same command. Device programs are jitted over all devices; what is decided on the host is either
computed from numbers that are equal everywhere, or comes from process 0. Small values travel through the coordination
service of jax.distributed, which needs no device and can be asked from a thread. With one process all of this is free.
"""

import argparse
import atexit
import contextlib
import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from jax._src import distributed  # its client holds the key-value store, which has no public name

from dasd_jax.errors import UserError

START_DEADLINE_S = 300  # for all processes to meet
_FAREWELL_MS = 10_000  # for all processes to hear that one has failed
_FOREVER_MS = 10**9  # eleven days: a process that is gone ends the wait much earlier

_turn = itertools.count()  # of `gather`: every process takes part in each, so that the numbers agree
_leaving = threading.Lock()


def add_flags(flags: argparse.ArgumentParser) -> None:
    """The flags of a command that runs in several processes."""
    group = flags.add_argument_group(
        "several hosts", "the same command on each; on a TPU slice without these flags, everything is found"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 runs, and a free port there")
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process", type=int, metavar="I", help="which this one is, 0 to N-1")


def start(flags: argparse.Namespace, same: dict[str, Any]) -> None:
    """Meets the other processes and makes sure that they are about to do the same; with one process nothing.

    Args:
        same: by the name of a flag or field, what has to be equal everywhere.

    Raises:
        UserError: flags that do not fit together, or processes that differ. One that does not come ends this process
            after START_DEADLINE_S with one line and exit code 2: JAX itself would abort.
    """
    address, count, index = flags.coordinator, flags.processes, flags.process
    if (address, count, index) == (None, None, None):
        # JAX sets the platform by itself where it sees TPU chips.
        if not (jax.config.jax_platforms or "").startswith("tpu"):
            return
        here, missing = "this VM", "the VMs of the slice"
    else:
        _check_flags(address, count, index)
        here, missing = f"process {index}", f"the {count} processes (--processes)"
    with _deadline(here, missing, address):
        try:
            jax.distributed.initialize(
                address,
                count,
                index,
                # Under Slurm JAX would take one device for a process, whatever the flags say.
                cluster_detection_method="deactivate" if address else None,
                initialization_timeout=2 * START_DEADLINE_S,
            )
        except ValueError:
            if address:
                raise
            return  # a TPU of one host, in a place that says nothing of others
    watch = threading.Thread(target=_watch, args=(distributed.global_state.client,), daemon=True)
    watch.start()
    atexit.register(_end_watch, distributed.global_state.client, watch)
    found = gather([socket.gethostname(), jax.local_device_count(), jax.local_devices()[0].device_kind])
    for other, (name, *devices) in enumerate(found):
        if devices != found[0][1:]:
            raise UserError(
                f"--process: process {other} ({name}) has {devices[0]} × {devices[1]}, process 0 ({found[0][0]}) "
                f"{found[0][1]} × {found[0][2]}: expected the same devices on every host"
            )
    check_same(lambda: {"jax": jax.__version__, **same})
    if is_main() and len(found) > 1:
        names = ", ".join(name for name, *_ in found)
        print(f"{len(found)} processes ({names}) with {found[0][1]} × {found[0][2]} each", flush=True)


def _check_flags(address: str | None, count: int | None, index: int | None) -> None:
    if address is None or count is None or index is None:
        raise UserError("--coordinator, --processes and --process: expected all three of them, or none")
    if not address.rpartition(":")[0] or not address.rpartition(":")[2].isdecimal():
        raise UserError(f"--coordinator: {address!r}: expected HOST:PORT")
    if count < 1:
        raise UserError(f"--processes: {count}: expected at least 1")
    if not 0 <= index < count:
        raise UserError(f"--process: {index}: expected 0 to {count - 1}, less than --processes")


@contextlib.contextmanager
def _deadline(here: str, missing: str, address: str | None):
    """Ends the process when what is done inside takes too long."""

    def give_up():
        host, _, port = (address or "").rpartition(":")
        reached = ""
        if address:
            try:
                socket.create_connection((host, int(port)), timeout=3).close()
                reached = f" (process 0 answers at {address})"
            except OSError as error:
                reached = f" (process 0 does not answer at {address}: {error.strerror or error})"
        print(
            f"error: --coordinator: {here} waited {START_DEADLINE_S} s, and not all of {missing} came{reached}: "
            "expected the same command on every host",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    timer = threading.Timer(START_DEADLINE_S, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


# ------------------------------------------------------------------------------------------------ agreement


def is_main() -> bool:
    """Whether this is process 0, which writes all files but the arrays of checkpoints, and prints."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """The values of all processes, by process, in every one of them; JSON's types. All of them have to call it."""
    if jax.process_count() == 1:
        return [value]
    client, turn, here = distributed.global_state.client, next(_turn), jax.process_index()
    client.key_value_set(f"dasd_jax/{turn}/{here}", json.dumps(value))
    keys = [f"dasd_jax/{turn}/{process}" for process in range(jax.process_count())]
    values = [json.loads(client.blocking_key_value_get(key, _FOREVER_MS)) for key in keys]
    if turn:
        # Everyone is in this turn: the one before has been read.
        client.key_value_delete(f"dasd_jax/{turn - 1}/{here}")
    return values


def from_main(function: Callable[[], Any]) -> Any:
    """What the function returns in process 0, in every process; JSON's types. It is called there alone."""
    return gather(function() if is_main() else None)[0]


def barrier() -> None:
    """Returns when every process is here."""
    gather(None)


def check_same(facts: Callable[[], dict[str, Any]]) -> None:
    """Refuses processes that differ; with one process the function is not called.

    Args:
        facts: by the name of a flag or field, what has to be equal everywhere; JSON's types.

    Raises:
        UserError: naming the first field in which this process differs from process 0, in those that do.
    """
    if jax.process_count() == 1:
        return
    mine = json.loads(json.dumps(facts()))
    theirs = from_main(lambda: mine)
    for name, value in mine.items():
        if theirs.get(name) != value:
            raise UserError(
                f"{name}: {value!r} in process {jax.process_index()}, {theirs.get(name)!r} in process 0: "
                "expected the same on every host"
            )
    barrier()  # nobody goes on before all are known to agree


def share(size: int) -> slice:
    """This process's part of so many rows of work: the parts of all processes cover each row once."""
    count, index = jax.process_count(), jax.process_index()
    return slice(size * index // count, size * (index + 1) // count)


# ------------------------------------------------------------------------------------------------ the end


def leave(code: int, line: str) -> NoReturn:
    """Ends a process that has failed, with a line on stderr, and all others with it.

    Args:
        line: "" for none.
    """
    if distributed.global_state.client is not None:
        _claim()
    if line:
        print(line, file=sys.stderr)
    if distributed.global_state.client is None:
        sys.exit(code)
    stop_others(code, line.removeprefix("error: "))


def stop_others(code: int, line: str) -> None:
    """Ends all processes with this code, the others with this line, wherever they are; alone, returns.

    They may wait in a device program for this one, and would do so until JAX misses its heartbeat.
    """
    client = distributed.global_state.client
    if client is None:
        return
    for process in range(jax.process_count()):
        _tell(client, process, [jax.process_index(), code, line])
    _end(client, code)


def _claim() -> None:
    """Returns once in a process, to the one who will end it."""
    if not _leaving.acquire(blocking=False):
        threading.Event().wait()


def _watch(client) -> None:
    """Ends this process when another says that it has failed."""
    failed = json.loads(client.blocking_key_value_get(_told(jax.process_index()), _FOREVER_MS))
    if failed and failed[0] != jax.process_index():
        process, code, line = failed
        _claim()
        print(f"error: process {process}: {line or 'ended'}", file=sys.stderr)
        _end(client, code)


def _end_watch(client, watch: threading.Thread) -> None:
    """Before Python ends, which a thread inside of the client would not survive."""
    _tell(client, jax.process_index(), None)
    watch.join()


def _told(process: int) -> str:
    return f"dasd_jax/failed/{process}"


def _tell(client, process: int, failed: list | None) -> None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # it has been told before
        client.key_value_set(_told(process), json.dumps(failed))


def _end(client, code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # not all of them can hear
        client.wait_at_barrier("dasd_jax/failed", _FAREWELL_MS)
    if jax.process_index() == 0:
        time.sleep(1)  # it holds the service, without which the others would abort
    os._exit(code)  # without JAX's own farewell, which waits for processes that are no longer there
