r"""Verifiers beside that of mathematics: multiple choice, regular expressions and numbers with a tolerance.

They judge the extracted answer in the verifier's worker processes; `unfit` alone runs in the trainer, on references.
"""

import re
from fractions import Fraction

from dasd_jax.data.verifiers import tolerance
from dasd_jax.verify.grading import RIGHT, WRONG, grade
from dasd_jax.verify.notation import exact_value, plain
from dasd_jax.verify.units import split_unit

_LETTER = re.compile(r"\(?([A-Za-z])[).:]{0,2}")


def unfit(name: str, reference: str) -> str:
    """What a verifier expects of its references, where this one is none; "" if it is, or nothing is expected."""
    if name == "choice" and not _letter(reference):
        return "one letter, as in B or (B)"
    if name.startswith("numeric") and _number(reference) is None:
        return "a number"
    if name == "regex":
        try:
            re.compile(reference)
        except re.error as error:
            return f"a regular expression ({error})"
    return ""


def judge(name: str, reference: str, answer: str) -> tuple[float, str]:
    """(score, error) of an answer by `choice`, `regex`, `numeric` or `numeric?rel=…`."""
    if name == "choice":
        return grade(_letter(reference), _letter(answer) or answer)
    if name == "regex":
        return RIGHT if re.fullmatch(reference, answer) else WRONG
    return RIGHT if _near(reference, answer, tolerance(name)) else grade(reference, answer)


def _letter(text: str) -> str:
    """The capital of a text that is one letter, perhaps in parentheses or before a period; "" of any other."""
    found = _LETTER.fullmatch(plain(text))
    return found[1].upper() if found else ""


def _near(reference: str, answer: str, relative: float) -> bool:
    """Whether both are numbers of one unit, or one has none, that differ by at most a share of the reference.

    A percent sign on one side alone is left to `grade`: it may be a hundredth.
    """
    gold, guess = _number(reference), _number(answer)
    if gold is None or guess is None:
        return False
    (gold, gold_unit), (guess, guess_unit) = gold, guess
    if gold_unit != guess_unit and ((gold_unit and guess_unit) or "%" in (gold_unit, guess_unit)):
        return False
    return abs(guess - gold) <= Fraction(relative) * abs(gold)


def _number(text: str) -> tuple[Fraction, str] | None:
    r"""(exact value, unit) of a written number, also after a name, as in x = 5 or x \approx 5; None if it is none."""
    *names, last = plain(text).replace(r"\approx", "=").split("=")
    value, unit = split_unit(plain(last))
    number = exact_value(value)
    if number is None or any(exact_value(name.strip()) is not None for name in names):  # 5 = 6
        return None
    return number, unit
