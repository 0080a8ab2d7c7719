"""What explains the table: other values of ρ, routers, teachers and contexts, and three probes of each expectation."""

from functools import partial

from benchmarks.lab import displacement, interventions, plan, table
from benchmarks.lab.runs import Job, append, by_name, run_all, side_by_side

ROUTERS = ("teacher_entropy", "position", "improbability", "gap", "frequency", "random")
RHOS = (0.1, 0.4)
TEACHERS = ("frozen", "ema", "snapshot")
CONTEXTS = ("none", "other_problem")
PROBE_BETA = 0.3
# GRPO has no strength and no router: those two leave it as it is.
PROBED = {
    "task": plan.PRIMARY,
    "strength": tuple(arm for arm in plan.PRIMARY if plan.METHODS[arm].strength),
    "rho": ("dasd", "flip_low", "flip_high"),
}


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
    """Three probes of every expectation, kind `probes`; PROBED has the arms that each of them changes.

    task: trained on hard problems. strength: every arm at GRPO's learning rate and one strength. rho: the other reading
    of ρ, for the arms that route by it.
    """
    found = []
    for probe, arms in PROBED.items():
        for arm in arms:
            fields = {
                "task": lambda arm: table.chosen(arm),
                "strength": lambda arm: table.chosen("grpo") | {plan.METHODS[arm].strength: PROBE_BETA},
                "rho": lambda arm: table.chosen(arm) | {"objective.rho_side": "bottom"},
            }[probe](arm)
            problems = "train_hard" if probe == "task" else ""
            found += [Job("probes", f"{probe}/{arm}", arm, seed, fields, problems=problems) for seed in plan.SEEDS]
    return found


def run(workers: int) -> None:
    """What the base models show, the probes of the expectations, then the variations."""
    for kind, name, measure in (
        ("displacement", "displacement", displacement.measure),
        *(("interventions", shown, partial(interventions.measure, shown)) for shown in interventions.SHOWN),
    ):
        known = by_name(kind).get(name, {})
        for _, line in side_by_side(measure, [seed for seed in plan.SEEDS if seed not in known], workers):
            append(kind, line)
    run_all(probes(), workers)
    run_all(jobs(), workers)
