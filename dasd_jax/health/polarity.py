"""Which words a teacher takes away from its student, and which it gives: marker polarity, from the gaps of rollouts."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

THRESHOLD = 0.05  # nats; a smaller gap counts for neither side
MINIMUM = 5  # tokens of a word
_PRIOR = 0.5  # pseudo-count of every word on both sides
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Word:
    """A word with its polarity: log_odds and z above 0 where the teacher suppresses it, below where it favours it."""

    word: str
    suppressed: int  # tokens that the teacher finds less likely than the student by more than the threshold
    favoured: int  # more likely
    log_odds: float
    z: float


def polarity(rollouts: Iterable[dict], *, threshold: float = THRESHOLD, minimum: int = MINIMUM) -> list[Word]:
    """The words of the rollouts' tokens, those that the teacher suppresses most first.

    Log-odds of a word among suppressed tokens over that among favoured ones, smoothed by a Dirichlet prior of 0.5 a
    word, over its standard deviation: z. Source: Monroe, Colaresi and Quinn 2008, "Fightin' Words".

    Args:
        rollouts: as samples.jsonl holds them; those without "gap" are passed over.
        threshold: nats; of the gap, the teacher's minus the student's log-probability of the token.
        minimum: tokens on both sides together that a word needs to be returned; rarer ones still count in the odds of
            the others.

    Returns:
        By descending z. Empty with fewer than two different words, whose odds are undefined.
    """
    suppressed: Counter[str] = Counter()
    favoured: Counter[str] = Counter()
    for rollout in rollouts:
        for word, gap in zip(_words(rollout), rollout.get("gap", ()), strict=False):
            if word and abs(gap) > threshold:
                (suppressed if gap < 0 else favoured)[word] += 1
    vocabulary = suppressed.keys() | favoured.keys()
    if len(vocabulary) < 2:
        return []
    totals = [side.total() + _PRIOR * len(vocabulary) for side in (suppressed, favoured)]
    found = []
    for word in vocabulary:
        s, f = suppressed[word], favoured[word]
        if s + f >= minimum:
            log_odds = _log_odds(s + _PRIOR, totals[0]) - _log_odds(f + _PRIOR, totals[1])
            z = log_odds / math.sqrt(1 / (s + _PRIOR) + 1 / (f + _PRIOR))
            found.append(Word(word, s, f, log_odds, z))
    return sorted(found, key=lambda word: (-word.z, word.word))


def _log_odds(count: float, total: float) -> float:
    return math.log(count / (total - count))


def _words(rollout: dict) -> Iterator[str]:
    """Of each token its word in lower case; "" of one that is no single word, such as a special token."""
    if "offsets" in rollout:
        text, places = rollout["text"], rollout["offsets"]
        pieces = (text[start:end] for start, end in zip(places, places[1:], strict=False))
    else:  # runs before there were offsets
        pieces = iter(rollout["tokens"])
    for piece in pieces:
        word = piece.strip().lower()
        yield word if _WORD.fullmatch(word) else ""
