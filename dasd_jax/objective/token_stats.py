"""Statistics of both views of every response token, over the whole vocabulary and without an array [rows, R, V].

The response is cut into chunks of positions; each chunk's logits live only while its few numbers are made, and the
backward pass makes them again.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dasd_jax import vocab
from dasd_jax.batch import Array, TokenStats


def token_stats(
    student_hidden: Array,
    student_unembed: Array,
    teacher_hidden: Array | None,
    teacher_unembed: Array | None,
    response: Array,
    *,
    temperature: float,
    chunk: int,
) -> TokenStats:
    """Log-probability of the sampled token, entropy of both views, and the divergences between them.

    Args:
        student_hidden, teacher_hidden: [rows, R, D], the state that predicts each response token in each view.
        student_unembed, teacher_unembed: [V, D]. Without a teacher both of its arguments are None, and so are the
            fields that need it.
        response: i32[rows, R].
        temperature: divides the logits of both views; positive.
        chunk: positions of the response at a time; memory grows with rows * chunk * V.

    Returns:
        TokenStats, every field f32[rows, R] in nats. Differentiable in both views; the caller stops the teacher's.
    """

    def stats(student: Array, token: Array, teacher: Array | None = None) -> TokenStats:
        student_logp = vocab.log_probs(student, student_unembed, temperature)
        if teacher is None:
            return TokenStats(vocab.pick(student_logp, token), vocab.entropy(student_logp))
        teacher_logp = vocab.log_probs(teacher, teacher_unembed, temperature)
        return TokenStats(
            student_logp=vocab.pick(student_logp, token),
            student_entropy=vocab.entropy(student_logp),
            teacher_logp=vocab.pick(teacher_logp, token),
            teacher_entropy=vocab.entropy(teacher_logp),
            forward_kl=vocab.kl(teacher_logp, student_logp),
            reverse_kl=vocab.kl(student_logp, teacher_logp),
        )

    teacher = () if teacher_hidden is None else (teacher_hidden,)
    return _in_chunks(stats, chunk, student_hidden, response, *teacher)


def token_logp(hidden: Array, unembed: Array, response: Array, *, temperature: float, chunk: int) -> Array:
    """Log-probability of each response token in one view: f32[rows, R] in nats, arguments as in `token_stats`."""

    def logp(hidden: Array, token: Array) -> Array:
        return vocab.pick(vocab.log_probs(hidden, unembed, temperature), token)

    return _in_chunks(logp, chunk, hidden, response)


def token_logp_and_expectation(
    student_hidden: Array,
    student_unembed: Array,
    teacher_hidden: Array,
    teacher_unembed: Array,
    response: Array,
    value: Callable[[Array, Array, Array], Array],
    row_constant: Array,
    *,
    temperature: float,
    chunk: int,
) -> tuple[Array, Array]:
    """Log-probability of each response token, and the student's expectation of a value over the vocabulary.

    expectation = Σ_v p_student(v) · stop_gradient(value(student_logp(v), teacher_logp(v), row_constant)),
    whose gradient is the exact expectation, over the token that is drawn, of value · ∇ log p_student(token).

    Args:
        value: elementwise over f32[rows, C, V] of the two log-probabilities, with row_constant as f32[rows, 1, 1].
        row_constant: f32[rows].

    Returns:
        (logp f32[rows, R] in nats, expectation f32[rows, R] in the value's unit).
    """

    def both(student: Array, teacher: Array, token: Array) -> tuple[Array, Array]:
        student_logp = vocab.log_probs(student, student_unembed, temperature)
        teacher_logp = vocab.log_probs(teacher, teacher_unembed, temperature)
        values = jax.lax.stop_gradient(value(student_logp, teacher_logp, row_constant[:, None, None]))
        return vocab.pick(student_logp, token), jnp.sum(jnp.exp(student_logp) * values, axis=-1)

    return _in_chunks(both, chunk, student_hidden, teacher_hidden, response)


def _in_chunks(function: Callable, chunk: int, *arrays: Array):
    """function over blocks of `chunk` positions of arrays [rows, R, ...], joined again along R.

    Checkpointed: keeping the logits of every chunk for the backward pass would undo the chunking.
    """
    width = arrays[0].shape[1]
    chunk = min(chunk, width)

    def cut(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -width % chunk), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    def join(x: Array) -> Array:
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :width]

    body = jax.checkpoint(function, prevent_cse=False)
    if chunk == width:
        return body(*arrays)
    return jax.tree.map(join, jax.lax.map(lambda xs: body(*xs), tuple(cut(x) for x in arrays)))
