"""Faults put into a run, through the command's own door: what it says, its exit code, and what it leaves."""

import errno
import http.server
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import SMALL, TINY, command

from dasd_jax import train
from dasd_jax.learner import checkpoint, kept
from dasd_jax.mesh import put_rows
from dasd_jax.run import collect, runlog, stopping

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """run(*overrides) → (exit code, stdout, stderr) of a training in this process."""
    call = command(monkeypatch)

    def once(*overrides: str) -> tuple[int, str, str]:
        fields = (f"--config.{override}" for override in (*SMALL, *overrides))
        return call(TINY, f"--workdir={tmp_path / 'w'}", *fields), *capsys.readouterr()

    return once


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def poisoned(monkeypatch):
    """poisoned(steps): of these training steps the first kept token has no old log-probability."""
    whole = train.score

    def poison(steps):
        def score(run, *args, **more):
            experience, *rest = whole(run, *args, **more)
            if run.step + 1 in steps:
                old_logp = np.array(experience.old_logp)
                old_logp[tuple(np.argwhere(np.asarray(experience.keep))[0])] = np.nan
                experience = experience.replace(old_logp=put_rows(run.mesh, old_logp))
            return experience, *rest

        monkeypatch.setattr(train, "score", score)

    return poison


@pytest.mark.slow
def test_an_update_that_is_not_finite_is_skipped_and_its_batch_kept(run, poisoned, tmp_path):
    poisoned({2})
    code, out, err = run("run.steps=3", "run.checkpoint_every=1")
    assert (code, err) == (0, "")
    assert "warning: step 2: loss or gradient is not finite in " in out
    lines = {line["step"]: line for line in lines_of(tmp_path / "w" / "metrics.jsonl")}
    assert [lines[step]["optim/skipped_frac"] > 0 for step in (1, 2, 3)] == [False, True, False]
    assert "loss/total" not in lines[2] and "loss/total" in lines[3]
    kept = np.load(tmp_path / "w" / "not_finite" / "000002.npz")
    for name in ("response", "response_mask", "old_logp", "signal.advantage", "signal.weight"):
        assert kept[name].shape == kept["response"].shape
    assert np.isnan(kept["old_logp"]).sum() == 1
    problems = kept["response"].shape[0]
    assert kept["reward"].shape == kept["response"].shape[:2] and kept["example_id"].shape == (problems,)
    assert kept["prompts.student_prompt"].shape[0] == problems
    np.testing.assert_array_equal(kept["prompts.example_id"], kept["example_id"])


@pytest.mark.parametrize("method", ["dasd", pytest.param("sft", marks=pytest.mark.slow)])
def test_the_logged_learning_rate_is_that_of_the_updates_that_were_made(method, run, monkeypatch, tmp_path):
    """A warm-up of five updates to 5e-4, two a step; those of the second step are skipped."""
    whole = train.train_step

    def train_step(steps, optimizer, state, experience, *args):
        if int(state.step) == 1:
            broken = state.replace(params=jax.tree.map(lambda x: x * np.nan, state.params))
            _, metrics = whole(steps, optimizer, jax.tree.map(jax.numpy.copy, broken), experience, *args)
            return state.replace(step=state.step + 1, batches_drawn=state.batches_drawn + 1), metrics
        return whole(steps, optimizer, state, experience, *args)

    monkeypatch.setattr(train, "train_step", train_step)
    code, out, err = run("run.steps=3", f"objective.method={method}")
    assert (code, err) == (0, "") and "warning: step 2: loss or gradient is not finite in 100%" in out
    rates = [line["optim/learning_rate"] for line in lines_of(tmp_path / "w" / "metrics.jsonl")[1:]]
    assert rates == pytest.approx([2e-4, 2e-4, 4e-4])
    kept = np.load(tmp_path / "w" / "not_finite" / "000002.npz")
    of_loss = {"dasd": "signal.weight", "sft": "signal.nll"}[method]
    assert kept["response"].shape == kept[of_loss].shape and kept["example_id"].shape == kept[of_loss].shape[:1]


def test_updates_that_are_not_finite_in_a_row_stop_the_run(run, poisoned, tmp_path):
    poisoned({2, 3})
    code, out, err = run("run.steps=4", "run.checkpoint_every=1", "guards.skipped_steps_stop=2")
    assert code == 1
    assert err.startswith("error: steps 2-3: loss or gradient is not finite") and err.count("\n") == 1
    assert sorted(path.name for path in (tmp_path / "w" / "not_finite").iterdir()) == ["000002.npz", "000003.npz"]
    assert (tmp_path / "w" / "checkpoints" / "000002" / "manifest.json").exists()


def test_a_collapse_stops_the_run_and_a_level_set_anew_lets_it_go_on(run, tmp_path):
    """The tiny model of random weights has some five nats a token."""
    short = ("run.steps=3", "run.checkpoint_every=1", "guards.window=2")
    code, out, err = run(*short, "guards.entropy_stop=100")
    assert code == 1
    assert err.startswith("error: steps 1-2: entropy/mean is ") and "guards.entropy_stop = 100.0" in err
    assert err.count("\n") == 1
    code, out, err = run(*short)
    assert (code, err) == (0, "") and "resumed from" in out
    assert [line["step"] for line in lines_of(tmp_path / "w" / "metrics.jsonl")] == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_collapse_may_take_the_teacher_away_by_halves(run, tmp_path):
    code, out, err = run("run.steps=4", "guards.window=2", "guards.entropy_stop=100", "guards.on_collapse=anneal")
    assert (code, err) == (0, "")
    assert "the teacher's weight falls to 0.5 of its value" in out
    lines = lines_of(tmp_path / "w" / "metrics.jsonl")[1:]
    assert [line["guard/teacher_weight"] for line in lines] == [1.0, 1.0, 0.5, 0.25]


@pytest.mark.slow
def test_a_teacher_that_is_on_its_way_out_stays_so_through_a_kill(run, monkeypatch, tmp_path):
    fields = ["run.steps=4", "guards.window=2", "guards.entropy_stop=100", "guards.on_collapse=anneal"]
    whole = train.learn

    def killed(run, step):
        if step == 4:
            raise KeyboardInterrupt
        return whole(run, step)

    with monkeypatch.context() as patched:
        patched.setattr(train, "learn", killed)
        assert run(*fields, "run.checkpoint_every=1")[0] == 130
    code, out, err = run(*fields, "run.checkpoint_every=1")
    assert (code, err) == (0, "") and "resumed from" in out
    lines = lines_of(tmp_path / "w" / "metrics.jsonl")[1:]
    assert [line["guard/teacher_weight"] for line in lines] == [1.0, 1.0, 0.5, 0.25]


def test_steps_with_nothing_in_the_loss_change_nothing_and_stop_the_run(run, monkeypatch, mesh, tmp_path):
    """As where no response ends within its budget and objective.truncated is drop_from_loss."""
    whole = collect.outcomes

    def outcomes(*args):
        found = whole(*args)
        return found.replace(in_loss=np.zeros_like(found.in_loss))

    monkeypatch.setattr(collect, "outcomes", outcomes)
    code, _, err = run("run.steps=4", "run.checkpoint_every=1", "guards.empty_steps_stop=3")
    assert code == 1 and err.count("\n") == 1
    assert err.startswith("error: steps 1-3: no token was in the loss and nothing was updated: ")
    lines = lines_of(tmp_path / "w" / "metrics.jsonl")
    assert [line.get("optim/empty_frac") for line in lines] == [None, 1.0, 1.0, 1.0]
    (_, first), (_, second) = (
        checkpoint.restore_params(tmp_path / "w" / "checkpoints" / f"00000{step}", mesh) for step in (1, 2)
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)


# A cold policy of random weights repeats itself; and a router with hardly any token below its threshold.
COLD = ["rollout.temperature=0.02", "objective.beta=5", "objective.rho=0.01", "objective.rho_side=bottom"]
STOPS = {
    "length": (["guards.length_stop=100"], "steps 1-1: rollout/length_mean over that of step 1 is 1, "),
    "repetition": (
        ["guards.repetition_stop=1e-9", "guards.entropy_stop=0", *COLD],
        "steps 1-1: rollout/repeated_frac is ",
    ),
    "repelled KL": (["guards.repel_kl_stop=1e-9"], "steps 1-1: gap/repel_kl is "),
    "equal rewards": (["guards.equal_rewards_stop=0.5"], "steps 1-1: steps in a row without a mixed group is 1, "),
    "one arm": (["guards.arm_stop=0.6"], "steps 1-1: the share of router/"),
    "sampler and score pass": (["guards.logp_gap_p999_max=1e-12"], "step 1: policy/logp_gap_p999 is "),
}


@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=pytest.mark.slow) if name == "repetition" else name for name in STOPS]
)
def test_bad_numbers_stop_the_run_with_one_line(fault, run, tmp_path):
    """The tiny model has random weights: it is never right, seldom ends, and repeats itself when it is cold."""
    fields, said = STOPS[fault]
    code, _, err = run("run.steps=3", "guards.window=1", "run.checkpoint_every=1", *fields)
    assert code == 1 and err.count("\n") == 1
    assert err.startswith(f"error: {said}"), err
    assert "--workdir" in err
    assert [line["step"] for line in lines_of(tmp_path / "w" / "metrics.jsonl")] in ([0], [0, 1])


WARNS = [
    {
        "steps 1-1: entropy/mean is ": ["guards.entropy_warn=100"],
        "steps 1-1: steps in a row without a mixed group is 1, ": ["guards.equal_rewards_warn=0.5"],
        "steps 1-1: rollout/length_mean over that of step 1 is 1, ": ["guards.length_warn=100"],
        "steps 1-1: gap/repel_kl is ": ["guards.repel_kl_warn=1e-9"],
        "steps 1-1: the share of router/": ["guards.arm_warn=0.6"],
        "steps 1-1: policy/logp_gap_mean is ": ["guards.logp_gap_mean_warn=1e-12"],
    },
    {
        "steps 1-1: rollout/repeated_frac is ": ["guards.repetition_warn=1e-9", "guards.repetition_stop=0"],
        "steps 1-1: entropy/mean is ": [*COLD, "guards.entropy_stop=0"],
        "steps 1-1: the share of router/attract_mass in both arms is ": [],
        "the teacher's term reaches ": [],
    },
]


@pytest.mark.parametrize("said", WARNS)
def test_suspicious_numbers_give_a_warning_each(said, run):
    code, out, err = run("run.steps=1", "guards.window=1", *(field for fields in said.values() for field in fields))
    assert (code, err) == (0, "")
    warnings = [line.removeprefix("warning: ") for line in out.splitlines() if line.startswith("warning: ")]
    assert sorted(line[: len(start)] for start in said for line in warnings if line.startswith(start)) == sorted(said)


# Signal → what a run calls it, and its exit code where everything was saved.
SIGNALS = {signal.SIGTERM: ("a signal", 0), signal.SIGINT: ("Ctrl-C", 130)}


def in_the_middle(phase, workdir, *fields, signals=1, number=signal.SIGTERM):
    """(exit code, the last line it said, seconds from the first signal on) of a training that hangs in a phase."""
    args = [phase, TINY, f"--workdir={workdir}", *(f"--config.{field}" for field in (*SMALL, "run.steps=3", *fields))]
    script = [sys.executable, str(ROOT / "tests" / "hanging_train.py"), *args]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(script, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE)
    assert "hangs\n" in iter(process.stdout.readline, "")
    started = time.monotonic()
    for _ in range(signals):
        os.kill(process.pid, number)
        time.sleep(0.5)
    # Read to the end of stdout: a child that were left behind would hold it open.
    said = process.stdout.read().splitlines()
    return process.wait(timeout=60), said[-1] if said else "", time.monotonic() - started


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_the_first_step_ends_the_run_that_has_nothing_to_lose(number, tmp_path):
    name, expected = SIGNALS[number]
    code, said, seconds = in_the_middle("start-up", tmp_path / "w", "run.grace_s=600", number=number)
    assert code == expected and seconds < 10
    assert said == f"stopped by {name} in start-up; the same command starts again"
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_nothing_changes_saves_the_step_before_and_gives_this_one_up(number, run, tmp_path):
    """No checkpoint is due before the last step."""
    name, expected = SIGNALS[number]
    fields = ("run.checkpoint_every=3", "run.grace_s=600")
    code, said, seconds = in_the_middle("score", tmp_path / "w", *fields, number=number)
    assert code == expected and seconds < 10
    assert said == f"stopped by {name} after step 1; the same command goes on from here"
    assert (tmp_path / "w" / "checkpoints" / "000001" / "manifest.json").exists()
    code, out, err = run("run.steps=3", "run.checkpoint_every=3")
    assert (code, err) == (0, "") and f"resumed from {tmp_path / 'w' / 'checkpoints' / '000001'}" in out
    assert [line["step"] for line in lines_of(tmp_path / "w" / "metrics.jsonl")] == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("signals", [1, 2])
def test_an_update_that_outlasts_the_grace_is_given_up_and_a_second_signal_ends_it(signals, number, tmp_path):
    workdir, grace = tmp_path / "w", 2 if signals == 1 else 600
    fields, (name, saved) = ["run.checkpoint_every=1", f"run.grace_s={grace}"], SIGNALS[number]
    code, said, seconds = in_the_middle("update", workdir, *fields, signals=signals, number=number)
    assert code == (saved if signals == 1 else 128 + number) and seconds < 10
    assert said == (
        f"stopped by {name} 2 s after it, in the middle of a step; the same command goes on from the last checkpoint"
        if signals == 1
        else f"ended by {name} at once; the same command goes on after step 1"
    )
    assert (workdir / "checkpoints" / "000001" / "manifest.json").exists()
    assert [line["step"] for line in lines_of(workdir / "metrics.jsonl")] == [0, 1]


@pytest.mark.parametrize(
    ("minutes", "saved"), [pytest.param(0, ["000003"], marks=pytest.mark.slow), (1e-6, ["000001", "000002", "000003"])]
)
def test_a_checkpoint_that_has_become_old_is_followed_by_another(minutes, saved, run, tmp_path):
    fields = ("run.steps=3", "run.checkpoint_every=100", "run.keep_checkpoints=5")
    code, _, err = run(*fields, f"run.checkpoint_minutes={minutes}")
    assert (code, err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "w" / "checkpoints").iterdir()) == saved


def test_an_old_checkpoint_that_cannot_be_removed_is_a_warning_and_the_next_write_tries_again(
    run, monkeypatch, tmp_path
):
    remove, refused = shutil.rmtree, []

    def once(path, *arguments, **options):
        if Path(path).name == "000001" and not options and not refused:
            refused.append(path)
            raise OSError(errno.EIO, "Input/output error", str(path))
        remove(path, *arguments, **options)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", once)
    code, out, err = run("run.steps=4", "run.checkpoint_every=1", "run.keep_checkpoints=1")
    assert (code, err) == (0, "") and len(refused) == 1
    assert "warning: checkpoint 000001 could not be removed: Input/output error" in out
    assert [path.name for path in (tmp_path / "w" / "checkpoints").iterdir()] == ["000004"]


def test_a_notice_of_maintenance_ends_the_run_after_its_step(run, monkeypatch, tmp_path):
    """A metadata server that announces it as soon as there is a first step."""
    workdir = tmp_path / "w"

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.path == "/computeMetadata/v1/instance/maintenance-event"
            assert self.headers["Metadata-Flavor"] == "Google"
            metrics = workdir / "metrics.jsonl"
            begun = metrics.exists() and len(metrics.read_bytes().splitlines()) > 1
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"TERMINATE_ON_HOST_MAINTENANCE" if begun else b"NONE")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("localhost", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"localhost:{server.server_port}")
        monkeypatch.setattr(stopping, "_NOTICE_EVERY_S", 0.5)
        code, out, err = run("run.steps=100000", "run.checkpoint_every=100000")
        server.shutdown()
    assert (code, err) == (0, "")
    step = lines_of(workdir / "metrics.jsonl")[-1]["step"]
    said = (
        f"stopped for maintenance (TERMINATE_ON_HOST_MAINTENANCE) after step {step}; the same command goes on from here"
    )
    assert out.splitlines()[-1] == said
    assert (workdir / "checkpoints" / f"{step:06d}" / "manifest.json").exists()


def test_a_full_disk_stops_the_run_with_one_line_and_leaves_the_checkpoint_before(run, tmp_path):
    """No file may grow beyond what the logs need: the arrays of the third checkpoint do not fit in any of its files."""
    code, _, _ = run("run.steps=3", "run.checkpoint_every=1")
    assert code == 0
    workdir = tmp_path / "w"
    beside = [path for path in workdir.rglob("*") if path.is_file() and "checkpoints" not in path.parts]
    room = 1.2 * max(path.stat().st_size for path in beside)
    for name in ("done.json", "checkpoints/000003/manifest.json"):
        (workdir / name).unlink()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), before[1]))
    try:
        code, out, err = run("run.steps=3", "run.checkpoint_every=1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1
    assert err.startswith("error: checkpoint 000003 could not be written: ") and err.count("\n") == 1
    assert "resumed from" in out and "000002" in out
    code, out, err = run("run.steps=3", "run.checkpoint_every=1")
    assert (code, err) == (0, "") and f"resumed from {workdir / 'checkpoints' / '000002'}" in out


@pytest.mark.slow
def test_a_permission_that_is_lost_while_a_checkpoint_is_written_is_one_line(run, monkeypatch, tmp_path):
    """Of the thread that writes it, while the run goes on."""
    whole = kept.checksums

    def refuse(folder):
        if folder.name == "000002":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return whole(folder)

    with monkeypatch.context() as patched:
        patched.setattr(kept, "checksums", refuse)
        code, _, err = run("run.steps=4", "run.checkpoint_every=1")
    assert code == 1 and err.count("\n") == 1
    assert err.startswith(
        "error: checkpoint 000002 could not be written: Permission denied: expected free space and write permission"
    )
    code, out, err = run("run.steps=4", "run.checkpoint_every=1")
    assert (code, err) == (0, "") and f"resumed from {tmp_path / 'w' / 'checkpoints' / '000001'}" in out
    assert [line["step"] for line in lines_of(tmp_path / "w" / "metrics.jsonl")] == [0, 1, 2, 3, 4]


def test_a_workdir_that_cannot_be_written_is_refused_at_the_door(monkeypatch, run, tmp_path):
    """As a person without the right sees it; root may write everywhere."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    code, out, err = run("run.steps=3")
    assert (code, out) == (2, "")
    assert err == f"error: --workdir: {tmp_path / 'w'}: {tmp_path} is not a writable folder\n"
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("name", ["heldout", "metrics.jsonl"])
def test_a_file_that_can_no_longer_be_written_is_named_in_one_line(name, run, monkeypatch, tmp_path):
    """As on a disk that has become read-only, or a bucket whose permission is gone."""

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "w" / name))

    if name == "heldout":
        monkeypatch.setattr(train, "evaluate_heldout", refuse)
    else:
        monkeypatch.setattr(runlog.RunLog, "write", refuse)
    code, _, err = run("run.steps=3")
    assert code == 1
    assert err.startswith(
        f"error: {tmp_path / 'w' / name}: Read-only file system: expected files that can be read, and room"
    )
    assert err.count("\n") == 1
