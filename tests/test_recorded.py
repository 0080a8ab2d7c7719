"""What a run's config.json decides for the next start of the run, and for the commands that use its checkpoints."""

import dataclasses
import datetime
import json
from pathlib import Path

import pytest
from tiny import config

from dasd_jax import cli, recorded
from dasd_jax import config as config_module
from dasd_jax.errors import UserError
from dasd_jax.methods import METHODS


def run(folder, *overrides):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(*overrides).to_dict()))
    return folder


# ------------------------------------------------------------------------------------------------ settings of a command


def parsed(*argv):
    return cli.parse(cli.parser("", of_a_run=True), list(argv))


def test_without_a_config_the_settings_are_those_that_the_run_left(tmp_path):
    workdir = run(tmp_path / "a:b", "data.shots=2", "objective.method=grpo", "run.eval_samples=3")
    command = parsed(f"--workdir={workdir}", "--config.run.eval_samples=5")
    assert command.workdir == workdir
    assert command.config == config("data.shots=2", "objective.method=grpo", "run.eval_samples=5")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "--workdir: missing: expected the folder of a run, or --config=FILE.py"),
        (["--workdir=FOLDER"], "--workdir: FOLDER holds no config.json: expected the folder of a run, or --config"),
        (["--workdir=FOLDER/" + "x" * 300], "does not exist: expected the folder of a run"),
        (["--workdir=FOLDER/damaged"], "FOLDER/damaged/config.json is not valid JSON"),
        (["--workdir=FOLDER/older"], "FOLDER/older/config.json was written by another version of this program: expec"),
    ],
)
def test_without_a_config_a_run_is_expected(argv, said, tmp_path):
    run(tmp_path / "damaged").joinpath("config.json").write_text("{")
    older = {group: fields for group, fields in config().to_dict().items() if group != "guards"}
    run(tmp_path / "older").joinpath("config.json").write_text(json.dumps(older))
    with pytest.raises(UserError) as refused:
        parsed(*(word.replace("FOLDER", str(tmp_path)) for word in argv))
    assert said.replace("FOLDER", str(tmp_path)) in str(refused.value) and "\n" not in str(refused.value)


def test_training_asks_for_a_config_whatever_the_folder_holds(tmp_path):
    with pytest.raises(UserError, match="the following arguments are required: --config"):
        cli.parse(cli.parser(""), [f"--workdir={run(tmp_path)}"])


# ------------------------------------------------------------------------------------------------ what may differ

PROMPTS = {
    "model.tokenizer": "x.json",
    "model.weights": "y.gguf",
    "model.preset": "other",
    "data.instruction": "boxed",
    "data.system": "Be brief.",
    "data.thinking": "off",
    "data.shots": 1,
    "data.sources": ("gym:lcm?size=50",),
    "data.heldout": 20,
    "data.now": "2026-03-09",
}


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("which", ["", "best", "000004", "start", "RUN/checkpoints/000004", "RUN/checkpoints/000004/"])
def test_prompts_and_model_are_those_of_the_checkpoints_run(name, which, tmp_path):
    workdir = run(tmp_path / "run", "data.now=2026-01-31", "run.eval_problems=4")
    asked = config(f"{name}={PROMPTS[name]}", "run.eval_problems=4")
    which, elsewhere = which.replace("RUN", str(workdir)), tmp_path / "elsewhere"
    with pytest.raises(
        UserError, match=f"--config: {name} = .* but the run in {workdir} has .* where --config is left"
    ):
        recorded.for_checkpoint(asked, elsewhere if which.startswith("/") else workdir, which)


@pytest.mark.parametrize(
    "changed",
    [
        "run.eval_samples=3", "run.eval_temperature=0", "data.benchmarks=('jsonl:x',)", "rollout.max_new_tokens=8",
        "objective.method=grpo", "model.compute_dtype=bfloat16", "run.seed=7", "mesh.tensor=2",
    ],
)  # fmt: skip
def test_how_much_is_evaluated_and_where_may_differ(changed, tmp_path):
    workdir = run(tmp_path, "data.now=2026-01-31T08:30")
    asked = config(changed)
    found = recorded.for_checkpoint(asked, workdir, "")
    assert found.data.now == "2026-01-31T08:30"
    assert found == recorded.dated(asked, workdir) != asked


def test_where_no_run_is_there_is_nothing_to_compare(tmp_path):
    assert recorded.for_checkpoint(config("data.shots=1"), tmp_path, "start").data.shots == 1
    for which in ("/no", "x" * 5000, "\0", "²"):
        assert recorded.for_checkpoint(config("data.shots=1"), tmp_path / which[:300], which).data.shots == 1


def test_a_run_of_another_version_is_compared_in_what_both_have(tmp_path):
    older = config("data.instruction=answer_line").to_dict()
    del older["data"]["now"], older["guards"]
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert recorded.for_checkpoint(config("data.instruction=answer_line"), tmp_path, "")
    with pytest.raises(UserError, match="--config: data.instruction = 'boxed', but the run in"):
        recorded.for_checkpoint(config("data.instruction=boxed"), tmp_path, "")


@pytest.mark.parametrize("content", ["[]", '{"data": 3}', '{"data": {"now": 3}}', '{"data": {"now": "today"}}', "\0"])
def test_a_damaged_file_is_one_line(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError):
        recorded.for_checkpoint(config(), tmp_path, "")


# ------------------------------------------------------------------------------------------------ what a run may change


@pytest.mark.parametrize("method", METHODS)
def test_a_method_remembers_nothing_that_was_made_with_a_number_that_may_change(method):
    """Neither its teachers' copies nor its memory of the log, nor which prompts a batch has."""
    lines = [{"step": 0}] + [
        {"step": step, "antisd/teacher_entropy_median": step / 10, "antisd/gate": 1.0} for step in range(1, 9)
    ]
    before = config(f"objective.method={method}", "rollout.rollouts=8")
    own = {each.name: each for each in dataclasses.fields(METHODS[method].fields)}
    numbers = [name for name, each in own.items() if each.type in (int, float)]
    for name in numbers:
        value = getattr(before.hp, name)
        others = (value + 1, value * 0.9, value / 2 + 0.01, 0.5)
        other = next(each for each in others if each != value and own[name].metadata["range"].fits(each))
        other = other if own[name].type is float else int(other)
        after = dataclasses.replace(before, hp=dataclasses.replace(before.hp, **{name: other}))
        kept = [
            (each.method.views(each.hp), each.method.memory(lines, each.hp), each.method.scored(each.hp))
            for each in (before, after)
        ]
        if f"objective.{name}" not in recorded.REMEMBERED:
            assert kept[0] == kept[1], name
            asked = recorded.changes(after, recorded.as_json(before), Path("w"))
            assert asked == [recorded.Change(f"objective.{name}", value, other)]
        else:
            with pytest.raises(UserError, match=f"objective.{name} = "):
                recorded.changes(after, recorded.as_json(before), Path("w"))


def test_the_lists_of_what_may_change_name_fields_that_exist_once_each():
    every = {name for method in METHODS for name in config_module.names(method)}
    lists = (recorded.OPERATIONAL, recorded.EVALUATION, recorded.FROM_A_STEP, recorded.REMEMBERED, recorded.PROMPTS)
    assert all(each <= every for each in lists)
    assert sum(map(len, lists)) == len(set().union(*lists))


def test_the_result_of_a_run_that_changed_on_the_way_is_not_taken_for_that_of_its_last_config(tmp_path):
    workdir = run(tmp_path / "w")
    recorded.check_same(config(), recorded.read(workdir), workdir)
    (workdir / "changes.jsonl").write_text("{}")
    with pytest.raises(UserError, match="holds a run that was changed on the way"):
        recorded.check_same(config(), recorded.read(workdir), workdir)


# ------------------------------------------------------------------------------------------------ the date


def test_a_run_keeps_the_moment_at_which_it_began(tmp_path):
    before = datetime.datetime.now()
    begun = recorded.dated(config(), tmp_path)
    assert before.isoformat(timespec="seconds") <= begun.data.now <= datetime.datetime.now().isoformat()
    (tmp_path / "config.json").write_text(json.dumps(begun.to_dict()))
    assert recorded.dated(config(), tmp_path) == begun
    chosen = config("data.now=2026-03-09")
    assert recorded.dated(chosen, tmp_path) == chosen
    with pytest.raises(UserError, match="belongs to a run with data.now = .*, not '2026-03-09'"):
        recorded.check_same(chosen, recorded.read(tmp_path), tmp_path)
    recorded.check_same(config(), recorded.read(tmp_path), tmp_path)


@pytest.mark.parametrize("text", ["today", "2026-13-01", "2026-03-09T25:00", "2026-03-09T12:00+01:00"])
def test_what_is_no_moment_is_refused(text):
    with pytest.raises(UserError, match="data.now: .*: expected a date as 2026-01-31"):
        config(f"data.now={text}")
