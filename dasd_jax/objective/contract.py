"""The contract between a method and the learner: Scored → method.signal → Signal → update.

A method (dasd_jax/methods, one file each) says which statistics of which teachers it reads and turns them into numbers
per token; the learner computes those statistics, and the update reads nothing but the `Signal`. Neither knows the
other's names.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import struct

from dasd_jax.batch import Array
from dasd_jax.objective.divergence import Divergence
from dasd_jax.objective.surrogate import clipped

WEIGHTS = ("live", "frozen", "ema", "snapshot")
# What the field `context` of a method may offer; "" takes data.privileged.
OFFERED = ("", "answer", "solution", "hint", "sibling")
# Its controls: nothing, and what belongs to another problem.
CONTROLS = ("none", "other_problem")


@dataclasses.dataclass(frozen=True)
class View:
    """A teacher: what it is shown, and whose weights read it.

    Attributes:
        context: a name in `text.prompts.CONTEXTS`; "" takes data.privileged.
        weights: live: in the signal the weights that wrote the rollouts, in a divergence the current ones |
            frozen: those that the run started from | ema: a moving average | snapshot: a copy made every few steps.
        rate: of ema: the student's share in each update of the average, in (0, 1).
        every: of snapshot: steps between two copies.
        count: K, prompts per rollout.
    """

    context: str = ""
    weights: str = "live"
    rate: float = 0.0
    every: int = 0
    count: int = 1

    def __post_init__(self):
        if self.weights not in WEIGHTS or self.count < 1:
            raise ValueError(f"{self}: expected weights of {', '.join(WEIGHTS)} and a count of at least 1")
        rate = 0 < self.rate < 1 if self.weights == "ema" else self.rate == 0
        every = self.every >= 1 if self.weights == "snapshot" else self.every == 0
        if not (rate and every):
            raise ValueError(f"{self}: expected a rate in (0, 1) of ema alone, and every >= 1 of snapshot alone")


@dataclasses.dataclass(frozen=True)
class Shape:
    """How a batch is laid out; static.

    Rows are problem-major, G per problem. Minibatch m holds the problems m, m + M, m + 2M, …
    """

    rollouts: int  # G
    minibatches: int  # M, optimiser steps per rollout batch
    max_new_tokens: int  # R


@struct.dataclass
class ViewStats:
    """One teacher's statistics at the response tokens; f32[K, rows, R] in nats, None of views that are not scored.

    Where a rollout's teacher is shown nothing it equals the student: the gap and the divergences are exactly 0. The
    divergences are None too in steps in which the student is not scored again (`Method.rescored`).
    """

    logp: Array | None  # of the sampled token
    entropy: Array | None
    forward_kl: Array | None  # KL(teacher || student)
    reverse_kl: Array | None  # KL(student || teacher)
    shown: Array  # bool[K, rows], whether there was a context to show
    weight: Array  # f32[K, rows], similarity by which each of the K contexts was retrieved; 1 without retrieval


@struct.dataclass
class Scored:
    """All that a method may read of a batch; f32[rows, R] in nats unless it says otherwise.

    What stands where `mask` is False is finite and meaningless.
    """

    mask: Array  # bool, response tokens that may enter the loss
    live: Array  # bool[rows], rows that count in their group's mean
    tokens: Array  # i32[rows, R]
    logp: Array | None  # of the sampled token under the weights that wrote it; None where nothing was rolled out
    entropy: Array | None  # the student's
    reward: Array  # f32[rows]
    correct: Array  # f32[rows], 0 or 1: the verifier's verdict alone
    views: dict[str, ViewStats]
    # f32[] each, traced: "step", "seed" of the run, "teacher_weight", "noise" (nats of a gap that are rounding), and
    # Method.memory's.
    knobs: dict[str, Array]
    tables: dict[str, Array] = struct.field(default_factory=dict)  # those of Method.tables, [V] each


@struct.dataclass
class Signal:
    """All that the update reads of a method; f32[rows, R].

    `weight`, `kl` and `nll` include their divisors (objective/normalise.py): the update only adds up. A
    token is in the loss where any of them is not 0.
    """

    advantage: Array | None = None  # multiplies the ratio in the surrogate
    weight: Array | None = None  # of the surrogate
    kl: Array | None = None  # of the method's divergence
    nll: Array | None = None  # of -log p of the token
    given: Any = None  # constants of the divergence: a tree of f32[rows] or f32[rows, R]
    logged: dict[str, Array] = struct.field(default_factory=dict)  # for samples.jsonl, by name
    metrics: dict[str, Array] = struct.field(default_factory=dict)  # f32[] each, for the log


@dataclasses.dataclass(frozen=True)
class Guard:
    """A number of the log that a method wants watched (run/guards.py).

    Attributes:
        level: its warn and stop levels are the fields guards.<level>_warn and guards.<level>_stop.
        reads: names in the log; their means over the guard's window are handed to `reading`.
        reading: (means, hp) → (name, value), or None where the method's settings leave nothing to watch.
        high_is_bad: warns above the level, otherwise below it.
        means: what it means when it is beyond its level, in a few words.
    """

    level: str
    reads: tuple[str, ...]
    reading: Callable[..., tuple[str, float] | None]
    high_is_bad: bool
    means: str


def mean_guard(level: str, name: str, *, high_is_bad: bool, means: str) -> Guard:
    """A guard on the mean of one name of the log."""
    return Guard(level, (name,), lambda of, hp: (name, of[name]), high_is_bad, means)


ANSWER_LOGP = "probe/answer_logp"  # in the log: what the probed teacher thinks of the answers, nats a token
NOISE = "gap/noise_mean_abs"  # in the log: nats of a gap that are rounding, as last measured


def _signal_to_noise(means: dict[str, float], hp) -> tuple[str, float] | None:
    return (f"gap/mean_abs over {NOISE}", means["gap/mean_abs"] / means[NOISE]) if means[NOISE] else None


# Of methods that log the size of their teacher's gap.
SIGNAL_TO_NOISE = Guard(
    level="signal_noise",
    reads=("gap/mean_abs", NOISE),
    reading=_signal_to_noise,
    high_is_bad=False,
    means="much of the teacher's gap is rounding; set model.compute_dtype to float32 in a new --workdir",
)
BLANK = mean_guard(
    "blank", "teacher/blank_frac", high_is_bad=True, means="hardly any rollout's teacher is shown a context"
)
# Of methods that read the statistics of their teacher.
TEACHER_GUARDS = (
    SIGNAL_TO_NOISE,
    BLANK,
    mean_guard(
        "teacher_kl", "gap/reverse_kl", high_is_bad=True, means="student and teacher drift apart (nats a token)"
    ),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """A method, as its file declares it; compared by identity, so that it is a static argument of jitted functions.

    Attributes:
        fields: its own configuration fields, a class of `fields.Fields`; an object of it is `hp` below, static.
        signal: (Scored, Shape, hp) → Signal, pure and traced.
        views: hp → its teachers by name.
        scored: hp → names of the views whose statistics `signal` reads; others are read by the divergence alone.
        rescored: hp → whether `signal` cannot do without the divergences between student and teachers: the student is
            then scored in every step, and not only where the sampler's numbers are checked (run.rescore_every).
        tables: names in `text.token_tables.TABLES` of what `signal` reads of every token of the vocabulary.
        surrogate: the policy-gradient term, `objective.surrogate.clipped` or `plain`.
        divergence: hp → the term over the whole vocabulary, or None.
        ratio_cap: the divergence of a token is multiplied by min(exp(logp - old logp), this), taken as a constant;
            infinite: by 1.
        shared: defaults of shared fields that it changes, "group.field" → value.
        memory: (lines of metrics.jsonl, hp) → scalars for `Scored.knobs` of the next step. A fold over the log: what a
            method remembers needs no state of its own, and a resumed run remembers the same.
        context: (knobs, hp) → arguments for the builders of contexts (data/contexts.py) in the next step, numbers that
            are logged as context/<name>.
        probe: the view under whose prompts the reference answers are scored in every step (learner/probe.py), for
            `ANSWER_LOGP` in the log; it has one prompt per problem. "": none.
        notice: (hp, G, whether rewards are graded and not 0 or 1) → a line to say when a run starts, or "".
        guards: numbers that it wants watched.
        anneals: its teacher's part is multiplied by knobs["teacher_weight"], which guards.on_collapse=anneal lowers.
            Of a method whose whole loss is the teacher's a factor would change little: AdamW divides by it again.
        watched: names in the log whose means over the run appear in its summary.
        rollouts: False: it learns from reference responses, one per problem; nothing is sampled or verified.
    """

    fields: type
    signal: Callable
    views: Callable[[Any], Mapping[str, View]] = lambda hp: {}
    scored: Callable[[Any], tuple[str, ...]] = lambda hp: ()
    rescored: Callable[[Any], bool] = lambda hp: False
    tables: tuple[str, ...] = ()
    surrogate: Callable = clipped
    divergence: Callable[[Any], Divergence | None] = lambda hp: None
    ratio_cap: float = math.inf
    shared: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    memory: Callable[[Sequence[dict], Any], dict[str, float]] = lambda lines, hp: {}
    context: Callable[[dict[str, float], Any], dict[str, float]] = lambda knobs, hp: {}
    probe: str = ""
    notice: Callable[[Any, int, bool], str] = lambda hp, rollouts, graded: ""
    guards: tuple[Guard, ...] = ()
    anneals: bool = False
    watched: tuple[str, ...] = ()
    rollouts: bool = True
