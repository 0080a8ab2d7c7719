"""The launcher's plan: a job and the local commands of each action, as pure functions.

Every command is a list of arguments. Commands for a VM's shell are quoted once, by shlex, into ssh's --command.
"""

import argparse
import dataclasses
import hashlib
import shlex
from collections.abc import Callable
from pathlib import Path

from dasd_jax import cli, hosts
from dasd_jax.config import Config
from dasd_jax.cost.chips import topology_of
from dasd_jax.errors import UserError
from dasd_jax.run import origin

POLL_S = 30
MAX_BACKOFF_S = 1800
# Consecutive polls at which an existing slice cannot be reached or started before it is given up. gcloud itself retries
# each connection for a minute.
MAX_MISSES = 5
ASK_S, DO_S = 180, 1800  # after which a query, or what changes something, counts as one without an answer
TRIES = 3  # of a step on the VMs that may fail for a moment
LOST = ("FAILED", "PREEMPTED", "STOPPED", "SUSPENDED", "TERMINATED")  # states that a slice does not recover from

TRAIN = ("python", "-m", "dasd_jax.train")  # how a training command begins

_VM = "dasd_jax/launchers/vm.sh"

# ------------------------------------------------------------------------------------------------ job and slice


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice of TPU chips.

    Attributes:
        name: generation and size, as in v5e-16. The size counts chips; for v5p it counts TensorCores, two per chip.
        accelerator: Google's accelerator type.
        runtime: the software version of the VMs.
        vms: number of VMs; each has to run the same command.
    """

    name: str
    accelerator: str
    runtime: str
    chips: int
    vms: int


@dataclasses.dataclass(frozen=True)
class _Generation:
    accelerator: str
    runtime: str
    cores: int  # per chip, as the size counts them
    single: int  # most chips of a single-VM slice; in larger slices each VM has 4
    sizes: tuple[int, ...]


_GENERATIONS = {
    "v5e": _Generation("v5litepod", "v2-alpha-tpuv5-lite", 1, 8, (1, 4, 8, 16, 32, 64, 128, 256)),
    "v5p": _Generation("v5p", "v2-alpha-tpuv5", 2, 4, (8, 16, 32, 64, *range(128, 12289, 128))),
    "v6e": _Generation("v6e", "v2-alpha-tpuv6e", 1, 8, (1, 4, 8, 16, 32, 64, 128, 256)),
}


def slice_of(name: str) -> Slice:
    """The slice with this name.

    Raises:
        UserError: there is no such slice.
    """
    generation, _, size = name.partition("-")
    if generation not in _GENERATIONS:
        raise UserError(f"--slice: {name!r}: expected v5e-SIZE (Google's v5litepod-SIZE), v5p-SIZE or v6e-SIZE")
    row = _GENERATIONS[generation]
    if not size.isdecimal() or int(size) not in row.sizes:
        shown = ", ".join(str(known) for known in row.sizes[:8]) + (", … 12288" if len(row.sizes) > 8 else "")
        raise UserError(f"--slice: {name!r}: expected {generation}-SIZE with a size of {shown}")
    chips = int(size) // row.cores
    vms = 1 if chips <= row.single else chips // 4
    return Slice(name, f"{row.accelerator}-{size}", row.runtime, chips, vms)


@dataclasses.dataclass(frozen=True)
class Job:
    """A command and the slice it is for.

    Attributes:
        name: of the queued resource and of its node.
        slice: None for actions that need only the name.
        capacity: on-demand, spot or reserved.
        direct: create the node immediately or fail, without the queue.
        connect: how ssh reaches the VMs: external-ip, internal-ip or iap.
        create_flags: extra flags for gcloud's create.
        bucket: mounted at /bucket; "" for none.
        secrets: environment variable → name in Secret Manager, "" to take it from the local environment.
        command: runs on every VM, in the repository's folder; empty for actions without one.
        workdir: the command's --workdir.
        config: of a training command; None for others.
        worker: the VM whose logs are shown.
        keep: do not delete the slice when the command is finished.
        check: look at a training command on the local machine before the slice is requested.
        home: the local user's home folder.
    """

    name: str
    project: str
    zone: str
    slice: Slice | None
    capacity: str
    direct: bool
    connect: str
    create_flags: tuple[str, ...]
    bucket: str
    secrets: dict[str, str]
    command: tuple[str, ...]
    workdir: str
    config: Config | None
    worker: int
    keep: bool
    check: bool
    home: Path

    @property
    def archive(self) -> Path:
        """The packed files, on this machine."""
        return self.home / ".cache" / "dasd_jax" / f"{self.name}.tar.gz"

    @property
    def digest(self) -> str:
        """The sha256 of the command's words, as `vm.sh status` prints it of the command that a VM was given."""
        return hashlib.sha256("".join(f"{word}\0" for word in self.command).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------ steps of each action


@dataclasses.dataclass(frozen=True)
class Step:
    """One local command and its purpose.

    Attributes:
        tries: how often it is tried if it fails on a VM, where downloads and the connection of the VMs may fail once.
        limit_s: seconds after which it is ended and counts as a connection that failed; None: it lasts as long as it
            does.
    """

    why: str
    argv: tuple[str, ...]
    tries: int = 1
    limit_s: float | None = None


def plan(job: Job, action: str) -> list[Step]:
    """The commands of an action, in order; for `run`, those of an uninterrupted run."""
    return _PLANS[action](job)


def train_flags(flags: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The same parser with what train takes beside the flags of all commands."""
    origin.add_flags(flags)
    hosts.add_flags(flags)
    return flags


def _check(job: Job) -> list[Step]:
    """What can be seen before a slice is billed; nothing for other commands, and for slices of an unknown shape."""
    topology = topology_of(job.slice.name.partition("-")[0], job.slice.chips)
    if not job.check or not topology or job.command[:3] != TRAIN:
        return []
    _, shared = train_flags(cli.Parser(allow_abbrev=False, add_help=False)).parse_known_args(
        cli.joined(job.command[3:])
    )
    look = ("python", "-m", "dasd_jax.check", *shared, f"--topology={topology}")
    return [Step("look at the run from this machine; --no-check leaves it out", look)]


def _up(job: Job) -> list[Step]:
    capacity = () if job.capacity == "on-demand" else (f"--{job.capacity}",)
    private = () if job.connect == "external-ip" else ("--internal-ips",)
    wanted = (f"--accelerator-type={job.slice.accelerator}", *capacity, *private, *job.create_flags)
    if job.direct:
        create = _gcloud(job, "tpu-vm", "create", job.name, f"--version={job.slice.runtime}", *wanted)
    else:
        runtime = f"--runtime-version={job.slice.runtime}"
        create = _gcloud(job, "queued-resources", "create", job.name, f"--node-id={job.name}", runtime, *wanted)
    return [*_ssh_key(job), Step("request the slice", create, limit_s=DO_S)]


def _ssh_key(job: Job) -> list[Step]:
    """gcloud connects to several VMs at once only if its key already exists and is in the ssh agent."""
    key = str(job.home / ".ssh" / "google_compute_engine")
    if job.slice.vms == 1:
        return []
    make = 'test -e "$0" || ssh-keygen -q -t rsa -N "" -f "$0"'
    return [
        Step("create gcloud's ssh key unless it exists", ("bash", "-c", make, key)),
        Step("add it to the ssh agent; if none is running: eval $(ssh-agent)", ("ssh-add", "-q", key)),
    ]


def _describe(job: Job) -> list[Step]:
    if job.direct:
        words = ("tpu-vm", "describe", job.name, "--format=value(state,healthDescription)")
    else:
        words = ("queued-resources", "describe", job.name, "--format=value(state.state,state.failedData.error.message)")
    return [Step("query the state of the slice", _gcloud(job, *words), limit_s=ASK_S)]


def _wait(job: Job) -> list[Step]:
    why = f"query every {POLL_S} s until the slice is {'READY' if job.direct else 'ACTIVE'}"
    return [dataclasses.replace(step, why=why) for step in _describe(job)]


def _pack(job: Job) -> list[Step]:
    pack = 'mkdir -p "$(dirname "$0")" && git ls-files -z | tar --null --files-from=- -czf "$0"'
    return [Step("pack the tracked files", ("bash", "-o", "pipefail", "-c", pack, str(job.archive)))]


def _send(job: Job) -> list[Step]:
    unpack = "rm -rf dasd_jax && mkdir dasd_jax && tar -xzf dasd_jax.tar.gz -C dasd_jax"
    return [
        Step("copy them to every VM", _scp(job, str(job.archive), "dasd_jax.tar.gz"), limit_s=DO_S),
        Step("unpack them", _ssh(job, unpack), limit_s=DO_S),
    ]


def _setup(job: Job) -> list[Step]:
    bucket = (job.bucket,) if job.bucket else ()
    return [Step("install Python and requirements, mount the bucket", _ssh_vm(job, "setup", *bucket), TRIES, DO_S)]


def _start(job: Job) -> list[Step]:
    check = _ssh_vm(job, "check", str(job.slice.chips), str(job.slice.vms))
    # With an explicit platform, a busy chip is an error instead of a fallback to the CPU.
    settings = ["JAX_PLATFORMS=tpu,cpu"]
    # Compiled programs depend on the topology: one folder per kind of slice.
    settings += [f"JAX_COMPILATION_CACHE_DIR=/bucket/jax_cache/{job.slice.name}"] if job.bucket else []
    kept = [f"{name}={secret}" for name, secret in job.secrets.items() if secret]
    settings += [f"SECRETS={' '.join(kept)}"] if kept else []
    run = ("env", *settings, "bash", _VM, "start", job.workdir, *job.command)
    return [
        Step(f"check that JAX sees {job.slice.chips} chips on {job.slice.vms} VM(s)", check, TRIES, DO_S),
        *_send_secrets(job),
        Step("start the command on every VM", _ssh(job, shlex.join(run)), limit_s=DO_S),
    ]


def _send_secrets(job: Job) -> list[Step]:
    names = [name for name, kept in job.secrets.items() if not kept]
    if not names:
        return []
    file = str(job.home / ".cache" / "dasd_jax" / f"{job.name}.secrets")
    # Only variable names appear here; the local shell reads the values, so no plan and no argument contains them.
    values = "".join(f'printf "export %s=%q\\n" {name} "${name}"; ' for name in names)
    send = f'umask 077; trap \'rm -f "$0"\' EXIT; mkdir -p "$(dirname "$0")"; {{ {values}}} > "$0"; "$@"'
    argv = ("bash", "-c", send, file, *_scp(job, file, ".dasd_jax.secrets"))
    return [Step("send the secrets from this environment, in a file that `vm.sh start` deletes", argv, limit_s=DO_S)]


def _probe(job: Job) -> list[Step]:
    # A VM without a copy of the repository is idle too.
    remote = f"if test -e {_VM}; then bash {_VM} status; else echo idle; fi"
    return [Step("query the status of the command", _ssh(job, remote), limit_s=ASK_S)]


def _read(job: Job, name: str, why: str) -> list[Step]:
    path = job.workdir.replace("/bucket", f"gs://{job.bucket}", 1) + f"/{name}"
    return [Step(why, ("gcloud", "storage", "cat", path, f"--project={job.project}"), limit_s=ASK_S)]


def _delete(job: Job) -> list[Step]:
    words = ("tpu-vm", "delete", job.name) if job.direct else ("queued-resources", "delete", job.name, "--force")
    return [Step("delete the slice", _gcloud(job, *words, "--quiet"), limit_s=DO_S)]


def _run(job: Job) -> list[Step]:
    compared = ("config",) if job.config else ()
    parts = (*compared, "result", "pack", "check", "up", "wait", "probe", "send", "setup", "start", "probe", "result")
    return [step for part in parts for step in plan(job, part)] + ([] if job.keep else _delete(job))


_PLANS: dict[str, Callable[[Job], list[Step]]] = {
    "up": _up,
    "wait": _wait,
    "copy": lambda job: _pack(job) + _send(job),
    "setup": _setup,
    "start": _start,
    "logs": lambda job: [Step("follow the log", _ssh_vm(job, "logs", worker=str(job.worker)))],
    "status": lambda job: _describe(job) + _probe(job),
    "stop": lambda job: [
        Step(
            "ask the command to save and exit after its step, for up to 15 minutes, then at once", _ssh_vm(job, "stop")
        )
    ],
    "delete": _delete,
    "run": _run,
    # Internal parts of other actions.
    "pack": _pack,
    "send": _send,
    "check": _check,
    "describe": _describe,
    "probe": _probe,
    "result": lambda job: _read(job, "done.json", "check whether the run is finished"),
    "config": lambda job: _read(job, "config.json", "read the configuration of the run"),
}
ACTIONS = ("up", "wait", "copy", "setup", "start", "logs", "status", "stop", "delete", "run")


def _gcloud(job: Job, *words: str) -> tuple[str, ...]:
    # Only the alpha commands have the flag for IAP tunnels to TPU VMs.
    alpha = ("alpha",) if job.connect == "iap" and words[1] in ("ssh", "scp") else ()
    return ("gcloud", *alpha, "compute", "tpus", *words, f"--project={job.project}", f"--zone={job.zone}")


def _connection(job: Job, program: str) -> tuple[str, ...]:
    how = {"external-ip": (), "internal-ip": ("--internal-ip",), "iap": ("--tunnel-through-iap",)}[job.connect]
    # A new VM's host key is unknown, and nobody is there to confirm it. A VM that is gone does not close its
    # connections: ssh notices after two minutes.
    alive = (f"--{program}-flag=-oServerAliveInterval=30", f"--{program}-flag=-oServerAliveCountMax=4")
    return (*how, "--strict-host-key-checking=no", "--quiet", *alive)


def _ssh(job: Job, remote: str, worker: str = "all") -> tuple[str, ...]:
    flags = (f"--worker={worker}", *_connection(job, "ssh"), f"--command={remote}")
    return _gcloud(job, "tpu-vm", "ssh", job.name, *flags)


def _ssh_vm(job: Job, *words: str, worker: str = "all") -> tuple[str, ...]:
    return _ssh(job, shlex.join(("bash", _VM, *words)), worker)


def _scp(job: Job, source: str, target: str) -> tuple[str, ...]:
    return _gcloud(job, "tpu-vm", "scp", source, f"{job.name}:{target}", "--worker=all", *_connection(job, "scp"))


def dry_run(job: Job, action: str) -> str:
    """The commands of an action as shell lines, each below a comment with its purpose."""
    lines = []
    if job.slice:
        made = "created directly" if job.direct else "queued"
        lines += [f"# {job.slice.name}: {job.slice.chips} chips on {job.slice.vms} VM(s), {job.capacity}, {made}", ""]
    for step in plan(job, action):
        lines += [f"# {step.why}", shlex.join(step.argv), ""]
    if action == "run":
        lines += [
            f"# If the slice is lost ({', '.join(LOST)}), or unreachable at {MAX_MISSES} polls:",
            f"# delete it, wait {POLL_S} s to {MAX_BACKOFF_S // 60} min, and start over with the same packed files",
            *(shlex.join(step.argv) for step in _delete(job)),
        ]
    return "\n".join(lines).rstrip()
