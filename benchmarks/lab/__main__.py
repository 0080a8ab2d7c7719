"""The laboratory: python -m benchmarks.lab [base|properties|run|mechanism|neighbours|tables] [--workers=2] [--quick]

    base         makes the base models that are not there yet
    properties   measures them: docs/lab.md's first table
    run          trials and reported runs of every method, the primary ones first; goes on where it was interrupted
    mechanism    what explains them: flips, ρ, routers, teachers, controls, and the three probes
    neighbours   trials and reported runs of methods that were added later, and GRPO once more
    tables       writes the tables of docs/lab.md and the figures in docs/img from benchmarks/lab/results

--quick runs two methods with one seed and the settings of the results, and prints what they come to; nothing is kept.
Everything that can be made again lies in runs/lab; benchmarks/lab/results has one line for each finished run.
"""

import argparse
import os
import shutil
import sys

from benchmarks.lab import base, mechanism, pages, plan, runs, table


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", choices=("base", "properties", "run", "mechanism", "neighbours", "tables"))
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="runs side by side, a core each"
    )
    parser.add_argument("--methods", default=",".join(plan.METHODS), help="those of `run` (default: all)")
    parser.add_argument("--quick", action="store_true", help="two methods, one seed")
    asked = parser.parse_args()
    if asked.quick == bool(asked.task):
        parser.error("expected a task, or --quick")
    if asked.quick:
        quick(asked.workers)
    elif asked.task == "base":
        base.make_all((plan.TRIAL_SEED, *plan.SEEDS), asked.workers)
    elif asked.task == "properties":
        base.write_properties((*plan.SEEDS, plan.TRIAL_SEED), asked.workers)
    elif asked.task == "run":
        run(asked.methods.split(","), asked.workers)
    elif asked.task == "mechanism":
        mechanism.run(asked.workers)
    elif asked.task == "neighbours":
        arms(list(plan.NEIGHBOURS), asked.workers)
        settings = table.chosen("grpo")
        runs.run_all([runs.Job("runs", plan.AGAIN, "grpo", seed, settings) for seed in plan.SEEDS], asked.workers)
    else:
        pages.write()


def run(methods: list[str], workers: int) -> None:
    """Trials and reported runs, the primary methods before the others."""
    unknown = sorted(set(methods) - set(plan.METHODS))
    if unknown:
        sys.exit(f"error: --methods: {unknown[0]}: expected some of {', '.join(plan.METHODS)}")
    for group in (plan.PRIMARY, [name for name in plan.METHODS if name not in plan.PRIMARY]):
        arms([name for name in group if name in methods], workers)


def arms(names: list[str], workers: int) -> None:
    """The trials of some arms, then their reported runs with what the trials chose."""
    trials = [
        runs.Job("trials", name, name, plan.TRIAL_SEED, fields, reported=False)
        for name in names
        for fields in plan.ARMS[name].trials()
    ]
    runs.run_all(trials, workers)
    runs.run_all(
        [runs.Job("runs", name, name, seed, table.chosen(name)) for seed in plan.SEEDS for name in names], workers
    )


def quick(workers: int) -> None:
    """GRPO and conformity from the first base model."""
    jobs = [runs.Job("quick", name, name, plan.SEEDS[0], table.chosen(name)) for name in ("grpo", "conformity")]
    folder = runs.WORK / "quick"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        lines = {job.name: line for job, line in runs.side_by_side(runs.run, jobs, workers)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(pages.quick_table({job.name: lines[job.name] for job in jobs}))


if __name__ == "__main__":
    main()
