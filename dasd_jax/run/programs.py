"""Every jitted program of a run, lowered from shapes and shardings: nothing is allocated, no weights are read."""

import dataclasses
from collections.abc import Callable, Iterator, Set
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dasd_jax.batch import Outcomes, Params, PromptBatch, RolloutBatch, TeacherBatch
from dasd_jax.config import Config
from dasd_jax.cost.work import Batch, cache_bytes, forward_flops
from dasd_jax.data import contexts
from dasd_jax.learner import checkpoint, teachers
from dasd_jax.learner.inspection import inspect
from dasd_jax.learner.optim import make_optimizer
from dasd_jax.learner.probe import ANSWER_TOKENS, answer_logp
from dasd_jax.learner.step import rounding_noise, score_step, train_step
from dasd_jax.learner.step_config import StepConfig
from dasd_jax.mesh import ROLLOUT, TRAIN, named, on_mesh, row_shards
from dasd_jax.model import param_table
from dasd_jax.model.config import ModelConfig
from dasd_jax.rollout.sampler import Sampling, relayout, rollout
from dasd_jax.rollout.slots import bytes_a_device, rollout_bytes
from dasd_jax.run import evaluation, setup
from dasd_jax.text.tokenizer_files import load_tokenizer


@dataclasses.dataclass(frozen=True)
class Program:
    """One of them.

    Attributes:
        lower: traces and lowers it, under the mesh.
        beside: bytes a device that stay taken while it runs and are none of its arguments.
        least: bytes a device that it takes at least, counted without compiling it: what is resident, and of decoding
            the weights and caches. Activations are not among them.
        flops: of the model, on all devices, every response at its full length.
        traffic: bytes a device that it moves in its memory at least.
        steps: turns of its loops of unknown length: of decoding, every response at its full length.
        slots: rows that a device decodes at a time; 0 where nothing is decoded.
        parts: passes over the layers' weights that follow one another: microbatches of all minibatches.
        fsdp_minimum: bytes a device that such a pass has to send for parameters and gradients split over "embed"; 0
            where none is counted.
    """

    name: str
    lower: Callable[[], jax.stages.Lowered]
    beside: int
    least: int
    flops: int
    traffic: int
    steps: int = 1
    slots: int = 0
    parts: int = 1
    fsdp_minimum: float = 0.0


def programs(config: Config, model: ModelConfig, mesh: Mesh, memory: int | None) -> Iterator[Program]:
    """What a run compiles, in the order in which it first needs it.

    Args:
        model: from `models.configured`.
        memory: bytes of a device, for `rollout.slots` where it is not set; None: it sets no limit.

    Raises:
        UserError: a batch or a model that the mesh cannot split, or no slot that fits.
    """
    setup.check_rows(config, mesh)
    group, parts = config.rollout, config.optim.minibatches * config.optim.microbatches
    optimizer, method = make_optimizer(config.optim, config.run.steps * config.optim.minibatches), config.method
    steps = setup.step_config(config, model, mesh)
    params = param_table.abstract(model, mesh)
    state = checkpoint.abstract_state(params, mesh, optimizer, steps.views)
    resident = bytes_a_device(state)
    others = resident - bytes_a_device(params)
    decoding = param_table.abstract(model, mesh, ROLLOUT, model.compute_dtype)
    gathered = bytes_a_device(decoding)
    narrow = bytes_a_device([decoding[name] for name in ("embed", "unembed") if name in decoding])
    # The embedding is gathered in float32, an unembedding of its own in the compute dtype.
    tables = bytes_a_device([param_table.abstract(model, mesh, ROLLOUT)["embed"], decoding.get("unembed", [])])

    def fsdp_minimum(layers: int, embeddings: int) -> float:
        """Bytes that a device sends when it gathers or scatters the parts of the parameters so often."""
        shards = mesh.shape[TRAIN["embed"]]
        return (layers * (gathered - narrow) + embeddings * tables) * (shards - 1) / shards

    weights = group.weights if method.rollouts else "compute"
    laid_out = bytes_a_device(param_table.decoding(model, mesh, weights))
    yield Program(
        name="re-layout",
        lower=lambda: relayout.lower(model, params, weights),
        beside=others,
        least=resident + laid_out,
        flops=0,
        traffic=bytes_a_device(params) + laid_out,
    )

    answered = evaluation.problems_at_a_time(group.problems * group.rollouts, config.run.eval_samples, mesh)
    tokenizer = load_tokenizer("byte")  # which ids end a response is no matter of shapes
    samplings = [("evaluation", "eval", setup.eval_sampling(config, tokenizer), answered)]
    if method.rollouts:
        samplings.insert(0, ("rollout", "train", setup.training_sampling(config, tokenizer), group.problems))
    for name, purpose, sampling, problems in samplings:
        sampling = setup.with_slots(config, sampling, model, mesh, problems=problems, resident=resident, memory=memory)
        whole = _placed(mesh, jax.eval_shape(partial(relayout, model, weights=sampling.weights), params))
        read = bytes_a_device(param_table.decoding(model, mesh, sampling.weights))
        program = _rollout(config, model, mesh, sampling, purpose, problems, whole, read)
        yield dataclasses.replace(program, name=name, beside=resident, least=program.least + resident)

    prompts, shown, rollouts, outcomes = _scored(config, mesh, steps)
    batch = Batch(group.problems, group.prompt_length, steps.shape.rollouts, group.max_new_tokens)
    flops = forward_flops(model, batch)
    teacher_flops = forward_flops(model, dataclasses.replace(batch, prompt=group.teacher_prompt_length))
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=named(mesh))
    knobs = dict.fromkeys(["step", "seed", "teacher_weight", "noise", *method.memory([], config.hp)], scalar)
    chosen = jax.ShapeDtypeStruct((_logged_rows(config, mesh, steps),), jnp.int32, sharding=named(mesh))
    table = jax.ShapeDtypeStruct((model.vocab_size,), jnp.bool_, sharding=named(mesh))
    of_tokens = dict.fromkeys(method.tables, table)
    arguments = (state.teachers, prompts, shown, rollouts, outcomes, knobs, chosen, of_tokens)
    if method.rollouts:
        read = sum(steps.views[name].count for name in steps.scored)
        yield Program(
            name="score",
            lower=lambda: score_step.lower(steps, params, *arguments),
            beside=others - bytes_a_device(state.teachers),
            least=resident,
            flops=flops + read * teacher_flops,
            traffic=parts * (1 + read) * 2 * gathered,
            parts=parts,
            fsdp_minimum=fsdp_minimum(1 + read, 1),
        )
    scored = _placed(mesh, jax.eval_shape(partial(score_step, steps), params, *arguments))
    experience, logged, _, states = scored
    if steps.scored:
        yield Program(
            name="noise",
            lower=lambda: rounding_noise.lower(steps, params, prompts, rollouts, experience.old_logp),
            beside=others + bytes_a_device((experience.replace(old_logp=None), logged, states)),
            least=resident,
            flops=flops,
            traffic=parts * 2 * gathered,
            parts=parts,
            fsdp_minimum=fsdp_minimum(1, 1),
        )
    if method.probe:
        answers = dataclasses.replace(batch, prompt=group.teacher_prompt_length, rollouts=1, response=ANSWER_TOKENS)
        ids = _rows(mesh, (group.problems, ANSWER_TOKENS), jnp.int32)
        kept = _rows(mesh, ids.shape, jnp.bool_)
        yield Program(
            name="probe",
            lower=lambda: answer_logp.lower(steps, params, state.teachers, shown[method.probe], ids, kept),
            beside=others - bytes_a_device(state.teachers),
            least=resident,
            flops=forward_flops(model, answers),
            traffic=parts * 2 * gathered,
            parts=parts,
            fsdp_minimum=fsdp_minimum(1, 1),
        )
    if chosen.size:
        unread = steps.views.keys() - set(steps.scored)
        one = dataclasses.replace(batch, problems=chosen.size, prompt=group.teacher_prompt_length, rollouts=1)
        yield Program(
            name="samples",
            lower=lambda: inspect.lower(
                steps, params, state.teachers, *_inspected(config, mesh, unread, chosen.size), states, logged, chosen
            ),
            beside=others - bytes_a_device(state.teachers) + bytes_a_device(experience),
            least=resident,
            flops=len(unread) * forward_flops(model, one),
            traffic=len(unread) * 2 * gathered + narrow,
            fsdp_minimum=fsdp_minimum(len(unread), 1),
        )
    divergence = method.divergence(config.hp)
    read = len(divergence.views) if divergence else 0
    # Layers are gathered forward and again for the backward pass, reduced and scattered once; a divergence's teachers
    # gather them too. What stands outside of the layers is gathered once and its gradient scattered once.
    passes = 3 + read
    rows = batch.problems * batch.rollouts // row_shards(mesh)
    stored = jnp.dtype(model.compute_dtype if model.remat == "full" else jnp.float32)
    residuals = model.num_layers * rows * batch.response * model.width * stored.itemsize
    yield Program(
        name="update",
        lower=lambda: train_step.lower(steps, optimizer, state, experience),
        beside=0,
        least=resident,
        flops=3 * flops + read * teacher_flops,
        traffic=parts * passes * 2 * gathered + 2 * residuals + config.optim.minibatches * 2 * resident,
        parts=parts,
        fsdp_minimum=fsdp_minimum(passes, 2),
    )


def teacher_bytes(config: Config, model: ModelConfig, mesh: Mesh) -> dict[str, int]:
    """Bytes a device of each copy of the weights that a teacher of the method reads, by policy."""
    views = config.method.views(config.hp)
    copies = jax.eval_shape(partial(teachers.start, views=views), param_table.abstract(model, mesh))
    return {policy: bytes_a_device(_placed(mesh, copy)) for policy, copy in copies.items()}


def _rollout(
    config: Config,
    model: ModelConfig,
    mesh: Mesh,
    sampling: Sampling,
    purpose: str,
    problems: int,
    params: Params,
    weights: int,
) -> Program:
    prompts, number = _prompts(config, mesh, problems), jax.ShapeDtypeStruct((), jnp.int32, sharding=named(mesh))
    problems_a_shard = -(-problems // row_shards(mesh))
    rows = problems * sampling.rollouts // row_shards(mesh)
    slots = sampling.slots_of(rows)
    needs = rollout_bytes(model, sampling, mesh, problems_a_shard, config.rollout.prompt_length)
    steps = -(-rows // slots) * sampling.max_new_tokens
    batch = Batch(problems, config.rollout.prompt_length, sampling.rollouts, sampling.max_new_tokens)
    token = cache_bytes(model, sampling.cache) // mesh.shape[ROLLOUT["heads"]]
    seen = rows * batch.response * (batch.prompt + batch.response // 2)
    return Program(
        name="",
        lower=lambda: rollout.lower(model, sampling, params, prompts, number, purpose, number),
        beside=0,
        least=needs.decoding(problems_a_shard, rows, slots),
        flops=forward_flops(model, batch),
        traffic=steps * weights + seen * token,
        steps=steps,
        slots=slots,
    )


def _rows(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=named(mesh, "rows", *(None,) * (len(shape) - 1)))


def _placed(mesh: Mesh, tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_mesh(mesh, x)), tree)


def _prompts(config: Config, mesh: Mesh, problems: int) -> PromptBatch:
    shape = (problems, config.rollout.prompt_length)
    return PromptBatch(
        _rows(mesh, shape, jnp.int32), _rows(mesh, shape, jnp.bool_), _rows(mesh, (problems,), jnp.int32)
    )


def _logged_rows(config: Config, mesh: Mesh, steps: StepConfig) -> int:
    """Rollouts that a step looks at more closely: those that are logged, filled up to the shards of the rows."""
    if not config.method.rollouts:
        return 0
    shards, rows = row_shards(mesh), config.rollout.problems * steps.shape.rollouts
    return -(-min(config.run.logged_rollouts, rows) // shards) * shards


def _inspected(config: Config, mesh: Mesh, unread: Set[str], rows: int) -> tuple:
    """What `inspect` is given of these rows: prompts of views that the score pass does not read, responses, masks."""
    group = config.rollout
    prompt, response = (rows, group.teacher_prompt_length), (rows, group.max_new_tokens)

    def pair(shape: tuple[int, int]) -> tuple:
        return _rows(mesh, shape, jnp.int32), _rows(mesh, shape, jnp.bool_)

    return {name: pair(prompt) for name in sorted(unread)}, *pair(response)


def _scored(config: Config, mesh: Mesh, steps: StepConfig) -> tuple:
    """The batches that `score_step` is given: prompts, teachers' prompts by view, rollouts, their outcomes."""
    group, rows = config.rollout, config.rollout.problems * steps.shape.rollouts
    shown = {}
    for name, view in steps.views.items():
        kinds = contexts.kinds(config.data.sources, config.data.privileged, view.context)
        prompts = contexts.batch_shape(kinds, group.problems, steps.shape.rollouts, view.count)
        ids = (*prompts, group.teacher_prompt_length)
        shown[name] = TeacherBatch(
            teacher_prompt=_rows(mesh, ids, jnp.int32),
            teacher_prompt_mask=_rows(mesh, ids, jnp.bool_),
            shown=_rows(mesh, prompts, jnp.bool_),
            weight=_rows(mesh, prompts, jnp.float32),
        )
    written, row = partial(_rows, mesh, (rows, group.max_new_tokens)), partial(_rows, mesh, (rows,))
    rollouts = RolloutBatch(
        response=written(jnp.int32),
        response_mask=written(jnp.bool_),
        sampled_logp=written(jnp.float32) if config.method.rollouts else None,
        sampled_entropy=written(jnp.float32) if config.method.rollouts else None,
        finished=row(jnp.bool_),
    )
    outcomes = Outcomes(correct=row(jnp.float32), reward=row(jnp.float32), in_loss=row(jnp.bool_))
    return _prompts(config, mesh, group.problems), shown, rollouts, outcomes
