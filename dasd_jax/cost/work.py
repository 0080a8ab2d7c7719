"""Model FLOPs and cache size, counted from the architecture: the work that no implementation can avoid.

Model FLOPs are those of matrix products: 2 per weight and token, attention over the visible keys, logits. Recomputation
in the backward pass (model.remat) is not included. A backward pass counts as twice its forward pass.
"""

import dataclasses
import math

import jax.numpy as jnp

from dasd_jax.model.config import ModelConfig
from dasd_jax.model.param_table import table


@dataclasses.dataclass(frozen=True)
class Batch:
    """Sequences of full length: each problem's prompt once, followed by its responses."""

    problems: int
    prompt: int  # tokens
    rollouts: int
    response: int  # tokens


def forward_flops(model: ModelConfig, batch: Batch, *, logits: bool = True) -> int:
    """FLOPs of one pass over prompts and responses, with or without the logits of every response token."""
    rows = batch.problems * batch.rollouts
    tokens = batch.problems * batch.prompt + rows * batch.response
    layers = sum(math.prod(leaf.shape) for leaf in table(model).values() if leaf.inputs)
    visible = batch.problems * _visible(model, 0, batch.prompt) + rows * _visible(model, batch.prompt, batch.response)
    out = rows * batch.response * 2 * model.vocab_size * model.width if logits else 0
    # Query-key and weight-value products, over all query heads.
    return 2 * layers * tokens + 4 * model.num_heads * model.head_dim * visible + out


def _visible(model: ModelConfig, first: int, count: int) -> int:
    """Visible keys, summed over all layers and the `count` queries at positions first, first + 1, …"""

    def of_layer(window: int) -> int:
        last = first + count
        # Positions below the window see all earlier positions and themselves.
        short = range(min(first, window), min(last, window))
        return sum(short) + len(short) + (count - len(short)) * window

    sliding = sum(model.sliding)
    full = (model.num_layers - sliding) * of_layer(first + count)
    return full + (sliding * of_layer(model.window) if sliding else 0)


def cache_bytes(model: ModelConfig, kind: str = "compute") -> int:
    """Bytes of one token's keys and values in all layers: in the compute dtype, or int8 with a scale for each head."""
    head = model.head_dim + 4 if kind == "int8" else model.head_dim * jnp.dtype(model.compute_dtype).itemsize
    return 2 * model.num_layers * model.num_kv_heads * head
