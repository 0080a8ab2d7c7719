"""How often responses repeat themselves."""

import numpy as np


def repeated_frac(response: np.ndarray, mask: np.ndarray, n: int = 4) -> float:
    """The share of a batch's n-grams that stand in the same response before.

    Args:
        response: i32[rows, R].
        mask: bool[rows, R], a run from the left.

    Returns:
        0 where no response has n tokens.
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
