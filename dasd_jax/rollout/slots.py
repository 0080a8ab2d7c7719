"""How many rows a device can decode at a time: a count of bytes against the memory that it has."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dasd_jax.cost.work import cache_bytes
from dasd_jax.errors import UserError
from dasd_jax.mesh import ROLLOUT, row_shards
from dasd_jax.model import param_table
from dasd_jax.model.config import ModelConfig
from dasd_jax.rollout.sampler import Sampling

# Of the memory, what is left to the compiler: temporaries that are not counted here, and gaps between buffers.
_MARGIN = 0.08
# Arrays f32[slots, V] that drawing a token holds at a time: logits, probabilities, their blocks and running sums.
_DRAW_ARRAYS = 5


def bytes_a_device(tree) -> int:
    """Bytes that one device holds of a tree of arrays, or of their shapes and shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


@dataclasses.dataclass(frozen=True)
class RolloutBytes:
    """What a device holds during a rollout, in bytes, beside what is resident."""

    weights: int  # in the layout of decoding, with the copies that joining them makes
    prompt: int  # keys and values of one prompt: the queue holds each once, and a slot that is refilled its own
    row: int  # keys and values of one response, and what drawing its next token takes
    records: int  # tokens and log-probabilities of all rows
    prefill: int  # activations of the prompts' forward pass, gone before the first token is drawn


def rollout_bytes(model: ModelConfig, sampling: Sampling, mesh: Mesh, problems: int, prompt_width: int) -> RolloutBytes:
    """Counts them.

    Args:
        problems: of a shard.
        prompt_width: tokens, P.
    """
    item, tensor = jnp.dtype(model.compute_dtype).itemsize, mesh.shape[ROLLOUT["heads"]]
    leaves = param_table.abstract(model, mesh, ROLLOUT, model.compute_dtype)
    joined = {name: leaves["layers"][name] for name in ("gate", "up")}  # there apart while they are joined
    token = cache_bytes(model, item) // tensor
    widest = max(4 * model.width, 3 * model.ff // tensor)  # of one layer's activations
    return RolloutBytes(
        weights=bytes_a_device(leaves) + bytes_a_device(joined),
        prompt=prompt_width * token,
        row=sampling.max_new_tokens * token + _DRAW_ARRAYS * 4 * model.vocab_size // tensor,
        records=problems * sampling.rollouts * sampling.max_new_tokens * 8,
        prefill=problems * prompt_width * (token + widest * item),
    )


def slots_that_fit(
    model: ModelConfig, sampling: Sampling, mesh: Mesh, *, memory: int, resident: int, problems: int, prompt_width: int
) -> int:
    """Rows that a device decodes at a time, at most those of its shard.

    Args:
        memory: bytes of a device.
        resident: bytes of it that stay taken, such as parameters and optimiser state.
        problems: of the whole batch.
        prompt_width: tokens, P.

    Raises:
        UserError: not even one row fits.
    """
    problems = -(-problems // row_shards(mesh))
    needs, rows = rollout_bytes(model, sampling, mesh, problems, prompt_width), problems * sampling.rollouts
    free = int(memory * (1 - _MARGIN)) - resident - needs.weights - problems * needs.prompt - needs.records
    if rows * needs.row <= free:
        return rows  # the rows of a problem share its prompt
    slots = free // (needs.row + needs.prompt)
    if slots < 1 or free < needs.prefill:
        gib = {name: f"{size / 2**30:.2f}" for name, size in dataclasses.asdict(needs).items()}
        raise UserError(
            f"rollout.slots: not one row fits into {memory / 2**30:.2f} GiB a device: {resident / 2**30:.2f} are "
            f"resident, weights for decoding take {gib['weights']}, each of {problems} prompts {gib['prompt']}, their "
            f"prefill {gib['prefill']}, records {gib['records']}, a row {gib['row']} GiB: expected more devices along "
            "mesh.tensor or mesh.fsdp, or a smaller rollout.max_new_tokens"
        )
    return slots
