"""What trl_step.py and tunix_step.py share: whole steps of two libraries in turn, and how far their numbers agree.

Each side is a process of its own with the same two processors. It reads lines of JSON and answers each with one. The
first says what to compute:

    method, problems, rollouts, tokens    the step: `tokens` in every response, whatever is written
    chats, teacher_prompt                 conversations, one a problem; tokens of a teacher's prompt
    model, rows, steps                    for the other side: a Hugging Face folder, rows of a microbatch, a bound on
                                          the steps to come
    rate, b1, b2, eps, decay, clip        AdamW with a constant rate, and the norm to which gradients are cut

and the answer names versions and prompts (token ids). Every further line is one step, with the answer

    seconds       of each phase and of the whole, [on the clock, of the processors]
    tokens        of the responses, [rows][tokens], problem-major
    logp          their log-probabilities before the update, in nats
    grad_norm     before it is cut
    teacher_prompt    the width of the teacher's prompts, where there is a teacher

Ours takes responses to compute with (`tokens`) instead of those it has sampled, and leaves out the update where
`update` is false: so the two are compared on the tokens of the other side, before the first update and after it.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.runs import ROOT, python
from benchmarks.step_ratio import GROUP
from benchmarks.timing import Times, chats, default_config, hardware, verdict

THREADS = 2
STEPS = 3
LIMIT = 1e-3  # nats, between log-probabilities of the same weights
PHASES = ("rollout", "score", "update", "whole")
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": str(THREADS),
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A step of ours beside one of theirs, of `problems` × GROUP responses of `tokens` tokens."""

    problems: int
    tokens: int
    rows: int  # of their microbatches
    target: float | None  # their seconds over ours
    ours: str = "grpo"
    theirs: str = "grpo"


@dataclasses.dataclass(frozen=True)
class Peer:
    """Another library."""

    name: str
    worker: Path  # its side, which imports nothing of this repository
    cases: dict[str, Case]  # by the name that --sizes takes
    settings: str  # how its steps are set up, for the printed page
    whole_groups: bool = False  # its microbatches hold all rollouts of a problem


class Side:
    """A process that computes steps."""

    def __init__(self, command: list[str], job: dict):
        """Starts it; ends this process if it fails."""
        self.command = command
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.started = self.ask(job)

    def ask(self, request: dict) -> dict:
        """Its answer to a line."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"error: {' '.join(self.command)} ended with exit code {self.process.wait()}")
        return json.loads(line)

    def peak(self) -> float:
        """GiB of memory that it has held at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**20

    def close(self) -> None:
        """Ends it."""
        self.process.stdin.close()
        self.process.wait()


def run(peer: Peer, description: str, argv: list[str]) -> None:
    """The command: reads the command line, compares and prints."""
    args = arguments(peer, description, argv)
    os.environ.update(ENVIRONMENT)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    config = default_config()
    weights = Path(config.model.weights).expanduser()
    print(f"{hardware()}, {THREADS} of them used; {weights.stem} in float32")
    print(f"{peer.name}: {peer.settings}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        model = str(Path(folder) / "model")
        python("dasd_jax.convert", f"--source={weights}", f"--output={model}", "--format=hf", "--dtype=float32")
        for name in args.sizes:
            case = peer.cases[name]
            rows = args.rows or case.rows
            print(f"{title(case)}, {peer.name} {case.theirs} in parts of {rows} rows", flush=True)
            for line in compare(peer, args.python, case, rows, model, args.steps):
                print(line, flush=True)


def arguments(peer: Peer, description: str, argv: list[str]) -> argparse.Namespace:
    """The command line; one that is wrong ends the process with exit code 2."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", metavar="PYTHON", help=f"the python of an environment that has {peer.name}")
    parser.add_argument("--sizes", default=",".join(peer.cases), metavar="SIZE,SIZE", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each side after one that is not measured")
    parser.add_argument("--rows", type=int, default=0, help=f"of {peer.name}'s microbatches (default: by size)")
    args = parser.parse_args(argv)
    args.sizes = args.sizes.split(",")
    if unknown := [name for name in args.sizes if name not in peer.cases]:
        parser.error(f"--sizes: {', '.join(unknown)}: expected some of {', '.join(peer.cases)}")
    if args.steps < 1:
        parser.error(f"--steps: {args.steps}: expected at least 1")
    for name in args.sizes:
        rows = peer.cases[name].problems * GROUP
        least = GROUP if peer.whole_groups else 1
        if args.rows < 0 or (args.rows and (rows % args.rows or args.rows % least)):
            parser.error(f"--rows: {args.rows}: expected a multiple of {least} that divides the {rows} rows of {name}")
    if not shutil.which(args.python):
        parser.error(f"PYTHON: {args.python}: expected the python of an environment that has {peer.name}")
    args.python = os.path.abspath(shutil.which(args.python))
    return args


def title(case: Case) -> str:
    """What is computed."""
    return f"{case.problems} problems x {GROUP} rollouts x {case.tokens} tokens: our {case.ours}"


def compare(peer: Peer, interpreter: str, case: Case, rows: int, model: str, steps: int) -> Iterator[str]:
    """Both sides in turn, `steps` times; the lines to print, as they come."""
    optim = default_config().optim
    # One step is not measured, and one is never asked for: a side that has ended would not show its memory.
    job = {
        "problems": case.problems, "rollouts": GROUP, "tokens": case.tokens, "chats": chats(case.problems),
        "model": model, "rows": rows, "steps": steps + 2, "rate": optim.learning_rate, "b1": optim.b1, "b2": optim.b2,
        "eps": optim.eps, "decay": optim.weight_decay, "clip": optim.grad_clip,
    }  # fmt: skip
    theirs = Side([interpreter, str(peer.worker)], job | {"method": case.theirs})
    first = theirs.ask({})
    width = first.get("teacher_prompt")
    ours = Side([sys.executable, "-m", "benchmarks.our_steps"], job | {"method": case.ours, "teacher_prompt": width})
    if ours.started["prompts"] != theirs.started["prompts"]:
        sys.exit(f"error: the prompts of {peer.name} are not ours, by their token ids")
    yield f"{ours.started['versions']}; {theirs.started['versions']}"
    if width:
        yield f"prompts of {width} tokens for the teachers"
    again = ours.ask({"tokens": first["tokens"]})
    yield f"on the same responses: {difference(again, first)}" + norms(case, again, first)
    if np.abs(np.array(again["logp"]) - np.array(first["logp"])).max() > LIMIT:
        sys.exit(f"error: expected log-probabilities that differ by at most {LIMIT} nats")
    times = {"ours": [], peer.name: []}
    for turn in range(steps):
        step = theirs.ask({})
        check_lengths(step["tokens"], case)
        if not turn:
            again = ours.ask({"tokens": step["tokens"], "update": False})
            if case.ours == case.theirs:
                yield f"after an update of each side: {difference(again, step)}"
        times[peer.name].append(step["seconds"])
        step = ours.ask({})
        check_lengths(step["tokens"], case)
        times["ours"].append(step["seconds"])
    peaks = {"ours": ours.peak(), peer.name: theirs.peak()}
    for side in (ours, theirs):
        side.close()
    yield from ("", *table(times, peaks), "", summary(times, peer.name, case.target), "")


def check_lengths(tokens: list[list[int]], case: Case) -> None:
    """Ends the process unless every response has the length that was asked for."""
    if {len(row) for row in tokens} != {case.tokens} or len(tokens) != case.problems * GROUP:
        sys.exit(f"error: expected {case.problems * GROUP} responses of {case.tokens} tokens")


def difference(ours: dict, theirs: dict) -> str:
    """How far the log-probabilities of the same tokens differ."""
    gap = np.abs(np.array(ours["logp"]) - np.array(theirs["logp"]))
    return f"log-probabilities differ by at most {gap.max():.1e} nats, {gap.mean():.1e} on average"


def norms(case: Case, ours: dict, theirs: dict) -> str:
    """The norm of both gradients, where they are of the same loss."""
    if case.ours != case.theirs:
        return ""
    return f"; gradient norm {ours['grad_norm']:.6f} here, {theirs['grad_norm']:.6f} there"


def table(times: dict[str, list[dict]], peaks: dict[str, float]) -> list[str]:
    """Phases of both sides, [on the clock, of the processors] each, as medians and ranges."""
    lines = [f"| | | {' | '.join(PHASES)} | peak memory, GiB |", "|---" * (len(PHASES) + 3) + "|"]
    for name, steps in times.items():
        for which, unit in enumerate(("s", "CPU-s")):
            cells = [
                str(Times(tuple(step[phase][which] for step in steps), None)) if phase in steps[0] else "in the update"
                for phase in PHASES
            ]
            lines.append(f"| {name} | {unit} | {' | '.join(cells)} | {'' if which else f'{peaks[name]:.1f}'} |")
    return lines


def summary(times: dict[str, list[dict]], peer: str, target: float | None) -> str:
    """Their whole step over ours, by turn, and whether the target is met."""
    ratios = [
        Times(
            tuple(b["whole"][which] / a["whole"][which] for a, b in zip(times["ours"], times[peer], strict=True)), None
        )
        for which in (0, 1)
    ]
    goal = "no target" if target is None else f"to reach {target}: {verdict(ratios[0].median >= target)}"
    return f"{peer} / ours: {ratios[0]} in seconds, {ratios[1]} in CPU-seconds; {goal}"
