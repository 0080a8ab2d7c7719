"""The folder of a run: whose it is, what may change between two starts, and what is kept of a skipped update."""

import json

import numpy as np
import pytest
from tiny import config

from dasd_jax.batch import PromptBatch, TeacherBatch
from dasd_jax.errors import UserError
from dasd_jax.learner.step import Experience
from dasd_jax.objective.contract import Signal
from dasd_jax.run import workdir


def begun(folder, *overrides):
    (folder / "config.json").write_text(json.dumps(config(*overrides).to_dict()))
    return folder


@pytest.mark.parametrize(
    "changed", ["mesh.tensor=2", "run.checkpoint_every=3", "guards.entropy_stop=0.1", "rollout.verifier_workers=2"]
)
def test_where_and_how_a_run_is_computed_and_its_levels_may_change(changed, tmp_path):
    workdir.check(config(changed), begun(tmp_path))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("objective.beta=0.3", "objective.beta = 0.1, not 0.3"),
        ("guards.on_collapse=anneal", "guards.on_collapse = 'stop', not 'anneal'"),
        ("objective.method=grpo", "objective.method = 'dasd', not 'grpo'"),
        ("run.steps=7", "run.steps = 6, not 7"),
    ],
)
def test_what_a_run_learns_may_not_change(changed, said, tmp_path):
    with pytest.raises(UserError, match=f"belongs to a run with {said}: expected the same config"):
        workdir.check(config(changed), begun(tmp_path))


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
