"""Column layouts of published mathematics data sets: one row of a file → a problem, or why it is dropped.

A layout is recognised by its columns. `of_columns` makes one for any other file.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from dasd_jax.data.boxes import boxes
from dasd_jax.errors import UserError

FIELDS = ("question", "answer", "solution", "hint")
_NEEDED = ("question", "answer")


@dataclasses.dataclass(frozen=True)
class Fields:
    """The texts of one problem; "" where the row has none."""

    question: str
    answer: str
    solution: str = ""
    hint: str = ""


@dataclasses.dataclass(frozen=True)
class Drop:
    """Why a row is dropped; printed after a count."""

    reason: str


EMPTY_QUESTION = Drop("empty question")
NO_ANSWER = Drop("no answer")
NOT_ONE_ANSWER = Drop("no unique verifiable answer")
NEEDS_IMAGE = Drop("needs an image")
PROOF = Drop("proof without a final answer")
NOT_ENGLISH = Drop("not in English")
UNKNOWN_PROMPT = Drop("unrecognised prompt wrapper")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How to read the rows of one layout.

    Attributes:
        columns: the columns that identify the layout; every row has all of them.
        read: row → the fields of its problem, or the reason to drop it. Raises UserError for a value of the wrong type.
    """

    name: str
    published_as: str
    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Fields | Drop]


def recognise(columns: Collection[str]) -> Layout | None:
    """The first layout of `LAYOUTS` whose columns are all present."""
    return next((layout for layout in LAYOUTS if set(layout.columns) <= set(columns)), None)


def of_columns(columns: Mapping[str, str]) -> Layout:
    """The layout of a file with user-specified columns: field → column; unnamed fields map to the column of that name.

    A named column must exist; `solution` and `hint` may be absent if they are not named.

    Raises:
        UserError: an unknown field.
    """
    for name in columns:
        if name not in FIELDS:
            raise UserError(f"unknown field {name!r}, expected one of {', '.join(FIELDS)}")
    names = {name: columns.get(name, name) for name in FIELDS}
    needed = tuple(column for name, column in names.items() if name in columns or name in _NEEDED)
    return Layout("columns", "any file", needed, lambda row: _plain(row, **names))


def check_columns(layout: Layout, row: Mapping[str, Any]) -> None:
    """Raises UserError, naming the column, if a row lacks one that the layout needs."""
    for column in layout.columns:
        if column not in row:
            raise UserError(f"no field {column!r}, the row has {', '.join(sorted(row)) or 'none'}")


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


def _plain(
    row: Mapping[str, Any], question: str, answer: str, solution: str = "solution", hint: str = "hint"
) -> Fields | Drop:
    return _checked(
        as_text(row, question), as_text(row, answer, number=True), as_text(row, solution), as_text(row, hint)
    )


def _checked(question: str, answer: str, solution: str = "", hint: str = "") -> Fields | Drop:
    if not question:
        return EMPTY_QUESTION
    answer = _without_dollars(answer)
    if not answer:
        return NO_ANSWER
    # A worked solution in the answer column, as in GSM8K: the verifier would compare every response with all of it.
    if "\n" in answer:
        return NOT_ONE_ANSWER
    return Fields(question, answer, solution, hint)


def _without_dollars(answer: str) -> str:
    return answer[1:-1].strip() if re.fullmatch(r"\$[^$]+\$", answer) else answer


_DAPO_PROMPT = re.compile(
    r"Solve the following math problem step by step\. The last line of your response should be of the form "
    r"Answer: \$Answer \(without quotes\) where \$Answer is the answer to the problem\.\s*"
    r"(?P<question>.*?)"
    r"\s*Remember to put your answer on its own line after \"Answer:\"\.\s*",
    re.DOTALL,
)
# Either half of DAPO's wrapper: left in the question, it would ask for a different answer format than our instruction.
_DAPO_WRAPPER_PARTS = ("Solve the following math problem step by step.", "put your answer on its own line")


def _dapo(row: Mapping[str, Any]) -> Fields | Drop:
    messages, reward = row["prompt"], row["reward_model"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UserError(f"field 'prompt' is a {type(messages).__name__}, expected messages with role and content")
    if not isinstance(reward, dict):
        raise UserError(f"field 'reward_model' is a {type(reward).__name__}, expected ground_truth and style")
    asked = [as_text(message, "content") for message in messages]
    if len(asked) != 1:
        return UNKNOWN_PROMPT
    wrapped = _DAPO_PROMPT.fullmatch(asked[0])
    question = wrapped["question"] if wrapped else asked[0]
    if any(part in question for part in _DAPO_WRAPPER_PARTS):
        return UNKNOWN_PROMPT
    return _checked(question, as_text(reward, "ground_truth", number=True))


def _boxed(row: Mapping[str, Any]) -> Fields | Drop:
    solution = as_text(row, "solution")
    return _checked(as_text(row, "problem"), _last_box(solution), solution)


def _last_box(text: str) -> str:
    """The content of the last closed, non-empty box; "" without one."""
    # LaTeX treats a line break inside it as a space.
    return next(filter(None, (" ".join(box.split()) for box in boxes(text))), "")


def _olympiad(row: Mapping[str, Any]) -> Fields | Drop:
    images = [value for name, value in row.items() if re.fullmatch(r"image_\d+", name) and value is not None]
    question = "\n\n".join(filter(None, (as_text(row, "context"), as_text(row, "question"))))
    if as_text(row, "language") not in ("English", ""):
        return NOT_ENGLISH
    if images or as_text(row, "modality") == "Multimodal" or "<image_" in question:
        return NEEDS_IMAGE
    if "proof" in as_text(row, "question_type").lower():
        return PROOF
    answers = _texts(row, "final_answer")
    # The verifier has no tolerances: it would reject answers that the exam accepts.
    needs_judge = as_text(row, "answer_type") == "Need_human_evaluate" or as_text(row, "error")
    if row.get("is_multiple_answer") or len(answers) > 1 or needs_judge:
        return NOT_ONE_ANSWER
    return _checked(question, "".join(answers), "\n\n".join(_texts(row, "solution")))


def _texts(row: Mapping[str, Any], column: str) -> list[str]:
    """The non-empty strings of a column that holds a list of strings."""
    values = row.get(column) or []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UserError(f"field {column!r} is {values!r:.50}, expected a list of strings")
    return [value.strip() for value in values if value.strip()]


# The most specific first: the first match is used.
LAYOUTS: Sequence[Layout] = (
    Layout(
        "dapo_processed",
        "open-r1/DAPO-Math-17k-Processed",
        ("prompt", "solution", "source_prompt"),
        # Its column `solution` holds the final answer.
        lambda row: _checked(as_text(row, "prompt"), as_text(row, "solution", number=True)),
    ),
    Layout("dapo", "BytedTsinghua-SIA/DAPO-Math-17k", ("prompt", "reward_model"), _dapo),
    Layout("olympiadbench", "Hothan/OlympiadBench", ("question", "final_answer", "modality"), _olympiad),
    Layout(
        "problem_answer",
        "HuggingFaceH4/MATH-500, HuggingFaceH4/aime_2024, math-ai/aime25, MathArena/hmmt_feb_2025",
        ("problem", "answer"),
        lambda row: _plain(row, "problem", "answer"),
    ),
    Layout(
        "problem_answer_capitals",
        "Maxwell-Jia/AIME_2024",
        ("Problem", "Answer"),
        lambda row: _plain(row, "Problem", "Answer", "Solution"),
    ),
    Layout("boxed", "Minerva and MATH, the answer boxed in the solution", ("problem", "solution"), _boxed),
    Layout(
        "question_answer",
        "math-ai/minervamath, opencompass/AIME2025",
        FIELDS[:2],
        lambda row: _plain(row, "question", "answer"),
    ),
)
