r"""Whether two answers are the same mathematics: rules of notation first, math-verify for the algebra that is left.

Runs inside the verifier's workers, since symbolic algebra may loop or eat memory. A rule exists only where it does not
make a wrong answer right: a rewarded mistake teaches the mistake, an unrewarded right answer merely teaches less.
"""

import dataclasses
import functools
import re
import string
import unicodedata
from collections.abc import Iterator
from fractions import Fraction

RIGHT, WRONG, UNREADABLE = (1.0, ""), (0.0, ""), (0.0, "unreadable")


def grade(reference: str, answer: str) -> tuple[float, str]:
    r"""(score, error) of an answer; both are LaTeX or plain writing, without a box around them.

    Returns:
      RIGHT, WRONG, or UNREADABLE: the reference is mathematics and the answer cannot be read as any.
    """
    gold, guess = _plain(reference), _plain(answer)
    if _spelling(gold) == _spelling(guess):
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
    if _has_words(_split(gold, "=")[-1]):
        return WRONG
    if _has_words(_split(guess, "=")[-1]):
        return UNREADABLE
    if gold_unit and guess_unit and gold_unit != guess_unit:
        return WRONG
    # 3:30 is no ratio and 3:2 is no time; nothing tells them apart, so only the same writing counts.
    if ":" in gold or ":" in guess:
        return RIGHT if _spelling(gold) == _spelling(guess) else WRONG
    verdicts = [_same_value(*pair) for pair in _in_one_unit(gold, gold_unit, guess, guess_unit)]
    if True in verdicts:
        return RIGHT
    return WRONG if False in verdicts else UNREADABLE


# Notation.

_SIGNS = str.maketrans(
    {
        "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "π": r"\pi ", "∞": r"\infty ",
        "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ",
        "∈": r"\in ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "€": r"\euro ", "£": r"\pounds ",
    }
)  # fmt: skip
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\$", r"\\dollar "),
        (r"\$|(?<!\\)\\[()]|\\displaystyle|\\left(?![a-zA-Z])\.?|\\right(?![a-zA-Z])\.?|\\!", ""),
        (r"(?<!\\)\\[,;: ]|\\q?quad|~", " "),
        (r"\\langle", "("),
        (r"\\rangle", ")"),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\(?:mathrm|mbox|textrm|operatorname)\b", r"\\text"),
        (r"\\(?:mathbf|boldsymbol|textbf|textit|mathit)\s*\{([^{}]*)\}", r"\1"),
        (r"\\text\s*\{([^a-zA-Z{}]*)\}", r"\1"),
        (r"\\text\s*\{\s*(?:and|or)\s*\}|,?\s*(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])", ","),
        (r"√\s*(\d+|[a-zA-Z]|(?=\())", r"\\sqrt{\1}"),
        (r"\\sqrt\{\}\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\varnothing|\\\{\s*\\\}", r"\\emptyset"),
        (r"(?i)^(?:\\text\s*\{)?\s*no (?:real )?solutions?\s*\}?$", r"\\emptyset"),
        (r"(?i)^(?:\\text\s*\{)?\s*all real numbers\s*\}?$", r"\\mathbb{R}"),
        (r"(?i)\\text\s*\{\s*infinity\s*\}|(?<![a-z\\])infinity(?![a-z])", r"\\infty"),
        (r"\+\s*\\infty", r"\\infty"),
        (r"\s*\^\s*\{?\s*\\circ\s*\}?|\s*\\degree(?![a-zA-Z])", "°"),
        (r"\\%", "%"),
        (r"<=|\\leq(?:slant)?(?![a-zA-Z])", r"\\le "),
        (r">=|\\geq(?:slant)?(?![a-zA-Z])", r"\\ge "),
        (r"!=|\\neq(?![a-zA-Z])", r"\\ne "),
        (r"\{,\}", ","),
        (r"^\](.*)", r"(\1"),  # ]1,2[ for (1,2)
        (r"(.*)\[$", r"\1)"),
    )
]
_SUPERSCRIPTS = "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"
_TO_NORMAL_SIZE = str.maketrans(_SUPERSCRIPTS, "-0123456789")


@functools.lru_cache(maxsize=1024)
def _plain(text: str) -> str:
    """The answer in one notation: commands for signs, no layout, no final period, `{1,2}` as a set, `{5}` as 5."""
    text = re.sub(f"[{_SUPERSCRIPTS}]+", lambda run: f"^{{{run[0].translate(_TO_NORMAL_SIZE)}}}", text)
    text = re.sub("[¼-¾⅐-⅞]", lambda sign: " " + unicodedata.normalize("NFKC", sign[0]).replace("⁄", "/"), text)
    text = re.sub("[０-９]", lambda digit: unicodedata.normalize("NFKC", digit[0]), text)
    text = text.translate(_SIGNS)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = re.sub(r"\s*\.\s*(\}?)$", r"\1", re.sub(r"\s+", " ", text).strip().rstrip("\\ "))
    while text[:1] == "(" and text[-1:] == ")" and _is_balanced(text[1:-1]) and len(_split(text[1:-1], ",;")) == 1:
        text = text[1:-1].strip()
    braced = re.fullmatch(r"\\?\{(.*?)\\?\}", text)
    if braced and _is_balanced(braced[1]):
        text = f"\\{{{braced[1]}\\}}" if len(_split(braced[1], ",")) > 1 else braced[1].strip()
    return text


def _spelling(text: str) -> str:
    """Equal for answers that are written alike: spaces between digits count, the case of words does not."""
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"(?<![0-9])\s+|\s+(?![0-9])", "", text)
    text = re.sub(r"\{(\w)\}", r"\1", text)
    return text.lower().replace(".m.", "m").replace(".m", "m") if _has_words(text) else text


_NAMES = {
    "sqrt", "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "arcsin", "arccos", "arctan", "log",
    "exp", "lim", "max", "min", "gcd", "lcm", "mod", "det",
}  # fmt: skip
_WORD = re.compile(r"(?<![a-zA-Z\\])(?:[a-zA-Z]{3,}|[nN]o|[ap]\.?m|[AP]\.?M)(?![a-zA-Z])")
_NO_WORDS = re.compile(r"\\(?:begin|end)\s*\{\w+\*?\}|\\[a-zA-Z]+")


def _has_words(text: str) -> bool:
    """Whether it is language and not mathematics; a run such as abc or xyz is a product."""
    words = [] if _number(text) is not None else _WORD.findall(_NO_WORDS.sub(" ", text))
    return any(word not in _NAMES and word not in string.ascii_lowercase for word in words)


# A choice is one capital letter; beside it may stand the value that it labels.
_CHOICE = re.compile(r"\(?(?:\\text\s*\{\s*\(?)?([A-Z])\)?\}?\)?")
_LABEL = re.compile(r"\(?(?:\\text\s*\{\s*\(?)?([A-Z])(?:\)\s*\}?|[.:]\s|\}|$)(?!.*\b[A-Z]\b)")
_LABEL_OF_A_VALUE = re.compile(r"^(?:\\text\s*\{\s*)?\([A-Z]\)(?:\s*\}\s*|\s+)(?=\S)")


def _is_balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return False
    return depth == 0


def _split(text: str, separator: str) -> list[str]:
    """The parts between separators that stand in no bracket."""
    parts = [""]
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character in separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


# Units: left out on one side they are what the question asked for; on both sides they have to agree.

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
    """(value, unit); the unit is "" when there is none."""
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
    """The unit's short name, "" if it is none; beside known ones a single noun counts, as in 7 apples."""
    adjective, _, rest = name.partition(" ")
    if adjective in ("square", "sq", "cubic", "cu") and rest:
        name, power = rest, {"s": "2", "c": "3"}[adjective[0]]
    parts = [part.strip() for part in re.split(r"/|\bper\b", name)]
    # Two letters are no plural: ms are not metres.
    short = [_UNITS.get(part) or _UNITS.get(part.removesuffix("s") if len(part) > 2 else part) for part in parts]
    if all(short):
        return "/".join(short) + (power or "")
    noun = name.lower().removesuffix("s")
    return noun if not known and noun.isalpha() and len(name) > 2 and noun not in _NO_UNITS else ""


def _in_one_unit(gold: str, gold_unit: str, guess: str, guess_unit: str) -> Iterator[tuple[str, str]]:
    """The pairs of values of which one has to be equal; the units are equal or one is missing."""
    number = _number(gold)
    # 9 % is 9 to a question that asks for percent; 1 % is not 1, which may be a share or a probability.
    if gold_unit == guess_unit or "%" not in (gold_unit, guess_unit) or number is None or abs(number) > 1:
        yield gold, guess
    if gold_unit and not guess_unit:
        yield from ((value, guess) for value in _without_factor(gold, gold_unit))
    if guess_unit and not gold_unit:
        yield from ((gold, value) for value in _without_factor(guess, guess_unit))


def _without_factor(value: str, unit: str) -> list[str]:
    if unit == "%":
        number = _number(value)
        return [f"\\frac{{{value}}}{{100}}" if number is None else str(number / 100)]
    return [f"\\frac{{({value}) \\pi}}{{180}}"] if unit == "°" else []


# Numbers. math-verify rounds decimals to six places, where 1e-7 is 2e-7 and 0.333333 a third; here they are exact.

_SIMPLE_FRAC = re.compile(r"\\frac\s*(?:\{([-+]?[0-9]+)\}|([0-9]))\s*(?:\{([-+]?[0-9]+)\}|([0-9]))")
_FRACTION = re.compile(r"([-+]?)\s*(?:([0-9]+)\s+(?=[0-9]))?([-+]?[0-9]+)\s*/\s*([-+]?[0-9]+)")
_DECIMAL = re.compile(
    r"""([-+]?)\s*((?:[0-9]+|[1-9][0-9]{0,2}(?:[, ][0-9]{3})+)(?:\.[0-9]*)?|\.[0-9]+)
        (?:\\overline\s*\{([0-9]+)\})?
        (?:(?:[eE]|\s*(?:\\times|\\cdot)\s*10\s*\^)\s*\{?([-+]?[0-9]{1,3})\}?)?
        (?:\s*(?:\\text\s*\{\s*)?(thousand|million|billion)\s*\}?)?""",
    re.VERBOSE,
)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_DECIMAL_INSIDE = re.compile(r"(?<![0-9.])([0-9]*)\.([0-9]+)(?![0-9.])")


def _number(text: str) -> Fraction | None:
    r"""The exact value of a written number: -3, 1,250.5, .5, 0.1\overline{6}, 3\times10^5, 1/2, 1\frac{1}{2}."""
    fraction = _FRACTION.fullmatch(_SIMPLE_FRAC.sub(r" \1\2/\3\4", text).strip())
    if fraction:
        sign, whole, top, bottom = fraction.groups()
        if int(bottom) == 0:
            return None
        value = int(whole or 0) + Fraction(int(top), int(bottom))
        return -value if sign == "-" else value
    decimal = _DECIMAL.fullmatch(text)
    if not decimal:
        return None
    sign, digits, period, exponent, scale = decimal.groups()
    digits = re.sub("[, ]", "", digits).removesuffix(".")
    value = Fraction(digits)
    if period:
        places = len(digits.partition(".")[2])
        value += Fraction(int(period), 10**places * (10 ** len(period) - 1))
    value *= Fraction(10) ** int(exponent or 0) * _SCALES.get(scale, 1)
    return -value if sign == "-" else value


_DIGITS_IN_BASE = re.compile(r"(?:\\text\s*\{)?([0-9][0-9A-F]*|[A-F][0-9A-F]+)\}?(?:_\{?([0-9]+)\}?)?")


def _same_in_base(gold: str, guess: str) -> bool | None:
    """Whether two numerals such as 1011_2 are alike, where one may leave out its base; None if neither names one."""
    numerals = [_DIGITS_IN_BASE.fullmatch(text) for text in (gold, guess)]
    bases = [numeral[2] for numeral in numerals if numeral and numeral[2]]
    if not bases:
        return None
    return all(numerals) and numerals[0][1] == numerals[1][1] and len(set(bases)) == 1


# Values: equations, lists, brackets.

_NAME = re.compile(r"(?:\\?[a-zA-Z]+|\\text\s*\{\w+\})(?:_\{?\w+\}?)?(?:\([a-z, ]+\))?")
_LETTER = re.compile(r"[a-zA-Z]")


def _letters(text: str) -> set[str]:
    return set(_LETTER.findall(_NO_WORDS.sub(" ", text)))


def _same_value(gold: str, guess: str) -> bool | None:
    """None if the guess cannot be read."""
    gold, guess = (_in_order(_before_rounding(text)) for text in (gold, guess))
    gold_sides, guess_sides = _split(gold, "="), _split(guess, "=")
    if len(gold_sides) > 1:
        if len(guess_sides) > 1 and _spelling(gold_sides[0]) != _spelling(guess_sides[0]):
            return _same_algebra(gold, guess)
        if not _NAME.fullmatch(gold_sides[0]):
            return _same_algebra(gold, guess)
        gold = gold_sides[-1]
    if len(guess_sides) > 1:
        # What stands before the last sign names the value, or is equal to it: 5 = 6 says two things.
        guess_sides = [side for side in guess_sides[:-1] if not _names_value(side, gold)] + guess_sides[-1:]
    verdicts = [_same_side(gold, side) for side in guess_sides]
    return None if None in verdicts else all(verdicts)


def _names_value(side: str, gold: str) -> bool:
    r"""Whether it is empty, a name such as f(x), or of variables that the value does not have, such as \angle ABC."""
    has_variables = _letters(side) and not re.search(r"[<>]|\\[lgn]e(?![a-zA-Z])", side)
    return not side or bool(_NAME.fullmatch(side) or (has_variables and not _letters(gold)))


def _before_rounding(text: str) -> str:
    exact, *rounded = text.split(r"\approx")
    return rounded[0].strip() if rounded and _NAME.fullmatch(exact.strip()) else exact.strip()


def _in_order(text: str) -> str:
    """`x=2, y=3` as (2, 3), by the order of the names; `x=2, x=3` as the list 2, 3."""
    equations = [_split(part, "=") for part in _split(text, ",;")]
    if len(equations) == 1 or not all(len(sides) == 2 and _NAME.fullmatch(sides[0]) for sides in equations):
        return text
    values = ", ".join(value for _, value in sorted(equations))
    return values if len({name.partition("_")[0] for name, _ in equations}) == 1 else f"({values})"


def _shape(text: str) -> str:
    if text.startswith(r"\{") or len(_split(text, ",;")) > 1:
        return "set"
    inner = text[1:-1]
    bracketed = text[:1] in tuple("([") and text[-1:] in tuple(")]") and _is_balanced(inner)
    return "tuple" if bracketed and len(_split(inner, ",;")) > 1 else ""


def _same_side(gold: str, guess: str) -> bool | None:
    if _spelling(gold) == _spelling(guess):
        return True
    numbers = _number(gold), _number(guess)
    if None not in numbers:
        return numbers[0] == numbers[1]
    # math-verify takes the set {1,2}, the point (1,2) and the open interval (1,2) for one another.
    if {_shape(gold), _shape(guess)} == {"set", "tuple"}:
        return False
    return _same_algebra(gold, guess)


def _same_algebra(gold: str, guess: str) -> bool | None:
    from math_verify import verify

    # Numbers side by side are a list without commas; math-verify multiplies them, and tries every closing of brackets.
    if not _is_balanced(guess) or (_number(guess) is None and re.search(r"(?<![_^0-9])[0-9]+\s+[0-9.]", guess)):
        return None
    # It also takes every letter for a small one.
    if any(letter.swapcase() in _letters(gold) for letter in _letters(guess) - _letters(gold)):
        return False
    parsed_gold, parsed_guess = _parse(gold), _parse(guess)
    if not parsed_guess:
        return None if parsed_gold else False
    # No timeout of its own: it is a signal, which does not interrupt the big-integer power that needs it most.
    return verify(parsed_gold, parsed_guess, allow_set_relation_comp=True, timeout_seconds=None)


@functools.lru_cache(maxsize=256)
def _parse(text: str) -> list:
    """What math-verify reads; empty if nothing. Units are ours, and no number is picked out of a sentence."""
    from math_verify import LatexExtractionConfig, parse

    notation = dataclasses.replace(LatexExtractionConfig().normalization_config, units=False)
    number = _number(text)
    text = text if number is None else str(number)
    text = re.sub(r"([0-9.]+)\s*°", r"(\\frac{\1 \\pi}{180})", text)
    text = _DECIMAL_INSIDE.sub(
        lambda number: f"{{\\frac{{{int(number[1] + number[2])}}}{{{10 ** len(number[2])}}}}}", text
    )
    return parse(
        f"\\boxed{{{text}}}",
        [LatexExtractionConfig(normalization_config=notation)],
        fallback_mode="no_fallback",
        extraction_mode="first_match",  # else it falls back to any \frac inside what it cannot read
        parsing_timeout=None,
    )
