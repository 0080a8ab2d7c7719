"""A configuration field is declared in one line: its default, its range and its meaning.

    rho: float = field(0.2, inside(0, 1), "share of a response's tokens that are forks")

Checks, ConfigDict, --help-config and docs/fields.md all read these declarations.
"""

import dataclasses
import math
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
    return Range(lambda value: value in choices, "one of " + ", ".join(choices))


TRUE_OR_FALSE = Range(lambda value: isinstance(value, bool), "true or false")


def anything(words: str = "any value of its type") -> Range:
    """Every value of the field's type; what else is expected of it is checked where it is used."""
    return Range(lambda value: True, words)


def field(default: Any, allowed: Range, meaning: str) -> Any:
    """Declares a field of a `Fields` class."""
    return dataclasses.field(default=default, metadata={"range": allowed, "meaning": meaning})


@dataclasses.dataclass(frozen=True)
class Fields:
    """Base of every group of fields: a value out of its range is refused when the object is made.

    Raises:
        UserError: naming group, field, value and range.
    """

    group: ClassVar[str] = ""

    def __post_init__(self):
        for declared in dataclasses.fields(self):
            value, allowed = getattr(self, declared.name), declared.metadata["range"]
            finite = not isinstance(value, float) or math.isfinite(value)
            require(f"{self.group}.{declared.name}", value, finite and allowed.fits(value), allowed.expected)


def require(name: str, value: Any, fits: bool, expected: str) -> None:
    """Refuses a value.

    Raises:
        UserError: it does not fit.
    """
    if not fits:
        raise UserError(f"{name}: {value!r}: expected {expected}")
