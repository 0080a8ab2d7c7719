"""What explains the table: other values of ρ, routers, teachers and contexts, and three probes of each expectation."""

from benchmarks.lab import displacement, plan, table
from benchmarks.lab.runs import LAB, Job, append, results, run_all, side_by_side

ROUTERS = ("teacher_entropy", "position", "improbability", "gap", "frequency", "random")
RHOS = (0.1, 0.4)
TEACHERS = ("frozen", "ema", "snapshot")
CONTEXTS = ("none", "other_problem")
PROBE_BETA = 0.3


def jobs() -> list[Job]:
    """Variations of DASD at its chosen settings, kind `variations`: the field that changes names the run."""
    varied = {
        "objective.rho": RHOS,
        "objective.route_by": ROUTERS,
        "objective.route": ("flip_both",),
        "objective.teacher": TEACHERS,
        "objective.context": CONTEXTS,
    }
    return [
        Job("variations", f"{field.partition('.')[2]}={value}", "dasd", seed, table.chosen("dasd") | {field: value})
        for field, options in varied.items()
        for value in options
        for seed in plan.SEEDS
    ]


def probes() -> list[Job]:
    """Three probes of every expectation, kind `probes`.

    task: trained on hard problems. strength: every arm at one learning rate and one strength. rho: the other reading of
    ρ, for the arms that route by it.
    """
    hard = f"('jsonl:{LAB / 'problems' / 'train_hard.jsonl'}',)"
    alike = {"optim.learning_rate": table.chosen("grpo")["optim.learning_rate"]}
    found = []
    for arm in plan.PRIMARY:
        chosen, routed = table.chosen(arm), arm in ("dasd", "flip_low", "flip_high")
        strength = {plan.METHODS[arm].strength: PROBE_BETA} if plan.METHODS[arm].strength else {}
        found.append(("task", arm, {**chosen, "data.sources": hard}))
        found.append(("strength", arm, alike | strength))
        if routed:
            found.append(("rho", arm, {**chosen, "objective.rho_side": "bottom"}))
    return [Job("probes", f"{probe}/{arm}", arm, seed, fields) for probe, arm, fields in found for seed in plan.SEEDS]


def run(workers: int) -> None:
    """Displacements, the probes of the expectations, then the variations."""
    known = {line["seed"] for line in results("displacement").values()}
    for _, line in side_by_side(displacement.measure, [seed for seed in plan.SEEDS if seed not in known], workers):
        append("displacement", line)
    run_all(probes(), workers)
    run_all(jobs(), workers)
