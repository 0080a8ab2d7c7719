"""Runs the steps of a plan, and asks Google, the VMs and the bucket how a job is doing."""

import json
import re
import subprocess
import sys
import time

from dasd_jax.errors import UserError
from launchers.plan import Job, Step, plan

RETRY_S = 30

_NO_ANSWER = 255  # as ssh itself says of a connection that failed
_FAILED_ON_VM = 70  # exit code of vm.sh, passed on by gcloud; any other code comes from gcloud or ssh


def run_action(job: Job, action: str) -> bool:
    """Runs the steps of an action until one fails; returns whether all succeeded.

    Raises:
        SystemExit: a step failed on a reachable VM, as often as it may be tried.
    """
    for step in plan(job, action):
        print(f"{job.name}: {step.why}", flush=True)
        code = run_step(step).returncode
        for _ in range(step.tries - 1):
            if code != _FAILED_ON_VM:
                break
            print(f"{job.name}: failed; once more in {RETRY_S} s: {step.why}", flush=True)
            time.sleep(RETRY_S)
            code = run_step(step).returncode
        if code == _FAILED_ON_VM:
            raise SystemExit(
                f"error: {job.name}: {action} failed on the slice (output above), which is billed until `delete`"
            )
        if code:
            return False
    return True


def run_step(step: Step, capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs one step; its output is returned if `capture`, otherwise shown. After its limit it counts as failed."""
    argv = (sys.executable, *step.argv[1:]) if step.argv[0] == "python" else step.argv
    try:
        return subprocess.run(argv, check=False, text=True, capture_output=capture, timeout=step.limit_s)
    except subprocess.TimeoutExpired:
        said = f"no answer within {step.limit_s:g} s: {step.why}"
        if not capture:
            print(said, flush=True)
        return subprocess.CompletedProcess(argv, _NO_ANSWER, "", said)
    except FileNotFoundError as error:
        raise UserError(f"{step.argv[0]}: not found: expected it on the PATH, or --dry-run") from error


def result(job: Job) -> dict | None:
    """The content of done.json in the job's workdir in the bucket; None if it does not exist yet."""
    return _read(job, "result")


def config(job: Job) -> dict | None:
    """The content of config.json, likewise."""
    return _read(job, "config")


def _read(job: Job, action: str) -> dict | None:
    (step,) = plan(job, action)
    read = run_step(step, capture=True)
    return json.loads(read.stdout) if read.returncode == 0 else None


def state(job: Job) -> tuple[str | None, str]:
    """(Google's state of the slice, "" if there is none, None if the query failed; and the reason)."""
    (step,) = plan(job, "describe")
    seen = run_step(step, capture=True)
    if seen.returncode:
        return ("", "") if "NOT_FOUND" in seen.stderr else (None, seen.stderr.strip().partition("\n")[0])
    found, _, reason = seen.stdout.strip().partition("\t")
    return found or None, reason


def vm_statuses(job: Job) -> set[str] | None:
    """The statuses that vm.sh prints on the VMs, None if not all of them were reached.

    Raises:
        SystemExit: the job has a command, and a VM was given another one: not to be watched or deleted as ours.
    """
    (step,) = plan(job, "probe")
    seen = run_step(step, capture=True)
    if seen.returncode:
        return None
    given = set(re.findall(r"^command ([0-9a-f]{64})$", seen.stdout, re.MULTILINE))
    if job.command and given - {job.digest}:
        raise SystemExit(
            f"error: {job.name}: this slice was given another command: expected another --name, or `delete` first; it "
            "is billed until then"
        )
    # gcloud prints lines of its own in between.
    return set(re.findall(r"^(?:running|idle|exited \d+)$", seen.stdout, re.MULTILINE))
