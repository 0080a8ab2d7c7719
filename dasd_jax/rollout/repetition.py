"""Repetition within responses."""

import numpy as np


def repeated_frac(response: np.ndarray, mask: np.ndarray, n: int = 4) -> float:
    """The fraction of a batch's n-grams that occur earlier in the same response.

    Args:
        response: i32[rows, R].
        mask: bool[rows, R], True for a prefix of each row.

    Returns:
        0 if no response has n tokens.
    """
    total = repeated = 0
    for tokens, length in zip(response, mask.sum(axis=1), strict=True):
        if length < n:
            continue
        grams = np.lib.stride_tricks.sliding_window_view(np.ascontiguousarray(tokens[:length]), n)
        whole = np.ascontiguousarray(grams).view(np.dtype((np.void, grams.dtype.itemsize * n)))
        total += len(grams)
        repeated += len(grams) - len(np.unique(whole))
    return repeated / total if total else 0.0
