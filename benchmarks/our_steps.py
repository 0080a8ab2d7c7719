"""Our side of trl_step.py and tunix_step.py: whole steps, one for each line on standard input (whole_steps.py)."""

import dataclasses
import json
import sys
import time
from importlib.metadata import version

import jax
import numpy as np

from benchmarks import step_ratio
from benchmarks.timing import default_config
from dasd_jax.mesh import MeshConfig, make_mesh, put_rows
from dasd_jax.run import models
from dasd_jax.text.prompts import encode_prompt


def main() -> None:
    """Loads the model, then computes a step for every line."""
    job = json.loads(sys.stdin.readline())
    config = default_config()
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, schedule="constant", warmup_steps=0))
    tokenizer = models.open_tokenizer(config.model)
    prompts = [encode_prompt(tokenizer, chat) for chat in job["chats"]]
    width = max(map(len, prompts))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        step = step_ratio.Step(
            job["method"], mesh, config=config, problems=job["problems"], prompt=width,
            teacher_prompt=job["teacher_prompt"] or width, response=job["tokens"],
            # Parts of the batch stay in the processor's cache, and what is stored for gradients is smaller.
            microbatches=min(job["problems"], 4),
        )  # fmt: skip
        answer({"versions": f"jax {version('jax')}", "prompts": prompts})
        for line in sys.stdin:
            answer(one_step(mesh, step, **json.loads(line)))


def one_step(mesh, step: step_ratio.Step, tokens: list[list[int]] | None = None, update: bool = True) -> dict:
    """A step, on other responses than those sampled where `tokens` has them; see whole_steps.py."""
    seconds = {"rollout": timed(step.sample)}
    if tokens is not None:
        step.written = step.written.replace(response=put_rows(mesh, np.array(tokens, np.int32)))
    # In one step of several the student is scored again: of its seconds each step has that share.
    usual, every = timed(step.score), default_config().run.rescore_every
    seconds["score"] = [each + (more - each) / every for each, more in zip(usual, timed(step.rescore), strict=True)]
    answered = {"logp": np.asarray(step.experience.old_logp).reshape(len(step.written.response), -1).tolist()}
    if update:
        metrics = {}
        seconds["update"] = timed(lambda: metrics.update(step.update()) or metrics)
        answered["grad_norm"] = float(metrics["optim/grad_norm"])
    seconds["whole"] = [sum(parts) for parts in zip(*seconds.values(), strict=True)]
    return answered | {"seconds": seconds, "tokens": np.asarray(step.written.response).tolist()}


def timed(function) -> list[float]:
    """Seconds until what a function returns is computed: [on the clock, of the processors]."""
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(function())
    return [time.perf_counter() - wall, time.process_time() - cpu]


def answer(content: dict) -> None:
    """Prints a line."""
    print(json.dumps(content), flush=True)


if __name__ == "__main__":
    main()
