"""The files of a run, read back: a half-written last line is left out, any other damage is named and nothing is cut."""

import json
import resource

import pytest

from benchmarks.kills import event_steps
from dasd_jax.errors import UserError
from dasd_jax.run.runlog import RunLog

LINES = [json.dumps({"step": step, "reward/mean": step / 2}) for step in range(4)]


def written(workdir, lines, end="\n"):
    (workdir / "metrics.jsonl").write_text("\n".join(lines) + end)
    return workdir


def test_a_log_goes_on_behind_its_step_and_drops_what_a_kill_cut_short(tmp_path):
    written(tmp_path, [*LINES, '{"step": 4, "rew'], end="")
    whole = RunLog(tmp_path, 3)
    assert [line["step"] for line in whole.lines] == [0, 1, 2, 3]
    whole.close()
    log = RunLog(tmp_path, 2)
    log.write(3, {"reward/mean": 9.0})
    log.close()
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert found == log.lines == [*(json.loads(line) for line in LINES[:3]), {"step": 3, "reward/mean": 9.0}]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nan and more", "line 2 is damaged"),
        ("[1]", "line 2 holds a list"),
        ('{"reward/mean": 1.0}', "line 2 has no step"),
        ('{"step": "1"}', "line 2 has no step"),
        ('{"step": 1, "reward/mean": null}', "line 2 holds 'reward/mean', which is no number"),
    ],
)
def test_damage_in_the_middle_is_named_and_the_file_is_left_alone(line, said, tmp_path):
    written(tmp_path, [LINES[0], line, *LINES[2:]])
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=said):
        RunLog(tmp_path, 3)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(("steps", "missing"), [([0, 1, 2], 3), ([0, 2, 3], 1), ([0, 1, 1, 2, 3], 2), ([1, 3], 2)])
def test_a_log_that_lacks_a_step_of_its_checkpoint_is_refused_and_left_alone(steps, missing, tmp_path):
    written(tmp_path, [LINES[step] for step in steps])
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=f"step {missing} is missing or logged twice, and the checkpoint is of"):
        RunLog(tmp_path, 3)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_log_that_was_removed_on_the_way_begins_later(tmp_path):
    """The run goes on without it, and goes on again."""
    written(tmp_path, LINES[1:])
    assert [line["step"] for line in RunLog(tmp_path, 3).lines] == [1, 2, 3]


def test_a_step_is_on_the_disk_when_write_returns(tmp_path):
    """A machine that is taken away closes no file."""
    log = RunLog(tmp_path, -1)
    sample = {"question": "ü\u2028", "rollouts": [{}]}
    for step in range(2):
        log.write(step, {"eval/standard_error": 0.5, "loss/total": float("nan")}, [sample])
        assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[step]) == log.lines[step]
        assert json.loads((tmp_path / "samples.jsonl").read_bytes().split(b"\n")[step])["question"] == "ü\u2028"
        assert event_steps(tmp_path) == list(range(step + 1))
    assert log.lines[0] == {"step": 0, "eval/standard_error": 0.5}
    log.close()
    RunLog(tmp_path, 1).close()
    assert event_steps(tmp_path) == [0, 1]


def test_a_disk_that_is_full_for_the_events_alone_is_an_error_and_no_wait(tmp_path):
    log = RunLog(tmp_path, -1)
    metrics = {f"some/number_{number}": 1.0 for number in range(100)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    (tmp_path / "metrics.jsonl").symlink_to("/dev/null")
    try:
        with pytest.raises(OSError, match="File too large"):
            log.write(0, metrics)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
