#!/usr/bin/env bash
# Runs on each VM of a slice, called by launchers/tpu_vm.py from the home folder:
#   vm.sh setup [BUCKET]             installs Python and requirements; mounts the bucket at /bucket
#   vm.sh check CHIPS VMS            checks that JAX sees all chips of the slice
#   vm.sh start WORKDIR COMMAND…     starts COMMAND in the background, in its own session
#   vm.sh status                     prints running, "exited CODE" or idle, and "command SHA256" of the one it was given
#   vm.sh logs | stop
# Its own failures exit with code 70, which the launcher can tell from an unreachable VM.
set -Eeuo pipefail
trap 'exit 70' ERR

self=$(realpath "$0")
venv=$HOME/dasd_venv
log=$HOME/.dasd_jax/log
# One folder per boot, so that a process ID from before a restart is never taken for a current process.
state=$HOME/.dasd_jax/$(</proc/sys/kernel/random/boot_id)
mkdir -p "$state"

fail() {
    echo "$(hostname): $*" >&2
    exit 70
}

setup() {
    local uv=$HOME/.local/bin/uv
    # The TPU runtimes have Python 3.10, or an externally managed Python.
    [[ -x $uv ]] || curl -LsSf https://astral.sh/uv/install.sh | sh
    "$uv" venv --quiet --allow-existing --python 3.11 "$venv"
    # Resolved together, so that libtpu matches the jax that requirements.txt allows.
    "$uv" pip install --quiet --python "$venv" -r dasd_jax/requirements.txt 'jax[tpu]'
    if [[ -n ${1:-} ]]; then mount_bucket "$1"; fi
}

mount_bucket() {
    if ! command -v gcsfuse >/dev/null; then
        local key=/usr/share/keyrings/cloud.google.asc
        curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
        echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
            sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
        # After a boot, unattended upgrades hold the lock for a while.
        sudo apt-get -qq -o DPkg::Lock::Timeout=300 update
        sudo apt-get -qq -o DPkg::Lock::Timeout=300 install -y gcsfuse
    fi
    if ! mountpoint -q /bucket; then
        sudo mkdir -p /bucket
        sudo chown "$(id -un)" /bucket
        # Checkpoints are renamed into place; without a hierarchical namespace gcsfuse limits renames to this many files.
        gcsfuse --implicit-dirs --rename-dir-limit=100000 "$1" /bucket
    fi
    ln -sfn /bucket/data dasd_jax/data
}

alive() {
    [[ -e $state/group && ! -e $state/exit ]] && kill -0 -- "-$(<"$state/group")" 2>/dev/null
}

# Processes and lock files of an earlier command would keep the chips busy.
clear_chips() {
    if [[ -e $state/group ]]; then kill -KILL -- "-$(<"$state/group")" 2>/dev/null || true; fi
    rm -f /tmp/libtpu_lockfile
}

check() {
    if alive; then return; fi
    clear_chips
    timeout 300 "$venv/bin/python" - "$@" <<'PYTHON' || fail "check: JAX does not see all $1 chips on $2 VMs (output above)"
import sys

import jax

chips, vms = map(int, sys.argv[1:])
if vms > 1:
    jax.distributed.initialize()
found = jax.device_count(), jax.process_count(), jax.default_backend()
if found != (chips, vms, "tpu"):
    sys.exit(f"expected {chips} chips on {vms} VMs, found {found[0]} of {found[2]} on {found[1]}")
PYTHON
}

start() {
    local workdir=$1
    shift
    read_secrets
    if alive; then
        [[ $(<"$state/command") == "${*@Q}" ]] || fail "start: another command is running: $(<"$state/command")"
        return
    fi
    [[ $workdir != /bucket/* ]] || mountpoint -q /bucket || fail "start: $workdir: /bucket is not mounted; run setup"
    clear_chips
    rm -f "$state"/*
    export PATH=$venv/bin:$PATH
    echo "${*@Q}" >"$state/command"
    printf '%s\0' "$@" | sha256sum | cut -d ' ' -f 1 >"$state/digest"
    echo "$(date -Is) files with sha256 $(sha256sum <dasd_jax.tar.gz | cut -d ' ' -f 1): ${*@Q}" >>"$log"
    cd dasd_jax
    setsid bash "$self" supervise "$workdir" "$@" </dev/null >>"$log" 2>&1 &
    echo $! >"$state/group"
}

# The session leader: outlives the ssh connection and records the command's exit code.
supervise() {
    local workdir=$1 code=0
    shift
    "$@" &
    echo $! >"$state/pid"
    wait $! || code=$?
    if [[ $code == 0 && ! -e $workdir/done.json ]] && announced; then
        # The command has saved and exited for maintenance. After a restart of the VM, or after this loop, the VM is idle
        # and the launcher starts the command on all VMs again.
        while announced; do sleep 60; done
        rm -f "$state"/*
        return
    fi
    # The VM's disk is deleted with the slice; host names are different for every slice.
    { mkdir -p "$workdir/logs" && cp "$log" "$workdir/logs/$(hostname).log"; } || true
    echo "$code" >"$state/exit"
}

# Whether Google has announced maintenance of this VM.
announced() {
    local notice
    notice=$(curl -sf -H 'Metadata-Flavor: Google' \
        "http://${GCE_METADATA_HOST:-metadata.google.internal}/computeMetadata/v1/instance/maintenance-event") &&
        [[ $notice != NONE ]]
}

# Values go only into the command's environment: not into arguments, metadata or files that are kept.
read_secrets() {
    local file=$HOME/.dasd_jax.secrets pair value
    if [[ -e $file ]]; then
        # shellcheck disable=SC1090
        source "$file"
        rm "$file"
    fi
    for pair in ${SECRETS:-}; do
        value=$(gcloud secrets versions access latest --secret="${pair#*=}")
        export "${pair%%=*}=$value"
    done
}

status() {
    if alive; then
        echo running
    elif [[ -e $state/exit ]]; then
        echo "exited $(<"$state/exit")"
    else
        echo idle
    fi
    if [[ -e $state/digest ]]; then echo "command $(<"$state/digest")"; fi
}

logs() {
    tail -n 200 -F "$log"
}

stop() {
    alive || return 0
    local pid
    pid=$(<"$state/pid")
    # Signals the command only: its worker processes are needed until it has saved. SIGUSR1 lets train finish its step;
    # SIGTERM alone leaves it run.grace_s seconds, too few for a step of a large model.
    if catches_usr1 "$pid"; then
        kill -USR1 "$pid" || true
        if ends; then return; fi
    fi
    kill -TERM "$pid" || true
    if ends; then return; fi
    echo "$(hostname): stop: still running after 15 minutes, killed" >&2
    clear_chips
}

# Whether the command ends within 15 minutes.
ends() {
    for _ in {1..900}; do
        alive || return 0
        sleep 1
    done
    return 1
}

# Whether a process handles SIGUSR1 (10, the tenth bit), which would otherwise end it at once.
catches_usr1() {
    local mask
    mask=$(awk '/^SigCgt/ {print $2}' "/proc/$1/status") && (((0x$mask & 0x200) != 0))
}

"$@"
