"""Work that no implementation can avoid, counted from the architecture: FLOPs of the model and bytes of memory traffic.

Model FLOPs are those of the products: 2 a weight and token, attention over what a query sees, logits. What the backward
pass computes again (model.remat) is not among them. A backward pass counts twice its forward pass.
"""

import dataclasses
import math

from dasd_jax.model.config import ModelConfig
from dasd_jax.model.param_table import table


@dataclasses.dataclass(frozen=True)
class Batch:
    """Sequences of full length: each problem's prompt once, and its responses behind it."""

    problems: int
    prompt: int  # tokens
    rollouts: int
    response: int  # tokens


def forward_flops(model: ModelConfig, batch: Batch, *, logits: bool = True) -> int:
    """FLOPs of one pass over prompts and responses, with the logits of every response token or none."""
    rows = batch.problems * batch.rollouts
    tokens = batch.problems * batch.prompt + rows * batch.response
    layers = sum(math.prod(leaf.shape) for leaf in table(model).values() if leaf.inputs)
    seen = batch.problems * _seen(model, 0, batch.prompt) + rows * _seen(model, batch.prompt, batch.response)
    out = rows * batch.response * 2 * model.vocab_size * model.width if logits else 0
    # A query times a key and a weight times a value, both over all query heads.
    return 2 * layers * tokens + 4 * model.num_heads * model.head_dim * seen + out


def _seen(model: ModelConfig, first: int, count: int) -> int:
    """Keys that the queries at positions first, first + 1, … see, summed over `count` queries and all layers."""

    def of_layer(window: int) -> int:
        last = first + count
        # Positions below the window see all that stand before them and themselves.
        short = range(min(first, window), min(last, window))
        return sum(short) + len(short) + (count - len(short)) * window

    sliding = sum(model.sliding)
    everything = (model.num_layers - sliding) * of_layer(first + count)
    return everything + (sliding * of_layer(model.window) if sliding else 0)


def cache_bytes(model: ModelConfig, item: int) -> int:
    """Bytes of one token's keys and values in all layers, `item` bytes an element."""
    return 2 * model.num_layers * model.num_kv_heads * model.head_dim * item
