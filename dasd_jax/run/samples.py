"""Rollouts for samples.jsonl: which ones, and what is kept of each token; the format is in `dasd_jax.run.records`."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from dasd_jax.batch import TeacherBatch
from dasd_jax.learner.passes import STUDENT
from dasd_jax.run.collect import Collected
from dasd_jax.text.spans import offsets, spelled
from dasd_jax.text.tokenizer import Tokenizer

Prompt = tuple[np.ndarray, np.ndarray]  # i32[n, W] and its mask


def choose(correct: np.ndarray, group: int, count: int, seed: int, step: int) -> np.ndarray:
    """The rows of a batch to log: right and wrong ones in turn, each of the problem that has fewest so far.

    Chosen before anything is scored, by the verdicts alone, so that what is shown is no selection by what the method
    makes of it. The order of the problems depends on the run's seed and the step.

    Args:
        correct: f32[rows], 0 or 1.
        group: rollouts per problem.
        count: rows to choose.

    Returns:
        i32[min(count, rows)], ascending.
    """
    rows = len(correct)
    if count >= rows:
        return np.arange(rows, dtype=np.int32)
    turn = np.random.default_rng([seed, step]).permutation(rows // group)
    taken, left, chosen = np.zeros(rows // group, int), set(range(rows)), []
    for number in range(count):
        wanted = [row for row in left if (correct[row] > 0.5) == (number % 2 == 0)]
        row = min(wanted or left, key=lambda row: (taken[row // group], turn[row // group], row))
        taken[row // group] += 1
        left.remove(row)
        chosen.append(row)
    return np.array(sorted(chosen), np.int32)


def prompts_of(
    collected: Collected, shown: Mapping[str, TeacherBatch], unread: Collection[str], rows: np.ndarray, group: int
) -> dict[str, Prompt]:
    """What "student" and views read before the responses of some rows: those that the score pass has not computed."""
    prompts = {name: _prompts(shown[name], rows, group) for name in unread if name in shown}
    if STUDENT in unread:
        of_problems = collected.prompts.student_prompt, collected.prompts.student_prompt_mask
        prompts[STUDENT] = tuple(x[rows // group] for x in of_problems)
    return prompts


def samples(
    collected: Collected,
    shown: Mapping[str, TeacherBatch],
    rows: np.ndarray,
    tokenizer: Tokenizer,
    looked_at: tuple[Mapping[str, np.ndarray], np.ndarray, Mapping[str, tuple[np.ndarray, np.ndarray]]],
) -> list[dict]:
    """The chosen rollouts, token by token, under their problems.

    Args:
        shown: the teachers' prompts by view, as NumPy arrays.
        rows: i32[n], from `choose`; repeated ones are logged once.
        looked_at: of these rows, what `learner.inspection.inspect` returns.
    """
    written, group = collected.rollouts, len(collected.texts) // len(collected.prompts.example_id)
    numbers, places, likeliest = looked_at
    lines: dict[int, dict] = {}
    for n, row in enumerate(dict.fromkeys(rows.tolist())):
        problem, verdict = collected.problems[row], collected.verdicts[row]
        index, keep, text = row // group, written.response_mask[row], collected.texts[row]
        of_views = {
            name: [spelled(tokenizer, ids[mask]) for ids, mask in _of_row(batch, row, group)]
            for name, batch in shown.items()
        }
        per_rollout = {name: texts for name, texts in of_views.items() if shown[name].shown.ndim > 1}
        if index not in lines:
            prompt = collected.prompts.student_prompt[index][collected.prompts.student_prompt_mask[index]]
            lines[index] = {
                "example_id": int(collected.prompts.example_id[index]),
                "source": problem.source,
                "question": problem.question,
                "answer": problem.answer,
                "prompt": spelled(tokenizer, prompt),
                "teacher_prompts": {name: of_views[name][0] for name in of_views if name not in per_rollout},
                "rollouts": [],
            }
        ids = written.response[row][keep].tolist()
        values = {name: x[n][keep] for name, x in numbers.items()}
        if "gap" in values and not is_shown(shown["teacher"], row, group):
            values["gap"] = np.zeros_like(values["gap"])  # between weights, on one prompt: not what a context says
        lines[index]["rollouts"].append(
            {
                "row": row,
                "text": text,
                "reward": verdict.reward,
                "score": verdict.score,
                "extracted": verdict.answer,
                "error": verdict.error,
                "finished": bool(written.finished[row]),
                **_learned_reward(verdict.reward, float(collected.outcomes.reward[row])),
                **_advantage(values),
                "teacher_prompts": per_rollout,
                "tokens": [tokenizer.piece(token) for token in ids],
                "offsets": offsets(tokenizer, ids, text, len(text) - len(tokenizer.decode(ids))),
                **{name: [_short(v) for v in x] for name, x in values.items()},
                "alternatives": [
                    {"token": int(place)}
                    | {name: _alternatives(tokenizer, *(x[n][at] for x in pair)) for name, pair in likeliest.items()}
                    for at, place in enumerate(places[n])
                    if place < len(ids)
                ],
            }
        )
    return list(lines.values())


def is_shown(batch: TeacherBatch, row: int, group: int) -> bool:
    """Whether the teacher of a row is shown a context, of K prompts in the first."""
    return bool(batch.shown[_place(batch, row, group)])


def _prompts(batch: TeacherBatch, rows: np.ndarray, group: int) -> Prompt:
    """What a teacher reads before these rows; of K prompts the first."""
    at = _place(batch, rows, group)
    return batch.teacher_prompt[at], batch.teacher_prompt_mask[at]


def _place(batch: TeacherBatch, rows, group: int) -> tuple:
    """Where these rows' prompt stands, of K the first."""
    return (rows // group,) if batch.shown.ndim == 1 else (rows // group, rows % batch.shown.shape[1], 0)


def _of_row(batch: TeacherBatch, row: int, group: int) -> list[Prompt]:
    """The prompts of a row's teacher: one, or K of its own."""
    at = row // group if batch.shown.ndim == 1 else (row // group, row % batch.shown.shape[1])
    ids, mask = batch.teacher_prompt[at], batch.teacher_prompt_mask[at]
    return list(zip(np.atleast_2d(ids), np.atleast_2d(mask), strict=True))


def _learned_reward(judged: float, learned: float) -> dict[str, float]:
    """The reward that the advantage was made of, where it is not the verifier's: the response was too long."""
    return {} if learned == np.float32(judged) else {"learned_reward": _short(learned)}


def _advantage(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The verifier's share of the credit, the same for every token; nothing of methods without credit."""
    if "credit" not in values or not len(values["credit"]):
        return {}
    return {"advantage": _short(np.mean(values["credit"] - values.get("dense", 0.0)))}


def _alternatives(tokenizer: Tokenizer, ids: Sequence[int], probabilities: Sequence[float]) -> list[list]:
    return [[tokenizer.piece(int(id)), int(id), _short(p)] for id, p in zip(ids, probabilities, strict=True)]


def _short(value: float) -> float:
    """Five significant digits: what a reader of the log can use."""
    return float(f"{float(value):.5g}")
