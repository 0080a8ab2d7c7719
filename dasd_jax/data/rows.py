"""What every layout does with the values of a row: reads them as text, and refuses what cannot be verified."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from dasd_jax.data.instructions import without_instructions
from dasd_jax.errors import UserError
from dasd_jax.text import turns


@dataclasses.dataclass(frozen=True)
class Fields:
    """The texts of one problem; "" where the row has none."""

    question: str
    answer: str
    solution: str = ""
    hint: str = ""
    response: str = ""


@dataclasses.dataclass(frozen=True)
class Drop:
    """Why a row is no problem; printed after a count."""

    reason: str


EMPTY_QUESTION = Drop("empty question")
NO_ANSWER = Drop("no answer")
NOT_ONE_ANSWER = Drop("no unique verifiable answer")
NEEDS_IMAGE = Drop("needs an image")
PROOF = Drop("proof without a final answer")
INVALID = Drop("marked as invalid by its publisher")

# What publishers write in place of an answer, beside "proof".
_NO_ANSWER_WORDS = frozenset(["", "-", "notfound", "not found", "none", "null", "nan", "n/a"])

_MARK = "####"  # GSM8K: a worked solution, this mark, the answer
_CALCULATION = re.compile(r"<<(?=[^<>\n=]*=)[^<>\n]*>>")  # GSM8K's notes for a calculator inside a solution
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_WORD = re.compile(r"[A-Za-z]{2,}")


def checked(question: str, answer: str, solution: str = "", hint: str = "", response: str = "") -> Fields | Drop:
    """The problem of these texts, or why they are none that a program can verify.

    Instructions of other recipes are removed around a question; a conversation, whose JSON text neither begins nor ends
    with one, stays as it is. An answer in GSM8K's form is split into solution and answer; the row's own solution goes
    before that one.
    """
    question = without_instructions(question)
    if not question:
        return EMPTY_QUESTION
    if "<image" in question:
        return NEEDS_IMAGE
    worked, answer = split_marked(answer)
    answer = _without_dollars(answer)
    bare = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", answer).strip().rstrip(".").casefold()
    if bare == "proof":
        return PROOF
    if bare in _NO_ANSWER_WORDS:
        return NO_ANSWER
    if "\n" in answer or _MARK in worked or _is_worked(answer):
        return NOT_ONE_ANSWER
    return Fields(question, answer, _CALCULATION.sub("", solution or worked), hint, response)


def split_marked(answer: str) -> tuple[str, str]:
    """(worked solution, answer) of a text in GSM8K's form; ("", the text) of any other."""
    worked, _, final = answer.rpartition(_MARK)
    return _CALCULATION.sub("", worked).strip(), final.strip()


def _is_worked(answer: str) -> bool:
    """Whether an answer is sentences or a calculation in words, which no response would repeat."""
    words = len(_WORD.findall(_COMMAND.sub(" ", answer)))
    return words >= 8 or (words >= 4 and "=" in answer)


def _without_dollars(answer: str) -> str:
    return answer[1:-1].strip() if re.fullmatch(r"\$[^$]+\$", answer) else answer


def unfit(row: Mapping[str, Any]) -> Drop | None:
    """Why the publisher's own labels rule a row out: NuminaMath's and what is made of it; None if they do not."""
    if "proof" in _label(row.get("question_type")):
        return PROOF
    validity = [_label(row[name]) for name in ("problem_is_valid", "solution_is_valid") if name in row]
    return INVALID if any(label not in ("yes", "true") for label in validity) else None


def _label(value: Any) -> str:
    return (value.decode(errors="replace") if isinstance(value, bytes) else str(value)).casefold()


def as_text(row: Mapping[str, Any], column: str, *, number: bool = False) -> str:
    """The stripped text of one column, "" if null or absent; accepts the bytes and NumPy scalars that TFDS returns.

    Args:
        number: whether numbers are accepted too, as for answers.

    Raises:
        UserError: a value of another type.
    """
    value = row.get(column)
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode(errors="surrogateescape")
    if value is None:
        return ""
    if number and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise UserError(f"field {column!r} is {value}, expected a finite number")
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"field {column!r} is a {type(value).__name__}, expected a string")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise UserError(f"field {column!r} is {value!r:.50}, expected valid UTF-8 text")
    return value.strip()


def as_question(row: Mapping[str, Any], column: str) -> str:
    """The question in a column: a text, or a conversation (text/turns.py) as a list or as its JSON text.

    Raises:
        UserError: a value of another type, or a conversation that is none.
    """
    conversation = turns.listed(row.get(column))
    if conversation is None:
        return as_text(row, column)
    try:
        return turns.as_question(conversation)
    except UserError as error:
        raise UserError(f"field {column!r}: {error}") from error


def texts(row: Mapping[str, Any], column: str) -> list[str]:
    """The non-empty strings of a column that holds a list of strings."""
    values = row.get(column) or []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UserError(f"field {column!r} is {values!r:.50}, expected a list of strings")
    return [value.strip() for value in values if value.strip()]


def unpacked(value: Any) -> Any:
    """What the JSON text of a nested column holds; any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
