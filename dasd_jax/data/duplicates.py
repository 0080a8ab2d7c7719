"""Which questions are the same, and which differ in the order of their numbers alone."""

import re

# A line break in LaTeX is kept whole, so that \\[2pt] is not read as the start of a formula.
_NOTATION = re.compile(r"(\\\\)|\\(?:left|right)(?![a-z])|\\[\[\]()]|\\?\$")
_SPACE = re.compile(r"(?<!\d) | (?!\d)")
# Signs and separators belong to a number here, so that "-5 and 2.5" finds "2.5 and -5", and "10,4" finds "4,10".
_NUMBERS = re.compile(r"-?\d+(?:[.,]-?\d+)*")
_DIGITS = re.compile(r"\d+")


def normalise(question: str) -> str:
    r"""The form in which duplicates are equal: without case, white space, $, \[ \], \( \), \left and \right.

    Every other character counts. One space stays between two digits: 1 2 is not 12.
    """
    text = " ".join(_NOTATION.sub(r"\1", question.casefold()).split())
    return _SPACE.sub("", text)


def twins(question: str) -> tuple[str, ...]:
    """A key that questions share if they differ in the order of their numbers alone, as 4 + 9 and 9 + 4.

    A few others share it too: 2.5 and 3 has the key of 2 and 3.5.
    """
    text = normalise(question)
    return _NUMBERS.sub("#", text), *sorted(_DIGITS.findall(text))
