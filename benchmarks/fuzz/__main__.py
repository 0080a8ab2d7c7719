"""Reads thousands of hostile inputs: python -m benchmarks.fuzz [--inputs=2400] [--seed=0] [--only=TARGET,…]

Every input is made from (seed, target, number) alone and read in a worker process under a deadline and a memory cap;
a find names the three, so that --only=TARGET --number=N reads it again with its traceback. Exit code 1 if there is one.
"""

import argparse
import sys
import time
from collections import Counter

from benchmarks.fuzz.runner import Outcome, run
from benchmarks.fuzz.targets import TARGETS
from benchmarks.timing import hardware


def main() -> None:
    """The command."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--inputs", type=int, default=2400, help="in all, shared out by targets.py (default: 2400)")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--only", default="", metavar="TARGET,…", help=f"of {', '.join(TARGETS)}")
    flags.add_argument("--number", type=int, default=None, help="one input of each target, with everything it says")
    asked = flags.parse_args()
    names = [name for name in asked.only.split(",") if name] or list(TARGETS)
    shares = {name: TARGETS[name][1] for name in names}
    counts = {name: -(-asked.inputs * share // sum(shares.values())) for name, share in shares.items()}
    started = time.monotonic()
    numbers = {name: [asked.number] if asked.number is not None else range(count) for name, count in counts.items()}
    outcomes = []
    for outcome in run(numbers, asked.seed):
        outcomes.append(outcome)
        if outcome.find or asked.number is not None:
            print(
                f"{outcome.kind}: {outcome.target} {outcome.number}: {outcome.what!r:.300}\n    {outcome.text}",
                flush=True,
            )
    print(_table(names, outcomes))
    finds = sum(outcome.find for outcome in outcomes)
    slowest = max(outcomes, key=lambda outcome: outcome.seconds)
    print(f"{len(outcomes)} inputs, {finds} finds, {(time.monotonic() - started) / 60:.1f} min, seed {asked.seed}")
    print(f"slowest: {slowest.target} {slowest.number}, {slowest.seconds:.1f} s; {hardware()}")
    idle = [name for name in names if {"read", "refused"} - {o.kind for o in outcomes if o.target == name}]
    if idle and asked.number is None:
        print(f"of {', '.join(idle)} everything was read, or nothing: these inputs say nothing of it")
    sys.exit(1 if finds or (idle and asked.number is None) else 0)


def _table(names: list[str], outcomes: list[Outcome]) -> str:
    kinds = ("read", "refused", "exception", "hang", "death", "left behind")
    counts = Counter((outcome.target, outcome.kind) for outcome in outcomes)
    rows = [f"{'':22}" + "".join(f"{kind:>12}" for kind in kinds)]
    for name in names:
        rows.append(f"{name:22}" + "".join(f"{counts[name, kind]:12}" for kind in kinds))
    return "\n".join(rows)


if __name__ == "__main__":
    main()
