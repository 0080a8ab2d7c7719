"""Arrays in int8 and their products, against NumPy: how far they may be from what they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasd_jax import vocab
from dasd_jax.model.layer import _product
from dasd_jax.quantised import quantise


def numbers(shape, seed=0):
    """Normal numbers whose spread differs by a thousand between places of the last axis, and one of them is 0."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * np.logspace(-3, 0, shape[-1]) * (np.arange(shape[-1]) != 2)).astype(np.float32)


def dequantised(quantised, axis):
    """float64: what a quantised array stands for."""
    return np.asarray(quantised.values, np.float64) * np.expand_dims(np.asarray(quantised.scale, np.float64), axis)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_number_is_off_by_at_most_half_a_scale_and_the_largest_by_nothing(axis, dtype, mesh):
    x = jnp.asarray(numbers((3, 16, 24)), dtype)
    exact = np.asarray(x, np.float64)
    found = jax.jit(quantise, static_argnums=1)(x, axis)
    assert found.values.dtype == jnp.int8 and found.dtype == x.dtype and found.shape == x.shape
    largest = np.abs(exact).max(axis=axis)
    np.testing.assert_allclose(found.scale, largest / 127, rtol=1e-6)
    error = np.abs(dequantised(found, axis) - exact)
    assert (error <= np.expand_dims(largest / 127 / 2, axis) * (1 + 1e-5)).all()
    assert np.abs(np.asarray(found.values, int)).max() == 127
    at_the_largest = np.abs(exact) == np.expand_dims(largest, axis)
    np.testing.assert_allclose(dequantised(found, axis)[at_the_largest], exact[at_the_largest], rtol=1e-6)
    # Half the rounding of a uniform number: the values are rounded to the nearest and not cut off.
    assert error.mean() < 0.3 * (largest / 127).mean()


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_so_in_its_channel_alone(bad, mesh):
    x = numbers((4, 8)) + 1
    x[1, 3] = bad
    found = dequantised(quantise(jnp.asarray(x), -1), -1)
    assert not np.isfinite(found[1]).any() and np.isfinite(np.delete(found, 1, axis=0)).all()


@pytest.mark.parametrize(
    ("equation", "shape", "axis"),
    [
        ("rsd,dkmh->rskmh", (32, 2, 4, 8), 0),
        ("rsd,duf->rsuf", (32, 2, 24), 0),
        ("rsf,fd->rsd", (32, 24), 0),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_is_that_of_the_dequantised_weight(equation, shape, axis, dtype, mesh):
    weight, x = numbers(shape), np.random.default_rng(1).normal(size=(2, 3, shape[0])).astype(np.float32)
    quantised = quantise(jnp.asarray(weight, dtype), axis)
    found = jax.jit(lambda x, weight: _product(equation, x, weight))(x, quantised)
    argument = np.asarray(jnp.asarray(x, dtype), np.float64)  # alone rounded: int8 is exact in either dtype
    assert found.dtype == jnp.float32
    expected = np.einsum(equation, argument, dequantised(quantised, axis))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    # And it is not that of the weight itself.
    assert np.abs(found - np.einsum(equation, argument, weight.astype(np.float64))).max() > 1e-4


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-4)])
def test_logits_are_those_of_the_dequantised_unembedding(dtype, tolerance, mesh):
    rng = np.random.default_rng(2)
    hidden, unembed = rng.normal(size=(2, 3, 32)).astype(np.float32), numbers((24, 32), seed=3)
    quantised = quantise(jnp.asarray(unembed, dtype), -1)
    found = jax.jit(lambda hidden, table: vocab.logits(hidden, table, 0.7))(hidden, quantised)
    expected = hidden.astype(np.float64) @ dequantised(quantised, -1).T / 0.7
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())
