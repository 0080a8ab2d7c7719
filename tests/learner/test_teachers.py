"""Whose weights a teacher has: copies in the training state, against a loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dasd_jax.learner import checkpoint, teachers
from dasd_jax.methods import METHODS
from dasd_jax.model import param_table
from dasd_jax.model.presets import preset
from dasd_jax.objective.contract import View

MODEL = preset("qwen3_tiny")
VIEWS = {
    "live": View(),
    "start": View(weights="frozen"),
    "slow": View(weights="ema", rate=0.05),
    "same": View(context="solution", weights="ema", rate=0.05),
    "old": View(weights="snapshot", every=3),
}


def tree(value):
    return {"a": jnp.full((2, 3), value, jnp.float32), "b": {"c": jnp.full((4,), -value, jnp.float32)}}


def test_each_policy_has_one_copy_and_a_live_teacher_none():
    assert set(teachers.start(tree(1.0), VIEWS)) == {"frozen", "ema_0.05", "snapshot_3"}
    assert teachers.start(tree(1.0), {"live": View()}) == {}


def test_a_rate_of_a_twentieth_keeps_95_percent_of_the_average():
    copies = teachers.start(tree(1.0), VIEWS)
    after = teachers.advance(copies, VIEWS, tree(2.0), jnp.int32(1), jnp.bool_(True))
    np.testing.assert_allclose(after["ema_0.05"]["a"], 0.95 * 1.0 + 0.05 * 2.0, rtol=1e-6)
    np.testing.assert_allclose(after["ema_0.05"]["b"]["c"], -1.05, rtol=1e-6)


def test_copies_follow_a_plain_loop_and_the_average_waits_for_an_update():
    """Nine steps, of which the fourth updates nothing: the average stays, a snapshot is of every third step."""
    copies, average, snapshot = teachers.start(tree(0.0), VIEWS), 0.0, 0.0
    for step in range(1, 10):
        student, updated = float(step), step != 4
        copies = teachers.advance(copies, VIEWS, tree(student), jnp.int32(step), jnp.bool_(updated))
        average = 0.95 * average + 0.05 * student if updated else average
        snapshot = student if step % 3 == 0 else snapshot
        for key, expected in (("frozen", 0.0), ("ema_0.05", average), ("snapshot_3", snapshot)):
            np.testing.assert_allclose(copies[key]["a"], expected, rtol=1e-5, atol=1e-7)


def test_a_live_teacher_is_the_student_and_any_other_its_own_copy():
    copies = teachers.start(tree(1.0), VIEWS)
    assert teachers.weights(VIEWS["live"], tree(2.0), copies)["a"][0, 0] == 2.0
    assert teachers.weights(VIEWS["slow"], tree(2.0), copies)["a"][0, 0] == 1.0


@pytest.mark.parametrize(
    "fields",
    [{"weights": "ema"}, {"weights": "ema", "rate": 1.0}, {"rate": 0.1}, {"weights": "snapshot"}, {"weights": "mean"}],
    ids=str,
)
def test_a_view_without_what_its_policy_needs_is_refused(fields):
    with pytest.raises(ValueError, match="expected"):
        View(**fields)


def test_copies_come_back_from_a_checkpoint_and_not_from_the_start(mesh8, tmp_path):
    """Shapes and layouts are those of the parameters; their values are those that were saved."""
    optimizer = optax.sgd(0.1)
    params = param_table.init(MODEL, mesh8, 0)
    state = jax.jit(lambda p: checkpoint.new_state(p, optimizer, VIEWS))(params)
    moved = jax.tree.map(lambda x: x + 1, state.teachers)
    state = state.replace(step=state.step + 4, teachers=moved)
    writer = checkpoint.Writer(tmp_path, MODEL, keep=1)
    folder = writer.save(state)
    writer.wait()
    _, restored = checkpoint.restore(folder, mesh8, optimizer, VIEWS)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(restored.teachers), jax.tree.leaves(moved), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(jax.tree.leaves(restored.teachers["frozen"]), jax.tree.leaves(params), strict=True):
        assert a.sharding == b.sharding and a.dtype == jnp.float32


def test_the_abstract_state_has_the_copies_of_the_methods_views(mesh):
    abstract = checkpoint.abstract_state(param_table.abstract(MODEL, mesh), mesh, optax.sgd(0.1), VIEWS)
    assert set(abstract.teachers) == {"frozen", "ema_0.05", "snapshot_3"}
    dasd = METHODS["dasd"]
    assert not checkpoint.abstract_state(
        param_table.abstract(MODEL, mesh), mesh, optax.sgd(0.1), dasd.views(dasd.fields())
    ).teachers
