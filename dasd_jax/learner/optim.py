"""The optimiser: global-norm clipping, AdamW and a learning-rate schedule over optimiser steps."""

import jax
import optax

from dasd_jax.config import OptimGroup


def make_schedule(config: OptimGroup, num_updates: int) -> optax.Schedule:
    """Learning rate by optimiser step: linear warm-up from peak / warmup_steps, then constant or cosine decay to 0."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(num_updates - warmup, 1))
    else:
        after = optax.constant_schedule(peak)
    if not warmup:
        return after
    # Warm-up starts above 0: a first update at rate 0 would waste an expensive rollout batch.
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1)), after], [warmup])


def make_optimizer(config: OptimGroup, num_updates: int) -> optax.GradientTransformation:
    """Clipping to `grad_clip`, then AdamW with `make_schedule`."""
    return optax.chain(
        optax.clip_by_global_norm(config.grad_clip),
        optax.adamw(
            make_schedule(config, num_updates),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mu_dtype=config.moment_dtype,
        ),
    )


def updates_done(opt_state: optax.OptState) -> int:
    """The number of updates applied, without skipped ones."""
    return int(optax.tree_utils.tree_get(opt_state, "ScaleByScheduleState").count)


def begun_anew(opt_state: optax.OptState) -> optax.OptState:
    """The same moments, with the learning rate at the beginning of its schedule."""

    def is_schedule(part) -> bool:
        return isinstance(part, optax.ScaleByScheduleState)

    return jax.tree.map(
        lambda part: optax.ScaleByScheduleState(part.count * 0) if is_schedule(part) else part,
        opt_state,
        is_leaf=is_schedule,
    )
