"""A user's own words: slots are filled in one pass, content is never read as a wording, and mistakes are one line."""

import dataclasses
import hashlib
import itertools
import json
import random
import sys

import pytest
from tiny import TINY, config

from dasd_jax import cli, recorded
from dasd_jax.config import DataGroup
from dasd_jax.data.contexts import worded_as
from dasd_jax.data.pipeline import PromptSet, PromptText
from dasd_jax.data.sources import Problem
from dasd_jax.errors import UserError
from dasd_jax.text import slots, wordings
from dasd_jax.text.prompts import CONTEXTS, student_messages, teacher_messages
from dasd_jax.text.tokenizer_files import load_tokenizer
from dasd_jax.text.wordings import INSTRUCTIONS, KINDS, WORDINGS

# What content may hold that a wording is made of: none of it may be replaced, doubled or lost.
HOSTILE = (
    "{answer}", "{context}", "{{question}}", "{{{solution}}}", "{no_slot}", "\\boxed{}", "\\frac{a}{b}", "{", "}}",
    "%s", "{0}", "\\1", "\\g<slot>", "$0", "<|im_end|>", "x",
)  # fmt: skip


def hostile(rng):
    return "".join(rng.choices(HOSTILE, k=rng.randint(1, 8)))


def texts(**given):
    """The texts of the fields of the group `data`, otherwise at their defaults."""
    data = DataGroup(sources=("gym:lcm",), **given)
    return wordings.read(data.instruction, data.system, data.privileged_wording, data.transition)


def turns(question="Q?", context="C", kind="answer", with_question=True, **given):
    """The last turns of student and teacher."""
    words = texts(**given)
    common = {"instruction": words.instruction, "system": words.system}
    student = student_messages(question, **common)
    teacher = teacher_messages(
        question, context_kind=kind, context=context, wording=words.wording, with_question=with_question, **common
    )
    return student[-1]["content"], teacher[-1]["content"]


# ------------------------------------------------------------------------------------------------ one pass


def test_slots_are_filled_in_one_pass_and_all_else_stays():
    rng = random.Random(0)
    for _ in range(300):
        values = {name: hostile(rng) for name in ("question", "context", "answer")}
        filled = {f"{{{name}}}": value for name, value in values.items()}
        filled |= {f"{{{{{{{name}}}}}}}": f"{{{value}}}" for name, value in values.items()}
        stays = ("\\boxed{}", "x^{2}", "\\{A\\}", "{Ab}", "{a b}", "{ }", "{a1}", "}", "%s{0}")
        becomes = filled | dict(zip(stays, stays, strict=True)) | {"{{answer}}": "{answer}", "{{no_slot}}": "{no_slot}"}
        parts = rng.choices(list(becomes), k=6)
        assert slots.fill(" ".join(parts), values) == " ".join(becomes[part] for part in parts)
        assert slots.names(" ".join(parts)) == {part.strip("{}") for part in parts if part in filled}


def test_content_stays_as_it_is_wherever_it_is_put():
    rng = random.Random(1)
    own = {"instruction": "Problem: {question} Box it: \\boxed{}", "transition": "Now you, {{again}}."}
    for _ in range(100):
        question, context = hostile(rng), hostile(rng)
        student, teacher = turns(question, context, privileged_wording="[{context}] <{question}>", **own)
        assert student == f"Problem: {question} Box it: \\boxed{{}}"
        assert teacher == f"Problem: [{context}] <{question}>\n\nNow you, {{again}}. Box it: \\boxed{{}}"
        for name, kind in itertools.product(WORDINGS, KINDS):
            student, teacher = turns(question, context, kind, privileged_wording=name)
            assert student == f"{question}\n\n{INSTRUCTIONS['boxed']}"
            before, after = WORDINGS[name].contexts[kind].split("{context}")
            assert teacher == "\n\n".join(
                [question, before + context + after, WORDINGS[name].transitions[kind], INSTRUCTIONS["boxed"]]
            )


# ------------------------------------------------------------------------------------------------ shipped words

USE = "Use it to reach the right answer in your own steps, and do not mention that you were given it."
AS_BEFORE = {
    "answer": f"The correct answer to this problem is: C\n\n{USE}",
    "solution": f"Here is a correct solution to this problem:\nC\n\n{USE}",
    "hint": f"Here is a hint for this problem:\nC\n\n{USE}",
    "sibling": f"Here is an attempt at this problem that reached the correct answer:\nC\n\n{USE}",
    "partial_solution": (
        f"Here is the beginning of a correct solution to this problem, and its final answer:\nC\n\n{USE}"
    ),
    "wrong_siblings": (
        "Here is an attempt at this problem that reached a wrong answer:\nC\n\nAvoid its mistake, reach the right "
        "answer in your own steps, and do not mention that you were given it."
    ),
    "skills": (
        "Here is what other problems have taught; it may not apply to this one:\nC\n\nUse what applies here, reach the "
        "right answer in your own steps, and do not mention that you were given it."
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_words_are_those_of_all_runs_before(kind):
    boxed = "Please reason step by step, and put your final answer within \\boxed{}."
    line = "Reply with a single line 'Answer: X', where X is the final answer."
    assert turns(kind=kind) == (f"Q?\n\n{boxed}", f"Q?\n\n{AS_BEFORE[kind]}\n\n{boxed}")
    assert turns(kind=kind, instruction="answer_line")[1] == f"Q?\n\n{AS_BEFORE[kind]}\n\n{line}"
    assert turns(kind=kind, with_question=False)[1] == f"{AS_BEFORE[kind]}\n\n{boxed}"


def test_the_words_for_a_solution_are_those_that_were_published():
    student, teacher = turns(kind="solution", instruction="opsd", privileged_wording="opsd")
    assert student == "Problem: Q?\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    assert teacher == (
        "Problem: Q?\n\nHere is a reference solution to this problem:\n=== Reference Solution Begin ===\nC\n"
        "=== Reference Solution End ===\n\n\nAfter reading the reference solution above, make sure you truly "
        "understand the reasoning behind each step — do not copy or paraphrase it. Now, using your own words and "
        "independent reasoning, derive the same final answer to the problem above. Think step by step, explore "
        "different approaches, and don't be afraid to backtrack or reconsider if something doesn't work out:\n\n"
        "Please reason step by step, and put your final answer within \\boxed{}."
    )
    assert "Correct solution:\n\nC\n\nCorrectly solve the" in turns(kind="sibling", privileged_wording="sdpo")[1]
    assert "a reference solution:\nC\n\nAfter under" in turns(kind="solution", privileged_wording="rlsd")[1]


def test_every_shipped_wording_words_every_kind_and_has_one_slot():
    for name, wording in WORDINGS.items():
        assert wording.contexts.keys() == wording.transitions.keys() == set(KINDS), name
        assert all(slots.names(text) == {"context"} for text in wording.contexts.values())
        assert all(text and not slots.names(text) for text in wording.transitions.values())
    assert worded_as(frozenset(CONTEXTS) - {"other_problem", "without_problem"}) == set(KINDS)


# ------------------------------------------------------------------------------------------------ own words


def test_the_sentence_behind_the_context_is_chosen_by_itself():
    assert "C\n\nPlease reason" in turns(transition="none")[1]
    assert "is: C\n\nGo on from here.\n\nPlease" in turns(transition="Go on from here.")[1]
    assert "is: C\n\nCorrectly solve the original question.\n\nPlease" in turns(transition="sdpo")[1]
    assert f"Key: C\n\n{USE}\n\nPlease" in turns(privileged_wording="Key: {context}")[1]


def test_a_question_in_the_wording_stands_there_and_nowhere_else():
    asked = {"privileged_wording": "Given {answer}, solve {question} again."}
    assert turns(transition="none", instruction="", **asked) == ("Q?", "Given C, solve Q? again.")
    assert turns(transition="none", instruction="", with_question=False, **asked)[1] == "Given C, solve  again."


def test_a_system_turn_comes_first_for_student_and_teacher():
    words = texts(system="Write {{x}} in braces.")
    common = {"instruction": "", "system": words.system, "shots": [("1?", "1")]}
    student = student_messages("Q?", **common)
    teacher = teacher_messages("Q?", context_kind="answer", context="C", **common)
    assert student[0] == teacher[0] == {"role": "system", "content": "Write {x} in braces."}
    assert student[1:] == student_messages("Q?", instruction="", shots=[("1?", "1")]) and teacher[:-1] == student[:-1]


@pytest.mark.parametrize(("solution", "response"), [("", ""), ("1 + 1 = 2.", ""), ("1 + 1 = 2.", "two")])
def test_shots_and_targets_are_written_as_the_instruction_asks(solution, response):
    """And they are the same text: the problem's response, or its solution and answer, or its answer alone."""
    tokenizer = load_tokenizer("byte")
    shot = Problem(question="1?", answer="2", solution=solution, response=response, source="", index=0, scorer="math")
    asked = Problem(question="3?", answer="4", source="", index=1, scorer="math")
    for instruction, answer in (("Put it in \\boxed{} now.", "\\boxed{2}"), ("Say it in a line.", "Answer: 2")):
        text = PromptText(instruction, sources=(), privileged="answer", enable_thinking=None, shots=(shot,))
        written = response or f"{solution}\n\n{answer}".strip()
        assert f"1?\n\n{instruction}\nassistant\n{written}\n" in tokenizer.decode(text.student(tokenizer, asked))
        assert tokenizer.decode(text.target(tokenizer, shot, [])) == written


@pytest.mark.parametrize(
    "changed",
    [
        {"instruction": "Say it plainly."},
        {"system": "Be brief."},
        {"privileged_wording": "Key: {context}"},
        {"transition": "none"},
    ],
    ids=str,
)
def test_the_digest_of_prompts_changes_with_every_field(changed):
    problem = Problem(question="1 + 1?", answer="2", source="", index=0, scorer="math")
    text = PromptText(instruction="boxed", sources=(), privileged="answer", enable_thinking=None, shots=())

    def digest(text):
        return PromptSet([problem], load_tokenizer("byte"), text, student_width=999, teacher_width=999).digest()

    assert digest(dataclasses.replace(text, **changed)) != digest(text)


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("instruction", "boxd", "'boxd': expected boxed, answer_line, opsd, a text of several words, @FILE or nothing"),
        (
            "instruction",
            "Put the {answer} into \\boxed{answer}.",
            "{answer} is no slot: expected those that exist here ({question}), and {{answer}} for the word in braces",
        ),
        ("system", "Write as {json}.", "{json} is no slot: expected those that exist here (none), and {{json}} for"),
        ("transition", "Now {question}", "{question} is no slot: expected those that exist here (none), and {{quest"),
        ("transition", "dsad", "'dsad': expected default, none, dasd, opsd, sdpo, rlsd, a text of several words or @F"),
        ("privileged_wording", "", "'': expected dasd, opsd, sdpo, rlsd, a text of several words or @FILE"),
        ("privileged_wording", "The {result}", "{result} is no slot: expected those that exist here ({context}, {answ"),
        (
            "privileged_wording",
            "The {{answer}}",
            "no slot for the context: expected {context}, or one of {answer}, {sol",
        ),
        ("privileged_wording", "{question} {{context}}", "no slot for the context: expected {context}, or one of"),
        ("privileged_wording", "{answer}: {hint}", "several kinds of context: expected {context}, or one of {answer}"),
        ("privileged_wording", "{context} \n", "expected text without control characters"),
        ("system", "@", "'@': expected a text, @FILE or nothing"),
        ("system", "@FOLDER/none.txt", "@FOLDER/none.txt: no such file: expected a text file of at most 1,048,576 byt"),
        ("system", "@FOLDER", "@FOLDER: no such file: expected a text file"),
        ("system", "@FOLDER/" + "x" * 300, "cannot be read (File name too long): expected a text file"),
        ("system", "@FOLDER/empty.txt", "@FOLDER/empty.txt: empty: expected a text"),
        ("system", "@FOLDER/large.txt", "@FOLDER/large.txt: too large: expected a text file of at most"),
        ("system", "@FOLDER/bytes.txt", "@FOLDER/bytes.txt: expected text in UTF-8"),
        ("system", "@FOLDER/escape.txt", "it holds '\\x1b': expected a text without control characters"),
        ("system", "@FOLDER/slot.txt", "{slot} is no slot: expected those that exist here (none), and {{slot}} for"),
    ],
)
def test_a_mistake_is_one_line_and_ends_the_command_with_code_2(field, value, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "large.txt").write_bytes(b"a" * (2**20 + 1))
    (tmp_path / "bytes.txt").write_bytes(b"\xff")
    (tmp_path / "escape.txt").write_text("a \x1b[31m")
    (tmp_path / "slot.txt").write_text("a {slot}\n")
    value = value.replace("FOLDER", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["train", TINY, f"--config.data.{field}={value}"])
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda argv: cli.parse(cli.parser(""), argv))
    [line] = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith(f"error: data.{field}: ")
    assert said.replace("FOLDER", str(tmp_path)) in line


@pytest.mark.parametrize(
    ("slot", "privileged", "context", "missing"),
    [
        ("answer", "answer", "", None),
        ("solution", "answer", "", "answer"),
        ("answer", "answer", "sibling_or_solution", "sibling"),
        ("sibling", "sibling", "sibling_or_solution", "solution"),
        ("partial_solution", "answer", "partial_solution", "answer"),
        ("hint", "answer", "none", None),
        ("solution", "solution", "without_problem", None),
        ("context", "answer", "wrong_siblings", None),
    ],
)
def test_a_slot_of_one_kind_is_refused_where_another_is_shown(slot, privileged, context, missing):
    text = PromptText(
        "boxed", ("gym:lcm",), privileged, None, shots=(), privileged_wording=f"It is {{{slot}}}, as given."
    )
    if missing is None:
        text.check_worded(context)
        return
    with pytest.raises(
        UserError, match=rf"^data.privileged_wording: .* of kind {missing}: expected the slot {{context}}"
    ):
        text.check_worded(context)


def test_a_source_that_names_another_kind_needs_words_for_it_too():
    text = PromptText("boxed", ("gym:lcm?privileged=hint",), "answer", None, (), privileged_wording="It is {answer} .")
    with pytest.raises(UserError, match="context of kind hint: expected the slot {context} or {hint}"):
        text.check_worded("")


# ------------------------------------------------------------------------------------------------ files


def test_a_file_holds_lines_and_its_sha256_stands_in_config_json(tmp_path):
    file = tmp_path / "words.txt"
    file.write_bytes("\ufeffGiven:\r\n\r\n\t{answer} é\r\n".encode())
    data = config(f"data.privileged_wording=@{file}").data
    assert data.privileged_wording == f"@{file}#sha256={hashlib.sha256(file.read_bytes()).hexdigest()}"
    assert f"Given:\n\n\tC é\n\n{USE}" in turns(privileged_wording=f"@{file}")[1]
    # A file whose text is the name of a shipped wording holds that text.
    file.write_text("boxed")
    assert texts(instruction=f"@{file}").instruction == "boxed"


@pytest.mark.parametrize("field", wordings.FIELDS)
def test_a_run_is_not_continued_with_a_file_that_has_changed(field, tmp_path):
    file, workdir = tmp_path / "words.txt", tmp_path / "run"
    word = " {context}" if field == "privileged_wording" else ""
    workdir.mkdir()
    file.write_text(f"Some words.{word}\n")
    begun = config(f"data.{field}=@{file}")
    (workdir / "config.json").write_text(json.dumps(begun.to_dict()))
    recorded.check_same(config(f"data.{field}=@{file}"), recorded.read(workdir), workdir)
    assert cli.parse(cli.parser("", of_a_run=True), [f"--workdir={workdir}"]).config == begun
    file.write_text(f"Other words.{word}\n")
    with pytest.raises(
        UserError, match=f"belongs to a run with data.{field} = '@.*words.txt#sha256=.*expected the same"
    ):
        recorded.check_same(config(f"data.{field}=@{file}"), recorded.read(workdir), workdir)
    with pytest.raises(UserError, match=f"^data.{field}: @.*words.txt: its text has changed since it was recorded"):
        cli.parse(cli.parser("", of_a_run=True), [f"--workdir={workdir}"])
