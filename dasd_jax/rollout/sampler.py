"""Sampling over the KV cache: prefill once per problem, then one token a slot and step until every row has stopped.

Continuous batching inside one program: a slot whose row has ended takes the next row of the queue at once, so a batch
costs what its tokens cost, and not its longest row times all rows.
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
from dasd_jax.model.cache import KVCache, open_response, own_prompts, take_prompt
from dasd_jax.model.config import ModelConfig
from dasd_jax.model.layout import repeat_rows

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
    slots: int = 0  # rows that a shard decodes at a time; 0: all that it has
    refill_at: int = 1  # free slots at which the next rows are begun

    def slots_of(self, rows: int) -> int:
        """Slots of a shard that has so many rows."""
        return min(self.slots or rows, rows)


@struct.dataclass
class SamplerState:
    """The loop's state of one shard: a queue of rows, and slots in which some of them are being written.

    Invariant: of the row in slot s the tokens before `token[s]` are cached, its prompt's among them, and `written[s]`
    tokens of its response are drawn. A free slot holds row number `rows`, writes nowhere and is computed along.
    """

    row: Array  # i32[slots], the row that is written there
    token: Array  # i32[slots], its last token: the prompt's last one at the start
    written: Array  # i32[slots], tokens of its response
    cache: KVCache  # of the slots
    next_row: Array  # i32[], the first of the queue that waits
    steps: Array  # i32[], tokens decoded per slot
    response: Array  # i32[rows, R]
    logp: Array  # f32[rows, R]
    length: Array  # i32[rows], tokens of each response so far
    finished: Array  # bool[rows], a stop token ended the row

    @property
    def live(self) -> Array:
        """bool[slots], where a row is being written."""
        return self.row < self.length.shape[0]

    @property
    def over(self) -> Array:
        """bool[], every row of the queue is written."""
        return ~jnp.any(self.live) & (self.next_row == self.length.shape[0])


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


# The parameters in the layout that the loop reads them in: a step of its own, for as many rollouts as follow.
relayout = jax.jit(transformer.for_decoding, static_argnums=0)


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

    Every shard of the rows works through its own problems, with no communication between shards: a group stays in one.

    Args:
        params: from `relayout`.
        seed, step: i32[]; with the example ids they decide every draw.

    Returns:
        (RolloutBatch of B*G rows, problem-major; i32[shards], steps of decoding that each shard took).
    """
    keys = row_keys(seed, purpose, step, prompts.example_id, sampling.rollouts)

    def of_shard(params: Params, prompts: PromptBatch, keys: Array) -> tuple[tuple[Array, ...], Array]:
        queue = open_queue(config, sampling, params, prompts, keys)
        state = advance(config, sampling, params, queue, begin(config, sampling, queue), None)
        return (state.response, state.length, state.logp, state.finished), state.steps[None]

    run = per_shard(of_shard, in_axes=(None, "rows", "rows"), out_axes="rows")
    (response, length, logp, finished), steps = run(params, prompts, keys)
    mask = jnp.arange(sampling.max_new_tokens) < length[:, None]
    return RolloutBatch(response=response, response_mask=mask, sampled_logp=logp, finished=finished), steps


@struct.dataclass
class Queue:
    """What a shard has to write: B problems, each with its prompt cached but for the last token, and B*G keys."""

    prompts: KVCache
    last_token: Array  # i32[B], of each prompt
    keys: Array  # key[B*G]


def open_queue(config: ModelConfig, sampling: Sampling, params: Params, prompts: PromptBatch, keys: Array) -> Queue:
    """Prefills the prompts, once for the G rollouts of each; params come from `for_decoding`."""
    tokens, mask = prompts.student_prompt[:, :-1], prompts.student_prompt_mask[:, :-1]
    _, cache = transformer.forward(config, params, tokens, transformer.prompt_positions(mask), mask)
    return Queue(cache, prompts.student_prompt[:, -1], keys)


def begin(config: ModelConfig, sampling: Sampling, queue: Queue) -> SamplerState:
    """Nothing written yet; with a slot for every row all rows are in their slots, and share their prompts' cache."""
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
        length=jnp.zeros((rows,), jnp.int32),
        finished=jnp.zeros((rows,), jnp.bool_),
    )


def advance(
    config: ModelConfig, sampling: Sampling, params: Params, queue: Queue, state: SamplerState, steps: int | None
) -> SamplerState:
    """Goes on for so many steps of decoding (None: as many as it takes), or until every row is written."""
    end = None if steps is None else state.steps + steps

    def more(state: SamplerState) -> Array:
        return ~state.over if end is None else ~state.over & (state.steps < end)

    def step(state: SamplerState) -> SamplerState:
        if state.row.shape != state.length.shape:
            state = _refill(sampling, queue, state)
        hidden, cache = transformer.decode(config, params, state.token, state.live, state.cache)
        return _draw(config, sampling, params, queue.keys, state.replace(cache=cache), hidden)

    return jax.lax.while_loop(more, step, state)


def _refill(sampling: Sampling, queue: Queue, state: SamplerState) -> SamplerState:
    """Gives free slots the next rows of the queue, once `sampling.refill_at` of them are free."""
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
    """Draws the next token of every slot's row from hidden [slots, D], and writes it down."""
    logp = vocab.log_probs(hidden[:, None], transformer.unembedding(config, params), sampling.temperature or 1.0)[:, 0]
    keys = jax.vmap(jax.random.fold_in)(keys[state.row], state.written)  # a free slot's key is the last row's
    token = draw(reshard(logp, "rows", None), jax.vmap(jax.random.uniform)(keys), sampling)
    written = state.written + 1
    stopped = jnp.isin(token, jnp.array(sampling.stop_ids, jnp.int32))
    ended = stopped | (written == sampling.max_new_tokens)

    # The row number of a free slot lies outside of these arrays: what it would write is dropped.
    at = (state.row, state.written)
    return state.replace(
        row=jnp.where(ended, state.length.shape[0], state.row),
        token=token,
        written=written,
        steps=state.steps + 1,
        response=state.response.at[at].set(token, mode="drop"),
        logp=state.logp.at[at].set(vocab.pick(logp, token), mode="drop"),
        length=state.length.at[state.row].set(written, mode="drop"),
        finished=state.finished.at[state.row].set(stopped, mode="drop"),
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
