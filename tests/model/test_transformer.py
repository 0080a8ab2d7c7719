"""The decoder's properties, at random weights and batch ≥ 2, against a NumPy float64 version written for the test."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasd_jax.mesh import per_shard, put_rows
from dasd_jax.model import attention_cached, param_table, transformer
from dasd_jax.model.cache import open_response, own_prompts, take_prompt
from dasd_jax.model.config import Llama3Scaling, YarnScaling
from dasd_jax.model.layout import repeat_rows
from dasd_jax.model.presets import preset

QWEN3 = preset("qwen3_tiny")
FAMILIES = {
    "qwen3": QWEN3,
    "qwen2": dataclasses.replace(QWEN3, qk_norm="none", qkv_bias=True),
    "llama3": dataclasses.replace(
        QWEN3, qk_norm="none", tied=False, rope_base=1e4, rope_scaling=Llama3Scaling(original_context=16)
    ),
    "olmo3": dataclasses.replace(
        QWEN3,
        num_layers=3,
        qk_norm="all",
        tied=False,
        post_norm=True,
        window=5,
        sliding=(True, False, True),
        rope_base=1e4,
        rope_scaling=YarnScaling(4.0, 16, 1.2),
    ),
    "multi-head": dataclasses.replace(QWEN3, num_kv_heads=8),
}
# The plainest and the one with most of its own in every run; all of them in make test-slow.
SOME_FAMILIES = [
    name if name in ("qwen3", "olmo3") else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES
]


def make_params(config, mesh, seed=0):
    """Random parameters whose norms and biases are random too, so that none of them can be forgotten."""
    params = param_table.init(config, mesh, seed)
    rng = np.random.default_rng(seed + 1)
    # A wider spread than usual: attention then looks somewhere and logits reach a scale of 10.
    noisy = jax.tree.map(lambda x: (np.asarray(x) * 4 + 0.1 * rng.normal(size=x.shape)).astype(np.float32), params)
    return jax.device_put(noisy, param_table.shardings(config, mesh))


def ragged(rows, width, lengths, seed=0, *, left):
    """i32[rows, width] random tokens and the mask of rows with these lengths."""
    tokens = np.random.default_rng(seed).integers(0, QWEN3.vocab_size, (rows, width)).astype(np.int32)
    place = np.arange(width)[None]
    lengths = np.array(lengths)[:, None]
    return tokens, (place >= width - lengths) if left else (place < lengths)


forward = jax.jit(transformer.forward, static_argnums=0)
unembed = jax.jit(transformer.unembed, static_argnums=0)
decode = jax.jit(transformer.decode, static_argnums=0)
response_hidden = jax.jit(transformer.response_hidden, static_argnums=0)


def run(config, params, tokens, mask, positions=None):
    positions = transformer.prompt_positions(mask) if positions is None else positions
    return forward(config, params, jnp.asarray(tokens), positions, jnp.asarray(mask))


def oracle(config, params, tokens):
    """Logits f64[S, V] of one sequence without padding, in NumPy and float64, written from the papers."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    half = config.head_dim // 2

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * scale

    plain = np.array([config.rope_base ** (-2 * i / config.head_dim) for i in range(half)])
    freqs, size = plain.copy(), 1.0
    if isinstance(config.rope_scaling, YarnScaling):
        s = config.rope_scaling
        size = s.attention_factor
        # The index of the frequency that makes n turns within the original context: base^(-2i/H) * context = 2 pi n.
        fast, slow = (
            config.head_dim * np.log(s.original_context / (2 * np.pi * n)) / (2 * np.log(config.rope_base))
            for n in (32, 1)
        )
        first, last = max(np.floor(fast), 0), min(np.ceil(slow), config.head_dim - 1)
        for i, f in enumerate(plain):
            stretch = min(max((i - first) / (last - first), 0), 1)
            freqs[i] = (1 - stretch) * f + stretch * f / s.factor
    elif config.rope_scaling:
        s = config.rope_scaling
        for i, f in enumerate(freqs):
            wavelength = 2 * np.pi / f
            if wavelength > s.original_context / s.low_freq_factor:
                freqs[i] = f / s.factor
            elif wavelength > s.original_context / s.high_freq_factor:
                smooth = (s.original_context / wavelength - s.low_freq_factor) / (
                    s.high_freq_factor - s.low_freq_factor
                )
                freqs[i] = (1 - smooth) * f / s.factor + smooth * f

    def rotate(x, slides):  # [S, heads, H], as complex numbers
        turn = np.exp(1j * np.arange(len(x))[:, None, None] * (plain if slides else freqs))
        z = (x[..., :half] + 1j * x[..., half:]) * turn * (1.0 if slides else size)
        return np.concatenate([z.real, z.imag], -1)

    x = p["embed"][tokens]
    for i in range(config.num_layers):
        w = {name: leaf[i] for name, leaf in p["layers"].items()}
        slides = bool(config.sliding) and config.sliding[i]
        y = x if config.post_norm else norm(x, w["attn_norm"])
        qkv = [np.tensordot(y, w[n], 1) + w.get(f"{n}_bias", 0) for n in "qkv"]
        for j, n in enumerate("qk"):
            if config.qk_norm == "head":
                qkv[j] = norm(qkv[j], w[f"{n}_norm"])
            if config.qk_norm == "all":
                flat = norm(qkv[j].reshape(len(x), -1), w[f"{n}_norm"].reshape(-1))
                qkv[j] = flat.reshape(qkv[j].shape)
        q, k, v = rotate(qkv[0], slides), rotate(qkv[1], slides), qkv[2]
        out = np.zeros_like(q)
        for head in range(config.num_heads):
            shared = head // (config.num_heads // config.num_kv_heads)
            scores = q[:, head] @ k[:, shared].T / np.sqrt(config.head_dim)
            scores[np.triu_indices(len(x), 1)] = -np.inf
            if slides:
                scores[np.tril_indices(len(x), -config.window)] = -np.inf
            weight = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, head] = weight / weight.sum(-1, keepdims=True) @ v[:, shared]
        mixed = np.tensordot(out, w["o"], 2)
        x = x + (norm(mixed, w["attn_norm"]) if config.post_norm else mixed)
        y = x if config.post_norm else norm(x, w["mlp_norm"])
        gate = y @ w["gate"]
        fed = (gate / (1 + np.exp(-gate)) * (y @ w["up"])) @ w["down"]
        x = x + (norm(fed, w["mlp_norm"]) if config.post_norm else fed)
    return norm(x, p["final_norm"]) @ (p["embed"] if config.tied else p["unembed"]).T


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_a_float64_version_of_every_family(family, mesh):
    config = FAMILIES[family]
    params = make_params(config, mesh)
    tokens, mask = ragged(3, 24, [24, 24, 24], left=True)
    logits = unembed(config, params, run(config, params, tokens, mask)[0])
    for row in range(3):
        expected = oracle(config, params, tokens[row])
        scale = np.abs(expected).max()
        assert scale > 5
        np.testing.assert_allclose(logits[row], expected, rtol=0, atol=3e-5 * scale)


def test_a_token_changes_nothing_before_it(mesh):
    params = make_params(QWEN3, mesh)
    tokens, mask = ragged(2, 10, [10, 10], left=True)
    changed = tokens.copy()
    changed[:, 6] = (changed[:, 6] + 1) % 300
    before, _ = run(QWEN3, params, tokens, mask)
    after, _ = run(QWEN3, params, changed, mask)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (np.abs(before[:, 6:] - after[:, 6:]).max(axis=(1, 2)) > 1e-3).all()


def test_left_padding_and_neighbours_change_nothing(mesh):
    """A batch of prompts of different lengths equals the prompts one by one, whatever the padding holds."""
    params = make_params(QWEN3, mesh)
    lengths = [3, 9, 1, 6]
    tokens, mask = ragged(4, 9, lengths, left=True)
    together, _ = run(QWEN3, params, tokens, mask)
    other, _ = run(QWEN3, params, np.where(mask, tokens, 7), mask)
    np.testing.assert_array_equal(np.asarray(together)[mask], np.asarray(other)[mask])
    for row, length in enumerate(lengths):
        alone, _ = run(QWEN3, params, tokens[row : row + 1, 9 - length :], np.ones((1, length), bool))
        np.testing.assert_allclose(together[row, 9 - length :], alone[0], atol=2e-5)


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_cached_equals_uncached(family, mesh):
    """Prompt once for two rollouts, then token by token, equals one pass over each whole sequence; and so does scoring
    the responses against the shared prompt."""
    config = FAMILIES[family]
    params = make_params(config, mesh)
    prompt, prompt_mask = ragged(2, 7, [7, 4], left=True)
    response, response_mask = ragged(4, 5, [5, 2, 4, 1], seed=1, left=False)

    hidden, cache = run(config, params, prompt, prompt_mask)
    steps = [repeat_rows(hidden[:, -1:], 2)[:, 0]]
    cache = open_response(cache, 2, 5)
    weights = jax.jit(transformer.for_decoding, static_argnums=0)(config, params)
    for r in range(4):
        hidden, cache = decode(config, weights, jnp.asarray(response[:, r]), jnp.ones(4, bool), cache)
        steps.append(hidden)
    cached = jnp.stack(steps, axis=1)
    scored = response_hidden(config, params, prompt, prompt_mask, response, response_mask)

    for row in range(4):
        problem, length = row // 2, response_mask[row].sum()
        sequence = np.concatenate([prompt[problem][prompt_mask[problem]], response[row][:length]])[None]
        whole, _ = run(config, params, sequence, np.ones(sequence.shape, bool))
        expected = whole[0, -length - 1 : -1]
        np.testing.assert_allclose(cached[row, :length], expected, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(scored[row, :length], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen3", "olmo3"])
def test_a_row_that_waits_or_starts_anew_changes_nothing_for_the_others(family, mesh):
    """Rows at different places of their responses, one of them behind another prompt since the third step."""
    config = FAMILIES[family]
    params = make_params(config, mesh)
    weights = jax.jit(transformer.for_decoding, static_argnums=0)(config, params)
    prompt, prompt_mask = ragged(3, 7, [7, 4, 5], left=True)
    response, _ = ragged(3, 6, [6, 6, 6], seed=1, left=False)

    def in_a_shard(function):
        return jax.jit(lambda *args: per_shard(function, (None,) * len(args), None)(*args))

    take, decode = map(in_a_shard, (take_prompt, partial(transformer.decode, config)))

    @in_a_shard
    def begin(params, tokens, mask):
        _, prompts = run(config, params, tokens, mask)
        return prompts, open_response(own_prompts(prompts, 2), 1, 6)

    prompts, blank = begin(weights, prompt, prompt_mask)

    def written(plan):
        """Hidden states by (problem, token) of a plan: for each step the problem that each row goes on with, or -1."""
        cache, at, found = blank, [None, None], {}
        for step in plan:
            for row, problem in enumerate(step):
                if problem >= 0 and (at[row] is None or at[row][0] != problem):
                    cache, at[row] = take(cache, row, prompts.prompt, problem), [problem, 0]
            token = jnp.array([response[tuple(place)] if place else 0 for place in at])
            hidden, cache = decode(weights, token, jnp.array(step) >= 0, cache)
            for row, problem in enumerate(step):
                if problem >= 0:
                    found[problem, at[row][1]] = np.asarray(hidden[row])
                    at[row][1] += 1
        return found

    plain = written([(0, 1)] * 6) | written([(2, 0)] * 3)
    mixed = written([(0, 1), (0, -1), (0, 1), (2, 1), (-1, 1), (2, 1), (2, -1)])
    assert len(mixed) == 11
    for place, hidden in mixed.items():
        np.testing.assert_array_equal(hidden, plain[place])


def test_blocks_of_the_cache_change_nothing(mesh, monkeypatch):
    """Caches of 7 and 18 columns read in blocks of 4, the last ones overlapping, as caches that are read at once."""
    config = FAMILIES["olmo3"]
    params = make_params(config, mesh)
    weights = jax.jit(transformer.for_decoding, static_argnums=0)(config, params)
    prompt, prompt_mask = ragged(2, 7, [7, 3], left=True)
    response, _ = ragged(2, 18, [18, 18], seed=1, left=False)
    found = {}
    for block in (128, 4):
        monkeypatch.setattr(attention_cached, "_KEY_BLOCK", block)
        _, cache = run(config, params, prompt, prompt_mask)
        cache = open_response(cache, 1, 18)
        step = jax.jit(transformer.decode, static_argnums=0)
        hidden = []
        for r in range(18):
            one, cache = step(config, weights, jnp.asarray(response[:, r]), jnp.array([True, r < 6]), cache)
            hidden.append(one)
        found[block] = jnp.stack(hidden, 1)
    np.testing.assert_allclose(found[4][0], found[128][0], atol=1e-4)
    np.testing.assert_allclose(found[4][1, :6], found[128][1, :6], atol=1e-4)


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_layers_apart_equal_layers_in_a_stack(family, mesh):
    stacked = FAMILIES[family]
    params = make_params(stacked, mesh)
    prompt, prompt_mask = ragged(2, 7, [7, 4], left=True)
    token = jnp.array([3, 5], jnp.int32)
    found = []
    for unroll in (False, True):
        config = dataclasses.replace(stacked, unroll=unroll)
        weights = jax.jit(transformer.for_decoding, static_argnums=0)(config, params)
        _, cache = run(config, weights, prompt, prompt_mask)
        cache = open_response(cache, 1, 2)
        for _ in range(2):
            hidden, cache = decode(config, weights, token, jnp.ones(2, bool), cache)
        found.append(hidden)
    np.testing.assert_allclose(*found, atol=1e-4)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_what_is_computed_again_changes_no_gradient(remat, mesh):
    tokens, mask = ragged(2, 6, [6, 4], left=True)

    def loss(params, config):
        hidden, _ = run(config, params, tokens, mask)
        return jnp.sum(jnp.where(mask[..., None], jnp.sin(hidden), 0))

    grad = jax.jit(jax.grad(loss), static_argnums=1)
    params = make_params(QWEN3, mesh)
    expected = grad(params, dataclasses.replace(QWEN3, remat="none"))
    got = grad(params, dataclasses.replace(QWEN3, remat=remat))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(a - b) < 5e-6 * np.linalg.norm(b)


def test_layers_are_stored_in_bfloat16_for_the_backward_pass(mesh):
    tokens, mask = ragged(2, 6, [6, 4], left=True)
    params = make_params(QWEN3, mesh)

    def loss(params, remat, dtype="bfloat16"):
        hidden, _ = run(dataclasses.replace(QWEN3, remat=remat, compute_dtype=dtype), params, tokens, mask)
        return jnp.sum(jnp.where(mask[..., None], jnp.sin(hidden), 0))

    gradient = str(jax.make_jaxpr(jax.grad(loss), static_argnums=1)(params, "full"))
    stored = re.findall(r"(\w+)\[2,2(?:@\S+)?,6,64\]", gradient)
    assert set(stored) == {"bf16"}

    exact = jax.grad(loss)(params, "none", "float32")

    def error(remat):
        off = jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2) / jnp.sum(y**2), jax.grad(loss)(params, remat), exact)
        return np.sqrt(np.mean(jax.tree.leaves(off)))

    assert error("full") < 1.5 * error("none")


@pytest.mark.parametrize("family", ["qwen3", pytest.param("olmo3", marks=pytest.mark.slow)])
def test_eight_devices_equal_one(family, mesh, mesh8):
    """Parameters and rows split over (2, 2, 2), hidden states and gradients as on a single device."""
    config = FAMILIES[family]
    prompt, prompt_mask = ragged(4, 7, [7, 4, 5, 1], left=True)
    response, response_mask = ragged(8, 5, [5, 2, 4, 1, 0, 5, 3, 3], seed=1, left=False)
    batch = (prompt, prompt_mask, response, response_mask)

    def loss(params, prompt, prompt_mask, response, response_mask):
        hidden = response_hidden(config, params, prompt, prompt_mask, response, response_mask)
        return jnp.mean(jnp.where(response_mask[..., None], hidden, 0) ** 2), hidden

    results = []
    for where in (mesh, mesh8):
        with jax.set_mesh(where):
            params = make_params(config, where)
            step = jax.jit(jax.value_and_grad(loss, has_aux=True))
            (_, hidden), grads = step(params, *put_rows(where, batch))
            for got, expected in zip(
                jax.tree.leaves(grads), jax.tree.leaves(param_table.shardings(config, where)), strict=True
            ):
                assert got.sharding.is_equivalent_to(expected, got.ndim)
            results.append(jax.device_get((hidden, grads)))
    (hidden, grads), (hidden8, grads8) = results
    keep = response_mask
    np.testing.assert_allclose(hidden8[keep], hidden[keep], rtol=1e-5, atol=2e-4)
    for a, b in zip(jax.tree.leaves(grads8), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4)


def test_the_gradient_of_the_embedding_is_summed_in_float32(mesh):
    """Of one token at 8,192 places, against float64; in bfloat16 a few hundredths of the sum would be left."""
    config = dataclasses.replace(preset("qwen3_tiny"), compute_dtype="bfloat16")
    params = param_table.init(config, mesh, 0)
    tokens = np.full((8, 1024), 7, np.int32)
    by_place = np.random.default_rng(0).uniform(size=(8, 1024, config.width)).astype(np.float32)

    def total(params):
        return jnp.sum(transformer.embed(transformer.with_embedding(config, params), tokens) * by_place)

    gradient = np.asarray(jax.jit(jax.grad(total))(params)["embed"], np.float64)
    np.testing.assert_allclose(gradient[7], by_place.sum((0, 1), dtype=np.float64), rtol=1e-5)
    assert not np.delete(gradient, 7, axis=0).any()


def test_float32_products_ask_for_float32(mesh):
    """On TPU the default precision would make them bfloat16: every product of the lowered text asks for the highest."""
    params = make_params(QWEN3, mesh)
    tokens, mask = ragged(2, 6, [6, 4], left=True)
    text = jax.jit(lambda p: unembed(QWEN3, p, run(QWEN3, p, tokens, mask)[0])).lower(params).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 7  # the embedding is a gather; q, k and v are one product, and so are gate and up
    assert all("HIGHEST" in line for line in products)
