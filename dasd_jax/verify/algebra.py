"""Algebra: both sides are parsed by math-verify, with what it loses put right before, and compared exactly.

Its imports, and sympy's, are made by the first comparison.
"""

import dataclasses
import functools
import re

from dasd_jax.verify.notation import exact_value, is_balanced, letters


def same_algebra(gold: str, guess: str) -> bool | None:
    """Whether two answers in the notation of `plain` are equal as mathematics; None if the guess cannot be parsed."""
    from dasd_jax.verify.equality import equal

    # Numbers separated by spaces are a list, which math-verify multiplies; unbalanced brackets it tries to close.
    if not is_balanced(guess) or (exact_value(guess) is None and re.search(r"(?<![_^0-9])[0-9]+\s+[0-9.]", guess)):
        return None
    # It also ignores the case of letters, the base of a numeral and primes that do not follow a letter.
    if any(letter.swapcase() in letters(gold) for letter in letters(guess) - letters(gold)):
        return False
    if any(re.search(r"[0-9]\s*_|[^a-zA-Z']'", text) for text in (gold, guess)):
        return False
    # The gcd of variables it takes for that of polynomials: 1.
    if any(re.search(r"\\(?:gcd|lcm)(?![a-zA-Z])", text) and letters(text) for text in (gold, guess)):
        return False
    parsed_gold, parsed_guess = _parse(gold), _parse(guess)
    if parsed_guess is None:
        return None if parsed_gold is not None else False
    if parsed_gold is None:
        return False
    try:
        return equal(parsed_gold, parsed_guess)
    except MemoryError:
        raise
    except Exception:  # sympy raises many kinds on what it cannot compare, and recursion may be too deep
        return False


_DECIMAL_INSIDE = re.compile(r"(?<![0-9.])(?:[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]{1,3}|[0-9]*\.[0-9]+)(?![0-9.])")


@functools.lru_cache(maxsize=256)
def _parse(text: str):
    """The sympy value of the whole text; None if it cannot be parsed: no number is picked out of a sentence."""
    from math_verify import LatexExtractionConfig, parse
    from sympy import Basic, MatrixBase

    # Units are not removed: `split_unit` did it.
    notation = dataclasses.replace(LatexExtractionConfig().normalization_config, units=False)
    number = exact_value(text)
    text = text if number is None else str(number)
    text = re.sub(r"([0-9.]+)\s*°", r"(\\frac{\1 \\pi}{180})", text)
    text = _DECIMAL_INSIDE.sub(_as_fraction, text)
    text = re.sub(r"([a-zA-Z])('+)", lambda symbol: f"{symbol[1]}_{{{'prime' * len(symbol[2])}}}", text)
    found = parse(
        f"\\boxed{{{text}}}",
        [LatexExtractionConfig(normalization_config=notation)],
        fallback_mode="no_fallback",
        extraction_mode="first_match",  # otherwise it falls back to any \frac inside text that it cannot parse
        # Its timeout is a signal that Python cannot handle during a power of big integers; the worker has its own.
        parsing_timeout=None,
    )
    return found[0] if found and isinstance(found[0], Basic | MatrixBase) else None


def _as_fraction(decimal: re.Match) -> str:
    value = exact_value(decimal[0])
    return f"{{\\frac{{{value.numerator}}}{{{value.denominator}}}}}"
