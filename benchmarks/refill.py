"""Continuous batching on the device, on and off, and prompts prefilled once: python -m benchmarks.refill

256 rollouts of SmolLM2-135M in 32 slots, float32, temperature 1. Every 16th id of the vocabulary ends a row, which has
at most 80 tokens: a mean of about a quarter of the limit. Off means that free slots wait for one another, as in
samplers without refill; both write the same tokens.
"""

import dataclasses
from functools import partial
from unittest import mock

import jax
import numpy as np

from benchmarks.timing import default_model, hardware, in_turns, prompts, verdict
from dasd_jax.mesh import MeshConfig, make_mesh, replicate
from dasd_jax.model import transformer
from dasd_jax.rollout.sampler import Sampling, relayout, rollout

PROBLEMS, GROUP, SLOTS, PROMPT, LIMIT, RUNS = 32, 8, 32, 64, 80, 2
EVERY = 16  # about one token in so many ends its row, which makes lengths nearly geometric
RATIO = 2.5  # to be reached


def prefilled_tokens(run) -> int:
    """Tokens that a rollout passes to `forward`, counted as it is traced."""
    with mock.patch.object(transformer, "forward", wraps=transformer.forward) as forward:
        jax.eval_shape(run)
    return sum(call.args[2].size for call in forward.call_args_list)


def main() -> None:
    """Runs and prints."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    print(f"{hardware()}\n")
    with jax.set_mesh(mesh):
        model, params, tokenizer = default_model(mesh)
        ends = tuple(range(0, tokenizer.vocab_size, EVERY))
        batch = prompts(mesh, tokenizer, PROBLEMS, PROMPT)
        seed, step = replicate(mesh, (np.int32(0), np.int32(0)))
        on = Sampling(GROUP, LIMIT, ends, tokenizer.pad_id, slots=SLOTS)
        run = partial(
            rollout, model, params=relayout(model, params), prompts=batch, seed=seed, purpose="train", step=step
        )
        each = {
            "on": partial(run, on),
            "off": partial(run, dataclasses.replace(on, refill_at=SLOTS)),
        }
        times = in_turns(each, RUNS)
        results = {name: jax.device_get(spent.result) for name, spent in times.items()}
        counted = prefilled_tokens(partial(run.func.__wrapped__, *run.args, on, **run.keywords))
    lengths = results["on"][0].response_mask.sum(axis=1)
    assert (results["on"][0].response == results["off"][0].response).all()
    quartiles = ", ".join(f"{q:.0f}" for q in np.quantile(lengths, (0, 0.25, 0.5, 0.75, 1)))
    print(f"{len(lengths)} rollouts, limit {LIMIT}, mean length {lengths.mean():.1f}, quartiles {quartiles}\n")
    print("| refill | seconds, median and range | tokens/s | steps | slots in use |\n|---|---|---|---|---|")
    for name, (_, steps) in results.items():
        used = lengths.sum() / (steps.sum() * SLOTS)
        print(f"| {name} | {times[name]} | {lengths.sum() / times[name].median:.0f} | {steps.sum()} | {used:.0%} |")
    ratio = times["off"].median / times["on"].median
    print(f"\nratio {ratio:.2f}, to reach {RATIO}: {verdict(ratio >= RATIO)}")
    each_row = PROBLEMS * GROUP * (PROMPT - 1)
    print(f"prefill: {counted:,} tokens, once per rollout it would be {each_row:,}: "
          f"1/{each_row / counted:.0f}")  # fmt: skip


if __name__ == "__main__":
    main()
