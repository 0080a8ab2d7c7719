"""Runs a command on every VM of a TPU slice: python -m launchers.tpu_vm ACTION [@FILE] [--flags] [-- COMMAND]

    up      asks for the slice; it waits in Google's queue until there is one
    wait    returns when the slice is there
    copy    this repository's tracked files, as they lie, to every VM
    setup   on every VM: Python, requirements, the bucket at /bucket
    start   COMMAND on every VM, in the background
    logs    follows what COMMAND prints on one VM
    status  of the slice and of COMMAND
    stop    asks COMMAND to save and end
    delete  gives the slice back; until then it costs
    run     all of it: up, wait, copy, setup, start, watch until COMMAND's workdir holds done.json, delete. A slice that
            is taken away is asked for again, and COMMAND goes on from its last checkpoint. Interrupted, it leaves the
            slice as it is; the same command again goes on watching

--dry-run prints the commands of an action and runs none. launchers/README.md walks through a first run.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dasd_jax import cli
from dasd_jax.errors import UserError
from launchers.plan import ACTIONS, LOST, MAX_BACKOFF_S, MAX_MISSES, POLL_S, Job, Step, dry_run, plan, slice_of

MAX_LOSSES = 8  # slices in a row on which the command never ran

_READY = ("ACTIVE", "READY")  # a queued resource, a node
_FAILED_ON_VM = 70  # what vm.sh ends with, and gcloud then too; anything else comes from gcloud or ssh


# ------------------------------------------------------------------------------------------------ running it


def decide(state: str | None, words: set[str] | None, misses: int) -> str:
    """What to do about a slice.

    Args:
        state: Google's word for it; "" when there is none, None when Google could not be asked.
        words: what vm.sh says on its VMs; None when they could not be reached.
        misses: looks in a row at which the slice was there but could not be reached, or was to be started.

    Returns:
        up | wait | start | replace | stopped | failed
    """
    if state == "":
        return "up"
    if state in LOST:
        return "replace"
    if state not in _READY:
        return "wait"
    # A preempted node may still read READY: what cannot be reached is gone.
    if misses >= MAX_MISSES:
        return "replace"
    if words is None or "running" in words:
        return "wait"  # the processes of a command find out for themselves that one of them is missing
    if "idle" in words:
        return "start"
    return "stopped" if words == {"exited 0"} else "failed"


def run(job: Job, sleep: Callable[[float], None] = time.sleep) -> None:
    """Brings the command of a job to its end on as many slices as it takes.

    Raises:
        SystemExit: with one line, when it cannot be brought to its end; a slice that is there stays.
    """
    losses, misses, shown, action = 0, 0, "", ""
    while result(job) is None:
        state, reason = _state(job)
        words = _words(job) if state in _READY else set()
        if words is None:
            misses += 1
        elif "running" in words:
            losses, misses = 0, 0
        before, action = action, decide(state, words, misses)
        if (seen := _shown(state, reason, words)) != shown:
            if state is None and not shown:
                raise SystemExit(f"error: {job.name}: {seen}")  # not a network that fails for a while
            print(f"{job.name}: {seen}", flush=True)
            shown = seen
        if action == "up":
            if not _follow(job, "up"):
                if not losses:
                    raise SystemExit(f"error: {job.name}: the slice was refused (gcloud's words above)")
                action = "replace"
        elif action == "start":
            all(_follow(job, part) for part in ("copy", "setup", "start"))
            misses += 1  # until it is seen running
        elif action in ("stopped", "failed") and action == before:
            # Seen twice: at the first look done.json may be on its way, or the whole slice on its way out.
            raise SystemExit(
                f"error: {job.name}: the command {'was stopped' if action == 'stopped' else 'failed'} before its end "
                f"({', '.join(sorted(words))}); `logs` shows why. The slice stays and costs until `delete`"
            )
        if action == "replace":
            _follow(job, "delete")
            losses, misses = losses + 1, 0
            if losses > MAX_LOSSES:
                raise SystemExit(f"error: {job.name}: {losses} slices in a row were lost before the command ran")
            sleep(min(POLL_S * 2 ** (losses - 1), MAX_BACKOFF_S))
        else:
            sleep(POLL_S)
    print(f"{job.name}: finished, {job.workdir}/done.json", flush=True)
    sleep(POLL_S)  # the log goes to the bucket after done.json
    if not job.keep and _state(job)[0] != "" and not _follow(job, "delete"):
        raise SystemExit(f"error: {job.name}: finished, but the slice is still there and costs; `delete` it")


def result(job: Job) -> dict | None:
    """done.json of the job's workdir in the bucket; None as long as there is none."""
    (step,) = plan(job, "result")
    done = _call(step, capture=True)
    return json.loads(done.stdout) if done.returncode == 0 else None


def _state(job: Job) -> tuple[str | None, str]:
    """Google's word for the slice, "" when there is none, None when it could not be asked; and its reason."""
    (step,) = plan(job, "look")
    seen = _call(step, capture=True)
    if seen.returncode:
        return ("", "") if "NOT_FOUND" in seen.stderr else (None, seen.stderr.strip().partition("\n")[0])
    state, _, reason = seen.stdout.strip().partition("\t")
    return state or None, reason


def _words(job: Job) -> set[str] | None:
    """What vm.sh says on the VMs, None when not all of them were reached."""
    (step,) = plan(job, "probe")
    seen = _call(step, capture=True)
    if seen.returncode:
        return None
    # gcloud mixes lines of its own in.
    return set(re.findall(r"^(?:running|idle|exited \d+)$", seen.stdout, re.MULTILINE))


def _shown(state: str | None, reason: str, words: set[str] | None) -> str:
    slice_says = {None: "no answer from Google", "": "no slice"}.get(state, state) + (f" ({reason})" if reason else "")
    return ", ".join([slice_says, *(["out of reach"] if words is None else sorted(words))])


def _follow(job: Job, action: str) -> bool:
    """Runs the steps of an action up to the first that fails.

    Raises:
        SystemExit: something failed on a VM that was reached; again would be no better.
    """
    for step in plan(job, action):
        print(f"{job.name}: {step.why}", flush=True)
        code = _call(step).returncode
        if code == _FAILED_ON_VM:
            raise SystemExit(
                f"error: {job.name}: {action} failed on the slice (above), which stays and costs until `delete`"
            )
        if code:
            return False
    return True


def _call(step: Step, capture: bool = False) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(step.argv, check=False, text=True, capture_output=capture)
    except FileNotFoundError as error:
        raise UserError(f"{step.argv[0]}: not found: expected it on the PATH, or --dry-run") from error


# ------------------------------------------------------------------------------------------------ the door


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
        state, reason = _state(job)
        seen = f"{job.name}: {_shown(state, reason, _words(job) if state in _READY else set())}"
        if state is None:
            raise SystemExit(f"error: {seen}")
        print(seen)
    elif not _follow(job, action):
        raise SystemExit(f"error: {job.name}: {action} failed (gcloud's words above)")


def _until_ready(job: Job) -> None:
    while (seen := _state(job))[0] not in _READY:
        if seen[0] == "" or seen[0] in LOST:
            raise SystemExit(f"error: {job.name}: {_shown(*seen, set())}")
        print(f"{job.name}: {_shown(*seen, set())}", flush=True)
        time.sleep(POLL_S)


def parse(argv: list[str]) -> tuple[str, Job, bool]:
    """Action, job and whether nothing is to be run.

    Raises:
        UserError: anything on the command line that is not as expected.
    """
    cli.refuse_secrets(argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    try:
        flags, command = _parser().parse_args(argv[:cut]), tuple(argv[cut + 1 :])
    except (ValueError, RecursionError) as error:
        # A file that names itself, no text, or a quote that never closes. What stands there may be a secret.
        raise UserError(f"@FILE: {type(error).__name__}: expected flags as on a command line") from error
    cli.refuse_secrets(flags.create_flag, "--create-flag")  # which may stand in @FILE
    for name, (pattern, expected) in _PATTERNS.items():
        value = getattr(flags, name)
        if value is None:
            raise UserError(f"--{name}: missing: expected {expected}")
        if value and not re.fullmatch(pattern, value):
            raise UserError(f"--{name}: {value!r}: expected {expected}")
    takes_command = flags.action in ("start", "run")
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
        workdir=_workdir(command) if takes_command else "",
        worker=flags.worker,
        keep=flags.keep,
        home=Path.home(),
    )
    if job.workdir.startswith("/bucket/") and not job.bucket:
        raise UserError(f"--bucket: missing: expected the bucket to mount for --workdir={job.workdir}")
    if flags.action == "run" and not job.workdir.startswith("/bucket/"):
        raise UserError(f"--workdir: {job.workdir}: goes with the slice: expected /bucket/…, so that `run` can go on")
    return flags.action, job, flags.dry_run


_PATTERNS = {
    "name": (r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", "1 to 63 of a-z, 0-9 and -, a letter first, no - last"),
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
    flags.add_argument("--name", help="of the slice, yours to choose")
    flags.add_argument("--project", help="id of the Google Cloud project")
    flags.add_argument("--zone", help="where the slice is, as in us-west4-a")
    flags.add_argument("--slice", default="", metavar="KIND", help="as in v5e-16, v5p-64 (32 chips) or v6e-8")
    capacity = flags.add_mutually_exclusive_group()
    capacity.add_argument("--spot", action="store_true", help="cheap, may be taken away (default: on demand)")
    capacity.add_argument("--reserved", action="store_true", help="from the project's reservation")
    flags.add_argument("--direct", action="store_true", help="create at once or fail, without the queue")
    flags.add_argument("--connect", default="external-ip", choices=("external-ip", "internal-ip", "iap"))
    flags.add_argument("--create-flag", default=[], action="append", metavar="FLAG", help="one more of gcloud's create")
    flags.add_argument("--bucket", default="", help="mounted at /bucket, in the region of the zone")
    flags.add_argument(
        "--secret",
        default=[],
        action="append",
        metavar="VARIABLE[=secret-manager:NAME]",
        help="for the command's environment, from this one or from Secret Manager",
    )
    flags.add_argument("--worker", default=0, type=int, metavar="N", help="the VM whose logs are shown")
    flags.add_argument("--keep", action="store_true", help="run: the slice stays when the command is finished")
    flags.add_argument("--dry-run", action="store_true", help="print the commands, run none")
    return flags


def _secret(text: str) -> tuple[str, str]:
    variable, equals, where = text.partition("=")
    found = re.fullmatch(r"secret-manager:([A-Za-z0-9_-]+)", where)
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", variable) or (equals and not found):
        # What stands there may be the secret itself: it is not repeated.
        raise UserError("--secret: expected VARIABLE, from this environment, or VARIABLE=secret-manager:NAME")
    if not equals and not os.environ.get(variable):
        raise UserError(f"--secret: {variable} is not set here: expected it in the environment")
    return variable, found[1] if found else ""


def _workdir(command: Sequence[str]) -> str:
    """The command's workdir; what can be seen here of a training command's mistakes is seen before a slice is paid."""
    if not command:
        raise UserError("no command: expected it after --, as in -- python -m dasd_jax.train --config=… --workdir=…")
    found = [word.removeprefix("--workdir=") for word in command if word.startswith("--workdir=")]
    if len(found) != 1 or not re.fullmatch(r"/[^/]+(/[^/]+)+", found[0]):
        raise UserError(
            f"--workdir: {', '.join(found) or 'missing'}: expected one --workdir=DIR in the command after --, an "
            "absolute path on the VMs, as in /bucket/runs/NAME"
        )
    if command[:3] == ("python", "-m", "dasd_jax.train"):
        cli.parse(cli.parser(""), list(command[3:]))
    return found[0]


if __name__ == "__main__":
    cli.run(main)
