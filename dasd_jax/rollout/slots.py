"""The number of rows that a device can decode at a time, from an estimate of its memory use."""

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

# Fraction of memory reserved for uncounted temporaries and fragmentation.
_MARGIN = 0.08
# Arrays f32[slots, V] live while sampling a token: logits, probabilities, their blocks and running sums.
_DRAW_ARRAYS = 5


def bytes_a_device(tree) -> int:
    """Bytes per device of a tree of arrays, concrete or abstract."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


@dataclasses.dataclass(frozen=True)
class RolloutBytes:
    """Bytes that a rollout needs on a device, in addition to resident arrays."""

    weights: int  # in the decoding layout, including the copies made while fusing gate and up
    prompt: int  # keys and values of one prompt: once in the queue, and a copy per slot if slots are refilled
    row: int  # keys and values of one response, and the arrays for sampling its next token
    records: int  # sampled tokens and log-probabilities of all rows
    prefill: int  # activations of the prompts' forward pass, freed before the first token is sampled

    def decoding(self, problems: int, rows: int, slots: int) -> int:
        """All of them while so many slots decode the rows of a shard with so many problems."""
        copies = slots if slots < rows else 0  # the rows of a problem share its prompt unless slots are refilled
        return self.weights + (problems + copies) * self.prompt + slots * self.row + self.records


def rollout_bytes(model: ModelConfig, sampling: Sampling, mesh: Mesh, problems: int, prompt_width: int) -> RolloutBytes:
    """Estimates the bytes of a rollout.

    Args:
        problems: problems per shard.
        prompt_width: tokens, P.
    """
    item, tensor = jnp.dtype(model.compute_dtype).itemsize, mesh.shape[ROLLOUT["heads"]]
    leaves, scales = param_table.decoding(model, mesh, sampling.weights)
    joined = {name: leaves["layers"][name] for name in ("gate", "up")}  # exist separately while they are fused
    token, computed = (cache_bytes(model, kind) // tensor for kind in (sampling.cache, "compute"))
    widest = max(4 * model.width, 3 * model.ff // tensor)  # width of one layer's activations
    return RolloutBytes(
        weights=bytes_a_device([leaves, scales, joined]),
        prompt=prompt_width * token,
        row=sampling.max_new_tokens * token + _DRAW_ARRAYS * 4 * model.vocab_size // tensor,
        records=problems * sampling.rollouts * sampling.max_new_tokens * 12,  # id, log-probability, entropy
        prefill=problems * prompt_width * (computed + widest * item),
    )


def slots_that_fit(
    model: ModelConfig, sampling: Sampling, mesh: Mesh, *, memory: int, resident: int, problems: int, prompt_width: int
) -> int:
    """Rows that a device can decode at a time, at most the rows of its shard.

    Args:
        memory: bytes per device.
        resident: bytes per device that stay allocated, such as parameters and optimiser state.
        problems: problems in the whole batch.
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
            f"rollout.slots: not one row fits into {memory / 2**30:.2f} GiB per device: {resident / 2**30:.2f} GiB are "
            f"resident, decoding weights take {gib['weights']}, each of {problems} prompts {gib['prompt']}, their "
            f"prefill {gib['prefill']}, results {gib['records']}, a row {gib['row']}: expected more devices along "
            "mesh.tensor or mesh.fsdp, or a smaller rollout.max_new_tokens"
        )
    return slots
