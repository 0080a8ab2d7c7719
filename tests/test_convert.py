"""Weights change their form and nothing else."""

import json
import shutil
import sys

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models

from dasd_jax import cli, convert
from dasd_jax.learner import checkpoint
from dasd_jax.model import hf, param_table
from dasd_jax.model.presets import preset
from dasd_jax.run import setup
from dasd_jax.text.tokenizer_files import load_tokenizer

TINY = preset("qwen3_tiny")


@pytest.fixture
def folder(mesh, tmp_path):
    """A Hugging Face folder in bfloat16 with a tokenizer of three words."""
    path = tmp_path / "hf"
    hf.save(path, TINY, param_table.init(TINY, mesh, 3))
    tokenizer = Tokenizer(models.WordLevel({"one": 0, "two": 1, "<end>": 2}, unk_token="one"))
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    return path


def files(path, ending=".safetensors"):
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name.endswith(ending)}


def test_there_and_back_again_holds_the_same_bytes(folder, tmp_path):
    ours, back = tmp_path / "ours", tmp_path / "back"
    convert.main([f"--source={folder}", f"--output={ours}", "--format=checkpoint"])
    assert not checkpoint.damage(ours)
    convert.main([f"--source={ours}", f"--output={back}", "--format=hf"])
    assert files(back, "") == files(folder, "")
    assert load_tokenizer(str(ours)).stop_ids == load_tokenizer(str(back)).stop_ids == (2,)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "hf", "ours"]


def test_a_converted_checkpoint_and_a_run_are_weights(folder, mesh, tmp_path):
    """The newest checkpoint of a run gives what it holds; in float32 nothing is rounded."""
    config, params = hf.load(folder, mesh)
    state = params | {"final_norm": params["final_norm"] + 2**-20}
    checkpoint.write(tmp_path / "run" / "checkpoints" / "000007", config, {"params": state})
    (tmp_path / "run" / "config.json").write_text(json.dumps({"model": {"tokenizer": "", "weights": str(folder)}}))
    out = tmp_path / "out"
    convert.main([f"--source={tmp_path / 'run'}", f"--output={out}", "--format=hf", "--dtype=float32"])
    loaded_config, loaded = setup.load_weights(str(out), mesh)
    assert loaded_config == config and (out / "tokenizer.json").exists()
    jax.tree.map(np.testing.assert_array_equal, loaded, state)
    of_checkpoint = setup.load_weights(str(tmp_path / "run" / "checkpoints" / "000007"), mesh)[1]
    jax.tree.map(np.testing.assert_array_equal, of_checkpoint, state)


def test_the_tokenizer_that_is_named_is_the_one_that_goes_along(folder, tmp_path):
    """Under any name, beside others, and under the name by which a folder's is found."""
    other = Tokenizer(models.WordLevel({"uno": 0, "<end>": 1}, unk_token="uno"))
    other.save(str(folder / "mine.json"))
    out = tmp_path / "out"
    convert.main([f"--source={folder}", f"--output={out}", "--format=hf", f"--tokenizer={folder / 'mine.json'}"])
    assert load_tokenizer(str(out)).encode("uno") == [0] and load_tokenizer(str(out)).stop_ids == (1,)


def test_mistakes_are_one_line_and_leave_nothing_behind(folder, tmp_path, monkeypatch, capsys):
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    tensors = damaged / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1000])
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    before = sorted(tmp_path.iterdir())
    for args, expected in (
        (["--source=/nowhere", f"--output={tmp_path / 'out'}"], "--source: /nowhere does not exist: expected"),
        ([f"--source={folder}", f"--output={damaged}"], f"--output: {damaged} exists: expected"),
        ([f"--source={damaged}", f"--output={tmp_path / 'out'}"], f"model.weights: {damaged} is damaged: Safetensor"),
        ([f"--source={folder}", f"--output={tmp_path / 'out'}", "--tokenizer=/nowhere"], "model.tokenizer='/nowhere'"),
        (
            [f"--source={folder}", f"--output={tmp_path / 'out'}", "--tokenizer=byte"],
            "model.tokenizer='byte': expected",
        ),
        (
            [f"--source={tmp_path / 'run'}", f"--output={tmp_path / 'out'}"],
            f"--source: {tmp_path / 'run'} has checkpoints",
        ),
        (
            [f"--source={folder}", f"--output={tensors}/out"],
            f"--output: {tensors}/out: {tensors} is not a writable folder",
        ),
    ):
        monkeypatch.setattr(sys, "argv", ["convert", *args, "--format=hf"])
        with pytest.raises(SystemExit) as stopped:
            cli.run(convert.main)
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.count("\n") == 1
        assert error.startswith(f"error: {expected}"), error
        assert sorted(tmp_path.iterdir()) == before
