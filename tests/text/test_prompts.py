"""The two views differ in the privileged context and in nothing else; templates run in a sandbox."""

import types

import numpy as np
import pytest

from dasd_jax.errors import UserError
from dasd_jax.text.prompts import (
    encode_prompt,
    format_answer,
    left_pad,
    partial_solution,
    render_chat,
    student_messages,
    teacher_messages,
)
from dasd_jax.text.tokenizer import CHATML_TEMPLATE, PLAIN_TEMPLATE
from dasd_jax.text.tokenizer_files import load_tokenizer
from dasd_jax.text.wordings import INSTRUCTIONS

QUESTION = "What is \\frac{1}{2} + {x} for x = 3?"
CONTEXT = "the sum {0} is \\boxed{3.5} %s"
SHOTS = (("1 + 1?", "Answer: 2"), ("2 + 2?", "Answer: 4"))
KINDS = ("answer", "solution", "hint", "sibling", "partial_solution", "wrong_siblings")


def views(kind="answer", context=CONTEXT, instruction=INSTRUCTIONS["boxed"], shots=SHOTS):
    student = student_messages(QUESTION, instruction=instruction, shots=shots)
    teacher = teacher_messages(QUESTION, instruction=instruction, context_kind=kind, context=context, shots=shots)
    return student, teacher


def template(source: str):
    return types.SimpleNamespace(chat_template=source, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("context", ["", " \n"])
@pytest.mark.parametrize("instruction", ["", INSTRUCTIONS["boxed"]])
def test_without_context_the_teacher_reads_what_the_student_reads(kind, context, instruction):
    student, teacher = views(kind, context, instruction)
    assert teacher == student


@pytest.mark.parametrize("kind", KINDS)
def test_context_stands_word_for_word_in_the_teachers_last_turn_only(kind):
    student, teacher = views(kind)
    assert CONTEXT not in str([turn["content"] for turn in student]) and teacher[:-1] == student[:-1]
    assert CONTEXT in teacher[-1]["content"] and CONTEXT not in student[-1]["content"]


@pytest.mark.parametrize("kind", KINDS)
def test_both_views_start_with_the_problem_and_end_with_the_same_instruction(kind):
    for instruction in (INSTRUCTIONS["boxed"], INSTRUCTIONS["answer_line"]):
        for turn in (messages[-1]["content"] for messages in views(kind, instruction=instruction)):
            assert turn.startswith(QUESTION) and turn.endswith("\n\n" + instruction)


def test_the_words_around_an_answer_are_those_of_the_runs_that_were_reported():
    assert views("answer", "3.5")[1][-1]["content"] == (
        f"{QUESTION}\n\nThe correct answer to this problem is: 3.5\n\n"
        "Use it to reach the right answer in your own steps, and do not mention that you were given it.\n\n"
        "Please reason step by step, and put your final answer within \\boxed{}."
    )


def test_a_partial_solution_ends_in_its_answer():
    assert partial_solution("First {x}.", "3.5") == "First {x}.\n\nFinal answer: 3.5"


def test_the_kinds_of_context_are_worded_differently_and_another_kind_is_refused():
    assert len({views(kind)[1][-1]["content"] for kind in KINDS}) == len(KINDS)
    with pytest.raises(ValueError, match="oracle.*answer, solution, hint"):
        views("oracle", context="")


@pytest.mark.parametrize("kind", KINDS)
def test_the_question_alone_can_be_left_out_but_not_from_a_blank_context(kind):
    words = {"instruction": INSTRUCTIONS["boxed"], "context_kind": kind, "shots": SHOTS}
    whole = teacher_messages(QUESTION, context=CONTEXT, **words)
    bare = teacher_messages(QUESTION, context=CONTEXT, with_question=False, **words)
    assert bare[:-1] == whole[:-1] and f"{QUESTION}\n\n{bare[-1]['content']}" == whole[-1]["content"]
    assert teacher_messages(QUESTION, context=" ", with_question=False, **words) == views(kind)[0]


def test_shots_are_earlier_turns_and_no_system_turn_is_added():
    for messages in views():
        assert [turn["role"] for turn in messages] == ["user", "assistant"] * 2 + ["user"]
        assert [turn["content"] for turn in messages[1::2]] == [answer for _, answer in SHOTS]
        assert all(turn["content"].endswith(INSTRUCTIONS["boxed"]) for turn in messages[::2])


def test_an_empty_instruction_leaves_the_question_alone():
    assert student_messages(QUESTION, instruction="") == [{"role": "user", "content": QUESTION}]


def test_an_answer_is_written_as_its_instruction_asks():
    assert format_answer("12", "boxed") == "\\boxed{12}"
    assert format_answer("50%", "answer_line") == "Answer: 50%"
    assert "\\boxed{}" in INSTRUCTIONS["boxed"] and format_answer("X", "answer_line") in INSTRUCTIONS["answer_line"]
    with pytest.raises(ValueError, match="'xml'.*boxed, answer_line"):
        format_answer("12", "xml")


def test_chatml_and_plain_templates_end_where_the_assistant_starts():
    messages = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "R"},
    ]
    assert render_chat(template(CHATML_TEMPLATE), messages) == (
        "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
        "<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render_chat(template(PLAIN_TEMPLATE), messages) == "<s>User: Q\nAssistant: A</s>\nUser: R\nAssistant:"


def test_enable_thinking_reaches_the_template_only_when_it_is_set():
    source = template("{{ enable_thinking is defined }} {{ enable_thinking }}")
    assert render_chat(source, []) == "False "
    assert render_chat(source, [], enable_thinking=False) == "True False"
    assert render_chat(source, [], enable_thinking=True) == "True True"


def test_whitespace_json_and_loop_controls_follow_transformers():
    source = template("  {% for m in messages %}\n{{ m | tojson }}\n    {% break %}\n{% endfor %}\n")
    assert render_chat(source, [{"content": "<é&>"}, {"content": "no"}]) == '{"content": "<é&>"}\n'


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ raise_exception('roles must\nalternate') }}",
        "{{ 1 / 0 }}",
        "{% if %}",
    ],
)
def test_a_template_that_escapes_or_fails_is_one_clear_line(source):
    messages = [{"role": "user", "content": "Q"}]
    with pytest.raises(UserError) as refusal:
        render_chat(template(source), messages)
    assert "\n" not in str(refusal.value) and str(refusal.value).startswith("model.tokenizer: its chat template failed")
    assert messages == [{"role": "user", "content": "Q"}]


def test_a_prompt_is_the_ids_of_its_text_and_nothing_else():
    tokenizer = load_tokenizer("byte")
    student, teacher = views()
    for messages in (student, teacher):
        ids = encode_prompt(tokenizer, messages)
        assert ids == tokenizer.encode(render_chat(tokenizer, messages))
        assert "".join(map(tokenizer.piece, ids)) == render_chat(tokenizer, messages)


def test_left_padding_ends_every_prompt_in_the_last_column():
    tokens, mask = left_pad([[5, 6, 7], [8], []], width=3, pad_id=9)
    np.testing.assert_array_equal(tokens, [[5, 6, 7], [9, 9, 8], [9, 9, 9]])
    np.testing.assert_array_equal(mask, [[1, 1, 1], [0, 0, 1], [0, 0, 0]])
    assert (tokens.dtype, mask.dtype) == (np.int32, np.bool_)


def test_a_prompt_is_never_truncated():
    with pytest.raises(ValueError, match="sequence 1 has 4 tokens.*width 3"):
        left_pad([[1], [1, 2, 3, 4]], width=3, pad_id=0)
