"""The seven groups of a run's configuration as frozen dataclasses: what every room is handed, checked at the door.

configs/common.py says what each field means and in which unit; this file says what values it may take.
"""

import dataclasses
import math
import re
from typing import Any, get_type_hints

from dasd_jax.errors import UserError
from dasd_jax.mesh import MeshConfig
from dasd_jax.objective.credit import METHODS, ROUTES, SCALES, DasdParams
from dasd_jax.text.prompts import PRIVILEGED

_MAX_SAMPLES = 2**16  # of one problem


@dataclasses.dataclass(frozen=True)
class ModelGroup:
    """Which model, and how its activations are kept."""

    weights: str
    sha256: str
    preset: str
    tokenizer: str
    compute_dtype: str
    attention: str
    remat: str

    def __post_init__(self):
        digest = re.fullmatch("[0-9a-f]{64}|", self.sha256)
        _require("model.sha256", self.sha256, digest is not None, "64 hexadecimal digits, or nothing")
        _one_of("model.compute_dtype", self.compute_dtype, ("float32", "bfloat16"))
        _one_of("model.attention", self.attention, ("auto", "xla", "splash", "cudnn"))
        _one_of("model.remat", self.remat, ("none", "dots", "full"))


@dataclasses.dataclass(frozen=True)
class DataGroup:
    """Which problems, and what the prompts around them say."""

    sources: tuple[str, ...]
    benchmarks: tuple[str, ...]
    heldout: int
    shots: int
    instruction: str
    privileged: str
    thinking: str

    def __post_init__(self):
        _require("data.sources", self.sources, len(self.sources) > 0, "at least one source")
        once = len(set(self.benchmarks)) == len(self.benchmarks)
        _require("data.benchmarks", self.benchmarks, once, "each benchmark once")
        fewest = 0 if self.benchmarks else 1
        _require("data.heldout", self.heldout, self.heldout >= fewest, f"at least {fewest} problem(s)")
        _require("data.shots", self.shots, self.shots >= 0, "0 or more")
        _one_of("data.instruction", self.instruction, ("boxed", "answer_line"))
        _one_of("data.privileged", self.privileged, PRIVILEGED)
        _one_of("data.thinking", self.thinking, ("default", "on", "off"))

    @property
    def enable_thinking(self) -> bool | None:
        """What chat templates are told; None leaves it to the template."""
        return {"default": None, "on": True, "off": False}[self.thinking]


@dataclasses.dataclass(frozen=True)
class RolloutGroup:
    """How much is sampled, how, and how it is verified."""

    problems: int
    rollouts: int
    prompt_length: int
    teacher_prompt_length: int
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    resample: int
    slots: int
    verifier_workers: int
    verifier_deadline_s: float
    verifier_memory_mb: int
    logp_gap_mean_warn: float
    logp_gap_mean_max: float
    logp_gap_p999_max: float

    def __post_init__(self):
        _require("rollout.problems", self.problems, self.problems >= 1, "at least 1")
        _require("rollout.rollouts", self.rollouts, self.rollouts >= 2, "at least 2: an advantage needs a group")
        _require("rollout.rollouts", self.rollouts, self.rollouts <= _MAX_SAMPLES, f"at most {_MAX_SAMPLES}")
        for name in ("prompt_length", "teacher_prompt_length", "max_new_tokens"):
            _require(f"rollout.{name}", getattr(self, name), getattr(self, name) >= 1, "at least 1 token")
        _require("rollout.temperature", self.temperature, self.temperature > 0, "a positive temperature")
        # The score pass sees the whole distribution: ratios against a truncated one would be of two different things.
        _require("rollout.top_k", self.top_k, self.top_k == 0, "0 in training")
        _require("rollout.top_p", self.top_p, self.top_p == 1.0, "1.0 in training")
        _require("rollout.resample", self.resample, self.resample >= 0, "0 or more batches")
        _require("rollout.slots", self.slots, self.slots >= 0, "0 (as many as fit) or more")
        for name, least, most, unit in (
            ("verifier_workers", 1, 1024, "processes"),
            ("verifier_deadline_s", 0.05, 3600, "seconds"),
            ("verifier_memory_mb", 512, 2**20, "MiB"),
        ):
            value = getattr(self, name)
            _require(f"rollout.{name}", value, least <= value <= most, f"{least} to {most} {unit}")
        warn = self.logp_gap_mean_warn
        _require("rollout.logp_gap_mean_warn", warn, warn >= 0, "0 (off) or more nats")
        for name in ("logp_gap_mean_max", "logp_gap_p999_max"):
            _require(f"rollout.{name}", getattr(self, name), getattr(self, name) > 0, "> 0 nats")


@dataclasses.dataclass(frozen=True)
class ObjectiveGroup(DasdParams):
    """Which method and form of the loss; the constants of DASD are inherited."""

    method: str = "dasd"
    form: str = "sampled"
    clip_low: float = 0.2
    clip_high: float = 0.2
    truncated: str = "zero"
    overlong_tokens: int = 0
    token_chunk: int = 256

    def __post_init__(self):
        _one_of("objective.method", self.method, (*METHODS, "sft"))
        _one_of("objective.form", self.form, ("sampled", "full"))
        _one_of("objective.rho_side", self.rho_side, ("top", "bottom"))
        _one_of("objective.scale", self.scale, SCALES)
        _one_of("objective.route", self.route, ROUTES)
        _one_of("objective.truncated", self.truncated, ("zero", "score", "drop_from_loss"))
        _require("objective.rho", self.rho, 0 < self.rho < 1, "a share strictly between 0 and 1")
        _require("objective.clip_low", self.clip_low, 0 < self.clip_low < 1, "strictly between 0 and 1")
        for name in ("beta", "clip", "min_spread", "repel_kl_max"):
            _require(f"objective.{name}", getattr(self, name), getattr(self, name) >= 0, "0 or more")
        for name in ("s_min", "clip_high"):
            _require(f"objective.{name}", getattr(self, name), getattr(self, name) > 0, "> 0")
        _require("objective.overlong_tokens", self.overlong_tokens, self.overlong_tokens >= 0, "0 (off) or more tokens")
        for name in ("min_tokens", "token_chunk"):
            _require(f"objective.{name}", getattr(self, name), getattr(self, name) >= 1, "at least 1 token")
        if self.form == "full" and self.method != "dasd":
            raise UserError(f"objective.form: 'full' is a form of dasd: expected 'sampled' for {self.method!r}")


@dataclasses.dataclass(frozen=True)
class OptimGroup:
    """AdamW, its schedule, and how a rollout batch is cut."""

    learning_rate: float
    schedule: str
    warmup_steps: int
    weight_decay: float
    b1: float
    b2: float
    eps: float
    grad_clip: float
    moment_dtype: str
    minibatches: int
    microbatches: int

    def __post_init__(self):
        _require("optim.learning_rate", self.learning_rate, self.learning_rate > 0, "> 0")
        _one_of("optim.moment_dtype", self.moment_dtype, ("float32", "bfloat16"))
        _one_of("optim.schedule", self.schedule, ("constant", "cosine"))
        _require("optim.warmup_steps", self.warmup_steps, self.warmup_steps >= 0, "0 or more optimiser steps")
        _require("optim.weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more")
        for name in ("b1", "b2"):
            _require(f"optim.{name}", getattr(self, name), 0 <= getattr(self, name) < 1, "in [0, 1)")
        for name in ("eps", "grad_clip"):
            _require(f"optim.{name}", getattr(self, name), getattr(self, name) > 0, "> 0")
        for name in ("minibatches", "microbatches"):
            _require(f"optim.{name}", getattr(self, name), getattr(self, name) >= 1, "at least 1")


@dataclasses.dataclass(frozen=True)
class RunGroup:
    """How long, how often, from which seed."""

    steps: int
    seed: int
    checkpoint_every: int
    keep_checkpoints: int
    keep_every: int
    grace_s: float
    eval_every: int
    eval_problems: int
    eval_samples: int
    eval_temperature: float
    eval_top_k: int
    eval_top_p: float
    logged_rollouts: int
    skipped_steps_stop: int
    guard_window: int
    entropy_warn: float
    entropy_stop: float
    length_warn: float
    length_stop: float
    repetition_warn: float
    repetition_stop: float
    repel_kl_warn: float
    repel_kl_stop: float
    arm_warn: float
    arm_stop: float
    equal_rewards_warn: float
    equal_rewards_stop: float
    on_collapse: str
    profile_step: int

    def __post_init__(self):
        at_least_1 = ("steps", "checkpoint_every", "keep_checkpoints", "eval_samples", "skipped_steps_stop")
        for name in (*at_least_1, "guard_window"):
            _require(f"run.{name}", getattr(self, name), getattr(self, name) >= 1, "at least 1")
        multiple = self.keep_every >= 0 and self.keep_every % self.checkpoint_every == 0
        _require("run.keep_every", self.keep_every, multiple, "0 or a multiple of run.checkpoint_every")
        _require("run.grace_s", self.grace_s, self.grace_s > 0, "> 0 seconds")
        _require("run.eval_samples", self.eval_samples, self.eval_samples <= _MAX_SAMPLES, f"at most {_MAX_SAMPLES}")
        _require("run.eval_problems", self.eval_problems, self.eval_problems >= 0, "0 (all of them) or more")
        _require("run.eval_every", self.eval_every, self.eval_every >= 0, "0 (start and end only) or more")
        _require("run.seed", self.seed, 0 <= self.seed < 2**31, "0 to 2147483647")
        _require("run.eval_temperature", self.eval_temperature, self.eval_temperature >= 0, "0 (arg-max) or more")
        _require("run.eval_top_k", self.eval_top_k, self.eval_top_k >= 0, "0 (all tokens) or more")
        _require("run.eval_top_p", self.eval_top_p, 0 < self.eval_top_p <= 1, "in (0, 1]")
        _require("run.profile_step", self.profile_step, self.profile_step >= 0, "0 (none) or a step")
        for level in self.levels():
            _require(f"run.{level}", getattr(self, level), getattr(self, level) >= 0, "0 (off) or more")
        _one_of("run.on_collapse", self.on_collapse, ("stop", "anneal"))
        _require("run.logged_rollouts", self.logged_rollouts, self.logged_rollouts >= 0, "0 or more")

    @classmethod
    def levels(cls) -> list[str]:
        """The fields at which a guard warns or acts."""
        return [field.name for field in dataclasses.fields(cls) if field.name.endswith(("_warn", "_stop"))]


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    model: ModelGroup
    data: DataGroup
    rollout: RolloutGroup
    objective: ObjectiveGroup
    optim: OptimGroup
    mesh: MeshConfig
    run: RunGroup

    def __post_init__(self):
        parts = self.optim.minibatches * self.optim.microbatches
        _require(
            "rollout.problems",
            self.rollout.problems,
            self.rollout.problems % parts == 0,
            f"a multiple of optim.minibatches * optim.microbatches = {parts}",
        )
        _require(
            "objective.overlong_tokens",
            self.objective.overlong_tokens,
            self.objective.overlong_tokens <= self.rollout.max_new_tokens,
            f"at most rollout.max_new_tokens = {self.rollout.max_new_tokens}",
        )
        _require(
            "run.eval_problems",
            self.run.eval_problems,
            bool(self.data.benchmarks) or self.run.eval_problems <= self.data.heldout,
            f"at most data.heldout = {self.data.heldout}",
        )

    def check_context(self, context: int) -> None:
        """Refuses a rollout budget that the model's context cannot hold.

        Raises:
            UserError: a prompt and a response of full length exceed `context` tokens.
        """
        for name in ("prompt_length", "teacher_prompt_length"):
            prompt, response = getattr(self.rollout, name), self.rollout.max_new_tokens
            if prompt + response > context:
                raise UserError(
                    f"rollout.max_new_tokens: {response} + rollout.{name} {prompt} = {prompt + response} tokens: "
                    f"expected at most the model's context of {context}"
                )


def from_dict(raw: dict[str, dict[str, Any]]) -> Config:
    """The frozen configuration of a plain dictionary of groups.

    Raises:
        UserError: a group or field that is unknown or missing, a value of the wrong type or out of its range.
    """
    groups = get_type_hints(Config)
    _same_names("config", raw, groups)
    return Config(**{name: _group(name, group, raw[name]) for name, group in groups.items()})


def _group(name: str, group: type, raw: dict[str, Any]):
    hints = get_type_hints(group)
    _same_names(name, raw, hints)
    values = {}
    for field, value in raw.items():
        expected = hints[field]
        if expected is float and type(value) is int:
            value = float(value)
        if expected == tuple[str, ...]:
            value = tuple(value) if isinstance(value, list | tuple) else value
            fits = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
        else:
            fits = type(value) is expected
        if not fits:
            kind = (
                getattr(expected, "__name__", str(expected)) if expected in (int, float, bool, str) else str(expected)
            )
            raise UserError(f"{name}.{field}: {value!r} is of type {type(value).__name__}: expected {kind}")
        _require_plain(f"{name}.{field}", value)
        values[field] = value
    return group(**values)


def _require_plain(field: str, value: Any) -> None:
    """What holds of every field: numbers that a device can hold, and text that a terminal and a file can."""
    if isinstance(value, float):
        _require(field, value, math.isfinite(value), "a finite number")
    if isinstance(value, int):
        _require(field, value, abs(value) < 2**31, "a number of 32 bits")
    for text in value if isinstance(value, tuple) else [value]:
        if isinstance(text, str):
            _require(field, value, text.isprintable(), "text without control characters")


def _same_names(where: str, raw: dict, expected: dict) -> None:
    for name in raw:
        if name not in expected:
            raise UserError(f"{where}: no field {name!r}: expected {', '.join(expected)}")
    for name in expected:
        if name not in raw:
            raise UserError(f"{where}.{name}: missing")


def _require(field: str, value: Any, fits: bool, expected: str) -> None:
    if not fits:
        raise UserError(f"{field}: {value!r}: expected {expected}")


def _one_of(field: str, value: str, choices: tuple[str, ...]) -> None:
    _require(field, value, value in choices, "one of " + ", ".join(choices))
