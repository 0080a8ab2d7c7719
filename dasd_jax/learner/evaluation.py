"""Held-out evaluation: Avg@k with standard errors by problem, unbiased Pass@k, and figures of health."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dasd_jax.batch import Params
from dasd_jax.data.pipeline import PromptSet
from dasd_jax.mesh import put_rows, replicate, row_shards
from dasd_jax.model.config import ModelConfig
from dasd_jax.rollout.sampler import Sampling, rollout
from dasd_jax.rollout.verifier import Verdict, Verifier
from dasd_jax.text.tokenizer import Tokenizer


def pass_at_k(num_samples: int, num_correct: np.ndarray, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right, averaged over problems.

    1 - C(n - c, k) / C(n, k) for each problem with c right answers of n. Source: arXiv 2107.03374, equation 1.

    Args:
        num_samples: n, the same for every problem.
        num_correct: i[problems].
        k: 1 to n.
    """
    missed = [math.comb(num_samples - int(c), k) / math.comb(num_samples, k) for c in num_correct]
    return 1.0 - float(np.mean(missed))


def standard_error(per_problem: np.ndarray) -> float:
    """Standard error of the mean over problems: the samples of one problem are not independent. 0 for one problem."""
    count = len(per_problem)
    return float(np.std(per_problem, ddof=1) / math.sqrt(count)) if count > 1 else 0.0


def texts_of(tokenizer: Tokenizer, response: np.ndarray, mask: np.ndarray) -> list[str]:
    """The text of each response: i32[rows, R], bool[rows, R] → rows strings without special tokens."""
    return [tokenizer.decode(row[keep]) for row, keep in zip(response, mask, strict=True)]


def evaluate(
    *,
    model: ModelConfig,
    params: Params,
    mesh: Mesh,
    tokenizer: Tokenizer,
    prompts: PromptSet,
    verifier: Verifier,
    sampling: Sampling,
    num_problems: int,
    rows: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Answers the first `num_problems` held-out problems and scores them.

    The draws depend on the seed and the problem alone, so two checkpoints meet the same random numbers.

    Args:
        rows: responses sampled at a time, about; what one device program holds.
        progress: called with (problems done, problems in all).

    Returns:
        A dictionary for JSON: figures over all problems, per source under "sources", the mean over sources under
        "macro", and "per_problem" with the share of right samples of each problem.
    """
    shards = row_shards(mesh)
    size = max(rows // sampling.rollouts // shards, 1) * shards
    num_problems = min(num_problems, len(prompts))
    count = 0
    problems, verdicts, lengths, finished = [], [], [], []
    for batch, live in prompts.in_order(size, num_problems):
        written = rollout(
            model, sampling, params, put_rows(mesh, batch), *replicate(mesh, (jnp.int32(seed),)), "eval", jnp.int32(0)
        )
        response, mask, done = jax.device_get((written.response, written.response_mask, written.finished))
        asked = [prompts.problems[i] for i in batch.example_id[live]]
        keep = np.repeat(live, sampling.rollouts)
        texts = texts_of(tokenizer, response[keep], mask[keep])
        verdicts += verifier.verify([problem for problem in asked for _ in range(sampling.rollouts)], texts)
        problems += asked
        lengths += mask[keep].sum(axis=1).tolist()
        finished += done[keep].tolist()
        count += len(asked)
        progress(count, num_problems)

    groups: dict[str, list[int]] = {}
    for index, problem in enumerate(problems):
        groups.setdefault(problem.source, []).append(index)
    samples = sampling.rollouts

    def figures(chosen: Sequence[int]) -> dict:
        rows = [i * samples + g for i in chosen for g in range(samples)]
        return _figures([verdicts[r] for r in rows], [lengths[r] for r in rows], [finished[r] for r in rows], samples)

    sources = {source: figures(chosen) for source, chosen in groups.items()}
    whole = figures(range(len(problems)))
    average, passed = f"avg@{samples}", f"pass@{samples}"
    return {
        **whole,
        "samples": samples,
        "macro": {name: float(np.mean([source[name] for source in sources.values()])) for name in (average, passed)},
        "sources": sources,
        "per_problem": np.array([v.reward for v in verdicts]).reshape(-1, samples).mean(axis=1).tolist(),
    }


def _figures(verdicts: list[Verdict], lengths: list[int], finished: list[bool], samples: int) -> dict:
    correct = np.array([verdict.reward for verdict in verdicts]).reshape(-1, samples)
    ks = sorted({2**i for i in range(samples.bit_length()) if 2**i <= samples} | {samples})
    return {
        "problems": len(correct),
        f"avg@{samples}": float(correct.mean()),
        "standard_error": standard_error(correct.mean(axis=1)),
        **{f"pass@{k}": pass_at_k(samples, correct.sum(axis=1), k) for k in ks},
        "length_mean": float(np.mean(lengths)),
        "truncated_frac": 1.0 - float(np.mean(finished)),
        "parse_failure_frac": float(np.mean([verdict.parse_failure for verdict in verdicts])),
        "unreadable_frac": float(np.mean([verdict.unreadable for verdict in verdicts])),
        "timeout_frac": float(np.mean([verdict.timeout for verdict in verdicts])),
    }


def rise(before: dict, after: dict) -> tuple[float, float]:
    """Change of the average between two evaluations of the same problems, and its standard error by problem."""
    change = np.array(after["per_problem"]) - np.array(before["per_problem"])
    return float(change.mean()), standard_error(change)
