"""The figures of evaluation, by hand and by enumeration."""

import itertools

import numpy as np
import pytest

from dasd_jax.learner.evaluation import pass_at_k, rise, standard_error


def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer():
    for correct in range(6):
        samples = [1] * correct + [0] * (5 - correct)
        for k in range(1, 6):
            subsets = list(itertools.combinations(samples, k))
            expected = sum(map(any, subsets)) / len(subsets)
            assert pass_at_k(5, np.array([correct]), k) == pytest.approx(expected)


def test_pass_at_1_is_the_average_and_pass_at_n_is_any():
    correct = np.array([0, 1, 4, 3])
    assert pass_at_k(4, correct, 1) == pytest.approx(8 / 16)
    assert pass_at_k(4, correct, 4) == pytest.approx(3 / 4)


def test_the_standard_error_is_by_problem():
    """Samples of one problem that all agree count once: four problems, whatever the number of samples."""
    assert standard_error(np.array([0.0, 1.0, 1.0, 0.0])) == pytest.approx(np.sqrt(1 / 3) / 2)
    assert standard_error(np.array([0.5])) == 0


def test_the_rise_is_paired():
    before, after = {"per_problem": [0.0, 0.5, 1.0]}, {"per_problem": [0.25, 0.75, 1.25]}
    assert rise(before, after) == pytest.approx((0.25, 0.0))
