"""Credit against its formula in float64, and the properties that the mathematics promises."""

import dataclasses
import math
import types

import jax
import numpy as np
import objective_oracle as oracle
import pytest

from dasd_jax.batch import TokenStats
from dasd_jax.mesh import put_rows
from dasd_jax.objective.credit import (
    METHODS,
    ROUTES,
    SCALES,
    DasdParams,
    dasd,
    dasd_credit,
    dense_bound,
    gap_scale,
    gated_gap,
    group_advantage,
    grpo_credit,
    router,
    smallest_advantage,
)

R = 12
GROUP = 4
LENGTHS = (12, 1, 0, 4, 3, 7, 12, 6)  # row 2 is padding; rows 1 and 4 are shorter than min_tokens
FIELDS = ("student_logp", "teacher_logp", "student_entropy", "teacher_entropy", "forward_kl", "reverse_kl")
JUNK = (np.nan, np.inf, -np.inf)
ATOL = 1e-6


def ragged(seed=0, lengths=LENGTHS):
    """Rows of unlike lengths, heavy-tailed gaps; a row of constant entropy, one of equal views, one with a hole."""
    rng = np.random.default_rng(seed)
    shape = (len(lengths), R)
    mask = np.arange(R) < np.array(lengths)[:, None]
    student = -rng.exponential(1.0, shape)
    teacher = student + 0.3 * rng.standard_t(2, shape)
    entropy = rng.exponential(0.5, shape)
    entropy[5] = 0.7
    teacher[6] = student[6]
    mask[0, 3] = False
    values = {name: rng.exponential(0.5, shape) for name in FIELDS}
    values |= {"student_logp": student, "teacher_logp": teacher, "student_entropy": entropy}
    values = {name: value.astype(np.float32) for name, value in values.items()}
    reward = rng.integers(0, 2, len(lengths)).astype(np.float32)
    reward[:4] = 1, 0, 1, 0
    return types.SimpleNamespace(**values, mask=mask, reward=reward, stats=TokenStats(**values))


def views(b):
    return b.student_logp, b.teacher_logp, b.student_entropy


def with_junk(b, junk):
    """The same batch with `junk` wherever nothing may be read."""
    values = {name: np.where(b.mask, getattr(b, name), junk).astype(np.float32) for name in FIELDS}
    reward = np.where(b.mask.any(1), b.reward, junk).astype(np.float32)
    return types.SimpleNamespace(**values, mask=b.mask, reward=reward, stats=TokenStats(**values))


def one_row(gap, entropy, **changes):
    """Credit of one whole response whose verifier says 0."""
    gap, entropy = (np.asarray([x], np.float32) for x in (gap, entropy))
    mask = np.ones(gap.shape, bool)
    return np.asarray(dasd(np.zeros_like(gap), gap, entropy, mask, np.zeros(1, np.float32), DasdParams(**changes))[0])[
        0
    ]


# --- against float64 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("route", ROUTES)
def test_credit_is_the_float64_formula_for_every_map_scale_side_gate_and_clip(route, scale):
    b = ragged()
    verifier = np.linspace(-1.5, 1.5, len(b.mask)).astype(np.float32)
    for side in ("top", "bottom"):
        for gate in (True, False):
            for clip in (3.0, 0.8, 0.0):
                hp = DasdParams(route=route, scale=scale, rho_side=side, gate=gate, clip=clip)
                got, _ = dasd(*views(b), b.mask, verifier, hp)
                np.testing.assert_allclose(got, oracle.credit(*views(b), b.mask, verifier, hp)[0], rtol=2e-6, atol=ATOL)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rho": 0.5, "beta": 0.3},
        {"min_tokens": 1, "min_spread": 0.0},
        {"min_tokens": 7},
        {"s_min": 0.5},
        {"repel_kl_max": 0.4},
        {"repel_kl_max": 0.4, "route": "novelty"},
        {"repel_kl_max": 0.4, "route": "conformity"},
        {"dense_on_zero_adv": False},
    ],
    ids=str,
)
def test_the_dasd_method_is_group_advantage_and_dense_term_of_the_float64_formula(changes):
    b = ragged(seed=1)
    b.reward[4:] = 1  # the second group does not vary
    hp = DasdParams(**changes)
    verifier = oracle.advantage(b.reward, b.mask, GROUP)
    total, direction, scales = oracle.credit(*views(b), b.mask, verifier, hp, b.reverse_kl)
    got = dasd_credit(b.stats, b.mask, b.reward, GROUP, hp)
    np.testing.assert_allclose(got.verifier, verifier, rtol=2e-6, atol=ATOL)
    np.testing.assert_allclose(got.advantage, total, rtol=2e-6, atol=ATOL)
    np.testing.assert_allclose(got.route, direction, rtol=2e-6, atol=ATOL)
    for mine, theirs in zip(scales, np.asarray(got.scale), strict=True):
        assert mine is None or theirs == pytest.approx(mine, rel=1e-6)
    np.testing.assert_array_equal(got.keep, b.mask)


@pytest.mark.parametrize("bound", [0.0, 0.4])
def test_logged_masses_and_shares_are_token_means_of_the_float64_formula(bound):
    b, hp = ragged(), DasdParams(repel_kl_max=bound)
    verifier = oracle.advantage(b.reward, b.mask, GROUP)
    total, direction, scales = oracle.credit(*views(b), b.mask, verifier, hp, b.reverse_kl)
    unbounded = oracle.credit(*views(b), b.mask, verifier, DasdParams())[1][b.mask]
    dense = np.abs(total - verifier[:, None])[b.mask]
    gap = (b.teacher_logp.astype(np.float64) - b.student_logp)[b.mask]
    route = direction[b.mask]
    live = b.mask.any(1)
    want = {
        "router/attract_frac": np.mean(route > 0),
        "router/repel_frac": np.mean(route < 0),
        "router/attract_mass": np.sum(dense[route > 0]) / len(dense) / hp.beta,
        "router/repel_mass": np.sum(dense[route < 0]) / len(dense) / hp.beta,
        "router/rows_off_frac": np.mean([not direction[i].any() for i in np.flatnonzero(live)]),
        "gap/mean": gap.mean(),
        "gap/mean_abs": np.abs(gap).mean(),
        "gap/scale_mean": np.mean([s for s in scales if s is not None]),
        "gap/repel_kl": b.reverse_kl[b.mask][unbounded < 0].mean(),
        "credit/dense_abs_mean": dense.mean(),
        "credit/verifier_abs_mean": np.abs(verifier[live]).mean(),
    }
    if bound:
        want["router/held_frac"] = np.mean((unbounded < 0) & (b.reverse_kl[b.mask] > bound))
        assert want["router/held_frac"] > 0
    metrics = dasd_credit(b.stats, b.mask, b.reward, GROUP, hp).metrics
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(want, rel=1e-5, abs=1e-7)


# --- numbers worked by hand ------------------------------------------------------------------------------------------


def test_five_tokens_by_hand():
    # Entropies 0..4: quantile .8 is 3.2, mean absolute deviation 1.2. Gaps: mean size 2, so d = .5, -.5, 1, -1, 2.
    got = one_row([1, -1, 2, -2, 4], [0, 1, 2, 3, 4])
    route = [math.tanh((3.2 - h) / 1.2) for h in range(5)]
    gate = [0.3775407, 0.3775407, 0.5, 0.5, 0.7310586]
    want = [0.1 * r * g * d for r, g, d in zip(route, gate, [0.5, -0.5, 1, -1, 2], strict=True)]
    np.testing.assert_allclose(got, want, atol=1e-7)
    assert got[4] == pytest.approx(-0.0852, abs=1e-4)  # a fork the teacher likes is punished
    assert got[1] < 0 < got[0]  # a sure step follows the teacher both ways


@pytest.mark.parametrize(("scaled", "gate"), [(0.0, 0.269), (1.0, 0.5), (-1.0, 0.5), (3.0, 0.881), (-3.0, 0.881)])
def test_the_gate_is_a_quarter_at_no_gap_a_half_at_a_typical_one_and_seven_eighths_at_three(scaled, gate):
    small = 1e-3 if scaled == 0 else 0.0
    slope = float(gated_gap(scaled + small, 1.0, DasdParams())) / (scaled + small)
    assert slope == pytest.approx(gate, abs=1e-3)


def test_the_four_scales_by_hand():
    gap = np.array([[1.0, 3.0, -2.0, 99.0], [0.001, -0.001, 0.001, 99.0]], np.float32)
    mask = np.array([[True, True, True, False]] * 2)
    want = {  # the row's mean is 2/3, its deviations 1/3, 7/3 and -8/3
        "mean_abs": [2, 0.02],
        "mad": [16 / 9, 0.02],
        "std": [math.sqrt((1 + 49 + 64) / 27), 0.02],
        "none": [1, 1],
    }
    for name, sizes in want.items():
        np.testing.assert_allclose(gap_scale(gap, mask, DasdParams(scale=name)), sizes, rtol=1e-6)


def test_the_bottom_reading_leaves_nothing_to_attract_where_the_surest_fifth_is_certain():
    entropy, mask = np.array([[0.0, 0.0, 1.0, 2.0, 3.0]], np.float32), np.ones((1, 5), bool)
    bottom, top = (np.asarray(router(entropy, mask, DasdParams(rho_side=side))[0]) for side in ("bottom", "top"))
    assert bottom.max() == 0 and bottom.min() < -0.9
    assert top.max() > 0.9 and top.min() < 0


def test_share_repelled_of_n_distinct_entropies_follows_from_linear_interpolation():
    sizes = np.arange(1, 65)
    mask = np.arange(64) < sizes[:, None]
    entropy = np.random.default_rng(0).permuted(np.tile(np.linspace(0.1, 3, 64), (64, 1)), axis=1).astype(np.float32)
    route, _ = router(entropy, mask, DasdParams(min_tokens=1))
    share = (np.asarray(route) < 0).sum(1) / sizes
    np.testing.assert_array_equal(share, (sizes - 1 - 4 * (sizes - 1) // 5) / sizes)
    np.testing.assert_allclose(share[[1, 3, 5, 7, 15]], [0.5, 0.25, 0.17, 0.25, 0.19], atol=5e-3)


def test_rows_are_routed_from_min_tokens_and_min_spread_on():
    entropy = np.array([[0, 1, 2, 9], [0, 1, 2, 3], [1, 1, 1.0001, 1.0001], [1, 1, 1.001, 1.001]], np.float32)
    mask = np.array([[True, True, True, False]] + [[True] * 4] * 3)
    route, on = router(entropy, mask, DasdParams())
    np.testing.assert_array_equal(on, [False, True, False, True])
    np.testing.assert_array_equal(np.asarray(route).any(1), on)


# --- properties ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["signed", "hard", "attract_only", "repel_only"])
@pytest.mark.parametrize("entropy", [0.0, 0.7, 11.0])
def test_constant_entropies_leave_the_verifier_alone(route, entropy):
    b = ragged()
    b.stats = b.stats.replace(student_entropy=np.full_like(b.student_entropy, entropy))
    got = dasd_credit(b.stats, b.mask, b.reward, GROUP, DasdParams(route=route))
    np.testing.assert_array_equal(got.advantage, grpo_credit(b.stats, b.mask, b.reward, GROUP, DasdParams()).advantage)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("route", ROUTES)
def test_equal_views_leave_the_verifier_alone(route, scale):
    b = ragged()
    stats = b.stats.replace(teacher_logp=b.student_logp)
    got = dasd_credit(stats, b.mask, b.reward, GROUP, DasdParams(route=route, scale=scale))
    np.testing.assert_array_equal(got.advantage, grpo_credit(stats, b.mask, b.reward, GROUP, DasdParams()).advantage)


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("method", ["dasd", "grpo"])
def test_nan_and_infinity_in_padding_change_no_credit_and_no_metric(method, junk):
    b = ragged()
    dirty = with_junk(b, junk)
    for changes in ({}, {"scale": "mad"}, {"scale": "std", "clip": 0.0}, {"repel_kl_max": 0.4, "route": "novelty"}):
        hp = DasdParams(**changes)
        want = METHODS[method](b.stats, b.mask, b.reward, GROUP, hp)
        got = METHODS[method](dirty.stats, dirty.mask, dirty.reward, GROUP, hp)
        jax.tree.map(np.testing.assert_array_equal, got, want)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))


def test_credit_and_route_are_zero_where_the_mask_is_false_whatever_the_map():
    b = ragged()
    for route in ROUTES:
        got = dasd_credit(b.stats, b.mask, b.reward, GROUP, DasdParams(route=route, min_tokens=1))
        assert not np.asarray(got.advantage)[~b.mask].any()
        assert not np.asarray(got.route)[~b.mask].any()


def test_permuted_rows_get_permuted_credit():
    b = ragged()
    order = np.random.default_rng(3).permutation(len(b.mask))
    verifier = np.linspace(-1, 1, len(b.mask)).astype(np.float32)
    want, _ = dasd(*views(b), b.mask, verifier, DasdParams())
    got, _ = dasd(*(x[order] for x in views(b)), b.mask[order], verifier[order], DasdParams())
    np.testing.assert_array_equal(got, np.asarray(want)[order])


def test_permuted_tokens_of_a_response_get_permuted_credit_and_wider_padding_none():
    b = ragged(lengths=(R,) * 8)
    order = np.random.default_rng(3).permutation(R)
    wide = np.pad(b.mask, ((0, 0), (0, 5)))
    verifier = np.linspace(-1, 1, len(b.mask)).astype(np.float32)
    want = np.asarray(dasd(*views(b), b.mask, verifier, DasdParams())[0])
    shuffled, _ = dasd(*(x[:, order] for x in views(b)), b.mask[:, order], verifier, DasdParams())
    padded, _ = dasd(*(np.pad(x, ((0, 0), (0, 5))) for x in views(b)), wide, verifier, DasdParams())
    np.testing.assert_allclose(shuffled, want[:, order], atol=ATOL)
    np.testing.assert_allclose(padded, np.pad(want, ((0, 0), (0, 5))), atol=ATOL)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("scale", SCALES)
def test_the_dense_term_stays_under_beta_c_sigma_of_c_minus_one(route, scale):
    b = ragged(lengths=(R,) * 8)
    teacher = (b.student_logp + 50 * (b.teacher_logp - b.student_logp)).astype(np.float32)
    for beta, clip in ((0.1, 3.0), (0.7, 1.5)):
        hp = DasdParams(route=route, scale=scale, beta=beta, clip=clip)
        dense, _ = dasd(b.student_logp, teacher, b.student_entropy, b.mask, np.zeros(8, np.float32), hp)
        bound = beta * clip / (1 + math.exp(1 - clip))
        assert dense_bound(hp) == pytest.approx(bound, rel=1e-6)
        assert np.abs(dense).max() <= bound * (1 + 1e-6)
        if route in ("hard", "conformity", "novelty"):
            assert np.abs(dense).max() == pytest.approx(bound, rel=1e-6)  # and it is reached
    assert 0.1 * 3 / (1 + math.exp(-2)) == pytest.approx(0.2642, abs=1e-4)


def test_at_the_defaults_the_teacher_cannot_turn_a_verdict_up_to_groups_of_fourteen():
    for group in (2, 8, 14, 15):
        reward, mask = np.eye(group, dtype=np.float32)[0], np.ones((group, 1), bool)
        smallest = np.abs(group_advantage(reward, mask, group)).min()
        assert smallest_advantage(group) == pytest.approx(smallest, rel=1e-4)
        assert (dense_bound(DasdParams()) < smallest) == (group < 15)
    assert dense_bound(DasdParams(gate=False)) == pytest.approx(0.3)
    assert dense_bound(DasdParams(clip=0.0)) == math.inf


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("route", ROUTES)
def test_negating_the_gap_negates_the_dense_term(route, scale):
    b, hp = ragged(), DasdParams(route=route, scale=scale)
    zero = np.zeros(len(b.mask), np.float32)
    there, _ = dasd(b.student_logp, b.teacher_logp, b.student_entropy, b.mask, zero, hp)
    back, _ = dasd(b.teacher_logp, b.student_logp, b.student_entropy, b.mask, zero, hp)
    assert np.abs(there).max() > 0.01
    np.testing.assert_array_equal(back, -np.asarray(there))


def test_the_maps_are_parts_signs_and_constants_of_the_signed_one():
    b = ragged()
    hp = {route: DasdParams(route=route) for route in ROUTES}
    got = {route: np.asarray(router(b.student_entropy, b.mask, hp[route])[0]) for route in ROUTES}
    signed = got["signed"]
    on = signed.any(1)[:, None] & b.mask
    np.testing.assert_array_equal(got["attract_only"] + got["repel_only"], signed)
    assert got["attract_only"].min() == 0 == got["repel_only"].max()
    np.testing.assert_array_equal(got["hard"], np.sign(signed))
    np.testing.assert_array_equal(got["conformity"], on)
    np.testing.assert_array_equal(got["novelty"], -on.astype(np.float32))


def test_a_repelled_token_beyond_repel_kl_max_keeps_the_verifier_and_no_other_token_changes():
    b, bound = ragged(), 0.4
    free = dasd_credit(b.stats, b.mask, b.reward, GROUP, DasdParams())
    held = dasd_credit(b.stats, b.mask, b.reward, GROUP, DasdParams(repel_kl_max=bound))
    stopped = (np.asarray(free.route) < 0) & (b.reverse_kl > bound)
    assert stopped.any()
    want = np.where(stopped, np.asarray(free.verifier)[:, None], np.asarray(free.advantage))
    np.testing.assert_array_equal(held.advantage, want)


def test_without_dense_on_zero_adv_a_group_of_equal_rewards_gets_no_credit_at_all():
    b = ragged()
    b.reward[4:] = 1
    kept = dasd_credit(b.stats, b.mask, b.reward, GROUP, DasdParams())
    dropped = dasd_credit(b.stats, b.mask, b.reward, GROUP, DasdParams(dense_on_zero_adv=False))
    assert np.asarray(kept.advantage)[4:].any()
    assert not np.asarray(dropped.advantage)[4:].any() and not np.asarray(dropped.route)[4:].any()
    np.testing.assert_array_equal(dropped.advantage[:4], kept.advantage[:4])


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_response_shorter_than_min_tokens_is_left_to_the_verifier(length):
    mask = np.arange(R) < np.full((8, 1), length)
    b = ragged(lengths=(R,) * 8)
    got, metrics = dasd(*views(b), mask, np.full(8, 0.7, np.float32), DasdParams())
    np.testing.assert_array_equal(got, np.where(mask, np.float32(0.7), 0))
    assert metrics["router/rows_off_frac"] == 1


def test_a_batch_of_padding_has_no_credit_and_finite_metrics():
    b = ragged(lengths=(0,) * 8)
    got = dasd_credit(b.stats, b.mask, b.reward, GROUP, DasdParams())
    assert not np.asarray(got.advantage).any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))


def test_compiled_credit_is_the_credit_of_plain_numpy_arrays():
    b, hp = ragged(), DasdParams()
    want = dasd_credit(b.stats, b.mask, b.reward, GROUP, hp)
    got = jax.jit(lambda stats, mask, reward: dasd_credit(stats, mask, reward, GROUP, hp))(b.stats, b.mask, b.reward)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), got, want)


@pytest.mark.parametrize("group", [2, 4, 8])  # with 8, one group lies on two of the four row shards
def test_rows_split_over_eight_devices_get_the_credit_of_one(mesh, mesh8, group):
    b, hp = ragged(lengths=LENGTHS * 2), DasdParams(repel_kl_max=0.4)
    compute = jax.jit(lambda stats, mask, reward: dasd_credit(stats, mask, reward, group, hp))
    with jax.set_mesh(mesh):
        want = compute(b.stats, b.mask, b.reward)
    got = compute(*put_rows(mesh8, (b.stats, b.mask, b.reward)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), got, want)


# --- the group's advantage -------------------------------------------------------------------------------------------


def full(rows):
    return np.ones((rows, 2), bool)


def test_one_success_in_eight_by_hand():
    # Mean 1/8; squared deviations 49/64 + 7/64 over 7 give the sample variance 1/8.
    got = group_advantage(np.array([1, 0, 0, 0, 0, 0, 0, 0], np.float32), full(8), 8)
    np.testing.assert_allclose(got, [7 / math.sqrt(8)] + [-1 / math.sqrt(8)] * 7, rtol=1e-5)


def test_each_group_is_standardised_by_its_own_mean_and_sample_deviation():
    reward = np.array([0, 1, 0, 1, 1, 1, 0.25, 1], np.float32)
    got = np.asarray(group_advantage(reward, full(8), 4)).reshape(2, 4)
    groups = reward.reshape(2, 4).astype(np.float64)
    want = (groups - groups.mean(1, keepdims=True)) / (groups.std(1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(got[0], np.array([-1, 1, -1, 1]) * math.sqrt(3) / 2, rtol=1e-5)
    np.testing.assert_allclose(got.sum(1), 0, atol=1e-5)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3, 0.7, -1.0])
@pytest.mark.parametrize("group", [2, 3, 7, 8])
def test_a_group_of_equal_rewards_has_advantage_exactly_zero(reward, group):
    got = group_advantage(np.full(2 * group, reward, np.float32), full(2 * group), group)
    np.testing.assert_array_equal(got, np.zeros(2 * group))


def test_padded_rows_of_a_group_neither_count_nor_receive():
    mask = np.repeat([[True], [True], [False], [False], [True], [False], [False], [False]], 2, axis=1)
    reward = np.array([1, 0, 77, np.nan, 1, np.inf, -5, 0], np.float32)
    got = group_advantage(reward, mask, 4)
    # Two live rows: mean 1/2, sample deviation 1/sqrt 2. One live row cannot differ from itself.
    np.testing.assert_allclose(got, [1 / math.sqrt(2), -1 / math.sqrt(2), 0, 0, 0, 0, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(got, oracle.advantage(reward, mask, 4), rtol=1e-5)


def test_at_the_defaults_the_dense_term_cannot_turn_the_verdict_on_a_mixed_group_of_eight():
    hp = DasdParams()
    smallest = min(
        np.abs(group_advantage((np.arange(8) < wins).astype(np.float32), full(8), 8)).min() for wins in range(1, 8)
    )
    assert smallest == pytest.approx(0.354, abs=1e-3)
    assert hp.beta * float(gated_gap(1e9, 1.0, hp)) < smallest


def test_grpo_gives_every_token_its_responses_advantage():
    b = ragged()
    got = grpo_credit(b.stats, b.mask, b.reward, GROUP, DasdParams())
    want = np.where(b.mask, oracle.advantage(b.reward, b.mask, GROUP)[:, None], 0)
    np.testing.assert_allclose(got.advantage, want, rtol=1e-5, atol=ATOL)
    assert not np.asarray(got.route).any()
    absent = dict.fromkeys(name for name in FIELDS if not name.startswith("student"))
    alone = grpo_credit(b.stats.replace(**absent), b.mask, b.reward, GROUP, DasdParams())
    np.testing.assert_array_equal(alone.advantage, got.advantage)  # no teacher is read
    dense_off = dasd_credit(b.stats, b.mask, b.reward, GROUP, dataclasses.replace(DasdParams(), beta=0.0))
    np.testing.assert_array_equal(dense_off.advantage, got.advantage)
