"""What is logged of a few rollouts: which ones, how much room they have, and how it is read."""

import json

import fake_run
import numpy as np
import pytest

from dasd_jax.batch import TeacherBatch
from dasd_jax.run import records, runlog
from dasd_jax.run.samples import choose, is_shown

SAMPLE = {"example_id": 1, "question": "?", "rollouts": [{"text": "x" * 100}, {"text": "y" * 100}]}


def test_some_right_and_some_wrong_rollouts_of_several_problems_are_chosen():
    correct = np.zeros((8, 4), np.float32)
    correct[2:5, 1] = 1  # three of 32
    for step in range(5):
        rows = choose(correct.reshape(-1), 4, 6, 0, step)
        assert len(set(rows)) == 6 and sorted(rows) == list(rows)
        assert correct.reshape(-1)[rows].sum() == 3
        assert len(set(rows // 4)) == 6  # no problem twice while others have none


def test_the_choice_depends_on_seed_and_step_and_takes_all_where_all_are_asked_for():
    correct = np.resize(np.array([1, 0, 0], np.float32), 32)
    assert (choose(correct, 4, 5, 0, 3) == choose(correct, 4, 5, 0, 3)).all()
    chosen = {tuple(choose(correct, 4, 5, seed, step)) for seed in (0, 1) for step in range(4)}
    assert len(chosen) > 4
    np.testing.assert_array_equal(choose(correct, 4, 99, 0, 1), np.arange(32))
    assert len(choose(correct, 4, 0, 0, 1)) == 0
    only_wrong = choose(np.zeros(32, np.float32), 4, 5, 0, 1)
    assert len(set(only_wrong // 4)) == 5


def test_samples_fill_the_room_of_their_steps_and_no_more(tmp_path):
    """A step has room for one and a half of two lines, and what earlier steps have left."""
    whole = len(json.dumps({"step": 1, **SAMPLE})) + 1
    log = runlog.RunLog(tmp_path, -1, samples_a_step=1.5 * whole)
    log.write(0, {})
    left_out = [log.write(step, {"reward/mean": 0.5}, [SAMPLE, SAMPLE]) for step in range(1, 6)]
    log.close()
    assert left_out == [4, 0, 0, 0, 4]
    assert [line["step"] for line in records.samples(tmp_path)] == [2, 2, 3, 3, 4, 4]
    assert [line.get(runlog.LEFT_OUT, 0) for line in log.lines[1:]] == left_out


def test_where_room_is_short_long_rollouts_are_kept_as_often_as_short_ones(tmp_path):
    """Each step has a long and a short one, and room for a third of them."""
    short, long = ({"example_id": size, "question": "?", "rollouts": [{"text": "x" * size}]} for size in (500, 5000))
    log = runlog.RunLog(tmp_path, -1, samples_a_step=2000)
    log.write(0, {})
    for step in range(1, 61):
        log.write(step, {}, [short, long] if step % 2 else [long, short])
    log.close()
    kept = [line["example_id"] for line in records.samples(tmp_path)]
    assert kept.count(500) == kept.count(5000) == pytest.approx(20, abs=2)


def test_a_run_that_goes_on_leaves_out_what_the_whole_run_does(tmp_path):
    room = 1.5 * len(json.dumps({"step": 1, **SAMPLE}))
    contents = []
    for cuts in ((), (2,), (1, 3)):
        folder = tmp_path / str(cuts)
        folder.mkdir()
        log = runlog.RunLog(folder, -1, samples_a_step=room)
        log.write(0, {})
        for step in range(1, 5):
            if step in cuts:
                log.write(step, {}, [SAMPLE, SAMPLE])  # done, and lost: the checkpoint is of the step before
                log.close()
                log = runlog.RunLog(folder, step - 1, samples_a_step=room)
            log.write(step, {}, [SAMPLE, SAMPLE])
        log.close()
        contents.append((folder / "samples.jsonl").read_bytes())
    assert contents[0] == contents[1] == contents[2]


def test_what_a_run_of_any_age_has_logged_is_read_in_one_form(tmp_path):
    fake_run.write(tmp_path / "new", steps=2)
    (problem, *_) = records.samples(tmp_path / "new")
    assert len(problem["rollouts"]) == 2
    (tmp_path / "old").mkdir()
    old = {"step": 1, "question": "2?", "answer": "2", "text": "so", "reward": 1.0, "tokens": ["so"], "gap": [-0.1]}
    (tmp_path / "old" / "samples.jsonl").write_text(json.dumps(old) + '\n{"step": 2, "que')
    (problem,) = records.samples(tmp_path / "old")
    (rollout,) = problem["rollouts"]
    assert (problem["question"], rollout["text"], records.pieces(rollout)) == ("2?", "so", ["so"])
    assert records.directions(rollout) == [1] and records.strengths(rollout) == [0.1]


def test_whether_a_rows_teacher_is_shown_something():
    one = np.zeros(2, np.float32)
    of_problems = TeacherBatch(one, one, np.array([True, False]), one)
    assert [is_shown(of_problems, row, 2) for row in range(4)] == [True, True, False, False]
    shown = np.array([[[True, False], [False, True]], [[False, False], [True, True]]])  # of rollouts, two prompts each
    assert [is_shown(TeacherBatch(one, one, shown, one), row, 2) for row in range(4)] == [True, False, False, True]


def test_a_token_is_attracted_where_its_term_has_the_sign_of_the_gap():
    of = {"tokens": ["a", "b", "c", "d"], "gap": [0.2, -0.2, 0.2, 0.2], "dense": [0.1, -0.1, -0.1, 0.0]}
    assert records.directions(of) == [1, 1, -1, 0]
    assert records.directions(of | {"route": [-0.5, 0.5, 0.5, 0.5]}) == [-1, 1, 1, 0]
    assert records.directions({"tokens": ["a", "b"]}) == [0, 0]


@pytest.mark.parametrize("length", [1, 2, 5, 10])
def test_forks_are_the_tokens_above_the_80_percent_quantile_of_entropy(length):
    entropy = np.random.default_rng(length).gamma(0.5, size=length)
    found = records.forks({"tokens": [""] * length, "entropy": entropy.tolist()})
    np.testing.assert_array_equal(found, entropy > np.quantile(entropy, 0.8))
