"""Weights change their form and nothing else."""

import dataclasses
import json
import os
import shutil
import sys

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models

from dasd_jax import cli, convert
from dasd_jax.learner import checkpoint, kept
from dasd_jax.model import hf, param_table
from dasd_jax.model.presets import preset
from dasd_jax.run.models import load_weights
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
    first, ours, back = tmp_path / "first", tmp_path / "ours", tmp_path / "back"
    convert.main([f"--source={folder}", f"--output={first}", "--format=hf"])
    convert.main([f"--source={first}", f"--output={ours}", "--format=checkpoint"])
    assert not kept.damage(ours)
    convert.main([f"--source={ours}", f"--output={back}", "--format=hf"])
    assert files(back, "") == files(first, "") and files(back) == files(folder)
    assert load_tokenizer(str(ours)).stop_ids == load_tokenizer(str(back)).stop_ids == (2,)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "first", "hf", "ours"]


def change(file, **fields):
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | fields))


def exported(folder, tmp_path, *flags):
    """(config.json, generation_config.json) of the exported folder."""
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    convert.main([f"--source={folder}", f"--output={out}", "--format=hf", *flags])
    return [json.loads((out / name).read_text()) for name in ("config.json", "generation_config.json")]


@pytest.mark.parametrize("through", ["hf", "checkpoint"])
def test_every_id_that_ends_a_text_is_named_in_the_export(folder, tmp_path, through):
    """Wherever the source names it, also through a checkpoint, which has no config.json of that format."""
    change(folder / "config.json", eos_token_id=[1], bos_token_id=0)
    change(folder / "generation_config.json", temperature=0.6, pad_token_id=0, _from_model_config=True)
    source = folder
    if through == "checkpoint":
        source = tmp_path / "ours"
        convert.main([f"--source={folder}", f"--output={source}", "--format=checkpoint"])
    ids = {"eos_token_id": [2, 1], "bos_token_id": 0, "pad_token_id": 0}
    config, generation = exported(source, tmp_path)
    assert generation == {"temperature": 0.6} | ids
    assert {name: config[name] for name in ids} == ids
    assert load_tokenizer(str(tmp_path / "out")).stop_ids == (2, 1)


def test_ids_are_exported_without_a_tokenizer_and_their_absence_is_said(folder, tmp_path, capsys):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    config, generation = exported(folder, tmp_path)
    assert generation == {} and config["eos_token_id"] is None  # null: the classes of transformers have defaults
    assert "no file names an end-of-text token" in capsys.readouterr().out
    change(folder / "config.json", eos_token_id=7)
    config, generation = exported(folder, tmp_path)
    assert generation["eos_token_id"] == config["eos_token_id"] == 7
    assert "no file names" not in capsys.readouterr().out


def test_exported_files_can_be_read_by_others(folder, tmp_path):
    (folder / "tokenizer.json").chmod(0o600)
    exported(folder, tmp_path)
    previous = os.umask(0o022)
    os.umask(previous)
    for path in (tmp_path / "out").iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~previous, path.name


def test_names_that_transformers_5_gave_are_exported_under_older_ones_too(folder, tmp_path):
    names = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["one"]}
    change(folder / "tokenizer_config.json", **names)
    exported(folder, tmp_path)
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["additional_special_tokens"] == ["one"] and "extra_special_tokens" not in written


def test_a_converted_checkpoint_and_a_run_are_weights(folder, mesh, tmp_path):
    """The newest checkpoint of a run gives what it holds; in float32 nothing is rounded."""
    config, params = hf.load(folder, mesh)
    state = params | {"final_norm": params["final_norm"] + 2**-20}
    checkpoint.write(tmp_path / "run" / "checkpoints" / "000007", config, {"params": state})
    (tmp_path / "run" / "config.json").write_text(json.dumps({"model": {"tokenizer": "", "weights": str(folder)}}))
    out = tmp_path / "out"
    convert.main([f"--source={tmp_path / 'run'}", f"--output={out}", "--format=hf", "--dtype=float32"])
    loaded_config, loaded = load_weights(str(out), mesh)
    assert loaded_config == config and (out / "tokenizer.json").exists()
    jax.tree.map(np.testing.assert_array_equal, loaded, state)
    of_checkpoint = load_weights(str(tmp_path / "run" / "checkpoints" / "000007"), mesh)[1]
    jax.tree.map(np.testing.assert_array_equal, of_checkpoint, state)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_what_a_float32_run_has_learnt_is_not_rounded_away_unasked(folder, mesh, tmp_path, capsys, compute):
    """A step of 2^-12 of each value, as of a small learning rate, is below bfloat16's grid of 2^-8."""
    config, params = hf.load(folder, mesh)
    learnt = jax.tree.map(lambda x: x * (1 + 2**-12), params)
    run = tmp_path / "run" / "checkpoints" / "000001"
    checkpoint.write(run, dataclasses.replace(config, compute_dtype=compute), {"params": learnt})
    whole = param_table.num_params(config)
    changed = sum(np.count_nonzero(np.asarray(x)) for x in jax.tree.leaves(params))
    some = f"{changed:,} of {whole:,} values"

    def exported(dtype, *flags):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        convert.main([f"--source={run}", f"--output={out}", "--format=hf", *flags])
        assert json.loads((out / "config.json").read_text())["torch_dtype"] == dtype
        return hf.load(out, mesh)[1], capsys.readouterr().out

    kept, said = exported(compute)
    jax.tree.map(np.testing.assert_array_equal, kept, learnt if compute == "float32" else params)
    if compute == "float32":
        assert f"--dtype=bfloat16 would round {some}\n" in said
        kept, said = exported("bfloat16", "--dtype=bfloat16")
        jax.tree.map(np.testing.assert_array_equal, kept, params)
    assert f"{some} were rounded to bfloat16; --dtype=float32 keeps them\n" in said
    assert "rounded" not in exported("float32", "--dtype=float32")[1]


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
        ([f"--source={damaged}", f"--output={tmp_path / 'out'}"], f"model.weights: {damaged} is damaged: model.safe"),
        ([f"--source={folder}", f"--output={tmp_path / 'out'}", "--tokenizer=/nowhere"], "model.tokenizer='/nowhere'"),
        (
            [f"--source={folder}", f"--output={tmp_path / 'out'}", "--tokenizer=byte"],
            "model.tokenizer='byte': expected",
        ),
        (
            [f"--source={tmp_path / 'run'}", f"--output={tmp_path / 'out'}"],
            f"--source: {tmp_path / 'run'} has no finished checkpoint",
        ),
        (
            [f"--source={folder}", f"--output={tensors}/out"],
            f"--output: {tensors}/out: {tensors} is not a writable folder",
        ),
        (
            [f"--source={folder}", f"--output={tmp_path / 'out'}", "--dtype=bfloat16", "--format=checkpoint"],
            "--dtype: bfloat16: a checkpoint is in float32: expected --format=hf with it",
        ),
    ):
        monkeypatch.setattr(sys, "argv", ["convert", "--format=hf", *args])
        with pytest.raises(SystemExit) as stopped:
            cli.run(convert.main)
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.count("\n") == 1
        assert error.startswith(f"error: {expected}"), error
        assert sorted(tmp_path.iterdir()) == before
