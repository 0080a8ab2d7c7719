"""Sampling: what is drawn, with which probability it is recorded, and that neither neighbours nor devices matter."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasd_jax import vocab
from dasd_jax.batch import PromptBatch
from dasd_jax.mesh import put_rows, replicate
from dasd_jax.model import param_table, transformer
from dasd_jax.model.presets import preset
from dasd_jax.rollout.sampler import Sampling, draw, relayout, rollout, row_keys

MODEL = preset("qwen3_tiny")
PLAIN = Sampling(rollouts=3, max_new_tokens=10, stop_ids=tuple(range(40)), pad_id=256)


def prompts(lengths=(7, 2, 5, 4), width=7, seed=0):
    tokens = np.random.default_rng(seed).integers(0, 256, (len(lengths), width)).astype(np.int32)
    mask = np.arange(width)[None] >= width - np.array(lengths)[:, None]
    return PromptBatch(tokens, mask, np.arange(10, 10 + len(lengths), dtype=np.int32))


def sample(mesh, sampling=PLAIN, batch=None, params=None, seed=0, step=3):
    batch = prompts() if batch is None else batch
    return sample_and_steps(mesh, sampling, batch, params, seed, step)[0]


def sample_and_steps(mesh, sampling, batch, params=None, seed=0, step=3):
    params = param_table.init(MODEL, mesh, 0) if params is None else params
    seeds = replicate(mesh, (np.int32(seed), np.int32(step)))
    params = relayout(MODEL, params)
    return jax.device_get(rollout(MODEL, sampling, params, put_rows(mesh, batch), seeds[0], "train", seeds[1]))


response_hidden = jax.jit(transformer.response_hidden, static_argnums=0)


def scored(mesh, batch, written, temperature=1.0):
    """Teacher-forced log-probabilities of what was written, and entropies."""
    params = param_table.init(MODEL, mesh, 0)
    batch, response, mask = put_rows(mesh, (batch, written.response, written.response_mask))
    hidden = response_hidden(MODEL, params, batch.student_prompt, batch.student_prompt_mask, response, mask)
    logp = vocab.log_probs(hidden, transformer.unembedding(MODEL, params), temperature)
    return jax.device_get((vocab.pick(logp, response), vocab.entropy(logp)))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampler_log_probabilities_and_entropies_equal_teacher_forced_ones(temperature, mesh):
    """Of the whole distribution, whatever top-k and top-p leave of it."""
    written = sample(mesh, dataclasses.replace(PLAIN, temperature=temperature, top_k=50, top_p=0.9))
    logp, entropy = scored(mesh, prompts(), written, temperature)
    keep = written.response_mask
    assert keep.sum() > 20
    np.testing.assert_allclose(written.sampled_logp[keep], logp[keep], atol=1e-5)
    np.testing.assert_allclose(written.sampled_entropy[keep], entropy[keep], atol=1e-5)


def test_every_stop_id_ends_a_row_and_belongs_to_it(mesh):
    written = sample(mesh)
    ended = np.flatnonzero(written.finished)
    assert len({int(written.response[row, written.response_mask[row].sum() - 1]) for row in ended}) > 1
    for row in range(12):
        length = written.response_mask[row].sum()
        ids = written.response[row]
        assert written.response_mask[row, :length].all()
        assert (ids[: length - 1] >= 40).all()
        assert written.finished[row] == (ids[length - 1] < 40)
        assert written.finished[row] or length == 10
        assert (ids[length:] == 256).all() and not written.sampled_logp[row, length:].any()


def test_a_row_does_not_depend_on_its_neighbours(mesh):
    """Prompts of different lengths in one batch write what each of them writes alone, and rows are problem-major."""
    together, batch = sample(mesh), prompts()
    for i in range(4):
        alone = sample(mesh, batch=jax.tree.map(lambda x, i=i: x[i : i + 1], batch))
        np.testing.assert_array_equal(alone.response, together.response[3 * i : 3 * i + 3])


def test_eight_devices_write_the_same_as_one(mesh, mesh8):
    with jax.set_mesh(mesh):
        one = sample(mesh)
    eight = sample(mesh8)
    np.testing.assert_array_equal(eight.response, one.response)
    np.testing.assert_allclose(eight.sampled_logp, one.sampled_logp, atol=1e-4)


# Long and short responses: a row stops with probability 0.05 a token.
SKEWED = Sampling(rollouts=6, max_new_tokens=40, stop_ids=tuple(range(16)), pad_id=256)


def test_a_row_does_not_depend_on_its_slot_or_on_when_it_was_begun(mesh):
    """To the bit, at equal slots: problems in another order, and free slots refilled at once or only all together."""
    order = [2, 0, 3, 1]
    other = jax.tree.map(lambda x: x[order], prompts())
    at_once, in_waves = (dataclasses.replace(SKEWED, slots=5, refill_at=n) for n in (1, 5))
    whole, steps = sample_and_steps(mesh, at_once, prompts())
    assert whole.response_mask.sum(axis=1).max() > 4 * whole.response_mask.sum(axis=1).min()
    for batch, sampling in ((other, at_once), (prompts(), in_waves)):
        again, steps_again = sample_and_steps(mesh, sampling, batch)
        rows = np.arange(24).reshape(4, 6)[order].reshape(-1) if batch is other else np.arange(24)
        for name in ("response", "response_mask", "sampled_logp", "finished"):
            np.testing.assert_array_equal(getattr(again, name), getattr(whole, name)[rows], err_msg=name)
    # A wave takes as long as its longest row: 24 rows are five waves.
    lengths = whole.response_mask.sum(axis=1)
    waves = np.pad(lengths, (0, 1)).reshape(5, 5)
    assert steps_again == waves.max(axis=1).sum()
    assert lengths.sum() / 5 <= steps < 0.7 * steps_again


@pytest.mark.parametrize("slots", [1, 7, 23, 24, 99])
def test_slots_change_how_long_it_takes_and_not_what_is_written(slots, mesh):
    whole = sample(mesh, SKEWED)
    again, steps = sample_and_steps(mesh, dataclasses.replace(SKEWED, slots=slots), prompts())
    np.testing.assert_array_equal(again.response, whole.response)
    np.testing.assert_allclose(again.sampled_logp, whole.sampled_logp, atol=1e-4)
    lengths = whole.response_mask.sum(axis=1)
    if slots == 1:
        assert steps == lengths.sum()
    if slots >= 24:
        assert steps == lengths.max()


def test_eight_devices_refill_each_in_its_own_time(mesh, mesh8):
    with jax.set_mesh(mesh):
        one = sample(mesh, SKEWED)
    eight, steps = sample_and_steps(mesh8, dataclasses.replace(SKEWED, slots=2), prompts())
    np.testing.assert_array_equal(eight.response, one.response)
    np.testing.assert_allclose(eight.sampled_logp, one.sampled_logp, atol=1e-4)
    lengths = one.response_mask.sum(axis=1).reshape(4, 6)
    assert steps.shape == (4,) and len(set(steps.tolist())) > 1
    assert (steps >= lengths.sum(axis=1) / 2).all() and (steps <= lengths.sum(axis=1)).all()


def test_draws_depend_on_seed_step_example_and_rollout(mesh):
    first = sample(mesh)
    np.testing.assert_array_equal(sample(mesh).response, first.response)
    assert (sample(mesh, seed=1).response != first.response).any(axis=1).mean() > 0.5
    assert (sample(mesh, step=4).response != first.response).any(axis=1).mean() > 0.5
    same_prompt = prompts()
    same_prompt = same_prompt.replace(
        student_prompt=np.tile(same_prompt.student_prompt[:1], (4, 1)), student_prompt_mask=np.ones((4, 7), bool)
    )
    assert len({tuple(row) for row in sample(mesh, batch=same_prompt).response}) == 12


def test_a_rollout_keeps_its_key_in_a_larger_group_and_keys_are_problem_major(mesh):
    ids = jnp.array([7, 2, 9])
    keys = jax.jit(row_keys, static_argnums=(1, 4))
    two, three = (jax.random.key_data(keys(0, "train", jnp.int32(0), ids, rollouts)) for rollouts in (2, 3))
    np.testing.assert_array_equal(two.reshape(3, 2, -1), three.reshape(3, 3, -1)[:, :2])
    alone = jax.random.key_data(keys(0, "train", jnp.int32(0), ids[1:2], 3))
    np.testing.assert_array_equal(alone, three[3:6])


def test_purposes_draw_from_separate_streams(mesh):
    ids = jnp.arange(3)
    keys = jax.jit(row_keys, static_argnums=(1, 4))
    streams = [jax.random.key_data(keys(0, purpose, jnp.int32(0), ids, 2)) for purpose in ("train", "eval")]
    assert not (streams[0] == streams[1]).all(axis=1).any()
    assert len({tuple(map(int, key)) for stream in streams for key in stream}) == 12


def test_temperature_zero_takes_the_arg_max_with_probabilities_at_one(mesh):
    batch = prompts()
    written = sample(mesh, dataclasses.replace(PLAIN, temperature=0.0, rollouts=2))
    np.testing.assert_array_equal(written.response[::2], written.response[1::2])
    params = param_table.init(MODEL, mesh, 0)
    hidden = response_hidden(
        MODEL,
        params,
        *put_rows(mesh, (batch.student_prompt, batch.student_prompt_mask, written.response, written.response_mask)),
    )
    best = np.asarray(transformer.unembed(MODEL, params, hidden).argmax(-1))
    keep = written.response_mask
    np.testing.assert_array_equal(written.response[keep], best[keep])
    np.testing.assert_allclose(written.sampled_logp[keep], scored(mesh, batch, written)[0][keep], atol=1e-5)


def test_it_stops_when_all_rows_have(mesh):
    """Every id is a stop id: one token a row, and the loop's steps are not run."""
    written = sample(mesh, dataclasses.replace(PLAIN, stop_ids=tuple(range(MODEL.vocab_size))))
    assert written.finished.all() and (written.response_mask.sum(axis=1) == 1).all()


def test_a_prompt_is_prefilled_once_for_its_rollouts(mesh):
    """Tokens that pass through `forward`, counted as the program is traced: all but the last of each prompt."""
    with mock.patch.object(transformer, "forward", wraps=transformer.forward) as forward:
        sample(mesh, dataclasses.replace(PLAIN, rollouts=8, max_new_tokens=11))
    assert [call.args[2].shape for call in forward.call_args_list] == [(4, 6)]


# ------------------------------------------------------------------------------------------------ the draw itself


def distributions(rows, width, seed=0):
    logits = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32) * 3
    return np.asarray(jax.nn.log_softmax(logits))


def kept_by_sorting(prob, top_k, top_p):
    """What top-k and then top-p keep, by a sort in float64."""
    prob = prob.astype(np.float64).copy()
    if top_k:
        prob[prob < np.sort(prob)[::-1][top_k - 1]] = 0
    if top_p < 1:
        order = np.argsort(-prob)
        mass = np.cumsum(prob[order])
        count = np.searchsorted(mass, top_p * mass[-1]) + 1
        prob[order[count:]] = 0
    return prob / prob.sum()


@pytest.mark.parametrize("width", [5, 256, 1000])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.8), (4, 0.5)])
def test_draw_is_the_inverse_distribution_function_of_what_is_kept(width, top_k, top_p, mesh):
    """At the middle of every token's interval of the running sum, exactly that token is drawn."""
    logp = distributions(2, width)
    sampling = Sampling(1, 1, (0,), 0, temperature=1.0, top_k=top_k, top_p=top_p)
    drawn_of = jax.jit(lambda logp, u: draw(logp, u, sampling))
    for row in range(2):
        kept = kept_by_sorting(np.exp(logp[row]), top_k, top_p)
        edges = np.concatenate([[0], np.cumsum(kept)])
        # Intervals far wider than the rounding of a float32 running sum.
        wide = np.flatnonzero(np.diff(edges) > 1e-4)
        middles = ((edges[:-1] + edges[1:]) / 2)[wide].astype(np.float32)
        drawn = drawn_of(np.tile(logp[row], (len(wide), 1)), middles)
        np.testing.assert_array_equal(drawn, wide)


def test_a_token_without_probability_is_never_drawn(mesh):
    """Neither at 0, nor just below 1, nor in the padding behind the last token."""
    logp = np.full((4, 300), -np.inf, np.float32)
    logp[0, 299] = logp[1, 0] = logp[2, 150] = 0.0
    logp[3, [7, 290]] = np.log(0.5)
    last = np.float32(1) - np.float32(2**-24)
    for uniform in (0.0, 0.3, last):
        drawn = np.asarray(draw(jnp.asarray(logp), jnp.full(4, uniform, jnp.float32), PLAIN))
        assert list(drawn[:3]) == [299, 0, 150]
        assert drawn[3] == (290 if uniform == last else 7)


@pytest.mark.parametrize(("times", "expected"), [(0, 0), (1e-6, 0), (0.4, 0), (0.6, 1), (3, 3), (100, 100)])
def test_the_lowest_id_is_drawn_as_often_as_its_probability_says(times, expected, mesh):
    """Its probability in units of 2^-23, the distance between two draws, of which each of the first 200 is tried."""
    probability = times * 2.0**-23
    logp = np.log(np.array([probability, 0.25, 0.75 - probability], np.float32) + np.float32(1e-30))
    uniform = np.arange(200, dtype=np.float32) * np.float32(2**-23)
    drawn = np.asarray(draw(jnp.tile(logp, (200, 1)), jnp.asarray(uniform), PLAIN))
    assert (drawn == 0).sum() == expected and set(drawn.tolist()) <= {0, 1}


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (6, 1.0), (0, 0.8), (9, 0.7)])
def test_frequencies_match_the_softmax(temperature, top_k, top_p, mesh):
    """100,000 draws from 20 words: chi-square below its 99.99th percentile, and no word that is left out."""
    rng = np.random.default_rng(1)
    hidden, unembed = (rng.normal(size=shape).astype(np.float32) for shape in ((1, 1, 8), (20, 8)))
    sampling = Sampling(1, 1, (0,), 0, temperature=temperature, top_k=top_k, top_p=top_p)
    hidden /= 3  # several words stay, whatever is cut off
    logits = unembed.astype(np.float64) @ hidden[0, 0] / temperature
    expected = kept_by_sorting(np.exp(logits) / np.exp(logits).sum(), top_k, top_p)
    logp = np.asarray(vocab.log_probs(jnp.asarray(hidden), jnp.asarray(unembed), temperature)[0])
    count = 100_000
    uniform = jax.random.uniform(jax.random.key(0), (count,))
    drawn = jax.jit(lambda logp, u: draw(jnp.broadcast_to(logp, (count, 20)), u, sampling))(logp, uniform)
    found = np.bincount(np.asarray(drawn), minlength=20)
    assert not found[expected == 0].any()
    keep = expected > 0
    statistic = ((found[keep] - count * expected[keep]) ** 2 / (count * expected[keep])).sum()
    # Wilson and Hilferty's approximation of the percentile, whose standard normal value is 3.719.
    free = keep.sum() - 1
    assert statistic < free * (1 - 2 / (9 * free) + 3.719 * np.sqrt(2 / (9 * free))) ** 3
