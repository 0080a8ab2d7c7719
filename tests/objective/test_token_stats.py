"""Statistics of both views against float64, their gradients, and what must never be in memory."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import objective_oracle as oracle
import pytest

from dasd_jax import vocab
from dasd_jax.mesh import gather, named, put_rows
from dasd_jax.objective.divergence import Divergence, expected, top_k_tail
from dasd_jax.objective.token_stats import token_logp, token_logp_and_divergence, token_stats

FIELDS = ("student_logp", "teacher_logp", "student_entropy", "teacher_entropy", "forward_kl", "reverse_kl")
# Logits are of order 1 and log-probabilities of order 5: a few roundings of float32.
ATOL = 3e-6
# Words in blocks of a multiple of 16: 16, 16 and then 5 new ones of 16.
OVERLAPPING = 37


def draw(rows=3, width=7, d=4, vocab=11, seed=0, dtype=np.float32):
    """(student_hidden, student_unembed, teacher_hidden, teacher_unembed), response."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32).astype(dtype)  # noqa: E731
    two_views = (normal(rows, width, d), normal(vocab, d), normal(rows, width, d), normal(vocab, d))
    return two_views, rng.integers(0, vocab, (rows, width)).astype(np.int32)


def as_dict(stats, teacher=0):
    """The statistics of the student and of one teacher under the oracle's names."""
    one = stats.teachers[teacher]
    return {
        "student_logp": stats.logp,
        "teacher_logp": one.logp,
        "student_entropy": stats.entropy,
        "teacher_entropy": one.entropy,
        "forward_kl": one.forward_kl,
        "reverse_kl": one.reverse_kl,
    }


@partial(jax.jit, static_argnames=("temperature", "chunk"))
def statistics(student_hidden, student_unembed, teacher_hidden, teacher_unembed, response, *, temperature=1.0, chunk=3):
    """`token_stats` of two views, compiled once for each shape."""
    student, teacher = (student_hidden, student_unembed), (teacher_hidden, teacher_unembed)
    return token_stats(student, [teacher], response, temperature=temperature, chunk=chunk)


def assert_stats(got, want, **tolerance):
    for name in FIELDS:
        np.testing.assert_allclose(as_dict(got)[name], want[name], err_msg=name, **tolerance)


# The expectation of a value of both views and of the row, as DASD's full form uses it.
PRESSURE = expected("teacher", lambda ls, lt, scale: jnp.tanh((lt - ls) / scale))


@partial(jax.jit, static_argnames=("divergence", "temperature", "chunk"))
def expectation(*arrays, divergence=PRESSURE, temperature=1.0, chunk=3):
    """`token_logp_and_divergence` of two views; arrays: the four of `draw`, the response, and the constant."""
    *views, response, given = arrays
    return token_logp_and_divergence(
        views[:2], [views[2:]], response, divergence, given, temperature=temperature, chunk=chunk
    )


# --- against float64 -------------------------------------------------------------------------------------------------


def test_a_float32_hidden_state_is_not_rounded_to_its_unembedding(mesh):
    """Against float64: with its two parts the logits err a hundredth of what a rounded state would."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2, 3, 64)).astype(np.float32)
    unembed = jnp.asarray(rng.normal(size=(50, 64)), jnp.bfloat16)
    exact = np.asarray(hidden, np.float64) @ np.asarray(unembed, np.float64).T
    whole, rounded = (
        np.abs(np.asarray(jax.jit(vocab.logits, static_argnums=2)(jnp.asarray(x), unembed, 1.0)) - exact).mean()
        for x in (hidden, hidden.astype(jnp.bfloat16))
    )
    assert whole < 1e-2 * rounded


@pytest.mark.parametrize(
    ("chunk", "temperature"),  # 2 and 3 do not divide 7
    [(1, 1.0), (2, 0.6), (2, 1.7), (3, 1.0), (3, 0.6), (7, 1.7), (7, 0.6), (64, 1.0)],
)
def test_statistics_are_those_of_float64_at_every_chunk_and_temperature(chunk, temperature):
    views, response = draw()
    got = statistics(*views, response, temperature=temperature, chunk=chunk)
    assert_stats(got, oracle.stats(*views, response, temperature), rtol=0, atol=ATOL / temperature)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_token_logp_and_the_expectation_are_those_of_float64(chunk):
    views, response = draw(vocab=OVERLAPPING)
    scale = np.array([0.3, 1.0, 4.0], np.float32)
    logp, total = expectation(*views, response, scale, temperature=0.7, chunk=chunk)
    student, teacher = oracle.log_probs(*views[:2], 0.7), oracle.log_probs(*views[2:], 0.7)
    want = (np.exp(student) * np.tanh((teacher - student) / scale[:, None, None])).sum(-1)
    want_logp = oracle.stats(*views, response, 0.7)["student_logp"]
    np.testing.assert_allclose(total, want, rtol=0, atol=ATOL)
    np.testing.assert_allclose(logp, want_logp, rtol=0, atol=ATOL / 0.7)
    np.testing.assert_allclose(
        token_logp(views[:2], response, temperature=0.7, chunk=chunk), want_logp, rtol=0, atol=ATOL / 0.7
    )


def test_bfloat16_views_are_reduced_in_float32():
    views, response = draw(dtype=jnp.bfloat16)
    got = statistics(*(jnp.asarray(x) for x in views), response)
    assert_stats(got, oracle.stats(*views, response, 1.0), rtol=0, atol=ATOL)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_three_words_by_hand(temperature):
    student, teacher = np.array([1 / 2, 1 / 4, 1 / 4]), np.array([1 / 8, 1 / 8, 3 / 4])
    logits = [(temperature * np.log(p)).astype(np.float32).reshape(1, 1, 3) for p in (student, teacher)]
    identity = np.eye(3, dtype=np.float32)
    token = np.array([[2]], np.int32)
    got = statistics(logits[0], identity, logits[1], identity, token, temperature=temperature, chunk=1)
    log2, log3 = math.log(2), math.log(3)
    want = {
        "student_logp": -2 * log2,
        "teacher_logp": log3 - 2 * log2,
        "student_entropy": 1.5 * log2,
        "teacher_entropy": 2.25 * log2 - 0.75 * log3,
        "forward_kl": -0.375 * log2 + 0.75 * log3,
        "reverse_kl": 1.25 * log2 - 0.25 * log3,
    }
    assert {name: value.item() for name, value in as_dict(got).items()} == pytest.approx(want, abs=1e-6)


def test_padding_changes_no_statistic_of_a_real_token_and_stays_finite():
    views, response = draw(rows=4)
    mask = np.arange(7) < np.array([7, 1, 0, 4])[:, None]
    want = as_dict(statistics(*views, response))
    other, _ = draw(rows=4, seed=9)
    for x in (0, 2):
        other[x][mask] = views[x][mask]
    padded = as_dict(statistics(other[0], views[1], other[2], views[3], np.where(mask, response, 0).astype(np.int32)))
    for name in FIELDS:
        np.testing.assert_array_equal(np.asarray(padded[name])[mask], np.asarray(want[name])[mask])
        assert np.isfinite(padded[name]).all()


# --- properties ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 30.0])
def test_entropies_lie_between_zero_and_log_v_and_divergences_are_not_negative(sharpness):
    (student, student_unembed, teacher, teacher_unembed), response = draw(rows=4)
    got = as_dict(statistics(sharpness * student, student_unembed, sharpness * teacher, teacher_unembed, response))
    for name in ("student_entropy", "teacher_entropy"):
        assert got[name].min() >= 0 and got[name].max() <= math.log(11) + 1e-6
    for name in ("forward_kl", "reverse_kl"):
        assert got[name].min() >= -1e-6
    if sharpness == 0:
        np.testing.assert_allclose(got["student_entropy"], math.log(11), atol=1e-6)
    if sharpness == 30:
        assert got["student_entropy"].min() < 1e-6 and got["reverse_kl"].max() > 10  # certain, and finite all the same


def test_equal_views_have_no_divergence_and_no_gap():
    (hidden, unembed, _, _), response = draw()
    got = as_dict(statistics(hidden, unembed, hidden, unembed, response, temperature=1.3))
    got = jax.tree.map(np.asarray, got)
    assert not got["forward_kl"].any() and not got["reverse_kl"].any()
    np.testing.assert_array_equal(got["student_logp"], got["teacher_logp"])
    np.testing.assert_array_equal(got["student_entropy"], got["teacher_entropy"])


def test_several_teachers_at_once_have_the_statistics_of_each_alone():
    views, response = draw()
    others, _ = draw(seed=4)
    teachers = [views[2:], others[:2], others[2:]]
    compute = jax.jit(lambda teachers: token_stats(views[:2], teachers, response, temperature=0.8, chunk=3))
    together = compute(teachers)
    assert len(together.teachers) == 3
    for k, teacher in enumerate(teachers):
        want = oracle.stats(*views[:2], *teacher, response, 0.8)
        alone = as_dict(statistics(*views[:2], *teacher, response, temperature=0.8))
        for name, value in as_dict(together, k).items():
            np.testing.assert_allclose(value, alone[name], rtol=0, atol=1e-6, err_msg=name)
            np.testing.assert_allclose(value, want[name], rtol=0, atol=ATOL / 0.8, err_msg=name)
    nobody = compute([])
    assert nobody.teachers == ()
    np.testing.assert_allclose(nobody.logp, together.logp, rtol=0, atol=1e-6)
    np.testing.assert_allclose(nobody.entropy, together.entropy, rtol=0, atol=1e-6)


def test_swapping_the_views_swaps_their_statistics_and_the_two_divergences():
    (student, student_unembed, teacher, teacher_unembed), response = draw()
    there = as_dict(statistics(student, student_unembed, teacher, teacher_unembed, response))
    back = as_dict(statistics(teacher, teacher_unembed, student, student_unembed, response))
    for a, b in (
        ("student_logp", "teacher_logp"),
        ("student_entropy", "teacher_entropy"),
        ("forward_kl", "reverse_kl"),
    ):
        np.testing.assert_array_equal(there[a], back[b])
        np.testing.assert_array_equal(there[b], back[a])


# --- gradients -------------------------------------------------------------------------------------------------------


def dense_stats(student_hidden, student_unembed, teacher_hidden, teacher_unembed, response, temperature):
    """The same statistics from whole arrays [rows, R, V]."""
    s, t = (
        jax.nn.log_softmax(hidden @ unembed.T / temperature)
        for hidden, unembed in ((student_hidden, student_unembed), (teacher_hidden, teacher_unembed))
    )
    at = jax.nn.one_hot(response, s.shape[-1])
    return {
        "student_logp": (s * at).sum(-1),
        "teacher_logp": (t * at).sum(-1),
        "student_entropy": -(jnp.exp(s) * s).sum(-1),
        "teacher_entropy": -(jnp.exp(t) * t).sum(-1),
        "forward_kl": (jnp.exp(t) * (t - s)).sum(-1),
        "reverse_kl": (jnp.exp(s) * (s - t)).sum(-1),
    }


@pytest.mark.parametrize("chunk", [1, 3, 5])  # 3 does not divide 5
def test_gradient_of_any_linear_functional_is_dense_and_finite_differences(chunk):
    views, response = draw(rows=2, width=5, d=3, vocab=6)
    rng = np.random.default_rng(1)
    weights = {name: rng.normal(size=(2, 5)).astype(np.float32) for name in FIELDS}
    functional = lambda stats: sum((weights[name] * stats[name]).sum() for name in FIELDS)  # noqa: E731

    def chunked(*views):
        return functional(as_dict(statistics(*views, response, temperature=0.8, chunk=chunk)))

    got = jax.jit(jax.grad(chunked, argnums=(0, 1, 2, 3)))(*views)
    dense = jax.grad(lambda *views: functional(dense_stats(*views, response, 0.8)), argnums=(0, 1, 2, 3))
    dense = jax.jit(dense)(*views)
    # The differences are of the float64 oracle, so that they are exact to 1e-9 and float32 alone is on trial:
    # slopes are of order 10 and sums of some 50 terms.
    slopes = oracle.central_differences(lambda *views: functional(oracle.stats(*views, response, 0.8)), views)
    for mine, whole, slope in zip(got, dense, slopes, strict=True):
        assert np.abs(slope).max() > 0.1
        np.testing.assert_allclose(mine, whole, rtol=1e-5, atol=2e-5)
        np.testing.assert_allclose(mine, slope, rtol=1e-5, atol=2e-5)


def weighted_logp_and_expectation(views, response, scale, weights):
    """A linear functional of both results, in float64, of a student that moves under values that stay."""
    constant = np.tanh((oracle.log_probs(*views[2:], 0.8) - oracle.log_probs(*views[:2], 0.8)) / scale[:, None, None])

    def functional(hidden, unembed):
        student = oracle.log_probs(hidden, unembed, 0.8)
        logp = np.take_along_axis(student, response[..., None], -1)[..., 0]
        return (weights[0] * logp + weights[1] * (np.exp(student) * constant).sum(-1)).sum()

    return functional


@pytest.mark.parametrize("chunk", [1, 3, 5])  # blocks of 16, 32 and 37 words
@pytest.mark.parametrize("with_teacher", [False, True])
def test_fused_gradients_are_those_of_finite_differences_and_the_teachers_are_zero(chunk, with_teacher):
    views, response = draw(rows=3, width=5, d=3, vocab=OVERLAPPING)
    assert set(range(21, 32)) & set(response.ravel()), "no drawn word is in two blocks"
    scale = np.array([0.3, 1.0, 4.0], np.float32)
    weights = np.random.default_rng(1).normal(size=(2, 3, 5)).astype(np.float32) * [[[1.0]], [[float(with_teacher)]]]

    def fused(*views):
        if not with_teacher:
            return (weights[0] * token_logp(views[:2], response, temperature=0.8, chunk=chunk)).sum()
        both = expectation(*views, response, scale, temperature=0.8, chunk=chunk)
        return sum((weight * out).sum() for weight, out in zip(weights, both, strict=True))

    got = jax.jit(jax.grad(fused, argnums=(0, 1, 2, 3)))(*views)
    slopes = oracle.central_differences(weighted_logp_and_expectation(views, response, scale, weights), views[:2])
    for mine, slope in zip(got[:2], slopes, strict=True):
        assert np.abs(slope).max() > 0.1
        np.testing.assert_allclose(mine, slope, rtol=1e-5, atol=1e-5)
    assert not got[2].any() and not got[3].any()


def test_a_divergence_from_two_teachers_has_the_gradient_of_finite_differences():
    views, response = draw(rows=3, width=5, d=3, vocab=OVERLAPPING)
    teachers = [views[2:], draw(rows=3, width=5, d=3, vocab=OVERLAPPING, seed=4)[0][:2]]
    share = np.random.default_rng(2).random((3, 5)).astype(np.float32)
    scale = np.array([0.3, 1.0, 4.0], np.float32)

    def mixed_kl(ls, lts, given):
        return given["scale"] * (ls - given["share"] * lts[0] - (1 - given["share"]) * lts[1])

    divergence = Divergence(
        views=("a", "b"),
        summary=lambda ls, lts, given: (),
        value=lambda ls, lts, given, sums: jnp.exp(ls) * mixed_kl(ls, lts, given),
        slope=lambda ls, lts, given, sums: jnp.exp(ls) * (mixed_kl(ls, lts, given) + given["scale"]),
    )
    given = {"scale": scale, "share": share}

    def fused(*student):
        both = token_logp_and_divergence(student, teachers, response, divergence, given, temperature=0.8, chunk=3)
        return jnp.sum(both[1])

    def reference(*student):
        s, a, b = (oracle.log_probs(*view, 0.8) for view in (student, *teachers))
        mean = share[..., None] * a + (1 - share[..., None]) * b
        return (scale[:, None, None] * np.exp(s) * (s - mean)).sum()

    total, got = jax.jit(jax.value_and_grad(fused, argnums=(0, 1)))(*views[:2])
    np.testing.assert_allclose(total, reference(*views[:2]), rtol=1e-5)
    for mine, slope in zip(got, oracle.central_differences(reference, views[:2]), strict=True):
        assert np.abs(slope).max() > 0.1
        np.testing.assert_allclose(mine, slope, rtol=1e-5, atol=2e-5)


def test_fused_gradients_of_bfloat16_views_are_bfloat16_and_right_to_its_roundings():
    views, response = draw(rows=3, vocab=OVERLAPPING, dtype=jnp.bfloat16)
    scale = np.ones(3, np.float32)

    def total(*views):
        both = expectation(*views, response, scale, chunk=2)
        return sum(jnp.sum(jnp.sin(out)) for out in both)

    got = jax.jit(jax.grad(total, argnums=(0, 1)))(*(jnp.asarray(x) for x in views))
    want = jax.jit(jax.grad(total, argnums=(0, 1)))(*(jnp.asarray(x, jnp.float32) for x in views))
    for mine, exact in zip(got, want, strict=True):
        assert mine.dtype == jnp.bfloat16
        # Half a unit in the last place of the result, and as much of each product's terms.
        np.testing.assert_allclose(mine.astype(np.float32), exact, rtol=2**-7, atol=2**-8 * np.abs(exact).max())


def test_tokens_outside_the_loss_have_no_gradient_and_change_no_others():
    views, response = draw(rows=4, vocab=OVERLAPPING)
    keep = np.arange(7) < np.array([7, 1, 0, 4])[:, None]

    @jax.jit
    def gradients(hidden, response):
        loss = lambda *view: jnp.sum(jnp.where(keep, token_logp(view, response, temperature=1.0, chunk=2), 0.0))  # noqa: E731
        return jax.grad(loss, argnums=(0, 1))(hidden, views[1])

    want = gradients(views[0], response)
    got = gradients(np.where(keep[..., None], views[0], 50.0), np.where(keep, response, 0))
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert np.asarray(got[0])[keep].any() and not np.asarray(got[0])[~keep].any()


# --- many devices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [3, 7])
def test_eight_devices_that_split_the_vocabulary_agree_with_one_in_gradient_too(mesh, mesh8, chunk):
    views, response = draw(rows=4, vocab=2 * OVERLAPPING)
    scale = np.array([0.3, 1.0, 2.0, 4.0], np.float32)

    def everything(student_hidden, student_unembed, teacher_hidden, teacher_unembed, response, scale):
        views = (student_hidden, student_unembed, teacher_hidden, teacher_unembed)
        stats = statistics(*views, response, temperature=0.8, chunk=chunk)
        full = expectation(*views, response, scale, temperature=0.8, chunk=chunk)
        total = sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves((stats, full)))
        return total, (stats, full)

    compute = jax.jit(jax.value_and_grad(everything, argnums=(0, 1, 2, 3), has_aux=True))
    with jax.set_mesh(mesh):
        want = compute(*views, response, scale)
    hidden = put_rows(mesh8, (views[0], views[2], response, scale))
    unembed = [jax.device_put(views[x], named(mesh8, "vocab", None)) for x in (1, 3)]
    got = compute(hidden[0], unembed[0], hidden[1], unembed[1], *hidden[2:])
    assert len(unembed[0].sharding.device_set) == 8 and not unembed[0].sharding.is_fully_replicated
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-5), got, want)


def collectives(text):
    """(name of the computation, line) of every collective in a compiled program; the entry is called ENTRY."""
    found, computation = [], None
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            computation = line.split()[0]
        elif re.search(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\(", line):
            found.append((computation, line))
    return found


def test_devices_talk_once_a_pass_and_never_within_the_loop_over_blocks(mesh8):
    views, response = draw(rows=4, width=8, d=6, vocab=128)
    hidden, response = put_rows(mesh8, (views[0], response))
    unembed = jax.device_put(views[1], named(mesh8, "vocab", "embed"))

    def gradients(hidden, unembed):
        def loss(hidden, unembed):
            view = hidden, gather(unembed, "vocab", "embed")
            return jnp.sum(token_logp(view, response, temperature=1.0, chunk=1) ** 2)

        return jax.grad(loss, argnums=(0, 1))(hidden, unembed)

    text = jax.jit(gradients).lower(hidden, unembed).compile().as_text()
    assert " while(" in text
    found = collectives(text)
    assert {computation for computation, _ in found} == {"ENTRY"}
    # The unembedding of 64 words on a device is gathered once; its gradient is scattered over `fsdp` once, and what a
    # device then holds of it is summed over `data`.
    matrices = [line for _, line in found if re.search(r"f32\[(1,)?64,[36]\]", line)]
    kinds = sorted(re.search(r" ([a-z]+-[a-z]+)\(", line)[1] for line in matrices)
    assert kinds == ["all-gather", "all-reduce", "reduce-scatter"], kinds


# --- memory ----------------------------------------------------------------------------------------------------------


def largest_array(program, *args):
    """Elements of the largest array anywhere in the compiled program."""
    text = jax.jit(program).lower(*args).compile().as_text()
    return max(math.prod(int(n) for n in dims.split(",")) for dims in re.findall(r"\w\d+\[([\d,]+)\]", text))


@pytest.mark.parametrize("what", ["stats", "token_logp", "expected", "top_k_tail"])
def test_no_array_of_rows_by_response_by_vocabulary_is_ever_made(what):
    rows, width, vocab, chunk = 2, 32, 128, 4  # 8 chunks of positions, 8 blocks of 16 words
    views, response = draw(rows=rows, width=width, vocab=vocab)
    scale = np.ones(rows, np.float32)

    def loss(views, chunk):
        if what == "stats":
            out = statistics(*views, response, chunk=chunk)
        elif what == "token_logp":
            out = token_logp(views[:2], response, temperature=1.0, chunk=chunk)
        else:
            divergence = PRESSURE if what == "expected" else top_k_tail("teacher", 5, 0.5)
            out = expectation(*views, response, scale, divergence=divergence, chunk=chunk)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(out))

    # The program of the gradient holds the forward pass too.
    program = jax.value_and_grad(loss)
    assert largest_array(lambda views: program(views, chunk), views) == rows * chunk * vocab
    # The same eye sees the whole array where there is only one chunk.
    assert largest_array(lambda views: program(views, width), views) >= rows * width * vocab
