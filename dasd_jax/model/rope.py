"""Rotary position embeddings: tables of cosines and sines, and their application to queries and keys."""

import math

import jax.numpy as jnp

from dasd_jax.batch import Array
from dasd_jax.model.config import LinearScaling, Llama3Scaling, ModelConfig, RopeScaling


def rope_table(config: ModelConfig, positions: Array, scaled: bool) -> tuple[Array, Array]:
    """Cosine and sine of the rotary angles, f32[rows, S, 1, H/2].

    float32 whatever the compute dtype is: bfloat16 cannot tell position 256 from 257.

    Args:
        positions: i32[rows, S].
        scaled: whether `config.rope_scaling` applies.
    """
    half = config.head_dim // 2
    frequency = config.rope_base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    scaling, size = config.rope_scaling if scaled else None, 1.0
    if scaling is not None:
        keep = _unscaled_share(scaling, frequency, config.rope_base)
        frequency = keep * frequency + (1 - keep) * frequency / scaling.factor
        size = getattr(scaling, "attention_factor", 1.0)
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequency
    return size * jnp.cos(angles), size * jnp.sin(angles)


def _unscaled_share(scaling: RopeScaling, frequency: Array, base: float) -> Array:
    """The weight of each unscaled frequency, f32[H/2] in [0, 1]: 1 for high frequencies, 0 for low ones."""
    if isinstance(scaling, LinearScaling):
        return jnp.zeros_like(frequency)
    if isinstance(scaling, Llama3Scaling):
        turns = scaling.original_context * frequency / (2 * jnp.pi)  # rotations within the original context
        share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    else:
        # The share is linear in the index of the frequency, between the indices whose frequencies make beta_fast and
        # beta_slow rotations within the original context.
        half = frequency.shape[0]
        fast, slow = (
            half * math.log(scaling.original_context / (beta * 2 * math.pi)) / math.log(base)
            for beta in (scaling.beta_fast, scaling.beta_slow)
        )
        if scaling.truncate:
            fast, slow = math.floor(fast), math.ceil(slow)
        first, last = max(fast, 0), min(slow, 2 * half - 1)
        share = 1 - (jnp.arange(half) - first) / max(last - first, 1e-3)
    return jnp.clip(share, 0.0, 1.0)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotates the pairs (h, h + H/2) of each head: [rows, S, heads, H]."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
