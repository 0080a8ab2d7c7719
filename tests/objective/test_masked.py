"""Means and quantiles over the True part of a mask, against NumPy on what the mask keeps."""

import jax
import numpy as np
import pytest

from dasd_jax.mesh import put_rows
from dasd_jax.objective.masked import largest, masked_mean, pooled_quantile, pooled_quantiles, row_quantile

LENGTHS = (9, 1, 0, 2, 5, 8, 3, 9)


def ragged(junk=np.nan):
    rng = np.random.default_rng(0)
    mask = np.arange(9) < np.array(LENGTHS)[:, None]
    mask[0, 4] = False
    return np.where(mask, rng.exponential(1.0, mask.shape), junk).astype(np.float32), mask


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf])
def test_means_and_quantiles_read_what_the_mask_keeps_and_give_zero_of_nothing(junk):
    x, mask = ragged(junk)
    kept = [row[keep].astype(np.float64) for row, keep in zip(x, mask, strict=True)]
    rows = masked_mean(x, mask, 1)
    np.testing.assert_allclose(rows, [row.mean() if len(row) else 0 for row in kept], rtol=1e-6)
    assert masked_mean(x, mask) == pytest.approx(np.concatenate(kept).mean(), rel=1e-6)
    for q in (0.0, 0.2, 0.5, 0.8, 1.0):
        want = [np.quantile(row, q) if len(row) else 0 for row in kept]
        np.testing.assert_allclose(row_quantile(x, mask, q), want, rtol=2e-6, atol=1e-7)
    nothing = np.zeros_like(mask)
    assert masked_mean(x, nothing) == 0 and pooled_quantile(x, nothing, 0.9) == 0


@pytest.mark.parametrize("junk", [np.nan, np.inf])
def test_the_pooled_quantile_is_the_nearest_rank_of_all_tokens_together(junk):
    x, mask = ragged(junk)
    for q in (0.001, 0.2, 0.5, 0.9, 0.999):
        want = np.quantile(x[mask], q, method="inverted_cdf")
        assert pooled_quantile(x, mask, q) == want
    one = np.zeros_like(mask)
    one[3, 1] = True
    assert pooled_quantile(x, one, 0.5) == x[3, 1]


def test_rows_split_over_eight_devices_have_the_means_and_quantiles_of_one(mesh8):
    x, mask = ragged()
    compute = jax.jit(lambda x, mask: (masked_mean(x, mask), row_quantile(x, mask, 0.8), pooled_quantile(x, mask, 0.9)))
    mean, by_row, pooled = compute(*put_rows(mesh8, (x, mask)))
    assert mean == pytest.approx(x[mask].mean(), rel=1e-6)
    want = [np.quantile(row[keep], 0.8) if keep.any() else 0 for row, keep in zip(x, mask, strict=True)]
    np.testing.assert_allclose(by_row, want, rtol=2e-6)
    assert pooled == np.quantile(x[mask], 0.9, method="inverted_cdf")


def test_order_statistics_are_exact_for_ties_and_numbers_of_both_signs():
    rng = np.random.default_rng(1)
    x = rng.choice(np.float32([-np.inf, -3.5, -1e-30, -0.0, 0.0, 2e-38, 1.0, 1.0000001, 7.0]), (6, 40))
    mask = rng.random((6, 40)) < 0.7
    for share in (0.01, 0.2, 0.5, 1.0):
        got = np.asarray(largest(x, mask, share))
        for row, keep, found in zip(x, mask, got, strict=True):
            order = sorted(np.flatnonzero(keep), key=lambda place: -row[place])  # stable: of equal ones the first
            assert set(np.flatnonzero(found)) == set(order[: int(np.ceil(share * keep.sum()))])
    finite, qs = np.abs(np.nan_to_num(x, neginf=4.0)), (0.01, 0.5, 0.77, 1.0)
    want = [np.quantile(finite[mask], q, method="inverted_cdf") for q in qs]
    assert [float(found) for found in pooled_quantiles(finite, mask, qs)] == want
