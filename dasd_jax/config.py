"""A run's configuration: eight groups of fields, each field declared once with default, range and meaning.

Everything else derives from these lines: the ConfigDict that config files and command lines change, its checks,
--help-config and docs/fields.md. A method's own fields are declared in its file (dasd_jax/methods) and stand in the
group `objective` beside the shared ones; `Config.hp` holds them.
"""

import dataclasses
import datetime
from typing import Any, ClassVar, get_type_hints

from dasd_jax.errors import UserError
from dasd_jax.field_names import MOVED, nearest
from dasd_jax.fields import (
    MOMENT,
    PROJECT,
    SHA256,
    TRUE_OR_FALSE,
    Fields,
    Range,
    above,
    anything,
    at_least,
    exactly,
    field,
    inside,
    one_of,
    require,
    span,
)
from dasd_jax.guard_fields import GuardsGroup
from dasd_jax.mesh import MeshConfig
from dasd_jax.methods import METHODS
from dasd_jax.objective.contract import Method
from dasd_jax.text import wordings
from dasd_jax.text.prompts import PRIVILEGED

Raw = dict[str, dict[str, Any]]  # group → field → value

_MAX_SAMPLES = 2**16  # of one problem
_JUDGES = anything("a name, FILE.py:FUNCTION, MODULE:FUNCTION or nothing")
_SPECS = anything("gym:TASK?field=value, jsonl:FILE, parquet:FILE or tfds:DIR")
_ONCE = Range(lambda specs: len(set(specs)) == len(specs), "each benchmark once")
_DTYPES = ("float32", "bfloat16")
_REMATS = ("auto", "none", "dots", "full")
_ROUNDED = ("compute", "int8")
_KERNELS = ("auto", "xla", "splash", "cudnn")
_RATIO = Range(lambda value: value == 0 or value > 1, "0 (off) or more than 1")
_SHARE = Range(lambda value: 0 < value <= 1, "a number in (0, 1]")
_DECAY = Range(lambda value: 0 <= value < 1, "0 or more, less than 1")


@dataclasses.dataclass(frozen=True)
class ModelGroup(Fields):
    """Which model, and how its activations are kept."""

    group: ClassVar[str] = "model"

    weights: str = field("", anything("a path"), ".gguf file, Hugging Face folder, checkpoint, run, or random")
    sha256: str = field("", SHA256, "expected checksum of a .gguf file; empty: not checked")
    preset: str = field("", anything("a name"), "architecture of random weights, as qwen3_tiny; empty: from `weights`")
    tokenizer: str = field("", anything("a path, or byte"), ".gguf, .model or .json file; empty: from `weights`")
    compute_dtype: str = field("bfloat16", one_of(*_DTYPES), "of matrix products and KV cache; parameters stay float32")
    attention: str = field("auto", one_of(*_KERNELS), "auto: in bfloat16 splash on TPU and cudnn on GPU, otherwise xla")
    remat: str = field(
        "auto", one_of(*_REMATS), "computed again for gradients; auto: dots (not products) on CPU, else full"
    )


@dataclasses.dataclass(frozen=True)
class DataGroup(Fields):
    """Which problems, and what the prompts around them say."""

    group: ClassVar[str] = "data"

    sources: tuple[str, ...] = field((), _SPECS, "problems to train on (docs/data.md); duplicates are left out")
    benchmarks: tuple[str, ...] = field((), _ONCE, "specs as in sources: evaluated, and never trained on")
    heldout: int = field(128, at_least(0), "problems never trained on; evaluated unless there are benchmarks")
    shots: int = field(0, at_least(0), "worked examples before the problem: training problems with solution and answer")
    instruction: str = field("boxed", wordings.allowed("instruction"), "answer-format instruction (docs/data.md)")
    system: str = field("", wordings.allowed("system"), "the system turn; empty: the chat template's own")
    privileged: str = field("answer", one_of(*PRIVILEGED), "what a teacher is shown; sibling: a verified rollout")
    privileged_wording: str = field(wordings.DEFAULT, wordings.allowed("privileged_wording"), "how a context is shown")
    transition: str = field("default", wordings.allowed("transition"), "sentence after the context; default: its own")
    skills: str = field("", anything("a .jsonl file or nothing"), "bank of skills and mistakes that a teacher is shown")
    verifier: str = field("", _JUDGES, "what judges responses; empty: math, or a task's own scorer")
    thinking: str = field("default", one_of("default", "on", "off"), "enable_thinking for chat templates that use it")
    now: str = field("", MOMENT, "date for chat templates that print one; empty: first start of the run")

    def __post_init__(self):
        super().__post_init__()
        for name in wordings.FIELDS:
            object.__setattr__(self, name, wordings.pinned(name, getattr(self, name)))
        wordings.read(self.instruction, self.system, self.privileged_wording, self.transition)

    @property
    def enable_thinking(self) -> bool | None:
        """What chat templates are told; None leaves it to the template."""
        return {"default": None, "on": True, "off": False}[self.thinking]

    @property
    def moment(self) -> datetime.datetime:
        """What `now` stands for: the present where it is empty."""
        return datetime.datetime.fromisoformat(self.now) if self.now else datetime.datetime.now()


@dataclasses.dataclass(frozen=True)
class RolloutGroup(Fields):
    """How much is sampled, how, and how it is verified."""

    group: ClassVar[str] = "rollout"

    problems: int = field(128, at_least(1), "problems per rollout batch")
    rollouts: int = field(8, span(2, _MAX_SAMPLES), "responses to each problem; an advantage needs a group")
    prompt_length: int = field(1024, at_least(1, "tokens"), "problems with a longer student's prompt are left out")
    teacher_prompt_length: int = field(1536, at_least(1, "tokens"), "problems with a longer teacher's are left out")
    max_new_tokens: int = field(8192, at_least(1, "tokens"), "maximum tokens per response")
    temperature: float = field(1.0, above(0), "statistics are of log_softmax(logits / temperature)")
    top_k: int = field(0, exactly(0, "in training"), "a truncated sample has no matching score pass")
    top_p: float = field(1.0, exactly(1.0, "in training"), "as for top_k")
    resample: int = field(0, at_least(0, "batches", off=True), "extra batches per step to replace equal-reward groups")
    slots: int = field(0, at_least(0), "rows that a device decodes at a time; 0: as many as fit")
    weights: str = field("compute", one_of(*_ROUNDED), "when sampling: model.compute_dtype or int8 (docs/numerics.md)")
    cache: str = field("compute", one_of(*_ROUNDED), "KV cache when sampling: model.compute_dtype or int8")
    verifier_workers: int = field(8, span(1, 1024, "processes"), "processes that score answers")
    verifier_deadline_s: float = field(5.0, span(0.05, 3600, "seconds"), "CPU time per answer; above it, reward 0")
    verifier_memory_mb: int = field(2048, span(512, 2**20, "MiB"), "address space of a verifier process")

    @property
    def in_int8(self) -> bool:
        """Whether responses are sampled in a coarser arithmetic than they are scored in."""
        return "int8" in (self.weights, self.cache)

    @property
    def gap_levels(self) -> str:
        """How the levels of the gap between sampler and score pass begin, in the group `guards`."""
        return "int8_gap" if self.in_int8 else "logp_gap"


@dataclasses.dataclass(frozen=True)
class ObjectiveGroup(Fields):
    """The method, the fields that all methods share, and the method's own fields."""

    group: ClassVar[str] = "objective"

    method: str = field("dasd", one_of(*METHODS), "how a token's credit is computed; docs/methods.md")
    clip_low: float = field(0.2, inside(0, 1), "PPO clips the policy ratio at 1 - clip_low")
    clip_high: float = field(0.2, above(0), "PPO clips the policy ratio at 1 + clip_high")
    clip_dual: float = field(0.0, _RATIO, "upper bound of the ratio of tokens with a negative advantage (dual clip)")
    tis: float = field(0.0, _RATIO, "cap of a token's weight p(score pass) / p(sampler); 2 for int8 rollouts")
    row_ratio_max: float = field(0.0, _RATIO, "rows with a geometric mean of it above this or below 1/this drop out")
    truncated: str = field(
        "zero", one_of("zero", "score", "drop_from_loss"), "unfinished responses: 0, as scored, or out of loss"
    )
    overlong_tokens: int = field(0, at_least(0, "tokens", off=True), "before the limit, over which up to ½ is deducted")
    token_chunk: int = field(1024, at_least(1, "tokens"), "tokens per device whose logits are in memory at once")


@dataclasses.dataclass(frozen=True)
class OptimGroup(Fields):
    """AdamW, its schedule, and how a rollout batch is cut."""

    group: ClassVar[str] = "optim"

    learning_rate: float = field(3e-6, above(0), "peak of the schedule")
    schedule: str = field("cosine", one_of("constant", "cosine"), "cosine falls to 0 at the end of the run")
    warmup_steps: int = field(0, at_least(0), "optimiser steps, linear from learning_rate / warmup_steps")
    weight_decay: float = field(0.0, at_least(0), "decoupled from the gradient")
    b1: float = field(0.9, _DECAY, "decay of Adam's first moment")
    b2: float = field(0.95, _DECAY, "decay of Adam's second moment")
    eps: float = field(1e-8, above(0), "added to the root of Adam's second moment")
    grad_clip: float = field(1.0, above(0), "global norm to which a larger gradient is scaled")
    moment_dtype: str = field("float32", one_of(*_DTYPES), "of Adam's first moment")
    minibatches: int = field(4, at_least(1), "optimiser steps per rollout batch; divides rollout.problems")
    microbatches: int = field(1, at_least(1), "parts of a minibatch, or of its groups, whose gradients are summed")


@dataclasses.dataclass(frozen=True)
class RunGroup(Fields):
    """How long, how often, from which seed."""

    group: ClassVar[str] = "run"

    steps: int = field(200, at_least(1), "rollout batches")
    seed: int = field(0, span(0, 2**31 - 1), "order of the data, sampling, random weights")
    checkpoint_every: int = field(10, at_least(1, "steps"), "steps from one checkpoint to the next")
    checkpoint_minutes: float = field(30.0, at_least(0, "minutes", off=True), "also after a step, if the last is older")
    keep_checkpoints: int = field(2, at_least(1), "the newest N stay, and the best of those evaluated (eval_every)")
    keep_every: int = field(0, at_least(0, "steps", off=True), "checkpoints of these steps stay for good")
    keep_optimizer: bool = field(True, TRUE_OR_FALSE, "false: removed at the end, after which no step can follow")
    grace_s: float = field(25.0, above(0, "seconds"), "after SIGTERM or Ctrl-C, when a run ends wherever it is")
    eval_every: int = field(0, at_least(0, "steps"), "between held-out evaluations; 0: only before and after the run")
    rescore_every: int = field(
        10, at_least(1, "steps"), "between score passes of the student, if in float32; from step 1 on"
    )
    noise_every: int = field(50, at_least(1, "steps"), "between measurements of the rounding in gaps, from step 1 on")
    eval_problems: int = field(128, at_least(0), "of each benchmark, or held out and at most data.heldout; 0: all")
    eval_samples: int = field(16, span(1, _MAX_SAMPLES), "responses to each of them (K of Avg@K and Pass@k)")
    eval_temperature: float = field(1.0, at_least(0), "0: the most likely token")
    eval_top_k: int = field(0, at_least(0), "most likely tokens that are sampled from; 0: all")
    eval_top_p: float = field(0.9, _SHARE, "top-p: probability mass of the tokens that are sampled from")
    logged_rollouts: int = field(4, at_least(0), "rollouts a step written to samples.jsonl, token by token")
    samples_mb: float = field(256.0, at_least(0, "MiB", off=True), "size of samples.jsonl, shared evenly by all steps")
    profile_step: int = field(0, at_least(0, off=True), "the step whose jax.profiler trace is written to profile/")
    tracker: str = field("", one_of("", "wandb", "trackio"), "where the log is sent as well; docs/trackers.md")
    project: str = field("dasd_jax", PROJECT, "the tracker's project")


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

    @property
    def rollouts(self) -> int:
        """Responses to a problem in a batch, G: 1 where they are references."""
        return self.rollout.rollouts if self.method.rollouts else 1

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain groups, as in config.json."""
        groups = dataclasses.asdict(self)
        groups["objective"] |= groups.pop("hp")
        return groups

    def __post_init__(self):
        data, rollout, optim, run = self.data, self.rollout, self.optim, self.run
        whole, parts = rollout.problems % optim.minibatches == 0, optim.microbatches
        responses = rollout.problems * self.rollouts // optim.minibatches
        overlong, limit = self.objective.overlong_tokens, rollout.max_new_tokens
        views = self.method.views(self.hp).values()
        siblings = max((view.count for view in views if "sibling" in view.context), default=1)
        for name, value, fits, expected in (
            ("data.sources", data.sources, data.sources, "at least one source"),
            ("data.heldout", data.heldout, data.heldout or data.benchmarks, "at least 1 problem, or data.benchmarks"),
            ("rollout.problems", rollout.problems, whole, f"a multiple of optim.minibatches = {optim.minibatches}"),
            ("optim.microbatches", parts, responses % parts == 0, f"a divisor of a minibatch's {responses} responses"),
            ("objective.overlong_tokens", overlong, overlong <= limit, f"at most rollout.max_new_tokens = {limit}"),
            (
                "rollout.rollouts",
                rollout.rollouts,
                rollout.rollouts > siblings,
                f"at least {siblings + 1}: a teacher of method {self.objective.method} is shown {siblings} siblings",
            ),
            (
                "run.eval_problems",
                run.eval_problems,
                data.benchmarks or run.eval_problems <= data.heldout,
                f"at most data.heldout = {data.heldout}",
            ),
            (
                "run.keep_every",
                run.keep_every,
                run.keep_every % run.checkpoint_every == 0,
                "0 or a multiple of run.checkpoint_every",
            ),
        ):
            require(name, value, bool(fits), expected)

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
SHARED = frozenset(each.name for each in dataclasses.fields(ObjectiveGroup))


def declared(method: str) -> dict[str, dict[str, dataclasses.Field]]:
    """Group → field → declaration, for a run of this method; its own fields stand in `objective` after the shared."""
    groups = {name: {each.name: each for each in dataclasses.fields(kind)} for name, kind in GROUPS.items()}
    groups["objective"] |= {each.name: each for each in dataclasses.fields(METHODS[method].fields)}
    return groups


def default_method() -> str:
    """The method where none is chosen."""
    return ObjectiveGroup().method


def names(method: str) -> list[str]:
    """Every field of a run of this method, as GROUP.FIELD."""
    return [f"{group}.{name}" for group, fields in declared(method).items() for name in fields]


def defaults(method: str) -> Raw:
    """Group → field → default, for a run of this method: those that it changes among them."""
    groups = {
        group: {name: each.default for name, each in fields.items()} for group, fields in declared(method).items()
    }
    groups["objective"]["method"] = method
    for name, value in METHODS[method].shared.items():
        group, field_name = name.split(".")
        groups[group][field_name] = value
    return groups


def unknown(name: str, method: str) -> str:
    """Why a run of this method has no field GROUP.FIELD: what the line that refuses it says after the name."""
    if name in MOVED:
        return f"moved to {MOVED[name]}"
    if owners := [other for other in METHODS if name in names(other) and other != method]:
        return f"method {method} has no such field; it belongs to {', '.join(owners)}"
    if near := nearest(name, names(method)):
        return f"no such field; did you mean {near}?"
    if name.partition(".")[0] in GROUPS:
        return f"no such field; --help-config={name.partition('.')[0]} lists those of the group"
    return f"no such field; expected GROUP.FIELD with a group of {', '.join(GROUPS)}"


# What decides results and is no field, in config.json beside the groups: the sha256 of each file of the user's, and of
# the problems and prompts that were made of them; and the checkpoint, where model.weights names another run.
FILES, PROBLEMS, START = "files", "problems", "start"
BESIDE = frozenset((FILES, PROBLEMS, START))


def older(raw: Raw) -> bool:
    """Whether a config.json was written by a version with other fields."""
    if raw.keys() - BESIDE != GROUPS.keys() or not all(isinstance(fields, dict) for fields in raw.values()):
        return True
    method = next((name for name in METHODS if name == raw["objective"].get("method")), None)
    return method is None or any(raw[group].keys() != fields.keys() for group, fields in declared(method).items())


def from_dict(raw: Raw) -> Config:
    """The frozen configuration of a plain dictionary of groups, such as config.json, whose other entries are ignored.

    Raises:
        UserError: a group or field that is unknown or missing, a value of the wrong type or out of its range.
    """
    raw = {group: fields for group, fields in raw.items() if group not in BESIDE}
    for group in [*raw, *GROUPS]:
        require_group(group, raw.get(group))
    method = raw["objective"].get("method", default_method())
    require_method(method)
    groups = declared(method)
    for group, fields in groups.items():
        for name in raw[group]:
            if name not in fields:
                raise UserError(f"{group}.{name}: {unknown(f'{group}.{name}', method)}")
        for name in fields:
            if name not in raw[group]:
                raise UserError(f"{group}.{name}: missing")
    own = {name: value for name, value in raw["objective"].items() if name not in SHARED}
    shared = {**raw, "objective": {name: raw["objective"][name] for name in raw["objective"] if name in SHARED}}
    return Config(hp=METHODS[method].fields(**own), **{name: kind(**shared[name]) for name, kind in GROUPS.items()})


def require_group(group: str, fields: Any) -> None:
    """Refuses what is no group of a configuration, or no dictionary of fields.

    Raises:
        UserError: it is not.
    """
    if group not in GROUPS:
        raise UserError(f"{group}: no such group: expected one of {', '.join(GROUPS)}")
    if not isinstance(fields, dict):
        raise UserError(f"{group}: missing, or no group of fields")


def require_method(method: Any) -> None:
    """Refuses what is not the name of a method.

    Raises:
        UserError: it is not.
    """
    require("objective.method", method, isinstance(method, str) and method in METHODS, "one of " + ", ".join(METHODS))
