"""Divisors of the loss as weights a token, against loops over minibatches in float64."""

import jax
import numpy as np
import pytest

from dasd_jax.mesh import put_rows
from dasd_jax.objective.contract import Shape
from dasd_jax.objective.normalise import constant, minibatch_sum, sequence_mean, token_mean

R = 5
SHAPE = Shape(rollouts=2, minibatches=2, max_new_tokens=7)  # R, a narrower batch, is not max_new_tokens
NORMALISERS = {"token_mean": token_mean, "sequence_mean": sequence_mean, "constant": constant}
COMPUTE = {name: jax.jit(function, static_argnums=1) for name, function in NORMALISERS.items()}


def keeps(empty=False):
    """Eight problems of two rows: rows of all lengths, one with a hole, and if `empty` a minibatch that keeps none."""
    keep = np.arange(R) < np.random.default_rng(0).integers(0, R + 1, 16)[:, None]
    keep[0] = [True, False, True, True, False]
    keep[5] = False
    if empty:
        keep[members(1)] = False
    return keep


def members(minibatch):
    """Rows of problems m, m + M, …"""
    return [row for row in range(16) if row // SHAPE.rollouts % SHAPE.minibatches == minibatch]


def divisor(name, keep, rows, row):
    return {
        "token_mean": keep[rows].sum(),
        "sequence_mean": keep[row].sum() * sum(keep[i].any() for i in rows),
        "constant": len(rows) * SHAPE.max_new_tokens,
    }[name]


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("name", NORMALISERS)
def test_each_kept_token_weighs_one_over_the_divisor_of_its_minibatch(name, empty):
    keep = keeps(empty)
    want = np.zeros(keep.shape)
    for minibatch in range(SHAPE.minibatches):
        rows = members(minibatch)
        for row in rows:
            for at in range(R):
                if keep[row, at]:
                    want[row, at] = 1 / divisor(name, keep, rows, row)
    got = COMPUTE[name](keep, SHAPE)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(NORMALISERS[name](keep, SHAPE), want, rtol=1e-6)  # and of NumPy arrays, uncompiled


@pytest.mark.parametrize("name", ["token_mean", "sequence_mean"])
def test_the_weights_of_a_mean_sum_to_one_over_each_minibatch_and_to_none_if_empty(name):
    for empty in (False, True):
        got = np.asarray(COMPUTE[name](keeps(empty), SHAPE))
        sums = [got[members(minibatch)].sum() for minibatch in range(SHAPE.minibatches)]
        np.testing.assert_allclose(sums, [1, 0 if empty else 1], rtol=1e-6)
    nothing = COMPUTE[name](np.zeros((16, R), bool), SHAPE)
    np.testing.assert_array_equal(nothing, np.zeros((16, R)))


def test_a_sequence_mean_gives_each_response_that_keeps_a_token_the_same_weight():
    keep = keeps()
    by_row = np.asarray(COMPUTE["sequence_mean"](keep, SHAPE)).sum(1)
    for minibatch in range(SHAPE.minibatches):
        rows = members(minibatch)
        num = sum(keep[i].any() for i in rows)
        np.testing.assert_allclose(by_row[rows], [keep[i].any() / num for i in rows], rtol=1e-6)


def test_the_constant_divisor_depends_on_no_length():
    for keep in (keeps(), keeps(empty=True), np.ones((16, R), bool)):
        got = np.asarray(COMPUTE["constant"](keep, SHAPE))
        np.testing.assert_array_equal(got, np.where(keep, np.float32(1 / (8 * 7)), 0))


def test_weights_of_one_minibatch_do_not_see_the_other():
    keep, other = keeps(), keeps()
    other[members(1)] ^= True
    for name, compute in COMPUTE.items():
        got, want = (np.asarray(compute(x, SHAPE))[members(0)] for x in (other, keep))
        np.testing.assert_array_equal(got, want, err_msg=name)


def test_minibatch_sums_go_to_every_row_of_the_minibatch():
    x = np.arange(16, dtype=np.float32) ** 2
    got = minibatch_sum(x, SHAPE)
    for minibatch in range(SHAPE.minibatches):
        np.testing.assert_array_equal(np.asarray(got)[members(minibatch)], x[members(minibatch)].sum())


@pytest.mark.parametrize("empty", [False, True])
def test_rows_split_over_eight_devices_have_the_weights_of_one(mesh8, mesh, empty):
    keep = keeps(empty)
    placed = put_rows(mesh8, keep)
    for name, compute in COMPUTE.items():
        got = compute(placed, SHAPE)
        assert len(got.sharding.device_set) == 8 and not got.sharding.is_fully_replicated
        with jax.set_mesh(mesh):
            want = compute(keep, SHAPE)
        np.testing.assert_array_equal(got, want, err_msg=name)
