"""Rollouts for samples.jsonl: what was written, what it earned, and what the method says of each token."""

import jax
import numpy as np

from dasd_jax.mesh import fetch
from dasd_jax.run.collect import Collected
from dasd_jax.text.tokenizer import Tokenizer


def samples(collected: Collected, logged: dict[str, jax.Array], tokenizer: Tokenizer, count: int) -> list[dict]:
    """The first rollouts of a batch, token by token.

    Args:
        logged: f32[rows, R] by name, from `score_step`.
        count: how many rollouts.
    """
    written = collected.rollouts
    arrays: dict[str, np.ndarray] = {name: x[:count] for name, x in fetch(logged).items()}
    rows = []
    for row in range(min(count, len(collected.texts))):
        keep, problem, verdict = written.response_mask[row], collected.problems[row], collected.verdicts[row]
        rows.append(
            {
                "source": problem.source,
                "question": problem.question,
                "answer": problem.answer,
                "text": collected.texts[row],
                "reward": verdict.reward,
                "score": verdict.score,
                "finished": bool(written.finished[row]),
                "tokens": [tokenizer.piece(int(token)) for token in written.response[row][keep]],
                **{name: [round(float(v), 5) for v in x[row][keep]] for name, x in arrays.items()},
            }
        )
    return rows
