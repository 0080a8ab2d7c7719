"""Column layouts of published mathematics data sets: one row of a file → a problem, or why it is dropped.

A layout is recognised by its columns. `of_columns` makes one for any other file. docs/data.md lists what is read.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from dasd_jax.data.boxed import boxed_answer
from dasd_jax.data.instructions import is_wrapped
from dasd_jax.data.rows import (
    NEEDS_IMAGE,
    NOT_ONE_ANSWER,
    Drop,
    Fields,
    as_question,
    as_text,
    checked,
    split_marked,
    texts,
    unfit,
    unpacked,
)
from dasd_jax.errors import UserError
from dasd_jax.text.turns import listed

FIELDS = tuple(field.name for field in dataclasses.fields(Fields))
_NEEDED = ("question", "answer")

NOT_ENGLISH = Drop("not in English")
NOT_MATHEMATICS = Drop("another ability than mathematics")
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

    A named column must exist; `solution`, `hint` and `response` may be absent if they are not
    named.

    Raises:
        UserError: an unknown field.
    """
    for name in columns:
        if name not in FIELDS:
            raise UserError(f"unknown field {name!r}, expected one of {', '.join(FIELDS)}")
    names = {name: columns.get(name, name) for name in FIELDS}
    needed = tuple(column for name, column in names.items() if name in columns or name in _NEEDED)
    return Layout("columns", "any file", needed, lambda row: _plain(row, **names))


def read(layout: Layout, where: str, row: Mapping[str, Any]) -> Fields | Drop:
    """The problem of a row, or why it is none: the one check of all that is read from files.

    Args:
        where: the row's place, for error messages.

    Raises:
        UserError: a column is missing or holds a value of the wrong type.
    """
    for column in layout.columns:
        if column not in row:
            raise UserError(f"{where}: no field {column!r}, the row has {', '.join(sorted(row)) or 'none'}")
    try:
        return layout.read(row)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _plain(
    row: Mapping[str, Any],
    question: str,
    answer: str,
    solution: str = "solution",
    hint: str = "hint",
    response: str = "response",
) -> Fields | Drop:
    others = (as_text(row, column) for column in (solution, hint, response))
    return unfit(row) or checked(as_question(row, question), as_text(row, answer, number=True), *others)


def _boxed(row: Mapping[str, Any], question: str) -> Fields | Drop:
    text, solution = as_question(row, question), as_text(row, "solution")
    answer, others = boxed_answer(text, solution), (as_text(row, column) for column in ("hint", "response"))
    return unfit(row) or (NOT_ONE_ANSWER if answer is None else checked(text, answer, solution, *others))


def _verl(row: Mapping[str, Any]) -> Fields | Drop:
    """A conversation beside a ground truth; nested columns may be JSON texts, as some converters write them."""
    if not _is_mathematics(row, "ability"):
        return NOT_MATHEMATICS
    if row.get("images"):
        return NEEDS_IMAGE
    reward = unpacked(row["reward_model"]) or {}
    if not isinstance(reward, dict):
        raise UserError(f"field 'reward_model' is a {type(reward).__name__}, expected ground_truth and style")
    extra = unpacked(row.get("extra_info"))
    truth = _one_truth(reward)
    if isinstance(truth, Drop):
        return truth
    return _unwrapped(row, truth, _solution(extra, truth) if isinstance(extra, dict) else "")


def _sdpo(row: Mapping[str, Any]) -> Fields | Drop:
    if not _is_mathematics(row, "kind"):
        return NOT_MATHEMATICS
    return _unwrapped(row, as_text(row, "answer", number=True))


def _roll(row: Mapping[str, Any]) -> Fields | Drop:
    tested = any(row.get(column) for column in ("case_type", "test_cases", "test_case_function"))
    if tested or not _is_mathematics(row, "domain"):
        return NOT_MATHEMATICS
    truth, question = _one_truth(row), _asked(row)
    return next((part for part in (truth, question) if isinstance(part, Drop)), None) or checked(question, truth)


def _is_mathematics(row: Mapping[str, Any], column: str) -> bool:
    """Whether a column that names the ability asked for says mathematics, or nothing."""
    ability = as_text(row, column).casefold()
    return not ability or "math" in ability


def _unwrapped(row: Mapping[str, Any], answer: str, solution: str = "") -> Fields | Drop:
    """The problem of a prompt that a recipe may have wrapped in instructions."""
    question = _asked(row)
    if isinstance(question, Drop):
        return question
    found = checked(question, answer, solution)
    return UNKNOWN_PROMPT if isinstance(found, Fields) and is_wrapped(found.question) else found


def _asked(row: Mapping[str, Any]) -> str | Drop:
    """The text in `prompt`, or that of the one user turn of its conversation, without system turns."""
    turns = listed(row["prompt"])
    if turns is None:
        text = as_text(row, "prompt")
        return UNKNOWN_PROMPT if text.startswith("[{") else text  # a conversation, but not in JSON
    # A system turn holds a recipe's instructions, never the problem.
    turns = [turn for turn in turns if turn.get("role") != "system"]
    if [turn.get("role") for turn in turns] != ["user"]:
        return UNKNOWN_PROMPT
    return as_text(turns[0], "content")


def _one_truth(row: Mapping[str, Any]) -> str | Drop:
    """The reference in `ground_truth`: an answer, a list with one answer, or the JSON text of such a list."""
    value = row.get("ground_truth")
    listed = unpacked(value)
    # The text [1, 2] is an interval or a vector, the text ["1"] a list of answers.
    if not isinstance(listed, list) or (isinstance(value, str) and not all(isinstance(one, str) for one in listed)):
        return as_text(row, "ground_truth", number=True)
    answers = dict.fromkeys(as_text({"ground_truth": one}, "ground_truth", number=True) for one in listed)
    return NOT_ONE_ANSWER if len(answers) > 1 else next(iter(answers), "")


def _solution(extra: Mapping[str, Any], truth: str) -> str:
    """A worked solution beside a prompt: `solution`, or `answer` in GSM8K's form if it ends in the same answer."""
    solution, worked = (value if isinstance(value, str) else "" for value in map(extra.get, ("solution", "answer")))
    steps, final = split_marked(worked)
    return solution.strip() or (steps if final.replace(",", "") == truth.replace(",", "") else "")


def _dapo_processed(row: Mapping[str, Any]) -> Fields | Drop:
    if not _is_mathematics(row, "ability"):
        return NOT_MATHEMATICS
    # Its column `solution` holds the final answer.
    return checked(as_text(row, "prompt"), as_text(row, "solution", number=True))


def _olympiad(row: Mapping[str, Any]) -> Fields | Drop:
    images = [value for name, value in row.items() if re.fullmatch(r"image_\d+", name) and value is not None]
    question = "\n\n".join(filter(None, (as_text(row, "context"), as_text(row, "question"))))
    if as_text(row, "language") not in ("English", ""):
        return NOT_ENGLISH
    if images or as_text(row, "modality") == "Multimodal":
        return NEEDS_IMAGE
    if reason := unfit(row):
        return reason
    answers = texts(row, "final_answer")
    # The verifier has no tolerances: it would reject answers that the exam accepts.
    needs_judge = as_text(row, "answer_type") == "Need_human_evaluate" or as_text(row, "error")
    if row.get("is_multiple_answer") or len(answers) > 1 or needs_judge:
        return NOT_ONE_ANSWER
    return checked(question, "".join(answers), "\n\n".join(texts(row, "solution")))


# The most specific first: the first match is used.
LAYOUTS: Sequence[Layout] = (
    Layout(
        "dapo_processed", "open-r1/DAPO-Math-17k-Processed", ("prompt", "solution", "source_prompt"), _dapo_processed
    ),
    Layout(
        "verl",
        "files for verl: BytedTsinghua-SIA/DAPO-Math-17k, Skywork/Skywork-OR1-RL-Data, SDPO's Parquet files",
        ("prompt", "reward_model"),
        _verl,
    ),
    Layout("sdpo", "SDPO's JSON files", ("prompt", "answer", "kind"), _sdpo),
    Layout("roll", "files for ROLL", ("prompt", "ground_truth"), _roll),
    Layout("olympiadbench", "Hothan/OlympiadBench", ("question", "final_answer", "modality"), _olympiad),
    Layout(
        "deepmath",
        "zwhe99/DeepMath-103K",
        ("question", "final_answer", "r1_solution_1"),
        lambda row: _plain(row, "question", "final_answer", "r1_solution_1"),
    ),
    Layout(
        "problem_answer",
        "AI-MO/NuminaMath-1.5, open-r1/OpenR1-Math-220k, HuggingFaceH4/MATH-500, HuggingFaceH4/aime_2024, "
        "math-ai/aime25, MathArena/hmmt_feb_2025",
        ("problem", "answer"),
        lambda row: _plain(row, "problem", "answer"),
    ),
    Layout(
        "opsd",
        "siyanzhao/Openthoughts_math_30k_opsd",
        ("problem", "solution", "Answer"),
        lambda row: _plain(row, "problem", "Answer"),
    ),
    Layout(
        "problem_answer_capitals",
        "Maxwell-Jia/AIME_2024",
        ("Problem", "Answer"),
        lambda row: _plain(row, "Problem", "Answer", "Solution"),
    ),
    Layout(
        "question_answer",
        "openai/gsm8k, math-ai/minervamath, opencompass/AIME2025",
        _NEEDED,
        lambda row: _plain(row, "question", "answer"),
    ),
    Layout(
        "problem_boxed",
        "MATH and Minerva, the answer boxed in the solution",
        ("problem", "solution"),
        lambda row: _boxed(row, "problem"),
    ),
    Layout(
        "question_boxed",
        "the same with a question",
        ("question", "solution"),
        lambda row: _boxed(row, "question"),
    ),
)
