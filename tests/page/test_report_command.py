"""The command: what it refuses, what it says, and what the page then holds of guards and words."""

import json

import fake_run
import pytest
from reading import Page
from tiny import config

from dasd_jax import report
from dasd_jax.errors import UserError
from dasd_jax.run import records
from dasd_jax.run.guards import judge


@pytest.fixture
def run(tmp_path):
    return fake_run.write(tmp_path / "run", steps=6, tokens=200)


def with_config(run, *overrides):
    """Gives the made-up run a whole config.json; returns it."""
    made = config(*overrides)
    (run / "config.json").write_text(json.dumps(made.to_dict()))
    return made


def page_of(run, *flags):
    output = run.parent / "report.html"
    report.main([str(run), f"--output={output}", *flags])
    return Page([output.read_text(encoding="utf-8")])


def test_the_command_says_what_it_has_written(run, capsys):
    page = page_of(run)
    assert capsys.readouterr().out == f"{run.parent / 'report.html'}: 1 run, 0.2 MB\n"
    assert page.data["runs"][0]["name"] == "run"
    assert [path.name for path in run.parent.iterdir() if path != run] == ["report.html"]


def test_the_command_says_what_it_has_left_out(run, capsys):
    page_of(run, "--max_mb=0.15")
    note = capsys.readouterr().out.splitlines()[1]
    assert note.startswith("note: run: of 6 steps with rollouts ") and note.endswith("evenly spaced (--max_mb)")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--output={0}"], "--output: {0} is a folder: expected the name of a file"),
        (["--output={0}/run/samples.jsonl"], "--output: {0}/run/samples.jsonl: expected a file that ends in .html"),
        (["--output={0}/none/report.html"], "--output: {0}/none/report.html: there is no folder {0}/none: expected"),
        (["--output={0}/r.html", "--max_mb=-1"], "--max_mb: -1: expected a number above 0"),
        (["--output={0}/r.html", "--max_mb=nan"], "--max_mb: nan: expected a number above 0"),
        (["--output={0}/r.html", "--max_mb=many"], "--max_mb: many: expected a number above 0"),
        (["--output={0}/r.html", "--max_mb=0.001"], "--max_mb: 0.001: expected at least "),
        (["--output={0}/r.html", "{0}/run"], "RUN: {0}/run is given twice"),
        (["--output={0}/r.html", "{0}"], "RUN: {0} holds no metrics.jsonl"),
        (["--output={0}/r.html", "--mb=3"], "unrecognized arguments: --mb=3"),
        ([], "the following arguments are required: --output"),
    ],
)
def test_what_a_person_gets_wrong_is_one_line_and_writes_nothing(run, flags, line):
    with pytest.raises(UserError) as refused:
        report.main([str(run), *(flag.format(run.parent) for flag in flags)])
    assert str(refused.value).startswith(line.format(run.parent))
    assert list(run.parent.iterdir()) == [run]


def test_warnings_are_those_that_the_run_has_said(run):
    made = with_config(run, "guards.window=2", "guards.entropy_warn=0.1", "guards.entropy_stop=0")
    lines = [{"step": step, "entropy/mean": 1.0 if step in (1, 4, 5) else 0.01} for step in range(1, 10)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = [(count, judge(lines[:count], made).warnings) for count in range(1, 10)]
    expected = [(step, text.removeprefix("warning: ")) for step, texts in said for text in texts]
    assert len(expected) == 2
    found = page_of(run).data["runs"][0]["warnings"]
    assert [(each["step"], each["text"]) for each in found] == expected
    assert [each["until"] for each in found] == [each["step"] for each in found]


def test_a_warning_that_is_said_at_every_step_is_one_with_its_last_step(run):
    with_config(run, "guards.skipped_steps_stop=9")
    lines = [{"step": step, "optim/skipped_frac": (step in (2, 3, 4, 7)) / 4} for step in range(1, 9)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = page_of(run).data["runs"][0]["warnings"]
    assert [(each["step"], each["until"]) for each in found] == [(2, 4), (7, 7)]


def test_warnings_of_a_run_of_another_version_are_not_known(run):
    assert page_of(run).data["runs"][0]["warnings"] is None


@pytest.mark.parametrize("method", ["dasd", "grpo", "sft"])
def test_runs_of_methods_with_and_without_teacher_are_shown(run, method):
    with_config(run, f"objective.method={method}")
    if method == "sft":
        (run / "samples.jsonl").unlink()
    data = page_of(run).data["runs"][0]
    assert data["method"] == method and bool(data["index"]) == (method != "sft")


def test_words_are_those_of_strong_polarity_with_their_counts(run):
    problems = list(records.samples(run))
    for problem in problems:
        for rollout in problem["rollouts"]:
            rollout["gap"] = [-1.0 if piece == " wait" else 1.0 for piece in records.pieces(rollout)]
    (run / "samples.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    words = page_of(run).data["runs"][0]["words"]
    counted = sum(piece == " wait" for each in problems for one in each["rollouts"] for piece in records.pieces(one))
    assert [word["word"] for word in words if word["log_odds"] > 0] == ["wait"]
    assert words[0]["suppressed"] == counted and words[0]["favoured"] == 0
    assert all(word["favoured"] > word["suppressed"] for word in words[1:])
