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
    assert len({line["question"] for line in lines}) == len(lines)
    for line in lines:
        asked = line["question"].removeprefix("What is ").removesuffix("?")
        assert equalities.held(f"{asked} = {line['answer']}") == [True]
        assert equalities.held(line["solution"]) == [True, True]
        assert line["solution"].endswith(f" = {line['answer']}.")


def test_the_default_has_500_problems_to_train_on_and_holds_out_what_it_evaluates(written):
    config = cli.load_config("smollm2_math")
    problems, counts = load_problems([f"jsonl:{written}"])
    train, heldout = split_heldout(problems, config.data.heldout)
    assert counts["duplicates"] == 0 and len(train) - config.data.shots >= 500
    assert len(heldout) == config.data.heldout == config.run.eval_problems
