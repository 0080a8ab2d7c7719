"""Every jitted program of a run, lowered from shapes and shardings: nothing is allocated, no weights are read."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dasd_jax.batch import Params, PromptBatch, RolloutBatch, TeacherBatch
from dasd_jax.config import Config
from dasd_jax.cost.work import Batch, cache_bytes, forward_flops
from dasd_jax.data import contexts
from dasd_jax.learner import checkpoint
from dasd_jax.learner.optim import make_optimizer
from dasd_jax.learner.step import score_step, supervised_experience, train_step
from dasd_jax.mesh import ROLLOUT, TRAIN, named, on_mesh, row_shards
from dasd_jax.model import params as param_table
from dasd_jax.model.config import ModelConfig
from dasd_jax.objective.credit import NEEDS_TEACHER
from dasd_jax.rollout.sampler import Sampling, relayout, rollout
from dasd_jax.rollout.slots import bytes_a_device
from dasd_jax.run import evaluation, setup
from dasd_jax.text.tokenizer import load_tokenizer


@dataclasses.dataclass(frozen=True)
class Program:
    """One of them.

    Attributes:
        lower: traces and lowers it, under the mesh.
        beside: bytes a device that stay taken while it runs and are none of its arguments.
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
    flops: int
    traffic: int
    steps: int = 1
    slots: int = 0
    parts: int = 1
    fsdp_minimum: float = 0.0


def programs(config: Config, model: ModelConfig, mesh: Mesh, memory: int) -> Iterator[Program]:
    """What a run compiles, in the order in which it first needs it.

    Args:
        model: from `setup.configured`.
        memory: bytes of a device, for `rollout.slots` where it is not set.

    Raises:
        UserError: a batch or a model that the mesh cannot split, or no slot that fits.
    """
    setup.check_rows(config, mesh)
    group, parts = config.rollout, config.optim.minibatches * config.optim.microbatches
    optimizer = make_optimizer(config.optim, config.run.steps * config.optim.minibatches)
    params = param_table.abstract(model, mesh)
    state = checkpoint.abstract_state(params, mesh, optimizer)
    resident = bytes_a_device(state)
    moments = resident - bytes_a_device(params)
    decoding = param_table.abstract(model, mesh, ROLLOUT, model.compute_dtype)
    gathered = bytes_a_device(decoding)
    tables = bytes_a_device([decoding[name] for name in ("embed", "unembed") if name in decoding])

    def fsdp_minimum(layers: int, embeddings: int) -> float:
        """Bytes that a device sends when it gathers or scatters the parts of the parameters so often."""
        shards = mesh.shape[TRAIN["embed"]]
        return (layers * (gathered - tables) + embeddings * tables) * (shards - 1) / shards

    yield Program(
        name="re-layout",
        lower=lambda: relayout.lower(model, params),
        beside=moments,
        flops=0,
        traffic=bytes_a_device(params) + gathered,
    )

    answered = evaluation.problems_at_a_time(group.problems * group.rollouts, config.run.eval_samples, mesh)
    tokenizer = load_tokenizer("byte")  # which ids end a response is no matter of shapes
    samplings = [("evaluation", "eval", setup.eval_sampling(config, tokenizer), answered)]
    if config.objective.method != "sft":
        samplings.insert(0, ("rollout", "train", setup.training_sampling(config, tokenizer), group.problems))
    for name, purpose, sampling, problems in samplings:
        sampling = setup.with_slots(config, sampling, model, mesh, problems=problems, resident=resident, memory=memory)
        whole = _placed(mesh, jax.eval_shape(partial(relayout, model), params))
        program = _rollout(config, model, mesh, sampling, purpose, problems, whole, gathered)
        yield dataclasses.replace(program, name=name, beside=resident)

    steps = setup.step_config(config, model, mesh)
    prompts = _prompts(config, mesh, group.problems)
    batch = Batch(group.problems, group.prompt_length, group.rollouts, group.max_new_tokens)
    flops = forward_flops(model, batch)
    if config.objective.method == "sft":
        batch = dataclasses.replace(batch, rollouts=1)
        flops, teacher_flops = forward_flops(model, batch), 0
        target = _rows(mesh, (group.problems, group.max_new_tokens), jnp.int32)
        mask = _rows(mesh, target.shape, jnp.bool_)
        experience = jax.eval_shape(supervised_experience, prompts, target, mask)
        views = 1
    else:
        views = 1 + (config.objective.method in NEEDS_TEACHER)
        shown = dataclasses.replace(batch, prompt=group.teacher_prompt_length)
        teacher_flops = forward_flops(model, shown) if views == 2 else 0
        scored = (prompts, *_scored(config, mesh))
        yield Program(
            name="score",
            lower=lambda: score_step.lower(steps, params, *scored),
            beside=moments,
            flops=flops + teacher_flops,
            traffic=parts * views * 2 * gathered,
            parts=parts,
            fsdp_minimum=fsdp_minimum(views, 1),
        )
        experience = jax.eval_shape(partial(score_step, steps), params, *scored)[0]
    experience = _placed(mesh, experience)
    views = 2 if config.objective.form == "full" else 1
    # Layers are gathered forward and again for the backward pass, reduced and scattered once; the full form's teacher
    # gathers them too. What stands outside of the layers is gathered once and its gradient scattered once.
    passes = 2 + views
    rows = batch.problems * batch.rollouts // row_shards(mesh)
    residuals = model.num_layers * rows * batch.response * model.width * jnp.dtype(model.compute_dtype).itemsize
    yield Program(
        name="update",
        lower=lambda: train_step.lower(steps, optimizer, state, experience),
        beside=0,
        flops=3 * flops + (teacher_flops if views == 2 else 0),
        traffic=parts * passes * 2 * gathered + 2 * residuals + config.optim.minibatches * 2 * resident,
        parts=parts,
        fsdp_minimum=fsdp_minimum(passes, 2),
    )


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
    rows = problems * sampling.rollouts // row_shards(mesh)
    slots = sampling.slots_of(rows)
    steps = -(-rows // slots) * sampling.max_new_tokens
    batch = Batch(problems, config.rollout.prompt_length, sampling.rollouts, sampling.max_new_tokens)
    token = cache_bytes(model, jnp.dtype(model.compute_dtype).itemsize) // mesh.shape[ROLLOUT["heads"]]
    seen = rows * batch.response * (batch.prompt + batch.response // 2)
    return Program(
        name="",
        lower=lambda: rollout.lower(model, sampling, params, prompts, number, purpose, number),
        beside=0,
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


def _scored(config: Config, mesh: Mesh) -> tuple:
    """The arguments of `score_step` behind the prompts: teacher's prompts, rollouts, what they earned, weight."""
    group = config.rollout
    rows = group.problems * group.rollouts
    kinds = contexts.kinds(config.data.sources, config.data.privileged, context="")
    shown = contexts.batch_shape(kinds, group.problems, group.rollouts, count=1)
    prompt = (*shown, group.teacher_prompt_length)
    teacher = TeacherBatch(
        teacher_prompt=_rows(mesh, prompt, jnp.int32),
        teacher_prompt_mask=_rows(mesh, prompt, jnp.bool_),
        shown=_rows(mesh, shown, jnp.bool_),
        weight=_rows(mesh, shown, jnp.float32),
    )
    written, row = partial(_rows, mesh, (rows, group.max_new_tokens)), partial(_rows, mesh, (rows,))
    rollouts = RolloutBatch(
        response=written(jnp.int32),
        response_mask=written(jnp.bool_),
        sampled_logp=written(jnp.float32),
        sampled_entropy=written(jnp.float32),
        prompt_index=row(jnp.int32),
        rollout_index=row(jnp.int32),
        finished=row(jnp.bool_),
        stop_id=row(jnp.int32),
    )
    weight = jax.ShapeDtypeStruct((), jnp.float32, sharding=named(mesh))
    return teacher, rollouts, row(jnp.float32), row(jnp.bool_), weight
