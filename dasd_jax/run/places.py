"""Where a response is cut for an intervention, and the two beginnings that differ there; on the host.

An intervention is a pair of beginnings of one response: what the student goes on from, with and without a change.

    high entropy    at one of the top 20 % of the response's tokens by the student's entropy, the teacher's first choice
                    stands in the place of the sampled token
    low entropy     the same at one of the other tokens
    random          the same at any token
    suppress cue    a revision cue, such as "Wait", is cut off, and the student's likeliest token that begins no cue
                    stands in its place; the control keeps the cue
    force cue       " Wait," is inserted at the end of a sentence that no cue follows; the control goes on without

Of each response every arm takes one place, drawn evenly among those that fit. At the first three the teacher's first
choice differs from the sampled token, so that there is something to change.
"""

import bisect
import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from dasd_jax.health.revision import CUE
from dasd_jax.text.tokenizer import Tokenizer

BY_ENTROPY = ("high entropy", "low entropy", "random")
ARMS = (*BY_ENTROPY, "suppress cue", "force cue")

FORK_SHARE = 0.2  # of a response's tokens, by entropy: forks. Source: arXiv 2506.01939, and rho of DASD
FORCED = "Wait,"

_SENTENCE_ENDS = re.compile(r"[.!?](?=\s)|\S(?=\n)")


@dataclasses.dataclass(frozen=True)
class Cue:
    """A revision cue in a response: the tokens [start, end), and its text."""

    start: int
    end: int
    text: str


@dataclasses.dataclass(frozen=True)
class Response:
    """A sampled response as student and teacher read it: T tokens, the stop token among them."""

    example_id: int
    sample: int  # which of the problem's K
    tokens: np.ndarray  # i32[T]
    entropy: np.ndarray  # f32[T] in nats, the student's
    student: np.ndarray  # i32[T], its likeliest token at each place
    teacher: np.ndarray | None  # i32[T], the teacher's; None where there is no context to show it
    cue: Cue | None  # the one to suppress
    at_cue: np.ndarray  # i32[N], the student's likeliest tokens in the place of its first, best first


@dataclasses.dataclass(frozen=True)
class Pair:
    """An intervention and its control: two beginnings that are equal before `place` and differ there."""

    arm: str
    example_id: int
    sample: int
    place: int  # tokens before the change
    control: np.ndarray  # i32[·]
    treated: np.ndarray  # i32[·]
    entropy: float | None = None  # nats, the student's in that place; None where nothing of the response is replaced
    student_agrees: bool | None = None  # the student's likeliest token is the teacher's; None of arms without teacher


def draws(seed: int, example_id: int, sample: int, arm: str) -> np.random.Generator:
    """What chooses the place of an arm in a response: a function of these four alone."""
    return np.random.default_rng([seed, example_id, sample, ARMS.index(arm)])


def forks(entropy: np.ndarray) -> np.ndarray:
    """The tokens above the 0.8 quantile of a response's entropies: f32[T] → bool[T]."""
    return entropy > np.quantile(entropy, 1 - FORK_SHARE)


def find_cue(tokenizer: Tokenizer, tokens: np.ndarray, draw: np.random.Generator) -> Cue | None:
    """One of the revision cues of a response, or None.

    A token that holds the end of the cue and more belongs to it, as does one that holds its beginning and more.
    """
    found = list(CUE.finditer(tokenizer.decode(tokens)))
    if not found:
        return None
    match = found[draw.integers(len(found))]
    start, end = _tokens_within(tokenizer, tokens, match.start()), _tokens_through(tokenizer, tokens, match.end())
    return Cue(start, end, match[0].lower())


def pairs(tokenizer: Tokenizer, response: Response, seed: int, budget: int) -> list[Pair]:
    """The interventions in one response: at most one of each arm.

    Args:
        budget: tokens of a response, R.
    """
    found = [_at_entropy(response, arm, seed) for arm in BY_ENTROPY]
    found += [_suppressed(tokenizer, response), _forced(tokenizer, response, seed, budget)]
    return [pair for pair in found if pair]


def _at_entropy(response: Response, arm: str, seed: int) -> Pair | None:
    if response.teacher is None:
        return None
    high, tokens = forks(response.entropy), response.tokens
    in_arm = {"high entropy": high, "low entropy": ~high, "random": np.ones_like(high)}[arm]
    fitting = np.flatnonzero(in_arm & (response.teacher != tokens))
    if not len(fitting):
        return None
    place = int(draws(seed, response.example_id, response.sample, arm).choice(fitting))
    return Pair(
        arm,
        response.example_id,
        response.sample,
        place,
        control=tokens[: place + 1],
        treated=np.append(tokens[:place], response.teacher[place]),
        entropy=float(response.entropy[place]),
        student_agrees=bool(response.student[place] == response.teacher[place]),
    )


def _suppressed(tokenizer: Tokenizer, response: Response) -> Pair | None:
    cue, tokens = response.cue, response.tokens
    if cue is None:
        return None
    others = (int(token) for token in response.at_cue if not _begins_cue(tokenizer.decode([token]), cue.text))
    other = next(others, None)
    if other is None:
        return None
    return Pair(
        "suppress cue",
        response.example_id,
        response.sample,
        cue.start,
        control=tokens[: cue.end],
        treated=np.append(tokens[: cue.start], np.int32(other)),
        entropy=float(response.entropy[cue.start]),
    )


def _begins_cue(piece: str, cue: str) -> bool:
    """Whether a token's text could be the first of this cue, however it is spelled, or holds the whole of another."""
    text = piece.strip().lower()
    return bool(text) and (cue.startswith(text) or text.startswith(cue) or CUE.match(text) is not None)


def _forced(tokenizer: Tokenizer, response: Response, seed: int, budget: int) -> Pair | None:
    text, tokens = tokenizer.decode(response.tokens), response.tokens
    ends = [match.end() for match in _SENTENCE_ENDS.finditer(text)]
    ends = [end for end in ends if not CUE.match(text[end : end + 100].lstrip())]
    if not ends:
        return None
    end = int(draws(seed, response.example_id, response.sample, "force cue").choice(ends))
    place = _tokens_through(tokenizer, tokens, end)
    kept = tokens[:place]
    # The token that holds the full stop may hold the white space after it.
    spaced = FORCED if tokenizer.decode(kept)[-1:].isspace() else f" {FORCED}"
    treated = np.concatenate([kept, np.asarray(tokenizer.encode(spaced), np.int32)])
    if len(treated) >= budget:
        return None
    return Pair("force cue", response.example_id, response.sample, place, control=kept, treated=treated)


def _tokens_within(tokenizer: Tokenizer, tokens: Sequence[int], length: int) -> int:
    """The largest number of first tokens whose text has at most so many characters."""
    return bisect.bisect_right(range(len(tokens) + 1), length, key=lambda n: len(tokenizer.decode(tokens[:n]))) - 1


def _tokens_through(tokenizer: Tokenizer, tokens: Sequence[int], length: int) -> int:
    """The smallest number of first tokens whose text has at least so many characters."""
    return bisect.bisect_left(range(len(tokens) + 1), length, key=lambda n: len(tokenizer.decode(tokens[:n])))
