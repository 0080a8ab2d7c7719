"""Mean log p that a teacher gives the reference answers right after its prompt: how much the prompt gives away."""

import math
from functools import partial

import jax
import jax.numpy as jnp

from dasd_jax.batch import Array, Params, TeacherBatch
from dasd_jax.learner import passes
from dasd_jax.learner.batching import map_by_length
from dasd_jax.learner.step_config import StepConfig
from dasd_jax.mesh import merge_rows, split_rows
from dasd_jax.objective.masked import masked_mean
from dasd_jax.objective.token_stats import token_stats

ANSWER_TOKENS = 64  # of an answer, at most, that are scored


@partial(jax.jit, static_argnames=("config",))
def answer_logp(
    config: StepConfig, params: Params, copies: dict[str, Params], shown: TeacherBatch, answer: Array, mask: Array
) -> Array:
    """Mean log-probability of the reference answers' tokens right after the prompts of the view `Method.probe`.

    Args:
        params, copies: those of `score_step`.
        shown: the view's prompts, one per problem; problems without a context are left out.
        answer, mask: [B, A], right-padded.

    Returns:
        f32[] in nats a token, every problem counting alike; NaN where none has a context.
    """

    def logp(width: int, part) -> tuple[Array, tuple]:
        shown, *written = part
        response, mask = (merge_rows(x[..., :width]) for x in written)
        outputs = passes.teacher_outputs(config, params, copies, config.method.probe, shown, 0, response, mask)
        chunk = config.chunk(response.shape[0])
        # Not token_logp: the single block of words that few tokens come to took XLA 105 s to compile, this 9 s.
        return token_stats(outputs, (), response, temperature=config.temperature, chunk=chunk).logp, ()

    by_problem = partial(split_rows, group=1)
    scored, _, _ = map_by_length(
        logp,
        math.gcd(config.parts, len(mask) // config.row_shards),
        1,
        (mask.shape[1],),
        by_problem(mask),
        (shown, by_problem(answer), by_problem(mask)),
    )
    counts = shown.shown & jnp.any(mask, axis=1)
    mean = masked_mean(masked_mean(scored, mask, axis=1), counts)
    return jnp.where(jnp.any(counts), mean, jnp.nan)
