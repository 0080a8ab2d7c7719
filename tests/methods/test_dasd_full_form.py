"""The two forms of the loss: the sampled one by hand, the full one as the exact expectation of the sampled one."""

import jax
import jax.numpy as jnp
import numpy as np
import objective_oracle as oracle
import pytest

from dasd_jax.objective.credit import DasdParams, gated_gap
from dasd_jax.objective.loss import clipped_surrogate, directional_kl, negative_log_likelihood
from dasd_jax.objective.token_stats import token_logp, token_logp_and_expectation

CLIP = {"clip_low": 0.2, "clip_high": 0.28}


def surrogate_gradient(logp, old_logp, advantage, keep):
    (loss, clipped), slope = jax.value_and_grad(clipped_surrogate, has_aux=True)(
        jnp.asarray(logp), old_logp, advantage, keep, **CLIP
    )
    return np.asarray(loss), np.asarray(slope), np.asarray(clipped)


# --- sampled form ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "slope", "stopped"),
    [
        (1.0, 0.5, -0.5, -0.5, 0),  # a good token that lost probability is pulled back up
        (1.0, 1.1, -1.1, -1.1, 0),
        (1.0, 1.5, -1.28, 0.0, 1),  # gained enough
        (-1.0, 0.5, 0.8, 0.0, 1),  # a bad token lost enough
        (-1.0, 0.9, 0.9, 0.9, 0),
        (-1.0, 1.5, 1.5, 1.5, 0),  # a bad token that gained is pushed down without bound
        (0.0, 1.5, 0.0, 0.0, 0),
        (2.0, 1.0, -2.0, -2.0, 0),  # the policy left behind is the policy trained
    ],
)
def test_the_surrogate_by_hand(advantage, ratio, loss, slope, stopped):
    one = np.ones((1, 1), np.float32)
    got = surrogate_gradient((np.log(ratio) - 3) * one, -3 * one, advantage * one, one.astype(bool))
    np.testing.assert_allclose([x.item() for x in got], [loss, slope, stopped], atol=1e-5)


def tokens(rows=4, width=6, seed=0):
    """(logp, old_logp, advantage, keep) with ratios on both sides of the clip, none within 1e-3 of its edges."""
    rng = np.random.default_rng(seed)
    logp = -rng.exponential(1.0, (rows, width))
    ratio = rng.choice([0.3, 0.7, 0.9, 1.05, 1.2, 1.4, 2.0], (rows, width))
    advantage = rng.normal(size=(rows, width))
    keep = np.arange(width) < np.array([6, 1, 0, 4])[:, None]
    return *(x.astype(np.float32) for x in (logp, logp - np.log(ratio), advantage)), keep


def test_surrogate_its_gradient_and_the_clip_count_are_those_of_float64_and_finite_differences():
    logp, old_logp, advantage, keep = tokens()

    def reference(logp):
        ratio = np.exp(logp - old_logp.astype(np.float64))
        terms = np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.28) * advantage)
        return -sum(terms[at] for at in zip(*np.nonzero(keep), strict=True))

    (slope,) = oracle.central_differences(reference, [logp])
    loss, got, clipped = surrogate_gradient(logp, old_logp, advantage, keep)
    np.testing.assert_allclose(loss, reference(logp.astype(np.float64)), rtol=1e-5)
    np.testing.assert_allclose(got, slope, atol=1e-5)
    assert 0 < clipped == np.sum((np.abs(slope) < 1e-9) & keep)


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 1e30])
def test_what_stands_in_padding_changes_neither_loss_nor_gradient_nor_count(junk):
    logp, old_logp, advantage, keep = tokens()
    want = surrogate_gradient(logp, old_logp, advantage, keep)
    for dirty in ("logp", "old_logp", "advantage", "all"):
        args = [
            np.where(keep, x, np.float32(junk)) if dirty in (name, "all") else x
            for name, x in (("logp", logp), ("old_logp", old_logp), ("advantage", advantage))
        ]
        got = surrogate_gradient(*args, keep)
        for mine, theirs in zip(got, want, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert not want[1][~keep].any()


def test_losses_are_sums_so_that_parts_of_a_minibatch_add_up():
    logp, old_logp, advantage, keep = tokens()
    parts = [surrogate_gradient(*(x[i : i + 2] for x in (logp, old_logp, advantage, keep))) for i in (0, 2)]
    whole = surrogate_gradient(logp, old_logp, advantage, keep)
    for at in (0, 2):
        assert parts[0][at] + parts[1][at] == pytest.approx(whole[at], rel=1e-6)
    rows = lambda f: [float(f(slice(i, i + 2))) for i in (0, 2)]  # noqa: E731
    for f in (
        lambda at: negative_log_likelihood(logp[at], keep[at]),
        lambda at: directional_kl(old_logp[at], advantage[at], keep[at]),
    ):
        assert sum(rows(f)) == pytest.approx(float(f(slice(None))), rel=1e-6)


def test_negative_log_likelihood_sums_kept_tokens_and_pulls_each_with_the_same_force():
    keep = np.array([[True, True, False], [True, False, False]])
    logp = np.where(keep, np.array([[-1.0, -2.0, 0], [-0.5, 0, 0]]), np.nan).astype(np.float32)
    loss, slope = jax.value_and_grad(negative_log_likelihood)(jnp.asarray(logp), keep)
    assert loss == 3.5
    np.testing.assert_array_equal(slope, -keep.astype(np.float32))


# --- full form -------------------------------------------------------------------------------------------------------

ROWS, WIDTH, D, V = 2, 3, 4, 5
T = 0.9
# Row constants and directions of both signs; the second row's small scale drives gaps into the clip.
SCALE = np.array([0.8, 0.15], np.float32)
ROUTE = np.array([[0.1, -0.07, 0.03], [-0.1, 0.05, -0.02]], np.float32)
KEEP = np.ones((ROWS, WIDTH), bool)


def two_views(seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: (0.7 * rng.normal(size=shape)).astype(np.float32)  # noqa: E731
    return normal(ROWS, WIDTH, D), normal(V, D), normal(ROWS, WIDTH, D), normal(V, D)


def full_form(student_hidden, student_unembed, teacher_hidden, teacher_unembed, hp, scale=SCALE, keep=KEEP, chunk=2):
    _, expected = token_logp_and_expectation(
        student_hidden,
        student_unembed,
        teacher_hidden,
        teacher_unembed,
        np.zeros((ROWS, WIDTH), np.int32),
        lambda student_logp, teacher_logp, scale: gated_gap(teacher_logp - student_logp, scale, hp),
        scale,
        temperature=T,
        chunk=chunk,
    )
    return directional_kl(expected, ROUTE, keep)


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
        ({"gate": False, "clip": 0.5}, 0.0, 3),
    ],
    ids=str,
)
def test_gradient_of_the_full_form_is_the_expected_gradient_of_the_sampled_form(changes, verifier, chunk):
    hp = DasdParams(**changes)
    views = two_views()
    credit, probability = sampled_credit(views, hp)
    student_hidden, student_unembed = views[:2]
    # Every position meets every word once, weighted by its probability: V copies of the rows, one for each word.
    copies = lambda x: np.concatenate([x] * V)  # noqa: E731
    words = np.repeat(np.arange(V, dtype=np.int32), ROWS)[:, None] * np.ones((1, WIDTH), np.int32)
    weighted = np.concatenate(list(np.moveaxis(probability * (verifier + credit), -1, 0))).astype(np.float32)

    def sampled(hidden, unembed, old_logp):
        logp = token_logp(jnp.concatenate([hidden] * V), unembed, words, temperature=T, chunk=chunk)
        return clipped_surrogate(logp, old_logp, weighted, copies(KEEP), **CLIP)[0]

    old_logp = token_logp(copies(student_hidden), student_unembed, words, temperature=T, chunk=chunk)
    want = jax.jit(jax.grad(sampled, argnums=(0, 1)))(student_hidden, student_unembed, old_logp)
    full = jax.jit(jax.grad(lambda h, u: full_form(h, u, *views[2:], hp, chunk=chunk), argnums=(0, 1)))
    got = full(student_hidden, student_unembed)
    for mine, theirs in zip(got, want, strict=True):
        assert np.abs(theirs).max() > 0.01
        assert np.abs(np.asarray(mine) - np.asarray(theirs)).max() < 1e-6


def test_value_of_the_full_form_is_the_expected_value_of_the_sampled_credit():
    views = two_views()
    credit, probability = sampled_credit(views, DasdParams())
    got = full_form(*views, DasdParams())
    assert got == pytest.approx(-(probability * credit).sum(), abs=1e-6)


def test_without_gate_clip_and_scale_the_full_form_descends_the_routed_kl_to_the_teacher():
    views, hp = two_views(), DasdParams(gate=False, clip=0.0, scale="none")
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


@pytest.mark.parametrize("hp", [DasdParams(), DasdParams(gate=False, clip=0.0)], ids=["gated", "raw"])
def test_the_teacher_receives_exactly_no_gradient(hp):
    views = two_views()
    student, student_unembed, teacher, teacher_unembed = jax.grad(
        lambda views: full_form(*views, hp) + full_form(*views, hp, chunk=WIDTH)
    )(views)
    assert not np.asarray(teacher).any() and not np.asarray(teacher_unembed).any()
    assert np.asarray(student).any() and np.asarray(student_unembed).any()


def test_with_one_tree_for_both_views_only_the_students_path_is_differentiated():
    student_hidden, unembed, teacher_hidden, _ = two_views()
    hp = DasdParams()
    shared = jax.grad(lambda u: full_form(student_hidden, u, teacher_hidden, u, hp))(unembed)
    apart = jax.grad(lambda u: full_form(student_hidden, u, teacher_hidden, unembed, hp))(unembed)
    assert np.abs(apart).max() > 0.01
    np.testing.assert_array_equal(shared, apart)


def test_the_direction_is_a_constant_of_the_full_form():
    expected_gap = np.array([[0.5, -2.0, 1.0]], np.float32)
    route = np.array([[0.1, -0.1, 0.05]], np.float32)
    loss, slopes = jax.value_and_grad(directional_kl, argnums=(0, 1))(
        expected_gap, route, np.array([[True, True, False]])
    )
    assert loss == pytest.approx(-(0.05 + 0.2))
    np.testing.assert_array_equal(slopes[0], [[np.float32(-0.1), np.float32(0.1), 0]])
    assert not np.asarray(slopes[1]).any()


def test_masked_tokens_of_the_full_form_change_neither_loss_nor_gradient():
    views, keep = two_views(), np.array([[True, True, False], [True, False, False]])
    compute = jax.value_and_grad(
        lambda unembed, hidden, teacher: full_form(hidden, unembed, teacher, views[3], DasdParams(), keep=keep)
    )
    want = compute(views[1], views[0], views[2])
    other = two_views(seed=5)
    hidden, teacher = (np.where(keep[..., None], views[x], 9 * other[x]) for x in (0, 2))
    for mine, theirs in zip(compute(views[1], hidden, teacher), want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-7)
    for junk in (np.nan, np.inf):
        dirty = np.where(keep, ROUTE, np.float32(junk))
        loss, slope = jax.value_and_grad(directional_kl)(dirty, ROUTE, keep)
        assert loss == pytest.approx(-(ROUTE.astype(np.float64) ** 2)[keep].sum(), rel=1e-6)
        np.testing.assert_array_equal(slope, np.where(keep, -ROUTE, 0))


def test_repelling_is_bounded_where_the_raw_divergence_is_not():
    hidden, unembed = np.zeros((ROWS, WIDTH, V), np.float32), np.eye(V, dtype=np.float32)
    far = np.zeros_like(hidden)
    far[..., 0] = 200.0  # a teacher that finds every other word absurd
    bounded, raw = (
        abs(float(full_form(hidden, unembed, far, unembed, hp, scale=np.ones(ROWS, np.float32))))
        for hp in (DasdParams(), DasdParams(gate=False, clip=0.0))
    )
    reach = 3 / (1 + np.exp(-2.0))
    assert bounded <= np.abs(ROUTE).sum() * reach
    assert raw > 100 * np.abs(ROUTE.sum())
