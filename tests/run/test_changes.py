"""What is noted of a run that changes on its way, wherever it was killed in between."""

import json

import pytest
from tiny import config

from dasd_jax.errors import UserError
from dasd_jax.recorded import Change
from dasd_jax.run import changes, records

RATE = "optim.learning_rate"
CONSTANT = ("optim.schedule=constant", "optim.minibatches=2", "run.steps=20")
FIRST = Change(RATE, 1e-3, 2e-3)


def noted(lines, step, asked, *overrides):
    """The lines of the file after a start from the checkpoint of `step`, two updates a step."""
    found = changes.after(lines, step, asked, config(*CONSTANT, *overrides), 2 * step)
    return changes.until(lines, step) + changes.as_lines(found, step)


def line(step, field, before, after):
    return {"step": step, "field": field, "before": before, "after": after}


def both(step, before, after):
    """Under a constant schedule the rate of the next update is the field's value."""
    return [line(step, RATE, before, after), line(step, changes.RATE, before, after)]


def test_a_change_counts_from_the_step_after_the_checkpoint_and_is_read_back(tmp_path):
    lines = noted([], 7, [FIRST], f"{RATE}=2e-3")
    assert lines == both(8, 1e-3, 2e-3)
    changes.write(tmp_path, lines)
    assert changes.read(tmp_path) == lines
    assert changes.as_text(lines[0]) == "from step 8 on: optim.learning_rate 0.001 → 0.002"
    changes.write(tmp_path, [])
    assert not list(tmp_path.iterdir()) and changes.read(tmp_path) == []


def test_a_kill_before_the_next_checkpoint_neither_loses_a_change_nor_repeats_it():
    """Before config.json was written the change is asked for again; afterwards it is not."""
    lines = noted([], 7, [FIRST], f"{RATE}=2e-3")
    assert noted(lines, 7, [FIRST], f"{RATE}=2e-3") == noted(lines, 7, [], f"{RATE}=2e-3") == lines
    assert noted(lines, 9, [], f"{RATE}=2e-3") == lines


def test_a_change_that_is_taken_back_before_a_step_was_made_with_it_is_forgotten():
    lines = noted([], 7, [FIRST], f"{RATE}=2e-3")
    assert noted(lines, 7, [Change(RATE, 2e-3, 1e-3)], f"{RATE}=1e-3") == []
    assert noted(lines, 8, [Change(RATE, 2e-3, 1e-3)], f"{RATE}=1e-3") == lines + both(9, 2e-3, 1e-3)


def test_a_run_that_goes_back_to_an_earlier_checkpoint_has_later_changes_count_from_there():
    lines = noted([], 7, [FIRST], f"{RATE}=2e-3")
    lines = noted(lines, 12, [Change(RATE, 2e-3, 4e-3)], f"{RATE}=4e-3")
    assert lines == both(8, 1e-3, 2e-3) + both(13, 2e-3, 4e-3)
    assert noted(lines, 10, [], f"{RATE}=4e-3") == both(8, 1e-3, 2e-3) + both(11, 2e-3, 4e-3)
    assert noted(lines, 4, [], f"{RATE}=4e-3") == both(5, 1e-3, 4e-3)


def test_more_steps_stretch_the_cosine_and_the_jump_of_the_rate_is_noted():
    """A finished cosine is at 0; in the middle of one twice as long it is at half of its peak."""
    peak = ("optim.learning_rate=1e-3", "optim.minibatches=2", "optim.schedule=cosine", "optim.warmup_steps=0")
    found = changes.after([], 20, [Change("run.steps", 20, 40)], config(*peak, "run.steps=40"), 40)
    assert found[0] == Change("run.steps", 20, 40) and found[1].field == changes.RATE
    assert (found[1].before, found[1].after) == pytest.approx((0.0, 5e-4), abs=1e-9)
    constant = config("optim.schedule=constant", "run.steps=40")
    assert changes.after([], 20, [Change("run.steps", 20, 40)], constant, 40) == [Change("run.steps", 20, 40)]


def test_evaluations_are_compared_since_they_were_last_made_another_way():
    lines = [line(5, "run.eval_samples", 4, 8), line(9, "run.eval_top_p", 0.9, 1.0), line(12, RATE, 1.0, 2.0)]
    assert records.evaluated_alike_from(lines) == 8
    assert records.evaluated_alike_from(lines[2:]) == records.evaluated_alike_from([]) == 0
    assert records.evaluated_alike_from([*lines, line(15, "rollout.verifier_memory_mb", 2048, 4096)]) == 14


@pytest.mark.parametrize(
    "content",
    [
        '{"step": 2}\n',
        '{"step": 2, "field": 3, "before": 1, "after": 2}\n',
        '{"step": "2", "field": "run.steps", "before": 1, "after": 2}\n',
        "[]\n",
    ],
)
def test_a_damaged_file_is_one_line(content, tmp_path):
    (tmp_path / "changes.jsonl").write_text(content + json.dumps(line(3, RATE, 1, 2)) + "\n")
    with pytest.raises(UserError, match="changes.jsonl"):
        changes.read(tmp_path)
