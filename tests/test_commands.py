"""The commands as a person runs them: in processes of their own, on the tiny configuration."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import SMALL, TINY, command

from dasd_jax import cli, evaluate, generate
from dasd_jax.data.pipeline import PromptSet
from dasd_jax.errors import UserError
from dasd_jax.model.presets import PRESETS, preset
from dasd_jax.run import records

ROOT = Path(__file__).parents[1]
SHORT = [f"--config.{field}" for field in (*SMALL, "run.steps=4", "run.checkpoint_every=2")]
# In the environment of every run here: no file that one leaves may hold any of them.
SECRETS = {
    "HF_TOKEN": "hf_plantedplantedplanted1",
    "WANDB_API_KEY": "planted-by-the-test-2",
    "DB_PASSWORD": "planted-by-the-test-3",
}
IN_A_PROCESS = {"cwd": ROOT, "text": True, "env": os.environ | SECRETS}


def words(name, *args):
    return [sys.executable, "-m", f"dasd_jax.{name}", *args]


def run(name, *args, timeout=240):
    return subprocess.run(words(name, *args), **IN_A_PROCESS, capture_output=True, timeout=timeout, check=False)


def numbers(workdir):
    """metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/") and not k.endswith("_per_s")} for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run of four steps, as the command leaves it."""
    workdir = tmp_path_factory.mktemp("run") / "whole"
    done = run("train", TINY, f"--workdir={workdir}", *SHORT)
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def test_a_run_leaves_what_the_contract_lists(finished):
    workdir, stdout = finished
    names = {path.name for path in workdir.iterdir()}
    assert names == {
        "config.json", "metrics.jsonl", "samples.jsonl", "verdicts.jsonl", "tensorboard", "checkpoints", "heldout",
        "done.json",
    }  # fmt: skip
    metrics = numbers(workdir)
    assert [line["step"] for line in metrics] == [0, 1, 2, 3, 4]
    contract = (
        "reward/mean rollout/length_mean rollout/truncated_frac entropy/mean router/attract_frac router/repel_frac "
        "router/attract_mass router/repel_mass router/rows_off_frac gap/mean_abs gap/repel_kl credit/dense_abs_mean "
        "policy/logp_gap_mean policy/logp_gap_p999 policy/logp_gap_max policy/clip_frac optim/grad_norm "
        "tokens/padding_frac"
    )
    assert set(contract.split()) <= metrics[1].keys()
    assert metrics[1]["policy/logp_gap_max"] < 1e-4
    done = json.loads((workdir / "done.json").read_text())
    assert done["heldout"]["problems"] == 4
    assert done["objective"] == json.loads((workdir / "config.json").read_text())["objective"]
    assert "rise:" in stdout and str(workdir) in stdout
    samples = list(records.samples(workdir))
    rollouts = [rollout for sample in samples for rollout in sample["rollouts"]]
    assert len(rollouts) == 16
    for rollout in rollouts:
        for name in ("entropy", "gap", "route", "gate", "dense", "credit"):
            assert len(rollout["tokens"]) == len(rollout[name])
        assert len(rollout["offsets"]) == len(rollout["tokens"]) + 1
        np.testing.assert_allclose(rollout["credit"], rollout["advantage"] + np.array(rollout["dense"]), atol=1e-4)
        assert {len(pair["teacher"]) for pair in rollout["alternatives"]} == {5}
    for sample in samples:
        assert sample["question"] in sample["prompt"] and sample["prompt"] != sample["teacher_prompts"]["teacher"]
        assert sample["answer"] in sample["teacher_prompts"]["teacher"]
    for step in (0, 4):
        kept = list(records.answers(workdir / "heldout" / f"{step}.jsonl"))
        figures = json.loads((workdir / "heldout" / f"{step}.json").read_text())
        assert [np.mean(line["reward"]) for line in kept] == figures["per_problem"]
        assert all(len(line["text"]) == figures["samples"] for line in kept)


def test_no_file_of_a_run_and_nothing_that_it_prints_holds_a_secret(finished):
    workdir, stdout = finished
    written = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    assert len(written) > 10
    for name, value in SECRETS.items():
        assert value not in stdout
        assert [
            path for path, content in written.items() if value.encode() in content or name.encode() in content
        ] == []


# Each: a command line, and what stands in its config file where it has one.
SECRET_PLACES = {
    "override": [TINY, "--config.model.weights=planted-by-the-test-2"],
    "assignment": [TINY, "--config.data.sources=('jsonl:x?HF_TOKEN=0123456789planted',)"],
    "shape": [TINY, "--config.model.tokenizer=hf_planted0123456789planted"],
    "address": [TINY, "--config.model.weights=https://me:planted-password@host/file.gguf"],
    "signature": [TINY, "--config.model.weights=https://host/file.gguf?X-Goog-Signature=planted"],
    "workdir": [TINY, "--workdir=runs/planted-by-the-test-3"],
    "another flag": [TINY, "--note=planted-by-the-test-3"],
    "config file": ["--config=CONFIG"],
}


@pytest.mark.parametrize("place", SECRET_PLACES)
def test_a_secret_is_refused_at_the_door_and_not_repeated(place, refused, monkeypatch, tmp_path):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    config = tmp_path / "config.py"
    config.write_text(
        "from dasd_jax.config_files import shipped\n\n\ndef get_config(arg):\n"
        "    config = shipped('qwen_math:tiny')\n"
        "    config.model.weights = 'hf_planted0123456789planted'\n    return config\n"
    )
    args = [word.replace("CONFIG", str(config)) for word in SECRET_PLACES[place]]
    error = refused(f"--workdir={tmp_path / 'w'}", *args)
    assert error.startswith("error: a secret is in ") and "planted" not in error
    assert not (tmp_path / "w").exists()


def test_settings_that_only_look_like_secrets_are_let_in(monkeypatch):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/data/key.json")
    monkeypatch.setenv("COLOUR_KEY", "tiny")
    words = [TINY, "--config.model.weights=/data/key.json", "TOKENIZERS_PARALLELISM=false", "gs://a/b?size=3", "a:b@c"]
    cli.refuse_secrets(words)


def test_a_finished_run_is_not_run_again(finished, monkeypatch, capsys):
    workdir, _ = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    assert command(monkeypatch)(TINY, f"--workdir={workdir}", *SHORT) == 0
    assert f"{workdir} holds a finished run:" in capsys.readouterr().out
    assert (workdir / "metrics.jsonl").read_bytes() == before


def stopped(workdir, how, step):
    """What a run said that got a signal after a step, and its exit code."""
    process = subprocess.Popen(
        words("train", TINY, f"--workdir={workdir}", *SHORT), **IN_A_PROCESS, stdout=subprocess.PIPE
    )
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith(f"step {step}/"):
            os.kill(process.pid, how)
            break
    said.append(process.stdout.read())
    return "".join(said), process.wait(timeout=120)


@pytest.mark.slow
def test_a_run_that_is_killed_and_asked_to_stop_ends_the_same(finished, tmp_path):
    """Killed after its third step it goes on from the checkpoint of the second; asked to stop, from where it was."""
    workdir = tmp_path / "stopped"
    _, code = stopped(workdir, signal.SIGKILL, 3)
    began = (workdir / "config.json").read_bytes()
    assert json.loads(began)["data"]["now"]
    assert code == -9 and not (workdir / "done.json").exists()
    said, code = stopped(workdir, signal.SIGTERM, 3)
    assert code == 0 and f"resumed from {workdir / 'checkpoints' / '000002'}\n" in said
    assert re.search("^stopped by a signal after step 3; the same command goes on from here$", said, re.MULTILINE), said
    assert not (workdir / "done.json").exists()
    resumed = run("train", TINY, f"--workdir={workdir}", *SHORT)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resumed from {workdir / 'checkpoints' / '000003'}\n" in resumed.stdout
    assert numbers(workdir) == numbers(finished[0]) and (workdir / "config.json").read_bytes() == began
    for name in ("samples.jsonl", "verdicts.jsonl"):
        assert (workdir / name).read_bytes() == (finished[0] / name).read_bytes()
    for name in ("0", "4"):
        mine, theirs = (json.loads((d / "heldout" / f"{name}.json").read_text()) for d in (workdir, finished[0]))
        assert mine == theirs


def test_evaluate_and_generate_take_settings_and_the_newest_checkpoint_from_the_run(finished, monkeypatch, capsys):
    """An answer is the same in every process. What was evaluated with other settings is not overwritten."""
    workdir, _ = finished
    recorded = json.loads((workdir / "heldout" / "4.json").read_text())
    scored = run("evaluate", f"--workdir={workdir}")
    assert scored.returncode == 0, scored.stderr
    path = workdir / "eval" / "4.json"
    settings = json.loads(path.read_text())["settings"]
    assert json.loads(path.read_text()) == recorded | {"settings": settings}
    assert settings["run.eval_samples"] == 2 and settings["data.shots"] == 0
    before = path.read_bytes()
    again = run("evaluate", f"--workdir={workdir}", "--config.run.eval_samples=3")
    assert again.returncode == 2 and again.stderr == (
        f"error: --workdir: {path} was written with run.eval_samples = 2, not 3: "
        "expected the same settings, or the file renamed to keep both\n"
    )
    assert path.read_bytes() == before and {file.name for file in path.parent.iterdir()} == {"4.json", "4.jsonl"}
    question = [f"--workdir={workdir}", "--prompt=What is 1 + 1?"]
    answered = run("generate", *question)
    assert answered.returncode == 0, answered.stderr
    generate.main([TINY, *question, *SHORT])
    said = capsys.readouterr()
    assert answered.stdout == said.out != "\n" and f"answer of {workdir / 'checkpoints' / '000004'}:\n" in said.err


@pytest.mark.parametrize("main", [evaluate.main, generate.main], ids=["evaluate", "generate"])
def test_a_checkpoint_is_not_asked_in_words_that_its_run_did_not_use(main, finished, tmp_path):
    workdir, _ = finished
    checkpoint = workdir / "checkpoints" / "000004"
    prompt = ["--prompt=1 + 1?"] if main is generate.main else []
    for where in ([f"--workdir={workdir}"], [f"--workdir={tmp_path}", f"--checkpoint={checkpoint}"]):
        with pytest.raises(
            UserError, match=f"--config: data.shots = 1, but the run in {workdir} has 0: expected the run"
        ):
            main([TINY, *where, *SHORT, "--config.data.shots=1", *prompt])
    assert not (tmp_path / "eval").exists()


def test_a_workdir_of_another_config_is_refused_and_left_alone(finished, refused):
    workdir, _ = finished
    before = sorted((path, path.stat().st_mtime_ns) for path in workdir.rglob("*"))
    said = refused(TINY, f"--workdir={workdir}", *SHORT, "--config.rollout.max_new_tokens=8")
    assert said.startswith(
        f"error: --workdir: {workdir} belongs to a run with rollout.max_new_tokens = 16, not 8, which would lose "
    )
    assert refused(TINY, f"--workdir={workdir}", *SHORT, "--config.objective.beta=0.3").startswith(
        f"error: objective.beta: 0.3: the run in {workdir} is finished with 0.1: expected more run.steps as well"
    )
    assert sorted((path, path.stat().st_mtime_ns) for path in workdir.rglob("*")) == before


# Each: what is wrong on the command line, and the start of the one line that says so.
MISTAKES = {
    "unknown key": (["--config.optim.lr=1"], "--config.optim.lr: no such field"),
    "unknown group": (["--config.loss.beta=1"], "--config.loss.beta: no such field; did you mean"),
    "wrong type": (["--config.run.steps=many"], "--config.run.steps: 'many' is not a value of its type: expected a w"),
    "float for int": (["--config.run.steps=1.5"], "--config.run.steps: '1.5' is not"),
    "bool": (["--config.objective.dense_on_zero_adv=maybe"], "--config.objective.dense_on_zero_adv: 'maybe' is not"),
    "no value": (["--config.run.steps"], "--config.run.steps: no value: expected"),
    "unknown flag": (["--steps=3"], "--steps=3: unknown flag"),
    "budget above context": (["--config.rollout.max_new_tokens=500"], "rollout.max_new_tokens: 500 + rollout.prompt"),
    "group of one": (["--config.rollout.rollouts=1"], "rollout.rollouts: 1: expected 2 to 65536"),
    "negative temperature": (["--config.rollout.temperature=-1"], "rollout.temperature: -1.0: expected"),
    "top-p in training": (["--config.rollout.top_p=0.9"], "rollout.top_p: 0.9: expected 1.0 in training"),
    "infinite": (["--config.optim.learning_rate=inf"], "optim.learning_rate: inf: expected a finite number"),
    "no number": (["--config.objective.clip=nan"], "objective.clip: nan: expected a finite number"),
    "33 bits": (["--config.run.steps=4294967296"], "run.steps: 4294967296: expected a number of 32 bits"),
    "line break": (["--config.model.weights=a\nb"], "model.weights: 'a\\nb': expected text without control"),
    "too deep": (["--config.data.sources=" + "(" * 9999], "--config.data.sources: '((((("),
    "a billion processes": (["--config.rollout.verifier_workers=1000000000"], "rollout.verifier_workers: 1000000000"),
    "prompts of 8 GiB each": (["--config.rollout.prompt_length=2147483647"], "rollout.max_new_tokens: 16 + rollout.p"),
    "name too long": (["--config.model.tokenizer=" + "x" * 300], "model.tokenizer='xxx"),
    "weights' name too long": (["--config.model.weights=" + "x" * 300], "model.weights: xxx"),
    "source's name too long": (["--config.data.sources=('jsonl:" + "x" * 300 + "',)"], "data.sources: 'jsonl:xxx"),
    "folder's name too long": (["--config.data.sources=('tfds:" + "x" * 300 + "',)"], "data.sources: 'tfds:xxx"),
    "rho of 0": (["--config.objective.rho=0"], "objective.rho: 0.0: expected a number strictly between 0 and 1"),
    "rho of 1": (["--config.objective.rho=1.0"], "objective.rho: 1.0: expected"),
    "unknown method": (["--config.objective.method=ppo"], "objective.method: 'ppo': expected one of dasd, grpo, dapo,"),
    "full form of grpo": (
        ["--config.objective.method=grpo", "--config.objective.form=full"],
        "--config.objective.form=full: method grpo has no such field; it belongs to dasd, opsd",
    ),
    "fewer siblings than a teacher is shown": (
        ["--config.objective.method=rlcsd"],
        "rollout.rollouts: 4: expected at least 5: a teacher of method rlcsd is shown 4 siblings",
    ),
    "no solution for a teacher": (
        ["--config.objective.method=opsd", "--config.objective.context=solution"],
        "data.sources: none of the 124 training problems has a solution",
    ),
    "no end": (
        ["--config.rollout.verifier_deadline_s=inf"],
        "rollout.verifier_deadline_s: inf: expected a finite number",
    ),
    "no room": (
        ["--config.rollout.verifier_memory_mb=64"],
        "rollout.verifier_memory_mb: 64: expected 512 to 1048576 M",
    ),
    "no worker": (["--config.rollout.verifier_workers=0"], "rollout.verifier_workers: 0: expected 1 to 1024 processes"),
    "missing weights": (["--config.model.weights=/nowhere.gguf"], "model.weights: /nowhere.gguf does not exist"),
    "unknown preset": (["--config.model.preset=gpt"], "model.preset: 'gpt' is unknown"),
    "odd batch": (["--config.rollout.problems=5"], "rollout.problems: 5: expected a multiple of"),
    "mesh": (["--config.mesh.data=3"], "mesh: data=3 fsdp=-1 tensor=1 does not fit 1 device(s)"),
    "nothing fits": (["--config.rollout.prompt_length=8"], "data.sources: all 124 problems were dropped: 124"),
    "no solution to show": (
        ["--config.data.privileged=solution"],
        "data.privileged: 'solution': all 124 problems were",
    ),
    "missing file": (["--config.data.sources=('jsonl:/nowhere.jsonl',)"], "data.sources: 'jsonl:/nowhere.jsonl': no s"),
}


@pytest.fixture
def refused(monkeypatch, capsys):
    """What `train` says to arguments that it has to refuse; in this process, since one each would take minutes."""
    call = command(monkeypatch)

    def error_of(*argv) -> str:
        code, error = call(*argv), capsys.readouterr().err
        assert code == 2, error
        assert error.count("\n") == 1, error
        return error

    return error_of


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(mistake, refused, tmp_path):
    args, expected = MISTAKES[mistake]
    error = refused(TINY, f"--workdir={tmp_path / 'w'}", *args)
    assert error.startswith(f"error: {expected}"), error
    assert not (tmp_path / "w").exists()


def test_files_that_are_not_what_they_should_be_are_one_line_each(refused, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * 100)
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"question": "1+1?", "answer": "2"}\n{"question": "1+2?"\n')
    missing = tmp_path / "missing.jsonl"
    missing.write_text('{"question": "1+1?", "answer": "2"}\n{"question": "1+2?"}\n')
    config = tmp_path / "config.py"
    config.write_text("def get_config(arg):\n    return {}\n")
    byte = "--config.model.tokenizer=byte"
    for args, expected in (
        ([TINY, f"--config.model.weights={broken}", byte, "--config.model.preset="], "model.weights: "),
        (
            [TINY, f"--config.model.weights={broken}", byte, f"--config.model.sha256={'0' * 64}"],
            f"model.weights: {broken} has sha",
        ),
        ([TINY, f"--config.data.sources=('jsonl:{lines}',)"], f"data.sources: 'jsonl:{lines}': {lines}:2: not JSON"),
        ([TINY, f"--config.data.sources=('jsonl:{missing}',)"], f"data.sources: 'jsonl:{missing}': {missing}:2"),
        ([f"--config={config}"], f"--config: get_config of {config} returned dict: expected a ConfigDict"),
        (["--config=configs/nowhere.py"], "--config: configs/nowhere.py is not a Python file"),
        (["--config=configs/qwen_math.py:huge"], "--config: configs/qwen_math.py: unknown argument"),
        (["--config=configs/qwen_math.py"], "model.weights: empty: set --config.model.weights=PATH"),
        ([], "the following arguments are required: --config"),
    ):
        workdir = tmp_path / "w"
        error = refused(*args, f"--workdir={workdir}")
        assert error.startswith(f"error: {expected}"), error
        assert not workdir.exists()


@pytest.mark.slow
def test_views_that_differ_in_more_than_the_context_stop_the_run(monkeypatch, capsys, tmp_path):
    """The blank prompt is exchanged for the privileged one, as a template that differs between the views would do."""
    monkeypatch.setattr(PromptSet, "blank_teacher_batch", PromptSet.teacher_batch)
    args = [TINY, f"--workdir={tmp_path / 'w'}", *SHORT, "--config.guards.logp_gap_mean_max=1e-6"]
    assert command(monkeypatch)(*args) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: step 1: without privileged context the teacher is ") and error.count("\n") == 1
    assert [line["step"] for line in numbers(tmp_path / "w")] == [0]


def test_a_vocabulary_of_another_model_is_refused(refused, monkeypatch, tmp_path):
    wide = dataclasses.replace(preset("qwen3_tiny"), vocab_size=4096)
    monkeypatch.setitem(PRESETS, "qwen3_wide", wide)
    error = refused(TINY, f"--workdir={tmp_path / 'w'}", "--config.model.preset=qwen3_wide")
    assert error.startswith("error: model.tokenizer: its vocabulary of 259 does not belong to the model's 4096")
    assert not (tmp_path / "w").exists()


# Every command's file as `python -m` runs it, in one process: most of the time of one is JAX's import.
HELP = """
import runpy, sys

for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    try:
        runpy.run_module(f"dasd_jax.{name}", run_name="__main__")
    except SystemExit as ended:
        assert not ended.code, name
"""


def test_help_explains_and_exits_0():
    names = [path.stem for path in sorted((ROOT / "dasd_jax").glob("*.py")) if "cli.run(main)" in path.read_text()]
    assert {"train", "evaluate", "generate", "intervene", "prepare", "select", "fetch", "compile"} <= set(names)
    script = [sys.executable, "-W", "ignore", "-c", HELP, *names]
    shown = subprocess.run(script, **IN_A_PROCESS, capture_output=True, timeout=240, check=False)
    assert shown.returncode == 0 and not shown.stderr, shown.stderr
    for name in names:
        assert f"python -m dasd_jax.{name}" in shown.stdout


def test_the_progress_lines_say_what_is_left(finished):
    lines = [line for line in finished[1].splitlines() if line.startswith("step ")]
    assert len(lines) == 4
    assert all(line.startswith(f"step {number}/4 · reward ") for number, line in enumerate(lines, start=1))
    assert ["left" in line for line in lines] == [True, True, True, False]
