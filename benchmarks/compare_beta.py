"""DASD beside the same run with β = 0, or other runs: python -m benchmarks.compare_beta [NAME=WORKDIR …] [METRIC …]

Trains configs/smollm2_math.py twice from the same seed (a finished run in its workdir is taken as it is) and prints
one table of both: held-out figures with standard errors by problem, and means of the watched metrics over the run. The
curves go to docs/img/smollm2.png. With β = 0 the teacher is still evaluated and routed, but weighs nothing: GRPO.

Of finished runs that are named it prints the table alone. METRIC, such as rollout/truncated_frac, adds a row.
"""

import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
CONFIG = "configs/smollm2_math.py"
RUNS = {
    "DASD": (ROOT / "runs" / "smollm2_math", []),
    "β = 0": (ROOT / "runs" / "smollm2_math-beta0", ["--config.objective.beta=0"]),
}
CURVES = {
    "reward/mean": "reward of the rollouts",
    "entropy/mean": "entropy of the policy, nats",
    "gap/mean_abs": "mean |gap| of teacher and student, nats",
}
WATCHED = (
    "reward/mean",
    "entropy/mean",
    "gap/mean_abs",
    "router/rows_off_frac",
    "router/attract_frac",
    "router/repel_frac",
    "router/attract_mass",
    "router/repel_mass",
    "credit/dense_abs_mean",
    "credit/verifier_abs_mean",
    "reward/mixed_groups_frac",
    "policy/logp_gap_mean",
    "rollout/length_mean",
    "time/rollout_s",
    "time/score_s",
    "time/update_s",
    "time/step_s",
)


def main() -> None:
    """Trains, prints, draws; prints alone if runs are named."""
    named = {name: Path(workdir) for name, is_run, workdir in (x.partition("=") for x in sys.argv[1:]) if is_run}
    watched = (*WATCHED, *(x for x in sys.argv[1:] if "=" not in x))
    for workdir, overrides in () if named else RUNS.values():
        command = [sys.executable, "-m", "dasd_jax.train", f"--config={CONFIG}", f"--workdir={workdir}", *overrides]
        subprocess.run(command, check=True, cwd=ROOT)
    workdirs = named or {name: workdir for name, (workdir, _) in RUNS.items()}
    done = {name: json.loads((workdir / "done.json").read_text()) for name, workdir in workdirs.items()}
    lines = {
        name: [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()][1:]
        for name, workdir in workdirs.items()
    }
    print(f"\n{platform.machine()}, jax {version('jax')}, python {platform.python_version()}\n")
    print("| | " + " | ".join(workdirs) + " |\n|---|" + "---|" * len(workdirs))
    for figure in next(iter(done.values()))["heldout"]:
        row(f"held-out {figure}", [shown(run["heldout"][figure]) for run in done.values()])
    for name in watched:
        row(f"{name}, mean of steps 2 on", mean_of(lines, name, 1))  # the first step compiles
    for name in ("reward/mean", "entropy/mean"):
        row(f"{name}, mean of the last 5 steps", mean_of(lines, name, -5))
    row("minutes", [f"{run['seconds_this_session'] / 60:.1f}" for run in done.values()])
    row("peak memory, GiB", [f"{run['peak_memory_gib']:.2f}" for run in done.values()])
    if not named:
        draw(lines)


def row(name: str, values: list[str]) -> None:
    """One line of the table."""
    print(f"| {name} | " + " | ".join(values) + " |")


def mean_of(lines: dict[str, list[dict]], name: str, start: int) -> list[str]:
    """The mean of a metric from one step on, for each run; a dash where the method has none."""
    found = ([line[name] for line in run[start:] if name in line] for run in lines.values())
    return [f"{np.mean(values):.4g}" if values else "–" for values in found]


def shown(value: float | list[float] | None) -> str:
    """A number, or before → after; a dash for what is unknown."""
    values = value if isinstance(value, list) else [value]
    return " → ".join("–" if x is None else f"{x:.3f}" for x in values)


def draw(lines: dict[str, list[dict]]) -> None:
    """The curves of both runs, one panel a metric."""
    figure, axes = plt.subplots(1, len(CURVES), figsize=(12, 3.2), layout="constrained")
    for axis, (metric, title) in zip(axes, CURVES.items(), strict=True):
        for name, run in lines.items():
            axis.plot([line["step"] for line in run], [line[metric] for line in run], label=name, linewidth=1.5)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("rollout batches")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    path = ROOT / "docs" / "img" / "smollm2.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"\ncurves in {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
