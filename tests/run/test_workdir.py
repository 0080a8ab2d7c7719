"""The folder of a run: whose it is, what may change between two starts, and what is kept of a skipped update."""

import json

import numpy as np
import pytest
from tiny import config

from dasd_jax.batch import PromptBatch, TeacherBatch
from dasd_jax.errors import UserError
from dasd_jax.learner.step import Experience
from dasd_jax.objective.contract import Signal
from dasd_jax.recorded import Change
from dasd_jax.run import workdir


def begun(folder, *overrides):
    (folder / "config.json").write_text(json.dumps(config(*overrides).to_dict()))
    return folder


@pytest.mark.parametrize(
    "changed",
    [
        "mesh.tensor=2", "run.checkpoint_every=3", "guards.entropy_warn=0.1", "guards.equal_rewards_stop=9",
        "rollout.verifier_workers=2", "run.logged_rollouts=1", "run.samples_mb=1", "run.eval_every=2",
        "run.keep_optimizer=False",
    ],
)  # fmt: skip
def test_where_and_how_a_run_is_computed_and_what_only_warns_or_stops_may_change(changed, tmp_path):
    assert workdir.check(config(changed), begun(tmp_path)) == []


@pytest.mark.parametrize(
    ("changed", "before", "after"),
    [
        ("objective.beta=0.3", 0.1, 0.3),
        ("objective.min_tokens=5", 4, 5),
        ("objective.clip_high=0.3", 0.2, 0.3),
        ("optim.learning_rate=1e-6", 1e-3, 1e-6),
        ("optim.schedule=constant", "cosine", "constant"),
        ("guards.on_collapse=anneal", "stop", "anneal"),
        ("guards.entropy_stop=0.1", 0.005, 0.1),
        ("guards.window=9", 5, 9),
        ("run.steps=7", 6, 7),
        ("run.eval_samples=8", 4, 8),
        ("rollout.verifier_memory_mb=4096", 2048, 4096),
    ],
)
def test_what_each_step_reads_anew_may_change_and_is_told(changed, before, after, tmp_path):
    name = changed.partition("=")[0]
    assert workdir.check(config(changed), begun(tmp_path)) == [Change(name, before, after)]


@pytest.mark.parametrize(
    ("changed", "said", "lost"),
    [
        ("objective.method=grpo", "objective.method = 'dasd', not 'grpo'", "what its method remembers"),
        ("objective.gate=hard", "objective.gate = 'sigmoid', not 'hard'", "what its method remembers"),
        ("rollout.rollouts=2", "rollout.rollouts = 4, not 2", "its place in the data"),
        ("run.seed=3", "run.seed = 0, not 3", "the order of its data"),
        ("optim.b1=0.8", "optim.b1 = 0.9, not 0.8", "the optimiser's moments"),
        ("data.heldout=9", "data.heldout = 8, not 9", "its place in the data"),
        ("data.verifier=math", "data.verifier = '', not 'math'", "rewards that compare"),
        ("data.transition=none", "data.transition = 'default', not 'none'", "a teacher that is shown the same"),
        ("model.compute_dtype=bfloat16", "model.compute_dtype = 'float32', not 'bfloat16'", "what its weights are"),
    ],
)
def test_what_would_lose_something_is_refused_with_the_way_to_a_new_run(changed, said, lost, tmp_path):
    with pytest.raises(UserError) as refused:
        workdir.check(config(changed), begun(tmp_path))
    line = str(refused.value)
    assert line.startswith(f"--workdir: {tmp_path} belongs to a run with {said}, which would lose {lost}")
    assert line.endswith(f"the same command with --workdir={tmp_path}-2 --from={tmp_path}") and "\n" not in line


def test_a_finished_run_goes_on_with_more_steps_alone(tmp_path):
    more, fewer, rate = Change("run.steps", 6, 9), Change("run.steps", 6, 5), Change("optim.learning_rate", 1e-3, 1e-6)
    assert workdir.check_finished(tmp_path, [rate, more]) and not workdir.check_finished(tmp_path, [])
    with pytest.raises(
        UserError, match=r"^run.steps: 5: the run in .* has done 6: expected more, or another --workdir$"
    ):
        workdir.check_finished(tmp_path, [rate, fewer])
    with pytest.raises(UserError, match=r"^optim.learning_rate: 1e-06: the run in .* is finished with 0.001: expected"):
        workdir.check_finished(tmp_path, [rate])


def test_a_run_ends_after_what_it_has_done_or_there_if_it_was_evaluated(tmp_path):
    workdir.check_steps(tmp_path, 7, done=6)
    for steps in (5, 6):
        with pytest.raises(UserError, match=f"^run.steps: {steps}: the run in .* has done 6: expected more"):
            workdir.check_steps(tmp_path, steps, done=6)
    (tmp_path / "heldout").mkdir()
    (tmp_path / "heldout" / "6.json").touch()
    workdir.check_steps(tmp_path, 6, done=6)


def test_a_damaged_config_of_a_run_is_one_line(tmp_path):
    raw = config().to_dict()
    raw["run"]["steps"] = "six"
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"^--workdir: .*config.json: run.steps: 'six': expected a whole number"):
        workdir.check(config(), tmp_path)


def test_a_run_of_another_version_is_refused(tmp_path):
    older = {group: fields for group, fields in config().to_dict().items() if group != "guards"}
    (tmp_path / "config.json").write_text(json.dumps(older))
    with pytest.raises(UserError, match="was written by another version of this program.*expected another --workdir"):
        workdir.check(config(), tmp_path)


def test_all_that_a_skipped_update_read_is_kept_by_its_place_and_the_newest_stay(tmp_path):
    by_token, rows = np.ones((2, 3, 4), np.float32), np.ones((2, 3), np.float32)
    prompt = np.ones((2, 5), np.int32)
    experience = Experience(
        prompts=PromptBatch(prompt, prompt > 0, np.array([7, 9], np.int32)),
        teachers={"right": TeacherBatch(prompt, prompt > 0, rows[:, 0] > 0, rows[:, 0])},
        response=by_token.astype(np.int32),
        response_mask=by_token > 0,
        old_logp=by_token,
        signal=Signal(advantage=by_token, weight=by_token, kl=by_token * np.nan, given={"scale": rows}),
    )
    for step in (3, 4, 5):
        workdir.keep_skipped(tmp_path, step, experience, 2, reward=rows)
    assert sorted(path.name for path in (tmp_path / "not_finite").iterdir()) == ["000004.npz", "000005.npz"]
    kept = np.load(tmp_path / "not_finite" / "000005.npz")
    assert set(kept) == {
        "prompts.student_prompt", "prompts.student_prompt_mask", "prompts.example_id", "teachers.right.teacher_prompt",
        "teachers.right.teacher_prompt_mask", "teachers.right.shown", "teachers.right.weight", "response",
        "response_mask", "old_logp", "signal.advantage", "signal.weight", "signal.kl", "signal.given.scale", "reward",
    }  # fmt: skip
    assert np.isnan(kept["signal.kl"]).all() and kept["signal.given.scale"].shape == (2, 3)


@pytest.mark.parametrize(("step", "left"), [(40, ["40", "9"]), (-1, [])])
def test_evaluations_after_the_step_that_a_run_goes_on_from_are_forgotten(step, left, tmp_path):
    """And nothing else: neither notes of the user's own nor the answers of another command."""
    own = {"heldout/notes.json", "heldout/50.json.txt", "heldout/50.txt", "eval/50.json", "eval/50.jsonl", "50.json"}
    ours = {f"heldout/{n}.{kind}" for n in ("9", "40", "41", "50") for kind in ("json", "jsonl")}
    for name in own | ours:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    workdir.forget_evaluations(tmp_path, step)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == own | {f"heldout/{n}.{kind}" for n in left for kind in ("json", "jsonl")}
    workdir.forget_evaluations(tmp_path / "new", step)  # a run that has not evaluated yet


def test_a_folder_is_held_by_one_training(tmp_path):
    """A folder that is not there yet is taken when it is, and all are free afterwards."""
    with workdir.Lock(tmp_path), workdir.Lock(tmp_path / "later") as later:
        with pytest.raises(UserError, match=f"^--workdir: {tmp_path}: another process trains in it: expected its end"):
            workdir.Lock(tmp_path).take()
        (tmp_path / "later").mkdir()
        later.take()
        with pytest.raises(UserError, match="another process trains in it"):
            workdir.Lock(tmp_path / "later").take()
    with workdir.Lock(tmp_path), workdir.Lock(tmp_path / "later"):
        pass
