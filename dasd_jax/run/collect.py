"""From prompts to verified rollouts: what one training step learns from, on the host.

With several processes all of it is equal in each of them, and so is what is decided by it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dasd_jax.batch import Outcomes, Params, PromptBatch, RolloutBatch, TeacherBatch
from dasd_jax.config import Config
from dasd_jax.data import contexts
from dasd_jax.data.pipeline import PromptSet
from dasd_jax.data.sources import Problem
from dasd_jax.health import figures
from dasd_jax.mesh import fetch, put_rows, replicate
from dasd_jax.model.config import ModelConfig
from dasd_jax.objective.contract import View
from dasd_jax.rollout.repetition import repeated_frac
from dasd_jax.rollout.sampler import Sampling, relayout, rollout
from dasd_jax.run.display import Clock
from dasd_jax.run.evaluation import texts_of
from dasd_jax.text.tokenizer import Tokenizer
from dasd_jax.verify.journal import Journal
from dasd_jax.verify.verifier import COUNTED, Verdict

_READ_FOR_HEALTH = 128  # responses of a batch at most, evenly spaced: reading 8,192 tokens takes 15 ms


@dataclasses.dataclass(frozen=True)
class Collected:
    """What one step learns from: B problems and their responses, as NumPy arrays; lists hold one entry a row.

    Responses are verified rollouts, or the problems' references where the method samples nothing: one a problem, with
    outcomes that mean nothing and no texts or verdicts.
    """

    prompts: PromptBatch
    rollouts: RolloutBatch
    outcomes: Outcomes
    problems: list[Problem]
    texts: list[str]
    verdicts: list[Verdict]
    batches: int  # drawn from the data for it
    generated: int  # tokens sampled for it, those of groups that were replaced among them
    steps: np.ndarray  # i32[shards], steps of decoding that each shard of the rows took for them
    drawn_reward: float | None = None  # mean of all responses sampled for it; None where none can have been replaced

    def metrics(self, group: int, slots: int, seconds: Mapping[str, float]) -> dict[str, float]:
        """What the log says of rollouts, given the slots of a shard and the seconds of the step's phases."""
        if not self.verdicts:
            return {}
        lengths = self.rollouts.response_mask.sum(axis=1)
        errors = np.array([verdict.error for verdict in self.verdicts])
        some = slice(None, None, -(-len(self.texts) // _READ_FOR_HEALTH))
        health = figures.of_responses(self.texts[some], lengths[some].tolist())
        del health["length_p95"], health["length_max"]  # of all responses, the former stands below beside the mean
        return {
            **{f"reward/{name}": float(np.mean(values)) for name, values in self._parts().items()},
            "reward/mean": float(self.outcomes.reward.mean()),
            **({} if self.drawn_reward is None else {"reward/drawn_mean": self.drawn_reward}),
            "reward/score_mean": float(np.mean([verdict.score for verdict in self.verdicts])),
            "reward/mixed_groups_frac": float(np.mean(mixed(self.outcomes.reward, group))),
            **{f"reward/{name}_frac": float(np.mean(errors == error)) for name, error in COUNTED.items()},
            **{f"health/{name}": value for name, value in health.items()},
            "rollout/length_mean": float(lengths.mean()),
            "rollout/length_p95": float(np.percentile(lengths, 95)),
            "rollout/repeated_frac": repeated_frac(self.rollouts.response, self.rollouts.response_mask),
            "rollout/truncated_frac": float(1 - self.rollouts.finished.mean()),
            "rollout/batches": float(self.batches),
            # The slowest shard holds up the others; a slot without a row is computed along.
            "rollout/shard_imbalance": float(self.steps.max() / self.steps.mean()),
            "rollout/slots_used_frac": float(self.generated / (self.steps.sum() * slots)),
            "tokens/padding_frac": float(1 - self.rollouts.response_mask.mean()),
            "tokens/generated_per_s": self.generated / seconds["time/rollout_s"],
        }

    def _parts(self) -> dict[str, list[float]]:
        """What reward functions returned beside the reward, of each part the values of the responses that have it."""
        found: dict[str, list[float]] = {}
        for verdict in self.verdicts:
            for name, value in verdict.parts.items():
                found.setdefault(name, []).append(value)
        return found


def mixed(reward: np.ndarray, group: int) -> np.ndarray:
    """bool[B]: the groups whose rewards are not all equal; f32[B*G]."""
    groups = reward.reshape(-1, group)
    return groups.min(axis=1) < groups.max(axis=1)


def before_length(config: Config, verdicts: Sequence[Verdict], finished: np.ndarray) -> np.ndarray:
    """f32[rows]: what verdicts are worth whatever the length of the responses; by it groups are mixed."""
    reward = np.array([verdict.reward for verdict in verdicts], np.float32)
    return reward if config.objective.truncated == "score" else np.where(finished, reward, np.float32(0))


def outcomes(config: Config, verdicts: Sequence[Verdict], finished: np.ndarray, length: np.ndarray) -> Outcomes:
    """What verdicts are worth: 0 for what is truncated, and less for what is nearly too long.

    The penalty grows linearly from 0 to 1/2 over the last `objective.overlong_tokens` of the budget, so that a right
    answer of any length stays above one with reward 0. Source: arXiv 2503.14476, equation 13, whose penalty of up to 1
    is for rewards of -1 and 1: half as much for rewards of 0 and 1.

    Args:
        finished: bool[rows].
        length: i[rows], tokens.
    """
    objective, budget = config.objective, config.rollout.max_new_tokens
    correct = np.array([verdict.correct for verdict in verdicts], np.float32)
    if objective.truncated != "score":
        correct = np.where(finished, correct, np.float32(0))
    reward = before_length(config, verdicts, finished)
    if objective.overlong_tokens:
        over = (length - (budget - objective.overlong_tokens)) / objective.overlong_tokens
        reward = reward - np.float32(0.5) * np.clip(over, 0, 1).astype(np.float32)
    return Outcomes(correct, reward, in_loss=finished | (objective.truncated != "drop_from_loss"))


def to_show(
    config: Config, texts: Sequence[str], verdicts: Sequence[Verdict], correct: np.ndarray, finished: np.ndarray
) -> contexts.Written:
    """Responses as what teachers may be shown of a group.

    A response that is judged although it was cut off may be shown, too.

    Args:
        correct: of their `outcomes`.
        finished: bool[rows].
    """
    judged = np.array([verdict.judged for verdict in verdicts], np.bool_)
    return contexts.Written(texts, correct, finished | (config.objective.truncated == "score"), judged)


class Collector:
    """Draws problems, samples and verifies responses, and makes what the teachers read."""

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        model: ModelConfig,
        tokenizer: Tokenizer,
        sampling: Sampling,
        prompts: PromptSet,
        journal: Journal,
    ):
        """Makes the endless sequence of batches; their order depends on run.seed alone."""
        self._config, self._mesh, self._model = config, mesh, model
        self._tokenizer, self._sampling, self._prompts, self._journal = tokenizer, sampling, prompts, journal
        self.batches = prompts.batches(config.rollout.problems, config.run.seed)
        self._seed = replicate(mesh, np.int32(config.run.seed))

    def collect(self, params: Params, batches_drawn: int, clock: Clock) -> Collected:
        """Responses to one batch of problems; with `rollout.resample`, to more of them until every group is mixed.

        Groups whose rewards are all equal teach the verifier's part nothing: they are replaced by mixed ones of up to
        `rollout.resample` further batches, and stay where those are too few. Source: arXiv 2503.14476, section 3.2.
        """
        if not self._config.method.rollouts:
            return self._references(batches_drawn)
        size = self._config.rollout.problems
        with clock.phase("relayout"):
            params = jax.block_until_ready(relayout(self._model, params, self._config.rollout.weights))
        rounds = [self._round(params, batches_drawn, clock)]
        while len(rounds) <= self._config.rollout.resample:
            if sum(self._mixed(drawn).sum() for drawn in rounds) >= size:
                break
            rounds.append(self._round(params, batches_drawn + len(rounds), clock))
        return rounds[0] if len(rounds) == 1 else _first_mixed(rounds, list(map(self._mixed, rounds)), size)

    def _mixed(self, drawn: Collected) -> np.ndarray:
        """bool[B]: the groups of a round that are mixed, whatever their lengths cost."""
        reward = before_length(self._config, drawn.verdicts, drawn.rollouts.finished)
        return mixed(reward, self._config.rollout.rollouts)

    def teacher_batches(
        self, collected: Collected, views: Mapping[str, View], arguments: Mapping[str, Any]
    ) -> tuple[dict[str, TeacherBatch], dict[str, float]]:
        """What each teacher reads, made now because verified rollouts may be what it is shown.

        Args:
            views: name → teacher.
            arguments: of the makers of contexts: `alpha` of partial_solution.

        Returns:
            (name → TeacherBatch of NumPy arrays, scalars for the log). Among the scalars, for each view whose context
            may be missing, is NAME/blank_frac: of the rollouts, the share whose teacher has none.
        """
        data, group = self._config.data, self._config.rollout.rollouts
        correct, finished = collected.outcomes.correct, collected.rollouts.finished
        written = to_show(self._config, collected.texts, collected.verdicts, correct, finished)
        batches, metrics = {}, {}
        for name, view in views.items():
            batch = batches[name] = self._prompts.teacher_batch(
                collected.prompts.example_id, view.context, view.count, group=group, written=written, **arguments
            )
            kinds = contexts.kinds(data.sources, data.privileged, view.context)
            if contexts.may_be_missing(kinds, view.context):
                any_shown = batch.shown.any(axis=-1) if batch.shown.ndim > 1 else batch.shown
                metrics[f"{name}/blank_frac"] = float(1 - any_shown.mean())
        return batches, metrics

    def blank_teacher_batches(self, collected: Collected, views: Mapping[str, View]) -> dict[str, TeacherBatch]:
        """The same with the student's prompts for all teachers, marked as shown: the views then have to agree."""
        group, ids = self._config.rollout.rollouts, collected.prompts.example_id
        blank = {
            name: self._prompts.blank_teacher_batch(ids, view.context, view.count, group=group)
            for name, view in views.items()
        }
        return {name: batch.replace(shown=np.ones_like(batch.shown)) for name, batch in blank.items()}

    def _references(self, batches_drawn: int) -> Collected:
        batch: PromptBatch = self.batches[batches_drawn]
        response, mask = self._prompts.target_batch(batch.example_id)
        nothing = np.zeros(len(response), np.float32)
        return Collected(
            prompts=batch,
            rollouts=RolloutBatch(response, mask, None, None, finished=mask.any(axis=1)),
            outcomes=Outcomes(correct=nothing, reward=nothing, in_loss=mask.any(axis=1)),
            problems=[self._prompts.problems[i] for i in batch.example_id],
            texts=[],
            verdicts=[],
            batches=1,
            generated=0,
            steps=np.zeros(1, np.int32),
        )

    def _round(self, params: Params, batches_drawn: int, clock: Clock) -> Collected:
        batch: PromptBatch = self.batches[batches_drawn]
        with clock.phase("rollout"):
            step = replicate(self._mesh, np.int32(batches_drawn))
            prompts = put_rows(self._mesh, batch)
            written, steps = fetch(rollout(self._model, self._sampling, params, prompts, self._seed, "train", step))
        with clock.phase("verify"):
            problems = [self._prompts.problems[i] for i in np.repeat(batch.example_id, self._sampling.rollouts)]
            texts = texts_of(self._tokenizer, batch.student_prompt[0], written.response, written.response_mask)
            verdicts = self._journal.verify(batches_drawn, problems, texts, clock.progress)
            lengths = written.response_mask.sum(axis=1)
            judged = outcomes(self._config, verdicts, written.finished, lengths)
        return Collected(
            prompts=batch,
            rollouts=written,
            outcomes=judged,
            problems=problems,
            texts=texts,
            verdicts=verdicts,
            batches=1,
            generated=int(lengths.sum()),
            steps=steps,
            drawn_reward=float(judged.reward.mean()) if self._config.rollout.resample else None,
        )


def _first_mixed(rounds: list[Collected], is_mixed: list[np.ndarray], size: int) -> Collected:
    """The first `size` groups of several batches, mixed ones before the others.

    Args:
        is_mixed: bool[B] of each batch.
    """

    def joined(name: str):
        return jax.tree.map(lambda *parts: np.concatenate(parts), *(getattr(drawn, name) for drawn in rounds))

    every = np.concatenate(is_mixed)
    group = len(rounds[0].texts) // len(is_mixed[0])
    groups = np.sort(np.argsort(~every, kind="stable")[:size])
    rows = (groups[:, None] * group + np.arange(group)).reshape(-1)

    def chosen(name: str) -> list:
        whole = [entry for drawn in rounds for entry in getattr(drawn, name)]
        return [whole[row] for row in rows]

    return Collected(
        prompts=jax.tree.map(lambda x: x[groups], joined("prompts")),
        rollouts=jax.tree.map(lambda x: x[rows], joined("rollouts")),
        outcomes=jax.tree.map(lambda x: x[rows], joined("outcomes")),
        problems=chosen("problems"),
        texts=chosen("texts"),
        verdicts=chosen("verdicts"),
        batches=len(rounds),
        generated=sum(drawn.generated for drawn in rounds),
        steps=sum(drawn.steps for drawn in rounds),
        drawn_reward=float(np.mean([drawn.drawn_reward for drawn in rounds])),
    )
