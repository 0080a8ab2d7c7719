"""Faults put into a run, through the command's own door: what it says, its exit code, and what it leaves."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from dasd_jax import cli, train
from dasd_jax.mesh import make_mesh, put_rows

ROOT = Path(__file__).parents[1]
TINY = "--config=configs/qwen_math.py:tiny"
# A training whose second step hangs where Python hears no signal.
HANGS = """
import ctypes, sys
from dasd_jax import cli, train

whole = train.Trainer._score
def score(trainer, *args):
    if int(trainer.state.step) == 1:
        print("hangs", flush=True)
        while True:
            ctypes.CDLL(None).sleep(60)
    return whole(trainer, *args)

train.Trainer._score = score
cli.run(train.main)
"""


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """run(*overrides) → (exit code, stdout, stderr) of a training in this process, on one of its devices."""
    monkeypatch.setattr(train, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))

    def once(*overrides: str) -> tuple[int, str, str]:
        fields = [f"--config.{override}" for override in overrides]
        monkeypatch.setattr(sys, "argv", ["train", TINY, f"--workdir={tmp_path / 'w'}", *fields])
        try:
            cli.run(train.main)
            code = 0
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return once


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def poisoned(monkeypatch):
    """poisoned(steps): of these training steps the first kept token has no old log-probability."""
    whole = train.Trainer._score

    def poison(steps):
        def score(trainer, *args):
            experience, *rest = whole(trainer, *args)
            if int(trainer.state.step) + 1 in steps:
                old_logp = np.array(experience.old_logp)
                old_logp[tuple(np.argwhere(np.asarray(experience.keep))[0])] = np.nan
                experience = experience.replace(old_logp=put_rows(trainer.mesh, old_logp))
            return experience, *rest

        monkeypatch.setattr(train.Trainer, "_score", score)

    return poison


def test_an_update_that_is_not_finite_is_skipped_and_its_batch_kept(run, poisoned, tmp_path):
    poisoned({2})
    code, out, err = run("run.steps=3", "run.checkpoint_every=1")
    assert (code, err) == (0, "")
    assert "warning: step 2: loss or gradient is not finite in " in out
    lines = {line["step"]: line for line in lines_of(tmp_path / "w" / "metrics.jsonl")}
    assert [lines[step]["optim/skipped_frac"] > 0 for step in (1, 2, 3)] == [False, True, False]
    assert "loss/total" not in lines[2] and "loss/total" in lines[3]
    kept = np.load(tmp_path / "w" / "not_finite" / "000002.npz")
    assert kept["response"].shape == kept["response_mask"].shape
    assert kept["reward"].shape == kept["response"].shape[:1]


def test_updates_that_are_not_finite_in_a_row_stop_the_run(run, poisoned, tmp_path):
    poisoned({2, 3})
    code, out, err = run("run.steps=4", "run.checkpoint_every=1", "run.skipped_steps_stop=2")
    assert code == 1
    assert err.startswith("error: steps 2-3: loss or gradient is not finite") and err.count("\n") == 1
    assert sorted(path.name for path in (tmp_path / "w" / "not_finite").iterdir()) == ["000002.npz", "000003.npz"]
    assert (tmp_path / "w" / "checkpoints" / "000002" / "manifest.json").exists()


def test_a_collapse_stops_the_run_and_a_level_set_anew_lets_it_go_on(run, tmp_path):
    """The tiny model of random weights has some five nats a token."""
    short = ("run.steps=3", "run.checkpoint_every=1", "run.guard_window=2")
    code, out, err = run(*short, "run.entropy_stop=100")
    assert code == 1
    assert err.startswith("error: steps 1-2: entropy/mean is ") and "run.entropy_stop = 100.0" in err
    assert err.count("\n") == 1
    code, out, err = run(*short)
    assert (code, err) == (0, "") and "resumed from" in out
    assert [line["step"] for line in lines_of(tmp_path / "w" / "metrics.jsonl")] == [0, 1, 2, 3]


def test_a_collapse_may_take_the_teacher_away_by_halves(run, tmp_path):
    code, out, err = run("run.steps=4", "run.guard_window=2", "run.entropy_stop=100", "run.on_collapse=anneal")
    assert (code, err) == (0, "")
    assert "the teacher's weight goes down to 0.5 of objective.beta" in out
    lines = lines_of(tmp_path / "w" / "metrics.jsonl")[1:]
    assert [line["guard/teacher_weight"] for line in lines] == [1.0, 1.0, 0.5, 0.25]


STOPS = {
    "length": (["run.length_stop=100"], "steps 1-1: rollout/length_mean over that of step 1 is 1, "),
    "repetition": (
        ["run.repetition_stop=1e-9", "run.entropy_stop=0", "rollout.temperature=0.02"],
        "steps 1-1: rollout/repeated_frac is ",
    ),
    "repelled KL": (["run.repel_kl_stop=1e-9"], "steps 1-1: gap/repel_kl is "),
    "equal rewards": (["run.equal_rewards_stop=0.5"], "steps 1-1: steps in a row without a mixed group is 1, "),
    "sampler and score pass": (["rollout.logp_gap_p999_max=1e-12"], "step 1: policy/logp_gap_p999 is "),
    "empty minibatch": (
        ["objective.truncated=drop_from_loss", "rollout.max_new_tokens=2"],
        "step 1: minibatch 0 has no token in the loss, and nothing was updated",
    ),
}


@pytest.mark.parametrize("fault", STOPS)
def test_numbers_that_mean_nothing_good_stop_the_run_with_one_line(fault, run, tmp_path):
    """The tiny model has random weights: it is never right, seldom ends, and repeats itself when it is cold."""
    fields, said = STOPS[fault]
    code, _, err = run("run.steps=3", "run.guard_window=1", "run.checkpoint_every=1", *fields)
    assert code == 1 and err.count("\n") == 1
    assert err.startswith(f"error: {said}"), err
    assert "--workdir" in err
    assert [line["step"] for line in lines_of(tmp_path / "w" / "metrics.jsonl")] in ([0], [0, 1])


def test_numbers_that_may_mean_nothing_good_are_said(run):
    said = {
        "steps 1-1: entropy/mean is ": ["run.entropy_warn=100"],
        "steps 1-1: steps in a row without a mixed group is 1, ": ["run.equal_rewards_warn=0.5"],
        "step 1: the attract arm holds ": ["objective.rho=0.01", "objective.rho_side=bottom"],
        "the teacher's term reaches ": ["objective.beta=5"],
    }
    code, out, err = run("run.steps=1", "run.guard_window=1", *(field for fields in said.values() for field in fields))
    assert (code, err) == (0, "")
    warnings = [line.removeprefix("warning: ") for line in out.splitlines() if line.startswith("warning: ")]
    assert sorted(line[: len(start)] for start in said for line in warnings if line.startswith(start)) == sorted(said)


@pytest.mark.parametrize("signals", [1, 2])
def test_a_step_that_outlasts_the_grace_is_given_up_and_a_second_signal_waits_for_nothing(signals, tmp_path):
    workdir = tmp_path / "w"
    fields = ["run.steps=3", "run.checkpoint_every=1", f"run.grace_s={2 if signals == 1 else 600}"]
    args = [TINY, f"--workdir={workdir}", *(f"--config.{field}" for field in fields)]
    process = subprocess.Popen([sys.executable, "-c", HANGS, *args], cwd=ROOT, text=True, stdout=subprocess.PIPE)
    said = []
    for line in process.stdout:
        said.append(line)
        if line == "hangs\n":
            break
    started = time.monotonic()
    for _ in range(signals):
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.5)
    # Read to the end of stdout: a child that were left behind would hold it open.
    said += process.stdout.read().splitlines()
    assert process.wait(timeout=60) == (0 if signals == 1 else 128 + signal.SIGTERM)
    assert time.monotonic() - started < 10
    assert ("stopped by a signal 2 s after it, in the middle of a step" in said[-1]) == (signals == 1)
    assert (workdir / "checkpoints" / "000001" / "manifest.json").exists()
    assert [line["step"] for line in lines_of(workdir / "metrics.jsonl")] == [0, 1]


def test_a_full_disk_stops_the_run_with_one_line_and_leaves_the_checkpoint_before(run, tmp_path):
    """No file may grow beyond what small ones need: the arrays of the second checkpoint do not fit."""
    code, _, _ = run("run.steps=3", "run.checkpoint_every=1")
    assert code == 0
    workdir = tmp_path / "w"
    largest = max(path.stat().st_size for path in (workdir / "checkpoints").rglob("*"))
    for name in ("done.json", "checkpoints/000003/manifest.json"):
        (workdir / name).unlink()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, before[1]))
    try:
        code, out, err = run("run.steps=3", "run.checkpoint_every=1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1
    assert err.startswith("error: checkpoint 000003 could not be written: ") and err.count("\n") == 1
    assert "resumed from" in out and "000002" in out
    code, out, err = run("run.steps=3", "run.checkpoint_every=1")
    assert (code, err) == (0, "") and f"resumed from {workdir / 'checkpoints' / '000002'}" in out


@pytest.mark.parametrize("name", ["heldout", "metrics.jsonl"])
def test_a_file_that_can_no_longer_be_written_is_named_in_one_line(name, run, monkeypatch, tmp_path):
    """As on a disk that has become read-only, or a bucket whose permission is gone."""

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "w" / name))

    if name == "heldout":
        monkeypatch.setattr(train.Trainer, "_evaluate", refuse)
    else:
        monkeypatch.setattr(train.RunLog, "write", refuse)
    code, _, err = run("run.steps=3")
    assert code == 1
    assert err.startswith(f"error: {tmp_path / 'w' / name}: Read-only file system: expected room and permission")
    assert err.count("\n") == 1
