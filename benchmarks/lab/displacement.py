"""The paper's figure 3 on the base models: the gap by entropy, and what one update does to forks and other tokens."""

import dataclasses
import shutil
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.lab.runs import LAB, WORK, train
from benchmarks.runs import read_lines
from dasd_jax.mesh import MeshConfig, make_mesh
from dasd_jax.model.transformer import forward, prompt_positions, unembed
from dasd_jax.run import models, records
from dasd_jax.text.prompts import left_pad
from dasd_jax.text.tokenizer_files import load_tokenizer

ARMS = ("grpo", "conformity", "novelty", "dasd")
SETTINGS = {"optim.learning_rate": 1e-3, "objective.beta": 1.0}  # of one update, large enough to be seen
BINS = 10  # of entropy, with the same number of tokens each


def measure(seed: int) -> dict:
    """Of the rollouts of a base model's first step: gap by entropy, and displacement by one update of each arm.

    Displacement is the total variation ½ Σ_v |p(v) - q(v)| between the distributions before and after the update, on
    the rollouts that it was made of; forks are the fifth of a response's tokens with the highest entropies.
    """
    line = {"name": "displacement", "seed": seed, "fields": SETTINGS}
    for arm in ARMS:
        run = WORK / "displacement" / f"{arm}-{seed}"
        shutil.rmtree(run, ignore_errors=True)
        asked = {"run.steps": 1, "run.checkpoint_every": 1, "run.logged_rollouts": 64, "run.eval_samples": 1}
        asked |= {name: value for name, value in SETTINGS.items() if arm != "grpo" or name.startswith("optim")}
        train(arm, seed, run, asked)
        problems = [problem for problem in read_lines(run / "samples.jsonl") if problem["step"] == 1]
        rollouts = [rollout for problem in problems for rollout in problem["rollouts"]]
        prompts = [problem["prompt"] for problem in problems for _ in problem["rollouts"]]
        before = distributions(str(LAB / "base" / str(seed)), prompts, rollouts)
        after = distributions(str(run), prompts, rollouts)
        moved = 0.5 * np.abs(after - before).sum(axis=1)
        forks = np.concatenate([records.forks(rollout) for rollout in rollouts])
        line[arm] = {"forks": float(moved[forks].mean()), "others": float(moved[~forks].mean())}
        if arm == "dasd":
            line["gap_by_entropy"] = gap_by_entropy(rollouts)
    return line


def distributions(weights: str, prompts: Sequence[str], rollouts: Sequence[dict]) -> np.ndarray:
    """f32[tokens, V]: what a model expects at each token of the rollouts."""
    tokenizer, mesh = load_tokenizer(str(LAB / "tokenizer")), make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        model, params = models.load_weights(weights, mesh)
        model = dataclasses.replace(model, compute_dtype="float32", attention="xla", remat="none")
        # From the pieces: a text leaves out ids without a name, of which the model has a few.
        ids = {tokenizer.piece(i): i for i in range(model.vocab_size)}
        responses = [[ids[piece] for piece in rollout["tokens"]] for rollout in rollouts]
        sequences = [tokenizer.encode(prompt) + response for prompt, response in zip(prompts, responses, strict=True)]
        tokens, mask = (jnp.asarray(x) for x in left_pad(sequences, max(map(len, sequences)), tokenizer.pad_id))
        hidden, _ = forward(model, params, tokens, prompt_positions(mask), mask)
        p = np.asarray(jax.nn.softmax(unembed(model, params, hidden)))
    # The state before each token of the response predicts it.
    return np.concatenate([row[-1 - len(response) : -1] for row, response in zip(p, responses, strict=True)])


def gap_by_entropy(rollouts: Sequence[dict]) -> list[list[float]]:
    """[mean entropy, mean |gap|, mean gap] of each bin of tokens, by rising entropy, nats."""
    entropy, gap = (np.concatenate([rollout[name] for rollout in rollouts]) for name in ("entropy", "gap"))
    order = np.argsort(entropy)
    return [
        [round(float(x), 5) for x in (entropy[part].mean(), np.abs(gap[part]).mean(), gap[part].mean())]
        for part in np.array_split(order, BINS)
    ]
