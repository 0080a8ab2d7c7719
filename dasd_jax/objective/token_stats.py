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
    """One teacher's statistics; f32[rows, R] in nats. The divergences are None without a student."""

    logp: Array  # of the sampled token
    entropy: Array
    forward_kl: Array | None  # KL(teacher || student)
    reverse_kl: Array | None  # KL(student || teacher)


@struct.dataclass
class TokenStats:
    """All of log_softmax(logits / temperature), before top-k and top-p; f32[rows, R] in nats.

    Padding positions hold finite, meaningless values. Without a student its own are None.
    """

    logp: Array | None  # of the sampled token
    entropy: Array | None
    teachers: tuple[TeacherStats, ...]


def token_stats(
    student: Outputs | None, teachers: Sequence[Outputs], response: Array, *, temperature: float, chunk: int
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
    of_student = () if student is None else (student,)
    outputs = (*of_student, *teachers)

    def stats(token: Array, *states: Array) -> TokenStats:
        logps = [
            vocab.log_probs(state, unembed, temperature) for state, (_, unembed) in zip(states, outputs, strict=True)
        ]
        ls, lts = (None, logps) if student is None else (logps[0], logps[1:])
        return TokenStats(
            logp=None if ls is None else vocab.pick(ls, token),
            entropy=None if ls is None else vocab.entropy(ls),
            teachers=tuple(
                TeacherStats(
                    vocab.pick(lt, token),
                    vocab.entropy(lt),
                    *((None, None) if ls is None else (vocab.kl(lt, ls), vocab.kl(ls, lt))),
                )
                for lt in lts
            ),
        )

    return fused_pass.in_chunks(stats, chunk, response, *(state for state, _ in outputs))


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
