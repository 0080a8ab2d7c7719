"""The problems of the default configuration."""

import json

import pytest

from dasd_jax import cli, fetch
from dasd_jax.data.heldout import split_heldout
from dasd_jax.data.sources import load_problems
from dasd_jax.health import equalities


@pytest.fixture
def written(tmp_path):
    fetch.write_sums(tmp_path / "sums.jsonl")
    return tmp_path / "sums.jsonl"


def test_every_problem_of_the_default_is_solved_in_two_steps_that_hold(written):
    lines = [json.loads(line) for line in written.read_text().splitlines()]
    assert len({line["question"] for line in lines}) == len(lines) > 1000
    for line in lines:
        assert equalities.held(line["solution"]) == [True, True]
        assert line["solution"].endswith(f" = {line['answer']}.") and int(line["answer"]) > 0
        asked = line["question"].removeprefix("What is ").removesuffix("?")
        assert equalities.held(f"{asked} = {line['answer']}") == [True]


def test_the_default_shows_a_sum_and_a_difference_and_holds_neither_out(written):
    data = cli.load_config("smollm2_math").data
    problems, counts = load_problems([f"jsonl:{written}"])
    train, heldout = split_heldout(problems, data.heldout)
    assert counts["duplicates"] == 0 and len(heldout) == data.heldout
    assert {" - " in problem.question for problem in train[: data.shots]} == {True, False}
