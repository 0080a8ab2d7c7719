"""GRPO's signal: the group-relative advantage at every token, and nothing of any teacher."""

import jax
import numpy as np
import objective_oracle as oracle
import pytest

from dasd_jax.methods import dasd, grpo, sft
from dasd_jax.objective.contract import Scored, Shape, ViewStats

SHAPE = Shape(rollouts=4, minibatches=2, max_new_tokens=6)
MASK = np.arange(6) < np.array([6, 1, 0, 4, 3, 5, 6, 2])[:, None]


def scored(junk=0.0, **changes):
    """Eight rows, one of them padding; GRPO reads no student or teacher, so that neither is there."""
    reward = np.array([1, 0, junk, 1, 0, 0, 0, 1], np.float32)
    return Scored(
        mask=MASK,
        live=MASK.any(1),
        tokens=np.zeros(MASK.shape, np.int32),
        logp=None,
        entropy=None,
        reward=reward,
        correct=reward,
        views={},
        knobs={"teacher_weight": np.float32(1), "noise": np.float32(0)},
    ).replace(**changes)


def signal(b):
    return grpo.METHOD.signal(b, SHAPE, grpo.METHOD.fields())


def test_grpo_gives_every_token_its_responses_advantage_over_the_minibatch_tokens():
    b = scored()
    got, advantage = signal(b), oracle.advantage(b.reward, MASK, SHAPE.rollouts)
    np.testing.assert_allclose(got.advantage, np.where(MASK, advantage[:, None], 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.weight, np.where(MASK, np.repeat([1 / 11, 1 / 16], 4)[:, None], 0), rtol=1e-6)
    np.testing.assert_array_equal(got.logged["credit"], got.advantage)
    assert got.metrics["credit/verifier_abs_mean"] == pytest.approx(np.abs(advantage[MASK.any(1)]).mean(), rel=1e-5)
    assert got.kl is None and got.nll is None and got.given is None
    assert not grpo.METHOD.views(None) and grpo.METHOD.divergence(None) is None and not grpo.METHOD.scored(None)


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf])
def test_a_reward_of_padding_changes_no_part_of_the_signal(junk):
    got = signal(scored(junk))
    jax.tree.map(np.testing.assert_array_equal, got, signal(scored()))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))


def test_grpo_is_dasd_whose_teachers_weight_is_zero():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    view = ViewStats(*(draw(1, *MASK.shape) for _ in range(4)), np.ones((1, 8), bool), np.ones((1, 8), np.float32))
    b = scored(logp=draw(*MASK.shape), entropy=draw(*MASK.shape), views={"teacher": view})
    for off in (
        dasd.METHOD.signal(b, SHAPE, dasd.DasdParams(beta=0.0)),
        dasd.METHOD.signal(
            b.replace(knobs={"teacher_weight": np.float32(0), "noise": np.float32(0)}), SHAPE, dasd.DasdParams()
        ),
    ):
        np.testing.assert_array_equal(off.advantage, signal(b).advantage)
        np.testing.assert_array_equal(off.weight, signal(b).weight)


def test_supervised_fine_tuning_weighs_the_tokens_of_a_minibatch_alike():
    got = sft.METHOD.signal(scored(), SHAPE, sft.METHOD.fields())
    np.testing.assert_allclose(got.nll, np.where(MASK, np.repeat([1 / 11, 1 / 16], 4)[:, None], 0), rtol=1e-6)
    assert got.advantage is None and got.weight is None and got.kl is None
