"""Figures of the samples of problems on texts written by hand; the right values are computed in the comments."""

import math
import random
import time

import pytest

from dasd_jax.health.figures import of_groups


def figure(name, *groups):
    """One figure of groups without answers."""
    return of_groups(groups, [[None] * len(group) for group in groups])[name]


def test_dist3_is_the_share_of_different_trigrams():
    # Six trigrams, all alike but the two with "e": abc bcd abc bce; of samples of four words two each.
    assert figure("dist3", ["a b c d", "a b c e"]) == 3 / 4
    assert figure("dist3", ["a b c d"] * 4) == 2 / 8
    assert figure("dist3", ["a b c d", "e f g h"]) == 1


def test_dist3_cuts_all_samples_to_the_shortest():
    # a b c d and a b c d: two different trigrams of four; the tail of the longer one is not read.
    assert figure("dist3", ["a b c d", "a b c d e f g h"]) == 2 / 4


def test_dist3_leaves_out_samples_without_a_trigram():
    assert figure("dist3", ["a b c d", "a b", "", "a b c d"]) == 2 / 4
    assert "dist3" not in of_groups([["a b", "7"]], [[None, None]])


def test_dist3_is_averaged_over_problems():
    # 2/4 of the first, 1 of the second; the third has no trigram.
    assert figure("dist3", ["a b c d"] * 2, ["a b c", "d e f"], ["7", "7"]) == 3 / 4


def test_dist3_reads_words_and_single_signs():
    # "2+2=4" is five: 2 + 2 = 4, three trigrams.
    assert figure("dist3", ["2+2=4", "2 + 2 = 4"]) == 3 / 6


def test_self_bleu_of_equal_samples_is_1_whatever_their_length():
    for text in ("7", "a b", "a b c d e f", "a a a a a a"):
        assert figure("self_bleu", [text] * 3) == pytest.approx(1, abs=1e-12)


def test_self_bleu_of_two_samples_that_share_a_beginning():
    # a b c d e against a b c d f: precisions 4/5, 3/4, 2/3, 1/2, whose product is 1/5; equal lengths.
    assert figure("self_bleu", ["a b c d e", "a b c d f"]) == pytest.approx(0.2**0.25)


def test_self_bleu_smooths_counts_of_zero():
    # No word in common: .1/4, .1/3, .1/2, .1/1 for both.
    expected = (0.1**4 / 24) ** 0.25
    assert figure("self_bleu", ["a b c d", "e f g h"]) == pytest.approx(expected)


def test_self_bleu_clips_counts_and_punishes_brevity():
    # "a a" against "a b c": 1 of 2 words, 0 of 1 pairs; e^(1 - 3/2). "a b c" against "a a": 1/3, .1/2, .1/1; longer.
    first = math.sqrt(1 / 2 * 0.1) * math.exp(-0.5)
    second = (1 / 3 * 0.1 / 2 * 0.1) ** (1 / 3)
    assert figure("self_bleu", ["a a", "a b c"]) == pytest.approx((first + second) / 2)


def test_self_bleu_takes_the_best_of_the_other_samples_never_the_sample_itself():
    # The third shares no word with the others; it does not lower the other two.
    two = figure("self_bleu", ["a b c d e", "a b c d f"])
    alone = (0.1**4 / math.prod([5, 4, 3, 2])) ** 0.25
    assert figure("self_bleu", ["a b c d e", "a b c d f", "v w x y z"]) == pytest.approx((2 * two + alone) / 3)


def test_repeats_of_the_first_answer():
    # After the first: 7 = 7, None and 8 of one problem; of the second, whose first has none, two more. 1 of 5.
    extracted = [["7", "7", None, "8"], [None, None, "3"]]
    assert of_groups([[""] * 4, [""] * 3], extracted)["first_answer_repeats_frac"] == 1 / 5


def test_one_sample_a_problem_has_only_dist3():
    assert of_groups([["a b c"], ["d e f"]], [["7"], ["8"]]) == {"dist3": 1.0}


def test_nothing_gives_nothing():
    assert of_groups([], []) == {}
    assert of_groups([[]], [[]]) == {}
    assert of_groups([["", ""]], [[None, None]]) == {"first_answer_repeats_frac": 0.0}


def test_the_order_of_samples_and_problems_does_not_matter():
    """Of the answers only the first is special."""
    groups = [["a b c d e", "a b d", "e d c b a a", "a b"], ["1 + 1 = 2", "1 + 2 = 3"]]
    extracted = [["7", "7", "8", None], ["2", "3"]]
    expected = of_groups(groups, extracted)
    for seed in range(5):
        shuffled = [group.copy() for group in groups]
        for group in shuffled:
            random.Random(seed).shuffle(group)
        assert of_groups(shuffled[::-1], extracted[::-1]) == pytest.approx(expected, rel=1e-12)


def test_a_megabyte_a_sample_takes_seconds():
    """Self-BLEU reads the beginning alone; Dist-3 reads all of it."""
    began = time.process_time()
    figures = of_groups([["a b " * (1 << 18), "c" * (1 << 20)]], [["1", "1"]])
    assert time.process_time() - began < 2
    assert all(math.isfinite(value) for value in figures.values())
