"""Checkpoints: what is restored is what was saved, on any mesh, and what is not whole never counts."""

import errno
import shutil
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from dasd_jax.errors import TrainingError, UserError
from dasd_jax.learner import checkpoint, kept
from dasd_jax.model import param_table
from dasd_jax.model.presets import preset
from dasd_jax.objective.contract import View

MODEL = preset("qwen3_tiny")
OPTIMIZER = optax.adam(1e-3)
VIEWS = {"teacher": View(weights="ema", rate=0.05)}  # whose copy of the weights belongs to the state


def make_state(mesh, step):
    """A state whose every number is distinct from a fresh one's."""
    params = param_table.init(MODEL, mesh, step)
    state = jax.jit(lambda p: checkpoint.new_state(p, OPTIMIZER, VIEWS))(params)
    state = jax.tree.map(lambda x: x + 1 if x.dtype == np.int32 else x * 1.5 + 0.25, state)
    return state.replace(step=state.step * 0 + step, batches_drawn=state.step * 0 + step + 7)


def save(workdir, state, keep=2, **options):
    """One checkpoint, whole."""
    writer = checkpoint.Writer(workdir, MODEL, keep=keep)
    folder = writer.save(state, **options)
    writer.wait()
    return folder


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_state_comes_back_bit_for_bit(mesh, tmp_path):
    state = make_state(mesh, 3)
    folder = save(tmp_path, state)
    model, restored = checkpoint.restore(folder, mesh, OPTIMIZER, VIEWS)
    assert model == MODEL
    assert_equal(restored, state)


def test_a_state_comes_back_on_another_mesh(mesh, mesh8, tmp_path):
    with jax.set_mesh(mesh):
        state = make_state(mesh, 3)
        folder = save(tmp_path, state)
    _, restored = checkpoint.restore(folder, mesh8, OPTIMIZER, VIEWS)
    assert_equal(restored, state)
    layout = param_table.shardings(MODEL, mesh8)
    for tree in (restored.params, restored.opt_state[0].mu, restored.teachers["ema_0.05"]):
        for leaf, expected in zip(jax.tree.leaves(tree), jax.tree.leaves(layout), strict=True):
            assert leaf.sharding.is_equivalent_to(expected, leaf.ndim)


def test_what_happens_to_a_state_after_save_has_returned_is_not_written(mesh, tmp_path):
    """The next step reuses the state's memory while it is still being written."""

    @partial(jax.jit, donate_argnums=0)
    def next_step(state):
        return jax.tree.map(lambda x: x * 0 - 1, state)

    state, expected = make_state(mesh, 3), jax.device_get(make_state(mesh, 3))
    writer = checkpoint.Writer(tmp_path, MODEL, keep=2)
    folder = writer.save(state)
    state = jax.block_until_ready(next_step(state))
    writer.wait()
    _, restored = checkpoint.restore(folder, mesh, OPTIMIZER, VIEWS)
    assert_equal(restored, expected)


def test_a_save_that_does_not_happen_is_an_error_and_the_one_before_stays(mesh, tmp_path, monkeypatch):
    """Raised at the next look, whether it fails at once or while the run has gone on."""
    writer = checkpoint.Writer(tmp_path, MODEL, keep=1)
    writer.save(make_state(mesh, 1))
    writer.wait()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.files, "write_json", full)
        writer.save(make_state(mesh, 2))
        with pytest.raises(TrainingError, match="checkpoint 000002 could not be written: No space left on device: "):
            writer.wait()
        with pytest.raises(TrainingError, match="checkpoint 000002"):
            writer.save(make_state(mesh, 3))
    assert kept.latest(tmp_path, set_aside=True).name == "000001"

    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").write_text("no folder")
    with pytest.raises(TrainingError, match="checkpoint 000004 could not be written: "):
        checkpoint.Writer(tmp_path, MODEL, keep=1).save(make_state(mesh, 4))


def test_some_stay_for_good(mesh, tmp_path):
    writer = checkpoint.Writer(tmp_path, MODEL, keep=1, keep_every=4)
    for step in (2, 4, 6, 8, 10):
        writer.save(make_state(mesh, step))
    writer.wait()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["000004", "000008", "000010"]


def test_only_the_newest_are_kept(mesh, tmp_path):
    for step in (2, 4, 10):
        save(tmp_path, make_state(mesh, step))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["000004", "000010"]
    assert kept.latest(tmp_path, set_aside=True).name == "000010"


def test_the_best_one_stays_until_there_is_a_better_one(mesh, tmp_path, capsys):
    for step, best in ((1, True), (2, False), (3, False), (4, True), (5, False)):
        save(tmp_path, make_state(mesh, step), keep=1, best=best)
        assert kept.find(tmp_path, "best").name == ("000001" if step < 4 else "000004")
    folders = sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir())
    assert folders == ["000004", "000005"]
    with pytest.raises(UserError, match="--checkpoint: best"):
        kept.find(tmp_path / "other", "best")
    assert not capsys.readouterr().err
    (tmp_path / "checkpoints" / "000005" / "manifest.json").write_text("{")
    assert kept.find(tmp_path, "best").name == "000004"
    said = capsys.readouterr().err
    assert said == f"note: {tmp_path}/checkpoints/000005 may be better, and its manifest is damaged; step 4 is used\n"


@pytest.mark.parametrize("damage", ["flipped byte", "no manifest", "cut manifest", "missing file", "empty folder"])
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_used(damage, mesh, tmp_path, capsys):
    for step in (2, 4):
        save(tmp_path, make_state(mesh, step))
    newest = tmp_path / "checkpoints" / "000004"
    data = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    if damage == "flipped byte":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    elif damage == "cut manifest":
        (newest / "manifest.json").write_text('{"files": {')
    elif damage == "missing file":
        data.unlink()
    else:
        (tmp_path / "checkpoints" / "000009").mkdir()
    # Whoever only reads leaves it alone: the run may be writing it.
    whole = kept.find(tmp_path, "")
    said = capsys.readouterr()
    assert whole == kept.latest(tmp_path, set_aside=False) and not said.out
    # One that was finished is not passed over in silence; an unfinished one is, as while it is written.
    if damage in ("no manifest", "empty folder"):
        assert not said.err
    else:
        assert said.err.startswith(f"note: {newest} is damaged: ") and said.err.endswith("; step 2 is used\n")
        assert said.err.count("\n") == 1
    capsys.readouterr()
    found = kept.latest(tmp_path, set_aside=True)
    assert found.name == ("000004" if damage == "empty folder" else "000002")
    unfinished = damage in ("no manifest", "empty folder")
    assert ("it was never finished; removed" if unfinished else "set aside as") in capsys.readouterr().out
    assert kept.latest(tmp_path, set_aside=True) == found
    _, state = checkpoint.restore(found, mesh, OPTIMIZER, VIEWS)
    assert_equal(state, make_state(mesh, int(found.name)))


def test_where_none_is_whole_nothing_begins_again_in_silence(mesh, tmp_path):
    for step in (2, 4):
        save(tmp_path, make_state(mesh, step))
        (tmp_path / "checkpoints" / f"{step:06d}" / "manifest.json").write_text("{")
    for _ in range(2):
        with pytest.raises(UserError, match=r"no checkpoint is valid, the newest is 000004\.damaged: expected another"):
            kept.latest(tmp_path, set_aside=True)
    shutil.rmtree(tmp_path / "checkpoints")
    assert kept.latest(tmp_path, set_aside=True) is None


@pytest.mark.parametrize("name", ["manifest.json", "_METADATA"])
def test_one_that_cannot_be_read_is_no_damaged_one(name, mesh, tmp_path, monkeypatch):
    """As in a bucket whose permission is gone: it stays where it is."""
    for step in (2, 4):
        save(tmp_path, make_state(mesh, step))
    opened = Path.open

    def refuse(path, *args, **kwargs):
        if path.name == name and "000004" in path.parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError):
        kept.latest(tmp_path, set_aside=True)
    with pytest.raises(UserError, match=f"--checkpoint: .*{name}: Permission denied: expected readable files"):
        kept.find(tmp_path, "4")
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["000002", "000004"]


def test_a_checkpoint_that_is_named_and_not_there_is_refused_with_those_that_are(mesh, tmp_path):
    save(tmp_path, make_state(mesh, 2))
    with pytest.raises(UserError, match=r"--checkpoint: 5: .* expected a path or a step of 2"):
        kept.find(tmp_path, "5")
    with pytest.raises(UserError, match="has no valid checkpoint"):
        kept.find(tmp_path / "elsewhere", "")
    assert kept.find(tmp_path, "2") == kept.find(tmp_path, "") == tmp_path / "checkpoints" / "000002"
