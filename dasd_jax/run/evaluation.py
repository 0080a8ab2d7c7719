"""Evaluation: Avg@k with standard errors by problem, unbiased Pass@k and figures of health, by benchmark and in all."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dasd_jax.batch import Params
from dasd_jax.data.pipeline import Prompts
from dasd_jax.data.sources import Problem, labels
from dasd_jax.health import figures
from dasd_jax.mesh import fetch, put_rows, replicate, row_shards
from dasd_jax.model.config import ModelConfig
from dasd_jax.rollout.sampler import Sampling, relayout, rollout
from dasd_jax.run.failures import Failures
from dasd_jax.text.prompts import opened_thoughts
from dasd_jax.text.tokenizer import Tokenizer
from dasd_jax.verify.journal import verify
from dasd_jax.verify.verifier import COUNTED, REWARD_THRESHOLD, UNJUDGED, Verifier

# Shares of all answers that are said where they are above 0, by what they are called.
REMARKED = {"unjudged": "unjudged_frac", "truncated but right": "truncated_right_frac"}


@dataclasses.dataclass(frozen=True)
class Answers:
    """What became of the K samples of one problem; each list has K entries."""

    example_id: int
    text: list[str]
    extracted: list[str | None]  # the answer that was found in the text
    reward: list[float]  # 0 or 1, or graded by a reward function of the user's own
    length: list[int]  # tokens, the stop token among them
    finished: list[bool]
    error: list[str]  # as in Verdict


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


def standard_error(per_problem: np.ndarray) -> float | None:
    """Standard error of the mean over problems: the samples of one problem are not independent.

    None for one problem, whose spread is unknown.
    """
    count = len(per_problem)
    return float(np.std(per_problem, ddof=1) / math.sqrt(count)) if count > 1 else None


def texts_of(tokenizer: Tokenizer, prompt: np.ndarray, response: np.ndarray, mask: np.ndarray) -> list[str]:
    """The text of each response: i32[rows, R], bool[rows, R] → rows strings without special tokens.

    Args:
        prompt: i32[P], one of the prompts. Some chat templates end each with "<think>", which then begins the texts: a
            response that never ends these thoughts has no answer.
    """
    opening = opened_thoughts(tokenizer, prompt).rstrip()
    return [opening + tokenizer.decode(row[keep]) for row, keep in zip(response, mask, strict=True)]


def problems_at_a_time(rows: int, samples: int, mesh: Mesh) -> int:
    """Problems that are answered `samples` times each by one device program of about `rows` responses."""
    shards = row_shards(mesh)
    return max(rows // samples // shards, 1) * shards


def evaluate(
    *,
    model: ModelConfig,
    params: Params,
    mesh: Mesh,
    tokenizer: Tokenizer,
    prompts: Prompts,
    verifier: Verifier,
    failures: Failures,
    sampling: Sampling,
    example_ids: Sequence[int],
    rows: int,
    seed: int,
    known: Sequence[Answers] = (),
    each_batch: Callable[[list[Answers]], None] = lambda batch: None,
) -> dict:
    """Answers the problems `example_ids` and scores them.

    The draws depend on the seed and the problem alone, so two checkpoints meet the same random numbers, and an
    evaluation that continues after the `known` answers of an interrupted one ends like a whole one.

    Args:
        failures: hears of all verdicts but those of the `known` answers.
        rows: responses sampled at a time, about; what one device program holds.
        known: answers to the first of `example_ids`, in that order.
        each_batch: called with the answers of every batch of problems as soon as they are scored, in every process.

    Returns:
        What `summary` says of all answers.
    """
    answers = list(known)

    def note(batch: list[Answers]) -> None:
        answers.extend(batch)
        each_batch(batch)

    answer(
        model=model,
        params=relayout(model, params, sampling.weights),
        mesh=mesh,
        tokenizer=tokenizer,
        prompts=prompts,
        verifier=verifier,
        failures=failures,
        sampling=sampling,
        example_ids=example_ids[len(known) :],
        rows=rows,
        seed=seed,
        each_batch=note,
    )
    return summary(prompts.problems, answers)


def answer(
    *,
    model: ModelConfig,
    params: Params,
    mesh: Mesh,
    tokenizer: Tokenizer,
    prompts: Prompts,
    verifier: Verifier,
    failures: Failures,
    sampling: Sampling,
    example_ids: Sequence[int],
    rows: int,
    seed: int,
    each_batch: Callable[[list[Answers]], None],
) -> None:
    """Answers the problems `example_ids` in that order, as `evaluate` says.

    Args:
        params: from `relayout`.
    """
    size = problems_at_a_time(rows, sampling.rollouts, mesh)
    for batch, live in prompts.in_order(size, example_ids):
        written, _ = rollout(
            model, sampling, params, put_rows(mesh, batch), *replicate(mesh, (jnp.int32(seed),)), "eval", jnp.int32(0)
        )
        response, mask, finished = fetch((written.response, written.response_mask, written.finished))
        ids = batch.example_id[live].tolist()
        keep = np.repeat(live, sampling.rollouts)
        texts = texts_of(tokenizer, batch.student_prompt[0], response[keep], mask[keep])
        problems = [prompts.problems[i] for i in ids for _ in range(sampling.rollouts)]
        verdicts = verify(verifier, problems, texts)
        failures.note(problems, verdicts)
        columns = {
            "text": texts,
            "extracted": [verdict.answer for verdict in verdicts],
            "reward": [verdict.reward for verdict in verdicts],
            "length": mask[keep].sum(axis=1).tolist(),
            "finished": finished[keep].tolist(),
            "error": [verdict.error for verdict in verdicts],
        }
        starts = range(0, len(verdicts), sampling.rollouts)
        each_batch(
            [
                Answers(i, **{name: column[start : start + sampling.rollouts] for name, column in columns.items()})
                for i, start in zip(ids, starts, strict=True)
            ]
        )


def as_line(problems: Sequence[Problem], answers: Answers) -> dict:
    """The object that is kept of a problem's answers, as `dasd_jax.run.records` describes it."""
    problem = problems[answers.example_id]
    asked = {"source": problem.source, "question": problem.question, "answer": problem.answer}
    return {"example_id": answers.example_id, **asked, **{name: getattr(answers, name) for name in _COLUMNS}}


def of_line(line: Mapping[str, Any]) -> Answers:
    """The inverse of `as_line`.

    Raises:
        ValueError, KeyError, TypeError: it is not what was written.
    """
    columns = {name: line[name] for name in _COLUMNS}
    for name, kinds in _COLUMNS.items():
        column = columns[name]
        if (
            not isinstance(column, list)
            or len(column) != len(columns["reward"])
            or not all(type(x) in kinds for x in column)
        ):
            raise ValueError(f"{name} is {column!r:.50}")
    if type(line["example_id"]) is not int:
        raise ValueError(f"example_id is {line['example_id']!r:.50}")
    return Answers(line["example_id"], **columns)


_COLUMNS = {
    "text": (str,), "extracted": (str, type(None)), "reward": (int, float), "length": (int,), "finished": (bool,),
    "error": (str,),
}  # fmt: skip


def summary(problems: Sequence[Problem] | Mapping[int, Problem], answers: Sequence[Answers]) -> dict:
    """The figures of an evaluation, as a dictionary for JSON; those of docs/health.md are under "health".

    Args:
        problems: by example id.
        answers: at least one, all with the same number of samples.

    Returns:
        Figures over all problems; under "benchmarks" those of each source by its label; under "macro" their means,
        each benchmark counting once; and "per_problem" with the mean reward of each problem's samples, where rewards
        are 0 and 1 the share of right ones.
    """
    groups: dict[str, list[Answers]] = {}
    for answer in answers:
        groups.setdefault(problems[answer.example_id].source, []).append(answer)
    names = labels(groups)
    benchmarks = {names[source]: _figures(group) for source, group in groups.items()}
    return {
        **_figures(answers),
        "samples": len(answers[0].reward),
        "macro": _macro(list(benchmarks.values())),
        "benchmarks": benchmarks,
        "per_problem": [float(np.mean(answer.reward)) for answer in answers],
    }


def _figures(answers: Sequence[Answers]) -> dict:
    reward = np.array([answer.reward for answer in answers])
    num_correct = (reward >= REWARD_THRESHOLD).sum(axis=1)
    errors = np.array([answer.error for answer in answers])
    samples = reward.shape[1]
    ks = sorted({2**i for i in range(samples.bit_length()) if 2**i <= samples} | {samples})
    return {
        "problems": len(reward),
        f"avg@{samples}": float(reward.mean()),
        "standard_error": standard_error(reward.mean(axis=1)),
        **{f"pass@{k}": pass_at_k(samples, num_correct, k) for k in ks},
        "length_mean": float(np.mean([answer.length for answer in answers])),
        "truncated_frac": 1.0 - float(np.mean([answer.finished for answer in answers])),
        **{f"{name}_frac": float(np.mean(errors == error)) for name, error in COUNTED.items()},
        **remarked(answers),
        "health": {
            **figures.of_responses(
                [text for answer in answers for text in answer.text],
                [length for answer in answers for length in answer.length],
            ),
            **figures.of_groups([answer.text for answer in answers], [answer.extracted for answer in answers]),
        },
    }


def remarked(answers: Sequence[Answers]) -> dict[str, float]:
    """The figures in REMARKED: shares of all answers.

    "unjudged_frac" are wrong whatever they say, since their scorer came to no verdict; "truncated_right_frac" are cut
    off and right all the same, where training would by default take them for wrong (`collect.outcomes`).
    """
    judged = np.array([[error not in UNJUDGED for error in answer.error] for answer in answers])
    right = np.array([answer.reward for answer in answers]) >= REWARD_THRESHOLD
    finished = np.array([answer.finished for answer in answers])
    shares = (float(np.mean(~judged)), float(np.mean(right & ~finished)))
    return dict(zip(REMARKED.values(), shares, strict=True))


def remarks(figures: Mapping[str, Any]) -> list[str]:
    """What is said of `remarked` figures: those above 0, as "0.125 unjudged"."""
    return [f"{figures[name]:.3f} {label}" for label, name in REMARKED.items() if figures[name]]


def _macro(benchmarks: Sequence[dict]) -> dict:
    """Means over benchmarks, whose problems are independent of one another; "problems" is their sum.

    "standard_error" is None where that of a benchmark is.
    """
    errors = [benchmark["standard_error"] for benchmark in benchmarks]
    own = ("standard_error", "health")
    return {
        **_means([{name: x for name, x in benchmark.items() if name not in own} for benchmark in benchmarks]),
        "problems": sum(benchmark["problems"] for benchmark in benchmarks),
        "standard_error": None if None in errors else math.hypot(*errors) / len(errors),
        "health": _means([benchmark["health"] for benchmark in benchmarks]),
    }


def _means(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each figure that all parts have."""
    return {name: float(np.mean([part[name] for part in parts])) for name in parts[0] if all(name in p for p in parts)}


def rise(before: dict, after: dict) -> tuple[float, float | None]:
    """Change of the average between two evaluations of the same problems, and its `standard_error` by problem."""
    change = np.array(after["per_problem"]) - np.array(before["per_problem"])
    return float(change.mean()), standard_error(change)
