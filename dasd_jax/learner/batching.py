"""Batches in parts of like length, each computed at a width that holds its longest response.

A part's width is one of a few, so that few programs are compiled, and the same on all devices. Each shard of the rows
sorts its own problems, by their longest response: no row moves between devices.

Where parts have no whole problems for every device, groups of rollouts are split: what follows takes each smaller group
for a problem, with a copy of its prompts. Every divisor of the loss is in the signal, so the sums stay the same.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from dasd_jax.batch import Array, PromptBatch, TeacherBatch
from dasd_jax.mesh import merge_rows, per_shard, reshard, spec, split_rows


def map_by_length(
    function: Callable, parts: int, splits: int, widths: tuple[int, ...], mask: Array, batch
) -> tuple[object, object, Array]:
    """function over the parts of a batch, with the results in the batch's own order.

    Args:
        function: (width, part of the batch) → (tree of [rows of the part, width], tree of [any, width, ...] to add up).
        parts: divides the groups of each shard.
        splits: groups that each problem's rollouts are split into.
        widths: ascending, the last one R.
        mask: bool[B, G, R], the tokens that are needed.
        batch: tree for `split_groups`.

    Returns:
        (tree of [B·G, R], tree of [any, R, ...] summed over the parts, the share of the positions computed that are not
        in the mask).
    """
    mask, batch = split_groups(splits, (mask, batch))
    group = mask.shape[1]

    def padded(width: int, part):
        def to_longest(x: Array) -> Array:
            return jnp.pad(x, ((0, 0), (0, widths[-1] - width), *((0, 0),) * (x.ndim - 2)))

        return jax.tree.map(to_longest, function(width, part))

    order = _order_by_length(parts, mask)
    cut, cut_mask = jax.tree.map(partial(_cut, parts), _take((batch, mask), order))
    narrowest = _narrowest(widths, cut_mask)

    # Added up on the way: hidden states of the wanted rows from every part at once would be the largest array of all.
    def step(total, part):
        results, new = _at_width(widths, part[0], padded, part[1])
        return jax.tree.map(jnp.add, total, new), results

    one = jax.tree.map(lambda x: x[0], cut)
    _, like = jax.eval_shape(partial(padded, widths[-1]), one)
    none = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, out_sharding=x.sharding.spec), like)
    added, results = jax.lax.scan(step, none, (narrowest, cut))
    results = jax.tree.map(lambda x: _uncut(split_rows(x, group, axis=1)), results)
    results = jax.tree.map(lambda x: merge_rows(_join_groups(splits, x)), _put_back(results, order))
    return results, added, _padding_frac(widths, narrowest, mask)


def sum_by_length(
    function: Callable, like, parts: int, widths: tuple[int, ...], mask: Array, batch
) -> tuple[object, dict[str, Array], Array]:
    """The sum over parts of what function makes of each.

    Args:
        function: (width, part of the batch) → (tree like `like`, scalars by name).
        like: a tree of arrays with the shapes, dtypes and layouts of the sum.
        parts, widths, mask, batch: as in `map_by_length`.

    Returns:
        (tree like `like`, scalars, the share of the positions computed that are not in the mask).
    """
    order = _order_by_length(parts, mask)
    cut, cut_mask = jax.tree.map(partial(_cut, parts), _take((batch, mask), order))
    narrowest = _narrowest(widths, cut_mask)
    padding = _padding_frac(widths, narrowest, mask)
    if parts == 1:
        return *_at_width(widths, narrowest[0], function, batch), padding

    def add(total, part):
        new, scalars = _at_width(widths, part[0], function, part[1])
        return jax.tree.map(jnp.add, total, new), scalars

    total, scalars = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, like), (narrowest, cut))
    return total, jax.tree.map(jnp.sum, scalars), padding


def split_groups(splits: int, tree):
    """Each problem's rollouts in so many groups: group g of problem p is at g·B + p, on any device.

    Args:
        splits: divides G.
        tree: prompts, teachers' prompts and arrays [B, G, ...].

    Returns:
        The same with prompts [splits·B, ...], and arrays, teachers' prompts of single rollouts among them,
        [splits·B, G/splits, ...]. `minibatches` still finds whole problems in it.
    """
    if splits == 1:
        return tree

    def split(x: Array) -> Array:
        by_group = _reshaped(x, (x.shape[0], splits, x.shape[1] // splits, *x.shape[2:]), 0)
        return _reshaped(jnp.moveaxis(by_group, 1, 0), (splits * x.shape[0], *by_group.shape[2:]), 0)

    def copied(x: Array) -> Array:
        return reshard(jnp.concatenate([x] * splits), "rows", *(None,) * (x.ndim - 1))

    def pieces(node):
        of_problems = isinstance(node, PromptBatch) or (isinstance(node, TeacherBatch) and not node.of_rollouts)
        return jax.tree.map(copied if of_problems else split, node)

    return jax.tree.map(pieces, tree, is_leaf=lambda node: isinstance(node, PromptBatch | TeacherBatch))


def _reshaped(x: Array, shape: tuple[int, ...], axis: int) -> Array:
    """With the rows of the devices along `axis`, wherever they were."""
    axes = ("rows" if place == axis else None for place in range(len(shape)))
    return jax.lax.reshape(x, shape, out_sharding=spec(*axes))


def _join_groups(splits: int, x: Array) -> Array:
    """The inverse of `split_groups`, for arrays: [splits·B, G/splits, ...] → [B, G, ...]."""
    if splits == 1:
        return x
    problems = x.shape[0] // splits
    by_group = _reshaped(x, (splits, problems, *x.shape[1:]), 1)
    return _reshaped(jnp.moveaxis(by_group, 0, 1), (problems, splits * x.shape[1], *x.shape[2:]), 0)


def minibatches(num: int, batch):
    """A batch in its minibatches: [B, ...] → [num, B/num, ...]; minibatch m holds the problems m, m + num, …"""
    return jax.tree.map(partial(_cut, num), batch)


def _order_by_length(parts: int, mask: Array) -> Array:
    """The order of the problems in which `_cut` makes parts of like length: i32[B], places within the shard."""

    def of_shard(longest: Array) -> Array:
        # `_cut` deals problems out to the parts in turn; the transpose deals each part a run of neighbours.
        return jnp.argsort(longest).reshape(parts, -1).T.reshape(-1)

    return per_shard(of_shard, ("rows",), "rows")(jnp.max(_lengths(mask), axis=1))


def _lengths(mask: Array) -> Array:
    """Positions up to the last one that is True: bool[..., R] → i32[...]."""
    return jnp.max(jnp.where(mask, jnp.arange(1, mask.shape[-1] + 1, dtype=jnp.int32), 0), axis=-1)


def _take(tree, order: Array):
    """Arrays [B, ...] in an order from `_order_by_length`."""
    return per_shard(lambda tree, order: jax.tree.map(lambda x: x[order], tree), ("rows", "rows"), "rows")(tree, order)


def _put_back(tree, order: Array):
    """The inverse of `_take`."""
    return _take(tree, per_shard(jnp.argsort, ("rows",), "rows")(order))


def _narrowest(widths: tuple[int, ...], mask: Array) -> Array:
    """Which of the widths holds the longest response of each part, on any device: bool[parts, B, G, R] → i32[parts]."""
    longest = jnp.max(_lengths(mask), axis=(1, 2))
    return jnp.sum(longest[:, None] > jnp.array(widths), axis=1, dtype=jnp.int32)


def _at_width(widths: tuple[int, ...], index: Array, function: Callable, part):
    """function(width, part), compiled for every width and run at the one that `index` says.

    The index is the same on all devices, as it has to be: the layers gather their weights within the function.
    """
    return jax.lax.switch(index, [partial(function, width) for width in widths], part)


def _padding_frac(widths: tuple[int, ...], narrowest: Array, mask: Array) -> Array:
    """Share of the positions computed that are not in the mask, given the width of each of equal parts: f32[]."""
    width = jnp.mean(jnp.array(widths, jnp.float32)[narrowest])
    return jnp.maximum(1 - jnp.mean(mask, dtype=jnp.float32) * mask.shape[-1] / width, 0.0)  # rounding, where it is 0


def _cut(parts: int, x: Array) -> Array:
    """[B, ...] → [parts, B/parts, ...]: part p holds p, p + parts, …, some of every device's rows."""
    return jnp.moveaxis(split_rows(x, parts), 1, 0)


def _uncut(x: Array) -> Array:
    """The inverse of `_cut`."""
    return merge_rows(jnp.moveaxis(x, 0, 1))
