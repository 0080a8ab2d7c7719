"""The published layouts, each by rows as they are published: what they become, and why a row is left out."""

import pytest

from dasd_jax.data import layouts
from dasd_jax.data.layouts import Drop, Fields
from dasd_jax.errors import UserError

DAPO_BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
DAPO_AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'


def dapo(question="What is $1+1$?", answer="2", before=DAPO_BEFORE, after=DAPO_AFTER):
    return {
        "data_source": "math_dapo",
        "prompt": [{"role": "user", "content": before + question + after}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": "9a9b6eb4"},
    }


def dapo_processed(question="What is $1+1$?", answer="2"):
    prompt = dapo(question, answer)
    return {**prompt, "prompt": question, "solution": answer, "source_prompt": prompt["prompt"]}


def olympiad(**changes):
    return {
        "id": 1606,
        "question": "Find $x$.",
        "solution": ["Double it.", "Or guess."],
        "final_answer": ["$\\frac{1}{2}$"],
        "context": None,
        **{f"image_{i}": None for i in range(1, 10)},
        "modality": "Text-only",
        "difficulty": "Competition",
        "is_multiple_answer": False,
        "unit": None,
        "answer_type": "Numerical",
        "error": None,
        "question_type": "Open-ended",
        "subfield": "Algebra",
        "subject": "Math",
        "language": "English",
    } | changes


WORKED = Fields("1+1?", "2", "One more.")
PUBLISHED = {
    "DAPO": (dapo(), "dapo", Fields("What is $1+1$?", "2")),
    "DAPO, processed": (dapo_processed(), "dapo_processed", Fields("What is $1+1$?", "2")),
    "MATH-500": (
        {"problem": "1+1?", "solution": "One more.", "answer": "2", "subject": "Algebra", "level": 2, "unique_id": "t"},
        "problem_answer",
        WORKED,
    ),
    "AIME 2024": (
        {"id": 60, "problem": "1+1?", "solution": "One more.", "answer": "2", "url": "https://", "year": "2024"},
        "problem_answer",
        WORKED,
    ),
    "AIME 2024 in capitals": (
        {"ID": "2024-II-4", "Problem": "1+1?", "Solution": "One more.", "Answer": 2},
        "problem_answer_capitals",
        WORKED,
    ),
    "AIME 2025": ({"problem": "1+1?", "answer": "2", "id": "0"}, "problem_answer", Fields("1+1?", "2")),
    "AIME 2025 by question": ({"question": "1+1?", "answer": "2"}, "question_answer", Fields("1+1?", "2")),
    "HMMT 2025": (
        {"problem_idx": 1, "problem": "1+1?", "answer": "2", "problem_type": ["Algebra"]},
        "problem_answer",
        Fields("1+1?", "2"),
    ),
    "Minerva": ({"question": "1+1?", "answer": "2"}, "question_answer", Fields("1+1?", "2")),
    "Minerva, boxed": (
        {"problem": "1?", "solution": "Not \\boxed{3}, \\boxed{\n\\frac{1}{2}\\} }.", "type": "Astronomy", "idx": 0},
        "boxed",
        Fields("1?", "\\frac{1}{2}\\}", "Not \\boxed{3}, \\boxed{\n\\frac{1}{2}\\} }."),
    ),
    "OlympiadBench": (olympiad(), "olympiadbench", Fields("Find $x$.", "\\frac{1}{2}", "Double it.\n\nOr guess.")),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_layout_is_known_by_its_columns_and_read(name):
    row, layout, fields = PUBLISHED[name]
    found = layouts.recognise(row)
    assert found.name == layout
    assert found.read(row) == fields


DROPPED = {
    "empty question": (dapo(question=" "), "empty question"),
    "no answer": (dapo(answer=None), "no answer"),
    "half a wrapping": (dapo(after=""), "unrecognised prompt wrapper"),
    "other half": (dapo(before=""), "unrecognised prompt wrapper"),
    "a conversation": (dapo() | {"prompt": dapo()["prompt"] * 2}, "unrecognised prompt wrapper"),
    "blank answer": ({"problem": "1?", "answer": " "}, "no answer"),
    "no box": ({"problem": "1?", "solution": "It is 1."}, "no answer"),
    "open box": ({"problem": "1?", "solution": "It is \\boxed{1"}, "no answer"),
    "a solution as answer": ({"question": "1?", "answer": "one\n#### 1"}, "no unique verifiable answer"),
    "picture": (olympiad(image_1={"bytes": b"png"}), "needs an image"),
    "multimodal": (olympiad(modality="Multimodal"), "needs an image"),
    "mention of a picture": (olympiad(question="See <image_1>."), "needs an image"),
    "several answers": (olympiad(is_multiple_answer=True), "no unique verifiable answer"),
    "list of answers": (olympiad(final_answer=["1", "2"]), "no unique verifiable answer"),
    "judged by people": (olympiad(answer_type="Need_human_evaluate"), "no unique verifiable answer"),
    "tolerance": (olympiad(error="1e-1"), "no unique verifiable answer"),
    "proof": (olympiad(question_type="Theorem proof", final_answer=None), "proof without a final answer"),
    "nothing final": (olympiad(final_answer=None), "no answer"),
    "Chinese": (olympiad(language="Chinese"), "not in English"),
}


@pytest.mark.parametrize("name", DROPPED)
def test_a_row_without_a_verifiable_problem_is_dropped_for_its_reason(name):
    row, reason = DROPPED[name]
    assert layouts.recognise(row).read(row) == Drop(reason)


def test_a_bare_dapo_prompt_and_a_context_stay_whole():
    assert layouts.recognise(dapo()).read(dapo("1+1?", before="", after="")) == Fields("1+1?", "2")
    found = layouts.recognise(olympiad()).read(olympiad(context="Let $x=1$."))
    assert found.question == "Let $x=1$.\n\nFind $x$."


def test_dollars_around_a_whole_answer_go_and_others_stay():
    read = layouts.of_columns({}).read
    assert read({"question": "q", "answer": "$x$"}).answer == "x"
    assert read({"question": "q", "answer": "$x$ or $y$"}).answer == "$x$ or $y$"


def test_named_columns_are_read_and_have_to_be_there():
    layout = layouts.of_columns({"question": "task", "answer": "result", "hint": "tip"})
    row = {"task": "1+1?", "result": 2, "tip": "count", "solution": "One more."}
    layouts.check_columns(layout, row)
    assert layout.read(row) == Fields("1+1?", "2", "One more.", "count")
    with pytest.raises(UserError, match="no field 'tip', the row has result, task"):
        layouts.check_columns(layout, {"task": "1+1?", "result": 2})
    with pytest.raises(UserError, match="unknown field 'quesiton', expected one of question, answer, solution, hint"):
        layouts.of_columns({"quesiton": "task"})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"problem": 3, "answer": "2"}, "field 'problem' is a int, expected a string"),
        ({"problem": "q", "answer": ["2"]}, "field 'answer' is a list, expected a string"),
        (dapo() | {"prompt": "What?"}, "field 'prompt' is a str, expected messages with role and content"),
        (dapo() | {"reward_model": "2"}, "field 'reward_model' is a str, expected ground_truth and style"),
        (olympiad(solution="one"), "field 'solution' is 'one', expected a list of strings"),
    ],
)
def test_a_value_of_another_type_is_one_line(row, reason):
    with pytest.raises(UserError) as refusal:
        layouts.recognise(row).read(row)
    assert str(refusal.value) == reason


def test_other_columns_are_no_layout():
    assert layouts.recognise({"task": "1+1?", "result": "2"}) is None
