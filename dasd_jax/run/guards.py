"""Guards: what a run watches in its own numbers, when it warns, and when it stops or lowers the teacher's weight.

Everything is judged from the lines of metrics.jsonl, which a resumed run finds cut back to its checkpoint: there is no
state to save, and a run that was killed judges as if it had not been.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from dasd_jax.config import Config, GuardsGroup
from dasd_jax.objective.contract import mean_guard

TEACHER_WEIGHT = "guard/teacher_weight"  # in the log: the share of the teacher's part that was in force


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What the numbers so far call for.

    Attributes:
        warnings: one line each, with the numbers; a line is given when its level is crossed, and not again before the
            number has come back.
        stop: why the run must not go on, in one line; "" where it may.
        teacher_weight: the share of the teacher's part for the next step, in [0, 1].
    """

    warnings: list[str]
    stop: str
    teacher_weight: float


@dataclasses.dataclass(frozen=True)
class _Reading:
    """A watched number over a window: warns beyond `warn`, acts beyond `stop`; `sign` is 1 where high is bad."""

    name: str
    value: float
    reads: tuple[str, ...]  # numbers that not every step has
    steps: int  # of the window that have it
    level: str  # of its fields in the group `guards`, without _warn and _stop
    warn: float
    stop: float
    sign: int
    means: str

    def at(self, kind: str) -> str:
        return f"guards.{self.level}_{kind} = {getattr(self, kind)}: {self.means}"

    @property
    def side(self) -> str:
        """On which side of a level it is bad."""
        return "above" if self.sign > 0 else "below"

    def beyond(self, level: float) -> bool:
        return bool(level) and self.sign * (self.value - level) > 0


# Of every method; more, which depend on the config or are no means over a window, are added in `_readings`.
_COMMON = (
    mean_guard(
        "entropy", "entropy/mean", high_is_bad=False, means="the policy hardly explores any more (nats a token)"
    ),
    mean_guard("repetition", "rollout/repeated_frac", high_is_bad=True, means="responses repeat themselves"),
)


def judge(lines: Sequence[dict], config: Config) -> Judgement:
    """The judgement on the steps so far.

    Args:
        lines: the objects of metrics.jsonl, oldest first; the last one is the step that has just ended.
    """
    levels = config.guards
    steps = [line for line in lines if line["step"] > 0]
    if not steps:
        return Judgement([], "", 1.0)
    step = steps[-1]["step"]
    first = max(1, step - levels.window + 1)
    last_weight = weight = steps[-1].get(TEACHER_WEIGHT, 1.0)
    warnings, stop = _skipped(steps, levels)
    stop = stop or _empty(steps, levels)
    for reading in _readings(steps, config):
        of = "" if reading.steps == levels.window else f"{reading.steps} of the "
        where = f"{of}steps {first}-{step}: {reading.name} is {reading.value:.4g}"
        if reading.beyond(reading.stop):
            if levels.on_collapse == "anneal" and config.method.anneals and reading.level != "equal_rewards":
                # Half at a time: a collapse that the teacher drives ends soon, and one that it does not costs little.
                weight = min(weight, last_weight / 2)
                lowered = f"the teacher's weight falls to {weight:.4g} of its value"
                warnings.append(f"warning: {where}, {reading.side} {reading.at('stop')}; {lowered}")
            else:
                stop = stop or (
                    f"{where}, {reading.side} {reading.at('stop')}. The last checkpoint stays. "
                    "Lower optim.learning_rate or the teacher's weight in a new --workdir, or change the level"
                )
        elif reading.beyond(reading.warn) and not _was_beyond(reading, steps, config):
            warnings.append(f"warning: {where}, {reading.side} {reading.at('warn')}")
    return Judgement(warnings, stop, weight)


def _was_beyond(reading: _Reading, steps: list[dict], config: Config) -> bool:
    """Whether it was beyond its level when its numbers were last known before: not every step has every number."""
    earlier = steps[:-1]
    while earlier and not all(name in earlier[-1] for name in reading.reads):
        earlier.pop()
    return any(each.name == reading.name and each.beyond(each.warn) for each in _readings(earlier, config))


def _skipped(steps: list[dict], levels: GuardsGroup) -> tuple[list[str], str]:
    """Warnings and why to stop, of updates whose loss or gradient was not finite."""
    streak = _streak(steps, lambda line: line.get("optim/skipped_frac", 0.0) > 0)
    if not streak:
        return [], ""
    last = steps[-1]["step"]
    if streak < levels.skipped_steps_stop:
        share = steps[-1]["optim/skipped_frac"]
        return [f"warning: step {last}: loss or gradient is not finite in {share:.0%} of its minibatches: skipped"], ""
    return [], (
        f"steps {last - streak + 1}-{last}: loss or gradient is not finite, and the updates were skipped: "
        f"guards.skipped_steps_stop = {levels.skipped_steps_stop}. Their batches are in not_finite/ of the workdir. "
        "Lower optim.learning_rate or optim.grad_clip in a new --workdir"
    )


def _empty(steps: list[dict], levels: GuardsGroup) -> str:
    """Why to stop: nothing has been in the loss for too long."""
    streak = _streak(steps, lambda line: line.get("optim/empty_frac", 0.0) == 1)
    if streak < levels.empty_steps_stop:
        return ""
    last = steps[-1]["step"]
    return (
        f"steps {last - streak + 1}-{last}: no token was in the loss and nothing was updated: "
        f"guards.empty_steps_stop = {levels.empty_steps_stop}. "
        "Raise rollout.max_new_tokens, or set objective.truncated to zero, in a new --workdir"
    )


def _streak(steps: list[dict], holds: Callable[[dict], bool]) -> int:
    """For how many of the last steps it holds without a break."""
    return sum(1 for _ in itertools.takewhile(holds, reversed(steps)))


def _readings(steps: list[dict], config: Config) -> list[_Reading]:
    """What is watched, as far as the last step has it and the steps fill a window.

    A number that the last step does not have has not changed: it neither warns nor lowers a weight again.
    """
    window = steps[-config.guards.window :]
    if len(window) < config.guards.window:
        return []
    found = []

    def add(
        reading: tuple[str, float] | None, level: str, high_is_bad: bool, means: str, reads=(), count=len(window)
    ) -> None:
        if reading is not None:
            warn, stop = (getattr(config.guards, f"{level}_{kind}", 0.0) for kind in ("warn", "stop"))
            found.append(_Reading(*reading, tuple(reads), count, level, warn, stop, 1 if high_is_bad else -1, means))

    gap = mean_guard(
        f"{config.rollout.gap_levels}_mean",
        "policy/logp_gap_mean",
        high_is_bad=True,
        means="sampler and score pass drift apart (nats)",
    )
    for guard in (*_COMMON, gap, *config.method.guards):
        # What the score pass says of the student is not known of every step (run.rescore_every).
        known = [line for line in window if all(name in line for name in guard.reads)]
        if known and known[-1] is window[-1]:
            means = {name: float(np.mean([line[name] for line in known])) for name in guard.reads}
            reading = guard.reading(means, config.hp)
            add(reading, guard.level, guard.high_is_bad, guard.means, guard.reads, len(known))
    for name, level, high_is_bad, means in (
        ("rollout/length_mean", "length", False, "responses have shrunk"),
        ("rollout/length_p95", "tail", True, "long responses grow, often the first sign of a collapse"),
    ):
        lengths = [line[name] for line in (steps[0], *window) if name in line]
        if len(lengths) == len(window) + 1 and lengths[0]:
            add((f"{name} over that of step 1", float(np.mean(lengths[1:])) / lengths[0]), level, high_is_bad, means)
    equal = _streak(steps, lambda line: line.get("reward/mixed_groups_frac", 1.0) == 0)
    counted = "steps in a row without a mixed group", float(equal)
    add(counted, "equal_rewards", high_is_bad=True, means="the verifier gives no learning signal")
    return found
