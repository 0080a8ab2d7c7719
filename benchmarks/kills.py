"""A run that is killed again and again beside the same run left alone: python -m benchmarks.kills [--kills=60]

Both train the tiny configuration for 30 steps with a checkpoint after every step. The first says when its phases begin;
the second is killed (SIGKILL) in start-up, evaluation, rollout, verification, scoring, update and the writing of a
checkpoint in turn, each time at a random moment of the phase and some random steps on, and started anew.

Exit status 1 if the two differ in any bit of the final state, in any number of any step but times, or in any sample; if
a step stands in a log twice or not at all; or if something half-written is left.
"""

import argparse
import itertools
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import jax
import numpy as np
from tensorboardX.proto import event_pb2

from benchmarks.runs import numbers
from benchmarks.timing import hardware, verdict
from dasd_jax import cli, train
from dasd_jax.learner import checkpoint, kept
from dasd_jax.learner.optim import make_optimizer
from dasd_jax.mesh import make_mesh
from dasd_jax.run.display import Display

STEPS = 30
PHASES = ("start-up", "evaluate", "rollout", "verify", "score", "update", "checkpoint")
MARK = "phase "
ARGS = [
    "--config=configs/qwen_math.py:tiny",
    f"--config.run.steps={STEPS}",
    "--config.run.checkpoint_every=1",
    "--config.run.eval_every=1",
    "--config.data.now=2026-01-01T00:00:00",  # otherwise each run records when it began
]


def main() -> None:
    """Runs both and compares."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--kills", type=int, default=60, help="how often the second run is killed (default 60)")
    flags.add_argument("--seed", type=int, default=0, help="of phases and moments (default 0)")
    kills, seed = vars(flags.parse_args()).values()
    with tempfile.TemporaryDirectory() as folder:
        alone, killed = Path(folder) / "alone", Path(folder) / "killed"
        print(f"{hardware()}; {STEPS} steps of the tiny configuration", flush=True)
        started = time.monotonic()
        seconds = run_alone(alone)
        print(f"left alone: {time.monotonic() - started:.0f} s", flush=True)
        started = time.monotonic()
        done = run_killed(killed, kills, seconds, random.Random(seed))
        print(f"killed {done.total()} times: {time.monotonic() - started:.0f} s\n")
        print("| killed in | times |\n|---|---|")
        for phase in PHASES:
            print(f"| {phase} | {done[phase]} |")
        found = differences(alone, killed)
        print(f"\nstate after step {STEPS} bit-equal, every step logged once: {verdict(not found)}")
    for line in found:
        print(line)
    if found or done.total() < kills:
        sys.exit(1)


def announce() -> None:
    """Trains, and says on stdout when each phase begins."""
    show = Display.phase

    def phase(display: Display, name: str) -> None:
        print(MARK + name, flush=True)
        show(display, name)

    Display.phase = phase
    cli.run(train.main)


def start(workdir: Path) -> subprocess.Popen:
    """A process of the run in `workdir`."""
    command = [sys.executable, "-m", "benchmarks.kills", "announce", *ARGS, f"--workdir={workdir}"]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE)


def run_alone(workdir: Path) -> dict[str, float]:
    """The whole run; returns the mean seconds of its phases."""
    process, taken = start(workdir), defaultdict(list)
    phase, since = "start-up", time.monotonic()
    for line in process.stdout:
        if line.startswith(MARK):
            taken[phase].append(time.monotonic() - since)
            phase, since = line.removeprefix(MARK).strip(), time.monotonic()
    if process.wait():
        sys.exit(f"the run that was left alone ended with exit code {process.returncode}")
    return {phase: float(np.median(times)) for phase, times in taken.items()}


def run_killed(workdir: Path, kills: int, seconds: dict[str, float], rng: random.Random) -> Counter:
    """The same run through that many deaths and then to its end; returns the deaths by phase."""
    deaths: Counter = Counter()
    while deaths.total() < kills:
        phase = PHASES[deaths.total() % len(PHASES)]
        # Some steps on, so that the deaths are spread over the run; none near its end, so that it does not get there.
        ahead = rng.randint(0, round(1.5 * STEPS / kills)) if steps_done(workdir) < 0.7 * STEPS else 0
        process = start(workdir)
        if phase != "start-up":
            marks = (line for line in process.stdout if line.rstrip() == MARK + phase)
            for _ in itertools.islice(marks, ahead + 1):
                pass
        time.sleep(rng.uniform(0, seconds[phase]))
        process.kill()
        process.stdout.read()  # until its children are gone too
        if process.wait() != -signal.SIGKILL:
            sys.exit(f"the run ended with exit code {process.returncode} before it was killed {kills} times")
        deaths[phase] += 1
    process = start(workdir)
    process.stdout.read()
    if process.wait():
        sys.exit(f"the run that was killed ended with exit code {process.returncode}")
    return deaths


def steps_done(workdir: Path) -> int:
    """The step of the newest whole checkpoint."""
    newest = kept.latest(workdir, set_aside=False)
    return int(newest.name) if newest else 0


def differences(alone: Path, killed: Path) -> list[str]:
    """What differs between two finished runs, a line each."""
    found = []
    config = cli.parse(cli.parser(""), ARGS).config
    mesh, optimizer = make_mesh(config.mesh), make_optimizer(config.optim, STEPS * config.optim.minibatches)
    views = config.method.views(config.hp)
    states = [checkpoint.restore(kept.find(folder, ""), mesh, optimizer, views)[1] for folder in (alone, killed)]
    for (path, a), (_, b) in zip(*(jax.tree.leaves_with_path(state) for state in states), strict=True):
        if np.asarray(a).tobytes() != np.asarray(b).tobytes():
            found.append(f"state: {jax.tree_util.keystr(path)} differs")
    for one, other in zip(*(numbers(folder) for folder in (alone, killed)), strict=False):
        names = sorted(one.keys() | other.keys())
        found += [f"metrics.jsonl: step {one['step']}: {name}" for name in names if one.get(name) != other.get(name)]
    for folder in (alone, killed):
        logged = {"metrics.jsonl": [line["step"] for line in numbers(folder)], "tensorboard": event_steps(folder)}
        for name, steps in logged.items():
            if steps != list(range(STEPS + 1)):
                found.append(f"{folder.name}: {name} has the steps {steps}")
    files = [
        {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} for folder in (alone, killed)
    ]
    # Orbax names its data files anew at every write, TensorBoard its own by the clock.
    listed = [{name for name in names if "/d/" not in name and "tfevents" not in name} for names in files]
    found += [f"{name}: only in one of the two" for name in sorted(listed[0] ^ listed[1])]
    heldout = [f"heldout/{step}.{kind}" for step in range(STEPS + 1) for kind in ("json", "jsonl")]
    same = ["samples.jsonl", "config.json", *heldout]
    found += [f"{name} differs" for name in same if (alone / name).read_bytes() != (killed / name).read_bytes()]
    return found


def event_steps(workdir: Path) -> list[int]:
    """The steps of the events of one number, in order: TFRecords of length, checksum, event, checksum."""
    steps = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = struct.unpack_from("<Q", data, at)[0]
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            steps += [event.step for value in event.summary.value if value.tag == "eval/standard_error"]
            at += 16 + size
    return steps


if __name__ == "__main__":
    if sys.argv[1:2] == ["announce"]:
        del sys.argv[1]
        announce()
    else:
        main()
