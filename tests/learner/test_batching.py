"""Batches in parts: where a part is smaller than a problem a device, groups of rollouts are split."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasd_jax.batch import PromptBatch, TeacherBatch
from dasd_jax.learner.batching import map_by_length, minibatches, split_groups
from dasd_jax.mesh import merge_rows, put_rows

B, G, R, P, Q, K = 8, 4, 6, 3, 5, 2


def batch():
    """Every number says where it stands: prompts of problems, of rollouts, and responses."""
    rng = np.random.default_rng(0)
    problem = np.arange(B, dtype=np.int32)
    rollout = problem[:, None] * 10 + np.arange(G, dtype=np.int32)
    prompts = PromptBatch(np.repeat(problem[:, None], P, 1), np.ones((B, P), bool), problem)
    known = np.ones((B, 1, K), np.float32)
    retrieved = TeacherBatch(
        np.tile(problem[:, None, None, None], (1, 1, K, Q)), np.ones((B, 1, K, Q), bool), known > 0, known
    )
    own = np.ones((B, G, K), np.float32)
    sibling = TeacherBatch(np.tile(rollout[:, :, None, None], (1, 1, K, Q)), np.ones((B, G, K, Q), bool), own > 0, own)
    response = np.repeat(rollout[:, :, None], R, 2)
    mask = np.arange(R) < rng.integers(1, R + 1, (B, G, 1))
    return prompts, {"retrieved": retrieved, "sibling": sibling}, response, mask


@pytest.mark.parametrize("splits", [1, 2, 4])
def test_a_split_keeps_every_response_with_its_own_prompts_in_its_minibatch(splits, mesh8):
    prompts, shown, response, mask = split_groups(splits, put_rows(mesh8, batch()))
    rows = np.asarray(response)[..., 0]
    assert rows.shape == (splits * B, G // splits)
    assert sorted(rows.reshape(-1)) == sorted(batch()[2][..., 0].reshape(-1))
    np.testing.assert_array_equal(rows // 10, np.repeat(np.asarray(prompts.example_id)[:, None], G // splits, 1))
    np.testing.assert_array_equal(np.asarray(prompts.student_prompt)[:, 0], rows[:, 0] // 10)
    np.testing.assert_array_equal(np.asarray(shown["retrieved"].teacher_prompt)[:, 0, 0, 0], rows[:, 0] // 10)
    np.testing.assert_array_equal(np.asarray(shown["sibling"].teacher_prompt)[:, :, 0, 0], rows)
    cut = np.asarray(minibatches(2, response))[..., 0]
    for part in (0, 1):
        assert sorted(cut[part].reshape(-1)) == sorted(batch()[2][part::2, :, 0].reshape(-1))


@pytest.mark.parametrize("splits", [1, 2])
def test_results_of_split_groups_come_back_in_the_batchs_own_order(splits, mesh8):
    """In parts of like length, on four devices, beside what is computed at once."""
    prompts, shown, response, mask = batch()

    def function(width, part):
        prompts, shown, response, mask = part
        response, mask = response[..., :width], mask[..., :width]
        told = response + 100 * prompts.example_id[:, None, None] + shown["sibling"].teacher_prompt[:, :, 0, :1]
        return merge_rows(told.astype(jnp.float32)), jnp.sum(jnp.where(mask, response, 0), axis=(0, 1))[None]

    given = put_rows(mesh8, (mask, batch()))
    made, added, _ = jax.jit(partial(map_by_length, function, 2 * splits, splits, (2, R)))(*given)
    expected = (2 * response + 100 * prompts.example_id[:, None, None]).reshape(-1, R)
    keep = mask.reshape(-1, R)
    np.testing.assert_array_equal(np.asarray(made)[keep], expected[keep])
    np.testing.assert_array_equal(np.asarray(added)[0], np.where(mask, response, 0).sum((0, 1)))
