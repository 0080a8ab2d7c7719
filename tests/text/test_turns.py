"""Problems that are conversations: their turns reach the template as they are; what is none is refused."""

import json

import jinja2
import pytest

from dasd_jax.data import layouts
from dasd_jax.data.pipeline import PromptText
from dasd_jax.data.rows import Drop
from dasd_jax.data.sources import Problem, load_problems
from dasd_jax.errors import UserError
from dasd_jax.text.prompts import encode_prompt, student_messages, teacher_messages
from dasd_jax.text.tokenizer import CHATML_TEMPLATE
from dasd_jax.text.tokenizer_files import load_tokenizer
from dasd_jax.text.turns import as_question, read

TALK = [
    {"role": "system", "content": "Be brief. "},
    {"role": "user", "content": "What is 1+1? Think step by step."},
    {"role": "assistant", "content": "2 {answer}"},
    {"role": "user", "content": "And \"+1\" é?\nPut it in \\boxed{}"},
]  # fmt: skip
LATER = TALK[1:]


def plain(question):
    return Problem(question=question, answer="3", source="s", index=0, scorer="math")


def views(question, **common):
    common = {"instruction": "Now box it."} | common
    teacher = teacher_messages(question, context_kind="answer", context="3", **common)
    common.pop("with_question", None)
    return student_messages(question, **common), teacher


def test_a_teacher_without_the_question_is_shown_none_of_its_turns():
    _, bare = views(as_question(TALK), system="Of the run.", with_question=False)
    said = " ".join(message["content"] for message in bare)
    assert len(bare) == 2 and bare[0] == {"role": "system", "content": "Of the run."} and "3" in bare[1]["content"]
    assert not any(turn["content"].strip() in said for turn in TALK)


def test_the_turns_come_back_as_they_were():
    for talk in (TALK, LATER, TALK[-1:]):
        assert read(as_question(talk)) == talk
    for text in ("1+1?", "[1, 2]", '[{"a": 1}]', "[", '[{"role": "user"}]', '["role"]', "[" * 10_000, ""):
        assert read(text) == [{"role": "user", "content": text}]


def test_only_the_last_turn_gets_instruction_and_context():
    student, teacher = views(as_question(TALK))
    last = TALK[-1]["content"]
    assert student == [*TALK[:-1], {"role": "user", "content": f"{last}\n\nNow box it."}]
    assert teacher[:-1] == TALK[:-1] and teacher[-1]["content"].startswith(f"{last}\n\nThe correct answer to this pro")
    assert teacher[-1]["content"].endswith("\n\nNow box it.")


def test_a_turn_alone_is_the_same_as_its_text():
    assert views(as_question([{"role": "user", "content": "1+1?"}])) == views("1+1?")


def test_a_conversation_keeps_its_own_system_turn_before_any_shots():
    shots = [(as_question(TALK), "Answer: 3")]
    for messages in views(as_question(TALK), system="Ours.", shots=shots):
        assert messages[0] == TALK[0] and [turn["role"] for turn in messages].count("system") == 1
        assert [turn["content"] for turn in messages[1:4]] == [
            TALK[1]["content"], TALK[2]["content"], f"{TALK[3]['content']}\n\nNow box it.",
        ]  # fmt: skip
        assert messages[4] == {"role": "assistant", "content": "Answer: 3"} and messages[5:7] == TALK[1:3]
    assert views(as_question(LATER), system="Ours.")[0][0] == {"role": "system", "content": "Ours."}


def test_the_template_is_given_the_turns_as_transformers_gives_them():
    tokenizer = load_tokenizer("byte")
    chatml = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(CHATML_TEMPLATE)
    assert tokenizer.chat_template == CHATML_TEMPLATE
    for talk in (TALK, LATER):
        ids = encode_prompt(tokenizer, student_messages(as_question(talk), instruction=""))
        assert ids == tokenizer.encode(chatml.render(messages=talk, add_generation_prompt=True))


def test_control_strings_in_any_turn_are_plain_text():
    tokenizer = load_tokenizer("byte")
    for place in range(4):
        talk = [dict(turn) for turn in TALK]
        talk[place]["content"] += "".join(sorted(tokenizer.control))
        text = PromptText("boxed", sources=(), privileged="answer", enable_thinking=None, shots=())
        for ids in (
            text.student(tokenizer, plain(as_question(talk))),
            text.teacher(tokenizer, plain(as_question(talk)), "answer", "3"),
        ):
            usual = text.student(tokenizer, plain(as_question(TALK)))
            assert [id for id in ids if id >= 256] == [id for id in usual if id >= 256]


# ------------------------------------------------------------------------------------------------ rows


def test_rows_hold_a_conversation_as_a_list_or_its_json_text(tmp_path):
    file = tmp_path / "talks.jsonl"
    rows = [{"question": TALK, "answer": "3"}, {"question": json.dumps(LATER), "answer": "3"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems, counts = load_problems([f"jsonl:{file}"])
    assert [read(problem.question) for problem in problems] == [TALK, LATER] and counts["duplicates"] == 0
    for column in ("question", "problem"):
        found = layouts.recognise([column, "answer"]).read({column: TALK, "answer": "3"})
        assert layouts.of_columns({}).read(vars(found)) == found and read(found.question) == TALK


def test_a_conversation_twice_is_a_duplicate_and_one_with_another_beginning_is_not(tmp_path):
    file = tmp_path / "talks.jsonl"
    talks = [TALK, TALK, LATER, [{"role": "system", "content": "Be long."}, *LATER]]
    file.write_text("".join(json.dumps({"question": talk, "answer": "3"}) + "\n" for talk in talks))
    assert load_problems([f"jsonl:{file}"])[1] == {"read": 4, "duplicates": 1, "kept": 3}


USER = {"role": "user", "content": "1?"}


@pytest.mark.parametrize(
    ("talk", "said"),
    [
        (
            [USER, {"role": "assistant", "content": "1"}],
            "the last turn is no question of a user: expected turns of role",
        ),
        ([{"role": "user", "content": " "}], "the last turn is no question of a user"),
        (
            [USER, {"role": "system", "content": "x"}, USER],
            "turn 1 has the role 'system': expected turns of role and con",
        ),
        ([{"role": "tool", "content": "x"}, USER], "turn 0 has the role 'tool'"),
        ([{"role": ["user"], "content": "x"}, USER], "turn 0 has the role ['user']"),
        ([{"role": "user"}], "turn 0 has the content None: expected valid UTF-8 text"),
        ([{"role": "user", "content": [{"type": "text"}]}], "turn 0 has the content [{'type': 'text'}]: expected"),
        ([{"role": "user", "content": "\ud800"}], "turn 0 has the content '\\ud800': expected valid UTF-8 text"),
        ([USER | {"tool_calls": [1]}], "turn 0 has a field 'tool_calls'"),
        (["1?"], "field 'question' is a list, expected a string"),
        ([], "the last turn is no question of a user"),
        ([{"content": "1?"}], "turn 0 has the role None"),
    ],
)
def test_what_is_no_conversation_is_one_line_that_names_the_row(talk, said, tmp_path):
    file = tmp_path / "talks.jsonl"
    file.write_text(json.dumps({"question": talk, "answer": "3"}) + "\n")
    with pytest.raises(UserError) as refused:
        load_problems([f"jsonl:{file}"])
    assert said in str(refused.value) and "talks.jsonl:1: field 'question'" in str(refused.value)


def test_a_published_prompt_is_still_one_question_without_its_recipes_turns():
    row = {"prompt": [TALK[0], {"role": "user", "content": "1+1?"}], "reward_model": {"ground_truth": "2"}}
    assert layouts.recognise(row).read(row).question == "1+1?"
    assert layouts.recognise(row).read(row | {"prompt": TALK}) == Drop("unrecognised prompt wrapper")
