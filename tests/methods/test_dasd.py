"""DASD's credit against its formula in float64, and the properties that the mathematics promises."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import objective_oracle as oracle
import pytest

from dasd_jax.mesh import named, put_rows
from dasd_jax.methods import grpo
from dasd_jax.methods.dasd import (
    GATES,
    METHOD,
    ROUTES,
    SCALES,
    DasdParams,
    dasd,
    dense_bound,
    gap_scale,
    gated_gap,
    router,
)
from dasd_jax.objective.advantage import group_advantage, smallest_advantage
from dasd_jax.objective.contract import Scored, Shape, View, ViewStats

R = 12
SHAPE = Shape(rollouts=4, minibatches=2, max_new_tokens=R)
LENGTHS = (12, 1, 0, 4, 3, 7, 12, 6)  # row 2 is padding; rows 1 and 4 are shorter than min_tokens
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
    positive = lambda: rng.exponential(0.5, (1, *shape)).astype(np.float32)  # noqa: E731
    view = ViewStats(
        logp=teacher[None].astype(np.float32),
        entropy=positive(),
        forward_kl=positive(),
        reverse_kl=positive(),
        shown=np.ones((1, len(lengths)), bool),
        weight=np.ones((1, len(lengths)), np.float32),
    )
    reward = rng.integers(0, 2, len(lengths)).astype(np.float32)
    reward[:4] = 1, 0, 1, 0
    return Scored(
        mask=mask,
        live=mask.any(1),
        tokens=np.zeros(shape, np.int32),
        logp=student.astype(np.float32),
        entropy=entropy.astype(np.float32),
        reward=reward,
        correct=reward,
        views={"teacher": view},
        knobs={"step": np.float32(0), "teacher_weight": np.float32(1), "noise": np.float32(0)},
    )


def test_the_scale_is_at_least_the_noise():
    """As if it were s_min; less noise than s_min changes nothing."""
    b = ragged()
    for noise, s_min in ((1.0, 1.0), (0.01, 0.02)):
        loud = b.replace(knobs=b.knobs | {"noise": np.float32(noise)})
        np.testing.assert_array_equal(credit(loud), credit(b, s_min=s_min))


def teacher(b):
    return b.views["teacher"]


def with_teacher(b, **changes):
    return b.replace(views={"teacher": teacher(b).replace(**changes)})


def read(b):
    """What `dasd` reads of a batch, beside the mask and the verifier."""
    return b.logp, teacher(b).logp[0], b.entropy


def signal(b, **changes):
    return METHOD.signal(b, SHAPE, DasdParams(**changes))


def credit(b, **changes):
    return np.asarray(signal(b, **changes).advantage)


def verifier_alone(b):
    return np.asarray(grpo.METHOD.signal(b, SHAPE, None).advantage)


def with_junk(b, junk):
    """The same batch with `junk` wherever nothing may be read."""
    clean = lambda x: np.where(b.mask, x, np.float32(junk))  # noqa: E731
    b = with_teacher(
        b, **{name: clean(getattr(teacher(b), name)) for name in ("logp", "entropy", "forward_kl", "reverse_kl")}
    )
    return b.replace(logp=clean(b.logp), entropy=clean(b.entropy), reward=np.where(b.live, b.reward, np.float32(junk)))


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
        for gate in GATES[:-1]:
            for clip in (3.0, 0.8, 0.0):
                hp = DasdParams(route=route, scale=scale, rho_side=side, gate=gate, clip=clip)
                got, _ = dasd(*read(b), b.mask, verifier, hp)
                np.testing.assert_allclose(got, oracle.credit(*read(b), b.mask, verifier, hp)[0], rtol=2e-6, atol=ATOL)


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
def test_both_forms_signal_advantage_and_dense_term_of_the_float64_formula(changes):
    b = ragged(seed=1)
    b.reward[4:] = 1  # the second group does not vary
    hp = DasdParams(**changes)
    verifier = oracle.advantage(b.reward, b.mask, SHAPE.rollouts)
    total, direction, scales = oracle.credit(*read(b), b.mask, verifier, hp, teacher(b).reverse_kl[0])
    # Group 0 is the first minibatch, group 1 the second.
    weight = np.concatenate([half / half.sum() for half in np.split(b.mask.astype(np.float64), 2)])
    close = {"rtol": 2e-6, "atol": ATOL}

    sampled = signal(b, **changes)
    np.testing.assert_allclose(sampled.advantage, total, **close)
    np.testing.assert_allclose(sampled.weight, weight, rtol=1e-6)
    assert sampled.kl is None and sampled.nll is None and sampled.given is None

    full = signal(b, **changes, form="full")
    np.testing.assert_allclose(np.asarray(full.advantage)[b.mask], (verifier[:, None] + 0 * weight)[b.mask], **close)
    np.testing.assert_allclose(full.weight, weight, rtol=1e-6)
    np.testing.assert_allclose(full.kl, weight * hp.beta * direction, **close)
    for mine, theirs in zip(scales, np.asarray(full.given), strict=True):
        assert mine is None or theirs == pytest.approx(mine, rel=1e-6)

    for one in (sampled, full):
        np.testing.assert_allclose(one.logged["credit"], total, **close)
        np.testing.assert_allclose(one.logged["route"], direction, **close)
        np.testing.assert_allclose(one.logged["dense"], np.where(b.mask, total - verifier[:, None], 0), **close)


@pytest.mark.parametrize("bound", [0.0, 0.4])
def test_logged_masses_and_shares_are_token_means_of_the_float64_formula(bound):
    b, hp = ragged(), DasdParams(repel_kl_max=bound)
    reverse_kl = teacher(b).reverse_kl[0]
    verifier = oracle.advantage(b.reward, b.mask, SHAPE.rollouts)
    total, direction, scales = oracle.credit(*read(b), b.mask, verifier, hp, reverse_kl)
    unbounded = oracle.credit(*read(b), b.mask, verifier, DasdParams())[1][b.mask]
    dense = np.abs(total - verifier[:, None])[b.mask]
    gap = (teacher(b).logp[0].astype(np.float64) - b.logp)[b.mask]
    route = direction[b.mask]
    want = {
        "router/attract_frac": np.mean(route > 0),
        "router/repel_frac": np.mean(route < 0),
        "router/attract_mass": np.sum(dense[route > 0]) / len(dense) / hp.beta,
        "router/repel_mass": np.sum(dense[route < 0]) / len(dense) / hp.beta,
        "router/rows_off_frac": np.mean([not direction[i].any() for i in np.flatnonzero(b.live)]),
        "gap/mean": gap.mean(),
        "gap/mean_abs": np.abs(gap).mean(),
        "gap/scale_mean": np.mean([s for s in scales if s is not None]),
        "gap/repel_kl": reverse_kl[b.mask][unbounded < 0].mean(),
        "credit/dense_abs_mean": dense.mean(),
        "credit/verifier_abs_mean": np.abs(verifier[b.live]).mean(),
    }
    if bound:
        want["router/held_frac"] = np.mean((unbounded < 0) & (reverse_kl[b.mask] > bound))
        assert want["router/held_frac"] > 0
    metrics = signal(b, repel_kl_max=bound).metrics
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(want, rel=1e-5, abs=1e-7)
    # Without the divergences the two numbers that need them are left out, and the others are those without the bound.
    alone = dasd(*read(b), b.mask, verifier.astype(np.float32), hp)[1]
    assert alone.keys() == METHOD_METRICS
    if not bound:
        assert {name: float(x) for name, x in alone.items()} == pytest.approx(
            {name: want[name] for name in alone}, rel=1e-5, abs=1e-7
        )


METHOD_METRICS = {
    *("router/attract_frac", "router/repel_frac", "router/attract_mass", "router/repel_mass", "router/rows_off_frac"),
    *("gap/mean", "gap/mean_abs", "gap/scale_mean", "credit/dense_abs_mean", "credit/verifier_abs_mean"),
}


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
def test_the_gate_is_a_quarter_at_no_gap_a_half_at_one_and_seven_eighths_at_three(scaled, gate):
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


def test_the_bottom_reading_attracts_nothing_where_the_surest_fifth_is_certain():
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


@pytest.mark.parametrize("entropy", [0.0, 0.7, 11.0])
def test_constant_entropies_leave_the_verifier_alone(entropy):
    b = ragged()
    b = b.replace(entropy=np.full_like(b.entropy, entropy))
    for route in ("signed", "hard", "attract_only", "repel_only"):
        np.testing.assert_array_equal(credit(b, route=route), verifier_alone(b))


@pytest.mark.parametrize("scale", SCALES)
def test_equal_views_leave_the_verifier_alone(scale):
    b = ragged()
    b = with_teacher(b, logp=b.logp[None])
    for route in ROUTES:
        np.testing.assert_array_equal(credit(b, route=route, scale=scale), verifier_alone(b))


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("form", ["sampled", "full"])
def test_nan_and_infinity_in_padding_change_no_part_of_the_signal(form, junk):
    b = ragged()
    for changes in ({}, {"scale": "mad"}, {"scale": "std", "clip": 0.0}, {"repel_kl_max": 0.4, "route": "novelty"}):
        got, want = (signal(x, form=form, **changes) for x in (with_junk(b, junk), b))
        jax.tree.map(np.testing.assert_array_equal, got, want)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))


def test_credit_route_and_weights_are_zero_where_the_mask_is_false_for_all_maps():
    b = ragged()
    for route in ROUTES:
        sampled, full = (signal(b, route=route, min_tokens=1, form=form) for form in ("sampled", "full"))
        for x in (sampled.advantage, sampled.weight, sampled.logged["route"], full.weight, full.kl):
            assert np.asarray(x)[b.mask].any() and not np.asarray(x)[~b.mask].any()


def test_permuted_rows_get_permuted_credit():
    b = ragged()
    order = np.random.default_rng(3).permutation(len(b.mask))
    verifier = np.linspace(-1, 1, len(b.mask)).astype(np.float32)
    want, _ = dasd(*read(b), b.mask, verifier, DasdParams())
    got, _ = dasd(*(x[order] for x in read(b)), b.mask[order], verifier[order], DasdParams())
    np.testing.assert_array_equal(got, np.asarray(want)[order])


def test_permuted_tokens_of_a_response_get_permuted_credit_and_wider_padding_none():
    b = ragged(lengths=(R,) * 8)
    order = np.random.default_rng(3).permutation(R)
    wide = np.pad(b.mask, ((0, 0), (0, 5)))
    verifier = np.linspace(-1, 1, len(b.mask)).astype(np.float32)
    want = np.asarray(dasd(*read(b), b.mask, verifier, DasdParams())[0])
    shuffled, _ = dasd(*(x[:, order] for x in read(b)), b.mask[:, order], verifier, DasdParams())
    padded, _ = dasd(*(np.pad(x, ((0, 0), (0, 5))) for x in read(b)), wide, verifier, DasdParams())
    np.testing.assert_allclose(shuffled, want[:, order], atol=ATOL)
    np.testing.assert_allclose(padded, np.pad(want, ((0, 0), (0, 5))), atol=ATOL)


@pytest.mark.parametrize("scale", SCALES)
def test_the_dense_term_stays_under_beta_c_sigma_of_c_minus_one(scale):
    b = ragged(lengths=(R,) * 8)
    far = b.logp + 50 * (teacher(b).logp[0] - b.logp)
    for route in ROUTES:
        for beta, clip in ((0.1, 3.0), (0.7, 1.5)):
            hp = DasdParams(route=route, scale=scale, beta=beta, clip=clip)
            dense, _ = dasd(b.logp, far, b.entropy, b.mask, np.zeros(8, np.float32), hp)
            bound = beta * clip / (1 + math.exp(1 - clip))
            assert dense_bound(hp) == pytest.approx(bound, rel=1e-6)
            assert np.abs(dense).max() <= bound * (1 + 1e-6)
            if route in ("hard", "conformity", "novelty"):
                assert np.abs(dense).max() == pytest.approx(bound, rel=1e-6)  # and it is reached
    assert 0.1 * 3 / (1 + math.exp(-2)) == pytest.approx(0.2642, abs=1e-4)


def test_at_the_defaults_the_teacher_cannot_turn_a_verdict_up_to_groups_of_fourteen():
    for group in (2, 8, 14, 15):
        reward, live = np.eye(group, dtype=np.float32)[0], np.ones(group, bool)
        smallest = np.abs(group_advantage(reward, live, group)).min()
        assert smallest_advantage(group) == pytest.approx(smallest, rel=1e-4)
        assert (dense_bound(DasdParams()) < smallest) == (group < 15)
        assert bool(METHOD.notice(DasdParams(), group, False)) == (group == 15)
    assert dense_bound(DasdParams(gate="none")) == pytest.approx(0.3)
    assert dense_bound(DasdParams(clip=0.0)) == math.inf
    assert dense_bound(DasdParams(clip=0.0, beta=0.0)) == 0


def test_rewards_graded_by_length_have_no_smallest_advantage_and_the_run_says_so():
    reward, live = np.array([1, 0.76, 0.5, 0], np.float32), np.ones(4, bool)
    smallest = np.abs(group_advantage(reward, live, 4)[:3]).min()
    assert smallest < dense_bound(DasdParams()) < smallest_advantage(4)
    assert "graded rewards" in METHOD.notice(DasdParams(), 4, True)
    assert METHOD.notice(DasdParams(beta=0.0), 4, True) == ""


def test_the_dense_term_is_below_every_advantage_of_a_mixed_group_of_eight():
    hp, live = DasdParams(), np.ones(8, bool)
    smallest = min(
        np.abs(group_advantage((np.arange(8) < wins).astype(np.float32), live, 8)).min() for wins in range(1, 8)
    )
    assert smallest == pytest.approx(0.354, abs=1e-3)
    assert hp.beta * float(gated_gap(1e9, 1.0, hp)) < smallest


@pytest.mark.parametrize("scale", SCALES)
def test_negating_the_gap_negates_the_dense_term(scale):
    b = ragged()
    zero, other = np.zeros(len(b.mask), np.float32), teacher(b).logp[0]
    for route in ROUTES:
        hp = DasdParams(route=route, scale=scale)
        there, _ = dasd(b.logp, other, b.entropy, b.mask, zero, hp)
        back, _ = dasd(other, b.logp, b.entropy, b.mask, zero, hp)
        assert np.abs(there).max() > 0.01
        np.testing.assert_array_equal(back, -np.asarray(there))


def test_the_maps_are_parts_signs_and_constants_of_the_signed_one():
    b = ragged()
    got = {route: np.asarray(router(b.entropy, b.mask, DasdParams(route=route))[0]) for route in ROUTES}
    signed = got["signed"]
    on = signed.any(1)[:, None] & b.mask
    np.testing.assert_array_equal(got["attract_only"] + got["repel_only"], signed)
    assert got["attract_only"].min() == 0 == got["repel_only"].max()
    np.testing.assert_array_equal(got["hard"], np.sign(signed))
    np.testing.assert_array_equal(got["conformity"], on)
    np.testing.assert_array_equal(got["novelty"], -on.astype(np.float32))


def test_a_repelled_token_beyond_repel_kl_max_keeps_the_verifier_alone():
    b, bound = ragged(), 0.4
    free, held = signal(b), signal(b, repel_kl_max=bound)
    stopped = (np.asarray(free.logged["route"]) < 0) & (teacher(b).reverse_kl[0] > bound)
    assert stopped.any()
    np.testing.assert_array_equal(held.advantage, np.where(stopped, verifier_alone(b), free.advantage))
    free, held = (np.asarray(signal(b, repel_kl_max=x, form="full").kl) for x in (0, bound))
    np.testing.assert_array_equal(held, np.where(stopped, 0, free))


def test_without_dense_on_zero_adv_a_group_of_equal_rewards_gets_no_credit_at_all():
    b = ragged()
    b.reward[4:] = 1
    kept, dropped = signal(b), signal(b, dense_on_zero_adv=False)
    assert np.asarray(kept.advantage)[4:].any()
    assert not np.asarray(dropped.advantage)[4:].any() and not np.asarray(dropped.logged["route"])[4:].any()
    np.testing.assert_array_equal(dropped.advantage[:4], kept.advantage[:4])
    assert not np.asarray(signal(b, dense_on_zero_adv=False, form="full").kl)[4:].any()


def test_a_response_shorter_than_min_tokens_is_left_to_the_verifier():
    b = ragged(lengths=(R,) * 8)
    for length in (1, 2, 3):
        mask = np.arange(R) < np.full((8, 1), length)
        got, metrics = dasd(*read(b), mask, np.full(8, 0.7, np.float32), DasdParams())
        np.testing.assert_array_equal(got, np.where(mask, np.float32(0.7), 0))
        assert metrics["router/rows_off_frac"] == 1


@pytest.mark.parametrize("form", ["sampled", "full"])
def test_a_batch_of_padding_has_no_credit_and_a_finite_signal(form):
    got = signal(ragged(lengths=(0,) * 8), form=form)
    assert not np.asarray(got.logged["credit"]).any() and not np.asarray(got.weight).any()
    assert got.kl is None or not np.asarray(got.kl).any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))


def test_the_teachers_weight_multiplies_beta_in_credit_divergence_and_log():
    b = ragged()
    lowered = b.replace(knobs=b.knobs | {"teacher_weight": np.float32(0.25)})
    for form in ("sampled", "full"):
        got, want = signal(lowered, form=form, beta=0.4), signal(b, form=form, beta=0.1)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), got, want)


def test_a_rollout_outside_the_loss_counts_in_its_group_and_changes_no_other_credit():
    b = ragged()
    inside = b.mask & (np.arange(8) != 3)[:, None]
    got, want = signal(b.replace(mask=inside)), signal(b)
    np.testing.assert_array_equal(got.advantage, np.where(inside, want.advantage, 0))
    np.testing.assert_array_equal(np.asarray(got.weight) > 0, inside)
    # Its verdict is still one of the group's, in the log as in the mean.
    assert got.metrics["credit/verifier_abs_mean"] == want.metrics["credit/verifier_abs_mean"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, View()),
        ({"context": "other_problem", "teacher": "frozen"}, View("other_problem", "frozen")),
        ({"teacher": "ema", "rate": 0.1}, View(weights="ema", rate=0.1)),
        ({"teacher": "snapshot", "refresh": 7}, View(weights="snapshot", every=7)),
    ],
)
def test_the_teacher_is_shown_and_weighted_as_the_fields_say(changes, expected):
    assert METHOD.views(DasdParams(**changes)) == {"teacher": expected}


def test_numpy_arrays_jax_arrays_and_a_compiled_program_give_one_credit():
    b, hp = ragged(), DasdParams()
    verifier = np.linspace(-1, 1, len(b.mask)).astype(np.float32)
    arrays = (*read(b), b.mask, verifier)
    want = dasd(*arrays, hp)
    eager = dasd(*map(jnp.asarray, arrays), hp)
    compiled = jax.jit(dasd, static_argnums=5)(*arrays, hp)
    jax.tree.map(np.testing.assert_array_equal, eager, want)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), compiled, want)


@pytest.mark.parametrize("group", [2, 4, 8])  # with 8, one group lies on two of the four row shards
def test_rows_split_over_eight_devices_get_the_signal_of_one(mesh, mesh8, group):
    b = ragged(lengths=LENGTHS * 4)
    shape = Shape(rollouts=group, minibatches=2 if group < 8 else 1, max_new_tokens=R)
    forms = [DasdParams(repel_kl_max=0.4, form=form) for form in ("sampled", "full")]
    compute = jax.jit(lambda b: [METHOD.signal(b, shape, hp) for hp in forms])
    with jax.set_mesh(mesh):
        want = compute(b)
    by_view = jax.tree.map(lambda x: jax.device_put(x, named(mesh8, None, "rows")), b.views)
    got = compute(put_rows(mesh8, b.replace(views={}, knobs={})).replace(views=by_view, knobs=b.knobs))
    assert all(len(signal.weight.sharding.device_set) == 8 for signal in got)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), got, want)
