"""Runs a command on every VM of a TPU slice: python -m launchers.tpu_vm ACTION [@FILE] [--flags] [-- COMMAND]

    up      requests the slice; the request waits in Google's queue until there is capacity
    wait    waits until the slice is ready
    copy    copies this repository's tracked files, with local changes, to every VM
    setup   installs Python and requirements on every VM and mounts the bucket at /bucket
    start   starts COMMAND on every VM, in the background
    logs    follows the output of COMMAND on one VM
    status  prints the state of the slice and of COMMAND
    stop    asks COMMAND to save and exit
    delete  deletes the slice; it is billed until then
    run     all of it: look at COMMAND from here (python -m dasd_jax.check, unless --no-check), up, wait, copy, setup,
            start, watch until COMMAND's workdir holds done.json, of as many steps as COMMAND asks for, delete. A
            slice that was given another command is left alone. A preempted slice is requested again, and
            COMMAND resumes from its last checkpoint. If interrupted, it leaves the slice as it is; the same command
            resumes watching

--dry-run prints the commands of an action without running them. launchers/README.md walks through a first run.
"""

import argparse
import hashlib
import os
import re
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dasd_jax import cli, recorded
from dasd_jax.config import Config
from dasd_jax.errors import UserError
from dasd_jax.run import user_files, workdir
from launchers import steps
from launchers.plan import ACTIONS, LOST, MAX_BACKOFF_S, MAX_MISSES, POLL_S, TRAIN, Job, dry_run, slice_of, train_flags

MAX_LOSSES = 8  # slices in a row on which the command never ran

_END_S = 300  # that a command may take to end after done.json
_READY = ("ACTIVE", "READY")  # of a queued resource, of a node


# ------------------------------------------------------------------------------------------------ running it


def decide(state: str | None, statuses: set[str] | None, misses: int) -> str:
    """The next action for a slice.

    Args:
        state: Google's state of the slice; "" if there is none, None if the query failed.
        statuses: the status that vm.sh prints on the VMs; None if they could not be reached.
        misses: consecutive polls at which the slice existed but could not be reached, or the command had to be started.

    Returns:
        up | wait | start | replace | stopped | failed
    """
    if state == "":
        return "up"
    if state in LOST:
        return "replace"
    if state not in _READY:
        return "wait"
    # A preempted node may still be reported as READY: an unreachable one is treated as lost.
    if misses >= MAX_MISSES:
        return "replace"
    if statuses is None or "running" in statuses:
        return "wait"  # the processes of a command detect by themselves that one of them is missing
    if "idle" in statuses:
        return "start"
    return "stopped" if statuses == {"exited 0"} else "failed"


def run(job: Job, sleep: Callable[[float], None] = time.sleep) -> None:
    """Runs the command of a job to completion, on as many slices as it takes.

    Raises:
        UserError: the workdir holds a run that the command cannot go on with, nor take for its own.
        SystemExit: with one line, if it cannot be completed; an existing slice is left as it is.
    """
    check_workdir(job)
    losses, misses, shown, action = 0, 0, "", ""
    if not (finished := _finished(job)):
        _pack(job)
    while not finished:
        state, reason = steps.state(job)
        statuses = steps.vm_statuses(job) if state in _READY else set()
        if statuses is None:
            misses += 1
        elif "running" in statuses:
            losses, misses = 0, 0
        before, action = action, decide(state, statuses, misses)
        if (seen := _describe(state, reason, statuses)) != shown:
            if state is None and not shown:
                raise SystemExit(f"error: {job.name}: {seen}")  # at the first query: not a temporary network failure
            print(f"{job.name}: {seen}", flush=True)
            shown = seen
        if action == "up":
            if not before and not steps.run_action(job, "check"):
                raise SystemExit(
                    f"error: {job.name}: no slice was requested: the run needs mending (above); --no-check goes on"
                )
            if not steps.run_action(job, "up"):
                if not losses:
                    raise SystemExit(f"error: {job.name}: the request was rejected (gcloud's output above)")
                action = "replace"
        elif action == "start":
            all(steps.run_action(job, part) for part in ("send", "setup", "start"))
            misses += 1  # reset once it is seen running
        elif action in ("stopped", "failed") and action == before:
            # Seen twice: at the first poll done.json may not be visible yet, or the slice may be about to be preempted.
            raise SystemExit(
                f"error: {job.name}: the command {'was stopped' if action == 'stopped' else 'failed'} before its end "
                f"({', '.join(sorted(statuses))}); `logs` shows why. The slice is billed until `delete`"
            )
        if action == "replace":
            steps.run_action(job, "delete")
            losses, misses = losses + 1, 0
            if losses > MAX_LOSSES:
                raise SystemExit(f"error: {job.name}: {losses} slices in a row were lost before the command ran")
            sleep(min(POLL_S * 2 ** (losses - 1), MAX_BACKOFF_S))
        else:
            sleep(POLL_S)
        finished = _finished(job)
    print(f"{job.name}: finished, {job.workdir}/done.json", flush=True)
    if not job.keep and _ended(job, sleep) and not steps.run_action(job, "delete"):
        raise SystemExit(f"error: {job.name}: finished, but the slice still exists and is billed; `delete` it")


def _ended(job: Job, sleep: Callable[[float], None]) -> bool:
    """Waits, up to five minutes, until the command has ended on all VMs; whether there is a slice to delete.

    After done.json the command still removes what it does not keep, sends to a tracker and copies its log.

    Raises:
        SystemExit: the slice was given another command.
    """
    for left in reversed(range(_END_S // POLL_S + 1)):
        state = steps.state(job)[0]
        if state not in (None, *_READY):
            return state != ""
        statuses = steps.vm_statuses(job) if state in _READY else None
        if left and (statuses is None or "running" in statuses):
            sleep(POLL_S)
        else:
            break
    return True


def check_workdir(job: Job) -> None:
    """Refuses a workdir in the bucket with a run that a training command would refuse on the slice.

    Raises:
        UserError: naming the first field or file that differs and may not, or done.json stands without config.json.
    """
    if job.config is None:
        return
    theirs, done, folder = steps.config(job), steps.result(job), Path(job.workdir)
    if theirs is None:
        if done is not None:
            raise without_config(folder)
        return
    changes = recorded.changes(job.config, theirs, folder)
    if done is not None:
        workdir.check_finished(folder, changes)
    if note := compare_files(job.config, theirs, folder, away=True):
        print(f"{job.name}: {note}", flush=True)


def without_config(folder: Path) -> UserError:
    """Of a result that cannot be compared with what is asked for."""
    return UserError(f"--workdir: {folder} holds done.json and no {recorded.NAME}: expected both, or another --workdir")


def compare_files(config: Config, theirs: dict[str, Any], folder: Path, away: bool) -> str:
    """Compares the user's files with those that a run began with; a note where they are not on this machine, or "".

    Args:
        theirs: the content of the run's config.json.
        away: the run is on a slice; files in its bucket are not here.

    Raises:
        UserError: one has changed, or is missing where it should be here.
    """
    try:
        user_files.of(config)
    except UserError as error:
        if not away:
            raise
        return f"not compared: {error}"
    user_files.check_same(config, theirs, folder)
    return ""


def _pack(job: Job) -> None:
    """Packs the files once: every slice of a run gets the same, whatever changes here in the meantime.

    Raises:
        SystemExit: with one line, if they cannot be packed.
    """
    if not steps.run_action(job, "pack"):
        raise SystemExit(f"error: {job.name}: no slice was requested: the files could not be packed (output above)")
    with job.archive.open("rb") as packed:
        print(f"{job.name}: packed, sha256 {hashlib.file_digest(packed, 'sha256').hexdigest()}", flush=True)


def _finished(job: Job) -> bool:
    """Whether the workdir holds the result of this command: of a training run, with the steps that it asks for."""
    done = steps.result(job)
    return done is not None and (job.config is None or done.get("steps") == job.config.run.steps)


def _describe(state: str | None, reason: str, statuses: set[str] | None) -> str:
    described = {None: "no answer from Google", "": "no slice"}.get(state, state) + (f" ({reason})" if reason else "")
    return ", ".join([described, *(["unreachable"] if statuses is None else sorted(statuses))])


# ------------------------------------------------------------------------------------------------ command line


def main(argv: list[str]) -> None:
    """The command."""
    action, job, dry = parse(argv)
    if dry:
        print(dry_run(job, action))
    elif action == "run":
        run(job)
    elif action == "wait":
        _until_ready(job)
    elif action == "status":
        state, reason = steps.state(job)
        seen = f"{job.name}: {_describe(state, reason, steps.vm_statuses(job) if state in _READY else set())}"
        if state is None:
            raise SystemExit(f"error: {seen}")
        print(seen)
    elif not steps.run_action(job, action):
        raise SystemExit(f"error: {job.name}: {action} failed (gcloud's output above)")


def _until_ready(job: Job) -> None:
    while (seen := steps.state(job))[0] not in _READY:
        if seen[0] == "" or seen[0] in LOST:
            raise SystemExit(f"error: {job.name}: {_describe(*seen, set())}")
        print(f"{job.name}: {_describe(*seen, set())}", flush=True)
        time.sleep(POLL_S)


def parse(argv: list[str]) -> tuple[str, Job, bool]:
    """(action, job, whether it is a dry run).

    Raises:
        UserError: an invalid command line.
    """
    cli.refuse_secrets(argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    try:
        flags, command = _parser().parse_args(argv[:cut]), tuple(argv[cut + 1 :])
    except (ValueError, RecursionError) as error:
        # A file that includes itself, is not text or has an unclosed quote. Not shown: its content may be a secret.
        raise UserError(f"@FILE: {type(error).__name__}: expected flags as on a command line") from error
    cli.refuse_secrets(flags.create_flag, "--create-flag")  # which may come from @FILE
    for name, (pattern, expected) in _PATTERNS.items():
        value = getattr(flags, name)
        if value is None:
            raise UserError(f"--{name}: missing: expected {expected}")
        if value and not re.fullmatch(pattern, value):
            raise UserError(f"--{name}: {value!r}: expected {expected}")
    takes_command = flags.action in ("start", "run")
    folder, config = _read_command(command) if takes_command else ("", None)
    if command and not takes_command:
        raise UserError(f"--: {shlex.join(command)!r}: {flags.action} takes no command: expected start or run")
    if not flags.slice and flags.action in ("up", "setup", "start", "run"):
        raise UserError("--slice: missing: expected v5e-SIZE, v5p-SIZE or v6e-SIZE")
    job = Job(
        name=flags.name,
        project=flags.project,
        zone=flags.zone,
        slice=slice_of(flags.slice) if flags.slice else None,
        capacity="spot" if flags.spot else "reserved" if flags.reserved else "on-demand",
        direct=flags.direct,
        connect=flags.connect,
        create_flags=tuple(flags.create_flag),
        bucket=flags.bucket,
        secrets=dict(_secret(text) for text in flags.secret),
        command=command,
        workdir=folder,
        config=config,
        worker=flags.worker,
        keep=flags.keep,
        check=not flags.no_check,
        home=Path.home(),
    )
    if job.workdir.startswith("/bucket/") and not job.bucket:
        raise UserError(f"--bucket: missing: expected the bucket to mount for --workdir={job.workdir}")
    if flags.action == "run" and not job.workdir.startswith("/bucket/"):
        raise UserError(f"--workdir: {job.workdir}: is deleted with the slice: expected /bucket/…")
    return flags.action, job, flags.dry_run


_PATTERNS = {
    "name": (r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", "1 to 63 of a-z, 0-9 and -, starting with a letter, not ending in -"),
    "project": (
        r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]",
        "the id of a Google Cloud project, as in my-project-123",
    ),
    "zone": (r"[a-z]+-[a-z]+[0-9]+-[a-z]", "a zone, as in us-west4-a"),
    "bucket": (r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]", "the name of a bucket, without gs:// and folders"),
}


def _parser() -> argparse.ArgumentParser:
    flags = cli.Parser(
        prog="python -m launchers.tpu_vm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        fromfile_prefix_chars="@",
    )
    flags.convert_arg_line_to_args = lambda line: shlex.split(line, comments=True)
    flags.add_argument("action", choices=ACTIONS, metavar="ACTION", help=" | ".join(ACTIONS))
    flags.add_argument("--name", help="name for the slice, of your choice")
    flags.add_argument("--project", help="ID of the Google Cloud project")
    flags.add_argument("--zone", help="zone of the slice, as in us-west4-a")
    flags.add_argument("--slice", default="", metavar="KIND", help="as in v5e-16, v5p-64 (32 chips) or v6e-8")
    capacity = flags.add_mutually_exclusive_group()
    capacity.add_argument("--spot", action="store_true", help="cheap, may be preempted (default: on demand)")
    capacity.add_argument("--reserved", action="store_true", help="from the project's reservation")
    flags.add_argument("--direct", action="store_true", help="create immediately or fail, without the queue")
    flags.add_argument("--connect", default="external-ip", choices=("external-ip", "internal-ip", "iap"))
    flags.add_argument("--create-flag", default=[], action="append", metavar="FLAG", help="extra flag for creation")
    flags.add_argument("--bucket", default="", help="bucket to mount at /bucket, in the zone's region")
    flags.add_argument(
        "--secret",
        default=[],
        action="append",
        metavar="VARIABLE[=secret-manager:NAME]",
        help="variable for the command, from this environment or from Secret Manager",
    )
    flags.add_argument("--worker", default=0, type=int, metavar="N", help="VM whose logs are shown")
    flags.add_argument("--keep", action="store_true", help="run: do not delete the slice when the command is finished")
    flags.add_argument(
        "--no-check", action="store_true", help="run: do not look at the run before a slice is requested"
    )
    flags.add_argument("--dry-run", action="store_true", help="print the commands without running them")
    return flags


def _secret(text: str) -> tuple[str, str]:
    variable, equals, where = text.partition("=")
    found = re.fullmatch(r"secret-manager:([A-Za-z0-9_-]+)", where)
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", variable) or (equals and not found):
        # Not shown: the value may be the secret itself.
        raise UserError("--secret: expected VARIABLE, from this environment, or VARIABLE=secret-manager:NAME")
    if not equals and not os.environ.get(variable):
        raise UserError(f"--secret: {variable} is not set: expected it in this environment")
    return variable, found[1] if found else ""


def _read_command(command: Sequence[str]) -> tuple[str, Config | None]:
    """(the command's --workdir, the config of a training command), before a slice is requested and billed."""
    if not command:
        raise UserError("no command: expected it after --, as in -- python -m dasd_jax.train --config=… --workdir=…")
    found = [word.removeprefix("--workdir=") for word in command if word.startswith("--workdir=")]
    if len(found) != 1 or not re.fullmatch(r"/[^/]+(/[^/]+)+", found[0]):
        raise UserError(
            f"--workdir: {', '.join(found) or 'missing'}: expected one --workdir=DIR in the command after --, an "
            "absolute path on the VMs, as in /bucket/runs/NAME"
        )
    if command[:3] != TRAIN:
        return found[0], None
    return found[0], cli.parse(train_flags(cli.parser("")), list(command[3:])).config


if __name__ == "__main__":
    cli.run(main)
