"""One pass over the vocabulary with its own backward rule: logits live a piece at a time, and only in the pass.

By positions   a chunk of the response over the whole vocabulary: what needs normalised probabilities of every word.
By words       a block of the vocabulary over the whole response: log-sum-exp, which can be made online, and the
               gradient, for which every token's log-normaliser is known. From one block's logits, made again, come
               that block's own rows of the unembedding's gradient, finished in one product over all tokens, and its
               share of the hidden states' gradient.

Between forward and backward only the views, the tokens and a few numbers per token are kept. The idea of recomputing by
blocks from a stored log-sum-exp is that of arXiv 2205.14135 and, over the vocabulary, arXiv 2411.09009.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from dasd_jax import vocab
from dasd_jax.batch import Array
from dasd_jax.mesh import AXES, TRAIN, gather, left_to_sum, reshard, spec, sum_to_be
from dasd_jax.objective.divergence import Divergence

Outputs = tuple[Array, Array]  # hidden f32[rows, R, D] and unembedding [V, D]: what logits are made of
# Blocks are multiples of it: a tile of bfloat16 rows on a TPU, and the alignment that a GPU's matrix units ask for.
TILE = 16


def logp_and_divergence(
    student: Outputs,
    teachers: Sequence[Outputs],
    response: Array,
    divergence: Divergence | None,
    given,
    *,
    temperature: float,
    chunk: int,
) -> tuple[Array, Array | None]:
    """What `token_stats.token_logp_and_divergence` returns; without a divergence, and then without teachers, None."""
    forward, backward = (partial(rule, divergence, temperature, chunk) for rule in (_forward, _backward))
    fused = jax.custom_vjp(lambda *arguments: forward(*arguments)[0])
    fused.defvjp(forward, backward)
    response = reshard(response, "rows", None)
    given = jax.tree.map(
        lambda x: reshard(jnp.broadcast_to(x if x.ndim == 2 else x[:, None], response.shape), "rows", None), given
    )
    return fused(_placed(*student), tuple(_placed(*teacher) for teacher in teachers), response, given)


def _placed(hidden: Array, unembed: Array) -> Outputs:
    """Outputs in the layout of the pass: an unembedding that is split over fsdp is gathered here, once."""
    return reshard(hidden, "rows", None, None), gather(unembed, "vocab", "embed")


def _forward(divergence, temperature, chunk, student: Outputs, teachers, response, given):
    """The result, and what the backward pass needs: besides the arguments, a few numbers per token."""
    if divergence is None:
        logp, norm = _logp_and_norm(temperature, chunk, student, response)
        return (logp, None), (student, (), response, None, None, (norm,))

    def one_chunk(token: Array, given, student_hidden: Array, *teacher_hidden: Array):
        hidden, unembeds = (student_hidden, *teacher_hidden), [unembed for _, unembed in (student, *teachers)]
        (ls, norm), *others = (
            vocab.log_probs_and_norm(state, unembed, temperature)
            for state, unembed in zip(hidden, unembeds, strict=True)
        )
        lts, norms = tuple(lt for lt, _ in others), tuple(norm for _, norm in others)
        given = jax.tree.map(lambda x: x[..., None], given)
        sums = divergence.summary(ls, lts, given)
        total = jnp.sum(divergence.value(ls, lts, given, sums), axis=-1)
        # The gradient by a logit needs the sum of all slopes, which a block of words does not see.
        slopes = jnp.sum(divergence.slope(ls, lts, given, sums), axis=-1)
        return vocab.pick(ls, token), total, (slopes, sums), (norm, *norms)

    # By positions: a divergence needs normalised log-probabilities, which by words would take a sweep of its own.
    hidden = (state for state, _ in (student, *teachers))
    logp, total, sums, norms = in_chunks(one_chunk, chunk, response, given, *hidden)
    return (logp, total), (student, teachers, response, given, sums, norms)


def _backward(divergence, temperature, chunk, residuals, cotangents):
    """Gradients of the student's outputs; the teachers' and `given` are constants."""
    hidden = residuals[0][0]
    sweep = jax.shard_map(
        partial(_gradient_sweep, divergence, temperature, _num_blocks(hidden, chunk)),
        out_specs=(spec("vocab", "rows", None, None), sum_to_be("vocab", None)),
    )
    # The devices' parts of d_hidden lie along a leading axis; those of d_unembed are summed by `gather`'s gradient.
    d_hidden, d_unembed = sweep(residuals, cotangents)
    return (jnp.sum(d_hidden, axis=0).astype(hidden.dtype), d_unembed), None, None, None


def _num_blocks(hidden: Array, chunk: int) -> int:
    """As many blocks of words as there are chunks of positions: either way the same number of logits at a time."""
    return -(-hidden.shape[1] // chunk)


def _logp_and_norm(temperature: float, chunk: int, student: Outputs, response: Array) -> tuple[Array, Array]:
    """Log-probability and log-normaliser of each token: log-sum-exp online over blocks, then over devices."""
    sweep = jax.shard_map(
        partial(_norm_sweep, temperature, _num_blocks(student[0], chunk)),
        out_specs=(spec("vocab", "rows", None), spec("vocab", "rows", None)),
    )
    norms, drawn = sweep(student, response)
    norm = jax.nn.logsumexp(norms, axis=0)
    return jnp.sum(drawn, axis=0) - norm, norm


def _norm_sweep(temperature: float, num_blocks: int, student: Outputs, response: Array) -> tuple[Array, Array]:
    """One device's log-normaliser over its own words, and the logit of the drawn token or 0: f32[1, rows, R] each."""
    hidden, unembed = student
    response = response - _first_word(unembed)

    def block(start: Array, is_new: Array, carry: tuple[Array, Array, Array]):
        peak, mass, drawn = carry
        words = jax.lax.dynamic_slice_in_dim(unembed, start, is_new.size)
        logits = jnp.where(is_new, vocab.logits(hidden, words, temperature), -jnp.inf)
        new_peak = jnp.maximum(peak, jnp.max(logits, axis=-1))
        new_mass = jnp.sum(jnp.exp(logits - new_peak[..., None]), axis=-1)
        drawn += jnp.sum(jnp.where(_is_drawn(response, start, is_new) & is_new, logits, 0.0), axis=-1)
        return new_peak, mass * jnp.exp(peak - new_peak) + new_mass, drawn

    zeros = jnp.zeros(response.shape, jnp.float32)
    peak, mass, drawn = _over_blocks(block, (zeros - jnp.inf, zeros, zeros), unembed, num_blocks)
    return (peak + jnp.log(mass))[None], drawn[None]


def _gradient_sweep(divergence, temperature: float, num_blocks: int, residuals, cotangents) -> Outputs:
    """One device's parts of (d_hidden f32[1, rows, R, D], d_unembed [1, V, D]), from its own rows and words.

    With p = p_student, d_logits(v) = (1[v = token] - p(v)) · d_logp + (slope(v) - p(v) · Σ_w slope(w)) · d_divergence,
    over the temperature. It is made in float32 and enters its two products in the dtype of the unembedding. To that the
    hidden states are rounded as well: the logits made again are those of the forward pass to the gradient's precision.
    """
    (hidden, unembed), teachers, response, given, sums, norms = residuals
    hidden = hidden.astype(unembed.dtype)
    teachers = tuple((state.astype(words.dtype), words) for state, words in teachers)
    d_logp, d_divergence = jax.tree.map(lambda x: x[..., None] / temperature, cotangents)
    response = response - _first_word(unembed)
    if divergence is not None:
        slopes, sums = sums[0][..., None], sums[1]
        given = jax.tree.map(lambda x: x[..., None], given)

    def block(start: Array, is_new: Array, gradients: Outputs) -> Outputs:
        d_hidden, d_unembed = gradients

        def log_probs(outputs: Outputs, norm: Array) -> tuple[Array, Array]:
            words = jax.lax.dynamic_slice_in_dim(outputs[1], start, is_new.size)
            return words, vocab.logits(outputs[0], words, temperature) - norm[..., None]

        words, ls = log_probs((hidden, unembed), norms[0])
        p = jnp.exp(ls)
        d_logits = p * -d_logp
        if divergence is not None:
            lts = tuple(log_probs(teacher, norm)[1] for teacher, norm in zip(teachers, norms[1:], strict=True))
            d_logits += d_divergence * (divergence.slope(ls, lts, given, sums) - p * slopes)
        at_token = jnp.where(_is_drawn(response, start, is_new), d_logp, 0.0)
        d_logits = (at_token + d_logits).astype(unembed.dtype)
        d_words = vocab.product("rsd,rsv->dv", hidden, d_logits).astype(unembed.dtype)
        return (
            d_hidden + vocab.product("rsv,vd->rsd", d_logits, jnp.where(is_new[:, None], words, 0)),
            jax.lax.dynamic_update_slice_in_dim(d_unembed, d_words, start, axis=1),
        )

    zeros = (jnp.zeros(hidden.shape, jnp.float32), jnp.zeros(unembed.shape[::-1], unembed.dtype))
    d_hidden, d_unembed = _over_blocks(block, zeros, unembed, num_blocks)
    return d_hidden[None], left_to_sum(d_unembed.T)


def _over_blocks(block: Callable, carry, unembed: Array, num_blocks: int):
    """carry → block(start, is_new bool[words], carry) over a device's words, about num_blocks times.

    All blocks are of one size, so the last one may begin with words of the one before, which are not new.
    """
    num_words = unembed.shape[0]
    size = min(num_words, -(-num_words // (num_blocks * TILE)) * TILE)

    def step(i: Array, carry):
        start = jnp.minimum(i * size, num_words - size)
        return block(start, start + jnp.arange(size) >= i * size, carry)

    return jax.lax.fori_loop(0, -(-num_words // size), step, jax.lax.pcast(carry, AXES, to="varying"))


def _first_word(unembed: Array) -> Array:
    """The id of the first word that this device holds."""
    return jax.lax.axis_index(TRAIN["vocab"]) * unembed.shape[0]


def _is_drawn(response: Array, start: Array, is_new: Array) -> Array:
    """Where a block's word is the drawn token, both counted from the device's first: bool[rows, R, words]."""
    return response[..., None] == start + jnp.arange(is_new.size)


def in_chunks(function: Callable, chunk: int, *arrays):
    """function over blocks of `chunk` positions of trees of arrays [rows, R, ...], joined again along R.

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
    return jax.tree.map(join, jax.lax.map(lambda xs: body(*xs), jax.tree.map(cut, arrays)))
