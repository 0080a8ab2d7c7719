"""Which checkpoint of another run a run starts from, and what is refused."""

import json

import optax
import pytest
from tiny import config

from dasd_jax.errors import UserError
from dasd_jax.learner import checkpoint
from dasd_jax.model import param_table
from dasd_jax.model.presets import preset
from dasd_jax.run import origin, user_files

MODEL = preset("qwen3_tiny")


@pytest.fixture
def first(mesh, tmp_path):
    """A run with the parameters of two steps."""
    folder = tmp_path / "first"
    for step in (2, 4):
        checkpoint.write(folder / "checkpoints" / f"{step:06d}", MODEL, {"params": param_table.init(MODEL, mesh, step)})
    (folder / "config.json").write_text(json.dumps(config().to_dict()))
    return folder


def begun(first, workdir, asked, optimizer=False):
    """The folder of a run that has started from there."""
    found = origin.resolve(asked, optimizer, workdir)
    origin.write(workdir, found)
    (workdir / "config.json").write_text(json.dumps(config().to_dict()))
    return found


def test_a_step_is_named_behind_the_run_and_the_newest_is_taken_without(first, tmp_path):
    assert origin.resolve("", False, tmp_path / "new") is None
    assert [origin.resolve(f"{first}{which}", False, tmp_path / "new").step for which in (":2", ":4", "")] == [2, 4, 4]
    with_colon = first.rename(tmp_path / "a:b")
    assert origin.resolve(str(with_colon), False, tmp_path / "new").folder == with_colon / "checkpoints" / "000004"


def test_a_run_that_has_begun_remembers_where_and_needs_no_flag(first, tmp_path):
    workdir = tmp_path / "new"
    found = begun(first, workdir, f"{first}:2")
    for asked in ("", f"{first}:2", str(first), f"{first}/"):
        assert origin.resolve(asked, False, workdir) == found


@pytest.mark.parametrize(
    ("asked", "optimizer", "said"),
    [
        ("FIRST:4", False, "--from: FIRST:4: the run in NEW started from FIRST:2: expected the same, or no --from"),
        ("OTHER", False, "--from: OTHER: the run in NEW started from FIRST:2: expected the same"),
        ("FIRST:2", True, "--from: FIRST:2: the run in NEW started from FIRST:2: expected the same"),
        ("", True, "--from-optimizer: expected --from=RUN with it"),
        ("NEW", False, "--from: NEW is the --workdir: expected another run"),
    ],
)
def test_a_run_that_has_begun_takes_no_other(asked, optimizer, said, first, tmp_path):
    def named(text):
        for word in ("FIRST", "OTHER", "NEW"):
            text = text.replace(word, str(tmp_path / word.lower()))
        return text

    begun(first, tmp_path / "new", f"{first}:2")
    with pytest.raises(UserError) as refused:
        origin.resolve(named(asked), optimizer, tmp_path / "new")
    assert str(refused.value).startswith(named(said))


def test_what_is_no_checkpoint_of_a_run_is_one_line(first, tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text("{}")
    (first / "checkpoints" / "000002" / "params" / "_METADATA").write_text("{}")
    for asked, workdir, said in (
        (
            tmp_path / "none",
            "new",
            f"--from: {tmp_path / 'none'} holds no config.json: expected the --workdir of a run",
        ),
        (f"{first}:3", "new", "--from: 3: .* does not exist: expected a path or a step of 2, 4"),
        (f"{first}:2", "new", "--from: 2: .* is damaged: params/_METADATA differs from its manifest"),
        (f"{first}:best", "new", "--from: best: .* has no best checkpoint"),
        (first, "begun", "holds a run that did not start from another: expected another --workdir"),
        ("x" * 300, "new", "holds no config.json"),
    ):
        with pytest.raises(UserError, match=said):
            origin.resolve(str(asked), False, tmp_path / workdir)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", ["[]", "{}", '{"run": 1, "step": 2, "weights": "", "optimizer": false}'])
def test_a_damaged_record_is_one_line(content, tmp_path):
    (tmp_path / "from.json").write_text(content)
    with pytest.raises(UserError, match="from.json is damaged"):
        origin.resolve("", False, tmp_path)


@pytest.mark.parametrize(
    ("theirs", "overrides", "said", "batches"),
    [
        ({user_files.TRAINED_ON: "a"}, (), "the data go on after 3 batches", 3),
        ({user_files.TRAINED_ON: "a", "training prompts": "other"}, (), "the data go on after 3 batches", 3),
        ({user_files.TRAINED_ON: "b"}, (), "the data start over, since the training problems differ", 0),
        ({user_files.TRAINED_ON: "a"}, ("run.seed=1",), "the data start over, since run.seed differs", 0),
        ({user_files.TRAINED_ON: "a"}, ("rollout.problems=4",), "over, since rollout.problems differs", 0),
        (None, (), "that run was written by an older version, which did not record its place in them", 0),
    ],
)
def test_the_data_go_on_where_the_same_problems_are_drawn(theirs, overrides, said, batches, first, mesh):
    manifest = first / "checkpoints" / "000004" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"batches_drawn": 3}))
    (first / "config.json").write_text(json.dumps(user_files.as_written(config(), {}, theirs)))
    found = origin.resolve(str(first), False, first.parent / "new")
    problems = {user_files.TRAINED_ON: "a", "training prompts": "x"}
    _, state, line = origin.load(found, config(*overrides), mesh, optax.sgd(0.1), problems)
    assert line.endswith(said) and int(state.batches_drawn) == batches
