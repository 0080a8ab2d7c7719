"""Every kernel of attention against a NumPy float64 version: splash interpreted, cuDNN's by XLA.

A kernel's own numerics on its own device are not tested here, what we hand to it is.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

from dasd_jax.errors import UserError
from dasd_jax.mesh import named
from dasd_jax.model import attention
from dasd_jax.model.attention import Prompts, attend, choose

HEADS, KV_HEADS, WIDTH, NEW, PROMPT = 4, 2, 16, 11, 6


@pytest.fixture(autouse=True)
def on_this_device(monkeypatch):
    monkeypatch.setattr(attention, "_QUERY_TILE", 2)  # quarters of 4 queries
    monkeypatch.setattr(attention, "_QUERY_BLOCK", 3)
    monkeypatch.setattr(attention, "_cudnn", partial(attention._cudnn, implementation="xla"))
    monkeypatch.setattr(splash, "make_splash_mha", partial(splash.make_splash_mha, interpret=True))


def make(behind_prompts: bool):
    """Eight rows of four prompts, or eight left-padded prompts."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    new = [normal(8, NEW, heads, WIDTH) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    lengths = np.array([11, 3, 7, 1, 8, 2, 10, 5])[:, None]
    if not behind_prompts:
        return *new, np.arange(NEW) >= NEW - lengths, None
    keys, values = normal(4, KV_HEADS, PROMPT, WIDTH), normal(4, KV_HEADS, PROMPT, WIDTH)
    prompt_valid = np.arange(PROMPT) >= PROMPT - np.array([[4], [6], [1], [5]])
    return *new, np.arange(NEW) < lengths, Prompts(keys, values, prompt_valid)


def placed(mesh, arrays):
    """The same on the mesh: rows split, and heads."""
    axes = [("rows", None, "heads", None)] * 3 + [("rows", None)]
    prompts = arrays[4]
    if prompts is not None:
        cached = named(mesh, "rows", "heads", None, None)
        prompts = jax.device_put(prompts, Prompts(cached, cached, named(mesh, "rows", None)))
    return *(jax.device_put(x, named(mesh, *a)) for x, a in zip(arrays, axes, strict=False)), prompts


def oracle(query, key, value, valid, prompts, window):
    """f64[rows, S, N, H], one token and head after the other; NaN where a token is not valid."""
    out = np.full(query.shape, np.nan)
    for row in range(len(query)):
        keys, values = key[row][valid[row]], value[row][valid[row]]
        before = 0
        if prompts is not None:
            seen = prompts.valid[row // 2]
            before = seen.sum()
            keys, values = (
                np.concatenate([np.swapaxes(old[row // 2], 0, 1)[seen], new])
                for old, new in ((prompts.keys, keys), (prompts.values, values))
            )
        for count, place in enumerate(np.flatnonzero(valid[row])):
            last = before + count + 1
            first = max(0, last - window) if window else 0
            for head in range(HEADS):
                shared = head // (HEADS // KV_HEADS)
                scores = keys[first:last, shared].astype(float) @ query[row, place, head] / np.sqrt(WIDTH)
                weight = np.exp(scores - scores.max())
                out[row, place, head] = weight / weight.sum() @ values[first:last, shared]
    return out


@pytest.mark.parametrize("kind", attention.KINDS)
@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("behind_prompts", [True, False])
def test_equals_a_float64_version(kind, window, behind_prompts, mesh):
    arrays = make(behind_prompts)
    out = jax.jit(partial(attend, kind, window=window))(*placed(mesh, arrays))
    expected = oracle(*arrays, window)
    valid = arrays[3]
    np.testing.assert_allclose(np.asarray(out)[valid], expected[valid], atol=3e-6)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("kind", attention.KINDS)
def test_eight_devices_equal_the_float64_version(kind, mesh8):
    """Rows and heads split, of a sequence behind its prompts."""
    arrays = make(behind_prompts=True)
    out = jax.jit(partial(attend, kind))(*placed(mesh8, arrays))
    np.testing.assert_allclose(np.asarray(out)[arrays[3]], oracle(*arrays, 0)[arrays[3]], atol=3e-6)


@pytest.mark.parametrize("kind", ["splash", "cudnn"])
@pytest.mark.parametrize("behind_prompts", [True, False])
def test_gradients_equal_those_of_one_block_of_xla(kind, behind_prompts, mesh, monkeypatch):
    """The version in quarters and blocks too."""
    *arrays, valid, prompts = placed(mesh, make(behind_prompts))

    def loss(kind, arrays, prompts):
        out = attend(kind, *arrays, valid, prompts, window=5)
        return jnp.sum(jnp.where(valid[..., None, None], jnp.sin(out), 0.0))

    floats = tuple(arrays), prompts and prompts.replace(valid=None)

    def gradients(kind):
        def of(floats):
            return loss(kind, floats[0], floats[1] and floats[1].replace(valid=prompts.valid))

        return jax.jit(jax.grad(of))(floats)

    fused, blocked = gradients(kind), gradients("xla")
    monkeypatch.setattr(attention, "_QUERY_TILE", 64)
    monkeypatch.setattr(attention, "_QUERY_BLOCK", 512)
    whole = gradients("xla")
    assert all(np.abs(leaf).max() > 0.01 for leaf in jax.tree.leaves(whole))
    for other in (fused, blocked):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=3e-6), other, whole)


@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("behind_prompts", [True, False])
def test_gradients_equal_finite_differences_in_float64(behind_prompts, window, mesh):
    """Of queries, keys and values, of the prompts too: along random directions, against the float64 version."""
    arrays = make(behind_prompts)
    valid, prompts = arrays[3], arrays[4]
    names = ("query", "key", "value") + (("prompt keys", "prompt values") if behind_prompts else ())
    floats = [*arrays[:3], *((prompts.keys, prompts.values) if behind_prompts else ())]
    *on_mesh, on_mesh_valid, on_mesh_prompts = placed(mesh, arrays)
    on_mesh += [on_mesh_prompts.keys, on_mesh_prompts.values] if behind_prompts else []

    def attended(attention, floats, valid, prompts):
        return attention(*floats[:3], valid, prompts and prompts.replace(keys=floats[3], values=floats[4]), window)

    @jax.jit
    @jax.grad
    def gradient(floats):
        out = attended(partial(attend, "xla"), floats, on_mesh_valid, on_mesh_prompts)
        return jnp.sum(jnp.where(on_mesh_valid[..., None, None], jnp.sin(out), 0.0))

    def loss(floats):
        out = attended(oracle, floats, valid, prompts)
        return np.sin(out[valid]).sum()

    rng = np.random.default_rng(1)
    for name, at, found in zip(names, range(len(floats)), gradient(on_mesh), strict=True):
        direction, step = rng.normal(size=floats[at].shape), 1e-5
        ends = []
        for sign in (1, -1):
            moved = [x.astype(float) for x in floats]
            moved[at] = moved[at] + sign * step * direction
            ends.append(loss(moved))
        slope = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(np.sum(np.asarray(found, float) * direction), slope, rtol=2e-5, err_msg=name)


def test_the_fused_kernel_of_the_platform_is_taken_in_bfloat16():
    assert choose("auto", "tpu", "bfloat16") == "splash"
    assert choose("auto", "gpu", "bfloat16") == "cudnn"
    assert choose("auto", "tpu", "float32") == choose("auto", "cpu", "bfloat16") == choose("xla", "tpu", "bfloat16")
    assert choose("auto", "cpu", "bfloat16") == "xla"


@pytest.mark.parametrize(
    ("kind", "platform", "dtype"),
    [("splash", "gpu", "bfloat16"), ("cudnn", "cpu", "bfloat16"), ("splash", "tpu", "float32")],
)
def test_a_kernel_that_does_not_run_there_is_refused(kind, platform, dtype):
    with pytest.raises(UserError, match=f"model.attention: {kind}: expected xla or auto with {dtype} on {platform}"):
        choose(kind, platform, dtype)
