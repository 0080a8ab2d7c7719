"""A configuration field is declared in one line: its type, its default, its range and its meaning.

    rho: float = field(0.2, inside(0, 1), "share of a response's tokens that are forks")

Checks, ConfigDict, --help-config and docs/fields.md all read these declarations.
"""

import dataclasses
import datetime
import math
import re
from collections.abc import Callable
from typing import Any, ClassVar

from dasd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a field may take.

    Attributes:
        fits: whether a value of the field's type is one of them.
        expected: the range in words, after "expected".
    """

    fits: Callable[[Any], bool]
    expected: str


def at_least(low: float, unit: str = "", off: bool = False) -> Range:
    """Numbers ≥ low; with `off`, 0 switches something off and the words say so."""
    words = f"{low:g} (off) or more" if off else f"{low:g} or more"
    return Range(lambda value: value >= low, f"{words} {unit}".rstrip())


def above(low: float, unit: str = "") -> Range:
    """Numbers > low."""
    return Range(lambda value: value > low, f"more than {low:g} {unit}".rstrip())


def inside(low: float, high: float) -> Range:
    """Numbers strictly between two bounds."""
    return Range(lambda value: low < value < high, f"a number strictly between {low:g} and {high:g}")


def span(low: float, high: float, unit: str = "") -> Range:
    """Numbers from low to high, both included."""
    return Range(lambda value: low <= value <= high, f"{low:.15g} to {high:.15g} {unit}".rstrip())


def one_of(*choices: str) -> Range:
    """One of some names."""
    return Range(lambda value: value in choices, "one of " + ", ".join(choice or "'' (empty)" for choice in choices))


def exactly(value: float, where: str) -> Range:
    """One number alone, where another would be wrong."""
    return Range(lambda given: given == value, f"{value} {where}")


def anything(words: str = "any value of its type") -> Range:
    """Every value of the field's type; what else is expected of it is checked where it is used."""
    return Range(lambda value: True, words)


TRUE_OR_FALSE = anything("true or false")


def field(default: Any, allowed: Range, meaning: str) -> Any:
    """Declares a field of a `Fields` class."""
    return dataclasses.field(default=default, metadata={"range": allowed, "meaning": meaning})


@dataclasses.dataclass(frozen=True)
class Fields:
    """Base of every group of fields: a value of another type or out of its range is refused when the object is made.

    Beside its own range every number has to fit a device and every text a terminal and a file.

    Raises:
        UserError: naming group, field, value and what was expected.
    """

    group: ClassVar[str] = "objective"  # of a method's own fields; the other groups give their names

    def __post_init__(self):
        for each in dataclasses.fields(self):
            name, allowed = f"{self.group}.{each.name}", each.metadata["range"]
            value = _typed(name, getattr(self, each.name), each.type)
            require(name, value, allowed.fits(value), allowed.expected)
            object.__setattr__(self, each.name, value)


def require(name: str, value: Any, fits: bool, expected: str) -> None:
    """Refuses a value.

    Raises:
        UserError: it does not fit.
    """
    if not fits:
        try:
            shown = repr(value)
        except ValueError:  # Python writes no number of more than 4,300 digits
            shown = "a number of thousands of digits"
        raise UserError(f"{name}: {shown}: expected {expected}")


_TYPES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple[str, ...]: "tuple of texts",
}


def type_words(kind: Any) -> str:
    """The type of a field in words, after "expected"."""
    return _TYPES[kind]


def _typed(name: str, value: Any, kind: Any) -> Any:
    """The value as its field holds it: whole numbers are numbers too, and lists are kept as tuples."""
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 2**1000 else math.inf
    if kind == tuple[str, ...]:
        value = tuple(value) if isinstance(value, list) else value
        fits = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    else:
        fits = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
    require(name, value, fits, type_words(kind))
    if kind is float:
        require(name, value, math.isfinite(value), "a finite number")
    if kind is int:
        require(name, value, abs(value) < 2**31, "a number of 32 bits")
    for text in value if isinstance(value, tuple) else [value]:
        if isinstance(text, str):
            require(name, value, text.isprintable(), "text without control characters")
    return value


# Ranges of texts.
SHA256 = Range(lambda text: re.fullmatch("[0-9a-f]{64}|", text) is not None, "64 hexadecimal digits, or nothing")


def _is_moment(text: str) -> bool:
    try:
        return not text or datetime.datetime.fromisoformat(text).tzinfo is None
    except ValueError:
        return False


PROJECT = Range(
    lambda name: re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,99}", name) is not None,
    "1 to 100 letters, digits, and not at the start _ . -",
)
MOMENT = Range(_is_moment, "a date as 2026-01-31, with or without a time as in 2026-01-31T12:00, or nothing")
