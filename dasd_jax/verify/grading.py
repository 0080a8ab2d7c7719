r"""Whether an answer equals the reference: rules for notation, units and numbers first, then math-verify for algebra.

Runs in the verifier's worker processes, since symbolic algebra may not terminate or exhaust memory. A rule is included
only if it cannot make a wrong answer right: rewarding a mistake teaches it, while a right answer without reward only
teaches less.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator

from dasd_jax.verify.notation import (
    exact_value,
    has_words,
    is_balanced,
    letters,
    plain,
    spelling,
    split_at,
)

RIGHT, WRONG, UNREADABLE = (1.0, ""), (0.0, ""), (0.0, "unreadable")


def grade(reference: str, answer: str) -> tuple[float, str]:
    r"""(score, error) of an answer; answer and reference are LaTeX or plain text, without a box.

    Returns:
      RIGHT, WRONG, or UNREADABLE if the reference is mathematics and the answer cannot be parsed as such.
    """
    gold, guess = plain(reference), plain(answer)
    if spelling(gold) == spelling(guess):
        return RIGHT
    choice = _CHOICE.fullmatch(gold)
    if choice:
        label = _LABEL.match(guess)
        return RIGHT if label and label[1] == choice[1] else WRONG
    guess = _LABEL_OF_A_VALUE.sub("", guess)
    in_base = _same_in_base(gold, guess)
    if in_base is not None:
        return RIGHT if in_base else WRONG
    gold, gold_unit = _split_unit(gold)
    guess, guess_unit = _split_unit(guess)
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


# A multiple-choice answer is one capital letter, perhaps with the value that it labels.
_CHOICE = re.compile(r"\(?(?:\\text\s*\{\s*\(?)?([A-Z])\)?\}?\)?")
_LABEL = re.compile(r"\(?(?:\\text\s*\{\s*\(?)?([A-Z])(?:\)\s*\}?|[.:]\s|\}|$)(?!.*\b[A-Z]\b)")
_LABEL_OF_A_VALUE = re.compile(r"^(?:\\text\s*\{\s*)?\([A-Z]\)(?:\s*\}\s*|\s+)(?=\S)")
_DIGITS_IN_BASE = re.compile(r"(?:\\text\s*\{)?([0-9][0-9A-F]*|[A-F][0-9A-F]+)\}?(?:_\{?([0-9]+)\}?)?")


def _same_in_base(gold: str, guess: str) -> bool | None:
    """Whether two numerals such as 1011_2 are equal, where one may omit its base; None if neither has one."""
    numerals = [_DIGITS_IN_BASE.fullmatch(text) for text in (gold, guess)]
    bases = [numeral[2] for numeral in numerals if numeral and numeral[2]]
    if not bases:
        return None
    return all(numerals) and numerals[0][1] == numerals[1][1] and len(set(bases)) == 1


# Units: a unit on one side only is assumed to be what the question asked for; units on both sides have to agree.

_UNITS = {
    name: unit
    for unit, *names in (
        line.split()
        for line in """
            mm millimeter millimetre
            cm centimeter centimetre
            m meter metre
            km kilometer kilometre
            in inch inche
            ft foot feet
            yd yard
            mi mile
            g gram
            kg kilogram
            lb pound
            L l liter litre
            ml mL milliliter millilitre
            s sec second
            min minute
            h hr hour
            day
            week
            month
            year
            N newton
            J joule
            W watt
            V volt
            Hz hertz
            mi/h mph
            km/h kmh kph
            unit
            % percent pct percentage
            ° degree deg
            °C
            °F
            $ dollar USD
            € euro EUR
            £ GBP
            cent
        """.strip().splitlines()
    )
    for name in (unit, *names)
}
_CURRENCY = re.compile(r"^((?:[^=]*=)?\s*-?)\\(dollar|euro|pounds)\s*|\s*\\(dollar|euro|pounds)$")
_CURRENCY_UNITS = {"dollar": "$", "euro": "€", "pounds": "£"}
_UNIT_IN_TEXT = re.compile(r"(?<=[^\s,])\s*(°?)\s*\\text\s*\{\s*([a-zA-Z/ .]+?)\s*\}\s*(?:\^\s*\{?\s*(\d)\s*\}?)?$")
_UNIT_PLAIN = re.compile(r"(?<=[\d})\s])\s*(°\s*[CF]?|%|[a-zA-Z]{2,}(?:/[a-zA-Z]+)?)(?:\^\s*\{?\s*(\d)\s*\}?)?$")
_NO_UNITS = {
    "hundred", "thousand", "million", "billion", "trillion", "dozen", "not", "more", "less", "most", "least", "mod",
    "squared", "cubed", "factorial",
}  # fmt: skip


def _split_unit(text: str) -> tuple[str, str]:
    """(value, unit); the unit is "" if there is none."""
    currency = _CURRENCY.search(text)
    if currency:
        value = text[: currency.start()] + (currency[1] or "") + text[currency.end() :]
        return value, _CURRENCY_UNITS[currency[2] or currency[3]]
    in_text = _UNIT_IN_TEXT.search(text)
    if in_text:
        unit = _unit(in_text[1] + in_text[2], in_text[3], known=False)
        return (text[: in_text.start()].strip(), unit) if unit else (text, "")
    plain = _UNIT_PLAIN.search(text)
    unit = plain and _unit(plain[1].replace(" ", ""), plain[2], known=True)
    return (text[: plain.start()].strip(), unit) if unit else (text, "")


def _unit(name: str, power: str | None, known: bool) -> str:
    """The unit's short name, or "" if it is not a unit; unless `known`, any single noun is one, as in 7 apples."""
    adjective, _, rest = name.partition(" ")
    if adjective in ("square", "sq", "cubic", "cu") and rest:
        name, power = rest, {"s": "2", "c": "3"}[adjective[0]]
    parts = [part.strip() for part in re.split(r"/|\bper\b", name)]
    # Two letters are not a plural: ms is not metres.
    short = [_UNITS.get(part) or _UNITS.get(part.removesuffix("s") if len(part) > 2 else part) for part in parts]
    if all(short):
        return "/".join(short) + (power or "")
    noun = name.lower().removesuffix("s")
    return noun if not known and noun.isalpha() and len(name) > 2 and noun not in _NO_UNITS else ""


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

_NAME = re.compile(r"(?:\\?[a-zA-Z]+|\\text\s*\{\w+\})(?:_\{?\w+\}?)?(?:\([a-z, ]+\))?")
_DECIMAL_INSIDE = re.compile(r"(?<![0-9.])([0-9]*)\.([0-9]+)(?![0-9.])")


def _same_value(gold: str, guess: str) -> bool | None:
    """Whether the values are equal; None if the guess cannot be parsed."""
    gold, guess = (_in_order(_before_rounding(text)) for text in (gold, guess))
    gold_sides, guess_sides = split_at(gold, "="), split_at(guess, "=")
    if len(gold_sides) > 1:
        if len(guess_sides) > 1 and spelling(gold_sides[0]) != spelling(guess_sides[0]):
            return _same_algebra(gold, guess)
        if not _NAME.fullmatch(gold_sides[0]):
            return _same_algebra(gold, guess)
        gold = gold_sides[-1]
    if len(guess_sides) > 1:
        # Each side before the last is either a name for the value or equal to it: 5 = 6 is not an answer of 6.
        guess_sides = [side for side in guess_sides[:-1] if not _names_value(side, gold)] + guess_sides[-1:]
    verdicts = [_same_side(gold, side) for side in guess_sides]
    return None if None in verdicts else all(verdicts)


def _names_value(side: str, gold: str) -> bool:
    r"""Whether a side is empty, a name such as f(x), or has variables, such as \angle ABC, while the value has none."""
    has_variables = letters(side) and not re.search(r"[<>]|\\[lgn]e(?![a-zA-Z])", side)
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
    numbers = exact_value(gold), exact_value(guess)
    if None not in numbers:
        return numbers[0] == numbers[1]
    # math-verify does not distinguish the set {1,2}, the point (1,2) and the open interval (1,2).
    if {_shape(gold), _shape(guess)} == {"set", "tuple"}:
        return False
    return _same_algebra(gold, guess)


def _same_algebra(gold: str, guess: str) -> bool | None:
    from math_verify import verify

    # Numbers separated by spaces are a list, which math-verify multiplies; unbalanced brackets it tries to close.
    if not is_balanced(guess) or (exact_value(guess) is None and re.search(r"(?<![_^0-9])[0-9]+\s+[0-9.]", guess)):
        return None
    # It also ignores the case of letters.
    if any(letter.swapcase() in letters(gold) for letter in letters(guess) - letters(gold)):
        return False
    parsed_gold, parsed_guess = _parse(gold), _parse(guess)
    if not parsed_guess:
        return None if parsed_gold else False
    # Without its timeout, a signal that Python cannot handle during a power of big integers; the worker has its own.
    return verify(parsed_gold, parsed_guess, allow_set_relation_comp=True, timeout_seconds=None)


@functools.lru_cache(maxsize=256)
def _parse(text: str) -> list:
    """math-verify's parse, empty on failure; units are not removed, and numbers in a sentence are not picked out."""
    from math_verify import LatexExtractionConfig, parse

    notation = dataclasses.replace(LatexExtractionConfig().normalization_config, units=False)
    number = exact_value(text)
    text = text if number is None else str(number)
    text = re.sub(r"([0-9.]+)\s*°", r"(\\frac{\1 \\pi}{180})", text)
    text = _DECIMAL_INSIDE.sub(
        lambda number: f"{{\\frac{{{int(number[1] + number[2])}}}{{{10 ** len(number[2])}}}}}", text
    )
    return parse(
        f"\\boxed{{{text}}}",
        [LatexExtractionConfig(normalization_config=notation)],
        fallback_mode="no_fallback",
        extraction_mode="first_match",  # otherwise it falls back to any \frac inside text that it cannot parse
        parsing_timeout=None,
    )
