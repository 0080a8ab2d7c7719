"""How long a run still takes, from the lines of its log."""

import pytest

from dasd_jax.run.display import Display, seconds_left


def log(*seconds, **evaluations):
    """Lines of a run: an evaluation of 100 s before it, then steps that take so long, some with an evaluation."""
    lines = [{"step": 0, "time/eval_s": 100.0}]
    for step, time in enumerate(seconds, start=1):
        line = {"step": step, "time/step_s": time - 1.0, "time/checkpoint_s": 1.0}
        lines.append(line | ({"time/eval_s": evaluations[f"at{step}"]} if f"at{step}" in evaluations else {}))
    return lines


def test_the_first_step_which_compiles_counts_only_as_long_as_it_is_alone():
    assert seconds_left(log(300), 0, 11, 0) == 10 * 300 + 100
    assert seconds_left(log(300, 10), 0, 11, 0) == 9 * 10 + 100


def test_one_slow_step_changes_nothing():
    assert seconds_left(log(300, 10, 500, 12, 11), 0, 105, 0) == 100 * 11.5 + 100


def test_evaluations_to_come_are_counted_at_the_length_of_the_last():
    """After steps 6, 9 and 10 of 10; the one after step 3 took 40 s."""
    assert seconds_left(log(300, 10, 10, 10, at3=40.0), 0, 10, 3) == 6 * 10 + 3 * 40
    assert seconds_left(log(300, 10, 10, 10, at3=40.0), 0, 10, 5) == 6 * 10 + 2 * 40


def test_after_the_last_step_nothing_is_left():
    assert seconds_left(log(300, 10, 10), 0, 3, 1) == 0


def test_a_resumed_run_counts_the_steps_of_its_own_process():
    """On another machine steps take another time, and its first step compiles again."""
    lines = log(300, 10, 10, 400, 20, 22)
    assert seconds_left(lines, 3, 106, 0) == 100 * 21 + 100
    assert seconds_left(lines[:5], 3, 106, 0) == 102 * 400 + 100


@pytest.mark.parametrize("began", [0, 1])
def test_the_line_of_a_step_says_what_is_left(began, capsys):
    lines = log(300, 60)
    Display(12, began).step(2, lines[-1] | {"reward/mean": 0.25}, lines)
    assert capsys.readouterr().out == "step 2/12  reward 0.250  59.0 s  left 11.7 min\n"
