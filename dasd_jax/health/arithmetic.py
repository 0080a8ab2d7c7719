"""Exact arithmetic of expressions that a model wrote: numbers, + - * / ^ %, parentheses; nothing is executed.

Numbers, powers, nesting and every value on the way are bounded, so that no expression is expensive.
"""

import functools
import re
from fractions import Fraction
from typing import NamedTuple

_MOST_DIGITS = 30  # of a number as it is written
_MOST_DECIMALS = 10  # that a result is held to: calculators write 54.00000000000001
_MOST_BITS = 1024  # of a numerator or denominator on the way


class Side(NamedTuple):
    """An expression: its exact value, whether it has an operator, and how far a rounded number may be off."""

    value: int | Fraction
    operator: bool
    rounding: int | Fraction  # half a unit of the last digit of a single decimal number or percentage; else 0
    percentage: bool


class _NotCheckable(Exception):
    """An expression with a syntax that is not read, or numbers past the bounds."""


_NUMBER = r"\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
_TOKEN = re.compile(rf" ?(?:({_NUMBER})|([-+*/^()%]))")
_SINGLE = re.compile(r"\(?-? ?(?:[\d,]*(?:\.(\d+))?)(%?)\)?")
_OPERATOR = re.compile(r"[\d)%] ?[-+*/^]|[\d)]\(")  # between two operands
_OPERAND_ENDS = tuple("0123456789)")
_DEEPEST = 20  # parentheses and signs inside one another


def equal(left: Side, right: Side) -> bool:
    """Whether two values are the same, or one is the other rounded to the digits that are written.

    The percent sign of a single number may stand for itself: 10 / 50 = 20% holds, and 10 / 50 * 100 = 20% as well.
    """
    for number, other in ((right, left), (left, right)):
        for scale in (1, 100) if number.percentage else (1,):
            if abs(number.value * scale - other.value) <= number.rounding * scale:
                return True
    return False


@functools.lru_cache(maxsize=1 << 16)
def evaluate(side: str) -> Side | None:
    """The value of an expression; None if it is not checkable."""
    tokens = []
    place = 0
    while place < len(side):
        token = _TOKEN.match(side, place)
        if token is None:
            return None
        if token[0] == "(" and side.endswith(_OPERAND_ENDS, 0, place):
            tokens.append("*")  # 2(3 + 4); with a space between them the two would be separate numbers
        tokens.append(token[1] or token[2])
        place = token.end()
    try:
        value, end = _sum(tokens, 0, 0)
    except (_NotCheckable, ZeroDivisionError):
        return None
    if end != len(tokens):
        return None
    single = _SINGLE.fullmatch(side)
    operator = _OPERATOR.search(side) is not None
    if single is None or not (single[1] or single[2]):
        return Side(value, operator, 0, False)
    digits = min(len(single[1] or ""), _MOST_DECIMALS) + (2 if single[2] else 0)
    return Side(value, operator, Fraction(1, 2 * 10**digits), bool(single[2]))


def _sum(tokens: list[str], at: int, depth: int) -> tuple[int | Fraction, int]:
    value, at = _product(tokens, at, depth)
    while at < len(tokens) and tokens[at] in ("+", "-"):
        other, end = _product(tokens, at + 1, depth)
        value, at = _bounded(value + other if tokens[at] == "+" else value - other), end
    return value, at


def _product(tokens: list[str], at: int, depth: int) -> tuple[int | Fraction, int]:
    value, at = _signed(tokens, at, depth)
    while at < len(tokens) and tokens[at] in ("*", "/"):
        other, end = _signed(tokens, at + 1, depth)
        value, at = _bounded(value * other if tokens[at] == "*" else Fraction(value, other)), end
    return value, at


def _signed(tokens: list[str], at: int, depth: int) -> tuple[int | Fraction, int]:
    """A power, or the negative of one: -2^2 is -4."""
    if depth == _DEEPEST:
        raise _NotCheckable
    if at < len(tokens) and tokens[at] == "-":
        value, at = _signed(tokens, at + 1, depth + 1)
        return -value, at
    base, at = _operand(tokens, at, depth)
    if at < len(tokens) and tokens[at] == "^":
        exponent, at = _signed(tokens, at + 1, depth + 1)
        return _power(base, exponent), at
    return base, at


def _operand(tokens: list[str], at: int, depth: int) -> tuple[int | Fraction, int]:
    """A number or an expression in parentheses, and a percent sign after it."""
    if at == len(tokens):
        raise _NotCheckable
    token, at = tokens[at], at + 1
    if token == "(":
        value, at = _sum(tokens, at, depth + 1)
        if tokens[at : at + 1] != [")"]:
            raise _NotCheckable
        at += 1
    elif token[-1].isdigit() and len(token) <= _MOST_DIGITS:
        digits = token.replace(",", "")
        value = Fraction(digits) if "." in digits else int(digits)
    else:
        raise _NotCheckable
    if tokens[at : at + 1] == ["%"]:
        return Fraction(value, 100), at + 1
    return value, at


def _power(base: int | Fraction, exponent: int | Fraction) -> int | Fraction:
    if exponent != int(exponent):
        raise _NotCheckable  # a root
    largest = max(abs(base.numerator).bit_length(), base.denominator.bit_length())
    if abs(exponent) * largest > _MOST_BITS:
        raise _NotCheckable
    return Fraction(base) ** int(exponent)


def _bounded(value: int | Fraction) -> int | Fraction:
    if max(abs(value.numerator), value.denominator).bit_length() > _MOST_BITS:
        raise _NotCheckable
    return value
