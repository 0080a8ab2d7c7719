"""Rollouts in int8: decoding against a pass over whole sequences with the same rounding, and what must not matter."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_sampler import PLAIN, SKEWED, prompts
from tiny import SMALL, TINY, command

from dasd_jax.mesh import put_rows, replicate
from dasd_jax.model import param_table, transformer
from dasd_jax.model.cache import open_response, quantised
from dasd_jax.model.layer import apply_layer, rms_norm
from dasd_jax.model.presets import preset
from dasd_jax.model.rope import rope_table
from dasd_jax.quantised import Quantised
from dasd_jax.rollout.sampler import relayout, rollout

MODEL = preset("qwen3_tiny")
FAMILIES = {
    "stacked": MODEL,
    "apart": dataclasses.replace(MODEL, unroll=True),
    "untied, with biases": dataclasses.replace(MODEL, qk_norm="none", qkv_bias=True, tied=False),
}
INT8 = {"weights": "int8", "cache": "int8"}


def make_params(config, mesh):
    """Weights wide enough that attention looks somewhere."""
    return jax.jit(lambda p: jax.tree.map(lambda x: x * 3, p))(param_table.init(config, mesh, 0))


def is_quantised(x):
    return isinstance(x, Quantised)


SUMMED = {"qkv": -4, "gate_up": -3, "o": -2, "down": -2, "embed": -1, "unembed": -1}


def dequantised(params):
    """The same layout with what its int8 stands for, float32."""

    def plain(path, x):
        if not is_quantised(x):
            return x
        return x.values.astype(jnp.float32) * jnp.expand_dims(x.scale, SUMMED[path[-1].key])

    return jax.tree.map_with_path(plain, params, is_leaf=is_quantised)


def rounded(x):
    """x as int8 with a scale for each token and head has it."""
    scale = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
    return np.round(x / scale) * scale


def whole_sequence(config, params, tokens, prefilled, round_cache):
    """Hidden states of one sequence i32[S], its attention in NumPy; queries from `prefilled` on see rounded keys."""
    places = np.arange(len(tokens))
    rope = rope_table(config, jnp.asarray(places)[None], scaled=True)

    def attention(query, key, value):
        query, key, value = (np.asarray(x)[0] for x in (query, key, value))
        found = []
        for seen in (lambda x: x, round_cache):
            keys, values = (np.repeat(seen(x), config.num_heads // config.num_kv_heads, axis=1) for x in (key, value))
            scores = np.einsum("qnh,knh->nqk", query, keys, dtype=np.float64) * config.head_dim**-0.5
            weights = np.where(places[:, None] >= places, np.exp(scores), 0)
            found.append(np.einsum("nqk,knh->qnh", weights / weights.sum(axis=-1, keepdims=True), values))
        return jnp.asarray(np.where((places < prefilled)[:, None, None], *found)[None], jnp.float32), None

    x = transformer.embed(params, jnp.asarray(tokens)[None])
    for index in range(config.num_layers):
        layers = params["layers"]
        weights = layers[index] if config.unroll else jax.tree.map(lambda x, i=index: x[i], layers)
        x, _ = apply_layer(config, weights, x, rope, attention)
    return np.asarray(rms_norm(config, x, params["final_norm"])[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_equals_a_pass_with_dequantised_weights_and_rounded_keys_and_values(family, mesh):
    """Two prompts of two rows each; the products' other roundings are float32's, so that little else is left."""
    config = FAMILIES[family]
    params = relayout(config, make_params(config, mesh), "int8")
    rng = np.random.default_rng(0)
    prompt, response = (rng.integers(0, 256, shape).astype(np.int32) for shape in ((2, 6), (4, 5)))
    mask = np.arange(6) >= np.array([[0], [3]])

    @jax.jit
    def prefill(params):
        _, cache = transformer.forward(config, params, prompt, transformer.prompt_positions(mask), mask)
        return open_response(quantised(cache), 2, 5)

    cache, decode = prefill(params), jax.jit(transformer.decode, static_argnums=0)
    assert {x.dtype for x in jax.tree.leaves(cache.response.key)} == {jnp.dtype("int8"), jnp.dtype("float32")}
    found = []
    for r in range(5):
        hidden, cache = decode(config, params, response[:, r], jnp.ones(4, bool), cache)
        found.append(np.asarray(hidden))
    found, plain = np.stack(found, axis=1), dequantised(params)
    by_rounding, error = [], []
    for row in range(4):
        tokens = np.concatenate([prompt[row // 2][mask[row // 2]], response[row]])
        length = len(tokens) - 5
        same, other = (whole_sequence(config, plain, tokens, length, seen)[length:] for seen in (rounded, lambda x: x))
        error.append(np.abs(found[row] - same).mean())
        by_rounding.append(np.abs(same - other).mean())
    # A key on the edge between two values may be rounded to either.
    assert np.mean(error) < 0.03 * np.mean(by_rounding), (error, by_rounding)
    assert np.mean(by_rounding) > 1e-4


def sample(where, sampling, batch=None):
    params = relayout(MODEL, make_params(MODEL, where), sampling.weights)
    seeds = replicate(where, (np.int32(0), np.int32(3)))
    batch = put_rows(where, prompts() if batch is None else batch)
    return jax.device_get(rollout(MODEL, sampling, params, batch, seeds[0], "train", seeds[1])[0])


def test_eight_devices_write_the_same_as_one(mesh, mesh8):
    sampling = dataclasses.replace(PLAIN, **INT8)
    with jax.set_mesh(mesh):
        one = sample(mesh, sampling)
    eight = sample(mesh8, sampling)
    np.testing.assert_array_equal(eight.response, one.response)
    # The sums of two devices differ in their last bits, and a key on an edge is then another.
    np.testing.assert_allclose(eight.sampled_logp, one.sampled_logp, atol=2e-2)
    np.testing.assert_allclose(np.abs(eight.sampled_logp - one.sampled_logp).mean(), 0, atol=1e-3)


def test_a_row_does_not_depend_on_its_slot_or_on_when_it_was_begun(mesh):
    """To the bit, at equal slots: problems in another order, and free slots refilled at once or only all together."""
    order = [2, 0, 3, 1]
    other = jax.tree.map(lambda x: x[order], prompts())
    at_once, in_waves = (dataclasses.replace(SKEWED, slots=5, refill_at=n, **INT8) for n in (1, 5))
    whole = sample(mesh, at_once)
    assert whole.response_mask.sum(axis=1).max() > 4 * whole.response_mask.sum(axis=1).min()
    for batch, sampling in ((other, at_once), (prompts(), in_waves)):
        again = sample(mesh, sampling, batch)
        rows = np.arange(24).reshape(4, 6)[order].reshape(-1) if batch is other else np.arange(24)
        for name in ("response", "response_mask", "sampled_logp", "finished"):
            np.testing.assert_array_equal(getattr(again, name), getattr(whole, name)[rows], err_msg=name)


@pytest.mark.parametrize("off", [{}, {"weights": "int8"}, {"cache": "int8"}])
def test_each_of_both_is_rounded_where_it_is_asked_for_and_changes_what_is_recorded(off, mesh):
    """A rollout in the compute dtype holds no int8 at all."""
    sampling = dataclasses.replace(PLAIN, **off)
    params = param_table.abstract(MODEL, mesh)
    laid_out = jax.eval_shape(lambda p: relayout(MODEL, p, sampling.weights), params)
    kinds = {x.dtype for x in jax.tree.leaves(laid_out)}
    assert (jnp.dtype("int8") in kinds) == (sampling.weights == "int8")
    seeds = replicate(mesh, (np.int32(0), np.int32(3)))
    batch = put_rows(mesh, prompts())
    text = rollout.lower(MODEL, sampling, laid_out, batch, seeds[0], "train", seeds[1]).as_text()
    assert ("xi8>" in text) == bool(off)
    # qwen3_tiny: 2 layers, 4 key heads of 16; prompts of 6 cached tokens, responses of 10.
    assert ("tensor<2x4x4x6x16xi8>" in text) == ("tensor<2x12x4x10x16xi8>" in text) == (sampling.cache == "int8")


@pytest.mark.slow
def test_a_run_samples_in_int8_and_goes_on_without_the_weights(tmp_path, monkeypatch, capsys):
    """Two steps with truncated importance weights; a third without them warns. Evaluations are not in int8."""
    train, workdir = command(monkeypatch), tmp_path / "run"
    flags = [TINY, f"--workdir={workdir}", *(f"--config.{each}" for each in SMALL)]
    flags += [f"--config.rollout.{name}=int8" for name in INT8] + ["--config.run.checkpoint_every=2"]
    assert train(*flags, "--config.run.steps=2", "--config.objective.tis=2") == 0
    first = capsys.readouterr().out
    assert train(*flags, "--config.run.steps=3") == 0
    second = capsys.readouterr().out
    assert "warning: rollouts are in int8 and objective.tis is 0" in second and "in int8" not in first
    assert "from step 3 on: objective.tis 2 → 0" in second
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in lines[1:]:
        assert 1e-5 < line["policy/logp_gap_mean"] < 0.1
        assert ("policy/tis_mean" in line) == (line["step"] < 3)
        assert abs(line.get("policy/tis_mean", 1) - 1) < 0.01
        assert "policy/row_ratio_dropped_frac" not in line


def test_what_is_recorded_differs_from_the_compute_dtype_by_the_rounding(mesh):
    plain, narrow = sample(mesh, PLAIN), sample(mesh, dataclasses.replace(PLAIN, **INT8))
    first = plain.response_mask[:, 0]
    gap = np.abs(plain.sampled_logp - narrow.sampled_logp)[:, 0][first & (plain.response == narrow.response)[:, 0]]
    assert len(gap) > 6 and 1e-4 < gap.mean() < 0.1
