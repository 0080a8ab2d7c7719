"""Several hosts: processes on this machine, with fake devices, do what one process does, and end together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import hosts_worker
import numpy as np
import pytest

from dasd_jax import cli, hosts
from dasd_jax.errors import UserError

ROOT = Path(__file__).parents[1]
WORKER = ROOT / "tests" / "hosts_worker.py"
TINY = hosts_worker.TINY


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def together(*commands, timeout=300):
    """Runs commands at one time: [(exit code, stdout, stderr)]."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen([sys.executable, *args], cwd=ROOT, env=env, **pipes) for args in commands]
    try:
        outputs = [process.communicate(timeout=timeout) for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(running, outputs, strict=True)]


def started(*of_each, count=2, module="dasd_jax.train"):
    """Commands of the processes 0, 1, …: the flags of each beside those of the start."""
    start = [f"--coordinator=127.0.0.1:{free_port()}", f"--processes={count}"]
    return [["-m", module, TINY, *start, f"--process={i}", *flags] for i, flags in enumerate(of_each)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same replayed run by one process and by two, each gone on from the other's checkpoint, and a live one."""
    folder, port = tmp_path_factory.mktemp("hosts"), str(free_port())
    one = hosts_worker.replay(folder / "one")
    ended = together(*([str(WORKER), port, "2", str(i), str(folder)] for i in (0, 1)))
    for code, _, stderr in ended:
        assert code == 0, stderr
    one_on = hosts_worker.go_on(folder / "one_on", folder / "several")
    several = [json.loads((folder / f"process{i}.json").read_text()) for i in (0, 1)]
    return {
        "folder": folder,
        "one": one,
        "one gone on": one_on,
        "several": several,
        "stdout": [out for _, out, _ in ended],
    }


def assert_same_numbers(found, expected, steps):
    for step in steps:
        mine, theirs = found[step]["metrics"], expected[step]["metrics"]
        assert theirs.keys() <= mine.keys()
        for name in ("loss/total", "reward/mean", "credit/dense_abs_mean", "policy/clip_frac"):
            assert abs(mine[name] - theirs[name]) <= 1e-6, (step, name)
        for name in ("entropy/mean", "gap/mean_abs", "optim/grad_norm"):
            np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-5, err_msg=f"step {step} {name}")


@pytest.mark.slow
def test_two_processes_compute_what_one_does(runs):
    steps = ["1", "2", "3", "4", "5"]
    for of_process in runs["several"]:
        assert_same_numbers(of_process["whole"], runs["one"], steps)
    losses = [runs["one"][step]["metrics"]["loss/total"] for step in steps]
    assert len({round(loss, 4) for loss in losses}) == 5  # and they tell the steps apart


@pytest.mark.slow
def test_every_example_lies_on_one_host_and_is_verified_by_one(runs):
    first, second = (of_process["whole"] for of_process in runs["several"])
    for step, expected in runs["one"].items():
        examples = expected["examples"]
        assert first[step]["examples"] == second[step]["examples"] == examples
        assert not set(first[step]["held"]) & set(second[step]["held"])
        assert sorted(first[step]["held"] + second[step]["held"]) == sorted(examples)
        assert len(first[step]["verified"]) == len(second[step]["verified"])
        assert first[step]["verified"] + second[step]["verified"] == expected["verified"]
        assert expected["verified"] == [i for i in examples for _ in range(len(expected["verified"]) // len(examples))]


@pytest.mark.slow
def test_each_arrangement_goes_on_from_the_others_checkpoint_with_the_same_data(runs):
    rest = ["3", "4", "5"]
    for found in (runs["one gone on"], *(of_process["gone on"] for of_process in runs["several"])):
        assert list(found) == rest
        assert [found[step]["examples"] for step in rest] == [runs["one"][step]["examples"] for step in rest]
        assert_same_numbers(found, runs["one"], rest)


@pytest.mark.slow
def test_the_commands_run_on_two_hosts_and_stop_together(runs):
    """The second process was asked to stop in step 1; process 0 alone writes and speaks."""
    workdir = runs["folder"] / "live"
    names = {path.name for path in workdir.iterdir()}
    assert names == {
        "config.json", "metrics.jsonl", "samples.jsonl", "verdicts.jsonl", "tensorboard", "checkpoints", "heldout",
        "eval", "done.json",
    }  # fmt: skip
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5]
    assert max(line["policy/logp_gap_max"] for line in lines[1:] if "policy/logp_gap_max" in line) < 1e-4
    assert len((workdir / "samples.jsonl").read_text().splitlines()) == 20
    evaluated, heldout = (json.loads((workdir / name / "5.json").read_text()) for name in ("eval", "heldout"))
    assert evaluated.pop("settings") and evaluated == heldout
    first, second = runs["stdout"]
    for said in ("2 processes (", "stopped by a signal after step ", "resumed from", "written to"):
        assert said in first and said not in second


# The second process of a training that fails in its third step.
FAILS = """
import os, signal, sys
from dasd_jax import cli, train
from dasd_jax.errors import TrainingError

how, whole = sys.argv.pop(1), train.learn
def learn(run, number):
    if number == 3 and how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 3:
        raise {"stopped": TrainingError, "broken": RuntimeError}[how]("out of luck")
    return whole(run, number)

train.learn = learn
cli.run(train.main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("stopped", 1, "error: process 1: out of luck\n"),
        ("broken", 1, "error: process 1: unexpected failure"),
        ("killed", -signal.SIGKILL, "heartbeat"),
    ],
)
def test_a_host_that_fails_in_the_middle_takes_the_others_with_it(how, code, said, tmp_path):
    """The first one is in a program of both; what is killed says nothing, and is missed within two minutes."""
    workdir = tmp_path / "live"
    flags = [*hosts_worker.SAME[1:], f"--workdir={workdir}", "--config.run.checkpoint_every=1"]
    first, second = started(*[[*flags, "--config.rollout.problems=8"]] * 2)  # one for each of the devices
    began = time.monotonic()
    (other, _, stderr), (failed, _, _) = together(first, ["-c", FAILS, how, *second[2:]])
    assert failed == code and other not in (0, None)
    assert said in stderr
    assert time.monotonic() - began < 240
    assert (workdir / "checkpoints" / "000001" / "manifest.json").exists()
    assert not (workdir / "done.json").exists()


def refused(ended):
    """The lines that two processes have ended with."""
    for code, stdout, stderr in ended:
        assert code == 2, stderr
        assert "Traceback" not in stdout + stderr and stderr.count("\n") == 1, stderr
    return [stderr.strip() for _, _, stderr in ended]


def test_hosts_with_different_configs_all_stop(tmp_path):
    workdir = f"--workdir={tmp_path / 'w'}"
    commands = started([workdir], [workdir, "--config.optim.learning_rate=1e-4"])
    first, second = refused(together(*commands))
    assert second.startswith("error: optim.learning_rate: 0.0001 in process 1, ")
    assert first == second.replace("error: ", "error: process 1: ", 1)
    assert not (tmp_path / "w").exists()


def test_a_mesh_that_does_not_fit_the_devices_of_all_hosts_stops_all(tmp_path):
    flags = [f"--workdir={tmp_path / 'w'}", "--config.mesh.tensor=3"]
    for line in refused(together(*started(flags, flags))):
        assert "mesh: data=1 fsdp=-1 tensor=3 does not fit 8 device(s)" in line
    assert not (tmp_path / "w").exists()


def test_a_host_that_does_not_come_up_is_named_within_the_deadline(tmp_path):
    early = "import sys; from dasd_jax import cli, hosts, train; hosts.START_DEADLINE_S = 2; sys.argv = sys.argv[1:]; "
    commands = started([], [], count=3)
    commands = [["-c", early + "cli.run(train.main)", *command[1:], f"--workdir={tmp_path}"] for command in commands]
    first, second = refused(together(*commands))
    expected = "waited 2 s for the 3 processes (--processes), and not all connected (process 0 "
    assert first.startswith(f"error: --coordinator: process 0 {expected}")
    assert second.startswith(f"error: --coordinator: process 1 {expected}")
    assert "(process 0 answers at 127.0.0.1:" in first


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--coordinator=a:1"], "--coordinator, --processes and --process: expected all three"),
        (["--coordinator=a", "--processes=2", "--process=0"], "--coordinator: 'a': expected HOST:PORT"),
        (["--coordinator=a:1", "--processes=0", "--process=0"], "--processes: 0: expected at least 1"),
        (["--coordinator=a:1", "--processes=2", "--process=2"], "--process: 2: expected 0 to 1"),
    ],
)
def test_flags_of_the_start_that_do_not_fit_together_are_refused(flags, expected):
    parser = cli.parser("")
    hosts.add_flags(parser)
    with pytest.raises(UserError) as error:
        hosts.start(parser.parse_args([TINY, *flags]), {})
    assert str(error.value).startswith(expected)


def test_the_shares_of_all_processes_cover_each_row_once(monkeypatch):
    for count, size in ((1, 5), (2, 5), (3, 64), (4, 3)):
        monkeypatch.setattr(hosts.jax, "process_count", lambda count=count: count)
        rows = []
        for index in range(count):
            monkeypatch.setattr(hosts.jax, "process_index", lambda index=index: index)
            rows += list(range(size))[hosts.share(size)]
        assert rows == list(range(size))
