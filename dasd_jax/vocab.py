"""Shared numerics from hidden states to log-probabilities over the vocabulary.

The sampler and the objective both use these functions, so that sampling and scoring compute a token's log-probability
with the same arithmetic.
"""

from functools import partial

import jax
import jax.numpy as jnp

from dasd_jax.batch import Array
from dasd_jax.mesh import spec
from dasd_jax.quantised import Quantised

# TPUs multiply float32 in bfloat16 at the default precision; bfloat16 inputs are not affected.
EXACT = jax.lax.Precision.HIGHEST


product = partial(jnp.einsum, precision=EXACT, preferred_element_type=jnp.float32)


def logits(hidden: Array, unembed: Array | Quantised, temperature: float, out_sharding=None) -> Array:
    """hidden · unembedᵀ / temperature: [rows, S, D], [V, D] → f32[rows, S, V].

    A float32 hidden state is not rounded to a bfloat16 unembedding: it enters as a sum of two bfloat16 parts, which
    hold 16 of its 24 bits.
    """
    if isinstance(unembed, Quantised):
        return logits(hidden, unembed.unscaled, temperature, out_sharding) * unembed.scale
    times = partial(product, "rsd,vd->rsv", out_sharding=out_sharding)
    if hidden.dtype == unembed.dtype:
        return times(hidden, unembed) / temperature
    # Not a cast there and back, which XLA may leave out.
    high = jax.lax.reduce_precision(hidden, exponent_bits=8, mantissa_bits=7)
    parts = (part.astype(unembed.dtype) for part in (high, hidden - high))
    return sum(times(part, unembed) for part in parts) / temperature


def log_probs(hidden: Array, unembed: Array | Quantised, temperature: float) -> Array:
    """Log-probabilities of the next token: log_softmax(hidden · unembedᵀ / temperature).

    Args:
        hidden: f32[rows, S, D], after the final norm.
        unembed: [V, D] in the compute dtype, or quantised with a scale for each word.
        temperature: positive.

    Returns:
        f32[rows, S, V] in nats, the vocabulary sharded like `unembed`.
    """
    return log_probs_and_norm(hidden, unembed, temperature)[0]


def log_probs_and_norm(hidden: Array, unembed: Array | Quantised, temperature: float) -> tuple[Array, Array]:
    """`log_probs`, and the log-normaliser f32[rows, S]: logits minus log-probabilities."""
    z = logits(hidden, unembed, temperature, out_sharding=spec("rows", None, "vocab"))
    return jax.nn.log_softmax(z, axis=-1), jax.nn.logsumexp(z, axis=-1)


def entropy(logp: Array) -> Array:
    """Entropy of each distribution, -Σ_v p log p: f32[..., V] → f32[...] in nats."""
    return -jnp.sum(jnp.exp(logp) * logp, axis=-1)


def pick(logp: Array, token: Array) -> Array:
    """logp[..., token]: f32[..., V], i32[...] → f32[...].

    A masked sum instead of a gather: it stays local if the vocabulary is sharded.
    """
    ids = jax.lax.broadcasted_iota(jnp.int32, logp.shape, logp.ndim - 1)
    return jnp.sum(jnp.where(ids == token[..., None], logp, 0.0), axis=-1)


def kl(logp: Array, logq: Array) -> Array:
    """KL(p || q) = Σ_v p (log p - log q): f32[..., V] twice → f32[...] in nats."""
    return jnp.sum(jnp.exp(logp) * (logp - logq), axis=-1)
