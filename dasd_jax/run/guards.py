"""Guards: what a run watches in its own numbers, when it warns, and when it stops or lets go of the teacher.

Everything is judged from the lines of metrics.jsonl, which a resumed run finds cut back to its checkpoint: there is no
state to save, and a run that was killed judges as if it had not been.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from dasd_jax.config import Config, RunGroup
from dasd_jax.objective.credit import TWO_ARMED

TEACHER_WEIGHT = "guard/teacher_weight"  # in the log: the share of objective.beta that was in force
# The fields that say when a guard speaks up, here or before an update.
LEVELS = tuple(f"run.{name}" for name in RunGroup.levels()) + (
    "run.guard_window",
    "rollout.logp_gap_mean_warn",
    "rollout.logp_gap_mean_max",
    "rollout.logp_gap_p999_max",
)


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What the numbers so far call for.

    Attributes:
        warnings: one line each, with the numbers; a line is given when its level is crossed, and not again before the
            number has come back.
        stop: why the run must not go on, in one line; "" where it may.
        teacher_weight: the share of objective.beta for the next step, in [0, 1].
    """

    warnings: list[str]
    stop: str
    teacher_weight: float


@dataclasses.dataclass(frozen=True)
class _Reading:
    """A watched number over a window: beyond `warn` it is said, beyond `stop` acted upon; `sign` 1 if high is bad."""

    name: str
    value: float
    field: str  # of its levels, with the group and without what tells them apart
    warn: float
    stop: float
    sign: int
    means: str

    def at(self, level: str) -> str:
        return f"{self.field}_{level} = {getattr(self, level)}: {self.means}"

    def beyond(self, level: float) -> bool:
        return bool(level) and self.sign * (self.value - level) > 0


def judge(lines: Sequence[dict], config: Config) -> Judgement:
    """The judgement on the steps so far.

    Args:
        lines: the objects of metrics.jsonl, oldest first; the last one is the step that has just ended.
    """
    run = config.run
    steps = [line for line in lines if line["step"] > 0]
    if not steps:
        return Judgement([], "", 1.0)
    now, before = _readings(steps, config), {reading.name: reading for reading in _readings(steps[:-1], config)}
    step = steps[-1]["step"]
    first = max(1, step - run.guard_window + 1)
    weight = steps[-1].get(TEACHER_WEIGHT, 1.0)
    warnings, stop = _skipped(steps, run)
    for reading in now:
        was = before.get(reading.name)
        where = f"steps {first}-{step}: {reading.name} is {reading.value:.4g}"
        if reading.beyond(reading.stop):
            teachers = config.objective.method == "dasd" and reading.field != "run.equal_rewards"
            if run.on_collapse == "anneal" and teachers:
                # Half at a time: a collapse that the teacher drives ends soon, and one that it does not costs little.
                weight = min(weight, steps[-1].get(TEACHER_WEIGHT, 1.0) / 2)
                left = f"the teacher's weight goes down to {weight:.4g} of objective.beta"
                warnings.append(f"warning: {where}, beyond {reading.at('stop')}; {left}")
            else:
                stop = stop or (
                    f"{where}, beyond {reading.at('stop')}. The last checkpoint stays. "
                    "Lower optim.learning_rate or objective.beta in a new --workdir, or set the level anew"
                )
        elif reading.beyond(reading.warn) and not (was and was.beyond(reading.warn)):
            warnings.append(f"warning: {where}, beyond {reading.at('warn')}")
    return Judgement(warnings, stop, weight)


def _skipped(steps: list[dict], run: RunGroup) -> tuple[list[str], str]:
    """Warnings and why to stop, of updates whose loss or gradient was not finite."""
    streak = _streak(steps, lambda line: line.get("optim/skipped_frac", 0.0) > 0)
    if not streak:
        return [], ""
    last = steps[-1]["step"]
    if streak < run.skipped_steps_stop:
        share = steps[-1]["optim/skipped_frac"]
        return [f"warning: step {last}: loss or gradient is not finite in {share:.0%} of its minibatches: skipped"], ""
    return [], (
        f"steps {last - streak + 1}-{last}: loss or gradient is not finite, and the updates were skipped: "
        f"run.skipped_steps_stop = {run.skipped_steps_stop}. Their batches lie in not_finite/ of the workdir. "
        "Lower optim.learning_rate or optim.grad_clip in a new --workdir"
    )


def _streak(steps: list[dict], holds: Callable[[dict], bool]) -> int:
    """For how many of the last steps it holds without a break."""
    return sum(1 for _ in itertools.takewhile(holds, reversed(steps)))


def _readings(steps: list[dict], config: Config) -> list[_Reading]:
    """What is watched, as far as the steps have it and fill a window."""
    window = steps[-config.run.guard_window :]
    if len(window) < config.run.guard_window:
        return []

    def mean(name: str) -> float | None:
        return float(np.mean([line[name] for line in window])) if all(name in line for line in window) else None

    length, at_start = mean("rollout/length_mean"), steps[0].get("rollout/length_mean")
    equal = _streak(steps, lambda line: line.get("reward/mixed_groups_frac", 1.0) == 0)
    arm, share = _weaker_arm(mean("router/attract_mass"), mean("router/repel_mass"), config)
    of = (
        ("run.entropy", "entropy/mean", mean("entropy/mean"), -1, "the policy hardly explores any more (nats a token)"),
        (
            "run.length",
            "rollout/length_mean over that of step 1",
            length / at_start if length is not None and at_start else None,
            -1,
            "responses have shrunk",
        ),
        ("run.repetition", "rollout/repeated_frac", mean("rollout/repeated_frac"), 1, "responses go round in circles"),
        (
            "run.repel_kl",
            "gap/repel_kl",
            mean("gap/repel_kl"),
            1,
            "tokens far from the teacher are pushed further (nats)",
        ),
        (
            "run.arm",
            f"the share of router/{arm}_mass in both arms",
            share,
            -1,
            "the teacher hardly works in this direction; look at objective.rho and objective.rho_side",
        ),
        (
            "run.equal_rewards",
            "steps in a row without a mixed group",
            float(equal),
            1,
            "the verifier teaches nothing",
        ),
        (
            "rollout.logp_gap_mean",
            "policy/logp_gap_mean",
            mean("policy/logp_gap_mean"),
            1,
            "sampler and score pass drift apart (nats)",
        ),
    )
    return [
        _Reading(name, value, field, _level(config, f"{field}_warn"), _level(config, f"{field}_stop"), sign, means)
        for field, name, value, sign, means in of
        if value is not None
    ]


def _level(config: Config, field: str) -> float:
    """0 (off) where there is none: what must not happen once is no guard's business but checked before the update."""
    group, name = field.split(".")
    return getattr(getattr(config, group), name, 0.0)


def _weaker_arm(attract: float | None, repel: float | None, config: Config) -> tuple[str, float | None]:
    """Its name and its share of both; of two empty ones 0, and None for routes that have one by design."""
    if attract is None or repel is None or config.objective.route not in TWO_ARMED:
        return "", None
    weaker = min(attract, repel)
    return "attract" if attract == weaker else "repel", weaker / (attract + repel) if weaker else 0.0
