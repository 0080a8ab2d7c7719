"""The problems that stand for the others."""

import re
from collections import Counter

import numpy as np
import pytest

from dasd_jax.data import anchors

TOPICS = (
    (
        "A train goes {} miles in {} hours. How fast is the train?",
        "A train needs {} hours for {} miles. How fast is it?",
    ),
    ("Find the area of a triangle with base {} and height {}.", "Find the height of a triangle, base {}, area {}."),
    ("Solve $x^{} + {} = 0$ for x.", "Solve $x^{} - {} = 0$ for the smallest x."),
)
SIZES = (9, 5, 7)


def questions():
    """Topic by topic, with other numbers in every question."""
    return [
        TOPICS[topic][i % 2].format(17 * topic + i, 31 * i + 3) for topic, size in enumerate(SIZES) for i in range(size)
    ]


def topic(place):
    return int(np.searchsorted(np.cumsum(SIZES), place, side="right"))


def vectors(texts):
    """TF-IDF by its formula: tf (ln((1 + n) / (1 + df)) + 1), of length 1."""
    words = [Counter(re.findall(r"\w+|[^\w\s]", re.sub(r"\d+", "0", text.casefold()))) for text in texts]
    frequency = Counter(word for of_text in words for word in of_text)
    idf = {word: np.log((1 + len(texts)) / (1 + count)) + 1 for word, count in frequency.items()}
    matrix = np.array([[of_text[word] * idf[word] for word in sorted(idf)] for of_text in words])
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_anchor_is_the_nearest_to_the_centre_of_its_cluster(seed):
    texts = questions()
    found = anchors.choose(texts, 3, seed)
    assert sorted(topic(anchor.place) for anchor in found) == [0, 1, 2]
    matrix = vectors(texts)
    for anchor in found:
        members = [place for place in range(len(texts)) if topic(place) == topic(anchor.place)]
        assert anchor.cluster == len(members)
        distances = np.linalg.norm(matrix - matrix[members].mean(axis=0), axis=1)
        assert distances[anchor.place] <= distances.min() + 1e-8


def test_anchors_depend_on_questions_and_seed_alone():
    texts = questions()
    for count in (2, 5, len(texts)):
        assert anchors.choose(texts, count, 3) == anchors.choose(list(texts), count, 3)
    assert len({tuple(anchors.choose(texts, 5, seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize("texts", [["1 + 1"] * 4 + ["2 + 3"], questions(), ["?", "!", "a", "b"]])
def test_all_anchors_are_different_and_every_problem_is_in_one_cluster(texts):
    """Also where there are fewer different questions than clusters."""
    for count in range(2, len(texts) + 1):
        found = anchors.choose(texts, count, 0)
        assert len({anchor.place for anchor in found}) == count
        assert sum(anchor.cluster for anchor in found) == len(texts)
