"""Interventions: what becomes of an answer if the informed teacher chooses one token of it, or a revision is forced.

Responses are sampled as for an evaluation and read by student and teacher; places.py chooses where each is changed.
Both beginnings of a pair are then continued by the student, from its own prompt, up to the budget of a response, with
the same random numbers: the n-th token after either is drawn with the same one.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh

from dasd_jax.batch import Params, PromptBatch
from dasd_jax.config import Config
from dasd_jax.data import contexts
from dasd_jax.data.pipeline import PromptSet
from dasd_jax.errors import UserError
from dasd_jax.learner.choices import choices
from dasd_jax.mesh import fetch, put_rows, replicate
from dasd_jax.model.config import ModelConfig
from dasd_jax.rollout.sampler import Sampling, relayout, rollout
from dasd_jax.run import collect, places, setup
from dasd_jax.run.evaluation import Answers, problems_at_a_time, texts_of
from dasd_jax.run.failures import Failures
from dasd_jax.run.pairs import Outcome, Result
from dasd_jax.run.places import ARMS, Pair, Response
from dasd_jax.text.prompts import left_pad, right_pad
from dasd_jax.text.tokenizer import Tokenizer
from dasd_jax.verify.journal import verify
from dasd_jax.verify.verifier import Verdict, Verifier

# The step in the keys of random numbers: evaluations draw at step 0, so no continuation repeats a response's numbers.
_CONTINUING = 1


def open_prompts(config: Config, tokenizer: Tokenizer, context: str, own: Sequence[str] | None = None) -> PromptSet:
    """The problems that an evaluation asks, as far as a teacher can be shown something of them.

    Args:
        context: a name in `prompts.CONTEXTS`; "" is data.privileged.
        own: as for `setup.open_evaluation`.

    Raises:
        UserError: no problem fits and has data.privileged, or none has what `context` shows; data.privileged_wording
            has no text for one of the two.
    """
    data = config.data
    train, asked = setup.problems_to_evaluate(config, own)
    text = dataclasses.replace(setup.prompt_text(config, train), sources=data.benchmarks or data.sources)
    for shown in ("", context):
        text.check_worded(shown)
    prompts = PromptSet(
        asked,
        tokenizer,
        text,
        student_width=config.rollout.prompt_length,
        teacher_width=config.rollout.teacher_prompt_length,
        field="data.benchmarks" if data.benchmarks else "data.sources",
    )
    for kind in contexts.kinds(data.benchmarks or data.sources, data.privileged, context) - {contexts.NONE}:
        if not any(contexts.has(problem, kind) for problem in prompts.problems):
            raise UserError(
                f"--context: {context!r}: none of the {len(prompts)} problems to evaluate has a text of kind {kind!r}: "
                "expected one that some have"
            )
    return prompts


@dataclasses.dataclass(frozen=True)
class Answer:
    """A sampled response to a problem, and what the verifier made of it."""

    tokens: np.ndarray  # i32[·], the stop token among them
    finished: bool
    text: str
    verdict: Verdict


def _as_answers(example_id: int, found: Sequence[Answer]) -> Answers:
    verdicts = [each.verdict for each in found]
    return Answers(
        example_id,
        text=[each.text for each in found],
        extracted=[verdict.answer for verdict in verdicts],
        reward=[verdict.reward for verdict in verdicts],
        length=[len(each.tokens) for each in found],
        finished=[each.finished for each in found],
        error=[verdict.error for verdict in verdicts],
    )


class Interventions:
    """Samples responses, chooses pairs of beginnings and continues them; all of it is decided by run.seed."""

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        model: ModelConfig,
        params: Params,
        tokenizer: Tokenizer,
        prompts: PromptSet,
        verifier: Verifier,
        failures: Failures,
        context: str,
    ):
        """Lays the parameters out for decoding.

        Args:
            failures: hears of all verdicts.
            context: what the teacher is shown, as for `open_prompts`; "none" makes it the student.
        """
        self._config, self._mesh, self._model, self._params = config, mesh, model, params
        self._tokenizer, self._prompts, self._context = tokenizer, prompts, context
        self._verifier, self._failures = verifier, failures
        self._steps = setup.step_config(config, model, mesh)
        self._sampling = setup.eval_sampling(config, tokenizer)
        self._decoding = relayout(model, params, self._sampling.weights)
        self._seed, self._first, self._continuing = replicate(
            mesh, tuple(map(np.int32, (config.run.seed, 0, _CONTINUING)))
        )
        # As many rows as a part of a training batch, which the score pass holds at a time with all their tokens.
        self._rows = (
            config.rollout.problems * config.rollout.rollouts // (config.optim.minibatches * config.optim.microbatches)
        )

    def choose(self, example_ids: Sequence[int], each_batch: Callable[[int], None]) -> tuple[list[Pair], list[Answers]]:
        """Samples run.eval_samples responses to each problem and chooses the pairs.

        Args:
            each_batch: called with the number of problems of every batch that is answered.

        Returns:
            (pairs, the responses themselves).

        Raises:
            UserError: there is no other problem whose context other_problem could show.
        """
        if self._context == "other_problem" and len(example_ids) < 2:
            raise UserError(
                "--context: 'other_problem': one problem is evaluated: expected at least two, as the teacher of each "
                "is shown the context of another (run.eval_problems)"
            )
        config, group = self._config, self._sampling.rollouts
        answered = self._answered(example_ids, each_batch)
        shown = self._shown(answered)
        pairs = []
        for batch, live in self._prompts.in_order(self._problems_at_a_time(), example_ids):
            responses = self._read(batch, answered, shown)
            for row in np.flatnonzero(np.repeat(live, group)):
                pairs += places.pairs(self._tokenizer, responses[row], config.run.seed, config.rollout.max_new_tokens)
        return pairs, [_as_answers(i, each) for i, each in answered.items()]

    def outcomes(self, pairs: Sequence[Pair], each_batch: Callable[[int], None]) -> list[Result]:
        """Continues and verifies both sides of every pair.

        Args:
            each_batch: called with the number of sides of every batch that is continued.
        """
        sides = [(pair, beginning) for pair in pairs for beginning in (pair.control, pair.treated)]
        wholes = self._continued(sides, each_batch)
        width, pad_id = self._config.rollout.max_new_tokens, self._tokenizer.pad_id
        prompt = self._prompts[sides[0][0].example_id]["student_prompt"]
        texts = texts_of(self._tokenizer, prompt, *right_pad(wholes, width, pad_id))
        verdicts = self._verify([pair.example_id for pair, _ in sides], texts)
        found = [
            Outcome(text, verdict.reward, verdict.answer, len(whole), self._ended(whole), verdict.error)
            for text, verdict, whole in zip(texts, verdicts, wholes, strict=True)
        ]
        return [Result(*each) for each in zip(pairs, found[::2], found[1::2], strict=True)]

    def _verify(self, example_ids: Sequence[int], texts: Sequence[str]) -> list[Verdict]:
        problems = [self._prompts.problems[i] for i in example_ids]
        verdicts = verify(self._verifier, problems, texts)
        self._failures.note(problems, verdicts)
        return verdicts

    def _ended(self, tokens: np.ndarray) -> bool:
        return int(tokens[-1]) in self._tokenizer.stop_ids

    def _with_slots(self, sampling: Sampling, problems: int, prompt_width: int) -> Sampling:
        config = self._config
        config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, prompt_length=prompt_width))
        return setup.with_free_slots(config, sampling, self._model, self._mesh, problems, self._params)

    def _problems_at_a_time(self) -> int:
        return problems_at_a_time(self._rows, self._sampling.rollouts, self._mesh)

    def _answered(self, example_ids: Sequence[int], each_batch: Callable[[int], None]) -> dict[int, list[Answer]]:
        """Samples and verifies the responses to each problem, by example id."""
        size, group = self._problems_at_a_time(), self._sampling.rollouts
        sampling = self._with_slots(self._sampling, size, self._config.rollout.prompt_length)
        found: dict[int, list[Answer]] = {}
        for batch, live in self._prompts.in_order(size, example_ids):
            on_devices = put_rows(self._mesh, batch)
            written, _ = rollout(self._model, sampling, self._decoding, on_devices, self._seed, "eval", self._first)
            response, mask, finished = fetch((written.response, written.response_mask, written.finished))
            texts = texts_of(self._tokenizer, batch.student_prompt[0], response, mask)
            ids = np.repeat(batch.example_id, group)
            verdicts = self._verify(ids, texts)
            for row in np.flatnonzero(np.repeat(live, group)):
                answer = Answer(response[row][mask[row]], bool(finished[row]), texts[row], verdicts[row])
                found.setdefault(int(ids[row]), []).append(answer)
            each_batch(int(live.sum()))
        return found

    def _shown(self, answered: dict[int, list[Answer]]) -> dict[int, contexts.Texts]:
        """What the teachers are to be shown, by example id.

        Chosen among all problems at once: which of them are read together depends on the devices and on how many rows
        fit, and must not decide what other_problem shows.
        """
        rows = [answer for answers in answered.values() for answer in answers]
        finished = np.array([answer.finished for answer in rows])
        lengths = np.array([len(answer.tokens) for answer in rows])
        texts, verdicts = [answer.text for answer in rows], [answer.verdict for answer in rows]
        judged = collect.outcomes(self._config, verdicts, finished, lengths)
        written = collect.to_show(self._config, texts, verdicts, judged.correct, finished)
        ids = np.array(list(answered))
        texts = self._prompts.teacher_texts(ids, self._context, group=self._sampling.rollouts, written=written)
        return dict(zip(answered, texts, strict=True))

    def _read(
        self, batch: PromptBatch, answered: dict[int, list[Answer]], texts: dict[int, contexts.Texts]
    ) -> list[Response]:
        """The responses to a batch of problems as student and teacher read them, problem-major."""
        group, seed = self._sampling.rollouts, self._config.run.seed
        ids = batch.example_id.tolist()
        shown = self._prompts.with_texts(batch.example_id, [texts[i] for i in ids], self._context, group=group)
        informed = shown.shown.reshape(-1) if shown.shown.ndim > 1 else np.repeat(shown.shown, group)
        rows = [(i, sample) for i in ids for sample in range(group)]
        kept = [answer.tokens for i in ids for answer in answered[i]]
        response, mask = right_pad(kept, self._config.rollout.max_new_tokens, self._tokenizer.pad_id)
        cues = [
            places.find_cue(self._tokenizer, tokens, places.draws(seed, i, sample, "suppress cue"))
            for (i, sample), tokens in zip(rows, kept, strict=True)
        ]
        at = np.array([cue.start if cue else 0 for cue in cues], np.int32)
        arguments = put_rows(self._mesh, (batch, shown, response, mask, at))
        entropy, student, teacher, at_cue = fetch(choices(self._steps, self._params, *arguments))
        return [
            Response(
                *rows[row],
                tokens=tokens,
                entropy=entropy[row][mask[row]],
                student=student[row][mask[row]],
                teacher=teacher[row][mask[row]] if informed[row] or self._context == contexts.NONE else None,
                cue=cues[row],
                at_cue=at_cue[row],
            )
            for row, tokens in enumerate(kept)
        ]

    def _continued(
        self, sides: Sequence[tuple[Pair, np.ndarray]], each_batch: Callable[[int], None]
    ) -> list[np.ndarray]:
        """Each beginning with what the student writes after it: i32[·] of at most R tokens."""
        config, budget = self._config, self._config.rollout.max_new_tokens
        width = config.rollout.prompt_length + budget
        size = problems_at_a_time(self._rows, 1, self._mesh)
        sampling = dataclasses.replace(self._sampling, rollouts=1)
        wholes = [beginning for _, beginning in sides]
        left = np.array([0 if self._ended(whole) else budget - len(whole) for whole in wholes])
        # By what is left, so that those of a batch take about equally long; what is drawn depends on the pair alone.
        order = [int(i) for i in np.argsort(-left, kind="stable") if left[i]]
        each_batch(len(sides) - len(order))
        for start in range(0, len(order), size):
            taken = order[start : start + size]
            filled = [taken[i % len(taken)] for i in range(size)]
            prompts = [self._student_prompt(sides[i][0].example_id) for i in filled]
            tokens, mask = left_pad(
                [np.concatenate([prompt, wholes[i]]) for prompt, i in zip(prompts, filled, strict=True)],
                width,
                self._tokenizer.pad_id,
            )
            keys = np.array([self._key(sides[i][0]) for i in filled], np.int32)
            # One program for each of a few widths, as the score pass has.
            longest = next(w for w in self._steps.widths(budget) if w >= left[taken[0]])
            fitted = self._with_slots(dataclasses.replace(sampling, max_new_tokens=longest), size, width)
            written, _ = rollout(
                self._model,
                fitted,
                self._decoding,
                put_rows(self._mesh, PromptBatch(tokens, mask, keys)),
                self._seed,
                "eval",
                self._continuing,
            )
            response, keep = fetch((written.response, written.response_mask))
            for row, i in enumerate(taken):
                wholes[i] = np.concatenate([wholes[i], response[row][keep[row]][: left[i]]])
            each_batch(len(taken))
        return wholes

    def _student_prompt(self, example_id: int) -> np.ndarray:
        item = self._prompts[example_id]
        return item["student_prompt"][item["student_prompt_mask"]]

    def _key(self, pair: Pair) -> int:
        """The number of a pair: what its random numbers are derived from, for both sides."""
        return (pair.example_id * self._sampling.rollouts + pair.sample) * len(ARMS) + ARMS.index(pair.arm)
