"""Which questions are the same, and which differ in the order of their numbers alone."""

import re

from dasd_jax.text import turns

# A line break in LaTeX is kept whole, so that \\[2pt] is not read as the start of a formula.
_NOTATION = re.compile(r"(\\\\)|\\(?:left|right)(?![a-z])|\\[\[\]()]|\\?\$")
_SPACE = re.compile(r"(?<!\d) | (?!\d)")
# Signs and separators belong to a number here, so that "-5 and 2.5" finds "2.5 and -5", and "10,4" finds "4,10".
_NUMBERS = re.compile(r"-?\d+(?:[.,]-?\d+)*")
_DIGITS = re.compile(r"\d+")


def normalise(question: str) -> str:
    r"""The form in which duplicates are equal: without case, white space, $, \[ \], \( \), \left and \right.

    Every other character counts. One space stays between two digits: 1 2 is not 12. A conversation has the forms of its
    turns, each behind its role; one of a single turn, which is a user's, is the same question as its text.
    """
    said = [(turn["role"], _normalised(turn["content"])) for turn in turns.read(question)]
    # Only a conversation of several turns has line breaks: no text is equal to it.
    return said[0][1] if len(said) == 1 else "\n".join(part for turn in said for part in turn)


def _normalised(text: str) -> str:
    text = " ".join(_NOTATION.sub(r"\1", text.casefold()).split())
    return _SPACE.sub("", text)


def twins(question: str) -> tuple[str, ...]:
    """A key that questions share if they differ in the order of their numbers alone, as 4 + 9 and 9 + 4.

    A few others share it too: 2.5 and 3 has the key of 2 and 3.5.
    """
    text = normalise(question)
    return _NUMBERS.sub("#", text), *sorted(_DIGITS.findall(text))
