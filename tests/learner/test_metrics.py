"""The files of a run, read back: a half-written last line is left out, any other damage is named and nothing is cut."""

import json

import pytest

from dasd_jax.errors import UserError
from dasd_jax.learner.metrics import RunLog

LINES = [json.dumps({"step": step, "reward/mean": step / 2}) for step in range(4)]


def written(workdir, lines, end="\n"):
    (workdir / "metrics.jsonl").write_text("\n".join(lines) + end)
    return workdir


def test_a_log_goes_on_behind_its_step_and_drops_what_a_kill_cut_short(tmp_path):
    written(tmp_path, [*LINES, '{"step": 4, "rew'], end="")
    whole = RunLog(tmp_path, 4)
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
