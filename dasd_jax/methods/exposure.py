"""The controller of ATESD (arXiv 2605.11458): a Beta policy that decides how much of a solution the teacher is shown.

A small network reads six numbers of the run and says (a, b) = 1 + softplus(network); an exposure alpha ~ Beta(a, b) is
held for a block of steps. A block's reward is known once `look_ahead` more steps are in the log:

    R = Σ_{i=1…L} γ^(i-1) max(0, loss_(t+i-1) - loss_(t+i)) + λ · (discounted mean of answer_logp_(t+1…t+L))

with t the block's first step. Blocks are learned from by REINFORCE, `controller_batch` of them at a time with their
rewards normalised, and a penalty max(0, entropy - target)² keeps the policy from staying broad.

Everything is float64 in NumPy and follows from the lines of the log alone, one after the other: a run that goes on
sees the same lines, and has the same controller.
"""

import dataclasses
import functools
import itertools
import math
import operator
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import betaln, digamma, expit, polygamma

from dasd_jax.objective.contract import ANSWER_LOGP

ALPHA, LOSS, MISMATCH, CONFIDENCE = "context/alpha", "atesd/loss", "gap/mean_abs", "atesd/confidence"

_INPUTS, _HIDDEN = 6, 16  # of the network: a hidden layer of tanh
_SIZES = (_INPUTS * _HIDDEN, _HIDDEN, _HIDDEN * 2, 2)
_KEPT = 0.9  # share of the moving average of alpha that stays at each step
_INSIDE = 1e-3  # an alpha nearer to 0 or 1 counts as this far from it, where its log-density is finite
_NOTHING = {LOSS: 0.0, MISMATCH: 0.0, CONFIDENCE: 0.0, ANSWER_LOGP: 0.0}


@dataclasses.dataclass
class Block:
    """Some steps with one alpha.

    Attributes:
        state: f64[6], what the policy read when it chose.
        reward: of the steps seen so far, nats.
    """

    state: np.ndarray
    alpha: float
    reward: float = 0.0
    seen: int = 0


class Controller:
    """What the steps so far have taught the policy.

    Attributes:
        seen: the lines of these steps.
    """

    def __init__(self, hp: Any):
        """At the start it says Beta(1 + ln 2, 1 + ln 2) of every state; `hp` is the method's fields."""
        self.seen: list[Mapping[str, float]] = []
        self._hp, self._parameters = hp, first_parameters()
        self._moments, self._updates = np.zeros((2, self._parameters.size)), 0
        self._discounts = hp.discount ** np.arange(hp.look_ahead)
        self._pending: deque[Block] = deque()  # their rewards are not known yet
        self._batch: list[Block] = []
        self._exposure, self._last = 0.5, _NOTHING

    def see(self, line: Mapping[str, float]) -> None:
        """Takes in a finished step, a line of metrics.jsonl; the first step of a block begins one.

        What a line lacks stays as it was: a number that is not finite is not logged. The same where no token was in
        the loss, and the numbers say nothing.
        """
        before, now = self._last, self._last
        if line.get("optim/empty_frac", 0.0) < 1:
            now = {name: line.get(name, was) for name, was in before.items()}
        for block in self._pending:
            fall = max(0.0, before[LOSS] - now[LOSS])
            of_answer = self._hp.probe_weight * now[ANSWER_LOGP] / self._discounts.sum()
            block.reward += self._discounts[block.seen] * (fall + of_answer)
            block.seen += 1
        if self._pending and self._pending[0].seen == self._hp.look_ahead:
            self._batch.append(self._pending.popleft())
        if len(self._batch) == self._hp.controller_batch:
            self._learn()
        if ALPHA in line:
            if begins_block(line["step"], self._hp):
                self._pending.append(Block(self._state(line["step"]), line[ALPHA]))
            self._exposure = _KEPT * self._exposure + (1 - _KEPT) * line[ALPHA]
        self._last = now
        self.seen.append(line)

    def beta(self, step: int) -> tuple[float, float]:
        """(a, b) of the distribution of a block that begins with this step, the one after the last seen."""
        a, b = forward(self._parameters, self._state(step)[None])[0][0]
        return float(a), float(b)

    def _state(self, step: int) -> np.ndarray:
        last = self._last
        nats = np.log1p(np.maximum([last[LOSS], last[MISMATCH], -last[ANSWER_LOGP]], 0.0))
        progress = min((step - 1) / self._hp.progress_steps, 1.0)
        return np.array([progress, self._exposure, *nats, last[CONFIDENCE]])

    def _learn(self) -> None:
        """One step of Adam."""
        hp, batch = self._hp, self._batch
        rewards = np.array([block.reward for block in batch])
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
        states, alphas = np.stack([block.state for block in batch]), np.array([block.alpha for block in batch])
        _, gradient = objective(self._parameters, states, alphas, advantages, hp.entropy_target, hp.entropy_weight)
        self._updates += 1
        rates = np.array([[0.9], [0.999]])
        self._moments = rates * self._moments + (1 - rates) * np.stack([gradient, gradient**2])
        mean, square = self._moments / (1 - rates**self._updates)
        self._parameters = self._parameters - hp.controller_rate * mean / (np.sqrt(square) + 1e-8)
        self._batch = []


def begins_block(step: int, hp: Any) -> bool:
    """Whether a step, counted from 1, is the first of those that share an alpha."""
    return (step - 1) % hp.hold == 0


def remembered(lines: Sequence[Mapping[str, float]], hp: Any) -> dict[str, float]:
    """For the step after the last of these lines: a and b, and the alpha that is held, or -1 where one is drawn."""
    steps = list(itertools.dropwhile(lambda line: line["step"] <= 0, lines))
    step = steps[-1]["step"] + 1 if steps else 1
    if steps and not begins_block(step, hp) and {ALPHA, "atesd/a", "atesd/b"} <= steps[-1].keys():
        last = steps[-1]
        return {"atesd_a": last["atesd/a"], "atesd_b": last["atesd/b"], "atesd_alpha": last[ALPHA]}
    controller = _latest(hp)
    if len(controller.seen) > len(steps) or not all(map(operator.is_, controller.seen, steps)):
        _latest.cache_clear()
        controller = _latest(hp)
    for line in steps[len(controller.seen) :]:
        controller.see(line)
    a, b = controller.beta(step)
    return {"atesd_a": a, "atesd_b": b, "atesd_alpha": -1.0}


@functools.lru_cache(maxsize=1)
def _latest(hp: Any) -> Controller:
    """The one of the last call, so that a run does not fold all of its log again at every step.

    Whether it may go on is asked of the lines that it has seen: they must be the very objects that it is given again.
    """
    return Controller(hp)


def exposure(knobs: Mapping[str, float], hp: Any) -> dict[str, float]:
    """The alpha of a step: the one that is held, or a draw whose key is made of the run's seed and the step."""
    alpha = knobs["atesd_alpha"]
    if alpha < 0:
        draw = np.random.default_rng([int(knobs["seed"]), int(knobs["step"])]).beta(knobs["atesd_a"], knobs["atesd_b"])
        alpha = float(np.clip(draw, hp.alpha_min, hp.alpha_max))
    return {"alpha": alpha}


# ------------------------------------------------------------------------------------------------ the network


def first_parameters() -> np.ndarray:
    """f64[P]: a hidden layer that is the same in every run, and an output layer of 0."""
    parameters = np.zeros(sum(_SIZES))
    parameters[: _SIZES[0]] = np.random.default_rng(0).normal(scale=1 / math.sqrt(_INPUTS), size=_SIZES[0])
    return parameters


def forward(parameters: np.ndarray, states: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """f64[n, 6] → ((a, b) f64[n, 2], the output before softplus f64[n, 2], the hidden layer f64[n, 16])."""
    into, bias, out, out_bias = _parts(parameters)
    hidden = np.tanh(states @ into + bias)
    output = hidden @ out + out_bias
    return 1 + np.logaddexp(0.0, output), output, hidden


def objective(
    parameters: np.ndarray,
    states: np.ndarray,
    alphas: np.ndarray,
    advantages: np.ndarray,
    entropy_target: float,
    entropy_weight: float,
) -> tuple[float, np.ndarray]:
    """-mean(advantage · log Beta(alpha)) + weight · mean(max(0, entropy - target)²), and its gradient.

    Args:
        parameters: f64[P].
        states: f64[n, 6].
        alphas, advantages: f64[n].

    Returns:
        (value, f64[P]).
    """
    shape, output, hidden = forward(parameters, states)
    a, b = shape.T
    shown = np.clip(alphas, _INSIDE, 1 - _INSIDE)
    score = np.stack([np.log(shown) - digamma(a), np.log1p(-shown) - digamma(b)], axis=1) + digamma(a + b)[:, None]
    beyond = np.maximum(entropy(a, b) - entropy_target, 0.0)
    value = np.mean(-advantages * log_density(shown, a, b) + entropy_weight * beyond**2)
    by_entropy = (a + b - 2)[:, None] * polygamma(1, a + b)[:, None] - (shape - 1) * polygamma(1, shape)
    by_shape = (-advantages[:, None] * score + 2 * entropy_weight * beyond[:, None] * by_entropy) / len(states)
    by_output = by_shape * expit(output)
    out = _parts(parameters)[2]
    by_hidden = by_output @ out.T * (1 - hidden**2)
    parts = states.T @ by_hidden, by_hidden.sum(axis=0), hidden.T @ by_output, by_output.sum(axis=0)
    return float(value), np.concatenate([part.reshape(-1) for part in parts])


def log_density(alpha: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """log Beta(alpha; a, b), nats."""
    return (a - 1) * np.log(alpha) + (b - 1) * np.log1p(-alpha) - betaln(a, b)


def entropy(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Differential entropy of Beta(a, b), nats: 0 of the uniform one, below 0 of all others."""
    return betaln(a, b) - (a - 1) * digamma(a) - (b - 1) * digamma(b) + (a + b - 2) * digamma(a + b)


def _parts(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    into, bias, out, out_bias = np.split(parameters, np.cumsum(_SIZES[:-1]))
    return into.reshape(_INPUTS, _HIDDEN), bias, out.reshape(_HIDDEN, 2), out_bias
