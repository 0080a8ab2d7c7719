"""Figures of responses on texts written by hand; the right values are computed in the comments."""

import math
import random
import time

import pytest

from dasd_jax.health import markers
from dasd_jax.health.figures import of_responses


def test_epistemic_markers_count_as_substrings_and_as_whole_words():
    # Substrings: wait, hmm, check, wait, check, likely, likely: 7. Words: wait, hmm, check, likely: 4.
    figures = of_responses(["Wait, hmm. Check it.", "Awaiting the checks: unlikely, LIKELY"], [4, 6])
    assert figures["epistemic_count"] == 7 / 2
    assert figures["epistemic_words_count"] == 4 / 2
    assert figures["epistemic_per_1k"] == 1000 * 7 / 10
    assert figures["epistemic_words_per_1k"] == 1000 * 4 / 10


def test_the_lists_are_those_of_their_papers():
    assert markers.EPISTEMIC[:2] == ("wait", "hmm") and len(markers.EPISTEMIC) == 10
    assert len(markers.EXPLORE) == 27 and len(markers.VERDICT) == 22
    for words in (markers.EPISTEMIC, markers.EXPLORE, markers.VERDICT):
        assert len(set(words)) == len(words)
        assert all(word.isalpha() and word.islower() for word in words)
    assert not set(markers.EXPLORE) & set(markers.VERDICT)


def test_verdict_and_explore_words_are_whole_words():
    # Verdict: finally, correct: 2 ("\right)" and "rightly" are none). Explore: let, maybe, let: 3 ("letter" is none).
    figures = of_responses([r"Let me, maybe. Finally \left(2\right), correct, rightly. Let the letter"], [20])
    assert figures["verdict_per_1k"] == 1000 * 2 / 20
    assert figures["explore_log_ratio"] == pytest.approx(math.log(3.5 / 2.5))


def test_without_words_of_both_lists_their_ratio_is_even():
    assert of_responses(["7"], [1])["explore_log_ratio"] == 0.0


@pytest.mark.parametrize(
    ("text", "cue"),
    [
        ("Wait, no.", True),
        ("Hmmmm", True),
        ("HOLD ON", True),
        ("Let me double-check this", True),
        ("Let me re", False),
        ("That's wrong", True),
        ("That’s not right", True),
        ("that is incorrect", True),
        ("That is right", False),
        ("on second thought", True),
        ("a mistake", True),
        ("waiting for the hmmer", False),
        ("", False),
    ],
)
def test_cues_of_revision(text, cue):
    assert of_responses([text], [3])["revision_cue_frac"] == cue


@pytest.mark.parametrize(
    ("text", "revised"),
    [
        ("3 + 4 = 8. Wait, 3 + 4 = 7.", True),
        ("3 + 4 = 7. Wait, let me check: 3 + 4 = 7.", False),  # confirmed
        ("3 + 4 = 8. Wait.", False),  # nothing stated after it
        ("Wait, 3 + 4 = 8. So 3 + 4 = 7.", False),  # nothing stated before it
        ("3 + 4 = 8. So 3 + 4 = 7.", False),  # no cue
        (r"The answer is 12. Hmm, so \boxed{13}", True),
        (r"The answer is 12. Hmm, so \boxed{12}", False),
        (r"It is $= 1,200.50$. Actually, the answer is: **1200.5**", False),  # written otherwise
        ("x = 5. Hold on: x = -5", True),
        ("x = 8. Wait, x = 9? No: x = 8", False),  # the last one counts
        (r"\frac{6}{4} = \frac{3}{2}. Wait, the answer is \frac{3}{2}", False),  # by its last number
        ("x = 8. Wait, x = y", False),  # no number
    ],
)
def test_a_revision_is_functional_if_the_result_changes_after_the_cue(text, revised):
    assert of_responses([text], [20])["revision_frac"] == revised


def test_a_result_further_than_the_window_after_its_cue_is_no_revision():
    near, far = (f"x = 8. Wait, {'so ' * words}x = 9" for words in (190, 200))
    assert of_responses([near], [200])["revision_frac"] == 1
    assert of_responses([far], [210])["revision_frac"] == 0


def test_step_accuracy_is_the_share_of_right_equalities_in_all_responses():
    # Three right of four, in two of three responses.
    figures = of_responses(["1 + 1 = 2, 2 + 2 = 4 and 3 + 3 = 7", "2 * 5 = 10", "no step"], [9, 5, 2])
    assert figures["step_accuracy"] == 3 / 4
    assert figures["steps_per_response"] == 4 / 3


def test_the_tail_of_the_lengths():
    # Linear interpolation: place .95 * 20 = 19 of 0 … 20 in order.
    lengths = list(range(0, 2100, 100))
    figures = of_responses([""] * 21, lengths)
    assert figures["length_p95"] == 1900 and figures["length_max"] == 2000


def test_what_is_undefined_is_left_out():
    assert of_responses([], []) == {}
    figures = of_responses(["", ""], [0, 0])
    assert "step_accuracy" not in figures and not any(name.endswith("per_1k") for name in figures)
    assert all(math.isfinite(value) for value in figures.values())


def test_the_order_of_responses_does_not_matter():
    texts = ["Wait, 3 + 4 = 7", "x = 8. Hmm, x = 9", "finally correct", "", "1/3 = 0.3 maybe"]
    lengths = [7, 11, 2, 1, 9]
    expected = of_responses(texts, lengths)
    order = list(range(len(texts)))
    for seed in range(5):
        random.Random(seed).shuffle(order)
        assert of_responses([texts[i] for i in order], [lengths[i] for i in order]) == expected


_CHARS = 1 << 20
HOSTILE = {
    "equals signs": "=" * _CHARS,
    "spaced equals signs": " =" * (_CHARS // 2),
    "open parentheses": "(" * _CHARS,
    "open parentheses and an equals sign": "(" * _CHARS + "=1",
    "pairs": "(=" * (_CHARS // 2),
    "sums": "1+" * (_CHARS // 2),
    "one long sum": "1+" * (_CHARS // 2) + "1=1",
    "a chain of sums": "1+1=" * (_CHARS // 4),
    "different equalities": "".join(f"{i}+1={i + 1}\n" for i in range(_CHARS // 14)),
    "powers": "1=" + "9^" * (_CHARS // 2) + "9",
    "fractions in fractions": r"\frac{" * (_CHARS // 6) + "=1",
    "fractions": r"\frac{1}{2}=" * (_CHARS // 12),
    "texts": r"=\text{ " * (_CHARS // 8),
    "boxes": r"\boxed{" * (_CHARS // 7) + "=1",
    "commands": r"=1\a" * (_CHARS // 4),
    "calculator marks": "<<" * (_CHARS // 2) + "=1",
    "digits": "1" * _CHARS + "=1+" + "1" * _CHARS,
    "thousands": "=1" + ",111" * (_CHARS // 4),
    "signs": "=1" + "-" * _CHARS,
    "stars": "=1" + "*" * _CHARS,
    "crosses": "1x" * (_CHARS // 2) + "=2",
    "units": "=1 apples " * (_CHARS // 10),
    "one long word": "=1 " + "a" * _CHARS,
    "line ends": "\n" * _CHARS + "=1",
    "continued lines": "\n=" * (_CHARS // 2),
    "spaces": "= " + " " * _CHARS + "1",
    "a LaTeX line end before spaces": "=1\\\\" + " " * _CHARS,
    "LaTeX line ends": "\\\\ " * (_CHARS // 3) + "=1",
    "operators before spaces": ("=1+" + " " * 50) * (_CHARS // 53),
    "an operator before spaces": "=1+" + " " * _CHARS,
    "dollars": "=" + "$" * _CHARS + "=1",
    "one long hmm": "h" + "m" * _CHARS,
    "cues": "1=2 " + "wait " * (_CHARS // 5),
    "cues and results": "".join(f"{i}=wait " for i in range(_CHARS // 11)),
    "answers": "answer is " * (_CHARS // 10),
}


# Some of them in every run: those that once took quadratic time.
_ONCE_SLOW = ("signs", "LaTeX line ends", "one long sum")


@pytest.mark.parametrize(
    "text",
    [pytest.param(HOSTILE[name], id=name, marks=() if name in _ONCE_SLOW else pytest.mark.slow) for name in HOSTILE],
)
def test_a_hostile_text_takes_less_than_a_second(text):
    began = time.process_time()
    figures = of_responses([text], [len(text)])
    assert time.process_time() - began < 1
    assert all(math.isfinite(value) for value in figures.values())
