"""What --checkpoint names: whose results it gives, and which tokenizer and weights belong to it; without a model."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny
from text import tokenizer_samples
from tiny import config

from dasd_jax import evaluate, files, intervene
from dasd_jax.config import ModelGroup
from dasd_jax.data.sources import Problem
from dasd_jax.errors import UserError
from dasd_jax.learner import kept
from dasd_jax.mesh import make_mesh
from dasd_jax.run import models, origin, user_files
from dasd_jax.run.asked import Asked
from dasd_jax.run.evaluation import Answers, as_line, summary
from dasd_jax.text.tokenizer_files import load_tokenizer

EVALUATION = ("data.heldout=8", "run.eval_problems=4")


def checkpoint(folder, beside=None):
    """A folder that counts as a checkpoint, without arrays.

    Args:
        beside: name → content of the tokenizer's files.
    """
    folder.mkdir(parents=True)
    for name, content in (beside or {}).items():
        (folder / name).write_bytes(content)
    manifest = {"architecture": {"vocab_size": 512}, "files": kept.checksums(folder)}
    files.write_json(folder / "manifest.json", manifest)
    return folder


def run_of(folder, *overrides, step=16, beside=None, start=None):
    """A run with one checkpoint; returns its folder and that of the checkpoint."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(user_files.as_written(config(*overrides), {}, start=start)))
    return folder, checkpoint(folder / "checkpoints" / f"{step:06d}", beside)


# ------------------------------------------------------------------------------------------------ whose results


@pytest.fixture(params=[evaluate, intervene])
def command(request, monkeypatch):
    """call(*argv) of a command that writes results; where it would open it, LookupError of its name."""
    monkeypatch.setattr(request.param, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))

    def opened(self, *_):
        raise LookupError(self.name)

    monkeypatch.setattr(Asked, "open", opened)
    fields = [f"--config.{each}" for each in EVALUATION]
    return lambda *argv: request.param.main([*argv, *fields])


def test_results_of_another_runs_checkpoint_are_not_filed_as_a_step_of_this_one(command, tmp_path):
    """The line says what to type; typed, it is step 16 of the run that it belongs to."""
    mine, _ = run_of(tmp_path / "mine", *EVALUATION)
    other, there = run_of(tmp_path / "other", *EVALUATION, "objective.beta=0.3")
    for workdir in (mine, tmp_path / "new"):
        with pytest.raises(
            UserError, match=f"^--checkpoint: {there} belongs to .* expected --workdir={other} --checkpoint=16$"
        ):
            command("--config=configs/qwen_math.py:tiny", f"--workdir={workdir}", f"--checkpoint={there}")
    # Of a run with other problems too, and without --config.
    apart, elsewhere = run_of(tmp_path / "apart", *EVALUATION, "data.sources=('gym:gcd',)")
    with pytest.raises(
        UserError, match=f"data.sources = .* but the run in {apart} has .* and --workdir={apart} is given$"
    ):
        command(f"--workdir={mine}", f"--checkpoint={elsewhere}")
    assert len(list(mine.iterdir())) == 2 and not (tmp_path / "new").exists()
    with pytest.raises(LookupError, match="^16$"):
        command(f"--workdir={other}", "--checkpoint=16")


def test_a_path_into_the_run_itself_is_its_step_however_it_is_written(command, tmp_path, monkeypatch):
    run, there = run_of(tmp_path / "run", *EVALUATION)
    (tmp_path / "link").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    for workdir, which in ((run, there), ("run", there), (run, "run/checkpoints/000016/"), ("link", there)):
        with pytest.raises(LookupError, match="^16$"):
            command(f"--workdir={workdir}", f"--checkpoint={which}")


@pytest.mark.parametrize("name", ["000016", "16", "start", "mine"])
def test_a_checkpoint_outside_of_a_run_has_results_of_its_own_name(name, command, tmp_path):
    run, there = run_of(tmp_path / "run", *EVALUATION)
    alone = shutil.copytree(there, tmp_path / "elsewhere" / name)
    if name == "mine":
        with pytest.raises(LookupError, match="^mine$"):
            command(f"--workdir={run}", f"--checkpoint={alone}")
        return
    called = name.lstrip("0")
    with pytest.raises(
        UserError, match=f"^--checkpoint: {alone}: its results would be called as those of {called} of "
    ):
        command(f"--workdir={run}", f"--checkpoint={alone}")
    assert not (run / "eval").exists() and not (run / "intervene").exists()


def test_health_reads_the_results_of_the_checkpoint_that_is_meant(tmp_path, capsys):
    run, there = run_of(tmp_path / "run")
    _, others = run_of(tmp_path / "other")
    problem = Problem(question="1?", answer="1", source="gym:lcm", index=0, scorer="math")
    answers = [Answers(0, ["1", "2"], ["1", "2"], [1.0, 0.0], [3, 4], [True, True], ["", ""])]
    files.write_json(run / "eval" / "16.json", {**summary([problem], answers), "settings": {}})
    files.write_lines(run / "eval" / "16.jsonl", [{}, *(as_line([problem], each) for each in answers)])
    for which in ("", "16", "000016", str(there)):
        evaluate.read_again(run, which)
        assert f"written to {run / 'eval' / '16.json'}" in capsys.readouterr().out
    with pytest.raises(UserError, match="^--checkpoint: .*000016 belongs to the run in .*other, whose results"):
        evaluate.read_again(run, str(others))


# ------------------------------------------------------------------------------------------------ the tokenizer

OTHER = {
    "chat template": {"config": {"eos_token": "<|im_end|>", "chat_template": "{{ messages[0].content }}"}},
    "ids that end an answer": {"generation": {"eos_token_id": [2, 0, 1]}},
    "vocabulary": {"bpe": tokenizer_samples.train_bpe(tokenizer_samples.SMOLLM_WORDS)},
}
OTHER["vocabulary"]["bpe"].add_tokens(["forty-two"])


def hub(folder, generation=None, **more):
    """A folder with a tokenizer, written anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return tokenizer_samples.write_hub(folder, generation=generation or {"eos_token_id": [2, 0]}, **more)


def alike(a, b):
    return (a.chat_template, a.stop_ids, a.rules()) == (b.chat_template, b.stop_ids, b.rules())


@pytest.mark.parametrize("what", OTHER)
def test_a_checkpoint_is_asked_with_the_tokenizer_that_it_was_written_with(what, tmp_path):
    """And so is the start of its run; whatever lies behind model.weights or model.tokenizer today."""
    source = hub(tmp_path / "source")
    group, before = ModelGroup(weights="random", tokenizer=str(source)), load_tokenizer(str(source))
    run, there = run_of(tmp_path / "run", f"model.tokenizer={source}", beside=models.tokenizer_files(group))
    asked = [Asked.of(*each) for each in ((run, ""), (run, "16"), (run, "start"), (tmp_path / "new", str(there)))]
    hub(source, **OTHER[what])
    assert not alike(models.open_tokenizer(group), before)
    assert all(alike(each.tokenizer(group), before) for each in asked)
    shutil.rmtree(source)
    assert all(alike(each.tokenizer(group), before) for each in asked)


def test_without_a_copy_or_a_run_the_tokenizer_is_the_one_that_the_config_names(tmp_path):
    source, other = hub(tmp_path / "source"), hub(tmp_path / "other", **OTHER["chat template"])
    group, beside = (ModelGroup(weights="random", tokenizer=str(each)) for each in (source, other))
    alone = checkpoint(tmp_path / "alone", models.tokenizer_files(beside))
    unnamed = ModelGroup(weights=str(source))
    assert alike(Asked.of(tmp_path, str(alone)).tokenizer(group), load_tokenizer(str(source)))
    assert alike(Asked.of(tmp_path, str(alone)).tokenizer(unnamed), load_tokenizer(str(other)))
    run, _ = run_of(tmp_path / "run", f"model.tokenizer={source}")
    for which in ("", "start"):
        assert alike(Asked.of(run, which).tokenizer(group), load_tokenizer(str(source)))
    assert Asked.of(tmp_path / "new", "start").tokenizer(ModelGroup(weights="random", tokenizer="byte")).stop_ids == (
        load_tokenizer("byte").stop_ids
    )


@pytest.mark.parametrize("flag", ["--workdir", "--from"])
@pytest.mark.parametrize("what", OTHER)
def test_a_run_does_not_go_on_with_another_tokenizer_behind_the_same_path(what, flag, tmp_path):
    source = hub(tmp_path / "source")
    group = ModelGroup(weights="random", tokenizer=str(source))
    _, there = run_of(tmp_path / "run", beside=models.tokenizer_files(group))
    models.check_tokenizer(models.open_tokenizer(group), there, flag)
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2], "temperature": 0.7}))
    models.check_tokenizer(models.open_tokenizer(group), there, flag)  # nothing that decides a token
    hub(source, **OTHER[what])
    with pytest.raises(UserError, match=f"^{flag}: the tokenizer has changed since {there} was written: .*{what}"):
        models.check_tokenizer(models.open_tokenizer(group), there, flag)
    shutil.rmtree(there)
    checkpoint(there)
    models.check_tokenizer(models.open_tokenizer(group), there, flag)  # of an older version, without a copy


@pytest.mark.parametrize("flag", ["--workdir", "--from"])
def test_a_training_whose_stop_ids_have_changed_ends_before_its_checkpoint_is_read(flag, tmp_path, monkeypatch):
    """No prompt tells them apart."""
    source = hub(tmp_path / "source")
    named = f"model.tokenizer={source}"
    group = ModelGroup(weights="random", tokenizer=str(source))
    run, there = run_of(tmp_path / "run", named, step=2, beside=models.tokenizer_files(group))
    (there / "rest").mkdir()
    (there / "rest" / "of the state").write_text("")
    files.write_json(there / "manifest.json", {"files": kept.checksums(there)})
    said = []
    monkeypatch.setattr("dasd_jax.hosts.leave", lambda code, line: said.append((code, line)))
    monkeypatch.setattr(origin, "load", lambda *_: ("a model", "a state", ""))
    monkeypatch.setattr("dasd_jax.learner.checkpoint.restore", lambda *_: pytest.fail("the checkpoint is read"))
    hub(source, **OTHER["ids that end an answer"])
    where = [f"--workdir={run}"] if flag == "--workdir" else [f"--workdir={tmp_path / 'new'}", f"--from={run}"]
    tiny.command(monkeypatch)(tiny.TINY, *where, f"--config.{named}")
    [(code, line)] = said
    assert code == 2 and line.startswith(f"error: {flag}: the tokenizer has changed since {there} was written: ")
    assert ": the ids that end an answer: expected" in line and not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------------------------ the start


def test_the_start_of_a_run_is_not_asked_of_other_weights_than_it_began_with(tmp_path, monkeypatch, mesh):
    """Files of one size that are replaced; a run of an older version, which has noted nothing, is not compared."""
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"one")
    asked = config(f"model.weights={path}", "model.preset=", "model.tokenizer=byte")
    params = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "final_norm": np.ones(3, np.float32)}
    monkeypatch.setattr(models, "open_model", lambda config, mesh: ("a model", params))
    monkeypatch.setattr(models, "fingerprint", lambda config: "of the files")
    start = models.as_begun(asked, asked, params)
    overrides = (f"model.weights={path}", "model.preset=", "model.tokenizer=byte")
    begun, older = (run_of(tmp_path / name, *overrides, start=each)[0] for name, each in (("b", start), ("o", None)))
    assert Asked.of(begun, "start").open(asked, mesh) == ("of the files", "a model", params)
    params["w"][1, 2] = np.nextafter(params["w"][1, 2], 9)
    with pytest.raises(
        UserError, match=f"^--checkpoint: start: {path} holds other weights than when the run in {begun} "
    ):
        Asked.of(begun, "start").open(asked, mesh)
    assert Asked.of(older, "start").open(asked, mesh)[1] == "a model"


def test_what_is_noted_of_the_start(tmp_path):
    params = {"w": np.ones((2, 3), np.float32)}
    random, mine = config(), config("model.weights=a.gguf")
    pinned = config("model.weights=run/checkpoints/000002")
    assert models.as_begun(random, random, params) == {}  # run.seed and model.preset say it
    assert list(models.as_begun(mine, mine, params)) == ["fingerprint"] and models.as_begun(mine, mine, None) == {}
    assert models.as_begun(mine, pinned, None) == {"weights": "run/checkpoints/000002"}
    assert list(models.as_begun(mine, pinned, params)) == ["weights", "fingerprint"]
