"""Reshapes between problems and their G rollouts, with explicit shardings. Rows are problem-major throughout."""

import jax

from dasd_jax.batch import Array
from dasd_jax.mesh import spec


def repeat_rows(x: Array, times: int) -> Array:
    """Each row `times` times in succession: [B, ...] → [B*times, ...], split over rows."""
    inner = x.shape[1:]
    shape = (x.shape[0], times, *inner)
    wide = jax.lax.broadcast_in_dim(
        x, shape, (0, *range(2, len(shape))), out_sharding=spec("rows", *(None,) * (len(shape) - 1))
    )
    return jax.lax.reshape(wide, (x.shape[0] * times, *inner), out_sharding=spec("rows", *(None,) * len(inner)))


def join_rollouts(x: Array, problems: int) -> Array:
    """The rollouts of each problem concatenated into one row: [B*G, S] → [B, G*S]."""
    return jax.lax.reshape(x, (problems, x.size // problems), out_sharding=spec("rows", None))


def split_rollouts(x: Array, rows: int) -> Array:
    """The inverse of `join_rollouts`, for vectors: [B, G*S, D] → [B*G, S, D]."""
    problems, width, size = x.shape
    return jax.lax.reshape(x, (rows, problems * width // rows, size), out_sharding=spec("rows", None, None))
