"""How many rows a device decodes at a time: by hand for a small model, and never fewer with more memory."""

import dataclasses

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from dasd_jax.errors import UserError
from dasd_jax.mesh import AXES
from dasd_jax.model.presets import preset
from dasd_jax.rollout.sampler import Sampling
from dasd_jax.rollout.slots import bytes_a_device, rollout_bytes, slots_that_fit

TINY = preset("qwen3_tiny")  # L 2, D 64, K 4, H 16, F 128, V 320; 119,168 parameters, in float32
SAMPLING = Sampling(rollouts=4, max_new_tokens=10, stop_ids=(0,), pad_id=0)
ONE = AbstractMesh((1, 1, 1), AXES, axis_types=(AxisType.Explicit,) * 3)
BY_HEADS = AbstractMesh((1, 2, 2), AXES, axis_types=(AxisType.Explicit,) * 3)
TOKEN = 2 * 2 * 4 * 16 * 4  # bytes of its keys and values
ROW = 10 * TOKEN + 5 * 4 * 320  # and five arrays of logits while one is drawn
PROMPT = 6 * TOKEN
WEIGHTS = 4 * (119_168 + 2 * 2 * 64 * 128)  # gate and up twice, while they are joined
PREFILL = 2 * 6 * (TOKEN + 3 * 128 * 4)
RECORDS = 8 * 10 * 12


def slots(memory: int, resident: int = 1000, mesh=ONE, problems: int = 2) -> int:
    return slots_that_fit(TINY, SAMPLING, mesh, memory=memory, resident=resident, problems=problems, prompt_width=6)


def memory_for(free: int, resident: int = 1000) -> int:
    """The least memory of which 92 % leave so many bytes for rows."""
    return -(-(free + resident + WEIGHTS + 2 * PROMPT + RECORDS) * 100 // 92)


def test_bytes_are_counted_by_hand():
    assert dataclasses.asdict(rollout_bytes(TINY, SAMPLING, ONE, problems=2, prompt_width=6)) == {
        "weights": WEIGHTS,
        "prompt": PROMPT,
        "row": ROW,
        "records": RECORDS,
        "prefill": PREFILL,
    }
    split = rollout_bytes(TINY, SAMPLING, BY_HEADS, problems=2, prompt_width=6)
    assert (split.prompt, split.row) == (PROMPT // 2, ROW // 2)


def test_int8_takes_a_byte_a_number_and_a_scale_for_each_output_or_token_and_head():
    """Outputs of a layer of qwen3_tiny: q 128, k and v 64 each, o 64, gate and up 128 each, down 64; words 320."""
    narrow = dataclasses.replace(SAMPLING, weights="int8", cache="int8")
    found = rollout_bytes(TINY, narrow, ONE, problems=2, prompt_width=6)
    assert found.weights == WEIGHTS // 4 + 4 * (2 * (128 + 2 * 64 + 64 + 2 * 128 + 64) + 320)
    token = 2 * 2 * 4 * (16 + 4)
    assert (found.prompt, found.row) == (6 * token, 10 * token + 5 * 4 * 320)
    assert (found.prefill, found.records) == (PREFILL, RECORDS)  # keys and values are rounded after the prefill
    split = rollout_bytes(TINY, narrow, BY_HEADS, problems=2, prompt_width=6)
    assert (split.prompt, split.row) == (found.prompt // 2, found.row // 2)
    memory = memory_for(3 * (ROW + PROMPT))
    at = {"memory": memory, "resident": 1000, "problems": 2, "prompt_width": 6}
    assert slots_that_fit(TINY, narrow, ONE, **at) > slots_that_fit(TINY, SAMPLING, ONE, **at) == 3


@pytest.mark.parametrize("count", [2, 3, 5])
def test_slots_are_those_that_fit_with_a_prompt_of_their_own(count):
    enough = memory_for(count * (ROW + PROMPT))
    assert slots(enough) == count
    assert slots(enough, resident=1000 + 2) == count - 1


def test_all_rows_share_the_prompts_of_their_problems():
    assert slots(memory_for(8 * ROW)) == 8
    assert slots(memory_for(8 * ROW) - 3) < 8


def test_more_memory_never_means_fewer_slots():
    found = [slots(memory_for(PREFILL) + step * 4099) for step in range(100)]
    assert found == sorted(found) and found[0] == 1 and found[-1] == 8


def test_shards_of_the_rows_count_their_own_problems():
    """Two shards of one problem each, heads split in two: weights, caches and records shrink, and so does the limit."""
    assert slots(10**9, mesh=BY_HEADS) == 4
    assert slots(10**9, mesh=BY_HEADS, problems=3) == 8  # the larger of them


def test_when_not_one_row_fits_the_line_says_what_is_taken():
    with pytest.raises(UserError, match=r"rollout.slots: not one row fits .* mesh.tensor or mesh.fsdp") as refused:
        slots(memory_for(0))
    assert "\n" not in str(refused.value)


def test_bytes_of_a_device_are_those_of_its_part():
    mesh = AbstractMesh((1, 4, 2), AXES, axis_types=(AxisType.Explicit,) * 3)
    split = jax.ShapeDtypeStruct((8, 6), "bfloat16", sharding=jax.NamedSharding(mesh, jax.P(AXES[1], AXES[2])))
    assert bytes_a_device([split, split]) == 2 * 2 * 3 * 2
