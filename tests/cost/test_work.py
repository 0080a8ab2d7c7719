"""Model FLOPs, by hand."""

import dataclasses

from dasd_jax.cost.work import Batch, cache_bytes, forward_flops
from dasd_jax.model.presets import preset

# L 2, D 64, N 8, K 4, H 16, F 128, V 320. A layer: q and o 64·128 each, k and v 64·64 each, three products 64·128.
TINY = preset("qwen3_tiny")
LAYER = 2 * 8192 + 2 * 4096 + 3 * 8192
BATCH = Batch(problems=2, prompt=3, rollouts=2, response=4)


def test_a_forward_pass_is_its_products():
    tokens = 2 * 3 + 4 * 4  # each prompt once
    seen = 2 * (1 + 2 + 3) + 4 * (4 + 5 + 6 + 7)  # keys, behind the prompt for responses
    attention = 2 * (2 * 8 * 16) * seen * 2  # scores and values, 8 heads of 16, two layers
    logits = 2 * 320 * 64 * 4 * 4
    assert forward_flops(TINY, BATCH, logits=False) == 2 * (2 * LAYER) * tokens + attention
    assert forward_flops(TINY, BATCH) == 2 * (2 * LAYER) * tokens + attention + logits


def test_a_layer_that_slides_sees_its_window():
    slides = dataclasses.replace(TINY, window=3, sliding=(True, False))
    less = forward_flops(TINY, BATCH) - forward_flops(slides, BATCH)
    assert less == 2 * (2 * 8 * 16) * 4 * ((4 + 5 + 6 + 7) - 4 * 3)


def test_a_token_in_the_cache_is_a_key_and_a_value_a_layer():
    assert cache_bytes(dataclasses.replace(TINY, compute_dtype="bfloat16")) == 2 * 2 * 4 * 16 * 2
    assert cache_bytes(TINY) == 2 * 2 * 4 * 16 * 4
    assert cache_bytes(TINY, "int8") == 2 * 2 * 4 * (16 + 4)
