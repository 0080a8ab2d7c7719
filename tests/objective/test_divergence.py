"""Divergences: values, and gradients by the student's logits, against float64 formulas that know no chunks."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import objective_oracle as oracle
import pytest

from dasd_jax.mesh import named, put_rows, reshard
from dasd_jax.methods.dasd import DasdParams, divergence
from dasd_jax.objective.divergence import arithmetic, evidence, geometric, gjsd, softened, top_k_tail
from dasd_jax.objective.token_stats import token_logp_and_divergence

SHARES = (0.0, 0.3, 0.5, 1.0)
V, K = 23, 5
SOFT = 1.3  # what the logits are divided by once more
ENTRY_MAX = 0.02  # nats; some words' terms are above it, most below
SHARE_MAX, STEEPNESS = 0.4, 5.0  # of the geometric target
BOUND, BETA = 1.5, 0.8  # nats, of the evidence; some of it is near the bound
HP = DasdParams(form="full", clip=2.0)


# --- the formulas, written of probabilities --------------------------------------------------------------------------


def kl(p, q):
    return (p * jnp.log(p / q)).sum(-1)


def js_terms(p_s, p_t, b):
    """One word's part of b KL(T || m) + (1 - b) KL(S || m), and of the two KL that the ends b = 0 and 1 are."""
    if b == 0:
        return p_t * jnp.log(p_t / p_s)
    if b == 1:
        return p_s * jnp.log(p_s / p_t)
    m = b * p_t + (1 - b) * p_s
    return b * p_t * jnp.log(p_t / m) + (1 - b) * p_s * jnp.log(p_s / m)


def lumped(p_s, p_t, k):
    """The student's k likeliest words, and the sum of all others as one more."""
    order = jnp.argsort(-p_s, axis=-1)
    p_s, p_t = (jnp.take_along_axis(p, order, axis=-1) for p in (p_s, p_t))
    if k >= p_s.shape[-1]:
        return p_s, p_t
    return (jnp.concatenate([p[..., :k], p[..., k:].sum(-1, keepdims=True)], axis=-1) for p in (p_s, p_t))


def soft(p):
    """The distribution whose logits are divided by SOFT."""
    return p ** (1 / SOFT) / (p ** (1 / SOFT)).sum(-1, keepdims=True)


def pressures(p_s, p_t, scale):
    """-gate(d) d at every word, a constant of the student."""
    gap = np.log(p_t) - np.log(p_s)
    return -oracle.gated(gap, np.asarray(scale)[:, None, None], clip=HP.clip, gate=HP.gate)


def geometric_target(p_t, p_u):
    """p_t^(1 - a) p_u^a over its sum, a = 2 a_max (sigmoid(b JSD) - 1/2)."""
    apart = js_terms(p_u, p_t, 0.5).sum(-1, keepdims=True)
    a = 2 * SHARE_MAX * (1 / (1 + jnp.exp(-STEEPNESS * apart)) - 0.5)
    product = p_t ** (1 - a) * p_u**a
    return product / product.sum(-1, keepdims=True)


def arithmetic_target(p_t, p_0, u):
    """u p_0 + (1 - u) p_t."""
    u = jnp.asarray(u)[:, None, None]
    return u * p_0 + (1 - u) * p_t


def purified_target(p_t, p_r, p_0):
    """p_0 exp(D / beta) over its sum, D = log p_t - log p_r, centred and bounded."""
    d = jnp.log(p_t / p_r)
    d = BOUND * jnp.tanh((d - d.mean(-1, keepdims=True)) / BOUND)
    product = p_0 * jnp.exp(d / BETA)
    return product / product.sum(-1, keepdims=True)


def formula(name, b, k):
    """(p_student, those of the teachers, pressures, scale) → divergence of each token."""
    return {
        "dasd": lambda p_s, p_ts, c, u: (p_s * c).sum(-1),
        "gjsd": lambda p_s, p_ts, c, u: js_terms(p_s, p_ts[0], b).sum(-1),
        "clamped": lambda p_s, p_ts, c, u: jnp.minimum(js_terms(p_s, p_ts[0], b), ENTRY_MAX).sum(-1),
        "softened": lambda p_s, p_ts, c, u: jnp.minimum(js_terms(soft(p_s), soft(p_ts[0]), b), ENTRY_MAX).sum(-1),
        "top_k_tail": lambda p_s, p_ts, c, u: js_terms(*lumped(p_s, p_ts[0], k), b).sum(-1),
        "geometric": lambda p_s, p_ts, c, u: js_terms(*lumped(p_s, geometric_target(*p_ts[:2]), k), b).sum(-1),
        "arithmetic": lambda p_s, p_ts, c, u: js_terms(p_s, arithmetic_target(*p_ts[:2], u), b).sum(-1),
        "evidence": lambda p_s, p_ts, c, u: js_terms(p_s, purified_target(*p_ts), b).sum(-1),
    }[name]


def implemented(name, b, k):
    return {
        "dasd": lambda: divergence(HP),
        "gjsd": lambda: gjsd("teacher", b),
        "clamped": lambda: gjsd("teacher", b, ENTRY_MAX),
        "softened": lambda: softened(gjsd("teacher", b, ENTRY_MAX), SOFT),
        "top_k_tail": lambda: top_k_tail("teacher", k, b),
        "geometric": lambda: geometric(top_k_tail("teacher", k, b), ("teacher", "unaided"), SHARE_MAX, STEEPNESS),
        "arithmetic": lambda: arithmetic(gjsd("teacher", b), ("teacher", "base")),
        "evidence": lambda: evidence(gjsd("teacher", b), ("teacher", "reference", "base"), BOUND, BETA),
    }[name]()


ALL = [
    ("dasd", None),
    ("softened", 0.0),
    ("softened", 0.3),
    *((name, b) for name in ("gjsd", "clamped", "top_k_tail") for b in SHARES),
    ("geometric", 1.0),
    ("arithmetic", 0.0),
    ("evidence", 0.0),
    ("evidence", 0.5),
]


# --- values and slopes -----------------------------------------------------------------------------------------------


def logits(rows=2, width=3, words=V, seed=0):
    """Float32 logits of student and three teachers, and a constant a row at which some gaps are clipped."""
    rng = np.random.default_rng(seed)
    draw = lambda spread: (spread * rng.normal(size=(rows, width, words))).astype(np.float32)  # noqa: E731
    student = draw(1.0)
    return student, [student + draw(0.8) for _ in range(3)], np.linspace(0.3, 1.0, rows).astype(np.float32)


@partial(jax.jit, static_argnames="it")
def value_and_slope(it, student, teachers, scale):
    """(Σ_v f(v), the gradient by the student's logits) of a whole vocabulary at once."""
    student, scale, *teachers = (reshard(x, "rows", *(None,) * (x.ndim - 1)) for x in (student, scale, *teachers))
    ls, given = jax.nn.log_softmax(student), scale[:, None, None]
    lts = tuple(jax.nn.log_softmax(teacher) for teacher in teachers[: len(it.views)])
    sums = it.summary(ls, lts, given)
    slope = it.slope(ls, lts, given, sums)
    gradient = slope - jnp.exp(ls) * jnp.sum(slope, axis=-1, keepdims=True)
    return jnp.sum(it.value(ls, lts, given, sums), axis=-1), gradient


def differences(of, student, teachers, scale, step=1e-5):
    """Central differences of each token's divergence by each of its logits, in float64."""
    p = lambda logits: np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)  # noqa: E731
    student, p_ts = student.astype(np.float64), [p(teacher.astype(np.float64)) for teacher in teachers]
    c, u = pressures(p(student), p_ts[0], scale), scale.astype(np.float64)
    ahead, behind = (
        np.stack([of(p(student + sign * step * word), p_ts, c, u) for word in np.eye(student.shape[-1])], axis=-1)
        for sign in (1, -1)
    )
    return of(p(student), p_ts, c, u), (ahead - behind) / (2 * step)


@pytest.mark.parametrize(("name", "b"), ALL)
def test_value_and_slope_are_those_of_the_formula_and_its_finite_differences(name, b):
    arrays, it = logits(), implemented(name, b, K)
    with jax.enable_x64(True):
        want = differences(jax.jit(formula(name, b, K)), *arrays)
        got = value_and_slope(it, *jax.tree.map(lambda x: x.astype(np.float64), arrays))
        assert got[0].dtype == got[1].dtype == jnp.float64
    assert np.abs(want[1]).max() > 0.01
    np.testing.assert_allclose(got[0], want[0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(got[1], want[1], rtol=0, atol=1e-9)
    for mine, theirs in zip(value_and_slope(it, *arrays), want, strict=True):
        assert mine.dtype == jnp.float32
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6)


def test_the_cases_of_the_formulas_reach_clip_clamp_and_tail():
    student, teachers, scale = logits()
    p_s, p_t, p_r, _ = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (student, *teachers))
    assert 0.05 < (np.abs(np.log(p_t / p_r)) > BOUND).mean() < 0.5
    assert scale.max() == 1  # a token at which the arithmetic target is the prior
    clips = np.abs(np.log(p_t / p_s)) / scale[:, None, None] > HP.clip
    assert 0.05 < clips.mean() < 0.9
    for b in SHARES:
        terms = np.asarray(js_terms(p_s, p_t, b))
        assert 0 < (terms > ENTRY_MAX).mean() < 0.5
        assert np.abs(terms - ENTRY_MAX).min() > 1e-5  # no difference is taken across the clamp


# --- identities ------------------------------------------------------------------------------------------------------


def of_float64(it, student, teacher):
    """Values alone, without compiling a program for each divergence."""
    with jax.enable_x64(True), jax.disable_jit():
        arrays = (student.astype(np.float64), [teacher.astype(np.float64)], np.ones(len(student)))
        return np.asarray(value_and_slope(it, *arrays)[0])


def test_the_ends_of_gjsd_are_the_two_kl_and_its_middle_is_symmetric():
    student, (teacher, *_), _ = logits()
    s, t = (np.exp(oracle.log_probs(x, np.eye(V), 1.0)) for x in (student, teacher))
    with jax.enable_x64(True):
        forward, reverse = np.asarray(kl(t, s)), np.asarray(kl(s, t))
    there = {b: of_float64(gjsd("t", b), student, teacher) for b in SHARES}
    back = {b: of_float64(gjsd("t", b), teacher, student) for b in SHARES}
    np.testing.assert_allclose(there[0.0], forward, rtol=1e-12)
    np.testing.assert_allclose(there[1.0], reverse, rtol=1e-12)
    np.testing.assert_allclose(there[0.5], back[0.5], rtol=1e-12)
    np.testing.assert_allclose(there[0.0], back[1.0], rtol=1e-12)
    assert there[0.5].max() < math.log(2) and np.abs(there[0.3] - back[0.3]).max() > 1e-4


def test_lumping_words_together_loses_divergence_and_lumping_none_loses_nothing():
    student, (teacher, *_), _ = logits()
    for b in (0.0, 0.3, 1.0):
        whole = of_float64(gjsd("t", b), student, teacher)
        by_k = [of_float64(top_k_tail("t", k, b), student, teacher) for k in (1, K, V - 1)]
        # One more word apart is a finer partition, and data processing can only lose.
        for coarse, fine in zip(by_k, [*by_k[1:], whole], strict=True):
            assert (coarse >= 0).all() and (coarse <= fine + 1e-14).all()
        assert (by_k[1] < whole - 1e-4).any()
        np.testing.assert_array_equal(of_float64(top_k_tail("t", V, b), student, teacher), whole)


@pytest.mark.parametrize(("name", "b"), ALL)
def test_a_teacher_equal_to_the_student_has_no_divergence_and_no_gradient(name, b):
    student, _, scale = logits()
    for got in value_and_slope(implemented(name, b, K), student, [student] * 3, scale):
        np.testing.assert_allclose(got, 0, atol=5e-7)  # a target is normalised in float32


def test_rounding_moves_no_word_across_the_top_k_threshold():
    student, (teacher, *_), scale = logits(words=60)
    rng = np.random.default_rng(1)
    student = rng.permuted(np.tile(np.linspace(-2, 2, 60), (2, 3, 1)), axis=-1).astype(np.float32)  # ranks .07 apart
    it = top_k_tail("t", K, 0.5)
    ls, lt = (np.asarray(jax.nn.log_softmax(x)) for x in (student, teacher))
    sums = jax.tree.map(np.asarray, it.summary(ls, (lt,), scale[:, None, None]))
    threshold = sums[0]
    ordered = np.sort(ls, axis=-1)[..., ::-1]
    np.testing.assert_allclose(threshold[..., 0], (ordered[..., K - 1] + ordered[..., K]) / 2, rtol=1e-6)
    noisy = ls + 1e-6 * rng.choice([-1, 1], ls.shape).astype(np.float32)
    np.testing.assert_array_equal(noisy > threshold, ls > threshold)
    assert ((ls > threshold).sum(-1) == K).all()
    for of in (it.value, it.slope):  # and the backward pass sees what the forward pass saw
        changed = np.abs(of(noisy, (lt,), scale, sums) - of(ls, (lt,), scale, sums))
        assert changed.max() < 1e-6


# --- through the pass ------------------------------------------------------------------------------------------------

ROWS, WIDTH, D, WORDS = 4, 11, 6, 1000


def four_views():
    """Hidden states and unembedding of the student, then of three teachers."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    hidden, unembed = 0.5 * draw(ROWS, WIDTH, D), draw(WORDS, D)
    teacher = lambda: (hidden + 0.8 * draw(ROWS, WIDTH, D), unembed + 0.1 * draw(WORDS, D))  # noqa: E731
    arrays = hidden, unembed, *teacher(), *teacher(), *teacher()
    weight = (rng.random((ROWS, WIDTH)) / (ROWS * WIDTH)).astype(np.float32)  # a mean over tokens, as in training
    return arrays, np.linspace(0.3, 1.0, ROWS).astype(np.float32), weight


@partial(jax.jit, static_argnames=("it", "chunk"))
def chunked(it, views, given, weight, chunk=4):
    """Value and gradients of the weighted divergences; chunk 4: three chunks of 11 positions, 336 of 1,000 words."""
    teachers = list(zip(views[2::2], views[3::2], strict=True))[: len(it.views)]

    def total(student):
        response = jnp.zeros(weight.shape, jnp.int32)
        _, diverged = token_logp_and_divergence(student, teachers, response, it, given, temperature=0.8, chunk=chunk)
        return jnp.sum(weight * diverged)

    return jax.value_and_grad(total)(views[:2])


def dense(name, b, views, scale, weight, k=K):
    """The same in float64, differentiated by JAX from whole arrays."""
    with jax.enable_x64(True):
        views = [x.astype(np.float64) for x in views]
        p = lambda hidden, unembed: jax.nn.softmax(hidden @ unembed.T / 0.8)  # noqa: E731
        p_ts = [p(*teacher) for teacher in zip(views[2::2], views[3::2], strict=True)]
        c, u = pressures(p(*views[:2]), p_ts[0], scale), scale.astype(np.float64)
        total = lambda student: (weight * formula(name, b, k)(p(*student), p_ts, c, u)).sum()  # noqa: E731
        return jax.device_get(jax.jit(jax.value_and_grad(total))(tuple(views[:2])))


def assert_close(got, want):
    """Within 1e-6 and a few roundings of the largest entry, of which autodiff in float32 itself is 1.5e-6 off."""
    np.testing.assert_allclose(got[0], want[0], rtol=2e-6)
    for mine, theirs in zip(got[1], want[1], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=min(1e-6, 3e-6 * np.abs(theirs).max()))


@pytest.mark.parametrize(("name", "b"), ALL)
def test_gradients_of_chunks_and_blocks_that_divide_nothing_are_the_dense_ones(name, b):
    views, scale, weight = four_views()
    given = scale if name in ("dasd", "arithmetic") else None  # a divergence without constants is given none
    assert_close(chunked(implemented(name, b, K), views, given, weight), dense(name, b, views, scale, weight))


def test_any_chunk_gives_one_gradient():
    views, scale, weight = four_views()
    want = dense("top_k_tail", 0.3, views, scale, weight)
    for chunk in (1, WIDTH):  # 96 and all 1,000 words to a block
        assert_close(chunked(top_k_tail("teacher", K, 0.3), views, scale, weight, chunk=chunk), want)


@pytest.mark.parametrize(
    ("name", "b", "k"),
    [
        ("dasd", None, K),
        ("gjsd", 0.3, K),
        ("top_k_tail", 0.3, K),
        ("top_k_tail", 0.5, WORDS),
        ("geometric", 1.0, K),
        ("arithmetic", 0.0, K),
        ("evidence", 0.0, K),
    ],
)
def test_a_vocabulary_split_over_devices_gives_the_dense_gradients(mesh8, name, b, k):
    views, scale, weight = four_views()
    want = dense(name, b, views, scale, weight, k=k)
    *hidden, scale, weight = put_rows(mesh8, (*views[::2], scale, weight))
    unembed = [jax.device_put(x, named(mesh8, "vocab", None)) for x in views[1::2]]
    placed = sum(zip(hidden, unembed, strict=True), ())
    assert not unembed[0].sharding.is_fully_replicated
    got = chunked(implemented(name, b, k), placed, scale, weight)
    assert_close(jax.device_get(got), want)
