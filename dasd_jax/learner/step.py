"""The jitted steps of learning, where the model meets a method.

    score_step       statistics of student and teachers at every response token, and the method's signal
    train_step       several optimiser steps over random sets of whole problems
    rounding_noise   how much of the statistics is rounding

Student and teachers are forward passes over one parameter tree, on other prompts. A method's name appears nowhere here:
it is an `objective.contract.Method`, and the update reads nothing of it but its `Signal`.
"""

from functools import partial, reduce

import jax
import jax.numpy as jnp
import optax
from flax import struct

from dasd_jax.batch import Array, Outcomes, Params, PromptBatch, RolloutBatch, TeacherBatch, TrainState
from dasd_jax.learner import passes, teachers
from dasd_jax.learner.batching import map_by_length, minibatches, split_groups, sum_by_length
from dasd_jax.learner.inspection import gap_name
from dasd_jax.learner.step_config import StepConfig
from dasd_jax.mesh import merge_rows, reshard, split_rows
from dasd_jax.objective.contract import Method, Scored, Signal
from dasd_jax.objective.correction import corrected
from dasd_jax.objective.masked import masked_mean, pooled_quantile, pooled_quantiles
from dasd_jax.objective.surrogate import ClipRange
from dasd_jax.objective.token_stats import TokenStats, token_logp, token_logp_and_divergence


@struct.dataclass
class Experience:
    """A scored rollout batch with a leading problem axis, so that it is cut by whole problems.

    Attributes:
        prompts: [B, P].
        teachers: of the views that the method's divergence reads.
        response, response_mask: [B, G, R].
        old_logp: f32[B, G, R], of the weights that wrote the responses; None of references.
        signal: without what is only logged; leaves [B, G, R], or [B, G] in `given`.
    """

    prompts: PromptBatch
    teachers: dict[str, TeacherBatch]
    response: Array
    response_mask: Array
    old_logp: Array | None
    signal: Signal

    @property
    def keep(self) -> Array:
        """bool[B, G, R], the tokens of the loss."""
        weights = self.signal.weight, self.signal.kl, self.signal.nll
        return reduce(jnp.logical_or, (weight != 0 for weight in weights if weight is not None))


# ------------------------------------------------------------------------------------------------ score


@partial(jax.jit, static_argnames=("config", "rescore"))
def score_step(
    config: StepConfig,
    params: Params,
    copies: dict[str, Params],
    prompts: PromptBatch,
    shown: dict[str, TeacherBatch],
    rollouts: RolloutBatch,
    outcomes: Outcomes,
    knobs: dict[str, Array],
    chosen: Array | None = None,
    tables: dict[str, Array] | None = None,
    rescore: bool = True,
) -> tuple[Experience, dict[str, Array], dict[str, Array], dict[str, Array]]:
    """Statistics of all views of every response token, and what the method makes of them and of the rewards.

    Args:
        params: the weights that wrote the rollouts.
        copies: `TrainState.teachers`.
        shown: the prompts of all of the method's views, by name.
        knobs: f32[] each, see `objective.contract.Scored`.
        chosen: i32[n], rows to be looked at more closely (learner/inspection.py); the shards of the rows divide n.
        tables: [V] each, those of Method.tables; None where it names none.
        rescore: False: the student's log-probabilities and entropies are the sampler's own, which differ by rounding
            alone where both compute in float32; its divergences from the teachers are then unknown.

    Returns:
        (Experience for `train_step`; f32[rows, R] for the log: "entropy", "gap" or "gap/<view>", and what the method
        logs; scalars for the log; hidden states f32[n, R, D] of the chosen rows: "student" if it is scored, and each
        scored view). Among the scalars is tokens/score_padding_frac: of the response positions computed, the share that
        holds no token.
    """
    method, group = config.method, config.shape.rollouts
    response, mask = rollouts.response, rollouts.response_mask
    stats, metrics, logged, states = None, {}, {}, {}
    if method.rollouts:
        if rescore or config.scored:
            rows = jnp.arange(len(response))
            wanted = reshard(rows[:, None] == (rows[:0] if chosen is None else chosen), "rows", None)
            stats, states, padding = map_by_length(
                partial(passes.statistics, config, params, copies, rescore),
                # Nothing is learned between the parts: they are cut from the whole batch, across the minibatches.
                config.parts,
                config.splits(len(response) // group),
                config.widths(response.shape[1]),
                split_rows(mask, group),
                (*passes.of_one_width(prompts, shown), *(split_rows(x, group) for x in (response, mask, wanted))),
            )
            metrics["tokens/score_padding_frac"] = padding
        if rescore:
            gap = jnp.abs(rollouts.sampled_logp - stats.logp)
            metrics |= {
                "policy/logp_gap_mean": masked_mean(gap, mask),
                "policy/logp_gap_p999": pooled_quantile(gap, mask, 0.999),
                "policy/logp_gap_max": jnp.max(jnp.where(mask, gap, 0.0)),
            }
        else:
            of_teachers = stats.teachers if config.scored else ()
            stats = TokenStats(rollouts.sampled_logp, rollouts.sampled_entropy, of_teachers)
        logged["entropy"] = stats.entropy
        metrics |= {"entropy/mean": masked_mean(stats.entropy, mask), **_entropy_profile(stats.entropy, mask)}
    scored = Scored(
        mask=mask & outcomes.in_loss[:, None],
        live=jnp.any(mask, axis=1),
        tokens=response,
        logp=stats and stats.logp,
        entropy=stats and stats.entropy,
        reward=outcomes.reward,
        correct=outcomes.correct,
        views=passes.view_stats(config, stats, shown) if method.rollouts else {},
        tables=tables or {},
        knobs=knobs,
    )
    for name in config.scored:
        view = scored.views[name]
        gap = gap_name(name)
        told = mask & view.shown[0][:, None]  # without a context the view is the student's, exactly
        logged[gap] = view.logp[0] - scored.logp
        metrics[f"entropy/{name}_mean"] = masked_mean(view.entropy[0], told)
        if rescore:
            metrics[f"{gap}/forward_kl"] = masked_mean(view.forward_kl[0], told)
            metrics[f"{gap}/reverse_kl"] = masked_mean(view.reverse_kl[0], told)
    signal = method.signal(scored, config.shape, config.hp)
    if method.rollouts:
        signal, of_correction = corrected(
            signal, stats.logp, rollouts.sampled_logp, mask, config.correction, of_divergence=method.ratio_cap < jnp.inf
        )
        metrics |= of_correction
    divergence = method.divergence(config.hp)
    experience = Experience(
        prompts=prompts,
        teachers={name: shown[name] for name in divergence.views} if divergence else {},
        response=split_rows(response, group),
        response_mask=split_rows(mask, group),
        old_logp=stats and split_rows(stats.logp, group),
        signal=jax.tree.map(lambda x: split_rows(x, group), signal.replace(logged={}, metrics={})),
    )
    return experience, logged | signal.logged, metrics | signal.metrics, states


def _entropy_profile(entropy: Array, mask: Array) -> dict[str, Array]:
    """How uncertain the policy is, by quantile over all tokens and by quarter of the response: scalars in nats.

    A trained reasoner is certain of most tokens and uncertain at a few (arXiv 2506.01939): its median is near 0.
    """
    quantiles = pooled_quantiles(entropy, mask, [percent / 100 for percent in _PERCENTS])
    place = (jnp.cumsum(mask, axis=1) - 1) * 4 // jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    return {f"health/entropy_p{percent}": value for percent, value in zip(_PERCENTS, quantiles, strict=True)} | {
        f"health/entropy_quarter{quarter + 1}": masked_mean(entropy, mask & (place == quarter)) for quarter in range(4)
    }


_HELD, _WEIGHT = "held weight", "weight"  # of the surrogate, sums over the tokens of a part
_PERCENTS = (20, 50, 80, 95)
# Odd, so that it is not the difference between the widths of the student's and the teachers' prompts.
_OTHER_PADDING = 13


@partial(jax.jit, static_argnames=("config",))
def rounding_noise(
    config: StepConfig, params: Params, prompts: PromptBatch, rollouts: RolloutBatch, scored_logp: Array
) -> Array:
    """How much of a gap is rounding: the student against itself under another padding of its prompts.

    Args:
        params: those of `score_step`, as prompts and rollouts are.
        scored_logp: f32[B, G, R], the `Experience.old_logp` that it made.

    Returns:
        f32[], the mean absolute difference over response tokens in nats.
    """

    def logp(width: int, part) -> tuple[Array, tuple]:
        prompts, response, mask = part
        response, mask = merge_rows(response[..., :width]), merge_rows(mask[..., :width])
        student = passes.outputs(config, params, prompts.student_prompt, prompts.student_prompt_mask, response, mask)
        chunk = config.chunk(response.shape[0])
        return token_logp(student, response, temperature=config.temperature, chunk=chunk), ()

    prompts = passes.wider(prompts, prompts.student_prompt.shape[-1] + _OTHER_PADDING)
    split = partial(split_rows, group=config.shape.rollouts)
    mask = rollouts.response_mask
    again, _, _ = map_by_length(
        logp,
        config.parts,
        config.splits(len(mask) // config.shape.rollouts),
        (mask.shape[1],),  # the longest alone: one compilation of the model
        split(mask),
        (prompts, split(rollouts.response), split(mask)),
    )
    return masked_mean(jnp.abs(again - merge_rows(scored_logp)), mask)


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
    sets of whole problems. Its microbatches are cut from it by length, and their gradients are summed: every divisor
    is in the signal. A minibatch whose loss or gradient is not finite, or that has nothing in the loss, changes
    nothing: neither parameters nor moments.

    Args:
        state: given up (its memory is reused).
        batches: how many batches of the data went into the experience.

    Returns:
        (new state, scalars for the log: means over the minibatches). Among them are tokens/update_padding_frac: of the
        response positions computed, the share that holds no token of the loss; and of the minibatches the share that
        was not finite, optim/skipped_frac, and that was empty, optim/empty_frac.
    """
    widths = config.widths(experience.response.shape[-1])
    experience = split_groups(config.splits(len(experience.response)), experience)
    value_and_grad = jax.value_and_grad(minibatch_loss, argnums=1, has_aux=True)

    def update(carry, minibatch: Experience):
        params, opt_state = carry

        # Differentiated within its width: the gradient of a choice would store the residuals of every width.
        def gradient(width: int, part: Experience):
            (_, metrics), grads = value_and_grad(config, params, state.teachers, _shortened(part, width))
            return grads, metrics

        # What follows a response's last token in the loss is not looked at by any that precede it.
        keep = minibatch.keep
        grads, metrics, padding = sum_by_length(gradient, params, config.microbatches, widths, keep, minibatch)
        metrics["tokens/update_padding_frac"] = padding
        if _WEIGHT in metrics:
            # The share of the surrogate's weight at which the clip stops the gradient.
            metrics["policy/clip_frac"] = metrics.pop(_HELD) / jnp.maximum(metrics.pop(_WEIGHT), 1e-30)
        updates, new_opt_state = optimizer.update(grads, opt_state, params)
        metrics["optim/grad_norm"] = optax.global_norm(grads)
        metrics["optim/update_norm"] = optax.global_norm(updates)
        finite = jnp.isfinite(metrics["optim/grad_norm"]) & jnp.isfinite(metrics["loss/total"])
        some = jnp.any(keep)
        metrics["optim/skipped_frac"] = 1.0 - finite
        metrics["optim/empty_frac"] = 1.0 - some
        new = optax.apply_updates(params, updates), new_opt_state
        updated = finite & some
        return jax.tree.map(partial(jnp.where, updated), new, carry), (metrics, updated)

    carry = state.params, state.opt_state
    (params, opt_state), (metrics, updated) = jax.lax.scan(
        update, carry, minibatches(config.shape.minibatches, experience)
    )
    step = state.step + 1
    state = TrainState(
        step=step,
        params=params,
        opt_state=opt_state,
        batches_drawn=state.batches_drawn + batches,
        teachers=teachers.advance(state.teachers, config.views, params, step, jnp.any(updated)),
    )
    return state, jax.tree.map(jnp.mean, metrics)


def minibatch_loss(
    config: StepConfig, params: Params, copies: dict[str, Params], batch: Experience
) -> tuple[Array, dict[str, Array]]:
    """The loss of some problems: its terms are sums over tokens, so that the parts of a minibatch add up.

    Args:
        params: the student's; the gradient goes through it alone.
        copies: `TrainState.teachers`; a live teacher has the student's own parameters, as constants.

    Returns:
        (loss f32[], scalars that add up over microbatches).
    """
    method, signal = config.method, jax.tree.map(merge_rows, batch.signal)
    response, mask, keep = merge_rows(batch.response), merge_rows(batch.response_mask), merge_rows(batch.keep)
    prompts, divergence = batch.prompts, method.divergence(config.hp)
    student = passes.outputs(config, params, prompts.student_prompt, prompts.student_prompt_mask, response, mask)
    options = {"temperature": config.temperature, "chunk": config.chunk(response.shape[0])}
    if divergence is None:
        logp, diverged = token_logp(student, response, **options), None
    else:
        of_views = [
            passes.teacher_outputs(config, params, copies, name, batch.teachers[name], 0, response, mask)
            for name in divergence.views
        ]
        logp, diverged = token_logp_and_divergence(student, of_views, response, divergence, signal.given, **options)
    old_logp = None if batch.old_logp is None else merge_rows(batch.old_logp)
    return loss_of(method, config.clip, signal, keep, logp, diverged, old_logp)


def loss_of(
    method: Method,
    clip: ClipRange,
    signal: Signal,
    keep: Array,
    logp: Array,
    diverged: Array | None,
    old_logp: Array | None,
) -> tuple[Array, dict[str, Array]]:
    """The loss of a signal, given what the model says of each token; f32[rows, R], in nats.

    Args:
        keep: bool[rows, R], the tokens of the loss; what stands elsewhere is not looked at.
        logp: of the current weights.
        diverged: the method's divergence at each token; None without one.
        old_logp: of the weights that wrote the tokens; None of references.

    Returns:
        (loss f32[], scalars that add up over microbatches).
    """
    logp = jnp.where(keep, logp, 0.0)
    loss, metrics = 0.0, {}
    if signal.weight is not None or method.ratio_cap < jnp.inf:
        old_logp = jnp.where(keep, old_logp, 0.0)
    if signal.weight is not None:
        advantage = jnp.where(keep, signal.advantage, 0.0)
        gain, held = method.surrogate(logp, old_logp, advantage, clip)
        loss -= jnp.sum(signal.weight * jnp.where(keep, gain, 0.0))
        metrics[_HELD] = jnp.sum(jnp.where(keep & held, signal.weight, 0.0))
        metrics[_WEIGHT] = jnp.sum(jnp.where(keep, signal.weight, 0.0))
    if signal.kl is not None:
        kl = signal.kl
        if method.ratio_cap < jnp.inf:
            kl *= jnp.minimum(jnp.exp(jax.lax.stop_gradient(logp) - old_logp), method.ratio_cap)
        metrics["loss/dense"] = jnp.sum(kl * jnp.where(keep, diverged, 0.0))
        loss += metrics["loss/dense"]
    if signal.nll is not None:
        loss -= jnp.sum(signal.nll * logp)
    return loss, metrics | {"loss/total": loss}


def _shortened(batch: Experience, width: int) -> Experience:
    """The first `width` positions of the responses."""

    def first(tree):
        return jax.tree.map(lambda x: x[..., :width] if x.ndim == 3 else x, tree)

    by_token = ("response", "response_mask", "old_logp", "signal")
    return batch.replace(**{name: first(getattr(batch, name)) for name in by_token})
