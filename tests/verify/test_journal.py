"""The journal of verdicts: what a run that goes on is told of responses that it wrote before."""

import json

import pytest

from dasd_jax.data.sources import Problem
from dasd_jax.verify.journal import Journal
from dasd_jax.verify.verifier import Verdict

PROBLEMS = [Problem(question="q", answer="1", source="s", index=i, scorer="math") for i in range(2)]


class Moody:
    """A verifier whose every verdict differs from those before, as those of a machine under load might."""

    def __init__(self):
        self.calls = 0

    def verify(self, problems, texts, progress):
        self.calls += 1
        progress(len(texts), len(texts))
        return [Verdict(1.0, 1.0 - self.calls / 1000, text, "") for text in texts[:-1]] + [
            Verdict(0.0, self.calls / 1000, None, "parse")
        ]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "verdicts.jsonl"


def test_a_run_that_goes_on_gets_the_verdicts_it_had(path):
    moody = Moody()
    journal = Journal(path, moody)
    had = [journal.verify(batch, PROBLEMS, [f"Answer: {batch}", "\u2028\n\ud800"]) for batch in range(3)]
    again = Journal(path, moody)
    assert [again.verify(batch, PROBLEMS, [f"Answer: {batch}", "\u2028\n\ud800"]) for batch in (1, 2, 0)] == [
        had[1], had[2], had[0]
    ]  # fmt: skip
    assert moody.calls == 3 and len(path.read_bytes().splitlines()) == 3


@pytest.mark.parametrize(
    "other",
    [
        (1, PROBLEMS, ["a", "b"]),
        (0, PROBLEMS, ["a", "c"]),
        (0, PROBLEMS, ["b", "a"]),
        (0, PROBLEMS[::-1], ["a", "b"]),
    ],
)
def test_another_batch_or_other_responses_are_verified_and_both_are_kept(path, other):
    moody = Moody()
    had = Journal(path, moody).verify(0, PROBLEMS, ["a", "b"])
    journal = Journal(path, moody)
    new = journal.verify(*other)
    assert new != had and moody.calls == 2
    again = Journal(path, moody)
    assert again.verify(0, PROBLEMS, ["a", "b"]) == had and again.verify(*other) == new and moody.calls == 2


BROKEN = (
    "{}", "[]", "1", "null", '{"batch": 1, "responses": "x"}', '{"batch": 1, "responses": "x", "verdicts": 3}',
    '{"batch": {}, "responses": "x", "verdicts": []}', '{"batch": 1, "responses": "x", "verdicts": [[1.0]]}',
    '{"batch": 1, "responses": "x", "verdicts": [[NaN, 1.0, null, ""]]}', "[" * 100_000,
)  # fmt: skip


@pytest.mark.parametrize(
    "left", [b"", b'{"batch": 1, "resp', b"\n", b"garbage\n", *(line.encode() + b"\n" for line in BROKEN)]
)
def test_what_a_kill_leaves_of_a_line_costs_that_line_alone(path, left):
    moody = Moody()
    had = [Journal(path, moody).verify(batch, PROBLEMS, ["a", "b"]) for batch in range(2)]
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + left)
    journal = Journal(path, moody)
    assert journal.verify(0, PROBLEMS, ["a", "b"]) == had[0]
    new = journal.verify(1, PROBLEMS, ["a", "b"])
    assert new != had[1] and moody.calls == 3
    again = Journal(path, moody)
    assert [again.verify(batch, PROBLEMS, ["a", "b"]) for batch in range(2)] == [had[0], new] and moody.calls == 3


def test_verdicts_that_are_not_those_of_the_responses_are_made_again(path):
    moody = Moody()
    had = Journal(path, moody).verify(0, PROBLEMS, ["a", "b"])
    line = json.loads(path.read_text())
    for verdicts in (line["verdicts"][:1], [["1.0", 1.0, None, ""]] * 2, [[float("inf"), 1.0, None, ""]] * 2):
        path.write_text(json.dumps(line | {"verdicts": verdicts}) + "\n")
        assert Journal(path, moody).verify(0, PROBLEMS, ["a", "b"]) != had
    assert moody.calls == 4


def test_nothing_is_written_before_the_first_verdicts(path):
    Journal(path, Moody())
    assert not path.exists()


def test_progress_is_told_of_what_is_verified_and_not_of_what_is_known(path):
    told = []
    for _ in range(2):
        Journal(path, Moody()).verify(0, PROBLEMS, ["a", "b"], lambda *count: told.append(count))
    assert told == [(2, 2)]
