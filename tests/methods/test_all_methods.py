"""Every method's credit, loss and gradient beside a float64 version written from its formula; and what all promise."""

import dataclasses
import functools
import itertools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import methods_oracle
import numpy as np
import objective_oracle as oracle
import pytest
from batch_of_all_cases import KNOBS, SHAPE, Batch, M

from dasd_jax.learner.step import loss_of
from dasd_jax.mesh import named, put_rows, replicate
from dasd_jax.methods import METHODS
from dasd_jax.methods.dasd import SIGNALS
from dasd_jax.objective.normalise import sequence_mean
from dasd_jax.objective.surrogate import ClipRange
from dasd_jax.objective.token_stats import token_logp, token_logp_and_divergence

CLIP = ClipRange(0.2, 0.2)
GOLDEN = Path(__file__).with_name("golden.json")
CASES = [
    *((name, {}) for name in methods_oracle.SIGNALS),
    ("hepo", {"share": 0.35, "norm": "all"}),
    ("opsd", {"b": 0.5, "entry_max": 0.0, "softening": 1.1}),
    ("opsd", {"b": 1.0, "entry_max": 0.0}),
    ("opsd", {"form": "sampled"}),
    ("sdpo", {"top_k": 5}),
    ("sdpo", {"top_k": 5, "alpha": 0.0}),
    ("sdpo", {"top_k": 5, "alpha": 1.0}),
    ("srpo", {"top_k": 7, "sharpness": 0.3}),
    ("rlsd", {"decay_steps": 0, "eps": 0.05}),
    ("rlrt", {"mix": 1.0, "eps": 1.0}),
    ("antisd", {"measured_steps": 2}),
    ("rlcsd", {"tau": 0.5, "delta": 0.2, "eta": 0.7}),
    ("demopsd", {"top_k": 5, "share_max": 0.6, "steepness": 4.0}),
    ("pw_opsd", {"entry_max": 0.0, "weight_min": 0.1, "middle": 0.6, "width": 0.3}),
    ("ad_opsd", {"share": 0.6, "tau": 0.05}),
    ("egrsd", {"lookahead": 2}),
    ("egrsd", {"floor": 0.0, "quantile": 0.5, "eps": 0.4}),
    ("purified_opsd", {"b": 0.3, "bound": 0.7, "beta": 1.5}),
    ("sgsd", {"tau": 0.2, "clip": 0.3, "neutral": 0.0}),
    ("dasd", {"route": "flip_low", "gate": "inverse", "beta": 0.5}),
]
IDS = [" ".join([name, *(f"{field}={value}" for field, value in fields.items())]) for name, fields in CASES]


def made(name, **fields):
    return METHODS[name], METHODS[name].fields(**fields)


def keep_of(signal):
    weights = [weight for weight in (signal.weight, signal.kl, signal.nll) if weight is not None]
    return functools.reduce(jnp.logical_or, (weight != 0 for weight in weights))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _value_and_gradients(method, hp, clip, signal, hidden, teachers, unembed, tokens, old):
    """The loss as the learner makes it, and its gradients by the hidden states of student and teachers."""

    def loss(hidden, teachers):
        options, divergence = {"temperature": 1.0, "chunk": 4}, method.divergence(hp)
        student = hidden, unembed
        if divergence is None:
            logp, diverged = token_logp(student, tokens, **options), None
        else:
            logp, diverged = token_logp_and_divergence(
                student, [(teacher, unembed) for teacher in teachers], tokens, divergence, signal.given, **options
            )
        return loss_of(method, clip, signal, keep_of(signal), logp, diverged, old)[0]

    return jax.value_and_grad(loss, argnums=(0, 1))(hidden, teachers)


def value_and_gradients(method, hp, batch, signal, hidden, clip=CLIP, teacher=None):
    if method.divergence(hp) is None and method.surrogate is METHODS["grpo"].surrogate:
        method, hp = made("grpo")  # compiled once for all methods that differ in their signal alone
    divergence = method.divergence(hp)
    views = divergence.views if divergence else ()
    teachers = tuple(np.asarray(batch.states[view] if teacher is None else teacher, np.float32) for view in views)
    old = batch.drawn(batch.logp(batch.old))
    hidden, unembed = (np.asarray(x, np.float32) for x in (hidden, batch.unembed))
    signal = signal.replace(logged={}, metrics={})
    return _value_and_gradients(
        method, hp, clip, signal, hidden, teachers, unembed, np.asarray(batch.tokens, np.int32), np.float32(old)
    )  # fmt: skip


def loss(*args, **options):
    return float(value_and_gradients(*args, **options)[0])


@pytest.mark.parametrize(("name", "fields"), [case for case in CASES if case[0] != "atesd"], ids=str)
def test_divergences_of_the_views_decide_nothing_unless_the_method_says_so(name, fields):
    """They are unknown where the sampler's numbers stand for the student's (run.rescore_every)."""
    scored, (method, hp) = Batch().scored(), made(name, **fields)
    assert not method.rescored(hp)
    unknown = {view: stats.replace(forward_kl=None, reverse_kl=None) for view, stats in scored.views.items()}
    got, whole = (
        method.signal(each, SHAPE, hp).replace(metrics={}) for each in (scored.replace(views=unknown), scored)
    )
    jax.tree.map(np.testing.assert_array_equal, got, whole)


@pytest.mark.parametrize(("name", "fields"), CASES, ids=IDS)
def test_credit_loss_and_gradient_are_those_of_the_formula(name, fields, mesh):
    """Within 1e-5 of the largest entry; the loss of a token depends on its own hidden state alone."""
    batch, (method, hp) = Batch(), made(name, **fields)
    signal = method.signal(batch.scored(), SHAPE, hp)
    advantage, weight, kl = methods_oracle.SIGNALS[name](hp, batch)
    for got, expected in ((signal.advantage, advantage), (signal.weight, weight), (signal.kl, kl)):
        assert (got is None) == (expected is None)
        if got is not None and not (got is signal.advantage and weight is None):
            shown = np.where(weight != 0, got, 0) if got is signal.advantage else np.asarray(got)
            expected = np.where(weight != 0, expected, 0) if got is signal.advantage else expected
            np.testing.assert_allclose(shown, expected, rtol=0, atol=1e-5 * np.abs(expected).max())

    value, (gradient, _) = value_and_gradients(method, hp, batch, signal, batch.hidden)
    of_tokens = methods_oracle.token_loss(name, hp, batch, batch.hidden)
    assert float(value) == pytest.approx(of_tokens.sum(), rel=1e-5, abs=1e-5)
    step, expected = 1e-6, np.zeros_like(batch.hidden)
    for d in range(batch.hidden.shape[-1]):
        off = np.zeros_like(batch.hidden)
        off[..., d] = step
        above, below = (methods_oracle.token_loss(name, hp, batch, batch.hidden + sign * off) for sign in (1, -1))
        expected[..., d] = (above - below) / (2 * step)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", METHODS)
def test_what_stands_outside_of_the_mask_changes_no_signal(name, mesh):
    batch, (method, hp) = Batch(), made(name)
    scored = batch.scored()
    if not method.rollouts:
        return

    def spoilt(x):
        return (
            np.where(batch.mask, x, np.float32(np.nan)) if x is not None and np.shape(x)[-2:] == batch.mask.shape else x
        )

    views = {k: v.replace(**{f: spoilt(getattr(v, f)) for f in ("logp", "entropy", "forward_kl", "reverse_kl")})
             for k, v in scored.views.items()}  # fmt: skip
    junk = scored.replace(logp=spoilt(scored.logp), entropy=spoilt(scored.entropy), views=views)
    jax.tree.map(np.testing.assert_array_equal, *(method.signal(x, SHAPE, hp) for x in (scored, junk)))


def equal_views(batch):
    """A batch whose teachers say what the student says."""
    batch.teacher = batch.old
    batch.wrong = np.stack([batch.old] * len(batch.wrong))
    return batch


@pytest.mark.parametrize("name", ["dasd", "rlsd", "rlrt", "antisd"])
def test_with_equal_views_the_credit_is_grpos(name, mesh):
    batch, (method, hp) = equal_views(Batch()), made(name)
    grpo, _ = made("grpo")
    got, expected = (m.signal(batch.scored(), SHAPE, p) for m, p in ((method, hp), (grpo, grpo.fields())))
    np.testing.assert_allclose(got.advantage, expected.advantage, atol=2e-6)
    np.testing.assert_array_equal(got.weight, expected.weight)


DIVERGENCES = ["opsd", "sdpo", "demopsd", "pw_opsd", "ad_opsd", "purified_opsd", "atesd"]


@pytest.mark.parametrize("name", DIVERGENCES)
def test_with_equal_views_a_divergence_and_its_gradient_are_0(name, mesh):
    batch, (method, hp) = Batch(), made(name)
    signal = method.signal(batch.scored(), SHAPE, hp)
    value, (gradient, _) = value_and_gradients(method, hp, batch, signal, batch.hidden, teacher=batch.hidden)
    assert float(value) == pytest.approx(0, abs=1e-6) and np.abs(gradient).max() < 1e-6


@pytest.mark.parametrize(
    ("name", "weight"), [("dasd", "beta"), ("rlsd", "mix"), ("rlrt", "mix"), ("antisd", "strength")]
)
def test_without_the_teachers_weight_the_credit_is_grpos(name, weight, mesh):
    batch, (method, hp) = Batch(), made(name, **{weight: 0.0})
    grpo, _ = made("grpo")
    expected = grpo.signal(batch.scored(), SHAPE, grpo.fields())
    off = batch.scored(knobs={k: np.float32(v) for k, v in KNOBS.items()} | {"teacher_weight": np.float32(0)})
    for got in (method.signal(batch.scored(), SHAPE, hp), METHODS[name].signal(off, SHAPE, METHODS[name].fields())):
        np.testing.assert_allclose(got.advantage, expected.advantage, atol=1e-6)


def test_srpo_with_no_row_shown_is_grpo(mesh):
    batch = Batch()
    batch.shown = {name: np.zeros_like(shown) for name, shown in batch.shown.items()}
    (srpo, hp), (grpo, none) = made("srpo"), made("grpo")
    got, expected = srpo.signal(batch.scored(), SHAPE, hp), grpo.signal(batch.scored(), SHAPE, none)
    np.testing.assert_array_equal(got.advantage, expected.advantage)
    np.testing.assert_array_equal(got.weight, expected.weight)
    assert not np.any(got.kl)


def test_hepo_with_share_1_is_dapo_and_with_less_keeps_the_most_uncertain_tokens(mesh):
    batch = Batch()
    (hepo, whole), (dapo, none) = made("hepo", share=1.0), made("dapo")
    got, expected = (m.signal(batch.scored(), SHAPE, hp) for m, hp in ((hepo, whole), (dapo, none)))
    np.testing.assert_array_equal(got.advantage, expected.advantage)
    np.testing.assert_array_equal(got.weight, expected.weight)
    kept = np.asarray(hepo.signal(batch.scored(), SHAPE, hepo.fields()).weight) > 0
    for m in range(M):
        rows = np.arange(16) // 4 % M == m
        entropy, mask = batch.scored().entropy[rows], batch.mask[rows]
        assert kept[rows].sum() == np.ceil(round(0.2 * mask.sum(), 9))
        assert entropy[kept[rows]].min() >= entropy[mask & ~kept[rows]].max()


def test_conformity_without_gate_clip_and_scale_is_grpo_and_beta_times_sampled_opsd(mesh):
    batch = Batch()
    fields = {"route": "conformity", "gate": "none", "clip": 0.0, "scale": "none", "min_tokens": 1, "min_spread": 1e-9}
    (dasd, hp), (grpo, none), (opsd, sampled) = made("dasd", **fields), made("grpo"), made("opsd", form="sampled")
    got, verifier, dense = (
        m.signal(batch.scored(), SHAPE, p).advantage for m, p in ((dasd, hp), (grpo, none), (opsd, sampled))
    )
    routed = batch.mask & (batch.mask.sum(1) > 1)[:, None]  # a single token has no spread
    np.testing.assert_allclose(got[routed], (verifier + hp.beta * dense)[routed], atol=1e-6)


def test_atesd_is_opsd_with_forward_kl_where_responses_are_equally_long(mesh):
    """Loss and gradient of what both are shown; how much that is decides the context alone."""
    batch = Batch()
    batch.written = batch.mask = np.ones_like(batch.mask)
    (atesd, own), (opsd, hp) = made("atesd"), made("opsd", b=0.0, entry_max=0.0, teacher="live")
    got, expected = (
        value_and_gradients(method, of, batch, method.signal(batch.scored(), SHAPE, of), batch.hidden)
        for method, of in ((atesd, own), (opsd, hp))
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-8), got, expected)
    assert atesd.views(own)["teacher"].weights == opsd.views(hp)["teacher"].weights


def test_srpo_routes_by_the_verdict_where_the_advantage_is_0(mesh):
    """In the group of right rollouts alone the advantage is 0, and none of it goes to the teacher."""
    batch, (method, hp) = Batch(), made("srpo")
    batch.shown["teacher"][:] = True
    kl = np.asarray(method.signal(batch.scored(), SHAPE, hp).kl)
    assert not kl[4:8].any() and kl[8:12].any()


def test_antisd_opens_and_closes_its_gate_with_a_memory(mesh):
    batch, (method, hp) = Batch(), made("antisd", measured_steps=2)
    knobs = {name: np.float32(value) for name, value in KNOBS.items()}

    def gate(warm, before):
        scored = batch.scored(knobs=knobs | {"antisd_warm": np.float32(warm), "antisd_gate": np.float32(before)})
        metrics = method.signal(scored, SHAPE, hp).metrics
        return float(metrics["antisd/gate"]), float(metrics["antisd/teacher_entropy_median"])

    _, median = gate(1.0, 1.0)
    assert gate(median, 0.0)[0] == 1 and gate(median / 0.92, 1.0)[0] == 0
    assert [gate(median / 0.96, before)[0] for before in (0.0, 1.0)] == [0, 1]
    lines = [{"step": 0}, *({"step": s, "antisd/teacher_entropy_median": h, "antisd/gate": g} for s, h, g in
             ((1, 0.4, 0.0), (2, 0.6, 0.0), (3, 0.9, 0.0)))]  # fmt: skip
    assert method.memory(lines, hp) == {"antisd_warm": pytest.approx(0.5), "antisd_gate": 0.0}
    assert method.memory(lines[:3], hp)["antisd_gate"] == 1.0 and method.memory([], hp) == {
        "antisd_warm": np.inf,
        "antisd_gate": 0.0,
    }


def test_antisd_waits_for_medians_and_keeps_its_gate_in_a_step_without_a_context(mesh):
    batch, (method, hp) = Batch(), made("antisd", measured_steps=2)
    without = {"step": 2, "antisd/gate": 0.0}  # as a step logs that showed nothing to anybody
    lines = [{"step": s, "antisd/teacher_entropy_median": h, "antisd/gate": 0.0} for s, h in ((1, 0.4), (3, 0.6))]
    assert method.memory([lines[0], without], hp)["antisd_warm"] == np.inf
    knobs = method.memory([lines[0], without, lines[1]], hp)
    assert knobs == {"antisd_warm": pytest.approx(0.5), "antisd_gate": 1.0}
    assert method.memory([lines[0], without, lines[1], {"step": 4, "antisd/gate": 0.0}], hp)["antisd_gate"] == 0.0

    view = batch.view("teacher").replace(shown=np.zeros_like(batch.shown["teacher"]))
    for warm, before, expected in ((0.5, 1.0, 1), (0.5, 0.0, 0), (np.inf, 0.0, 0)):
        given = KNOBS | {"antisd_warm": warm, "antisd_gate": before}
        scored = batch.scored(views={"teacher": view}, knobs={name: np.float32(value) for name, value in given.items()})
        metrics = method.signal(scored, SHAPE, hp).metrics
        assert metrics["antisd/gate"] == expected and np.isnan(metrics["antisd/teacher_entropy_median"])
    measuring = batch.scored(knobs={n: np.float32(v) for n, v in (KNOBS | {"antisd_warm": np.inf}).items()})
    assert method.signal(measuring, SHAPE, hp).metrics["antisd/gate"] == 0


def test_where_the_teacher_is_shown_nothing_dasds_full_form_has_no_term(mesh):
    """Whatever weights it has: an average or a copy differs from the student on the same prompt as well."""
    batch, (method, hp) = Batch(), made("dasd", form="full")
    signal, told = method.signal(batch.scored(), SHAPE, hp), batch.shown["teacher"][0]
    assert np.asarray(signal.kl)[told].any() and not np.asarray(signal.kl)[~told].any() and batch.mask[~told].any()


@pytest.mark.parametrize("name", ["dasd", "rlsd", "rlrt", "antisd", "egrsd"])
def test_the_mean_gap_is_that_of_tokens_whose_teacher_is_shown_something(name, mesh):
    batch, (method, hp) = Batch(), made(name)
    scored, told = batch.scored(), batch.mask & batch.shown["teacher"][0][:, None]
    gap = np.abs(scored.views["teacher"].logp[0] - scored.logp)[told].mean()
    assert method.signal(scored, SHAPE, hp).metrics["gap/mean_abs"] == pytest.approx(gap, rel=1e-5)


def test_srpos_teacher_acts_on_the_taught_rollouts_alone(mesh):
    batch, (method, hp) = Batch(), made("srpo")
    scored = batch.scored()
    signal = method.signal(scored, SHAPE, hp)
    taught, dense = np.asarray(signal.weight) == 0, np.asarray(signal.logged["dense"])
    assert not dense[~taught].any()
    gap, acts = scored.views["teacher"].logp[0] - scored.logp, taught & batch.mask
    np.testing.assert_array_equal(np.sign(dense)[acts], np.sign(gap)[acts])


def test_egrsds_gate_is_no_push_from_the_teacher(mesh):
    """It never repels: the dense term has the sign of the gap, as rlsd's has, or is 0."""
    batch = Batch()
    for name in ("egrsd", "rlsd"):
        method, hp = made(name)
        scored = batch.scored()
        dense = np.asarray(method.signal(scored, SHAPE, hp).logged["dense"])
        gap = scored.views["teacher"].logp[0] - scored.logp
        assert np.all(dense * gap >= 0) and dense.any()


def test_rlcsd_drops_rows_without_both_siblings_and_keeps_the_sign_of_the_advantage(mesh):
    batch, (method, hp) = Batch(), made("rlcsd")
    signal = method.signal(batch.scored(), SHAPE, hp)
    both = batch.shown["teacher"][0] & batch.shown["wrong"].any(0)
    assert not np.asarray(signal.weight)[~both].any() and 0 < both.sum() < len(both)
    dropped = np.mean(~both[batch.written.any(1)])
    assert float(signal.metrics["rlcsd/dropped_frac"]) == pytest.approx(dropped)
    verifier = np.asarray(made("grpo")[0].signal(batch.scored(), SHAPE, None).advantage)
    assert np.all(np.asarray(signal.advantage) * verifier >= 0)


def assert_same_loss(one, other, batch, signal, at_least=1e-2):
    """Two methods' losses of one signal, and their gradients by the student; not both 0."""
    (value, (gradient, _)), (same, (expected, _)) = (
        value_and_gradients(method, hp, batch, signal, batch.hidden) for method, hp in (one, other)
    )
    assert abs(float(value)) > at_least
    assert float(value) == pytest.approx(float(same), rel=1e-6)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("top_k", [5, 23])
def test_demopsd_that_keeps_nothing_of_the_unaided_view_is_reverse_kl_to_the_teacher(top_k, mesh):
    batch, nothing, kept = Batch(), made("demopsd", share_max=0.0, top_k=top_k), made("demopsd", top_k=top_k)
    signal = nothing[0].signal(batch.scored(), SHAPE, nothing[1])
    reverse = made("opsd", b=1.0, entry_max=0.0)
    if top_k < 23:  # beside sdpo's divergence alone: its ratio is another matter
        reverse = dataclasses.replace(METHODS["sdpo"], ratio_cap=np.inf), METHODS["sdpo"].fields(top_k=top_k, alpha=1.0)
    assert_same_loss(nothing, reverse, batch, signal)
    assert loss(*kept, batch, signal, batch.hidden) < loss(*nothing, batch, signal, batch.hidden) * 0.99


def test_pw_opsd_with_equal_weights_is_clamped_opsd_by_response_and_otherwise_later_tokens_weigh_more(mesh):
    batch, (method, hp) = Batch(), made("pw_opsd", weight_min=1.0)
    signal = method.signal(batch.scored(), SHAPE, hp)
    np.testing.assert_array_equal(signal.kl, sequence_mean(batch.mask & batch.shown["teacher"][0][:, None], SHAPE))
    assert_same_loss((method, hp), made("opsd"), batch, signal.replace(logged={}))
    rising = np.asarray(method.signal(batch.scored(), SHAPE, method.fields()).logged["weight"])
    row = np.flatnonzero(batch.mask.all(1) & batch.shown["teacher"][0])[0]
    assert np.all(np.diff(rising[row]) > 0) and 0.25 < rising[row, 0] < rising[row, -1] < 1


def test_ad_opsd_without_a_share_of_the_prior_is_forward_opsd(mesh):
    batch, (method, hp), opsd = Batch(), made("ad_opsd", share=0.6, tau=0.05), made("opsd", entry_max=0.0)
    signal = method.signal(batch.scored(), SHAPE, hp)
    mixed = np.asarray(signal.given)
    assert np.all(mixed[mixed > 0] > 0.5) and 0 < (mixed > 0).sum() < batch.mask.sum() * 0.6
    np.testing.assert_array_equal(signal.kl, opsd[0].signal(batch.scored(), SHAPE, opsd[1]).kl)
    none = signal.replace(given=np.zeros_like(mixed))
    assert_same_loss((method, hp), opsd, batch, none)
    assert loss(method, hp, batch, signal, batch.hidden) != pytest.approx(
        loss(method, hp, batch, none, batch.hidden), rel=1e-2
    )


def test_egrsd_without_a_gate_is_rlsd_that_is_all_teacher(mesh):
    batch, (method, hp), (rlsd, whole) = Batch(), made("egrsd", floor=1.0), made("rlsd", mix=1.0, decay_steps=0)
    got, expected = (m.signal(batch.scored(), SHAPE, p) for m, p in ((method, hp), (rlsd, whole)))
    np.testing.assert_allclose(got.advantage, expected.advantage, rtol=1e-6)
    np.testing.assert_array_equal(got.weight, expected.weight)


def test_egrsds_gate_stays_above_its_floor_and_opens_where_the_teacher_soon_is_certain(mesh):
    batch, told = Batch(), Batch().mask & Batch().shown["teacher"][0][:, None]
    gates = [
        np.asarray(METHODS["egrsd"].signal(batch.scored(), SHAPE, made("egrsd", lookahead=n)[1]).logged["gate"])
        for n in (0, 1, 4, 99)
    ]
    for gate in gates:
        assert gate[told].min() >= 0.3 - 1e-6 and gate.max() <= 1 and np.all(gate[batch.mask & ~told] == 1)
    for near, far in itertools.pairwise(gates):
        assert np.all(far >= near)
    assert np.any(gates[1] > gates[0])
    last = batch.mask & ~np.pad(batch.mask[:, 1:], ((0, 0), (0, 1)))
    np.testing.assert_array_equal(gates[3][last], gates[0][last])  # nothing is ahead of a last token


def test_egrsd_without_the_teachers_weight_is_grpo(mesh):
    batch, (method, hp), (grpo, none) = Batch(), made("egrsd"), made("grpo")
    off = batch.scored(knobs={k: np.float32(v) for k, v in KNOBS.items()} | {"teacher_weight": np.float32(0)})
    got, expected = method.signal(off, SHAPE, hp), grpo.signal(batch.scored(), SHAPE, none)
    np.testing.assert_allclose(got.advantage, expected.advantage, atol=1e-6)


def test_purified_opsd_whose_reference_says_what_the_base_says_is_opsd(mesh):
    """Then log p_0 + (log p_T - log p_R) is the teacher's own distribution, whatever constant is taken off."""
    batch, (method, hp) = Batch(), made("purified_opsd", bound=1e6)
    batch.reference = batch.base
    signal = method.signal(batch.scored(), SHAPE, hp)
    assert_same_loss((method, hp), made("opsd", entry_max=0.0), batch, signal)
    both = batch.shown["teacher"][0] & batch.shown["reference"][0]
    assert not np.asarray(signal.kl)[~both].any() and np.any(both != batch.shown["teacher"][0])


def test_dual_clip_bounds_what_a_bad_token_loses(mesh):
    batch, (method, hp) = Batch(), made("grpo")
    batch.hidden = batch.old + 1.5 * (batch.hidden - batch.old) / 0.2  # ratios far beyond the clip
    signal = method.signal(batch.scored(), SHAPE, hp)
    for dual in (0.0, 1.5):
        value = loss(method, hp, batch, signal, batch.hidden, ClipRange(0.2, 0.2, dual))
        expected = methods_oracle.token_loss("grpo", hp, batch, batch.hidden, dual=dual).sum()
        assert float(value) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", methods_oracle.SIGNALS)
def test_the_loss_of_parts_adds_up_to_that_of_the_whole(name, mesh):
    """Whatever the microbatches: every divisor is in the signal."""
    batch, (method, hp) = Batch(), made(name)
    signal = method.signal(batch.scored(), SHAPE, hp).replace(logged={}, metrics={})

    def of_rows(rows):
        part = Batch()
        for attribute in ("tokens", "old", "teacher", "reference", "base", "hidden"):
            setattr(part, attribute, getattr(batch, attribute)[rows])
        value, (gradient, _) = value_and_gradients(
            method, hp, part, jax.tree.map(lambda x: x[rows], signal), part.hidden
        )  # fmt: skip
        return float(value), gradient

    whole, gradient = of_rows(slice(None))
    pieces = [of_rows(slice(start, start + 4)) for start in range(0, 16, 4)]
    assert sum(value for value, _ in pieces) == pytest.approx(whole, abs=1e-6)
    np.testing.assert_allclose(np.concatenate([g for _, g in pieces]), gradient, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [*DIVERGENCES, "srpo"])
def test_a_divergences_teacher_receives_no_gradient(name, mesh):
    batch, (method, hp) = Batch(), made(name)
    signal = method.signal(batch.scored(), SHAPE, hp)
    _, (of_student, of_teachers) = value_and_gradients(method, hp, batch, signal, batch.hidden)
    assert np.abs(of_student).max() > 1e-3
    assert len(of_teachers) == len(method.divergence(hp).views) and not np.any(of_teachers)


@pytest.mark.parametrize("name", methods_oracle.SIGNALS)
def test_another_step_gate_or_teachers_weight_compiles_nothing(name, mesh):
    batch, (method, hp) = Batch(), made(name)
    signal = jax.jit(lambda *args: method.signal(*args), static_argnums=(1, 2))  # some methods share the function
    for change in ({}, {"step": 40.0}, {"teacher_weight": 0.5}, {"antisd_gate": 0.0, "antisd_warm": 2.0}):
        signal(batch.scored(knobs={k: np.float32(v) for k, v in (KNOBS | change).items()}), SHAPE, hp)
    assert signal._cache_size() == 1


def golden():
    """Method → its loss on the fixed batch, at the defaults."""
    losses, batch = {}, Batch()
    for name in METHODS:
        method, hp = made(name)
        signal = method.signal(batch.scored(), SHAPE, hp)
        losses[name] = loss(method, hp, batch, signal, batch.hidden)
    return losses


def test_losses_are_those_of_the_golden_file(mesh):
    """A change of more than 1e-6 is to be seen in a diff: DASD_GOLDEN=write writes the file anew."""
    if os.environ.get("DASD_GOLDEN") == "write":
        GOLDEN.write_text(json.dumps(golden(), indent=1) + "\n")
    expected = json.loads(GOLDEN.read_text())
    assert expected.keys() == METHODS.keys()
    assert golden() == {name: pytest.approx(value, abs=1e-6) for name, value in expected.items()}


def placed(mesh, scored):
    """As the score pass lays it out: rows over the devices."""
    rows = {name: put_rows(mesh, getattr(scored, name)) for name in ("mask", "live", "tokens", "logp", "entropy")}
    rows |= {name: put_rows(mesh, getattr(scored, name)) for name in ("reward", "correct")}
    by_view = jax.tree.map(
        lambda x: jax.device_put(x, named(mesh, None, "rows", *(None,) * (x.ndim - 2))), scored.views
    )  # fmt: skip
    return scored.replace(**rows, views=by_view, knobs=replicate(mesh, scored.knobs))


@pytest.mark.parametrize("route_by", SIGNALS[:-1])
def test_dasd_routes_by_every_signal_of_the_papers_panel(route_by, mesh):
    batch, (method, hp) = Batch(), made("dasd", route_by=route_by, beta=0.5)
    old, teacher = batch.logp(batch.old), batch.of("teacher")[0]
    s, t = batch.drawn(old), batch.drawn(teacher)
    tokens = batch.tokens[batch.mask]
    signal = {
        "entropy": methods_oracle.entropy(old),
        "teacher_entropy": methods_oracle.entropy(teacher),
        "position": np.broadcast_to(np.arange(1.0, 7.0), s.shape),
        "improbability": 1 - np.exp(s),
        "gap": np.abs(t - s),
        "frequency": -np.log([[max((tokens == token).sum(), 1) for token in row] for row in batch.tokens]),
    }[route_by]
    expected, *_ = oracle.credit(s, t, signal, batch.mask, methods_oracle.verifier(batch), hp)
    got = method.signal(placed(mesh, batch.scored()), SHAPE, hp).advantage
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_random_route_differs_by_step_and_by_run_and_is_the_same_when_repeated(mesh):
    batch, (method, hp) = Batch(), made("dasd", route_by="random")

    def route(step, seed):
        knobs = {name: np.float32(value) for name, value in (KNOBS | {"step": step, "seed": seed}).items()}
        return np.asarray(method.signal(placed(mesh, batch.scored(knobs=knobs)), SHAPE, hp).logged["route"])

    np.testing.assert_array_equal(route(1, 0), route(1, 0))
    assert np.any(route(1, 0) != route(2, 0)) and np.any(route(1, 0) != route(1, 1))
    assert not route(1, 0)[~batch.mask].any()


def test_the_gate_of_confidence_is_the_teachers_certainty(mesh):
    batch, (method, hp) = Batch(), made("dasd", gate="confidence", beta=0.5)
    open_gate = made("dasd", gate="none", beta=0.5)[1]
    got, plain = (np.asarray(method.signal(batch.scored(), SHAPE, p).logged["dense"]) for p in (hp, open_gate))
    trust = np.exp(-methods_oracle.entropy(batch.of("teacher")[0]))
    np.testing.assert_allclose(got, plain * trust, atol=1e-6)


EIGHT = [*CASES, *(("dasd", {"route_by": signal}) for signal in SIGNALS)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fields"), EIGHT, ids=lambda x: x if isinstance(x, str) else str(x))
def test_eight_devices_make_the_signal_of_one(name, fields, mesh, mesh8):
    method, hp = made(name, **fields)
    scored = Batch().scored()
    # So many problems that each device has whole ones of every minibatch.
    by_row = scored.replace(views={}, tables={})
    whole = jax.tree.map(lambda x: np.concatenate([x] * 4) if np.ndim(x) else x, by_row)
    whole = whole.replace(
        tables=scored.tables, views=jax.tree.map(lambda x: np.concatenate([x] * 4, axis=1), scored.views)
    )
    found = []
    for where in (mesh, mesh8):
        with jax.set_mesh(where):
            found.append(jax.device_get(jax.jit(method.signal, static_argnums=(1, 2))(placed(where, whole), SHAPE, hp)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *found)
