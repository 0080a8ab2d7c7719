"""Figures of responses, and of the K samples of each problem; docs/health.md defines each and says what it misses."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from dasd_jax.health import equalities, markers
from dasd_jax.health.revision import revision

# A LaTeX command is no word: \right is not "right".
_WORD = re.compile(r"\\?[^\W\d_]+")
_WORD_OR_SIGN = re.compile(r"\w+|[^\w\s]")
_ORDER = 4  # BLEU-4
_MOST_WORDS = 2000  # words and signs of a sample that self-BLEU reads
_SMOOTHING = 0.1  # in the place of a count of 0. Source: method 1 of Chen and Cherry 2014


def of_responses(texts: Sequence[str], lengths: Sequence[int]) -> dict[str, float]:
    """Figures of any responses, in time linear in their length; rates are of all of them together.

    Args:
        texts: the responses, without special tokens.
        lengths: tokens of each.

    Returns:
        Figure → finite number. One that is undefined is left out: rates without a token, the share of right equalities
        without an equality, all of them without a response.
    """
    if not texts:
        return {}
    substrings = steps = right = cues = revised = 0
    words: Counter[str] = Counter()
    for text in texts:
        right_or_not = equalities.held(text)
        steps, right = steps + len(right_or_not), right + sum(right_or_not)
        lowered = text.lower()
        substrings += sum(lowered.count(marker) for marker in markers.EPISTEMIC)
        words.update(_WORD.findall(lowered))
        found = revision(lowered)
        cues, revised = cues + found.cue, revised + found.functional
    doubts, explores, verdicts = (
        sum(words[word] for word in group) for group in (markers.EPISTEMIC, markers.EXPLORE, markers.VERDICT)
    )
    count, tokens = len(texts), int(sum(lengths))
    figures = {
        "epistemic_count": substrings / count,
        "epistemic_words_count": doubts / count,
        "revision_cue_frac": cues / count,
        "revision_frac": revised / count,
        "steps_per_response": steps / count,
        "explore_log_ratio": math.log((explores + 0.5) / (verdicts + 0.5)),
        "length_p95": float(np.percentile(lengths, 95)),
        "length_max": float(max(lengths)),
    }
    if steps:
        figures["step_accuracy"] = right / steps
    if tokens:
        counts = {"epistemic": substrings, "epistemic_words": doubts, "verdict": verdicts}
        figures |= {f"{name}_per_1k": 1000 * number / tokens for name, number in counts.items()}
    return figures


def of_groups(groups: Sequence[Sequence[str]], extracted: Sequence[Sequence[str | None]]) -> dict[str, float]:
    """Figures of the samples of each problem beside one another.

    Args:
        groups: per problem the texts of its K samples; K may differ.
        extracted: the answer of each, None where there is none.

    Returns:
        Figure → finite number. One that no problem defines is left out: dist3 without a sample of three words, the
        others without a second sample.
    """
    split = [[_WORD_OR_SIGN.findall(text) for text in group] for group in groups]
    answered = filter(None, extracted)  # a problem may have no sample
    repeats = [answer is not None and answer == first for first, *others in answered for answer in others]
    figures = {
        "dist3": _mean(map(_dist3, split)),
        "self_bleu": _mean(map(_self_bleu, split)),
        "first_answer_repeats_frac": _mean(repeats),
    }
    return {name: value for name, value in figures.items() if value is not None}


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that are not None, in any order the same to the bit; None without any."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _dist3(samples: Sequence[list[str]]) -> float | None:
    """Different trigrams over all trigrams of a problem's samples, each cut to the length of the shortest.

    Samples of fewer than three words have no trigram and are left out. None if all are.
    """
    whole = [words for words in samples if len(words) >= 3]
    if not whole:
        return None
    length = min(map(len, whole))
    trigrams: set[tuple[str, str, str]] = set()
    for words in whole:
        trigrams.update(zip(words[: length - 2], words[1 : length - 1], words[2:length], strict=True))
    return len(trigrams) / (len(whole) * (length - 2))


def _self_bleu(samples: Sequence[list[str]]) -> float | None:
    """The mean BLEU-4 of each sample against the others of its problem; None with fewer than two that hold a word.

    Smoothing is method 1 of Chen and Cherry 2014; a sample of fewer than four words is held to the orders that it has.
    """
    samples = [words[:_MOST_WORDS] for words in samples if words]
    if len(samples) < 2:
        return None
    logs = [[] for _ in samples]  # per sample, the logarithm of the precision of each order
    for order in range(1, _ORDER + 1):
        counts = [Counter(zip(*(words[i:] for i in range(order)), strict=False)) for words in samples]
        highest = _two_highest(counts)
        for i, count in enumerate(counts):
            if count:
                # In the reference that has it most often, which is another sample.
                shared = sum(min(n, highest[gram][highest[gram][2] == i]) for gram, n in count.items())
                logs[i].append(math.log((shared or _SMOOTHING) / count.total()))
    lengths = [len(words) for words in samples]
    scores = []
    for i, length in enumerate(lengths):
        others = lengths[:i] + lengths[i + 1 :]
        closest = min(others, key=lambda other: (abs(other - length), other))
        scores.append(math.exp(math.fsum(logs[i]) / len(logs[i]) + min(0.0, 1 - closest / length)))
    return _mean(scores)


def _two_highest(counts: Sequence[Counter]) -> dict[tuple[str, ...], tuple[int, int, int]]:
    """Per n-gram its highest count in one sample, the highest in any other, and the sample with the first."""
    highest: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for i, count in enumerate(counts):
        for gram, n in count.items():
            first, second, owner = highest.get(gram, (0, 0, -1))
            highest[gram] = (n, first, i) if n > first else (first, max(second, n), owner)
    return highest
