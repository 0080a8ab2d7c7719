"""Which weights a path stands for: the newest checkpoint of a run that goes on, and files that are replaced.

Nothing here is a model: what is loaded is named, and not read.
"""

import json
import os

import pytest
from tiny import config

from dasd_jax import select
from dasd_jax.data.pipeline import PromptSet
from dasd_jax.errors import UserError
from dasd_jax.run import models, partial, setup, user_files
from dasd_jax.run.asked import Asked
from dasd_jax.text.tokenizer_files import load_tokenizer


def of(path):
    return config(f"model.weights={path}", "model.preset=", "model.tokenizer=byte")


def gguf(folder):
    (folder / "m-00001-of-00002.gguf").write_bytes(b"first")
    (folder / "m-00002-of-00002.gguf").write_bytes(b"a" * 3_000_000)
    return folder / "m-00001-of-00002.gguf", folder / "m-00002-of-00002.gguf"


def hugging_face(folder):
    names = ("a.safetensors", "b.safetensors")
    index = {"weight_map": dict(zip(("x", "y"), names, strict=True))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    for name in (*names, "adapter.safetensors"):
        (folder / name).write_bytes(b"a" * 3_000_000)
    return folder, folder / "b.safetensors"


def run_of(folder, *steps):
    """A folder with the manifests of checkpoints."""
    for step in steps:
        path = folder / "checkpoints" / f"{step:06d}" / "manifest.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"step": step}))
    return folder


@pytest.mark.parametrize("kind", [gguf, hugging_face])
def test_files_of_one_size_and_date_are_told_apart_wherever_they_differ(kind, tmp_path):
    path, part = kind(tmp_path)
    before, date = models.fingerprint(of(path)), part.stat().st_mtime_ns
    content = bytearray(part.read_bytes())
    content[1_500_000] ^= 1
    part.write_bytes(content)
    os.utime(part, ns=(date, date))
    assert models.fingerprint(of(path)) != before
    content[1_500_000] ^= 1
    part.write_bytes(content)  # at another time
    (tmp_path / "adapter.safetensors").write_bytes(b"no part of the model")
    assert models.fingerprint(of(path)) == before


def test_the_architecture_of_a_folder_belongs_to_its_weights_and_a_missing_file_is_one_line(tmp_path):
    path, part = hugging_face(tmp_path)
    before = models.fingerprint(of(path))
    (path / "config.json").write_text('{"rope_theta": 1}')
    assert models.fingerprint(of(path)) != before
    part.unlink()
    with pytest.raises(UserError, match=f"^model.weights: {path} lacks b.safetensors"):
        models.fingerprint(of(path))


def test_random_weights_are_told_apart_by_the_config(tmp_path):
    assert models.fingerprint(config()) == "" and models.pinned(config(), tmp_path) == config()


def test_a_run_starts_from_the_newest_checkpoint_of_another_and_stays_with_it(tmp_path):
    other, new = run_of(tmp_path / "other", 2), tmp_path / "new"
    asked, at = of(other), lambda step: str(other / "checkpoints" / f"{step:06d}")
    begun = models.pinned(asked, new)
    assert begun.model.weights == at(2) and models.pinned(begun, new) == begun
    before = models.fingerprint(asked)
    run_of(other, 4)
    assert models.pinned(asked, new).model.weights == at(4)
    assert models.fingerprint(asked) != before == models.fingerprint(begun)
    new.mkdir()
    content = user_files.as_written(asked, {}, start={"weights": at(2)})
    (new / "config.json").write_text(json.dumps(content))
    assert models.pinned(asked, new) == begun
    (other / "checkpoints" / "000002").rename(tmp_path / "gone")
    with pytest.raises(UserError, match=f"^model.weights: {at(2)} does not exist: expected"):
        models.pinned(asked, new)


def test_answers_of_the_start_are_those_of_the_weights_that_they_were_sampled_from(tmp_path, monkeypatch, mesh):
    """evaluate and intervene: their files are refused where the weights, or what ends an answer, are others."""
    monkeypatch.setattr(models, "open_model", lambda config, mesh: (config.model.weights, None))
    other = run_of(tmp_path / "other", 2)
    asked, bytes_ = of(other), load_tokenizer("byte")

    def settings():
        source = Asked.of(tmp_path / "new", "start")
        manifest, loaded, _ = source.open(asked, mesh)
        prompts = setup.open_evaluation(asked, bytes_)
        return loaded, partial.deciding(asked, mesh, bytes_, source.name, manifest, prompts, prompts.problems[:2])

    loaded, before = settings()
    assert loaded == str(other / "checkpoints" / "000002") and settings() == (loaded, before)
    path = tmp_path / "start.partial.jsonl"
    run_of(other, 4)
    loaded, after = settings()
    assert loaded == str(other / "checkpoints" / "000004")
    with pytest.raises(UserError, match="start.partial.jsonl was written with manifest = "):
        partial.check_same(json.loads(json.dumps(before)), after, path, "removed to start over")
    monkeypatch.setattr(type(bytes_), "stop_ids", (7,))
    with pytest.raises(UserError, match=r"was written with stop ids = \[.*\], not \[7\]"):
        partial.check_same(json.loads(json.dumps(after)), settings()[1], path, "removed to start over")


def test_scores_of_a_selection_belong_to_the_weights_that_gave_them(tmp_path, monkeypatch, mesh):
    monkeypatch.setattr(select, "PromptSet", lambda *_, **more: PromptSet.__new__(PromptSet))
    monkeypatch.setattr(PromptSet, "digest", lambda _: "")
    asked, bytes_ = of(run_of(tmp_path / "other", 2)), load_tokenizer("byte")
    before = select._settings(asked, mesh, bytes_, [], ["a", "b"], [])
    run_of(tmp_path / "other", 4)
    assert before != select._settings(asked, mesh, bytes_, [], ["a", "b"], [])
