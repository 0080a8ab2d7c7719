r"""Cues of revision, and whether a result changes after one.

A candidate result is a number that a response states: the last number of what follows an equals sign, a `\boxed{` or
"answer is", up to the first word that is no LaTeX command. Results are the same if their numbers are written alike but
for separators of thousands and zeros at the end.
"""

import re
from bisect import bisect_left
from typing import NamedTuple

_WINDOW = 200  # words and signs after a cue in which its result is looked for, in the place of 200 tokens
_WORD_OR_SIGN = re.compile(r"\w+|[^\w\s]")
CUE = re.compile(
    r"""\b(?:wait|hmm+|hold\ on|actually|alternatively
        |let\ me\ (?:double-check|check|verify|recheck|recompute|reexamine|reconsider)
        |double-check|recheck|mistake|(?:that['’]s|that\ is)\ (?:not\ right|wrong|incorrect)|on\ second\ thought)\b""",
    re.VERBOSE | re.IGNORECASE,
)
_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
_STATED = re.compile(
    r"""(?:=|\\boxed|\banswer(?:\ is|:))
        ((?:\d+(?:[.,]\d+)*|[-+*/^×÷·(){}\[\]$%~:\ \t]|\\(?!boxed)[a-z]+|\\[,;!\ ()\[\]$%])*+)""",
    re.VERBOSE,
)


class Revision(NamedTuple):
    """Of one response: whether a cue stands in it, and whether a result changes after one."""

    cue: bool
    functional: bool


def revision(text: str) -> Revision:
    """Whether the text announces a revision, and whether it makes one.

    It makes one if the last result stated within 200 words and signs after some cue differs from the last result stated
    before that cue. Takes time linear in the length of the text.

    Args:
        text: in lower case.
    """
    cues = [cue.span() for cue in CUE.finditer(text)]
    if not cues:
        return Revision(False, False)
    places, values = _results(text)
    if len(set(values)) < 2:
        return Revision(True, False)
    words = [word.start() for word in _WORD_OR_SIGN.finditer(text)]
    for start, end in cues:
        last_word = bisect_left(words, end) + _WINDOW
        limit = words[last_word] if last_word < len(words) else len(text)
        before, first, after = bisect_left(places, start), bisect_left(places, end), bisect_left(places, limit)
        if before > 0 and after > first and values[before - 1] != values[after - 1]:
            return Revision(True, True)
    return Revision(True, False)


def _results(text: str) -> tuple[list[int], list[str]]:
    """The candidate results: where each is stated, ascending, and its number in one way of writing."""
    places, values = [], []
    for stated in _STATED.finditer(text):
        if numbers := _NUMBER.findall(stated[1]):
            number = numbers[-1].replace(",", "")
            places.append(stated.start())
            values.append(number.rstrip("0").rstrip(".") if "." in number else number)
    return places, values
