"""Statistics of student and teachers at every response token, over the whole vocabulary, without [rows, R, V]."""

from collections.abc import Sequence

from flax import struct

from dasd_jax import vocab
from dasd_jax.batch import Array
from dasd_jax.objective import fused_pass
from dasd_jax.objective.divergence import Divergence
from dasd_jax.objective.fused_pass import Outputs


@struct.dataclass
class TeacherStats:
    """One teacher's statistics; f32[rows, R] in nats."""

    logp: Array  # of the sampled token
    entropy: Array
    forward_kl: Array  # KL(teacher || student)
    reverse_kl: Array  # KL(student || teacher)


@struct.dataclass
class TokenStats:
    """All of log_softmax(logits / temperature), before top-k and top-p; f32[rows, R] in nats.

    Padding positions hold finite, meaningless values.
    """

    logp: Array  # of the sampled token
    entropy: Array
    teachers: tuple[TeacherStats, ...]


def token_stats(
    student: Outputs, teachers: Sequence[Outputs], response: Array, *, temperature: float, chunk: int
) -> TokenStats:
    """Log-probability of the sampled token, entropy of every view, and the divergences from each teacher.

    Args:
        student, teachers: hidden states [rows, R, D] that predict each response token, and the unembedding [V, D].
        response: i32[rows, R].
        temperature: divides the logits of all views; positive.
        chunk: positions of the response at a time; memory grows with rows * chunk * V.

    Returns:
        TokenStats. Differentiable in all outputs, by recomputing the logits of each chunk; losses use the functions
        below, whose gradient is fused.
    """

    def stats(state: Array, token: Array, *teacher_states: Array) -> TokenStats:
        ls = vocab.log_probs(state, student[1], temperature)
        lts = [
            vocab.log_probs(teacher_state, unembed, temperature)
            for teacher_state, (_, unembed) in zip(teacher_states, teachers, strict=True)
        ]
        return TokenStats(
            logp=vocab.pick(ls, token),
            entropy=vocab.entropy(ls),
            teachers=tuple(
                TeacherStats(vocab.pick(lt, token), vocab.entropy(lt), vocab.kl(lt, ls), vocab.kl(ls, lt)) for lt in lts
            ),
        )

    return fused_pass.in_chunks(stats, chunk, student[0], response, *(state for state, _ in teachers))


def token_logp(student: Outputs, response: Array, *, temperature: float, chunk: int) -> Array:
    """Log-probability of each response token in one view, differentiable in it; arguments as in `token_stats`.

    Returns:
        f32[rows, R] in nats.
    """
    logp, _ = fused_pass.logp_and_divergence(student, (), response, None, None, temperature=temperature, chunk=chunk)
    return logp


def token_logp_and_divergence(
    student: Outputs,
    teachers: Sequence[Outputs],
    response: Array,
    divergence: Divergence,
    given,
    *,
    temperature: float,
    chunk: int,
) -> tuple[Array, Array]:
    """Log-probability of each response token, and a divergence from the teachers over the vocabulary.

    Args:
        teachers: in the order of `divergence.views`; constants.
        given: the divergence's constants, a tree of f32[rows] or f32[rows, R].

    Returns:
        (logp f32[rows, R] in nats, Σ_v f(v) f32[rows, R]), differentiable in the student's outputs; gradients of their
        dtype, summed in float32 over the tokens of a device.
    """
    return fused_pass.logp_and_divergence(
        student, teachers, response, divergence, given, temperature=temperature, chunk=chunk
    )
