"""The KV cache: a segment of prompts, each stored once for all rows that continue it, and a segment of responses."""

import jax
import jax.numpy as jnp
from flax import struct

from dasd_jax.batch import Array
from dasd_jax.mesh import per_device, spec
from dasd_jax.quantised import Quantised, quantise, quantise_like

_AXES = (None, "rows", "heads", None, None)


@struct.dataclass
class Segment:
    """Keys and values of n token sequences, in the compute dtype or in int8 with a scale for each token and head.

    [L, n, K, T, H] each, or a tuple of L arrays [1, n, K, T, H] where layers are not stacked (`for_decoding`).
    """

    key: Array | Quantised | tuple[Array | Quantised, ...]
    value: Array | Quantised | tuple[Array | Quantised, ...]
    length: Array  # i32[n], valid tokens: at the right end of a prompt, at the left end of a response

    @property
    def columns(self) -> int:
        """T, tokens that fit into a sequence."""
        return jax.tree.leaves(self.key)[0].shape[3]


@struct.dataclass
class KVCache:
    """Opaque to callers; returned by `forward` and `decode`, never mutated."""

    prompt: Segment
    response: Segment | None = None


def quantised(cache: KVCache) -> KVCache:
    """The same prompts in int8; what is made of them by the functions below is so too, and `decode` writes it so."""
    key, value = jax.tree.map(lambda part: quantise(part, -1), (cache.prompt.key, cache.prompt.value))
    return cache.replace(prompt=cache.prompt.replace(key=key, value=value))


def open_response(cache: KVCache, rollouts: int, width: int) -> KVCache:
    """The cache with an empty response segment of `width` tokens for `rollouts` rows per prompt, ready for `decode`."""
    prompt = cache.prompt
    blank = jax.tree.map(lambda part: _blank(part, part.shape[1] * rollouts, width), prompt.key)
    length = jnp.zeros((prompt.length.shape[0] * rollouts,), jnp.int32, out_sharding=spec("rows"))
    return cache.replace(response=Segment(blank, blank, length))


def own_prompts(cache: KVCache, rows: int) -> KVCache:
    """An empty cache in which each of `rows` rows has a prompt of its own, to be filled by `take_prompt`."""
    blank = jax.tree.map(lambda part: _blank(part, rows, part.shape[3]), cache.prompt.key)
    return KVCache(Segment(blank, blank, jnp.zeros((rows,), jnp.int32, out_sharding=spec("rows"))))


def take_prompt(cache: KVCache, row: Array, prompts: Segment, index: Array) -> KVCache:
    """The cache with row `row` restarted: prompt `index` of `prompts` and an empty response. Other rows are unchanged.

    Args:
        cache: from `own_prompts`, with a response segment.
        row, index: i32[].
    """

    here = jnp.arange(cache.prompt.length.shape[0]) == row

    def copy(whole: Array, source: Array) -> Array:
        one = jax.lax.dynamic_slice_in_dim(source, index, 1, axis=1)
        return jax.lax.dynamic_update_slice_in_dim(whole, one, row, axis=1)

    return KVCache(
        prompt=Segment(
            key=jax.tree.map(copy, cache.prompt.key, prompts.key),
            value=jax.tree.map(copy, cache.prompt.value, prompts.value),
            length=jnp.where(here, prompts.length[index], cache.prompt.length),
        ),
        response=cache.response.replace(length=jnp.where(here, 0, cache.response.length)),
    )


def layer_of(parts: tuple, index) -> tuple:
    """(keys, values, position of the layer in them) of layer `index`, from a segment's stacks or tuples of layers."""
    return (*(part[index] for part in parts), 0) if isinstance(parts[0], tuple) else (*parts, index)


def write_token(whole, index, new: Array, place: Array):
    """A segment's keys or values with those of one token per row written to layer `index`.

    Args:
        whole: [L, rows, K, T, H] or a tuple of layers, as in `Segment`.
        new: [rows, K, H].
        place: i32[rows], the column of each row; a row with a column beyond the end is not written.
    """
    if isinstance(whole, tuple):
        return (*whole[:index], write_token(whole[index], 0, new, place), *whole[index + 1 :])

    def write(whole: Array, index: Array, new: Array, place: Array) -> Array:
        rows = jnp.arange(place.shape[0])
        return whole.at[index, rows, :, place].set(new, unique_indices=True, mode="drop")

    def write_part(whole: Array, new: Array) -> Array:
        # Per device: JAX otherwise refuses a scatter into a sharded array, or gathers the array first.
        axes = _AXES[: whole.ndim]
        in_axes = (axes, (), ("rows", "heads", None)[: new.ndim], ("rows",))
        return per_device(write, in_axes, axes)(whole, jnp.int32(index), new, place)

    return jax.tree.map(write_part, whole, quantise_like(new, whole))


def _blank(part: Array, rows: int, columns: int) -> Array:
    """Zeros for `rows` sequences of `columns` tokens, in the layers, heads and dtype of keys, values or scales."""
    layers, _, kv_heads, _, *head_dim = part.shape
    shape = (layers, rows, kv_heads, columns, *head_dim)
    return jnp.zeros(shape, part.dtype, out_sharding=spec(*_AXES[: part.ndim]))
