"""The command that shows logged rollouts: its flags, its plain text, and what it says to mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fake_run
import pytest

from dasd_jax import view
from dasd_jax.errors import UserError
from dasd_jax.run import records
from dasd_jax.show.text import LEGEND

ROOT = Path(__file__).parents[1]
VIEW = [sys.executable, "-m", "dasd_jax.view"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A made-up run of 4 steps with 2 × 2 rollouts."""
    return fake_run.write(tmp_path_factory.mktemp("run"))


def printed(capsys, *argv):
    view.main([str(word) for word in argv])
    return capsys.readouterr().out


def heads(text):
    return [line.removeprefix("══ ") for line in text.splitlines() if line.startswith("══ ")]


def head(problem, number):
    return (
        f"step {problem['step']} · problem {problem['example_id']} · rollout {number + 1} of {len(problem['rollouts'])}"
        f" · {problem['source']}"
    )


def test_without_a_terminal_all_selected_rollouts_are_printed_with_one_legend(run, capsys):
    everything = list(records.samples(run))
    text = printed(capsys, run)
    assert text.startswith(LEGEND) and text.count(LEGEND) == 1
    assert heads(text) == [head(problem, number) for problem in everything for number in range(2)]
    assert all(f"question: {problem['question']}\nresponse: " in text for problem in everything)
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("flags", "keep"),
    [
        (["--step=2"], lambda problem, rollout: problem["step"] == 2),
        (["--problem=31"], lambda problem, rollout: problem["example_id"] == 31),
        (["--problem=IS 3 +"], lambda problem, rollout: "is 3 +" in problem["question"]),
        (["--only=right"], lambda problem, rollout: rollout["reward"] == 1),
        (["--step=3", "--only=wrong"], lambda problem, rollout: problem["step"] == 3 and rollout["reward"] == 0),
    ],
)
def test_flags_select(run, capsys, flags, keep):
    expected = [
        head(problem, number)
        for problem in records.samples(run)
        for number, rollout in enumerate(problem["rollouts"])
        if keep(problem, rollout)
    ]
    assert heads(printed(capsys, run, *flags)) == expected != []


def test_by_gap_the_largest_is_printed_first(run, capsys):
    gaps = {
        head(problem, number): max(map(abs, rollout["gap"]))
        for problem in records.samples(run)
        for number, rollout in enumerate(problem["rollouts"])
    }
    assert heads(printed(capsys, run, "--by=gap")) == sorted(gaps, key=gaps.get, reverse=True)


def test_an_unfinished_line_is_left_out(run, capsys, tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "samples.jsonl").write_bytes((run / "samples.jsonl").read_bytes()[:-40])
    assert heads(printed(capsys, tmp_path)) == heads(printed(capsys, run))[:-2]


MISTAKES = {
    "missing step": (["--step=9"], "--step: 9: no logged rollouts: the nearest steps with some: 4"),
    "step in words": (["--step=last"], "argument --step: invalid int value: 'last'"),
    "unknown id": (["--problem=99"], "--problem: '99': no logged problem has that example id"),
    "unknown text": (["--problem=zebra"], "--problem: 'zebra': no logged problem has that text in its question"),
    "problem of another step": (["--step=2", "--problem=31"], "--problem: '31': no logged problem has that example id"),
    "no such rollout": (["--only=truncated"], "--only: truncated: no rollout is truncated of those that"),
    "unknown verdict": (["--only=good"], "argument --only: invalid choice: 'good' (choose from 'right', 'wrong', 'tr"),
    "unknown order": (["--by=size"], "argument --by: invalid choice: 'size' (choose from 'step', 'gap')"),
    "unknown flag": (["--steps=2"], "unrecognized arguments: --steps=2"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_said_before_anything_is_printed(run, capsys, mistake):
    flags, expected = MISTAKES[mistake]
    with pytest.raises(UserError) as error:
        printed(capsys, run, *flags)
    assert str(error.value).startswith(expected)
    assert not capsys.readouterr().out


def test_a_folder_that_is_no_run_or_has_no_rollouts_is_named(capsys, tmp_path):
    with pytest.raises(UserError, match=f"^RUN: {tmp_path} holds no metrics.jsonl"):
        printed(capsys, tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    for _ in range(2):
        with pytest.raises(UserError, match="^RUN: .*no rollouts in samples.jsonl.* --config.run.logged_rollouts"):
            printed(capsys, tmp_path)
        (tmp_path / "samples.jsonl").touch()


def test_a_user_error_ends_with_code_2_and_one_line(tmp_path):
    ended = subprocess.run([*VIEW, tmp_path / "none"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and not ended.stdout
    assert ended.stderr.startswith("error: RUN: ") and ended.stderr.count("\n") == 1


def test_it_starts_without_jax_and_prints_without_the_terminal_library(run):
    script = (
        "import sys; from dasd_jax import view; view.main(sys.argv[1:]); "
        "print(*{'jax', 'textual'} & sys.modules.keys(), file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", script, run], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stderr == "\n"


def test_a_reader_that_stops_early_sees_no_traceback(run, tmp_path):
    """As `| head` does; the text is longer than what a pipe holds."""
    path = tmp_path / "samples.jsonl"
    (tmp_path / "metrics.jsonl").touch()
    path.write_bytes((run / "samples.jsonl").read_bytes() * 100)
    with subprocess.Popen([*VIEW, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""


def test_text_that_the_encoding_lacks_is_escaped(run, tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    problem = json.loads((run / "samples.jsonl").read_text().splitlines()[0]) | {"question": "日本"}
    (tmp_path / "samples.jsonl").write_text(json.dumps(problem) + "\n")
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    ended = subprocess.run([*VIEW, tmp_path], cwd=ROOT, capture_output=True, env=environment, check=True)
    assert rb"question: \u65e5\u672c" in ended.stdout


def test_help_names_the_command_and_its_flags(capsys):
    with pytest.raises(SystemExit) as ended:
        view.main(["--help"])
    text = capsys.readouterr().out
    assert not ended.value.code
    assert all(word in text for word in ("python -m dasd_jax.view RUN", "--step", "--problem", "--only", "--by"))
