"""Text for a terminal: nothing is wider than it is, no word is cut, and a log file has all of it."""

import argparse
import sys

import pytest
from rich.cells import cell_len

from dasd_jax import terminal

WIDTHS = (40, 60, 80, 120, 200)
MESSAGE = (
    "warning: the teacher's weights are copied every 500 steps, and run.steps is 24: they stay those of the start\n"
    "    aime25 0.125, 数学五百 0.250, a-benchmark-with-a-long-name 0.500, macro 0.292"
)
HEAD = ["benchmark", "problems", "avg@64", *(f"pass@{2**i}" for i in range(1, 7)), "length", "no answer"]
ROWS = [
    [name, "500", f"0.{number}12 ± 0.020", *(f"0.{number}{i}7" for i in range(6)), "3120.500", "0.010"]
    for number, name in enumerate(("aime25", "数学五百", "a mean of both"))
]


def blocks(text):
    """Each block of a table as its lines."""
    return [block.split("\n") for block in text.split("\n\n")]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_message_is_wrapped_between_words_and_hangs(width):
    lines = terminal.wrapped(MESSAGE, width).split("\n")
    assert max(map(cell_len, lines)) <= width
    assert " ".join(lines).split() == MESSAGE.split()
    first, second = (lines.index(next(line for line in lines if word in line)) for word in ("warning:", "aime25"))
    assert first == 0 and lines[second].startswith("    aime25")
    assert all(line.startswith("    ") and line[4] != " " for line in lines[1:second])
    assert all(line.startswith(" " * 8) for line in lines[second + 1 :])


def test_an_error_that_is_unknown_is_a_dash():
    assert [terminal.with_error(0.25, 0.0125), terminal.with_error(0.25, 0.0)] == ["0.250 ± 0.013", "0.250 ± 0.000"]
    assert [terminal.with_error(0.25, None, "+"), terminal.with_error(-0.25, 1.0, "+")] == [
        "+0.250 ± –",
        "-0.250 ± 1.000",
    ]


def test_a_word_that_is_longer_than_the_line_stays_whole():
    path = "/a/folder/whose/name/is/longer/than/a/line"
    assert terminal.wrapped(f"written to {path} just now", 20).split("\n") == [
        "written to", f"    {path}", "    just now",
    ]  # fmt: skip
    assert terminal.wrapped(path, 20) == path


def test_a_log_file_has_messages_as_they_are():
    assert terminal.wrapped(MESSAGE, None) == MESSAGE


def test_of_a_line_the_parts_of_the_highest_rank_are_dropped_first():
    parts = [(0, "step 2/9"), (3, "reward"), (1, "3 min left"), (2, "loss")]
    assert terminal.fitted(parts, None) == "step 2/9 · reward · 3 min left · loss"
    found = {len(terminal.fitted(parts, width)): terminal.fitted(parts, width) for width in range(1, 60)}
    assert list(found.values()) == [
        "step 2/9",
        "step 2/9 · 3 min left",
        "step 2/9 · 3 min left · loss",
        "step 2/9 · reward · 3 min left · loss",
    ]
    assert all(len(terminal.fitted(parts, width)) <= width for width in range(8, 60))


@pytest.mark.parametrize("width", WIDTHS)
def test_columns_that_do_not_fit_follow_below(width):
    """Each block begins with the names of the rows, and together they hold each column once, in its order."""
    text = terminal.table(HEAD, ROWS, width)
    found = blocks(text)
    assert max(map(cell_len, text.split("\n"))) <= width
    assert all(len(block) == 2 + len(ROWS) for block in found)
    for line, cells in zip((0, 2, 3, 4), (HEAD, *ROWS), strict=True):
        assert all(block[line].startswith(cells[0]) for block in found)
        assert " ".join(block[line].removeprefix(cells[0]) for block in found).split() == " ".join(cells[1:]).split()


def test_a_wide_terminal_and_a_log_file_have_the_whole_table():
    whole = terminal.table(HEAD, ROWS, None)
    widest = max(map(cell_len, whole.split("\n")))
    assert len(blocks(whole)) == 1
    assert terminal.table(HEAD, ROWS, widest) == whole
    assert len(blocks(terminal.table(HEAD, ROWS, widest - 1))) == 2


def test_several_columns_may_name_the_rows():
    rows = [[f"0.{i}", str(seed), "done", "0.250 ± 0.010"] for i in range(2) for seed in range(2)]
    found = blocks(terminal.table(["objective.beta", "run.seed", "state", "avg@4 after"], rows, 40, keys=2))
    assert [block[0].split() for block in found] == [
        ["objective.beta", "run.seed", "state"], ["objective.beta", "run.seed", "avg@4", "after"],
    ]  # fmt: skip
    assert [line.split()[:2] for line in found[1][2:]] == [row[:2] for row in rows]


def test_rows_whose_names_leave_no_room_become_lists():
    rows = [["a benchmark that has a name of many words", "0.5", ""], ["b", "0.25", "1"]]
    assert terminal.table(["benchmark", "avg@4", "left out"], rows, 32).split("\n") == [
        "benchmark  a benchmark that has",
        "           a name of many words",
        "avg@4      0.5",
        "",
        "benchmark  b",
        "avg@4      0.25",
        "left out   1",
    ]


def test_a_file_is_no_terminal_whatever_the_environment_says(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    console = terminal.console()
    assert not console.is_terminal and terminal.width_of(console) is None
    terminal.say(console, MESSAGE)
    assert capsys.readouterr().out == MESSAGE + "\n"


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_on_a_terminal_text_is_neither_markup_nor_coloured(term, monkeypatch, capsys):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    console = terminal.console()
    assert terminal.width_of(console) == 80
    text = f"[bold] 12 {'x' * 100}"
    terminal.show(console, text)
    assert capsys.readouterr().out == text + "\n"


def test_help_is_filled_to_the_terminal_and_keeps_blocks_as_they_are(monkeypatch):
    """Of a docstring that is wider: every paragraph within the width, no word lost, an indented block untouched."""
    block = "    --config=FILE.py   a file\n    --workdir=DIR      a folder, " + "and more " * 12
    prose = "Shows " + "what a run has left " * 12
    monkeypatch.setenv("COLUMNS", "60")
    flags = argparse.ArgumentParser(description=f"{prose}\n\n{block}", formatter_class=terminal.HelpFormatter)
    shown = flags.format_help()
    assert block.rstrip() in shown
    assert all(len(line) <= 60 for line in shown.replace(block.rstrip(), "").split("\n"))
    assert " ".join(prose.split()) in " ".join(shown.split())
