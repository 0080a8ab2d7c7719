"""Sampling over the KV cache: prefill once per problem, then one token per slot and step until every row has stopped.

Continuous batching inside one program: a slot whose row has ended takes the next row of the queue, so the cost of a
batch follows its number of tokens instead of its longest row times the number of rows.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from dasd_jax import vocab
from dasd_jax.batch import Array, Params, PromptBatch, RolloutBatch
from dasd_jax.mesh import per_shard, reshard
from dasd_jax.model import transformer
from dasd_jax.model.cache import KVCache, open_response, own_prompts, quantised, take_prompt
from dasd_jax.model.config import ModelConfig
from dasd_jax.model.layout import repeat_rows

PURPOSES = {"train": 0, "eval": 1, "generate": 2}

_HALF_A_DRAW = 2.0**-24


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling parameters; hashable, for use as a static argument of jitted functions."""

    rollouts: int  # G, per problem
    max_new_tokens: int  # R
    stop_ids: tuple[int, ...]  # any of them ends a response
    pad_id: int
    temperature: float = 1.0  # 0 is greedy, with log-probabilities at temperature 1
    top_k: int = 0  # keep the k most likely tokens; 0 keeps all
    top_p: float = 1.0  # keep the smallest set of most likely tokens with this mass
    slots: int = 0  # rows that a shard decodes at a time; 0: all its rows
    refill_at: int = 1  # number of free slots that triggers a refill
    weights: str = "compute"  # compute | int8, what `relayout` makes of the matrices
    cache: str = "compute"  # compute | int8, how keys and values are kept

    def slots_of(self, rows: int) -> int:
        """Slots of a shard with this many rows."""
        return min(self.slots or rows, rows)


@struct.dataclass
class SamplerState:
    """The loop state of one shard: a queue of rows, and slots in which some of them are being decoded.

    Invariant: for the row in slot s, the prompt and response tokens before `token[s]` are cached, and `written[s]`
    response tokens are sampled. A free slot holds row number `rows`; it is computed, but its writes are dropped.
    """

    row: Array  # i32[slots], the row in each slot
    token: Array  # i32[slots], its last token: at first that of the prompt
    written: Array  # i32[slots], response tokens sampled so far
    cache: KVCache  # of the slots
    next_row: Array  # i32[], the next row of the queue
    steps: Array  # i32[], tokens decoded per slot
    response: Array  # i32[rows, R]
    logp: Array  # f32[rows, R]
    entropy: Array  # f32[rows, R], of the distribution that each token was drawn from, before top-k and top-p
    length: Array  # i32[rows], tokens of each response so far
    finished: Array  # bool[rows], the response ends with a stop token

    @property
    def live(self) -> Array:
        """bool[slots], True where a row is being decoded."""
        return self.row < self.length.shape[0]

    @property
    def done(self) -> Array:
        """bool[], every row of the queue has ended."""
        return ~jnp.any(self.live) & (self.next_row == self.length.shape[0])


def row_keys(seed: int, purpose: str, step: Array, example_id: Array, rollouts: int) -> Array:
    """One key per row, folded from (seed, purpose, step, example_id, rollout): recomputed, never stored.

    Args:
        purpose: train | eval | generate.
        step: i32[].
        example_id: i32[B].

    Returns:
        key[B*rollouts], problem-major; the token position is folded in when sampling.
    """
    base = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), PURPOSES[purpose]), step)
    examples = jnp.repeat(reshard(example_id, None), rollouts, total_repeat_length=example_id.shape[0] * rollouts)
    copies = jnp.tile(jnp.arange(rollouts), example_id.shape[0])
    return jax.vmap(lambda example, copy: jax.random.fold_in(jax.random.fold_in(base, example), copy))(examples, copies)


# Parameters in the layout for decoding: a separate program, run once for all rollouts with these parameters.
relayout = jax.jit(transformer.for_decoding, static_argnums=(0, 2))


@partial(jax.jit, static_argnames=("config", "sampling", "purpose"))
def rollout(
    config: ModelConfig,
    sampling: Sampling,
    params: Params,
    prompts: PromptBatch,
    seed: Array,
    purpose: str,
    step: Array,
) -> tuple[RolloutBatch, Array]:
    """G responses to each of B problems, exactly as sampled.

    Every row shard decodes its own problems without communication between shards; a group is never split.

    Args:
        params: from `relayout`.
        seed, step: i32[]; with the example ids they determine every sample.

    Returns:
        (RolloutBatch of B*G rows, problem-major; i32[shards], decoding steps of each shard).
    """
    keys = row_keys(seed, purpose, step, prompts.example_id, sampling.rollouts)

    def of_shard(params: Params, prompts: PromptBatch, keys: Array) -> tuple[tuple[Array, ...], Array]:
        queue = open_queue(config, sampling, params, prompts, keys)
        state = advance(config, sampling, params, queue, begin(config, sampling, queue), None)
        return (state.response, state.length, state.logp, state.entropy, state.finished), state.steps[None]

    run = per_shard(of_shard, in_axes=(None, "rows", "rows"), out_axes="rows")
    (response, length, logp, entropy, finished), steps = run(params, prompts, keys)
    mask = jnp.arange(sampling.max_new_tokens) < length[:, None]
    return RolloutBatch(response, mask, sampled_logp=logp, sampled_entropy=entropy, finished=finished), steps


@struct.dataclass
class Queue:
    """The work of a shard: B problems, whose prompts are cached except for the last token, and B*G keys."""

    prompts: KVCache
    last_token: Array  # i32[B], of each prompt
    keys: Array  # key[B*G]


def open_queue(config: ModelConfig, sampling: Sampling, params: Params, prompts: PromptBatch, keys: Array) -> Queue:
    """Prefills each prompt once for its G rollouts; params come from `relayout`.

    The tokens of a prompt see each other's keys and values as they are; what is cached of them is rounded.
    """
    tokens, mask = prompts.student_prompt[:, :-1], prompts.student_prompt_mask[:, :-1]
    _, cache = transformer.forward(config, params, tokens, transformer.prompt_positions(mask), mask)
    if sampling.cache == "int8":
        cache = quantised(cache)
    return Queue(cache, prompts.student_prompt[:, -1], keys)


def begin(config: ModelConfig, sampling: Sampling, queue: Queue) -> SamplerState:
    """The initial state; with a slot for every row, all rows start in their slots and share the prompt cache."""
    rows, width = queue.keys.shape[0], sampling.max_new_tokens
    slots = sampling.slots_of(rows)
    if slots == rows:
        cache = open_response(queue.prompts, sampling.rollouts, width)
        row, token = jnp.arange(rows, dtype=jnp.int32), repeat_rows(queue.last_token, sampling.rollouts)
    else:
        cache = open_response(own_prompts(queue.prompts, slots), 1, width)
        row = token = jnp.full((slots,), rows, jnp.int32)
    return SamplerState(
        row=row,
        token=token,
        written=jnp.zeros_like(row),
        cache=cache,
        next_row=jnp.int32(rows if slots == rows else 0),
        steps=jnp.int32(0),
        response=jnp.full((rows, width), sampling.pad_id, jnp.int32),
        logp=jnp.zeros((rows, width), jnp.float32),
        entropy=jnp.zeros((rows, width), jnp.float32),
        length=jnp.zeros((rows,), jnp.int32),
        finished=jnp.zeros((rows,), jnp.bool_),
    )


def advance(
    config: ModelConfig, sampling: Sampling, params: Params, queue: Queue, state: SamplerState, steps: int | None
) -> SamplerState:
    """Decodes until every row has ended, or for at most `steps` steps if it is not None."""
    end = None if steps is None else state.steps + steps

    def more(state: SamplerState) -> Array:
        return ~state.done if end is None else ~state.done & (state.steps < end)

    def step(state: SamplerState) -> SamplerState:
        if state.row.shape != state.length.shape:
            state = _refill(sampling, queue, state)
        hidden, cache = transformer.decode(config, params, state.token, state.live, state.cache)
        return _draw(config, sampling, params, queue.keys, state.replace(cache=cache), hidden)

    return jax.lax.while_loop(more, step, state)


def _refill(sampling: Sampling, queue: Queue, state: SamplerState) -> SamplerState:
    """Assigns the next rows of the queue to free slots once `sampling.refill_at` slots are free."""
    rows, free = state.length.shape[0], ~state.live
    enough = (jnp.sum(free) >= sampling.refill_at) | (state.next_row == 0)

    def more(state: SamplerState) -> Array:
        return enough & jnp.any(~state.live) & (state.next_row < rows)

    def fill(state: SamplerState) -> SamplerState:
        slot, problem = jnp.argmin(state.live), state.next_row // sampling.rollouts
        return state.replace(
            row=state.row.at[slot].set(state.next_row),
            token=state.token.at[slot].set(queue.last_token[problem]),
            written=state.written.at[slot].set(0),
            cache=take_prompt(state.cache, slot, queue.prompts.prompt, problem),
            next_row=state.next_row + 1,
        )

    return jax.lax.while_loop(more, fill, state)


def _draw(
    config: ModelConfig, sampling: Sampling, params: Params, keys: Array, state: SamplerState, hidden: Array
) -> SamplerState:
    """Samples the next token of every slot from hidden [slots, D] and records it."""
    logp = vocab.log_probs(hidden[:, None], transformer.unembedding(config, params), sampling.temperature or 1.0)[:, 0]
    keys = jax.vmap(jax.random.fold_in)(keys[state.row], state.written)  # a free slot's key is the last row's
    token = draw(reshard(logp, "rows", None), jax.vmap(jax.random.uniform)(keys), sampling)
    written = state.written + 1
    stopped = jnp.isin(token, jnp.array(sampling.stop_ids, jnp.int32))
    ended = stopped | (written == sampling.max_new_tokens)

    # The row number of a free slot is out of bounds, so its writes are dropped.
    at = (state.row, state.written)
    return state.replace(
        row=jnp.where(ended, state.length.shape[0], state.row),
        token=token,
        written=written,
        steps=state.steps + 1,
        response=state.response.at[at].set(token, mode="drop"),
        logp=state.logp.at[at].set(vocab.pick(logp, token), mode="drop"),
        entropy=state.entropy.at[at].set(vocab.entropy(logp), mode="drop"),
        length=state.length.at[state.row].set(written, mode="drop"),
        finished=state.finished.at[state.row].set(stopped, mode="drop"),
    )


def draw(logp: Array, uniform: Array, sampling: Sampling) -> Array:
    """Samples one token per row by inverting the CDF, without sorting the vocabulary.

    The probabilities are summed in blocks; a search over the block sums finds the block, a search inside it the token.

    Args:
        logp: f32[rows, V], log-probabilities.
        uniform: f32[rows] in [0, 1), multiples of 2^-23, as `jax.random.uniform` makes them.

    Returns:
        i32[rows]; tokens excluded by top-k or top-p, or of probability 0, are never sampled.
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
    # The middle of the interval of 2^-23 that a draw stands for. Its lower end is 0 once in 2^23 draws, which would
    # choose the lowest id that is left, however small its probability.
    target = (uniform + _HALF_A_DRAW) * edges[:, -1]
    block = _first_above(edges, target)
    before = jnp.where(block > 0, _take(edges, jnp.maximum(block - 1, 0)), 0.0)
    inside = _take(blocks, block)
    return block * size + _first_above(jnp.cumsum(inside, axis=-1), target - before)


def _take(x: Array, index: Array) -> Array:
    """x[row, index[row]] for every row."""
    return jax.vmap(lambda row, i: jax.lax.dynamic_index_in_dim(row, i, keepdims=False))(x, index)


def _first_above(edges: Array, target: Array) -> Array:
    """The first index whose running sum exceeds the target: f32[rows, n], f32[rows] → i32[rows].

    If rounding puts the target at or above the last edge, the result is the last index with non-zero mass.
    """
    last = jnp.argmax(edges, axis=-1)  # the first index at which the sum is complete
    return jnp.minimum(jnp.sum(edges <= target[:, None], axis=-1), last).astype(jnp.int32)


def _threshold(prob: Array, weight: Array, least: Array | float) -> Array:
    """The largest t for which the total weight of {prob ≥ t} is at least `least`: f32[rows, 1].

    Bisection over the bit patterns of non-negative floats, which are ordered like the numbers: 31 halvings find the
    exact value, so all ties at the threshold are kept.
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
