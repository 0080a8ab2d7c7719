"""The other side of tunix_step.py, run by the python of an environment that has google-tunix: needs no dasd_jax.

tunix's learner as it is; what is added reads the clock and waits for the next line before a step begins. In the first
two steps the log-probabilities are computed once more, outside of what is timed. What goes in and out: whole_steps.py.
"""

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx
from transformers import AutoTokenizer
from tunix.models.llama3.model import RematConfig
from tunix.rl import common
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig
from tunix_worker import Ids, load

NEVER = 2**31 - 1  # no token has this id: nothing ends a response before its limit
PAD = "<gh_stars>"  # tunix finds padding by its id, so it is one that no response holds
COMPARED = 2  # steps whose log-probabilities are asked for
LONG = 256  # tokens; with longer responses the activations of all layers would take tens of GiB


def now() -> np.ndarray:
    """[the clock, that of the processors], seconds."""
    return np.array([time.perf_counter(), time.process_time()])


class Learner(GRPOLearner):
    """GRPO, watched."""

    def watch(self, rows: int, output, norms: list[float]) -> None:
        """Answers with `output` from now on; `norms` is where the optimiser leaves those of the gradient."""
        self.part, self.output, self.norms, self.step = rows, output, norms, 0

    def _generate_and_compute_advantage(self, training_input, *args, **kwargs):
        start = now()
        batch = super()._generate_and_compute_advantage(training_input, *args, **kwargs)
        jax.block_until_ready(batch)
        self.rollout = now() - start
        self.batch, self.logp, start = batch, [], now()
        if self.step < COMPARED:
            self.logp = self.log_probabilities(batch)
        self.aside = now() - start
        return batch

    def log_probabilities(self, batch) -> list[list[float]]:
        """Of the responses, a part of the rows at a time."""
        cluster = self.rl_cluster
        parts = [slice(start, start + self.part) for start in range(0, len(batch.prompt_ids), self.part)]
        graph, state = nnx.split(cluster.actor_trainer.model)
        ids = {"pad_id": cluster.rollout.pad_id(), "eos_id": cluster.rollout.eos_id()}
        logp = [
            common.compute_per_token_logps(graph, state, batch.prompt_ids[part], batch.completion_ids[part], **ids)
            for part in parts
        ]
        return np.concatenate(logp).tolist()

    def _run_global_step(self, *args, **kwargs):
        if not sys.stdin.readline():
            sys.exit()
        start = now()
        super()._run_global_step(*args, **kwargs)
        jax.block_until_ready(nnx.state(self.rl_cluster.actor_trainer.model))
        whole = now() - start - self.aside
        jax.effects_barrier()
        seconds = {"rollout": self.rollout, "update": whole - self.rollout, "whole": whole}
        answer(
            self.output,
            seconds={name: value.tolist() for name, value in seconds.items()},
            tokens=np.asarray(self.batch.completion_ids).tolist(),
            logp=self.logp,
            grad_norm=self.norms[-1],
        )
        self.step += 1


def reward(prompts, completions, **kwargs) -> list[float]:
    """0 and 1 in turn."""
    return [float(row % 2) for row in range(len(completions))]


def optimizer(job: dict, norms: list[float]) -> optax.GradientTransformation:
    """AdamW behind a cut of the gradient, whose norm is added to `norms`."""

    def seen(grads, state, params=None):
        jax.debug.callback(lambda norm: norms.append(float(norm)), optax.global_norm(grads))
        return grads, state

    return optax.chain(
        optax.GradientTransformation(lambda params: optax.EmptyState(), seen),
        optax.clip_by_global_norm(job["clip"]),
        optax.adamw(job["rate"], b1=job["b1"], b2=job["b2"], eps=job["eps"], weight_decay=job["decay"]),
    )


def main() -> None:
    """Makes the learner and trains."""
    # Nothing else may come between the answers.
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    folder, norms = Path(job["model"]), []
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in job["chats"]]
    width = max(map(len, prompts))
    raw = json.loads((folder / "config.json").read_text())
    model = load(folder, raw, RematConfig.DECODER if job["tokens"] > LONG else RematConfig.NONE)
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(1, 1), ("fsdp", "tp"))
    cluster = RLCluster(
        actor=model,
        tokenizer=Ids(tokenizer.convert_tokens_to_ids(PAD)),
        cluster_config=ClusterConfig(
            role_to_mesh=dict.fromkeys((Role.ACTOR, Role.REFERENCE, Role.ROLLOUT), mesh),
            training_config=RLTrainingConfig(
                actor_optimizer=optimizer(job, norms),
                mini_batch_size=job["problems"],
                train_micro_batch_size=job["rows"] // job["rollouts"],
                rollout_micro_batch_size=job["problems"],
                eval_every_n_steps=job["steps"],
                max_steps=job["steps"],
                pbar_description=None,
            ),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=job["tokens"],
                max_prompt_length=width,
                kv_cache_size=width + job["tokens"],
                temperature=1.0,
                top_p=1.0,
                eos_tokens=[NEVER],
            ),
        ),
    )
    learner = Learner(
        rl_cluster=cluster,
        algo_config=GRPOConfig(num_generations=job["rollouts"], beta=0.0),
        reward_fns=reward,
    )
    learner.watch(job["rows"], output, norms)
    versions = ", ".join(f"{name} {version(name)}" for name in ("google-tunix", "jax", "flax"))
    answer(output, versions=versions, prompts=prompts)
    texts = np.array([" ".join(map(str, prompt)) for prompt in prompts])
    learner.train([{"prompts": texts}] * job["steps"])


def answer(output, **content) -> None:
    """Prints a line."""
    print(json.dumps(content), file=output, flush=True)


if __name__ == "__main__":
    main()
