r"""Whether an answer equals the reference: rules for notation, units and numbers first, then algebra for the rest.

Runs in the verifier's worker processes, since symbolic algebra may not terminate or exhaust memory. A rule is included
only if it cannot make a wrong answer right: rewarding a mistake teaches it, while a right answer without reward only
teaches less.
"""

import re
from collections.abc import Iterator

from dasd_jax.verify.algebra import same_algebra
from dasd_jax.verify.notation import exact_value, has_words, is_balanced, letters, plain, spelling, split_at
from dasd_jax.verify.units import split_unit

RIGHT, WRONG, UNREADABLE = (1.0, ""), (0.0, ""), (0.0, "unreadable")


def grade(reference: str, answer: str) -> tuple[float, str]:
    r"""(score, error) of an answer; answer and reference are LaTeX or plain text, without a box.

    Returns:
      RIGHT, WRONG, or UNREADABLE if the reference is mathematics and the answer cannot be parsed as such.
    """
    gold, guess = plain(reference), plain(answer)
    if spelling(gold) == spelling(guess):
        return RIGHT
    name, value = _named(guess)
    choice = _CHOICE.fullmatch(gold)
    if choice:  # x = B chooses B, and A = B nothing
        return RIGHT if _chosen(guess if _CHOICE.fullmatch(name) else value) == choice[1] else WRONG
    if spelling(gold) == spelling(value):
        return RIGHT
    gold, guess = _without_names(gold, guess)
    if spelling(gold) == spelling(guess):
        return RIGHT
    guess = _LABEL_OF_A_VALUE.sub("", guess)
    in_base = _same_in_base(gold, guess)
    if in_base is not None:
        return RIGHT if in_base else WRONG
    gold, gold_unit = split_unit(gold)
    guess, guess_unit = split_unit(guess)
    if has_words(split_at(gold, "=")[-1]):
        return WRONG
    if has_words(split_at(guess, "=")[-1]):
        return UNREADABLE
    if gold_unit and guess_unit and gold_unit != guess_unit:
        return WRONG
    # A colon may be a ratio, as in 3:2, or a time, as in 3:30; nothing tells them apart, so only equal spelling counts.
    if ":" in gold or ":" in guess:
        return RIGHT if spelling(gold) == spelling(guess) else WRONG
    verdicts = [_same_value(*pair) for pair in _in_one_unit(gold, gold_unit, guess, guess_unit)]
    if True in verdicts:
        return RIGHT
    return WRONG if False in verdicts else UNREADABLE


# Names: x = 5 names the value 5; but a word, as in No = Yes, is part of the text.

_NAME = re.compile(r"(?:\\?[a-zA-Z]+|\\text\s*\{\w+\})(?:_\{?\w+\}?)?(?:\([\w, ]+\))?")
_NAMES_OF_AN_ANSWER = {"answer", "result", "value", "solution"}


def _named(text: str) -> tuple[str, str]:
    """(name, value) of an answer such as x = Yes; the name is "" if there is none."""
    name, *values = split_at(text, "=")
    is_name = _NAME.fullmatch(name) and (not has_words(name) or spelling(name) in _NAMES_OF_AN_ANSWER)
    value = plain(text.partition("=")[2])
    return (name, value) if values and is_name else ("", text)


def _without_names(gold: str, guess: str) -> tuple[str, str]:
    """The values of both, if one alone has a name or both have the same."""
    (gold_name, gold_value), (guess_name, guess_value) = _named(gold), _named(guess)
    if "=" in gold_value or "=" in guess_value:  # an equation, or one name for each of several values
        return gold, guess
    if gold_name and guess_name and spelling(gold_name) != spelling(guess_name):
        return gold, guess
    return gold_value, guess_value


# Choices: one capital letter, perhaps with the value that it labels.

_CHOICE = re.compile(r"\(?(?:\\text\s*\{\s*\(?)?([A-Z])\)?\}?\)?")
_LABEL = re.compile(r"\(?(?:\\text\s*\{\s*\(?)?([A-Z])(?:\)\s*\}?|\s*[.:](?=\s)|\}|$)\s*(.*)")
_LABEL_OF_A_VALUE = re.compile(r"^(?:\\text\s*\{\s*)?\([A-Z]\)(?:\s*\}\s*|\s+)(?=\S)")
# What follows a label and is not the text of that choice alone: another label or letter, or words that take it back.
# `plain` has written a comma for "and" and "or".
_NOT_A_CHOICE = re.compile(
    r"""[,;/&]|[A-Z]$
        |(?:.*[\s,{])?(?:[A-Z][.:)](?:[\s}]|$)|\([A-Z]\))
        |.*[^A-Z\s]\s*,\s*[A-Z]$
        |(?i:.*\b(?:not?|nor|wait|but|actually|instead|rather|maybe|perhaps|possibly|otherwise)\b).*\b[A-Z]\b
        |(?i:(?:is|was|cannot|can't|isn't)\b.*(?:n't|\b(?:not|be|wrong|incorrect|false|excluded|impossible)\b))""",
    re.VERBOSE,
)


def _chosen(text: str) -> str:
    """The letter of the one choice that an answer makes; "" if it makes none or more than one."""
    label = _LABEL.fullmatch(text)
    return label[1] if label and not _NOT_A_CHOICE.match(label[2]) else ""


# Numerals in a base.

_DIGITS_IN_BASE = re.compile(r"(?:\\text\s*\{)?\(?([0-9][0-9A-F]*|[A-F][0-9A-F]+)\)?\}?(?:_\{?\(?([0-9]+)\)?\}?)?")


def _same_in_base(gold: str, guess: str) -> bool | None:
    """Whether two numerals such as 1011_2 are equal, where one may omit its base; None if neither has one."""
    numerals = [_DIGITS_IN_BASE.fullmatch(text) for text in (gold, guess)]
    bases = [numeral[2] for numeral in numerals if numeral and numeral[2]]
    if not bases:
        return None
    return all(numerals) and numerals[0][1] == numerals[1][1] and len(set(bases)) == 1


# Units: a unit on one side only is assumed to be what the question asked for; units on both sides have to agree.


def _in_one_unit(gold: str, gold_unit: str, guess: str, guess_unit: str) -> Iterator[tuple[str, str]]:
    """Pairs of values, one of which has to be equal; the units are equal, or only one or none is given."""
    number = exact_value(gold)
    # 9 % equals 9 if the question asks for percent, but 1 % does not equal 1, which may be a fraction or a probability.
    if gold_unit == guess_unit or "%" not in (gold_unit, guess_unit) or number is None or abs(number) > 1:
        yield gold, guess
    if gold_unit and not guess_unit:
        yield from ((value, guess) for value in _without_factor(gold, gold_unit))
    if guess_unit and not gold_unit:
        yield from ((gold, value) for value in _without_factor(guess, guess_unit))


def _without_factor(value: str, unit: str) -> list[str]:
    if unit == "%":
        number = exact_value(value)
        return [f"\\frac{{{value}}}{{100}}" if number is None else str(number / 100)]
    return [f"\\frac{{({value}) \\pi}}{{180}}"] if unit == "°" else []


# Values: equations, lists, intervals and sets.


def _same_value(gold: str, guess: str) -> bool | None:
    """Whether the values are equal; None if the guess cannot be parsed."""
    gold, guess = (_in_order(_before_rounding(text)) for text in (gold, guess))
    gold_sides, guess_sides = split_at(gold, "="), split_at(guess, "=")
    if len(gold_sides) > 1:
        first = spelling(gold_sides[0]) == spelling(guess_sides[0])
        names = [{spelling(side) for side in sides if _NAME.fullmatch(side)} for sides in (gold_sides, guess_sides)]
        same_names = len(guess_sides) == 1 or (first and (len(names[0]) == 1 or names[0] == names[1]))
        if not same_names or not _NAME.fullmatch(gold_sides[0]):
            return same_algebra(gold, guess)
        gold = gold_sides[-1]
    if len(guess_sides) > 1:
        # Each side before the last is either a name for the value or equal to it: 5 = 6 is not an answer of 6.
        guess_sides = [side for side in guess_sides[:-1] if not _names_value(side, gold)] + guess_sides[-1:]
    verdicts = [_same_side(gold, side) for side in guess_sides]
    return None if None in verdicts else all(verdicts)


def _names_value(side: str, gold: str) -> bool:
    r"""Whether a side is empty, a name such as f(x), or has variables, such as \angle ABC, while the value has none."""
    has_variables = letters(side) and not re.search(r"[<>]|\\[lgn]e(?![a-zA-Z])|(?i:\bnot?\b|n't\b)", side)
    return not side or bool(_NAME.fullmatch(side) or (has_variables and not letters(gold)))


def _before_rounding(text: str) -> str:
    exact, *rounded = text.split(r"\approx")
    return rounded[0].strip() if rounded and _NAME.fullmatch(exact.strip()) else exact.strip()


def _in_order(text: str) -> str:
    """`x=2, y=3` as (2, 3), in the order of the names; `x=2, x=3` as the list 2, 3."""
    equations = [split_at(part, "=") for part in split_at(text, ",;")]
    if len(equations) == 1 or not all(len(sides) == 2 and _NAME.fullmatch(sides[0]) for sides in equations):
        return text
    values = ", ".join(value for _, value in sorted(equations))
    return values if len({name.partition("_")[0] for name, _ in equations}) == 1 else f"({values})"


def _shape(text: str) -> str:
    if text.startswith(r"\{") or len(split_at(text, ",;")) > 1:
        return "set"
    inner = text[1:-1]
    bracketed = text[:1] in tuple("([") and text[-1:] in tuple(")]") and is_balanced(inner)
    return "tuple" if bracketed and len(split_at(inner, ",;")) > 1 else ""


def _same_side(gold: str, guess: str) -> bool | None:
    if spelling(gold) == spelling(guess):
        return True
    if r"\ldots" in gold or r"\ldots" in guess:
        return _same_listing(gold, guess)
    numbers = exact_value(gold), exact_value(guess)
    if None not in numbers:
        return numbers[0] == numbers[1]
    # math-verify does not distinguish the set {1,2}, the point (1,2) and the open interval (1,2).
    if {_shape(gold), _shape(guess)} == {"set", "tuple"}:
        return False
    return same_algebra(gold, guess)


def _same_listing(gold: str, guess: str) -> bool:
    r"""Whether two lists with \ldots in them, such as 1, 2, \ldots, n, are equal entry by entry."""
    if {_shape(gold), _shape(guess)} == {"set", "tuple"}:
        return False
    inner = [
        text[2:-2] if text.startswith(r"\{") else text[1:-1] if _shape(text) == "tuple" else text
        for text in (gold, guess)
    ]
    entries = [split_at(text, ",;") for text in inner]
    if len(entries[0]) == 1 or len(entries[0]) != len(entries[1]):
        return False
    return all(a == b or (r"\ldots" not in a + b and _same_side(a, b)) for a, b in zip(*entries, strict=True))
