"""Files of versions: both forms, what is missing and what is refused; and the responses that loading keeps."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from dasd_jax.data import versions
from dasd_jax.data.sources import load_problems
from dasd_jax.errors import UserError

NAMES = ("cot", "tir")


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def row(number, **fields):
    return {"question": f"What is {number} + {number}?", "answer": str(2 * number), **fields}


def test_versions_are_read_from_an_object_from_its_json_text_and_from_columns(tmp_path):
    both = {"cot": " by hand ", "tir": "print(2)", "draft": "?"}
    path = write(
        tmp_path / "a.jsonl",
        row(1, versions=both, solution="s"),
        row(2, versions=json.dumps(both)),
        row(3, cot="by hand", tir="print(2)"),
        row(4, versions={"cot": "by hand"}, cot="another", tir="print(2)"),
    )
    found, counts = versions.read([path], NAMES)
    assert [dict(each.texts) for each in found] == [{"cot": "by hand", "tir": "print(2)"}] * 4
    assert [each.problem.answer for each in found] == ["2", "4", "6", "8"] and found[0].problem.solution == "s"
    assert counts == {"read": 4, "duplicates": 0}


def test_a_parquet_file_and_a_published_layout_are_read_alike(tmp_path):
    rows = [
        {"problem": f"{i} + 1?", "answer": i + 1, "versions": {"cot": "a", "tir": "b" if i else None}} for i in (0, 1)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    found, counts = versions.read([str(tmp_path / "a.parquet")], NAMES, "numeric")
    assert [each.problem.question for each in found] == ["0 + 1?", "1 + 1?"]
    assert {each.problem.scorer for each in found} == {"numeric"}
    assert [list(each.texts) for each in found] == [["cot"], ["cot", "tir"]]
    assert counts == {"read": 2, "duplicates": 0, "without tir": 1}


def test_what_is_missing_is_counted_and_of_equal_questions_the_first_is_kept(tmp_path):
    first = write(tmp_path / "a.jsonl", row(1, cot="a", tir="b"), row(2, cot="a", tir=" "), row(3, tir="b"), row(4))
    second = write(
        tmp_path / "b.jsonl", row(5, cot=None, tir="b"), {**row(1, cot="c", tir="d"), "question": "what is 1+1?"}
    )
    found, counts = versions.read([first, second], NAMES)
    assert counts == {"read": 6, "duplicates": 1, "without tir": 1, "without cot": 2, "without cot and tir": 1}
    assert [dict(each.texts) for each in found][:1] == [{"cot": "a", "tir": "b"}] and len(found) == 5


GOOD = row(1, cot="a", tir="b")
# Each: rows after a good one, and how the message goes on after the path.
BAD_ROWS = {
    "not json": ('{"question": "1 +', ":2: not JSON"),
    "no object": ("[1]", ":2: a JSON list"),
    "no answer": ({"question": "2?", "cot": "a", "tir": "b"}, ":2: no field 'answer'"),
    "a list of versions": (row(2, versions=["a"]), ":2: field 'versions' is a list, expected an object of texts"),
    "versions as words": (row(2, versions="a and b"), ":2: field 'versions' is a str, expected an object of texts"),
    "a version that is a number": (row(2, versions={"cot": 3, "tir": "b"}), ":2: field 'cot' is a int, expected a str"),
    "a column that is a list": (row(2, cot=["a"], tir="b"), ":2: field 'cot' is a list, expected a string"),
    "half a character": (row(2, cot="\ud800", tir="b"), ":2: field 'cot' is '\\ud800', expected valid UTF-8"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named(name, tmp_path):
    bad, expected = BAD_ROWS[name]
    path = write(tmp_path / "a.jsonl", GOOD, bad)
    with pytest.raises(UserError) as refused:
        versions.read([path], NAMES)
    assert str(refused.value).startswith("--input: ") and f"{path}{expected}" in str(refused.value)


def test_files_that_are_none_and_names_that_nothing_has_are_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD, row(2, tir="b"))
    for paths, names, expected in (
        ([f"{tmp_path}/none.jsonl"], NAMES, "--input: .*no such file"),
        ([f"{tmp_path}/a.csv"], NAMES, r"--input: .*a\.csv: expected a file name that ends in \.jsonl or \.parquet"),
        (
            [path],
            ("cot", "pot"),
            r"--versions: cot,pot: none of the 2 problems has all of them \(1 without pot, 1 without cot and pot\)",
        ),
    ):
        with pytest.raises(UserError, match=f"^{expected}"):
            versions.read(paths, names)


def test_further_responses_to_a_question_are_kept_with_the_first(tmp_path):
    """Once each, in their order; without them problems are what they were."""
    path = write(
        tmp_path / "a.jsonl",
        row(1, response="by hand"),
        row(2),
        row(1, response="print(2)"),
        row(2, response="so 4"),
        row(1, response="by hand"),
        row(1),
        row(1, response="2"),
        row(2),
    )
    (first, second), counts = load_problems([f"jsonl:{path}"])
    assert counts == {"read": 8, "duplicates": 6, "kept": 2}
    assert (first.response, first.other_responses) == ("by hand", ("print(2)", "2"))
    assert (second.response, second.other_responses) == ("", ("so 4",))
    assert [each.response for each in first.by_response()] == ["by hand", "print(2)", "2"]
    assert [each.response for each in second.by_response()] == ["", "so 4"]
    assert {each.question for each in first.by_response()} == {first.question}
