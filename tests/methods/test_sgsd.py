"""SGSD beside its loss: the token weights are its gradient, and verifier and support decide what a teacher does."""

import dataclasses

import methods_oracle
import numpy as np
import pytest
from batch_of_all_cases import FORMAT, REWARD, ROWS, SHAPE, Batch, K, M, R

from dasd_jax.methods import METHODS
from dasd_jax.objective.contract import ViewStats

SGSD = METHODS["sgsd"]
VIEW = "wrong"  # of the batch: the one with several prompts
SIMILARITY = np.random.default_rng(3).uniform(-1, 1, (K, ROWS))


def made(**fields):
    return SGSD.fields(contexts=K, **fields)


def scored(batch, similarity=SIMILARITY, **changes):
    view = batch.view(VIEW).replace(weight=np.asarray(similarity, np.float32))
    return batch.scored(views={"teacher": view}, **changes)


def several():
    """A batch in which most rows are shown some contexts and none all."""
    batch = Batch()
    batch.shown[VIEW] = np.random.default_rng(5).random((K, ROWS)) < 0.6
    batch.shown[VIEW][:, 4] = False
    batch.shown[VIEW][:, 5] = True
    return batch


def of_one(gaps, reward=1.0, tokens=None, similarity=(1.0,), shown=None, **fields):
    """The signal of two problems of two rollouts each, whose first row has these gaps f[K, n]; the others have none."""
    gaps = np.atleast_2d(np.asarray(gaps, np.float32))
    count, width = gaps.shape
    zeros = np.zeros((count, 4, width), np.float32)
    logp = zeros - 1
    logp[:, 0] += gaps
    weight = np.broadcast_to(np.asarray(similarity, np.float32)[:, None], (count, 4))
    shown = np.broadcast_to(np.ones(count, bool) if shown is None else np.asarray(shown), (4, count)).T
    view = ViewStats(logp, zeros, zeros, zeros, shown, weight)
    batch = Batch().scored(
        mask=np.ones((4, width), bool),
        live=np.ones(4, bool),
        tokens=np.tile(np.zeros(width, np.int32) if tokens is None else np.int32(tokens), (4, 1)),
        logp=np.full((4, width), -1, np.float32),
        reward=np.array([reward, 0, 1, 0], np.float32),
        views={"teacher": view},
    )
    shape = dataclasses.replace(SHAPE, rollouts=2, minibatches=1)
    return SGSD.signal(batch, shape, SGSD.fields(contexts=count, **fields))


@pytest.mark.parametrize("fields", [{}, {"tau": 0.3, "clip": 0.4, "neutral": 0.2, "retrieval_temperature": 0.1}])
def test_several_teachers_add_up_by_their_weights(fields, mesh):
    batch, hp = several(), made(**fields)
    signal = SGSD.signal(scored(batch), SHAPE, hp)
    credit, weight, _ = methods_oracle.sgsd(hp, batch, VIEW, SIMILARITY)
    assert np.abs(credit).max() > 0.01
    np.testing.assert_allclose(signal.advantage, credit, rtol=0, atol=1e-5 * np.abs(credit).max())
    np.testing.assert_allclose(signal.weight, weight, rtol=0, atol=1e-5 * weight.max())
    alone = np.zeros((ROWS, R))
    shown = batch.shown[VIEW].copy()
    parts = np.where(shown, np.exp(SIMILARITY / hp.retrieval_temperature), 0)
    for k in range(K):
        batch.shown[VIEW] = shown & (np.arange(K) == k)[:, None]
        share = parts[k] / np.maximum(parts.sum(0), 1e-9)
        alone += share[:, None] * np.asarray(SGSD.signal(scored(batch), SHAPE, hp).advantage)
    np.testing.assert_allclose(signal.advantage, alone, atol=1e-6)


def test_the_token_weights_are_the_gradient_of_the_loss(mesh):
    """By finite differences in the student's log-probabilities, polarity and α held."""
    batch, hp = several(), made(tau=0.5)
    signal = SGSD.signal(scored(batch), SHAPE, hp)
    opinions = list(methods_oracle.opinions(hp, batch, VIEW, SIMILARITY))
    assert {polarity for *_, polarity in opinions} == {-1, 1} or {polarity for *_, polarity in opinions} == {-1, 0, 1}
    weight = np.asarray(signal.weight, np.float64)

    def losses(moved):
        out = np.zeros((ROWS, R))
        for _, row, places, gaps, share, polarity in opinions:
            softplus = np.log1p(np.exp(-((gaps - moved) ** 2) / (2 * hp.tau)))
            out[row, places] += weight[row, places] * share * polarity * (np.log(2) - softplus)
        return out

    slope = (losses(1e-6) - losses(-1e-6)) / 2e-6
    assert np.abs(slope).max() > 1e-3
    np.testing.assert_allclose(-weight * signal.advantage, slope, rtol=0, atol=1e-5 * np.abs(slope).max())
    of_minibatch = [weight[np.arange(ROWS) // SHAPE.rollouts % M == m].sum() for m in range(M)]
    assert of_minibatch == pytest.approx([1, 1])


@pytest.mark.parametrize(("reward", "gap", "polarity"), [(1, 0.5, 1), (1, -0.5, -1), (0, 0.5, -1), (0, -0.5, 1)])
@pytest.mark.parametrize("size", [1.0, 0.08])
def test_a_teacher_attracts_where_it_agrees_with_the_verifier_and_repels_where_it_does_not(
    reward, gap, polarity, size, mesh
):
    """Attracted means toward the teacher: the credit has the sign of the gap. Within ±.05 it has no say."""
    signal = of_one([size * gap] * 4, reward)
    expected = polarity if size * abs(gap) > 0.05 else 0
    np.testing.assert_array_equal(np.sign(signal.advantage[0]) * np.sign(gap), [expected] * 4)
    assert float(signal.metrics["sgsd/attract_frac"]) == (0.25 if expected > 0 else 0)
    assert float(signal.metrics["sgsd/repel_frac"]) == (0.25 if expected < 0 else 0)
    assert not np.asarray(signal.advantage)[1:].any()


def test_equal_views_teach_nothing(mesh):
    batch = Batch()
    batch.wrong = np.stack([batch.old] * K)
    batch.shown[VIEW][:] = True
    signal = SGSD.signal(scored(batch), SHAPE, made(neutral=0.0))
    assert not np.asarray(signal.advantage).any() and np.asarray(signal.weight).any()


def test_the_credit_is_bounded_and_vanishes_for_gaps_that_are_small_or_large(mesh):
    gaps = np.linspace(0, 40, 4001)
    credit = np.asarray(of_one(gaps).advantage[0])
    assert credit[0] == 0 and 0.392 < credit.max() < 0.394 and credit[-1] < 1e-6
    assert 1 < gaps[credit.argmax()] < 1.5
    halved = np.asarray(of_one(gaps / 2, tau=0.25).advantage[0])
    np.testing.assert_allclose(halved, 2 * credit, atol=1e-6)  # the gaps in units of the root of tau


def test_one_token_cannot_turn_the_support_of_a_response(mesh):
    """-30 counts as -3 beside four of 1: the mean stays above 0, and so does the polarity."""
    signal = of_one([1, 1, 1, 1, -30])
    assert np.asarray(signal.advantage[0])[0] > 0
    assert np.asarray(of_one([1, 1, 1, 1, -30], clip=30.0).advantage[0])[0] < 0


def test_format_tokens_count_nowhere(mesh):
    form, content = int(np.flatnonzero(FORMAT)[0]), int(np.flatnonzero(~FORMAT)[0])
    tokens = [content, form, content, form]
    signal, without = of_one([0.5, -9, 1, -9], tokens=tokens), of_one([0.5, 1], tokens=[content] * 2)
    assert not np.asarray(signal.weight)[:, 1::2].any()
    np.testing.assert_allclose(signal.advantage[:, ::2], without.advantage, atol=1e-7)
    np.testing.assert_allclose(signal.weight[:, ::2], without.weight, atol=1e-7)
    assert float(signal.metrics["sgsd/format_frac"]) == 0.5


@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_weights_are_the_softmax_of_the_similarities_of_what_is_shown(temperature, mesh):
    gaps, similarity, shown = [[1.0] * 3, [1.0] * 3, [1.0] * 3], np.array([0.9, 0.2, 0.8]), [True, False, True]
    whole = of_one([1.0] * 3).advantage[0]
    for k in range(3):
        of_k = np.array(gaps) * (np.arange(3) == k)[:, None]
        found = of_one(of_k, similarity=similarity, shown=shown, retrieval_temperature=temperature).advantage[0]
        share = np.exp(similarity[k] / temperature) / np.exp(similarity[shown] / temperature).sum() if shown[k] else 0
        np.testing.assert_allclose(found, share * np.asarray(whole), rtol=1e-5)


def test_a_row_that_is_shown_nothing_is_not_in_the_loss(mesh):
    batch = several()
    signal = SGSD.signal(scored(batch), SHAPE, made())
    assert not np.asarray(signal.weight)[4].any() and np.asarray(signal.weight)[5].any()
    live = batch.written.any(1)
    assert float(signal.metrics["sgsd/shown_frac"]) == pytest.approx(batch.shown[VIEW][:, live].mean())


def test_a_reward_above_0_is_right(mesh):
    assert set(REWARD) == {0, 1}
    assert np.asarray(of_one([0.5] * 2, reward=0.1).advantage[0]).min() > 0
    assert np.asarray(of_one([0.5] * 2, reward=-0.5).advantage[0]).max() < 0
