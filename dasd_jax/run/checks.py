"""What has to hold before parameters are changed."""

from collections.abc import Callable

import numpy as np

from dasd_jax.config import Config
from dasd_jax.errors import TrainingError
from dasd_jax.objective.contract import NOISE

_NOISES = 3  # times the measured rounding that a difference may be rounding, too
_FLOAT32 = 1e-5  # nats; what float32 may leave between two paddings


def rescored(config: Config, step: int) -> bool:
    """Whether the score pass computes the student again in a step, or the sampler's own numbers stand.

    By the number of the step, so that a resumed run does the same. In float32 the two differ by rounding alone, which
    is checked in step 1 and every `run.rescore_every` steps; in bfloat16 and int8 they differ by more.
    """
    alike = config.model.compute_dtype == "float32" and not config.rollout.in_int8
    needed = not alike or config.method.rescored(config.hp)
    return needed or any((step - 1) % every == 0 for every in (config.run.rescore_every, config.run.noise_every))


def sampler_agrees(config: Config, step: int, metrics: dict[str, float]) -> None:
    """Refuses an update from rollouts whose log-probabilities the score pass does not confirm.

    Where the student is not scored again there is nothing to compare. Rollouts in int8 have limits of their own. Never
    on the largest gap: one token in thousands may sit on a rounding edge.

    Raises:
        TrainingError: the 99.9th percentile of the gap is too large, or the mean: larger than its field says and than
            three times what rounding alone makes.
    """
    rounding, rollout = _NOISES * metrics.get(NOISE, 0.0), config.rollout
    remedy = "rollout.weights and rollout.cache to compute" if rollout.in_int8 else "model.compute_dtype to float32"
    for name, least in (("mean", rounding), ("p999", 0.0)):
        field = f"{rollout.gap_levels}_{name}_max"
        gap, limit = metrics.get(f"policy/logp_gap_{name}", 0.0), getattr(config.guards, field)
        if not gap <= max(limit, least):
            raise TrainingError(
                f"step {step}: policy/logp_gap_{name} is {gap:.4g} nats > guards.{field} = {limit}: "
                f"sampler and score pass disagree, nothing was updated. Set {remedy} in a new --workdir"
            )


def views_agree(
    config: Config, step: int, noise: float, response_mask: np.ndarray, blank_gaps: Callable[[], dict]
) -> None:
    """Refuses to train where a teacher without privileged context is not the student.

    A template or a position that differs between the views would show at the first token of the response, and train.

    Args:
        noise: nats of a gap that are rounding.
        response_mask: bool[rows, R].
        blank_gaps: scores the rollouts with the student's prompts in the teachers' places and gives, by view, teacher
            minus student, f32[rows, R] in nats.

    Raises:
        TrainingError: at the first token they differ in the mean by more than three times the noise.
    """
    if not config.method.scored(config.hp):
        return
    limit = max(_NOISES * noise, _FLOAT32)
    for name, gap in blank_gaps().items():
        size = np.abs(gap[:, 0])[response_mask[:, 0]].mean()
        if not size <= limit:
            raise TrainingError(
                f"step {step}: without privileged context the {name} is {size:.4g} nats from the student at the first "
                f"token > {limit:.2g}, {_NOISES} times the rounding ({NOISE}): the two views differ in more than the "
                "context, nothing was updated"
            )
