"""A few problems that stand for all: the nearest to the centres of clusters of questions."""

import dataclasses
import re
import warnings
from collections.abc import Sequence

import numpy as np

_DIGITS = 9  # after the point, to which distances are rounded, so that equal ones are equal


@dataclasses.dataclass(frozen=True)
class Anchor:
    """A problem that stands for others."""

    place: int  # among the problems
    cluster: int  # problems in its cluster


def choose(questions: Sequence[str], count: int, seed: int) -> list[Anchor]:
    """The questions nearest to the centres of k-means over TF-IDF vectors; all different, in the order of the clusters.

    Words and signs count, digits do not: 3 apples and 40 apples are the same question here. Where clusters share their
    nearest question, the later one takes its next. The same arguments give the same anchors on one machine.

    Args:
        count: at most the number of questions.
    """
    # Imported here: it takes a while, and no other command needs it.
    import threadpoolctl  # which scikit-learn requires
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(
        preprocessor=lambda text: re.sub(r"\d+", "0", text.casefold()), token_pattern=r"(?u)\w+|[^\w\s]"
    ).fit_transform(questions)
    # One thread: several add up the centres in any order, and a question between two of them could change sides.
    with threadpoolctl.threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different questions than clusters
        means = KMeans(count, random_state=seed, n_init=4).fit(vectors)
    distances = np.round(means.transform(vectors), _DIGITS)  # f64[questions, clusters]
    chosen: list[Anchor] = []
    taken = np.zeros(len(questions), bool)
    for cluster, size in enumerate(np.bincount(means.labels_, minlength=count)):
        place = int(np.argmin(np.where(taken, np.inf, distances[:, cluster])))
        taken[place] = True
        chosen.append(Anchor(place, int(size)))
    return chosen
