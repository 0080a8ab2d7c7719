"""Statistics of both views of every response token, over the whole vocabulary and without an array [rows, R, V]."""

from collections.abc import Callable

from dasd_jax import vocab
from dasd_jax.batch import Array, TokenStats
from dasd_jax.objective import fused_pass


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
        TokenStats, every field f32[rows, R] in nats. Differentiable in both views, by making the logits of each
        chunk again; losses stand on the functions below, whose gradient is fused.
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
    return fused_pass.in_chunks(stats, chunk, student_hidden, response, *teacher)


def token_logp(hidden: Array, unembed: Array, response: Array, *, temperature: float, chunk: int) -> Array:
    """Log-probability of each response token in one view, differentiable in it; arguments as in `token_stats`.

    Returns:
        f32[rows, R] in nats.
    """
    logp, _ = fused_pass.logp_and_expectation(
        (hidden, unembed), None, response, None, None, temperature=temperature, chunk=chunk
    )
    return logp


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
        value: elementwise over f32[rows, positions, words] of the two log-probabilities, with row_constant as
            f32[rows, 1, 1]; it closes over no traced array.
        row_constant: f32[rows].

    Returns:
        (logp f32[rows, R] in nats, expectation f32[rows, R] in the value's unit), differentiable in the student's
        hidden states and unembedding; gradients of their dtype, summed in float32 over the tokens of a device.
    """
    student, teacher = (student_hidden, student_unembed), (teacher_hidden, teacher_unembed)
    return fused_pass.logp_and_expectation(
        student, teacher, response, value, row_constant, temperature=temperature, chunk=chunk
    )
