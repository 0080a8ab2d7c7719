"""The pipeline: a position is one integer, nothing is cut short in silence, and both views stand around one problem."""

import dataclasses

import numpy as np
import pytest
import sentencepiece

from dasd_jax.data.pipeline import PromptSet, PromptText
from dasd_jax.data.sources import Problem
from dasd_jax.errors import UserError
from dasd_jax.text import prompts
from dasd_jax.text.tokenizer import CHATML_TEMPLATE, ByteTokenizer
from dasd_jax.text.tokenizer_files import load_tokenizer

BYTES = load_tokenizer("byte")
TEXT = PromptText(instruction="answer_line", sources=(), privileged="answer", enable_thinking=None, shots=())
HINTS = dataclasses.replace(TEXT, privileged="hint")


def problems(count=10, **fields):
    base = {"source": "test", "scorer": "math"}
    return [Problem(question=f"{i} + 1?", answer=str(i + 1), index=i, **base, **fields) for i in range(count)]


def prompt_set(items=None, text=TEXT, **widths):
    widths = {"student_width": 200, "teacher_width": 400} | widths
    return PromptSet(problems() if items is None else items, BYTES, text, **widths)


def test_problems_that_lose_characters_are_counted(tmp_path):
    """A tokenizer without bytes to fall back on drops what it has no token for, or makes it the unknown token."""
    items = [dataclasses.replace(problem, question=text) for problem, text in zip(problems(3), "1é ", strict=True)]
    plain = dataclasses.replace(
        TEXT, instruction="{question}", privileged_wording="{question} {answer}", transition="none"
    )

    def counts(path):
        return PromptSet(items, load_tokenizer(str(path)), plain, student_width=40, teacher_width=80).counts

    assert counts("benchmarks/lab/tokenizer")["with characters that have no token (é)"] == 1
    with (tmp_path / "digits.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=map(str, range(100)), model_writer=file, vocab_size=14, model_type="char", minloglevel=2
        )
    # The template says User and Assistant around every problem.
    assert counts(tmp_path / "digits.model")["with characters that have no token (: A U a e i n r s t é)"] == 3
    assert "with" not in "".join(prompt_set(items).counts)


def test_a_batch_depends_on_its_position_alone():
    one, other = prompt_set().batches(3, seed=5), prompt_set().batches(3, seed=5)
    for n in (7, 0, 1000, 3):
        np.testing.assert_array_equal(one[n].example_id, other[n].example_id)
        np.testing.assert_array_equal(one[n].student_prompt, other[n].student_prompt)
    different = prompt_set().batches(3, seed=6)
    assert any((one[n].example_id != different[n].example_id).any() for n in range(3))


def test_an_epoch_holds_each_problem_once_and_the_next_has_another_order():
    batches = prompt_set(problems(9)).batches(3, seed=0)
    epochs = [[int(i) for n in range(3 * e, 3 * e + 3) for i in batches[n].example_id] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(9))
    assert epochs[0] != epochs[1] != epochs[2]


def test_no_problem_stands_twice_in_a_batch_at_the_edge_of_an_epoch():
    batches = prompt_set(problems(10)).batches(4, seed=0)
    for n in range(20):
        assert len(set(batches[n].example_id.tolist())) == 4


def test_prompts_take_the_room_of_their_tokens_and_not_of_their_width():
    """Padded to these widths, ten problems would be 100 GiB."""
    wide = prompt_set(student_width=2**30, teacher_width=2**30, target_width=2**30)
    assert len(wide) == 10


def test_prompts_that_do_not_fit_are_dropped_and_counted():
    items = problems(5) + [Problem(question="long " * 60, answer="1", source="test", index=5, scorer="math")]
    kept = prompt_set(items)
    assert len(kept) == 5
    assert kept.dropped["student prompt longer than 200 tokens"] == 1
    tight = max(len(TEXT.teacher(BYTES, problem, "answer", problem.answer)) for problem in items[:5]) - 1
    with pytest.raises(UserError, match=r"all 5 problems were dropped: 5 with a teacher prompt longer than"):
        prompt_set(items[:5], teacher_width=tight)


def test_prompts_are_whole_and_end_in_the_last_column():
    kept = prompt_set()
    batch = next(iter(kept.in_order(4, range(10))))[0]
    teacher = kept.teacher_batch(batch.example_id, group=3)
    for row, i in enumerate(batch.example_id):
        problem = kept.problems[i]
        assert batch.student_prompt[row][batch.student_prompt_mask[row]].tolist() == TEXT.student(BYTES, problem)
        assert teacher.teacher_prompt[row][teacher.teacher_prompt_mask[row]].tolist() == TEXT.teacher(
            BYTES, problem, "answer", problem.answer
        )
        assert batch.student_prompt_mask[row, -1] and teacher.teacher_prompt_mask[row, -1]


def test_targets_end_in_a_stop_token():
    kept = prompt_set(target_width=32)
    tokens, mask = kept.target_batch(np.array([3, 7]))
    for row, answer in enumerate(("Answer: 4", "Answer: 8")):
        assert BYTES.decode(tokens[row][mask[row]]) == answer
        assert tokens[row][mask[row]][-1] in BYTES.stop_ids


def test_answers_stand_alone_in_the_form_that_is_asked_for_and_are_cut_at_the_width():
    kept = prompt_set(problems(5) + problems(1, solution="count"), dataclasses.replace(TEXT, instruction="boxed"))
    for width, expected in ((12, ("\\boxed{4}", "\\boxed{1}")), (8, ("\\boxed{4", "\\boxed{1"))):
        tokens, mask = kept.answer_batch(np.array([3, 5]), width)
        assert tokens.shape == mask.shape == (2, width)
        assert tuple(BYTES.decode(ids[real]) for ids, real in zip(tokens, mask, strict=True)) == expected


def test_the_target_is_the_response_of_a_problem_that_has_one():
    items = problems(1, solution="count", response="one, two!") + problems(1, solution="count")
    targets, mask = prompt_set(items, target_width=100).target_batch(np.array([0, 1]))
    assert [BYTES.decode(ids[kept]) for ids, kept in zip(targets, mask, strict=True)] == [
        "one, two!",
        "count\n\nAnswer: 1",
    ]


def test_a_problem_without_the_default_context_is_left_out_and_counted():
    items = problems(4) + problems(3, hint="count") + problems(2, hint=" ")
    kept = prompt_set(items, HINTS)
    assert kept.problems == items[4:7] and kept.dropped["no hint"] == 6
    assert "no hint" not in prompt_set(items).dropped


def test_data_privileged_is_named_when_no_problem_has_what_it_asks_for():
    with pytest.raises(UserError, match="^data.privileged: 'hint': all 10 problems were dropped: 10 with no hint$"):
        prompt_set(text=HINTS)
    # Here it is the source that asks for it.
    with pytest.raises(UserError, match="^data.sources: all 10 problems were dropped: 10 with no solution$"):
        prompt_set(problems(privileged="solution"), HINTS)


def test_a_set_without_teacher_prompts_needs_no_context():
    assert len(prompt_set(text=HINTS, teacher_width=0)) == 10


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match="rollout.problems: 11: expected at most 10, the training problems"):
        prompt_set().batches(11, seed=0)


def test_evaluation_sees_each_problem_once_and_marks_what_fills_up():
    seen = [batch.example_id[live].tolist() for batch, live in prompt_set().in_order(4, range(10))]
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    [(batch, live)] = prompt_set().in_order(4, [7, 3])
    assert batch.example_id.tolist() == [7, 3, 7, 3] and live.tolist() == [True, True, False, False]


THOUGHTFUL = ByteTokenizer()
THOUGHTFUL.chat_template = CHATML_TEMPLATE.replace("assistant\n'", "assistant\n<think>\n'")


@pytest.mark.parametrize("response", ["hm</think>\n2", "<think>\nhm</think>\n2", "\n <think>hm</think>\n2"])
def test_thoughts_that_the_prompt_opens_begin_once_in_what_is_learnt(response):
    items = problems(2, response=response)
    made = PromptSet(items, THOUGHTFUL, TEXT, student_width=200, target_width=60)
    prompt, mask = prompts.left_pad([made[1]["student_prompt"]], 200, 256)
    target, target_mask = made.target_batch(np.array([0, 1]))
    for ids, keep in zip(target, target_mask, strict=True):
        whole = THOUGHTFUL.decode(prompt[0][mask[0]]) + THOUGHTFUL.decode(ids[keep])
        assert whole.endswith("assistant\n<think>\nhm</think>\n2") and whole.count("<think>") == 1
    # Of another template nothing is taken.
    target, target_mask = PromptSet(items, BYTES, TEXT, student_width=200, target_width=60).target_batch(np.array([0]))
    assert BYTES.decode(target[0][target_mask[0]]) == response


def test_an_answer_is_never_learnt_as_a_thought():
    for fields in ({"response": "So 2."}, {"response": "<think> 2"}, {}):
        with pytest.raises(
            UserError, match="^data.sources: the reference response '.*' has no </think>: expected thou"
        ):
            PromptSet(problems(2, **fields), THOUGHTFUL, TEXT, student_width=200, target_width=60)
        PromptSet(problems(2, **fields), THOUGHTFUL, TEXT, student_width=200, teacher_width=400)
