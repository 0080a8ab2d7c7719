"""A run's configuration: eight groups of fields, each field declared once with default, range and meaning.

Everything else derives from these lines: the ConfigDict that config files and command lines change, its checks,
--help-config and docs/fields.md. A method's own fields are declared in its file (dasd_jax/methods) and stand in the
group `objective` beside the shared ones; `Config.hp` holds them.
"""

import dataclasses
import math
import re
from typing import Any, ClassVar, get_type_hints

from dasd_jax.errors import UserError
from dasd_jax.fields import Fields, Range, above, anything, at_least, field, inside, one_of, require, span
from dasd_jax.mesh import MeshConfig
from dasd_jax.methods import METHODS
from dasd_jax.objective.contract import Method
from dasd_jax.text.prompts import INSTRUCTIONS, PRIVILEGED

_MAX_SAMPLES = 2**16  # of one problem
_SHA256 = Range(lambda text: re.fullmatch("[0-9a-f]{64}|", text) is not None, "64 hexadecimal digits, or nothing")
_FULL = Range(lambda value: value in (0, 1), "0 (top_k) or 1.0 (top_p) in training")


@dataclasses.dataclass(frozen=True)
class ModelGroup(Fields):
    """Which model, and how its activations are kept."""

    group: ClassVar[str] = "model"

    weights: str = field("", anything(), "a .gguf file, a Hugging Face folder or a checkpoint; random: from `preset`")
    sha256: str = field("", _SHA256, "expected checksum of a .gguf file; empty: not checked")
    preset: str = field(
        "", anything(), "architecture of random weights, a name of model/presets.py; empty: from `weights`"
    )
    tokenizer: str = field(
        "", anything(), '"byte", a .gguf, .model or tokenizer.json file, or a folder; empty: from `weights`'
    )
    compute_dtype: str = field(
        "bfloat16", one_of("float32", "bfloat16"), "of activations and KV cache; parameters are float32"
    )
    attention: str = field(
        "auto", one_of("auto", "xla", "splash", "cudnn"), "kernel; auto: in bfloat16 splash on TPU, cuDNN on GPU"
    )
    remat: str = field(
        "full", one_of("none", "dots", "full"), "what the backward pass computes again instead of storing"
    )


@dataclasses.dataclass(frozen=True)
class DataGroup(Fields):
    """Which problems, and what the prompts around them say."""

    group: ClassVar[str] = "data"

    sources: tuple[str, ...] = field(
        (),
        anything(),
        '"gym:TASK?field=value&size=N", "jsonl:FILE", "parquet:FILE" or "tfds:DIR"; duplicates are left out',
    )
    benchmarks: tuple[str, ...] = field(
        (),
        Range(lambda specs: len(set(specs)) == len(specs), "each benchmark once"),
        "specs as in sources: what is evaluated; their problems are never trained on",
    )
    heldout: int = field(
        128, at_least(0), "problems of smallest hash, never trained on; evaluated unless there are benchmarks"
    )
    shots: int = field(0, at_least(0), "worked examples before the problem, taken from the training problems")
    instruction: str = field("boxed", one_of(*INSTRUCTIONS), "how the answer is asked for")
    privileged: str = field(
        "answer",
        one_of(*PRIVILEGED),
        "what a teacher is shown; problems without it are left out; sibling: a verified rollout",
    )
    thinking: str = field(
        "default", one_of("default", "on", "off"), "told to chat templates that know it, in all views"
    )

    @property
    def enable_thinking(self) -> bool | None:
        """What chat templates are told; None leaves it to the template."""
        return {"default": None, "on": True, "off": False}[self.thinking]


@dataclasses.dataclass(frozen=True)
class RolloutGroup(Fields):
    """How much is sampled, how, and how it is verified."""

    group: ClassVar[str] = "rollout"

    problems: int = field(128, at_least(1), "problems a rollout batch")
    rollouts: int = field(8, span(2, _MAX_SAMPLES), "responses to each problem; an advantage needs a group")
    prompt_length: int = field(1024, at_least(1, "token"), "tokens; problems with a longer student prompt are left out")
    teacher_prompt_length: int = field(1536, at_least(1, "token"), "tokens; the same for the teacher's prompt")
    max_new_tokens: int = field(8192, at_least(1, "token"), "tokens a response")
    temperature: float = field(1.0, above(0), "statistics are of log_softmax(logits / temperature)")
    top_k: int = field(0, _FULL, "truncated sampling has no matching score pass")
    top_p: float = field(1.0, _FULL, "truncated sampling has no matching score pass")
    resample: int = field(
        0, at_least(0, "batches", off=True), "further batches a step that replace groups whose rewards are all equal"
    )
    slots: int = field(
        0, at_least(0), "rows that a device decodes at a time, the next ones taking free slots; 0: as many as fit"
    )
    verifier_workers: int = field(8, span(1, 1024, "processes"), "processes that score answers")
    verifier_deadline_s: float = field(
        5.0, span(0.05, 3600, "seconds"), "CPU seconds an answer; what needs more is wrong"
    )
    verifier_memory_mb: int = field(2048, span(512, 2**20, "MiB"), "address space of a process")


@dataclasses.dataclass(frozen=True)
class ObjectiveGroup(Fields):
    """The fields that all methods share."""

    group: ClassVar[str] = "objective"

    method: str = field("dasd", one_of(*METHODS), "what a token's credit is; docs/methods.md")
    clip_low: float = field(0.2, inside(0, 1), "ratios below 1 - clip_low stop counting")
    clip_high: float = field(0.2, above(0), "ratios above 1 + clip_high stop counting")
    truncated: str = field("zero", one_of("zero", "score", "drop_from_loss"), "what an unfinished response is worth")
    overlong_tokens: int = field(
        0, at_least(0, "tokens", off=True), "before the limit, over which the reward falls by up to 1"
    )
    token_chunk: int = field(1024, at_least(1, "token"), "tokens a device whose logits exist at one time")


@dataclasses.dataclass(frozen=True)
class OptimGroup(Fields):
    """AdamW, its schedule, and how a rollout batch is cut."""

    group: ClassVar[str] = "optim"

    learning_rate: float = field(3e-6, above(0), "peak")
    schedule: str = field("cosine", one_of("constant", "cosine"), "cosine falls to 0 at the end of the run")
    warmup_steps: int = field(0, at_least(0), "optimiser steps, linear from learning_rate / warmup_steps")
    weight_decay: float = field(0.0, at_least(0), "decoupled")
    b1: float = field(0.9, Range(lambda value: 0 <= value < 1, "in [0, 1)"), "decay of Adam's first moment")
    b2: float = field(0.95, Range(lambda value: 0 <= value < 1, "in [0, 1)"), "decay of Adam's second moment")
    eps: float = field(1e-8, above(0), "added to the root of Adam's second moment")
    grad_clip: float = field(1.0, above(0), "global norm to which a larger gradient is scaled")
    moment_dtype: str = field("float32", one_of("float32", "bfloat16"), "of Adam's first moment")
    minibatches: int = field(4, at_least(1), "optimiser steps a rollout batch; divides rollout.problems")
    microbatches: int = field(
        1, at_least(1), "parts of a minibatch, by length, whose gradients are summed; saves memory and padding"
    )


@dataclasses.dataclass(frozen=True)
class GuardsGroup(Fields):
    """When a run warns of its own numbers, and when it stops; a level of 0 is off (docs/reliability.md)."""

    group: ClassVar[str] = "guards"

    window: int = field(5, at_least(1), "steps whose means the guards below look at")
    on_collapse: str = field(
        "stop",
        one_of("stop", "anneal"),
        "at a stop level: stop the run, or halve the teacher's weight at every step beyond it",
    )
    entropy_warn: float = field(
        0.05, at_least(0, off=True), "nats a token; warns when the policy's mean entropy is below this"
    )
    entropy_stop: float = field(0.005, at_least(0, off=True), "nats a token; acts as `on_collapse` says below this")
    length_warn: float = field(
        0.25, at_least(0, off=True), "share of the mean length at step 1; warns when responses are shorter"
    )
    length_stop: float = field(
        0.05, at_least(0, off=True), "share of the mean length at step 1; acts as `on_collapse` says below this"
    )
    repetition_warn: float = field(
        0.5, at_least(0, off=True), "share of 4-grams that a response already holds; warns above this"
    )
    repetition_stop: float = field(
        0.9, at_least(0, off=True), "share of 4-grams; acts as `on_collapse` says above this"
    )
    repel_kl_warn: float = field(
        5.0, at_least(0, off=True), "nats, mean KL(student || teacher) of repelled tokens; warns above this"
    )
    repel_kl_stop: float = field(0.0, at_least(0, off=True), "nats; acts as `on_collapse` says above this")
    arm_warn: float = field(
        0.01, at_least(0, off=True), "the weaker arm's share of the router's mass; warns below this"
    )
    arm_stop: float = field(0.0, at_least(0, off=True), "the weaker arm's share; acts as `on_collapse` says below this")
    equal_rewards_warn: float = field(
        10.0, at_least(0, off=True), "steps in a row in which the rewards of every group are equal; warns above this"
    )
    equal_rewards_stop: float = field(0.0, at_least(0, off=True), "steps in a row; stops above this")
    logp_gap_mean_warn: float = field(
        0.01, at_least(0, "nats", off=True), "mean |sampler - score pass| over the window; warns above this"
    )
    logp_gap_mean_max: float = field(0.02, above(0, "nats"), "the same of one step; stops before its update above this")
    logp_gap_p999_max: float = field(
        0.5, above(0, "nats"), "99.9th percentile of one step; stops before its update above this"
    )
    skipped_steps_stop: int = field(
        3, at_least(1), "steps in a row with an update that was not finite and therefore skipped; stops at this"
    )
    empty_steps_stop: int = field(10, at_least(1), "steps in a row with nothing in the loss; stops at this")


@dataclasses.dataclass(frozen=True)
class RunGroup(Fields):
    """How long, how often, from which seed."""

    group: ClassVar[str] = "run"

    steps: int = field(200, at_least(1), "rollout batches")
    seed: int = field(0, span(0, 2**31 - 1), "order of the data, sampling, random weights")
    checkpoint_every: int = field(10, at_least(1), "steps")
    keep_checkpoints: int = field(
        2, at_least(1), "the newest N stay, and the best one of those evaluated (run.eval_every)"
    )
    keep_every: int = field(
        0, at_least(0, off=True), "steps, a multiple of checkpoint_every: of every so many one stays for good"
    )
    grace_s: float = field(25.0, above(0, "seconds"), "after a SIGTERM, when a run ends wherever it is")
    eval_every: int = field(0, at_least(0), "steps between held-out evaluations; 0: only before and after")
    eval_problems: int = field(
        128, at_least(0), "of each benchmark, or held out and at most data.heldout; 0: all of them"
    )
    eval_samples: int = field(16, span(1, _MAX_SAMPLES), "responses to each of them (K of Avg@K and Pass@k)")
    eval_temperature: float = field(1.0, at_least(0), "0: arg-max")
    eval_top_k: int = field(0, at_least(0), "tokens; 0: all")
    eval_top_p: float = field(
        0.9, Range(lambda value: 0 < value <= 1, "in (0, 1]"), "share of the probability that is sampled from"
    )
    logged_rollouts: int = field(4, at_least(0), "rollouts a step written to samples.jsonl, token by token")
    profile_step: int = field(0, at_least(0, off=True), "the step whose jax.profiler trace is written to profile/")


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run.

    Attributes:
        objective: the shared fields.
        hp: the chosen method's own fields, which stand in the group `objective` outside of this class.
    """

    model: ModelGroup
    data: DataGroup
    rollout: RolloutGroup
    objective: ObjectiveGroup
    hp: Any
    optim: OptimGroup
    mesh: MeshConfig
    guards: GuardsGroup
    run: RunGroup

    @property
    def method(self) -> Method:
        """The chosen method."""
        return METHODS[self.objective.method]

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain groups, as in config.json."""
        groups = dataclasses.asdict(self)
        groups["objective"] |= groups.pop("hp")
        return groups

    def __post_init__(self):
        data, rollout, run = self.data, self.rollout, self.run
        parts = self.optim.minibatches * self.optim.microbatches
        require("data.sources", data.sources, len(data.sources) > 0, "at least one source")
        require(
            "data.heldout", data.heldout, data.benchmarks or data.heldout >= 1, "at least 1 problem, or data.benchmarks"
        )
        divides = rollout.problems % parts == 0
        require(
            "rollout.problems",
            rollout.problems,
            divides,
            f"a multiple of optim.minibatches * optim.microbatches = {parts}",
        )
        limit = rollout.max_new_tokens
        overlong = self.objective.overlong_tokens
        require("objective.overlong_tokens", overlong, overlong <= limit, f"at most rollout.max_new_tokens = {limit}")
        there = bool(data.benchmarks) or run.eval_problems <= data.heldout
        require("run.eval_problems", run.eval_problems, there, f"at most data.heldout = {data.heldout}")
        multiple = run.keep_every % run.checkpoint_every == 0
        require("run.keep_every", run.keep_every, multiple, "0 or a multiple of run.checkpoint_every")

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


GROUPS: dict[str, type[Fields]] = {name: kind for name, kind in get_type_hints(Config).items() if name != "hp"}


def declared(method: str) -> dict[str, dict[str, dataclasses.Field]]:
    """Group → field → declaration, for a run of this method; its own fields stand in `objective` after the shared."""
    groups = {name: {each.name: each for each in dataclasses.fields(kind)} for name, kind in GROUPS.items()}
    groups["objective"] |= {each.name: each for each in dataclasses.fields(METHODS[method].fields)}
    return groups


def defaults(method: str = "dasd") -> dict[str, dict[str, Any]]:
    """Group → field → default, for a run of this method: those that it changes among them."""
    groups = {
        group: {name: each.default for name, each in fields.items()} for group, fields in declared(method).items()
    }
    groups["objective"]["method"] = method
    for name, value in METHODS[method].shared.items():
        group, field_name = name.split(".")
        groups[group][field_name] = value
    return groups


def from_dict(raw: dict[str, dict[str, Any]]) -> Config:
    """The frozen configuration of a plain dictionary of groups.

    Raises:
        UserError: a group or field that is unknown or missing, a value of the wrong type or out of its range.
    """
    _same_names("config", raw, GROUPS)
    method = raw["objective"].get("method", "dasd")
    require("objective.method", method, method in METHODS, "one of " + ", ".join(METHODS))
    values = {}
    for group, fields in declared(method).items():
        _same_names(group, raw[group], fields)
        values[group] = _typed(group, raw[group], fields)
    objective = values["objective"]
    hp = METHODS[method].fields
    own = {each.name: objective.pop(each.name) for each in dataclasses.fields(hp)}
    return Config(hp=hp(**own), **{name: kind(**values[name]) for name, kind in GROUPS.items()})


def _typed(group: str, raw: dict[str, Any], fields: dict[str, dataclasses.Field]) -> dict[str, Any]:
    values = {}
    for name, value in raw.items():
        expected = fields[name].type
        if expected is float and type(value) is int:
            value = float(value)
        if expected == tuple[str, ...]:
            value = tuple(value) if isinstance(value, list | tuple) else value
            fits = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
        else:
            fits = type(value) is expected
        if not fits:
            kind = getattr(expected, "__name__", "") if expected in (int, float, bool, str) else "tuple of str"
            raise UserError(f"{group}.{name}: {value!r} is of type {type(value).__name__}: expected {kind}")
        _require_plain(f"{group}.{name}", value)
        values[name] = value
    return values


def _require_plain(name: str, value: Any) -> None:
    """What holds of every field: numbers that a device can hold, and text that a terminal and a file can."""
    if isinstance(value, float):
        require(name, value, math.isfinite(value), "a finite number")
    if isinstance(value, int):
        require(name, value, abs(value) < 2**31, "a number of 32 bits")
    for text in value if isinstance(value, tuple) else [value]:
        if isinstance(text, str):
            require(name, value, text.isprintable(), "text without control characters")


def _same_names(where: str, raw: dict, expected: dict) -> None:
    for name in raw:
        if name not in expected:
            raise UserError(f"{where}: no field {name!r}: expected {', '.join(expected)}")
    for name in expected:
        if name not in raw:
            raise UserError(f"{where}.{name}: missing")
