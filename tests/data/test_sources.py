"""Problem sources: what a spec yields, what is held out, and the one line that each mistake earns."""

import hashlib
import importlib
import json
import sys
import textwrap

import pyarrow
import pyarrow.parquet
import pytest

from dasd_jax.data import sources
from dasd_jax.data.duplicates import twins
from dasd_jax.data.heldout import split_heldout
from dasd_jax.data.sources import Problem, labels, load_problems, load_source
from dasd_jax.errors import UserError

ADDITIONS = "gym:chain_sum?min_terms=2&max_terms=2&max_digits=1&size=300&seed=0"


def problem(question: str, index: int = 0) -> Problem:
    return Problem(question=question, answer="1", source="test", index=index, scorer="math")


def digest(of: Problem) -> bytes:
    return hashlib.sha256(of.question.encode()).digest()


def write_lines(path, *rows) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return f"jsonl:{path}"


def test_a_gym_spec_yields_the_same_problems_again_and_others_with_another_seed():
    problems = load_source("gym:chain_sum?min_terms=2&max_terms=2&size=5")
    assert problems == load_source("gym:chain_sum?min_terms=2&max_terms=2&size=5")
    assert [p.index for p in problems] == list(range(5)) and {p.scorer for p in problems} == {"task"}
    other = load_source("gym:chain_sum?min_terms=2&max_terms=2&size=5&seed=99")
    assert not {p.question for p in problems} & {p.question for p in other}


def test_a_query_value_may_hold_a_plus_sign():
    problems = load_source("gym:basic_arithmetic?operators=('+',)&size=8")
    assert all("+" in p.question and "*" not in p.question and "/" not in p.question for p in problems)


def test_a_gym_task_with_worked_answers_gives_them_as_solution():
    [worked] = load_source("gym:gsm_symbolic?size=1")
    assert worked.answer in worked.solution
    assert load_source("gym:chain_sum?size=1")[0].solution == ""


def test_jsonl_maps_columns_turns_numbers_to_text_and_keeps_a_unicode_line_whole(tmp_path):
    spec = write_lines(
        tmp_path / "p.jsonl",
        '{"problem": "one\u2028two", "final": 0.5, "solution": "half", "hint": null}',
        "",
        {"problem": "three", "final": 7},
    )
    first, second = load_source(f"{spec}?question=problem&answer=final")
    assert (first.question, first.answer, first.solution, first.hint) == ("one\u2028two", "0.5", "half", "")
    assert (second.answer, second.index, second.scorer) == ("7", 1, "math")


def test_a_prepared_tfds_data_set_reads_back_without_tensorflow(tmp_path, monkeypatch):
    package = tmp_path / "sums_builder"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "sums_builder.py").write_text(
        textwrap.dedent("""
        import numpy as np
        import tensorflow_datasets as tfds

        class Sums(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            def _info(self):
                features = {"problem": tfds.features.Text(), "answer": np.int64, "hint": tfds.features.Text()}
                return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))
            def _split_generators(self, _):
                return {"test": ((i, {"problem": f"π + {i}", "answer": i, "hint": "add"}) for i in range(3))}
            def _generate_examples(self):
                pass
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    builder = importlib.import_module("sums_builder.sums_builder").Sums(
        data_dir=tmp_path / "data", file_format="array_record"
    )
    builder.download_and_prepare()
    spec = f"tfds:{builder.data_dir}"
    problems = load_source(f"{spec}?split=test&question=problem")
    assert {(p.question, p.answer, p.hint) for p in problems} == {(f"π + {i}", str(i), "add") for i in range(3)}
    assert "tensorflow" not in sys.modules
    with pytest.raises(UserError, match="cannot read split 'train'"):
        load_source(spec)
    with pytest.raises(UserError, match=r"test\[0\]: no field 'question'"):
        load_source(f"{spec}?split=test&hint=hint")
    assert {p.question for p in load_source(f"{spec}?split=test")} == {p.question for p in problems}


def test_equal_questions_are_kept_once_and_counted(tmp_path):
    first = write_lines(tmp_path / "a.jsonl", *({"question": q, "answer": "1"} for q in ["How  many $x$?", "1+2?"]))
    second = write_lines(tmp_path / "b.jsonl", *({"question": q, "answer": "2"} for q in ["how many \\(x\\)?", "2+1?"]))
    problems, counts = load_problems([first, second])
    assert [(p.question, p.answer) for p in problems] == [("How  many $x$?", "1"), ("1+2?", "1"), ("2+1?", "2")]
    assert counts == {"read": 4, "duplicates": 1, "kept": 3}


def test_train_and_heldout_are_disjoint_and_together_everything():
    problems, counts = load_problems([ADDITIONS])
    assert counts["duplicates"] > 0
    train, heldout = split_heldout(problems, 40)
    assert len(heldout) == 40
    assert not {p.question for p in train} & {p.question for p in heldout}
    assert sorted(train + heldout, key=lambda p: p.index) == problems


def test_what_is_held_out_depends_on_the_questions_and_not_on_their_order():
    problems = [problem(f"question {i}", i) for i in range(50)]
    train, heldout = split_heldout(problems, 10)
    assert split_heldout(problems[::-1], 10) == (train, heldout)
    assert heldout != problems[:10]
    assert [p.index for p in train] != sorted(p.index for p in train)
    assert set(split_heldout(problems, 9)[1]) < set(heldout)


@pytest.mark.parametrize("count", [2, 3, 17, 60, 94])
def test_problems_that_differ_in_the_order_of_numbers_stay_on_one_side(count):
    """Sums of two digits: nearly each has its mirror image."""
    problems, _ = load_problems([ADDITIONS])
    train, heldout = split_heldout(problems, count)
    assert len(heldout) == count and sorted(train + heldout, key=lambda p: p.index) == problems
    assert not {twins(p.question) for p in train} & {twins(p.question) for p in heldout}
    assert split_heldout(problems[::-1], count) == (train, heldout)
    assert len({twins(p.question) for p in problems}) < 0.7 * len(problems)


def test_twins_move_two_problems_and_leave_the_others_in_their_places():
    """A held-out problem's twin comes to its side; the last held-out problem takes the twin's place in training."""
    first, twin = problem("0 or 5?", 60), problem("5 or 0?", 61)
    ordered = sorted([*(problem(f"question {i}", i) for i in range(60)), first, twin], key=digest)
    assert ordered.index(first) < 20 < ordered.index(twin)  # what a cut through the order would tear apart
    train, heldout = split_heldout(ordered, 20)
    assert heldout == [*ordered[:19], twin]
    assert train == [ordered[19] if p is twin else p for p in ordered[20:]]


def test_a_number_that_no_choice_of_twins_reaches_is_refused():
    pairs = [problem(text) for text in ("1 or 2?", "2 or 1?", "3 + 4", "4 + 3")]
    assert len(split_heldout(pairs, 2)[1]) == 2
    with pytest.raises(UserError, match="data.heldout: 1: problems that differ in the order of .*: expected 2, for"):
        split_heldout(pairs, 1)
    with pytest.raises(UserError, match="data.heldout: 3: .*: expected 2, for example"):
        split_heldout(pairs, 3)


@pytest.mark.parametrize("num_heldout", [-1, 3, 4])
def test_holding_out_everything_is_refused(num_heldout):
    with pytest.raises(UserError, match=f"data.heldout: {num_heldout}: .*3 distinct problems"):
        split_heldout([problem(q) for q in "abc"], num_heldout)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("csv:/x", "unknown scheme, expected one of gym:, jsonl:, parquet:, tfds:"),
        ("chain_sum", "unknown scheme"),
        ("gym:chain_sun", "no reasoning-gym task 'chain_sun', nearest are chain_sum"),
        ("gym:chain_sum?min_term=2", "has no field 'min_term', nearest are min_terms"),
        ("gym:chain_sum?min_terms=0", "rejects its fields: min_terms must be positive"),
        ("gym:chain_sum?min_terms=two", "rejects its fields"),
        ("gym:chain_sum?seed=None", "seed is None, expected an integer"),
        ("gym:chain_sum?min_terms", "'min_terms' in the query, expected name=value"),
        ("gym:lcm?size=1000000000", "size is 1000000000, expected an integer of 1 to 100000"),
        ("gym:lcm?size=²", "size is '²', expected an integer"),
        ("gym:chain_sum?max_terms=999999999&size=1", "failed to generate problem 0: it takes longer than"),
        ("jsonl:/no\0such", "cannot be opened (embedded null byte)"),
        ("gym:word_ladder?size=2", "is not deterministic across processes"),
        ("gym:rubiks_cube?size=2", "problem 0 has no reference answer"),
        ("jsonl:/no/such.jsonl", "no such file '/no/such.jsonl'"),
        ("tfds:/no/such/dir", "no such directory '/no/such/dir'"),
    ],
)
def test_a_mistaken_spec_is_one_line_with_field_value_and_expectation(spec, reason, monkeypatch):
    monkeypatch.setattr(sources, "_PROBLEM_TIMEOUT_S", 0.2)
    with pytest.raises(UserError) as refusal:
        load_source(spec)
    message = str(refusal.value)
    assert message.startswith(f"data.sources: {spec!r}: ") and reason in message and "\n" not in message


GOOD = {"question": "q", "answer": "a"}


@pytest.mark.parametrize(
    ("line", "query", "reason"),
    [
        ('{"question": ', "", "not JSON"),
        ("[1]", "", "a JSON list, expected an object"),
        ({"question": "q"}, "", "no field 'answer'"),
        ({"question": " ", "answer": "a"}, "", "empty question: expected a problem with one verifiable answer"),
        ({"question": "q", "answer": None}, "", "no answer: expected a problem with one verifiable answer"),
        ({"question": "q", "answer": "proof"}, "", "proof without a final answer: expected"),
        ({"question": "q", "answer": "notfound"}, "", "no answer: expected"),
        ({"question": "q", "answer": "One.\nTwo."}, "", "no unique verifiable answer: expected"),
        ({"question": "q", "answer": "In 3 days it sells 2*3 = 6 pens."}, "", "no unique verifiable answer: expected"),
        ({"question": "q", "answer": "a", "question_type": "proof"}, "", "proof without a final answer: expected"),
        (
            {"question": "q", "answer": "a", "problem_is_valid": "No"},
            "",
            "marked as invalid by its publisher: expected",
        ),
        ({"question": 3, "answer": "a"}, "", "field 'question' is a int, expected a string"),
        ({"question": "q", "answer": True}, "", "field 'answer' is a bool"),
        ("[" * 9999, "", "not JSON"),
        ({"question": "q", "answer": float("nan")}, "", "field 'answer' is nan, expected a finite number"),
        ({"question": "\ud800", "answer": "a"}, "", "field 'question' is '\\ud800', expected valid UTF-8 text"),
        ({"question": "q", "answer": "a"}, "?hint=tip", "no field 'tip'"),
    ],
)
def test_a_mistaken_row_is_named_by_file_and_line(tmp_path, line, query, reason):
    good = GOOD | {"tip": "t"}
    spec = write_lines(tmp_path / "p.jsonl", good, "", line)
    with pytest.raises(UserError) as refusal:
        load_source(spec + query)
    assert f"{tmp_path}/p.jsonl:3: {reason}" in str(refusal.value) and "\n" not in str(refusal.value)


def test_nothing_to_read_is_refused(tmp_path):
    with pytest.raises(UserError, match="it holds no problems"):
        load_source(write_lines(tmp_path / "empty.jsonl", ""))
    with pytest.raises(UserError, match="no sources"):
        load_problems([])
    with pytest.raises(UserError, match="unknown field 'quesiton', expected one of question, answer"):
        load_source(write_lines(tmp_path / "p.jsonl", GOOD) + "?quesiton=q")


def test_a_published_file_is_read_directly_as_prepare_reads_it(tmp_path):
    worked = write_lines(tmp_path / "gsm8k.jsonl", {"question": "1+1?", "answer": "It is <<1+1=2>>2. #### 2"})
    [gsm8k] = load_source(worked)
    assert (gsm8k.answer, gsm8k.solution) == ("2", "It is 2.")
    assert load_source(f"{worked}?question=question&answer=answer")[0].answer == "2"
    asked = 'What is 1+1? Let\'s think step by step and output the final answer after "####".'
    turns = [{"role": "system", "content": "Be careful."}, {"role": "user", "content": asked}]
    row = {"prompt": turns, "ability": "math", "reward_model": {"ground_truth": "2"}}
    path = tmp_path / "verl.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    assert [(p.question, p.answer) for p in load_source(f"parquet:{path}")] == [("What is 1+1?", "2")]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row, row | {"ability": "code"}]), path)
    with pytest.raises(UserError, match=r"verl.parquet\[1\]: another ability than mathematics: .*dasd_jax.prepare"):
        load_source(f"parquet:{path}")


def test_parquet_rows_are_problems_too(tmp_path):
    path = tmp_path / "p.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"problem": ["1+1?", "1+2?"], "answer": [2, 3]}), path)
    problems = load_source(f"parquet:{path}?question=problem")
    assert [(p.question, p.answer, p.index) for p in problems] == [("1+1?", "2", 0), ("1+2?", "3", 1)]
    assert [p.question for p in load_source(f"parquet:{path}")] == ["1+1?", "1+2?"]  # a published layout
    with pytest.raises(UserError, match=r"p.parquet\[0\]: no field 'question', the row has answer, problem"):
        load_source(f"parquet:{path}?answer=answer")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="data.sources: .*p.parquet: cannot be read as Parquet"):
        load_source(f"parquet:{path}")


def test_a_label_is_the_task_or_the_last_part_of_the_path():
    gym = ("gym:lcm?size=2", "gym:chain_sum?size=2", "gym:chain_sum?size=3")
    files = ("tfds:data/aime24/?split=train", "jsonl:/d/math500.jsonl?question=q", "tfds:/d/hmmt/1.0.0", "tfds:dapo")
    assert labels(gym + files) == {
        "gym:lcm?size=2": "lcm",
        "gym:chain_sum?size=2": "gym:chain_sum?size=2",
        "gym:chain_sum?size=3": "gym:chain_sum?size=3",
        "tfds:data/aime24/?split=train": "aime24",
        "jsonl:/d/math500.jsonl?question=q": "math500",
        "tfds:/d/hmmt/1.0.0": "hmmt",
        "tfds:dapo": "dapo",
    }


def test_a_source_says_what_its_teacher_is_shown(tmp_path):
    spec = write_lines(tmp_path / "p.jsonl", GOOD)
    assert load_source(spec)[0].privileged == ""
    assert load_source(spec + "?privileged=sibling")[0].privileged == "sibling"
    assert load_source("gym:chain_sum?size=2&privileged=answer")[1].privileged == "answer"
    with pytest.raises(UserError, match="privileged=oracle: expected one of answer, solution, hint, sibling"):
        load_source(spec + "?privileged=oracle")
