"""What checkpoints cost a run: python -m benchmarks.checkpoint_overhead

`make train`'s configuration three times from the same seed, for a few steps: without checkpoints, with one after every
step, and without again, which says how far two equal runs lie apart. All do the same work, so that steps are compared
one by one: what the loop waited for a checkpoint, and how much longer the step beside its writing took. One held-out
problem, answered once, is all that is evaluated.
"""

import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.runs import python, read_lines
from benchmarks.timing import default_config, hardware, verdict

STEPS = 7  # the first compiles and is left out
LIMIT = 0.02  # of the time of the steps between two checkpoints


def main() -> None:
    """Runs and prints."""
    every = default_config().run.checkpoint_every
    print(
        f"{hardware()}; steps 2 to {STEPS} of configs/smollm2_math.py, which saves after every {every}th\n", flush=True
    )
    runs = [run(every) for every in (10 * STEPS, 1, 10 * STEPS)]
    losses = [[line["loss/total"] for line in lines] for lines in runs]
    if losses.count(losses[0]) != len(losses):
        sys.exit(f"error: the runs did not do the same work: losses {losses}")
    before, saving, after = ([line["time/step_s"] + line["time/checkpoint_s"] for line in lines] for lines in runs)
    without = [statistics.mean(pair) for pair in zip(before, after, strict=True)]
    print("| step | without, s | again, s | with, s | of it waited, s |\n|---|---|---|---|---|")
    for step, times in enumerate(zip(before, after, saving, runs[1], strict=True), 2):
        print(f"| {step} | {times[0]:.2f} | {times[1]:.2f} | {times[2]:.2f} | {times[3]['time/checkpoint_s']:.2f} |")
    apart = statistics.mean(after) - statistics.mean(before)
    cost = statistics.mean(saving) - statistics.mean(without)
    share = cost / (every * statistics.mean(without))
    print(f"\na checkpoint costs {cost:.2f} s; runs without any lie {abs(apart):.2f} s a step apart")
    print(f"one in {every} steps: {share:.2%} of them, limit {LIMIT:.0%}: {verdict(share < LIMIT)}")


def run(every: int) -> list[dict]:
    """Trains with a checkpoint after every so many steps; the log's lines from the second step on."""
    with tempfile.TemporaryDirectory() as folder:
        python(
            "dasd_jax.train", "--config=configs/smollm2_math.py", f"--workdir={folder}/run",
            f"--config.run.steps={STEPS}", f"--config.run.checkpoint_every={every}", "--config.data.heldout=1",
            "--config.run.eval_problems=1", "--config.run.eval_samples=1",
        )  # fmt: skip
        return [line for line in read_lines(Path(folder, "run", "metrics.jsonl")) if line["step"] > 1]


if __name__ == "__main__":
    main()
