"""The published layouts, each by rows as they are published: what they become, and why a row is left out."""

import json

import pytest

from dasd_jax.data import layouts
from dasd_jax.data.rows import Drop, Fields
from dasd_jax.errors import UserError

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."

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


def verl(content="1+1?", answer="2", **changes):
    return {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "user", "content": content}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": answer},
        "extra_info": {"split": "train", "index": 0},
    } | changes


def as_json(row):
    """The same row with each nested column as its JSON text."""
    return {name: json.dumps(value) if isinstance(value, list | dict) else value for name, value in row.items()}


def roll(**changes):
    return {
        "id": "1",
        "source": "deepmath_103k",
        "difficulty": "4.5",
        "prompt": "1+1?",
        "messages": json.dumps([{"role": "system", "content": BOXED}, {"role": "user", "content": "1+1?"}]),
        "ground_truth": "2",
        "case_type": "",
        "test_case_function": "",
        "test_cases": "",
        "tag": "deepmath_103k",
    } | changes


def numina(**changes):
    return {
        "problem": "1+1?",
        "solution": "One more.",
        "answer": "2",
        "problem_type": "Algebra",
        "question_type": "math-word-problem",
        "problem_is_valid": "Yes",
        "solution_is_valid": "Yes",
        "source": "olympiads",
        "synthetic": False,
    } | changes


def sdpo(**changes):
    return {
        "idx": 0,
        "kind": "math",
        "dataset": "math-ai/aime24",
        "answer": "2",
        "elo": "-",
        "prompt": "1+1?",
        "description": "1+1? The solution will be evaluated in a math environment.",
        "tests": "-",
        "system": None,
    } | changes


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
    "GSM8K": (
        {"question": "1+1?", "answer": "One more: 1+1 = <<1+1=2>>2.\nSo 2.\n#### 2"},
        "question_answer",
        Fields("1+1?", "2", "One more: 1+1 = 2.\nSo 2."),
    ),
    "GSM8K on one line": (
        {"question": "1+1?", "answer": "One more: 1+1 = 1,002 #### 1,002"},
        "question_answer",
        Fields("1+1?", "1,002", "One more: 1+1 = 1,002"),
    ),
    "verl": (verl(f"1+1?\n{BOXED}"), "verl", Fields("1+1?", "2")),
    "verl in JSON texts": (as_json(verl(f"1+1?\n{BOXED}")), "verl", Fields("1+1?", "2")),
    "verl with a system turn": (
        verl(prompt=[{"role": "system", "content": "Be careful."}, {"role": "user", "content": "1+1?"}]),
        "verl",
        Fields("1+1?", "2"),
    ),
    "verl with a plain prompt": (verl(prompt="1+1?"), "verl", Fields("1+1?", "2")),
    "verl with a solution": (
        as_json(verl(extra_info={"raw_problem": "1+1?", "solution": "One more."})),
        "verl",
        WORKED,
    ),
    "verl's GSM8K": (
        verl(
            'Sum? Let\'s think step by step and output the final answer after "####".',
            "1002",
            extra_info={"answer": "All: <<1+1=2>>2.\n#### 1,002", "question": "Sum?"},
        ),
        "verl",
        Fields("Sum?", "1002", "All: 2."),
    ),
    "verl beside another row's solution": (verl(extra_info={"answer": "Two.\n#### 3"}), "verl", Fields("1+1?", "2")),
    "verl with a list of one answer": (verl(answer=["2"]), "verl", Fields("1+1?", "2")),
    "Skywork-OR1": (
        verl(f"1+1? {BOXED}", '["2"]', extra_info={"index": 0, "model_difficulty": {"a": 3}}),
        "verl",
        Fields("1+1?", "2"),
    ),
    "an interval is no list of answers": (verl(answer="[1, 2]"), "verl", Fields("1+1?", "[1, 2]")),
    "SDPO's JSON": (sdpo(), "sdpo", Fields("1+1?", "2")),
    "ROLL": (roll(), "roll", Fields("1+1?", "2")),
    "DeepMath-103K": (
        {"question": "1+1?", "final_answer": "2", "difficulty": 4.5, "topic": "t", "r1_solution_1": "One more."},
        "deepmath",
        WORKED,
    ),
    "NuminaMath-1.5": (numina(), "problem_answer", WORKED),
    "NuminaMath-1.5, multiple choice": (
        numina(answer="B", question_type="MCQ"),
        "problem_answer",
        Fields("1+1?", "B", "One more."),
    ),
    "OpenR1-Math": (
        {
            "problem": "1+1?",
            "solution": "One more.",
            "answer": "2",
            "question_type": "math-word-problem",
            "generations": ["<think>", "2"],
            "correctness_math_verify": [False, True],
        },
        "problem_answer",
        WORKED,
    ),
    "MATH": (
        {"problem": "1+1?", "level": "Level 1", "type": "Algebra", "solution": "It is $\\boxed{2}$."},
        "problem_boxed",
        Fields("1+1?", "2", "It is $\\boxed{2}$."),
    ),
    "MATH with answers": (
        {"problem": "1+1?", "level": 1, "type": "Algebra", "solution": "One more.", "answer": "2"},
        "problem_answer",
        WORKED,
    ),
    "OPSD": (
        {"Question": "?", "Answer": "2", "COT_Reason": "…", "problem": "1+1?", "solution": "One more."},
        "opsd",
        WORKED,
    ),
    "a question with a boxed solution": (
        {"question": "1+1?", "solution": "\\boxed{2}", "hint": "count"},
        "question_boxed",
        Fields("1+1?", "2", "\\boxed{2}", "count"),
    ),
    "DAPO": (dapo(), "verl", Fields("What is $1+1$?", "2")),
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
        "problem_boxed",
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


def test_hints_and_responses_are_read_in_deepmath_and_from_problem_answer_on():
    names = [layout.name for layout in layouts.LAYOUTS]
    for layout in layouts.LAYOUTS:
        if layout.name == "deepmath" or names.index(layout.name) >= names.index("problem_answer"):
            row = {column: "So \\boxed{2}." if "olution" in column else "2" for column in layout.columns}
            found = layout.read(row | {"hint": "Count.", "response": "It is 2."})
            assert (found.hint, found.response) == ("Count.", "It is 2."), layout.name


DROPPED = {
    "empty question": (dapo(question=" "), "empty question"),
    "no answer": (dapo(answer=None), "no answer"),
    "half a wrapping": (dapo(after=""), "unrecognised prompt wrapper"),
    "other half": (dapo(before=""), "unrecognised prompt wrapper"),
    "a conversation": (dapo() | {"prompt": dapo()["prompt"] * 2}, "unrecognised prompt wrapper"),
    "blank answer": ({"problem": "1?", "answer": " "}, "no answer"),
    "no box": ({"problem": "1?", "solution": "It is 1."}, "no answer"),
    "open box": ({"problem": "1?", "solution": "It is \\boxed{1"}, "no answer"),
    "another ability": (verl(ability="code"), "another ability than mathematics"),
    "another ability, processed": (dapo_processed() | {"ability": "code"}, "another ability than mathematics"),
    "SDPO's code": (sdpo(kind="code", tests="[]", answer="-"), "another ability than mathematics"),
    "ROLL's code": (roll(case_type="pytest", test_cases="[{}]"), "another ability than mathematics"),
    "ROLL's other domains": (roll(domain="ifeval"), "another ability than mathematics"),
    "several truths": (verl(answer='["2", "3"]'), "no unique verifiable answer"),
    "no truth": (verl(reward_model=None), "no answer"),
    "an assistant's turn": (
        verl(prompt=[{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1"}]),
        "unrecognised prompt wrapper",
    ),
    "unknown instructions": (
        verl("1+1? You FIRST think, MUST enclose it in <think> </think> tags."),
        "unrecognised prompt wrapper",
    ),
    "a conversation that is no JSON": (
        verl(prompt="[{'role': 'user', 'content': '1+1?'}]"),
        "unrecognised prompt wrapper",
    ),
    "a template in the prompt": (verl("<|im_start|>user\n1+1?<|im_end|>"), "unrecognised prompt wrapper"),
    "verl's images": (verl("<image>1+1?", images=[{"bytes": b"png"}]), "needs an image"),
    "mention of an image": (verl("<image>1+1?"), "needs an image"),
    "proof for an answer": (numina(answer="Proof"), "proof without a final answer"),
    "question type proof": (numina(question_type="proof"), "proof without a final answer"),
    "proof of an empty answer": (numina(answer="", question_type="proof"), "proof without a final answer"),
    "not found": (numina(answer="notfound"), "no answer"),
    "a dash for an answer": (sdpo(answer="-"), "no answer"),
    "invalid problem": (numina(problem_is_valid="Problem not solved"), "marked as invalid by its publisher"),
    "invalid solution": (numina(solution_is_valid="Incomplete"), "marked as invalid by its publisher"),
    "invalid by null": (numina(problem_is_valid=None), "marked as invalid by its publisher"),
    "a mark without an answer": ({"question": "1?", "answer": "One. ####"}, "no answer"),
    "two marks": ({"question": "1?", "answer": "#### One\n#### 1"}, "no unique verifiable answer"),
    "a heading": ({"question": "1?", "answer": "#### Solution\nIt is\n1."}, "no unique verifiable answer"),
    "several lines": ({"question": "1?", "answer": "It is one.\nA: 1"}, "no unique verifiable answer"),
    "a calculation in words": (
        {"question": "1?", "answer": "In 3 days it sells 2*3 = 6 pens."},
        "no unique verifiable answer",
    ),
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


CHOSEN = (
    "Find $x$.",
    "Find both, separated by commas.",
    "Let $\\boxed{n}$ be the number of divisors. Find $\\boxed{4}$.",
)


@pytest.mark.parametrize(
    ("question", "solution", "answer"),
    [
        (CHOSEN[0], "So $a=\\boxed{3}$ and $a+1=\\boxed{4}$.", "4"),
        (CHOSEN[0], "It is $\\boxed{4}$. OR also $\\boxed{4}$.", "4"),
        (CHOSEN[0], "It is $\\boxed{-3}$. Note: $\\boxed{3}$ is also accepted as an answer.", "-3"),
        (CHOSEN[0], "It is $\\boxed{(1,2)}$. Thus $\\boxed{(0,0)}$ is also an acceptable answer.", "(1,2)"),
        (CHOSEN[0], "$3 = \\boxed{\\phantom{2}} - 1$, so $\\boxed{4}$, as in $\\boxed{\\phantom{2}}$.", "4"),
        (CHOSEN[1], "$\\boxed{-2}$ and $\\boxed{1}$.", "-2, 1"),
        (CHOSEN[1], "$\\boxed{(1,2)}$ and $\\boxed{(3,4)}$.", "(1,2), (3,4)"),
        (CHOSEN[1], "$\\boxed{-2, 1}$. OR: $\\boxed{-2,1}$.", "-2,1"),
        (CHOSEN[2], "$\\boxed{2}=2$, so $\\boxed{4}=3$; the answer is 3.", None),
        (CHOSEN[2], "The answer is \\boxed{3}.", "3"),
    ],
)
def test_of_several_boxes_the_one_that_answers_is_the_reference(question, solution, answer):
    found = layouts.recognise(("problem", "solution")).read({"problem": question, "solution": solution})
    assert found == (Fields(question, answer, solution) if answer else Drop("no unique verifiable answer"))


def test_what_is_prepared_is_read_back_unchanged():
    """Files and prepared sets go through one check, so what it made has to pass it as it is."""
    for row, _, fields in PUBLISHED.values():
        again = vars(layouts.recognise(row).read(row))
        assert layouts.of_columns({}).read(again) == fields
        assert layouts.recognise(again).read(again) == fields


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
    assert layouts.read(layout, "here", row) == Fields("1+1?", "2", "One more.", "count")
    with pytest.raises(UserError, match="here: no field 'tip', the row has result, task"):
        layouts.read(layout, "here", {"task": "1+1?", "result": 2})
    assert layouts.of_columns({"question": "problem"}).read(numina(answer="proof")) == Drop(
        "proof without a final answer"
    )
    with pytest.raises(UserError, match="unknown field 'quesiton', expected one of question, answer, solution, hint"):
        layouts.of_columns({"quesiton": "task"})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"problem": 3, "answer": "2"}, "field 'problem' is a int, expected a string"),
        ({"problem": "q", "answer": ["2"]}, "field 'answer' is a list, expected a string"),
        (dapo() | {"prompt": 3}, "field 'prompt' is a int, expected a string"),
        (verl([{"type": "text", "text": "1?"}]), "field 'content' is a list, expected a string"),
        (verl(answer={"target": ["2"]}), "field 'ground_truth' is a dict, expected a string"),
        (verl(answer=[["2"]]), "field 'ground_truth' is a list, expected a string"),
        (dapo() | {"reward_model": "two"}, "field 'reward_model' is a str, expected ground_truth and style"),
        (olympiad(solution="one"), "field 'solution' is 'one', expected a list of strings"),
    ],
)
def test_a_value_of_another_type_is_one_line(row, reason):
    with pytest.raises(UserError) as refusal:
        layouts.recognise(row).read(row)
    assert str(refusal.value) == reason


def test_other_columns_are_no_layout():
    assert layouts.recognise({"task": "1+1?", "result": "2"}) is None
