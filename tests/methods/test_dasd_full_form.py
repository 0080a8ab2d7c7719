"""DASD's full form: the exact expectation of the sampled form over the token that is drawn, bounded on both arms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import objective_oracle as oracle
import pytest

from dasd_jax.methods.dasd import METHOD, DasdParams
from dasd_jax.objective.surrogate import ClipRange, clipped
from dasd_jax.objective.token_stats import token_logp, token_logp_and_divergence

ROWS, WIDTH, D, V = 2, 3, 4, 5
T = 0.9
# Row constants and directions of both signs; the second row's small scale drives gaps into the clip.
SCALE = np.array([0.8, 0.15], np.float32)
ROUTE = np.array([[0.1, -0.07, 0.03], [-0.1, 0.05, -0.02]], np.float32)


def two_views(seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: (0.7 * rng.normal(size=shape)).astype(np.float32)  # noqa: E731
    return normal(ROWS, WIDTH, D), normal(V, D), normal(ROWS, WIDTH, D), normal(V, D)


@partial(jax.jit, static_argnames=("hp", "chunk"))
def full_form(student_hidden, student_unembed, teacher_hidden, teacher_unembed, hp, scale=SCALE, kl=ROUTE, chunk=2):
    """The loss's term over the vocabulary, with `kl` in the place of weight · β · route."""
    _, diverged = token_logp_and_divergence(
        (student_hidden, student_unembed),
        [(teacher_hidden, teacher_unembed)],
        np.zeros((ROWS, WIDTH), np.int32),
        METHOD.divergence(hp),
        scale,
        temperature=T,
        chunk=chunk,
    )
    return jnp.sum(kl * diverged)


def full(**changes):
    return DasdParams(form="full", **changes)


def sampled_credit(views, hp):
    """c(v) = β · route · gate(d(v)) · d(v) in float64 at every entry of the vocabulary, and the student's π(v)."""
    student, teacher = oracle.log_probs(*views[:2], T), oracle.log_probs(*views[2:], T)
    d = oracle.gated(teacher - student, SCALE[:, None, None], clip=hp.clip, gate=hp.gate)
    if hp.clip:
        assert (np.abs(teacher - student) / SCALE[:, None, None] > hp.clip).any(), "the clip has nothing to do"
    return ROUTE[..., None] * d, np.exp(student)


@pytest.mark.parametrize(
    ("changes", "verifier", "chunk"),
    [
        ({}, 0.0, 1),
        ({}, 0.0, 2),  # does not divide the response
        ({}, 0.7, 3),  # the verifier's part has expectation 0
        ({"clip": 0.0}, 0.0, 3),
        ({"gate": "none", "clip": 0.5}, 0.0, 3),
    ],
    ids=str,
)
def test_gradient_of_the_full_form_is_the_expected_gradient_of_the_sampled_form(changes, verifier, chunk):
    hp = full(**changes)
    views = two_views()
    credit, probability = sampled_credit(views, hp)
    student_hidden, student_unembed = views[:2]
    # Every position meets every word once, weighted by its probability: V copies of the rows, one for each word.
    words = np.repeat(np.arange(V, dtype=np.int32), ROWS)[:, None] * np.ones((1, WIDTH), np.int32)
    weighted = np.concatenate(list(np.moveaxis(probability * (verifier + credit), -1, 0))).astype(np.float32)

    def sampled(hidden, unembed, old_logp):
        logp = token_logp((jnp.concatenate([hidden] * V), unembed), words, temperature=T, chunk=chunk)
        return -jnp.sum(clipped(logp, old_logp, weighted, ClipRange(0.2, 0.28))[0])

    old_logp = token_logp((np.concatenate([student_hidden] * V), student_unembed), words, temperature=T, chunk=chunk)
    want = jax.jit(jax.grad(sampled, argnums=(0, 1)))(student_hidden, student_unembed, old_logp)
    got = jax.jit(jax.grad(lambda h, u: full_form(h, u, *views[2:], hp, chunk=chunk), argnums=(0, 1)))(*views[:2])
    for mine, theirs in zip(got, want, strict=True):
        assert np.abs(theirs).max() > 0.01
        assert np.abs(np.asarray(mine) - np.asarray(theirs)).max() < 1e-6


def test_value_of_the_full_form_is_the_expected_value_of_the_sampled_credit():
    views = two_views()
    credit, probability = sampled_credit(views, full())
    got = full_form(*views, full())
    assert got == pytest.approx(-(probability * credit).sum(), abs=1e-6)


def test_without_gate_clip_and_scale_the_full_form_descends_the_routed_kl():
    views, hp = two_views(), full(gate="none", clip=0.0, scale="none")
    ones = np.ones(ROWS, np.float32)

    def routed_kl(hidden, unembed):
        kl = oracle.stats(hidden, unembed, *views[2:], np.zeros((ROWS, WIDTH), int), T)["reverse_kl"]
        return (ROUTE * kl).sum()

    want = oracle.central_differences(routed_kl, views[:2])
    got = jax.grad(lambda h, u: full_form(h, u, *views[2:], hp, scale=ones), argnums=(0, 1))(*views[:2])
    for mine, theirs in zip(got, want, strict=True):
        assert np.abs(theirs).max() > 0.01
        assert np.abs(np.asarray(mine) - theirs).max() < 1e-6
    assert full_form(*views, hp, scale=ones) == pytest.approx(routed_kl(*views[:2]), abs=1e-6)


@pytest.mark.parametrize("hp", [full(), full(gate="none", clip=0.0)], ids=["gated", "raw"])
def test_the_teacher_receives_exactly_no_gradient(hp):
    views = two_views()
    student, student_unembed, teacher, teacher_unembed = jax.grad(
        lambda views: full_form(*views, hp) + full_form(*views, hp, chunk=WIDTH)
    )(views)
    assert not np.asarray(teacher).any() and not np.asarray(teacher_unembed).any()
    assert np.asarray(student).any() and np.asarray(student_unembed).any()


def test_with_one_tree_for_both_views_only_the_students_path_is_differentiated():
    student_hidden, unembed, teacher_hidden, _ = two_views()
    hp = full()
    shared = jax.grad(lambda u: full_form(student_hidden, u, teacher_hidden, u, hp))(unembed)
    apart = jax.grad(lambda u: full_form(student_hidden, u, teacher_hidden, unembed, hp))(unembed)
    assert np.abs(apart).max() > 0.01
    np.testing.assert_array_equal(shared, apart)


def test_the_scale_is_a_constant_of_the_full_form_and_the_direction_multiplies_it():
    views, hp = two_views(), full()
    by_scale, by_kl = jax.jit(jax.grad(lambda scale, kl: full_form(*views, hp, scale=scale, kl=kl), argnums=(0, 1)))(
        SCALE, ROUTE
    )
    assert not np.asarray(by_scale).any()
    credit, probability = sampled_credit(views, hp)
    np.testing.assert_allclose(by_kl * ROUTE, -(probability * credit).sum(-1), rtol=0, atol=1e-6)


def test_tokens_without_weight_change_neither_the_full_forms_loss_nor_its_gradient():
    views, keep = two_views(), np.array([[True, True, False], [True, False, False]])
    compute = jax.jit(
        jax.value_and_grad(
            lambda unembed, hidden, teacher: full_form(
                hidden, unembed, teacher, views[3], full(), kl=np.where(keep, ROUTE, 0)
            ),
            argnums=(0, 1),
        )
    )
    want = compute(views[1], views[0], views[2])
    other = two_views(seed=5)
    hidden, teacher = (np.where(keep[..., None], views[x], 9 * other[x]) for x in (0, 2))
    got = compute(views[1], hidden, teacher)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-7), got, want)
    assert not np.asarray(got[1][1])[~keep].any() and np.asarray(got[1][1])[keep].any()


def test_the_sampled_form_has_no_divergence():
    assert METHOD.divergence(DasdParams()) is None and METHOD.divergence(full()).views == ("teacher",)


def test_repelling_is_bounded_where_the_raw_divergence_is_not():
    hidden, unembed = np.zeros((ROWS, WIDTH, V), np.float32), np.eye(V, dtype=np.float32)
    far = np.zeros_like(hidden)
    far[..., 0] = 200.0  # a teacher that finds every other word absurd
    bounded, raw = (
        abs(float(full_form(hidden, unembed, far, unembed, hp, scale=np.ones(ROWS, np.float32))))
        for hp in (full(), full(gate="none", clip=0.0))
    )
    reach = 3 / (1 + np.exp(-2.0))
    assert bounded <= np.abs(ROUTE).sum() * reach
    assert raw > 100 * np.abs(ROUTE.sum())
