"""What student and teacher would write in the place of each token of a response."""

from functools import partial

import jax
import jax.numpy as jnp

from dasd_jax import vocab
from dasd_jax.batch import Array, Params, PromptBatch, TeacherBatch
from dasd_jax.learner import passes
from dasd_jax.learner.step_config import StepConfig
from dasd_jax.mesh import merge_rows, reshard
from dasd_jax.objective.fused_pass import in_chunks

_NUM_LIKELIEST = 32  # of the student's tokens in one place of each response


@partial(jax.jit, static_argnums=0)
def choices(
    config: StepConfig,
    params: Params,
    prompts: PromptBatch,
    shown: TeacherBatch,
    response: Array,
    mask: Array,
    at: Array,
) -> tuple[Array, Array, Array, Array]:
    """What student and teacher say of each response token, without an array [rows, R, V].

    Args:
        shown: one prompt a problem or a row; of several for a row the first.
        response, mask: i32 and bool [rows, R].
        at: i32[rows], a place in each response.

    Returns:
        (the student's entropy f32[rows, R] in nats, the student's likeliest token i32[rows, R], the teacher's, and the
        student's likeliest tokens in the place `at`, best first, i32[rows, N]).
    """
    if shown.teacher_prompt.ndim == 4:
        shown = shown.replace(
            teacher_prompt=merge_rows(shown.teacher_prompt[:, :, 0]),
            teacher_prompt_mask=merge_rows(shown.teacher_prompt_mask[:, :, 0]),
        )
    prompts, views = passes.of_one_width(prompts, {"teacher": shown})
    shown = views["teacher"]
    student, unembed = passes.outputs(
        config, params, prompts.student_prompt, prompts.student_prompt_mask, response, mask
    )
    teacher, _ = passes.outputs(config, params, shown.teacher_prompt, shown.teacher_prompt_mask, response, mask)

    def of_chunk(student: Array, teacher: Array) -> tuple[Array, Array, Array]:
        ls, lt = (vocab.log_probs(state, unembed, config.temperature) for state in (student, teacher))
        return vocab.entropy(ls), first_choice(ls), first_choice(lt)

    entropy, own, informed = in_chunks(of_chunk, config.chunk(response.shape[0]), student, teacher)
    here = (jnp.arange(response.shape[1]) == at[:, None])[..., None]
    state = jnp.sum(jnp.where(here, student, 0.0), axis=1, keepdims=True)
    logp = reshard(vocab.log_probs(state, unembed, config.temperature)[:, 0], "rows", None)
    _, likeliest = jax.lax.top_k(logp, min(_NUM_LIKELIEST, logp.shape[-1]))
    return entropy, own, informed, likeliest


def first_choice(logp: Array) -> Array:
    """The likeliest token, of equally likely ones that of the lowest id: f32[..., V] → i32[...].

    By a maximum and a minimum instead of an arg-max: it stays local if the vocabulary is sharded.
    """
    ids = jax.lax.broadcasted_iota(jnp.int32, logp.shape, logp.ndim - 1)
    best = jnp.max(logp, axis=-1, keepdims=True)
    return jnp.min(jnp.where(logp == best, ids, logp.shape[-1]), axis=-1)
