"""The two jitted steps of learning, and the only place where the model meets the objective.

    score_step   both views of every response token under the weights that wrote them, and the credit of each token
    train_step   several optimiser steps over random sets of whole problems

Student and teacher are two forward passes over one parameter tree. Both steps compute a batch in parts of like length,
each at a width that holds its longest response.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import struct

from dasd_jax.batch import Array, Params, PromptBatch, RolloutBatch, TeacherBatch, TokenStats, TrainState
from dasd_jax.config import ObjectiveGroup
from dasd_jax.mesh import per_shard, reshard, spec
from dasd_jax.model.config import ModelConfig
from dasd_jax.model.transformer import response_hidden, unembedding, with_embedding
from dasd_jax.objective.credit import METHODS, NEEDS_TEACHER, Credit, DasdParams, gated_gap, masked_mean
from dasd_jax.objective.loss import clipped_surrogate, directional_kl, negative_log_likelihood
from dasd_jax.objective.token_stats import token_logp, token_logp_and_expectation, token_stats


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What the steps are compiled for; hashable, a static argument."""

    model: ModelConfig
    objective: ObjectiveGroup
    temperature: float
    rollouts: int  # G
    minibatches: int
    microbatches: int
    row_shards: int  # devices that share the rows, for the size of a chunk
    width_tile: int = 128  # tokens; shorter widths than R are multiples of it, by default a TPU's lanes

    def widths(self, longest: int) -> tuple[int, ...]:
        """The widths that responses of up to `longest` tokens are computed at, ascending.

        Quarters in whole tiles, since each of them is one more compilation of the model; where a quarter is less than
        a tile there is too little to save, and the whole width is the only one.
        """
        if longest < 4 * self.width_tile:
            return (longest,)
        quarter = -(-longest // (4 * self.width_tile)) * self.width_tile
        return (*range(quarter, longest, quarter), longest)

    def chunk(self, rows: int) -> int:
        """Response positions at a time for which `token_chunk` tokens a device hold logits."""
        return max(1, self.objective.token_chunk * self.row_shards // rows)


@struct.dataclass
class Experience:
    """A scored rollout batch with a leading problem axis, so that it is cut by whole problems: [B, ...] or [B, G, ...].

    The fields are those of PromptBatch, TeacherBatch, RolloutBatch, TokenStats and Credit with the same names;
    without a teacher its prompt is None.
    """

    student_prompt: Array
    student_prompt_mask: Array
    teacher_prompt: Array | None
    teacher_prompt_mask: Array | None
    response: Array
    response_mask: Array
    old_logp: Array
    advantage: Array
    keep: Array
    scale: Array
    route: Array
    verifier: Array


# ------------------------------------------------------------------------------------------------ score


@partial(jax.jit, static_argnames=("config",))
def score_step(
    config: StepConfig,
    params: Params,
    prompts: PromptBatch,
    teacher: TeacherBatch,
    rollouts: RolloutBatch,
    reward: Array,
    in_loss: Array,
    teacher_weight: Array,
) -> tuple[Experience, TokenStats, dict[str, Array]]:
    """Statistics of both views of every response token, and the credit that they and the rewards give it.

    Args:
        params: the weights that wrote the rollouts.
        reward: f32[rows].
        in_loss: bool[rows], False for rollouts that count in their group but not in the loss.
        teacher_weight: f32[], the share of objective.beta that is in force; 1 unless a guard has taken it down.

    Returns:
        (Experience for `train_step`, TokenStats f32[rows, R], scalars for the log). Among the scalars is
        tokens/score_padding_frac: of the response positions computed, the share that holds no token.
    """
    needs_teacher = config.objective.method in NEEDS_TEACHER
    by_problem = partial(_by_problem, config.rollouts)
    response, mask = rollouts.response, rollouts.response_mask
    widths = config.widths(response.shape[1])

    def score(width: int, part) -> TokenStats:
        prompts, teacher, response, mask = part
        response, mask = _rows(response[..., :width]), _rows(mask[..., :width])
        student = _view(config, params, prompts.student_prompt, prompts.student_prompt_mask, response, mask)
        teacher = _teacher_view(config, params, teacher, response, mask) if needs_teacher else (None, None)
        chunk = config.chunk(response.shape[0])
        stats = token_stats(*student, *teacher, response, temperature=config.temperature, chunk=chunk)
        return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, widths[-1] - width))), stats)

    whole = (prompts, teacher, by_problem(response), by_problem(mask))
    # Nothing is learned between the parts: they are cut from the whole batch, across the minibatches.
    num_parts = config.minibatches * config.microbatches
    order = _order_by_length(num_parts, by_problem(mask))
    parts = jax.tree.map(partial(_cut, num_parts), _take(whole, order))
    narrowest = _narrowest(widths, parts[-1])
    stats = jax.lax.map(lambda xs: _at_width(widths, xs[0], score, xs[1]), (narrowest, parts))
    stats = jax.tree.map(_rows, _put_back(jax.tree.map(lambda x: _uncut(by_problem(x, axis=1)), stats), order))

    method = METHODS[config.objective.method]
    # Of the base class: the config's own checks its fields, which a traced number cannot pass.
    constants = {field.name: getattr(config.objective, field.name) for field in dataclasses.fields(DasdParams)}
    constants["beta"] *= teacher_weight
    credit: Credit = method(stats, mask, reward, config.rollouts, DasdParams(**constants))
    keep = credit.keep & in_loss[:, None]
    experience = Experience(
        student_prompt=prompts.student_prompt,
        student_prompt_mask=prompts.student_prompt_mask,
        teacher_prompt=teacher.teacher_prompt if needs_teacher else None,
        teacher_prompt_mask=teacher.teacher_prompt_mask if needs_teacher else None,
        response=by_problem(response),
        response_mask=by_problem(mask),
        old_logp=by_problem(stats.student_logp),
        advantage=by_problem(credit.advantage),
        keep=by_problem(keep),
        scale=by_problem(credit.scale),
        route=by_problem(credit.route * teacher_weight),
        verifier=by_problem(credit.verifier),
    )
    gap = jnp.abs(rollouts.sampled_logp - stats.student_logp)
    metrics = credit.metrics | {
        "entropy/mean": masked_mean(stats.student_entropy, mask),
        "policy/logp_gap_mean": masked_mean(gap, mask),
        "policy/logp_gap_p999": _pooled_quantile(gap, mask, 0.999),
        "policy/logp_gap_max": jnp.max(jnp.where(mask, gap, 0.0)),
        "tokens/score_padding_frac": _padding_frac(widths, narrowest, mask),
    }
    if needs_teacher:
        metrics["entropy/teacher_mean"] = masked_mean(stats.teacher_entropy, mask)
        metrics["gap/forward_kl"] = masked_mean(stats.forward_kl, mask)
        metrics["gap/reverse_kl"] = masked_mean(stats.reverse_kl, mask)
    return experience, stats, metrics


def supervised_experience(prompts: PromptBatch, target: Array, target_mask: Array) -> Experience:
    """Reference responses in the place of rollouts, for method `sft`: i32 and bool [B, R], one a problem."""
    one = target[:, None], target_mask[:, None]
    nothing = jnp.zeros(one[0].shape, jnp.float32)
    return Experience(
        student_prompt=prompts.student_prompt,
        student_prompt_mask=prompts.student_prompt_mask,
        teacher_prompt=None,
        teacher_prompt_mask=None,
        response=one[0],
        response_mask=one[1],
        old_logp=nothing,
        advantage=nothing,
        keep=one[1],
        scale=nothing[..., 0],
        route=nothing,
        verifier=nothing[..., 0],
    )


# ------------------------------------------------------------------------------------------------ train


@partial(jax.jit, static_argnames=("config", "optimizer"), donate_argnames=("state",))
def train_step(
    config: StepConfig,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    experience: Experience,
    batches: int = 1,
) -> tuple[TrainState, dict[str, Array]]:
    """One optimiser step for each minibatch of the rollout batch.

    Minibatch m holds the problems m, m + M, m + 2M, …: the batch itself was drawn in random order, so these are random
    sets of whole problems. Its microbatches are cut from it by length. Their gradients are summed and divided once by
    the minibatch's global count of tokens. A minibatch whose loss or gradient is not finite changes nothing.

    Args:
        state: given up (its memory is reused).
        batches: how many batches of the data went into the experience.

    Returns:
        (new state, scalars for the log: means over the minibatches). Among them are tokens/update_padding_frac: of the
        response positions computed, the share that holds no token of the loss; and optim/skipped_frac: of the
        minibatches, the share that was not finite.
    """
    widths = config.widths(experience.response.shape[-1])
    value_and_grad = jax.value_and_grad(minibatch_loss, argnums=1, has_aux=True)

    def update(carry, minibatch: Experience):
        params, opt_state = carry
        num_tokens = jnp.maximum(jnp.sum(minibatch.keep, dtype=jnp.float32), 1.0)

        # Differentiated within its width: the gradient of a choice would store the residuals of every width.
        def gradient(width: int, part: Experience):
            (_, metrics), grads = value_and_grad(config, params, params, _shortened(part, width), num_tokens)
            return grads, metrics

        def accumulate(grads, part):
            new, metrics = _at_width(widths, part[0], gradient, part[1])
            return jax.tree.map(jnp.add, grads, new), metrics

        # What follows a response's last token in the loss is not looked at by any that precede it.
        order = _order_by_length(config.microbatches, minibatch.keep)
        parts = jax.tree.map(partial(_cut, config.microbatches), _take(minibatch, order))
        narrowest = _narrowest(widths, parts.keep)
        if config.microbatches == 1:
            grads, metrics = _at_width(widths, narrowest[0], gradient, minibatch)
        else:
            grads, metrics = jax.lax.scan(accumulate, jax.tree.map(jnp.zeros_like, params), (narrowest, parts))
            metrics = jax.tree.map(jnp.sum, metrics)
        metrics["tokens/update_padding_frac"] = _padding_frac(widths, narrowest, minibatch.keep)
        updates, new_opt_state = optimizer.update(grads, opt_state, params)
        metrics["optim/grad_norm"] = optax.global_norm(grads)
        metrics["optim/update_norm"] = optax.global_norm(updates)
        finite = jnp.isfinite(metrics["optim/grad_norm"]) & jnp.isfinite(metrics["loss/total"])
        metrics["optim/skipped_frac"] = 1.0 - finite
        new = optax.apply_updates(params, updates), new_opt_state
        return jax.tree.map(partial(jnp.where, finite), new, carry), metrics

    minibatches = jax.tree.map(partial(_cut, config.minibatches), experience)
    (params, opt_state), metrics = jax.lax.scan(update, (state.params, state.opt_state), minibatches)
    state = state.replace(
        step=state.step + 1, params=params, opt_state=opt_state, batches_drawn=state.batches_drawn + batches
    )
    return state, jax.tree.map(jnp.mean, metrics)


def minibatch_loss(
    config: StepConfig, params: Params, teacher_params: Params, batch: Experience, num_tokens: Array
) -> tuple[Array, dict[str, Array]]:
    """The loss of some problems, divided by `num_tokens` so that the parts of a minibatch add up.

    Args:
        params: the student's; the gradient goes through it alone.
        teacher_params: the teacher's, of the full form; in training the same tree.
        num_tokens: f32[], kept tokens of the whole minibatch on all devices.

    Returns:
        (loss f32[], scalars that add up over microbatches).
    """
    objective = config.objective
    response, mask, keep = _rows(batch.response), _rows(batch.response_mask), _rows(batch.keep)
    student = _view(config, params, batch.student_prompt, batch.student_prompt_mask, response, mask)
    options = {"temperature": config.temperature, "chunk": config.chunk(response.shape[0])}

    if objective.method == "sft":
        loss = negative_log_likelihood(token_logp(*student, response, **options), keep) / num_tokens
        return loss, {"loss/total": loss}

    metrics = {}
    if objective.form == "full":
        teacher_batch = TeacherBatch(batch.teacher_prompt, batch.teacher_prompt_mask, shown=None, weight=None)
        teacher = _teacher_view(config, teacher_params, teacher_batch, response, mask)
        logp, expected_gap = token_logp_and_expectation(
            *student,
            *teacher,
            response,
            lambda student_logp, teacher_logp, scale: gated_gap(teacher_logp - student_logp, scale, objective),
            _rows(batch.scale),
            **options,
        )
        advantage = jnp.broadcast_to(_rows(batch.verifier)[:, None], keep.shape)
        dense = directional_kl(expected_gap, objective.beta * _rows(batch.route), keep) / num_tokens
        metrics["loss/dense"] = dense
    else:
        logp, advantage, dense = token_logp(*student, response, **options), _rows(batch.advantage), 0.0
    surrogate, clipped = clipped_surrogate(
        logp, _rows(batch.old_logp), advantage, keep, clip_low=objective.clip_low, clip_high=objective.clip_high
    )
    loss = surrogate / num_tokens + dense
    return loss, metrics | {"loss/total": loss, "policy/clip_frac": clipped / num_tokens}


# ------------------------------------------------------------------------------------------------ views


def _view(config: StepConfig, params, prompt, prompt_mask, response, mask) -> tuple[Array, Array]:
    """The hidden states that predict the responses, and the matrix that turns them into logits."""
    params = with_embedding(config.model, params)
    hidden = response_hidden(config.model, params, prompt, prompt_mask, response, mask)
    return hidden, unembedding(config.model, params)


def _teacher_view(config: StepConfig, params, teacher: TeacherBatch, response, mask) -> tuple[Array, Array]:
    """The teacher is the model under privileged context, and a constant: this is the one stop_gradient."""
    params = jax.lax.stop_gradient(params)
    prompt, prompt_mask = teacher.teacher_prompt, teacher.teacher_prompt_mask
    if prompt.ndim == 4:  # [B, G, 1, Q]
        prompt, prompt_mask = _rows(prompt[:, :, 0]), _rows(prompt_mask[:, :, 0])
    return _view(config, params, prompt, prompt_mask, response, mask)


# ------------------------------------------------------------------------------------------------ parts and widths


def _order_by_length(parts: int, mask: Array) -> Array:
    """The order of the problems in which `_cut` makes parts of like length.

    Each shard of the rows sorts its own, by their longest response: nothing is moved between devices.

    Args:
        mask: bool[B, G, R].

    Returns:
        i32[B], places within the shard.
    """

    def of_shard(longest: Array) -> Array:
        # `_cut` deals problems out to the parts in turn; the transpose deals each part a run of neighbours.
        return jnp.argsort(longest).reshape(parts, -1).T.reshape(-1)

    return per_shard(of_shard, ("rows",), "rows")(jnp.max(_lengths(mask), axis=1))


def _lengths(mask: Array) -> Array:
    """Positions up to the last one that is True: bool[..., R] → i32[...]."""
    return jnp.max(jnp.where(mask, jnp.arange(1, mask.shape[-1] + 1, dtype=jnp.int32), 0), axis=-1)


def _take(tree, order: Array):
    """Arrays [B, ...] in an order from `_order_by_length`."""
    return per_shard(lambda tree, order: jax.tree.map(lambda x: x[order], tree), ("rows", "rows"), "rows")(tree, order)


def _put_back(tree, order: Array):
    """The inverse of `_take`."""
    return _take(tree, per_shard(jnp.argsort, ("rows",), "rows")(order))


def _narrowest(widths: tuple[int, ...], mask: Array) -> Array:
    """Which of the widths holds the longest response of each part, on any device: bool[parts, B, G, R] → i32[parts]."""
    longest = jnp.max(_lengths(mask), axis=(1, 2))
    return jnp.sum(longest[:, None] > jnp.array(widths), axis=1, dtype=jnp.int32)


def _at_width(widths: tuple[int, ...], index: Array, function: Callable, part):
    """function(width, part), compiled for every width and run at the one that `index` says.

    The index is the same on all devices, as it has to be: the layers gather their weights within the function.
    """
    return jax.lax.switch(index, [partial(function, width) for width in widths], part)


def _shortened(batch: Experience, width: int) -> Experience:
    """The first `width` positions of the responses."""
    by_token = ("response", "response_mask", "old_logp", "advantage", "keep", "route")
    return batch.replace(**{name: getattr(batch, name)[..., :width] for name in by_token})


def _padding_frac(widths: tuple[int, ...], narrowest: Array, mask: Array) -> Array:
    """Share of the positions computed that are not in the mask, given the width of each of equal parts: f32[]."""
    width = jnp.mean(jnp.array(widths, jnp.float32)[narrowest])
    return 1 - jnp.mean(mask, dtype=jnp.float32) * mask.shape[-1] / width


def _by_problem(rollouts: int, x: Array, axis: int = 0) -> Array:
    """[rows, ...] → [B, G, ...], or the same one axis further in."""
    shape = (*x.shape[:axis], x.shape[axis] // rollouts, rollouts, *x.shape[axis + 1 :])
    axes = (*(None,) * axis, "rows", *(None,) * (len(shape) - axis - 1))
    return jax.lax.reshape(x, shape, out_sharding=spec(*axes))


def _rows(x: Array) -> Array:
    """[B, G, ...] → [rows, ...]."""
    shape = (x.shape[0] * x.shape[1], *x.shape[2:])
    return jax.lax.reshape(x, shape, out_sharding=spec("rows", *(None,) * (len(shape) - 1)))


def _cut(parts: int, x: Array) -> Array:
    """[B, ...] → [parts, B/parts, ...]: part p holds p, p + parts, …, some of every device's rows."""
    shape = (x.shape[0] // parts, parts, *x.shape[1:])
    wide = jax.lax.reshape(x, shape, out_sharding=spec("rows", *(None,) * (len(shape) - 1)))
    return jnp.moveaxis(wide, 1, 0)


def _uncut(x: Array) -> Array:
    """The inverse of `_cut`."""
    wide = jnp.moveaxis(x, 0, 1)
    shape = (wide.shape[0] * wide.shape[1], *wide.shape[2:])
    return jax.lax.reshape(wide, shape, out_sharding=spec("rows", *(None,) * (len(shape) - 1)))


def _pooled_quantile(x: Array, mask: Array, q: float) -> Array:
    """The nearest-rank quantile of all masked values of non-negative f32[rows, R]."""
    ordered = jnp.sort(reshard(jnp.where(mask, x, -1.0), None, None).reshape(-1))
    count = jnp.sum(mask)
    rank = jnp.ceil(q * count).astype(jnp.int32)
    return jnp.maximum(ordered[ordered.size - count + jnp.maximum(rank - 1, 0)], 0.0)
