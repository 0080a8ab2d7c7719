"""Problem sources: what a spec yields, what is held out, and the one line that each mistake earns."""

import importlib
import json
import sys
import textwrap

import pyarrow
import pyarrow.parquet
import pytest

from dasd_jax.data import sources
from dasd_jax.data.sources import Problem, labels, load_problems, load_source, split_heldout
from dasd_jax.errors import UserError

ADDITIONS = "gym:chain_sum?min_terms=2&max_terms=2&max_digits=1&size=300&seed=0"


def problem(question: str, index: int = 0) -> Problem:
    return Problem(question=question, answer="1", source="test", index=index, scorer="math")


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
        load_source(f"{spec}?split=test")


def test_equal_questions_are_kept_once_and_counted(tmp_path):
    first = write_lines(tmp_path / "a.jsonl", *({"question": q, "answer": "1"} for q in ["How  many?", "Why?"]))
    second = write_lines(tmp_path / "b.jsonl", *({"question": q, "answer": "2"} for q in ["how many? ", "When?"]))
    problems, counts = load_problems([first, second])
    assert [(p.question, p.answer) for p in problems] == [("How  many?", "1"), ("Why?", "1"), ("When?", "2")]
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
        ({"question": " ", "answer": "a"}, "", "field 'question' is empty"),
        ({"question": "q", "answer": None}, "", "field 'answer' is empty"),
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
    with pytest.raises(UserError, match="unknown query key 'quesiton', expected one of question, answer"):
        load_source(write_lines(tmp_path / "p.jsonl", GOOD) + "?quesiton=q")


def test_parquet_rows_are_problems_too(tmp_path):
    path = tmp_path / "p.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"problem": ["1+1?", "1+2?"], "answer": [2, 3]}), path)
    problems = load_source(f"parquet:{path}?question=problem")
    assert [(p.question, p.answer, p.index) for p in problems] == [("1+1?", "2", 0), ("1+2?", "3", 1)]
    with pytest.raises(UserError, match=r"p.parquet\[0\]: no field 'question', expected it to hold the question"):
        load_source(f"parquet:{path}")
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
