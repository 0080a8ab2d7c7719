"""Multi-process runs: start-up, agreement between processes, and shutdown.

Every process runs the same command. Device programs are jitted over all devices; host decisions are computed from
values that are equal on every host, or broadcast from process 0. Small values are exchanged through the coordination
service of jax.distributed, which needs no device and can be called from a thread. With one process it is all a no-op.
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
from jax._src import distributed  # its client is the key-value store, which has no public API

from dasd_jax.errors import UserError

START_DEADLINE_S = 300  # for all processes to connect
_EXIT_BARRIER_MS = 10_000  # for all processes to learn that one has failed
_NO_TIMEOUT_MS = 10**9  # eleven days: a lost process ends the wait much earlier

_gather_ids = itertools.count()  # all processes make the same sequence of `gather` calls, so the ids agree
_exiting = threading.Lock()  # held by the thread that ends the process


def add_flags(flags: argparse.ArgumentParser) -> None:
    """Adds the flags of a command that can run in several processes."""
    group = flags.add_argument_group(
        "several hosts", "run the same command on each; on a TPU slice these flags are not needed"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0 and a free port on it")
    group.add_argument("--processes", type=int, metavar="N", help="number of processes")
    group.add_argument("--process", type=int, metavar="I", help="index of this process, 0 to N-1")


def start(flags: argparse.Namespace, same: dict[str, Any]) -> None:
    """Connects the processes and checks that they run the same command; does nothing with one process.

    Args:
        same: flag or field → value that must be equal in all processes.

    Raises:
        UserError: inconsistent flags, or processes that differ. If a process is missing, this one exits after
            START_DEADLINE_S with one line and exit code 2, where JAX itself would abort.
    """
    address, count, index = flags.coordinator, flags.processes, flags.process
    if (address, count, index) == (None, None, None):
        # JAX sets the platform itself if it finds TPU chips.
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
                # Under Slurm, JAX would assign one device per process, whatever the flags say.
                cluster_detection_method="deactivate" if address else None,
                initialization_timeout=2 * START_DEADLINE_S,
            )
        except ValueError:
            if address:
                raise
            return  # a single-host TPU in an environment without cluster information
    watch = threading.Thread(target=_watch, args=(distributed.global_state.client,), daemon=True)
    watch.start()
    atexit.register(_end_watch, distributed.global_state.client, watch)
    found = gather([socket.gethostname(), jax.local_device_count(), jax.local_devices()[0].device_kind])
    for other, (name, *devices) in enumerate(found):
        if devices != found[0][1:]:
            raise UserError(
                f"--process: process {other} ({name}) has {devices[0]} × {devices[1]}, process 0 ({found[0][0]}) has "
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
    """Exits the process if the body takes longer than START_DEADLINE_S."""

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
            f"error: --coordinator: {here} waited {START_DEADLINE_S} s for {missing}, and not all connected{reached}: "
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
    """Whether this is process 0, which prints, and writes all files except checkpoint arrays."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """All-gathers JSON values: one per process, in process order. Collective: every process must call it."""
    if jax.process_count() == 1:
        return [value]
    client, call, here = distributed.global_state.client, next(_gather_ids), jax.process_index()
    client.key_value_set(f"dasd_jax/{call}/{here}", json.dumps(value))
    keys = [f"dasd_jax/{call}/{process}" for process in range(jax.process_count())]
    values = [json.loads(client.blocking_key_value_get(key, _NO_TIMEOUT_MS)) for key in keys]
    if call:
        # All processes have entered this call, so the values of the previous one have been read.
        client.key_value_delete(f"dasd_jax/{call - 1}/{here}")
    return values


def from_main(function: Callable[[], Any]) -> Any:
    """Broadcasts the function's JSON result from process 0, where alone it is called. Collective."""
    return gather(function() if is_main() else None)[0]


def barrier() -> None:
    """Returns when every process has called it."""
    gather(None)


def check_same(facts: Callable[[], dict[str, Any]]) -> None:
    """Checks that all processes agree; with one process `facts` is not called.

    Args:
        facts: returns flag or field → JSON value that must be equal in all processes.

    Raises:
        UserError: this process differs from process 0; names the first field that does.
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
    barrier()  # no process continues until all are known to agree


def share(size: int) -> slice:
    """This process's part of `size` rows; the parts of all processes cover each row once."""
    count, index = jax.process_count(), jax.process_index()
    return slice(size * index // count, size * (index + 1) // count)


# ------------------------------------------------------------------------------------------------ shutdown


def leave(code: int, line: str) -> NoReturn:
    """Exits a failed process with a line on stderr, and all other processes with it.

    Args:
        line: "" prints none.
    """
    if distributed.global_state.client is not None:
        _claim_exit()
    if line:
        print(line, file=sys.stderr)
    if distributed.global_state.client is None:
        sys.exit(code)
    stop_others(code, line.removeprefix("error: "))


def stop_others(code: int, line: str) -> None:
    """Exits all processes with this code, the others also with this line; returns if there is one process.

    The others may be blocked in a device program on this one, until JAX notices the missing heartbeat.
    """
    client = distributed.global_state.client
    if client is None:
        return
    for process in range(jax.process_count()):
        _report_failure(client, process, [jax.process_index(), code, line])
    _exit_together(client, code)


def _claim_exit() -> None:
    """Returns to the first thread that calls it, which ends the process; blocks all others."""
    if not _exiting.acquire(blocking=False):
        threading.Event().wait()


def _watch(client) -> None:
    """Exits this process when another reports a failure."""
    failed = json.loads(client.blocking_key_value_get(_failure_key(jax.process_index()), _NO_TIMEOUT_MS))
    if failed and failed[0] != jax.process_index():
        process, code, line = failed
        _claim_exit()
        print(f"error: process {process}: {line or 'ended'}", file=sys.stderr)
        _exit_together(client, code)


def _end_watch(client, watch: threading.Thread) -> None:
    """Ends the watch thread at exit: Python would crash with a thread inside the client."""
    _report_failure(client, jax.process_index(), None)
    watch.join()


def _failure_key(process: int) -> str:
    return f"dasd_jax/failed/{process}"


def _report_failure(client, process: int, failed: list | None) -> None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # already reported
        client.key_value_set(_failure_key(process), json.dumps(failed))


def _exit_together(client, code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # some processes may not respond
        client.wait_at_barrier("dasd_jax/failed", _EXIT_BARRIER_MS)
    if jax.process_index() == 0:
        time.sleep(1)  # process 0 hosts the coordination service, without which the others would abort
    os._exit(code)  # skips JAX's own shutdown, which waits for processes that are gone
