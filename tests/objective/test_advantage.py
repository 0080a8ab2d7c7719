"""Group-relative advantages by hand and against float64."""

import math

import numpy as np
import objective_oracle as oracle
import pytest

from dasd_jax.objective.advantage import group_advantage, smallest_advantage


def full(rows):
    return np.ones(rows, bool)


def test_one_success_in_eight_by_hand():
    # Mean 1/8; squared deviations 49/64 + 7/64 over 7 give the sample variance 1/8.
    got = group_advantage(np.array([1, 0, 0, 0, 0, 0, 0, 0], np.float32), full(8), 8)
    np.testing.assert_allclose(got, [7 / math.sqrt(8)] + [-1 / math.sqrt(8)] * 7, rtol=1e-5)
    assert smallest_advantage(8) == pytest.approx(1 / math.sqrt(8))


def test_each_group_is_standardised_by_its_own_mean_and_sample_deviation():
    reward = np.array([0, 1, 0, 1, 1, 1, 0.25, 1], np.float32)
    got = np.asarray(group_advantage(reward, full(8), 4)).reshape(2, 4)
    groups = reward.reshape(2, 4).astype(np.float64)
    want = (groups - groups.mean(1, keepdims=True)) / (groups.std(1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(got[0], np.array([-1, 1, -1, 1]) * math.sqrt(3) / 2, rtol=1e-5)
    np.testing.assert_allclose(got.sum(1), 0, atol=1e-5)


@pytest.mark.parametrize("group", [2, 3, 7, 8])
def test_a_group_of_equal_rewards_has_advantage_exactly_zero(group):
    for reward in (0.0, 1.0, 0.1, 1 / 3, 0.7, -1.0):
        got = group_advantage(np.full(2 * group, reward, np.float32), full(2 * group), group)
        np.testing.assert_array_equal(got, np.zeros(2 * group))


def test_padded_rows_of_a_group_neither_count_nor_receive():
    live = np.array([True, True, False, False, True, False, False, False])
    reward = np.array([1, 0, 77, np.nan, 1, np.inf, -5, 0], np.float32)
    got = group_advantage(reward, live, 4)
    # Two live rows: mean 1/2, sample deviation 1/sqrt 2. One live row cannot differ from itself.
    np.testing.assert_allclose(got, [1 / math.sqrt(2), -1 / math.sqrt(2), 0, 0, 0, 0, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(got, oracle.advantage(reward, live[:, None], 4), rtol=1e-5)
