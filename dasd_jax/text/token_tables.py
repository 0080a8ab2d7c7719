"""What is true of every token of a vocabulary, whatever stands around it."""

import re
from collections.abc import Callable

import numpy as np

from dasd_jax.text.tokenizer import THOUGHTS, Tokenizer

_NEWLINES = re.compile(r"\n{1,8}")


def is_format(tokenizer: Tokenizer) -> np.ndarray:
    """bool[vocab_size]: tokens that are form and not content. Source: the official code of arXiv 2605.28791.

    These are the control tokens, tags of thinking that are one token, and tokens of 1 to 8 newlines.
    """
    form = {*tokenizer.control, *THOUGHTS}
    return np.array(
        [
            tokenizer.piece(id) in form or _NEWLINES.fullmatch(tokenizer.decode([id])) is not None
            for id in range(tokenizer.vocab_size)
        ]
    )


TABLES: dict[str, Callable[[Tokenizer], np.ndarray]] = {"format": is_format}
