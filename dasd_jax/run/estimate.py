"""What a run will take, from its configuration alone: evaluations, responses and tokens, at most."""

import dataclasses

from dasd_jax.config import Config


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of a whole run.

    Tokens are those of responses, every one at its full length of rollout.max_new_tokens.

    Attributes:
        evaluations: the steps after which held-out problems are answered; 0: before the first.
        generated: tokens sampled in training, without batches drawn again (rollout.resample).
        answered: tokens sampled in evaluations.
        scored: tokens read by the score pass, by the student and with each prompt of each teacher that it reads.
        trained: tokens in updates.
    """

    evaluations: tuple[int, ...]
    generated: int
    answered: int
    scored: int
    trained: int


def estimate(config: Config, evaluated: int) -> Estimate:
    """The estimate.

    Args:
        evaluated: problems of an evaluation.
    """
    run, group, method = config.run, config.rollout, config.method
    between = range(run.eval_every, run.steps, run.eval_every) if run.eval_every else ()
    evaluations = (0, *between, run.steps)
    views = method.views(config.hp)
    read = sum(views[name].count for name in method.scored(config.hp))
    sampled = run.steps * group.problems * group.rollouts * group.max_new_tokens if method.rollouts else 0
    return Estimate(
        evaluations=evaluations,
        generated=sampled,
        answered=len(evaluations) * evaluated * run.eval_samples * group.max_new_tokens,
        scored=(1 + read) * sampled,
        trained=sampled if method.rollouts else run.steps * group.problems * group.max_new_tokens,
    )
