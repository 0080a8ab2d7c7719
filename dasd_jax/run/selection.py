"""Scores of versions of solutions as worked examples, for TATA's selection of data (arXiv 2502.12022).

A version is shown to the untrained model as the one worked example before each problem of a small anchor set; its score
is the accuracy on those. docs/data.md lists what differs from the paper.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from dasd_jax.batch import Params
from dasd_jax.config import Config
from dasd_jax.data.anchors import Anchor
from dasd_jax.data.pipeline import Prompts, PromptText
from dasd_jax.data.sources import Problem
from dasd_jax.data.versions import Versioned
from dasd_jax.errors import UserError
from dasd_jax.model.config import ModelConfig
from dasd_jax.rollout.sampler import relayout
from dasd_jax.run import setup
from dasd_jax.run.evaluation import Answers, answer, problems_at_a_time, remarked
from dasd_jax.run.failures import Failures
from dasd_jax.text.tokenizer import Tokenizer
from dasd_jax.verify.verifier import Verifier

_BATCHES = 8  # of prompts that are tokenised at a time: the last one is padded, so few would waste answers


@dataclasses.dataclass(frozen=True)
class Example:
    """A version of a problem as the worked example; the default is no example at all."""

    problem: int = -1  # its place among the problems
    version: str = ""


@dataclasses.dataclass(frozen=True)
class Score:
    """What became of the anchors after an example.

    Attributes:
        rewards: mean reward of the answers to each anchor, None to the example's own problem; None altogether where
            the example is too long for one of them, which `that_fit` foresees but for a few tokens.
        unjudged: the share of these answers of which the scorer came to no verdict; their reward is 0.
    """

    example: Example
    rewards: tuple[float | None, ...] | None
    unjudged: float = 0.0

    @property
    def mean(self) -> float:
        """The score: mean over the anchors; NaN where the example is too long."""
        known = [reward for reward in self.rewards or () if reward is not None]
        return float(np.mean(known)) if known else math.nan

    def as_line(self) -> dict[str, Any]:
        """The object that is kept of it."""
        rewards = None if self.rewards is None else list(self.rewards)
        return {**dataclasses.asdict(self.example), "rewards": rewards, "unjudged_frac": self.unjudged}


def of_line(line: Mapping[str, Any]) -> Score:
    """The inverse of `Score.as_line`; older versions did not count what was not judged.

    Raises:
        ValueError, KeyError: it is not what was written.
    """
    problem, version, rewards = line["problem"], line["version"], line["rewards"]
    numbers = rewards is None or (isinstance(rewards, list) and all(type(x) in (float, type(None)) for x in rewards))
    unjudged = line.get("unjudged_frac", 0.0)
    if type(problem) is not int or not isinstance(version, str) or not numbers or type(unjudged) is not float:
        raise ValueError(f"a line is {line!r:.80}")
    return Score(Example(problem, version), None if rewards is None else tuple(rewards), unjudged)


def that_fit(
    text: PromptText,
    tokenizer: Tokenizer,
    versioned: Sequence[Versioned],
    places: Sequence[int],
    anchors: Sequence[Anchor],
    width: int,
) -> list[int]:
    """Those of the places whose versions all fit before the longest anchor.

    Args:
        width: tokens of a prompt, at most.

    Raises:
        UserError: an anchor is longer even without an example, or no place is left.
    """
    asked = [versioned[anchor.place].problem for anchor in anchors]
    lengths = [len(text.student(tokenizer, problem)) for problem in asked]
    if longer := sum(length > width for length in lengths):
        raise UserError(
            f"rollout.prompt_length: {width}: {longer} of {len(anchors)} anchors are longer: expected room for each of "
            "them and a version before it"
        )
    longest = asked[int(np.argmax(lengths))]
    left = []
    for place in places:
        shown = [with_example(text, versioned, Example(place, name)) for name in versioned[place].texts]
        if all(len(each.student(tokenizer, longest)) <= width for each in shown):
            left.append(place)
    if not left:
        raise UserError(
            f"rollout.prompt_length: {width}: all {len(places)} problems have a version that does not fit before the "
            "longest anchor: expected a larger one, or shorter versions"
        )
    return left


class Scoring:
    """Scores examples by the answers of the untrained model; all of it is decided by run.seed."""

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        model: ModelConfig,
        params: Params,
        tokenizer: Tokenizer,
        verifier: Verifier,
        failures: Failures,
        versioned: Sequence[Versioned],
        anchors: Sequence[Anchor],
    ):
        """Lays the parameters out for decoding."""
        self._config, self._mesh, self._model = config, mesh, model
        self._tokenizer, self._verifier, self._failures = tokenizer, verifier, failures
        self._versioned, self._anchors = versioned, anchors
        self._text = setup.prompt_text(config, [])
        self._rows = config.rollout.problems * config.rollout.rollouts
        sampling = setup.eval_sampling(config, tokenizer)
        at_a_time = problems_at_a_time(self._rows, sampling.rollouts, mesh)
        self._sampling = setup.with_free_slots(config, sampling, model, mesh, at_a_time, params)
        self._block = -(-_BATCHES * at_a_time // len(anchors))
        self._params = relayout(model, params, sampling.weights)

    def of(self, examples: Sequence[Example], known: set[Example], each: Callable[[list[Score]], None]) -> None:
        """Scores those of the examples that are not known.

        Random numbers depend on an example's place alone, so that all scores are those of one run without a stop.

        Args:
            each: called with scores as soon as they are complete, in the order of the examples but for those that
                are too long, which come before others of their block.
        """
        for start in range(0, len(examples), self._block):
            block = examples[start : start + self._block]
            if not known.issuperset(block):
                self._score_block(block, known, each)

    def _score_block(self, block: Sequence[Example], known: set[Example], each: Callable[[list[Score]], None]) -> None:
        problems: list[Problem] = []
        ids: list[list[int]] = []
        owners: list[tuple[Example, int]] = []  # the example before each prompt, and the number of the anchor in it
        for example in block:
            places, made = self._prompts(example)
            if max(map(len, made)) <= self._config.rollout.prompt_length:
                ids += made
                problems += [self._versioned[self._anchors[place].place].problem for place in places]
                owners += [(example, place) for place in places]
            elif example not in known:
                each([Score(example, None)])
        rewards: dict[Example, list[float | None]] = {}
        answered: dict[Example, list[Answers]] = {}
        left: dict[Example, int] = {}
        for example, _ in owners:
            rewards.setdefault(example, [None] * len(self._anchors))
            left[example] = left.get(example, 0) + 1

        def note(batch: list[Answers]) -> None:
            complete = []
            for answers in batch:
                example, place = owners[answers.example_id]
                rewards[example][place] = float(np.mean(answers.reward))
                answered.setdefault(example, []).append(answers)
                left[example] -= 1
                if not left[example]:
                    unjudged = remarked(answered.pop(example))["unjudged_frac"]
                    complete.append(Score(example, tuple(rewards[example]), unjudged))
            if complete:
                each(complete)

        answer(
            model=self._model,
            params=self._params,
            mesh=self._mesh,
            tokenizer=self._tokenizer,
            prompts=Prompts(problems, ids, self._config.rollout.prompt_length, self._tokenizer.pad_id),
            verifier=self._verifier,
            failures=self._failures,
            sampling=self._sampling,
            example_ids=[place for place, (example, _) in enumerate(owners) if example not in known],
            rows=self._rows,
            seed=self._config.run.seed,
            each_batch=note,
        )

    def _prompts(self, example: Example) -> tuple[list[int], list[list[int]]]:
        """(numbers of the anchors, token ids of their prompts) after an example; without that of its own problem."""
        text = with_example(self._text, self._versioned, example)
        places = [i for i, anchor in enumerate(self._anchors) if anchor.place != example.problem]
        asked = [self._versioned[self._anchors[i].place].problem for i in places]
        return places, [text.student(self._tokenizer, problem) for problem in asked]


def with_example(text: PromptText, versioned: Sequence[Versioned], example: Example) -> PromptText:
    """The text around a problem, with the example before it."""
    if example == Example():
        return text
    shown = versioned[example.problem]
    shot = dataclasses.replace(shown.problem, response=shown.texts[example.version])
    return dataclasses.replace(text, shots=(shot,))
