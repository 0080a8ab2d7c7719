"""How long a run still takes, from the lines of its log; and what is on the screen while it does."""

import io
import re
import sys
import time

import pyte
import pytest
import rich.console

from dasd_jax import hosts
from dasd_jax.run.display import Clock, Display, clock_time, decimal, duration, seconds_left


def log(*seconds, **evaluations):
    """Lines of a run: an evaluation of 100 s before it, then steps that take so long, some with an evaluation."""
    lines = [{"step": 0, "time/eval_s": 100.0}]
    for step, taken in enumerate(seconds, start=1):
        line = {"step": step, "time/step_s": taken - 1.0, "time/checkpoint_s": 1.0}
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


# ----------------------------------------------------------------------------------------------------- the lines

NUMBERS = {"reward/mean": 0.4063, "loss/total": -0.0371, "entropy/mean": 1.424, "rollout/length_mean": 8.42}
LINE = "step 2/12 · reward .41 · 59 s · 12 min left · loss -.037 · entropy 1.42 · length 8.4"
MESSAGE = (
    "warning: the teacher's weights are copied every 500 steps, and run.steps is 24: they stay those of the start, "
    "in /a/folder/whose/name/is/longer/than/40/cells"
)


class Terminal:
    """A terminal of some width, and a display that writes to it."""

    def __init__(self, width, done=0, total=12):
        self.width, self.file = width, io.StringIO()
        self.screen = pyte.Screen(width, 24)
        self.screen.set_mode(pyte.modes.LNM)  # a terminal's driver sends a carriage return before each line feed
        self._stream, self._read = pyte.Stream(self.screen), 0
        console = rich.console.Console(file=self.file, force_terminal=True, width=width, height=24)
        self.display = Display(total, done, console=console)

    def lines(self):
        """What stands on the screen, without empty lines at its end."""
        text = self.file.getvalue()
        self._stream.feed(text[self._read :])
        self._read = len(text)
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip().split("\n")


@pytest.fixture
def terminal_of(monkeypatch):
    """Makes a terminal of some width, whose live line is taken away after the test."""
    monkeypatch.setenv("TERM", "xterm-256color")
    made = []

    def make(*args, **kwargs):
        made.append(Terminal(*args, **kwargs))
        return made[-1]

    yield make
    for each in made:
        each.display.close()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0.0 s"), (0.44, "0.4 s"), (9.949, "9.9 s"), (9.96, "10 s"), (75.6, "76 s"), (120, "2.0 min"),
     (3480, "58 min"), (6000, "1.7 h"), (44_280, "12.3 h"), (4.1 * 86400, "4.1 days")],
)  # fmt: skip
def test_a_duration_has_a_unit_that_leaves_it_few_digits(seconds, said):
    assert duration(seconds) == said


@pytest.mark.parametrize(("seconds", "said"), [(0.9, "0:00"), (61, "1:01"), (3599.9, "59:59"), (7265, "2:01:05")])
def test_the_time_of_a_phase_is_shown_as_a_clock_shows_it(seconds, said):
    assert clock_time(seconds) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.4063, ".41"), (-0.4063, "-.41"), (0.999, "1.00"), (10.02, "10.02"), (0.0, ".00"), (-0.0004, ".00")],
)
def test_a_number_has_no_zero_before_its_point(value, said):
    assert decimal(value, 2) == said


@pytest.mark.parametrize("began", [0, 1])
def test_in_a_log_file_a_step_is_one_line_with_all_its_numbers(began, capsys):
    lines = log(300, 60)
    Display(12, began).step(2, lines[-1] | NUMBERS, lines)
    assert capsys.readouterr().out == LINE + "\n"


def test_in_a_log_file_there_is_nothing_but_steps_and_messages(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    lines, display = log(300, 60), Display(12, 0)
    display.say(MESSAGE)
    for phase in ("relayout", "rollout", "verify", "score", "update"):
        display.phase(phase)
        display.progress(3, 7)
    display.step(2, lines[-1] | NUMBERS, lines)
    display.close()
    assert capsys.readouterr().out == f"{MESSAGE}\n{LINE}\n"


def test_after_the_last_step_the_line_says_nothing_of_time_left(capsys):
    lines = log(300, 60)
    Display(2, 0).step(2, lines[-1] | NUMBERS, lines)
    assert capsys.readouterr().out == LINE.replace("/12", "/2").replace(" · 12 min left", "") + "\n"


def test_a_method_without_rollouts_has_a_line_of_the_rest(capsys):
    lines = log(300, 60)
    Display(12, 0).step(2, lines[-1] | {"loss/total": 2.5}, lines)
    assert capsys.readouterr().out == "step 2/12 · 59 s · 12 min left · loss 2.500\n"


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_step_and_time_left_are_on_the_screen_in_every_phase(width, terminal_of):
    """Above the live line stands that of the step, which a log file would have, as far as it fits."""
    shown, lines = terminal_of(width, total=1234), log(300, 60)
    shown.display.phase("update")
    shown.display.step(2, lines[-1] | NUMBERS, lines)
    whole = LINE.replace("2/12", "2/1234").replace("12 min", "20.6 h").split(" · ")
    for phase in ("relayout", "rollout", "verify", "score", "update", "evaluate", "checkpoint"):
        shown.display.phase(phase)
        shown.display.progress(3, 512)
        above, live = shown.lines()
        for line in (above, live):
            assert line.startswith("step 2/1234 · ") and "20.6 h left" in line and len(line) <= width
        assert [part for part in whole if part in above.split(" · ")] == above.split(" · ")
        assert width < 80 or phase in live
    assert above == " · ".join(whole) or width < 120


@pytest.mark.parametrize("width", [40, 80])
def test_a_narrow_live_line_keeps_what_matters_most(width, terminal_of):
    shown, lines = terminal_of(width), log(300, 60)
    shown.display.phase("update")
    shown.display.step(2, lines[-1] | NUMBERS, lines)
    shown.display.phase("verify")
    headline = "step 2/12 · reward .41 · 59 s · 12 min left"
    expected = {40: "step 2/12 · reward .41 · 12 min left", 80: f"{headline} · verify · 0:00 · loss -.037"}
    assert shown.lines()[-1] == expected[width]


def test_a_terminal_too_narrow_for_the_step_gets_what_fits_of_it(terminal_of):
    shown = terminal_of(8)
    shown.display.phase("rollout")
    assert shown.lines() == ["step 0/1"]


def test_a_wide_live_line_has_all_numbers_and_a_bar(terminal_of):
    shown, lines = terminal_of(200, total=4), log(300, 60)
    shown.display.phase("update")
    shown.display.step(2, lines[-1] | NUMBERS, lines)
    live = shown.lines()[-1]
    assert "loss -.037 · entropy 1.42 · length 8.4" in live and live.endswith("━" * 10 + "─" * 10)


def test_programs_compile_in_the_first_step_of_a_process(terminal_of):
    shown, lines = terminal_of(80, done=1), log(300, 60)
    for phase in ("relayout", "rollout", "verify", "score", "samples", "update"):
        shown.display.phase(phase)
        live = shown.lines()[-1]
        assert live.startswith("step 1/12 · ") and phase in live
        assert ("compiling the first step" in live) == (phase != "verify")
    shown.display.step(2, lines[-1] | NUMBERS, lines)
    shown.display.phase("rollout")
    assert "compiling" not in shown.lines()[-1]


def test_an_evaluation_compiles_until_its_first_batch_is_done(terminal_of):
    shown = terminal_of(80)
    shown.display.phase("evaluate")
    assert "step 0/12 · compiling · evaluate · " in shown.lines()[-1]
    shown.display.progress(8, 12, "problems")
    assert until(lambda: "step 0/12 · evaluate 8/12 problems" in shown.lines()[-1])


def test_the_progress_of_a_phase_ends_with_it(terminal_of):
    shown = terminal_of(80)
    clock = Clock(shown.display)
    with clock.phase("verify"):
        clock.progress(3, 64)
        assert until(lambda: "verify 3/64" in shown.lines()[-1])
    with clock.phase("score"):
        assert "3/64" not in shown.lines()[-1]


def until(condition):
    """Whether it comes true within some seconds; the live line is drawn four times a second."""
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_messages_stand_above_the_live_line_and_no_word_is_cut(width, terminal_of):
    shown = terminal_of(width)
    shown.display.phase("rollout")
    shown.display.say(MESSAGE)
    print("and what else is printed")
    *said, live = shown.lines()
    assert said.pop() == "and what else is printed" and live.startswith("step 0/12 · ")
    joined = " ".join(said).split()
    path = MESSAGE.split()[-1]  # longer than the narrowest terminal, which breaks it but loses nothing
    assert joined == MESSAGE.split() or (width == 40 and "".join(joined[-2:]) == path)
    assert said[0].startswith("warning:") and said[1].startswith("    ")


def test_closing_takes_the_live_line_away_and_leaves_stdout_as_it_was(terminal_of):
    shown, before = terminal_of(80), (sys.stdout, sys.stderr)
    shown.display.say("before the first phase")
    shown.display.phase("rollout")
    # Always: a process that is killed cannot show it again.
    assert len(shown.lines()) == 2 and not shown.screen.cursor.hidden
    shown.display.close()
    shown.display.phase("checkpoint")
    shown.display.say("the end")
    assert shown.lines() == ["before the first phase", "the end"] and not shown.screen.cursor.hidden
    assert (sys.stdout, sys.stderr) == before


def test_a_dumb_terminal_gets_lines_alone(terminal_of, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    shown, lines = terminal_of(80), log(300, 60)
    shown.display.phase("rollout")
    shown.display.say(MESSAGE)
    shown.display.step(2, lines[-1] | NUMBERS, lines)
    assert "\x1b" not in shown.file.getvalue() and "\r" not in shown.file.getvalue()
    assert max(map(len, shown.lines())) <= 80 and shown.lines()[-1] in LINE


def test_no_color_is_obeyed(terminal_of, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    shown, lines = terminal_of(80), log(300, 60)
    shown.display.phase("rollout")
    shown.display.say("12 of 24 'problems' at /some/path")
    shown.display.step(2, lines[-1] | NUMBERS, lines)
    assert not re.search(r"\x1b\[[\d;]*m", shown.file.getvalue())


def test_of_several_processes_the_first_alone_speaks(terminal_of, monkeypatch, capsys):
    monkeypatch.setattr(hosts, "is_main", lambda: False)
    shown, lines = terminal_of(80), log(300, 60)
    for display in (shown.display, Display(12, 0)):
        display.phase("rollout")
        display.say(MESSAGE)
        display.step(2, lines[-1] | NUMBERS, lines)
        display.close()
    assert shown.file.getvalue() == capsys.readouterr().out == ""
