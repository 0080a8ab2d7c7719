"""A run's log in a tracker. The package is made up: it writes what it is given to a file, raises or hangs."""

import importlib.machinery as importlib_machinery
import json
import os
import signal
import sys
import time

import pytest
import tiny

from dasd_jax import cli, train
from dasd_jax.errors import UserError
from dasd_jax.run import tracker_process, trackers
from dasd_jax.run.runlog import RunLog

PACKAGE = """
import json, os, time

def note(**what):
    with open(os.environ["FAKE_NOTES"], "a") as file:
        file.write(json.dumps(what) + "\\n")

def do(place):
    if os.environ.get("FAKE_RAISES") == place:
        raise RuntimeError("no \\x1b[31m network\\nfor planted-secret-1")
    if os.environ.get("FAKE_HANGS") == place:
        time.sleep(3600)

def Settings(**settings):
    return settings

def init(**options):
    note(init=options | {"dir": str(options.get("dir"))})
    print("noise")
    do("init")
    return Run()

class Run:
    def log(self, numbers, step, commit=True):
        do(f"step {step}")
        note(step=step, numbers=numbers)

    def finish(self):
        do("finish")
        note(finish=True)
"""


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """notes(kind) → what the package was given of that kind; both trackers are made up from here on."""
    for name in ("wandb", "trackio"):
        package = tmp_path / "packages" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    path = tmp_path / "notes.jsonl"
    monkeypatch.setenv("FAKE_NOTES", str(path))

    def read(kind):
        lines = map(json.loads, path.read_text().splitlines()) if path.exists() else []
        return [line[kind] for line in lines if kind in line]

    return read


def opened(folder, said, step=-1, *, tracker="wandb", overrides=(), differently=False):
    """The log of a run with a tracker, as train opens it after step `step`."""
    config = tiny.config(f"run.tracker={tracker}", *overrides)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return RunLog(folder, step, tracker=trackers.start(config, folder, said.append, step, differently))


def until(condition):
    """Waits for another process, a minute at most."""
    late = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < late
        time.sleep(0.02)


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_every_number_of_every_step_is_sent_once_and_nothing_else(notes, tmp_path, tracker):
    said = []
    log = opened(tmp_path / "my run", said, tracker=tracker)
    sample = {"question": "q", "rollouts": [{"text": "an answer"}]}
    for step in range(3):
        log.write(step, {"reward/mean": 0.5 + step, "loss/total": float("nan")}, [sample])
    log.close()
    assert notes("step") == [0, 1, 2]
    assert notes("numbers") == [{"reward/mean": 0.5 + step} for step in range(3)]
    assert len(notes("init")) == len(notes("finish")) == 1
    assert "an answer" not in json.dumps([notes("init"), notes("numbers")])
    state = tracker_process.read(tmp_path / "my run")
    assert state.sent == 2 and notes("init")[0]["name"] == f"my_run-{state.id}"
    assert notes("init")[0]["project"] == "dasd_jax" and said == []


def test_steps_that_are_done_again_after_a_kill_are_sent_once(notes, tmp_path):
    """The machine dies after step 2, whose checkpoint is of step 1."""
    folder, said = tmp_path / "run", []
    log = opened(folder, said)
    for step in range(3):
        log.write(step, {"a": float(step)})
    until(lambda: tracker_process.read(folder).sent == 2)
    os.killpg(log._tracker._process.pid, signal.SIGKILL)
    again = opened(folder, said, 1)
    for step in (2, 3):
        again.write(step, {"a": float(step)})
    again.close()
    assert notes("step") == [0, 1, 2, 3] and said == []
    first, second = notes("init")
    assert first["id"] == second["id"] and second["resume"] == "allow"


@pytest.mark.parametrize(
    ("resumed", "differently", "sent"), [(1, True, [0, 1, 2, 0, 1, 2, 3]), (2, True, [0, 1, 2, 3])]
)
def test_steps_that_are_done_again_with_other_settings_go_to_a_new_run(notes, tmp_path, resumed, differently, sent):
    """The tracker has step 2; from step 2 on, or from step 3 on, another learning rate counts."""
    folder, said = tmp_path / "run", []
    log = opened(folder, said)
    for step in range(3):
        log.write(step, {"a": float(step)})
    log.close()
    again = opened(folder, said, resumed, differently=differently)
    for step in range(resumed + 1, 4):
        again.write(step, {"a": 10.0 + step})
    again.close()
    assert notes("step") == sent
    first, second = notes("init")
    assert (first["id"] != second["id"]) == bool(said) == (resumed == 1)


def test_what_is_written_is_sent_even_if_the_run_is_killed_at_once(notes, tmp_path):
    log = opened(tmp_path / "run", [])
    for step in range(3):
        log.write(step, {"a": 1.0})
    log._tracker._process.stdin.close()  # all that the process sees of the end of the run's own
    until(lambda: notes("finish"))
    assert notes("step") == [0, 1, 2]


def test_a_run_that_gets_its_tracker_later_sends_the_earlier_steps_too(notes, tmp_path):
    folder = tmp_path / "run"
    log = opened(folder, [], tracker="")
    log.write(0, {"a": 1.0})
    log.close()
    assert not (folder / "tracker.json").exists() and notes("init") == []
    for tracker in ("trackio", "wandb"):
        opened(folder, [], 0, tracker=tracker).close()
    assert notes("step") == [0, 0]
    assert notes("init")[0]["name"] != notes("init")[1]["name"]


@pytest.mark.parametrize(("place", "sent"), [("init", 0), ("step 1", 1), ("finish", 3)])
@pytest.mark.parametrize("way", ["FAKE_RAISES", "FAKE_HANGS"])
def test_a_tracker_that_fails_is_said_once_and_counted_and_stops_nothing(
    notes, tmp_path, monkeypatch, place, sent, way
):
    monkeypatch.setenv(way, place)
    monkeypatch.setenv("PLANTED_KEY", "planted-secret-1")
    if way == "FAKE_HANGS":
        monkeypatch.setattr(trackers, "_HANGS_S", 0.3)
        monkeypatch.setattr(trackers, "ENDS_S", 0.3)
    folder, said = tmp_path / "run", []
    log = opened(folder, said)
    for step in range(3):
        log.write(step, {"a": 1.0})
        if step < sent:
            until(lambda step=step: tracker_process.read(folder).sent == step)
        elif way == "FAKE_HANGS" and not said:
            until(lambda: notes("init"))
            time.sleep(0.4)  # longer than is waited for it
    log.close()
    assert [line["step"] for line in log.lines] == [0, 1, 2]
    why = "RuntimeError, whose message holds a secret" if way == "FAKE_RAISES" else "0 s"
    assert said[0].startswith("warning: wandb is given up, and the run goes on without it: ") and why in said[0]
    lost = [f"wandb: {3 - sent} of 3 steps were not sent; metrics.jsonl has them all"] if sent < 3 else []
    assert said[1:] == lost
    assert log._tracker._process.returncode is not None
    # The next start tries again, and sends what is missing.
    monkeypatch.delenv(way)
    monkeypatch.setattr(trackers, "ENDS_S", 60)
    opened(folder, said, 2).close()
    assert notes("step") == [0, 1, 2] and len(said) == 1 + len(lost)


def test_the_reason_is_one_line_without_control_characters():
    reason = tracker_process._reason(RuntimeError("no \x1b[31m network\nhere" + "x" * 1000))
    assert reason.startswith("RuntimeError: no ␛[31m network here") and len(reason) == 300


def test_no_folder_of_a_path_leaves_the_machine(notes, tmp_path):
    home = os.path.expanduser("~")
    fields = {
        "model.weights": f"{home}/secret place/weights.gguf", "model.tokenizer": "~/secret/place/",
        "data.sources": f"('jsonl:{home}/secret/a.jsonl','tfds:../secret/b/','gym:lcm?min_value=1&size=40')",
    }  # fmt: skip
    log = opened(tmp_path / "run", [], overrides=[f"{name}={value}" for name, value in fields.items()])
    log.write(0, {"a": 1.0})
    log.close()
    config = notes("init")[0]["config"]
    assert config["model"]["weights"] == "weights.gguf" and config["model"]["tokenizer"] == "place"
    assert config["data"]["sources"] == ["jsonl:a.jsonl", "tfds:b", "gym:lcm?min_value=1&size=40"]
    assert "secret" not in json.dumps(config) and home not in json.dumps(config)
    assert config["optim"]["learning_rate"] == 1e-3


@pytest.mark.parametrize("left", ["nothing", "a folder of W&B"])
def test_a_package_that_is_missing_is_one_line_before_anything_is_written(tmp_path, monkeypatch, capsys, left):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", _only_folders(tmp_path, left != "nothing"))
    argv = ["train", tiny.TINY, f"--workdir={tmp_path / 'run'}", "--config.run.tracker=wandb"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as ended:
        cli.run(train.main)
    assert ended.value.code == 2 and not (tmp_path / "run").exists()
    line = "error: run.tracker: 'wandb': its package is not installed: expected `pip install wandb` first\n"
    assert capsys.readouterr().err == line


def _only_folders(folder, there):
    """find_spec where no tracker is installed; it may see a folder of that name."""
    if there:
        (folder / "wandb").mkdir()
    return lambda name: importlib_machinery.PathFinder.find_spec(name, [str(folder)])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("run.tracker=mlflow", "run.tracker: 'mlflow': expected one of '' (empty), wandb, trackio"),
        ("run.project=a/b", "run.project: 'a/b': expected 1 to 100 letters, digits"),
        ("run.project=", "run.project: '': expected 1 to 100 letters, digits"),
    ],
)
def test_a_wrong_field_is_one_line(override, said):
    with pytest.raises(UserError) as refused:
        tiny.config(override)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"tracker":"wandb","project":"p","id":"i","sent":"2"}'])
def test_a_damaged_tracker_json_is_one_line(notes, tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tracker.json").write_text(content)
    with pytest.raises(UserError, match="--workdir: .*tracker.json is damaged"):
        opened(tmp_path / "run", [])
    assert (tmp_path / "run" / "tracker.json").read_text() == content


def test_another_process_than_the_first_has_no_tracker(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.hosts, "is_main", lambda: False)
    config = tiny.config("run.tracker=wandb")
    trackers.check(config)
    assert trackers.start(config, tmp_path, print) is None and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_training_run_that_is_resumed_with_a_tracker_sends_each_step_once(notes, tmp_path, monkeypatch, capsys):
    train_here = tiny.command(monkeypatch)
    words = [
        f"--config.{field}" for field in (*tiny.SMALL, "run.steps=3", "run.checkpoint_every=2", "run.tracker=wandb")
    ]
    argv = [tiny.TINY, f"--workdir={tmp_path / 'run'}", *words]
    monkeypatch.setenv("FAKE_RAISES", "step 2")
    with monkeypatch.context() as broken:
        broken.setattr(train, "finish", lambda run: (_ for _ in ()).throw(UserError("killed")))
        assert train_here(*argv) == 2
    assert "wandb is given up" in capsys.readouterr().out
    monkeypatch.delenv("FAKE_RAISES")
    assert train_here(*argv) == 0
    assert notes("step") == [0, 1, 2, 3]
