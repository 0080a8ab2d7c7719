"""Sampling over the KV cache: prefill once per problem, then one token a row and step until every row has stopped."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from dasd_jax import vocab
from dasd_jax.batch import Array, Params, PromptBatch, RolloutBatch
from dasd_jax.mesh import ROLLOUT, reshard
from dasd_jax.model import params as param_table
from dasd_jax.model import transformer
from dasd_jax.model.config import ModelConfig

PURPOSES = {"train": 0, "eval": 1, "generate": 2}


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to sample; hashable, so that it is a static argument of jitted functions."""

    rollouts: int  # G, per problem
    max_new_tokens: int  # R
    stop_ids: tuple[int, ...]  # each of them ends a response
    pad_id: int
    temperature: float = 1.0  # 0 takes the arg-max, with log-probabilities at temperature 1
    top_k: int = 0  # keep the k likeliest tokens; 0 keeps all
    top_p: float = 1.0  # keep the smallest set of likeliest tokens with this mass


@struct.dataclass
class SamplerState:
    """The loop's state. Invariant: `position` tokens of every row are written and all but the last of them are cached.

    Rows that have finished go on with padding tokens, which nothing reads.
    """

    position: Array  # i32[]
    response: Array  # i32[rows, R]
    response_mask: Array  # bool[rows, R]
    logp: Array  # f32[rows, R]
    entropy: Array  # f32[rows, R]
    stop_id: Array  # i32[rows], the stop token that ended the row, or -1
    cache: transformer.KVCache

    @property
    def finished(self) -> Array:
        """bool[rows]."""
        return self.stop_id >= 0


def row_keys(seed: int, purpose: str, step: Array, example_id: Array, rollouts: int) -> Array:
    """One key a row, folded from (seed, purpose, step, example_id, rollout): never stored, always found again.

    Args:
        purpose: train | eval | generate.
        step: i32[].
        example_id: i32[B].

    Returns:
        key[B*rollouts], problem-major; the position of a token is folded in where it is drawn.
    """
    base = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), PURPOSES[purpose]), step)
    examples = jnp.repeat(reshard(example_id, None), rollouts, total_repeat_length=example_id.shape[0] * rollouts)
    turns = jnp.tile(jnp.arange(rollouts), example_id.shape[0])
    return jax.vmap(lambda example, turn: jax.random.fold_in(jax.random.fold_in(base, example), turn))(examples, turns)


@partial(jax.jit, static_argnames=("config", "sampling", "purpose"))
def rollout(
    config: ModelConfig,
    sampling: Sampling,
    params: Params,
    prompts: PromptBatch,
    seed: Array,
    purpose: str,
    step: Array,
) -> RolloutBatch:
    """G responses to each of B problems, exactly as sampled.

    Args:
        params: in the training layout; re-laid and cast once for the whole loop.
        seed, step: i32[]; with the example ids they decide every draw.

    Returns:
        RolloutBatch of B*G rows, problem-major.
    """
    params = param_table.relayout(config, params, ROLLOUT)
    keys = row_keys(seed, purpose, step, prompts.example_id, sampling.rollouts)
    state = begin(config, sampling, params, prompts, keys)
    state = advance(config, sampling, params, state, keys, sampling.max_new_tokens)
    rows, problems = state.response.shape[0], prompts.example_id.shape[0]
    return RolloutBatch(
        response=state.response,
        response_mask=state.response_mask,
        sampled_logp=state.logp,
        sampled_entropy=state.entropy,
        prompt_index=reshard(jnp.arange(rows, dtype=jnp.int32) // sampling.rollouts, "rows"),
        rollout_index=reshard(jnp.tile(jnp.arange(sampling.rollouts, dtype=jnp.int32), problems), "rows"),
        finished=state.finished,
        stop_id=state.stop_id,
    )


def begin(config: ModelConfig, sampling: Sampling, params: Params, prompts: PromptBatch, keys: Array) -> SamplerState:
    """Prefills the prompts, shares their cache among the rollouts and draws the first token of every row."""
    mask = prompts.student_prompt_mask
    positions = transformer.prompt_positions(mask)
    hidden, cache = transformer.forward(config, params, prompts.student_prompt, positions, mask)
    rows, width = mask.shape[0] * sampling.rollouts, sampling.max_new_tokens

    def filled(value, dtype, *shape):
        return reshard(jnp.full((rows, *shape), value, dtype), "rows", *(None for _ in shape))

    state = SamplerState(
        position=jnp.zeros((), jnp.int32),
        response=filled(sampling.pad_id, jnp.int32, width),
        response_mask=filled(False, bool, width),
        logp=filled(0.0, jnp.float32, width),
        entropy=filled(0.0, jnp.float32, width),
        stop_id=filled(-1, jnp.int32),
        cache=transformer.open_response(cache, sampling.rollouts, width),
    )
    last = transformer.repeat_rows(hidden[:, -1:], sampling.rollouts)
    return _draw(config, sampling, params, state, last, keys)


def advance(
    config: ModelConfig, sampling: Sampling, params: Params, state: SamplerState, keys: Array, until: int | Array
) -> SamplerState:
    """Goes on until `until` tokens are written, the response is full, or every row has stopped."""
    until = jnp.minimum(until, sampling.max_new_tokens)
    prompt_length = transformer.repeat_rows(state.cache.prompt.length, sampling.rollouts)

    def more(state: SamplerState) -> Array:
        return (state.position < until) & ~jnp.all(state.finished)

    def step(state: SamplerState) -> SamplerState:
        last = state.position - 1
        token = jax.lax.dynamic_slice_in_dim(state.response, last, 1, axis=1)
        positions = (prompt_length + last)[:, None]
        hidden, cache = transformer.forward(config, params, token, positions, ~state.finished[:, None], state.cache)
        return _draw(config, sampling, params, state.replace(cache=cache), hidden, keys)

    return jax.lax.while_loop(more, step, state)


def _draw(
    config: ModelConfig, sampling: Sampling, params: Params, state: SamplerState, hidden: Array, keys: Array
) -> SamplerState:
    """Draws the token at `position` of every row from hidden [rows, 1, D] and writes it down."""
    unembed = transformer.unembedding(config, params)
    logp = vocab.log_probs(hidden, unembed, sampling.temperature or 1.0)
    uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, state.position)))(keys)
    token = draw(reshard(logp[:, 0], "rows", None), reshard(uniform, "rows"), sampling)

    going = ~state.finished
    token = jnp.where(going, token, sampling.pad_id)
    stopped = going & jnp.isin(token, jnp.array(sampling.stop_ids, jnp.int32))

    def write(whole: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(whole, new[:, None], state.position, axis=1)

    return state.replace(
        position=state.position + 1,
        response=write(state.response, token),
        response_mask=write(state.response_mask, going),
        logp=write(state.logp, jnp.where(going, vocab.pick(logp[:, 0], token), 0.0)),
        entropy=write(state.entropy, jnp.where(going, vocab.entropy(logp[:, 0]), 0.0)),
        stop_id=jnp.where(stopped, token, state.stop_id),
    )


def draw(logp: Array, uniform: Array, sampling: Sampling) -> Array:
    """One token a row by inverse distribution function, without a sort of the vocabulary.

    The row is cut into blocks; one pass sums them, a search over the sums finds the block, a search inside finds the
    token.

    Args:
        logp: f32[rows, V], log-probabilities.
        uniform: f32[rows] in [0, 1).

    Returns:
        i32[rows]; a token that top-k or top-p leaves out, or of probability 0, is never drawn.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logp, axis=-1).astype(jnp.int32)
    prob = jnp.exp(logp)
    if sampling.top_k:
        prob = jnp.where(prob >= _threshold(prob, jnp.ones_like(prob), float(sampling.top_k)), prob, 0.0)
    if sampling.top_p < 1:
        mass = sampling.top_p * jnp.sum(prob, axis=-1, keepdims=True)
        prob = jnp.where(prob >= _threshold(prob, prob, mass), prob, 0.0)

    size = 256
    rows, width = prob.shape
    blocks = jnp.pad(prob, ((0, 0), (0, -width % size))).reshape(rows, -1, size)
    edges = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
    target = uniform * edges[:, -1]
    block = _first_above(edges, target)
    before = jnp.where(block > 0, _take(edges, jnp.maximum(block - 1, 0)), 0.0)
    inside = _take(blocks, block)
    return block * size + _first_above(jnp.cumsum(inside, axis=-1), target - before)


def _take(x: Array, index: Array) -> Array:
    """x[row, index[row]] for every row."""
    return jax.vmap(lambda row, i: jax.lax.dynamic_index_in_dim(row, i, keepdims=False))(x, index)


def _first_above(edges: Array, target: Array) -> Array:
    """The first index whose running sum exceeds the target: f32[rows, n], f32[rows] → i32[rows].

    Rounding may leave the target at or above the last edge; the answer is then the last index that adds any mass.
    """
    last = jnp.argmax(edges, axis=-1)  # the first index at which the sum is complete
    return jnp.minimum(jnp.sum(edges <= target[:, None], axis=-1), last).astype(jnp.int32)


def _threshold(prob: Array, weight: Array, least: Array | float) -> Array:
    """The largest value t for which the weight of {prob ≥ t} is at least `least`: f32[rows, 1].

    Bisection over the bit patterns of the non-negative floats, whose order is that of the numbers: 31 halvings end at
    the exact value, so ties at the threshold are all kept.
    """
    bits = jax.lax.bitcast_convert_type(prob, jnp.int32)
    low = jnp.min(bits, axis=-1, keepdims=True)
    high = jnp.max(bits, axis=-1, keepdims=True)

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low + 1) // 2
        enough = jnp.sum(jnp.where(bits >= middle, weight, 0.0), axis=-1, keepdims=True) >= least
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

    return jax.lax.bitcast_convert_type(jax.lax.fori_loop(0, 31, halve, (low, high))[0], jnp.float32)
