"""Finding and selecting logged rollouts."""

import json

import fake_run
import pytest

from dasd_jax.errors import UserError
from dasd_jax.run import records
from dasd_jax.show.logged import Samples, Selection, verdict


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 5 steps with 3 × 4 rollouts each, some of them cut off."""
    folder = fake_run.write(tmp_path_factory.mktemp("run"), steps=5, problems=3, rollouts=4)
    path = folder / "samples.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["rollouts"][number % 4]["finished"] = number % 3 > 0
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def found(iterator):
    return [place for place in iterator if place]


def every(run):
    """(place, problem, rollout) of all, read in the plain way."""
    for line, problem in enumerate(records.samples(run)):
        for number, rollout in enumerate(problem["rollouts"]):
            yield (line, number), problem, rollout


def test_lines_are_the_problems_in_their_order(run):
    samples = Samples(run)
    assert [samples.problem(line) for line in range(len(samples))] == list(records.samples(run))
    assert samples.steps == [problem["step"] for problem in records.samples(run)]


@pytest.mark.parametrize("only", [None, "right", "wrong", "truncated"])
@pytest.mark.parametrize("step", [None, 2])
@pytest.mark.parametrize("problem", [None, "20", "IS 2 + 1"])
def test_selected_are_exactly_those_that_match(run, only, step, problem):
    def matches(line, rollout):
        verdict = "truncated" if not rollout["finished"] else "right" if rollout["reward"] else "wrong"
        chosen = {None: True, "20": line["example_id"] == 20, "IS 2 + 1": "is 2 + 1" in line["question"]}[problem]
        return only in (None, verdict) and step in (None, line["step"]) and chosen

    expected = [place for place, line, rollout in every(run) if matches(line, rollout)]
    selection = Selection(Samples(run), step, problem, only)
    assert found(selection.all()) == expected
    for place in [(0, 0), (7, 2), (14, 3)]:
        assert found(selection.after(place)) == [other for other in expected if other > place]
        assert found(selection.before(place)) == [other for other in reversed(expected) if other < place]
    assert found(selection.in_step(2)) == [place for place in expected if 3 <= place[0] < 6]


def test_by_gap_the_largest_comes_first(run):
    selection = Selection(Samples(run), only="right")
    ordered = selection.by_gap(found(selection.all()))
    gaps = [max(abs(gap) for gap in rollout["gap"]) for of in ordered for at, _, rollout in every(run) if at == of]
    assert gaps == sorted(gaps, reverse=True) and len(set(gaps)) > 5
    assert sorted(ordered) == found(selection.all())


def test_a_run_that_is_being_written_shows_its_whole_lines(run, tmp_path):
    whole = (run / "samples.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").touch()
    for cut in (1, 2, 500):
        (tmp_path / "samples.jsonl").write_bytes(whole[:-cut])
        assert Samples(tmp_path).steps == Samples(run).steps[:-1]


def test_a_run_that_is_cut_back_meanwhile_is_shown_as_it_was(run, tmp_path):
    """As a run that goes on from a checkpoint does it: by a shorter file that takes the name."""
    (tmp_path / "metrics.jsonl").touch()
    path = tmp_path / "samples.jsonl"
    path.write_bytes((run / "samples.jsonl").read_bytes())
    samples = Samples(tmp_path)
    (tmp_path / "draft").write_bytes(b"")
    (tmp_path / "draft").rename(path)
    assert samples.problem(14) == Samples(run).problem(14)


def test_opening_parses_no_line(run, monkeypatch):
    """10,000 rollouts are open at once; JSON alone would take seconds."""
    monkeypatch.setattr(Samples, "_parsed", lambda self, line: pytest.fail("parsed"))
    assert len(Samples(run)) == 15


def test_a_missing_step_names_its_neighbours(run, tmp_path):
    lines = [line for line in (run / "samples.jsonl").read_text().splitlines() if '"step": 3,' not in line]
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "samples.jsonl").write_text("\n".join(lines) + "\n")
    for step, nearest in ((3, "2 and 4"), (0, "1"), (9, "5")):
        with pytest.raises(UserError, match=rf"--step: {step}: .* nearest steps with some: {nearest}$"):
            Selection(Samples(tmp_path), step)


@pytest.mark.parametrize("line", ["[1]", "{}", '{"step": "1"}', "x"])
def test_a_line_without_a_step_is_named(run, tmp_path, line):
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "samples.jsonl").write_text(f"{line}\n{line}\n")
    with pytest.raises(UserError, match="RUN: .*samples.jsonl: line 1 "):
        Samples(tmp_path)


def test_a_damaged_line_is_named_when_it_is_shown(run, tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "samples.jsonl").write_text('{"step": 1, "rollouts": [{}]}\n{"step": 1, "rol\n{"step": 1}\n')
    samples = Samples(tmp_path)
    for line in range(3):
        with pytest.raises(UserError, match="RUN: .*samples.jsonl"):
            samples.briefs(line)


def test_cut_off_is_truncated_whatever_it_earned():
    assert [verdict({"reward": reward, "finished": False}) for reward in (0.0, 1.0)] == ["truncated"] * 2
    assert [verdict({"reward": reward, "finished": True}) for reward in (0.0, 1.0)] == ["wrong", "right"]
