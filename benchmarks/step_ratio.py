"""A whole DASD step beside a whole GRPO step: python -m benchmarks.step_ratio

The same configuration but for the method, on SmolLM2-135M in float32: rollouts of exactly 256 tokens, the score pass
and the update. In one step of `run.rescore_every` the student is scored too: a step is their mean. Rewards are made up,
the verifier is left out. The update's rate is held against that of matrix products in the same run, and what DASD takes
more than GRPO against one forward pass: the score of GRPO where it scores the student.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import default_config, default_model, hardware, in_turns, prompts, verdict
from dasd_jax.batch import Outcomes, TeacherBatch
from dasd_jax.config import Config
from dasd_jax.cost import work
from dasd_jax.learner.checkpoint import new_state
from dasd_jax.learner.optim import make_optimizer
from dasd_jax.learner.step import score_step, train_step
from dasd_jax.learner.step_config import StepConfig
from dasd_jax.mesh import MeshConfig, make_mesh, put_rows, replicate
from dasd_jax.methods import METHODS
from dasd_jax.objective.contract import Shape
from dasd_jax.objective.surrogate import ClipRange
from dasd_jax.rollout.sampler import Sampling, relayout, rollout
from dasd_jax.run.setup import token_tables

PROBLEMS, GROUP, PROMPT, TEACHER_PROMPT, RESPONSE, RUNS = 2, 8, 64, 96, 256, 2
PARTS = ("sample", "score", "rescore", "update")
RATIO, PASSES = 1.15, 1.05  # not to be exceeded: DASD over GRPO, and their difference over one forward pass
PRODUCT, REPEATS = 2048, 20  # rows and columns of the matrices that say what the processor can, and how often


class Step:
    """One step of a method, in parts that are timed alone."""

    def __init__(
        self, method: str, mesh, *, config: Config | None = None, problems: int = PROBLEMS, prompt: int = PROMPT,
        teacher_prompt: int = TEACHER_PROMPT, response: int = RESPONSE, layers: int = 0, microbatches: int = 1,
    ):  # fmt: skip
        """Loads the default model or that of a configuration, or only its first layers, and draws the rewards."""
        self.response = response
        config = config or default_config()
        model, params, self.tokenizer = default_model(mesh, config)
        if layers:
            model = dataclasses.replace(model, num_layers=layers)
            params = params | {"layers": jax.tree.map(lambda x: jnp.copy(x[:layers]), params["layers"])}
        self.config = StepConfig(
            model=model, method=METHODS[method], hp=METHODS[method].fields(), shape=Shape(GROUP, 1, response),
            clip=ClipRange(config.objective.clip_low, config.objective.clip_high), temperature=1.0,
            microbatches=microbatches, token_chunk=config.objective.token_chunk, row_shards=1,
            width_tile=response,  # one width: nothing here is shorter, and each of several is compiled
        )  # fmt: skip
        self.optimizer = make_optimizer(config.optim, 100)
        self.state = jax.jit(lambda p: new_state(p, self.optimizer, self.config.views), donate_argnums=0)(params)
        self.prompts = prompts(mesh, self.tokenizer, problems, prompt)
        wide = prompts(mesh, self.tokenizer, problems, teacher_prompt)
        shown = put_rows(mesh, np.ones(problems, bool))
        weight = put_rows(mesh, np.ones(problems, np.float32))
        teacher = TeacherBatch(wide.student_prompt, wide.student_prompt_mask, shown, weight)
        self.shown = dict.fromkeys(self.config.views, teacher)
        rewards = np.tile(np.arange(GROUP) % 2, problems).astype(np.float32)
        self.outcomes = put_rows(mesh, Outcomes(correct=rewards, reward=rewards, in_loss=rewards >= 0))
        self.seed, self.number, one = replicate(mesh, (np.int32(0), np.int32(0), np.float32(1)))
        self.knobs = {"step": one, "teacher_weight": one, "noise": one - one}
        self.tables = replicate(mesh, token_tables(METHODS[method], self.tokenizer, model))

    def sample(self):
        """Rollouts that never stop."""
        sampling = Sampling(GROUP, self.response, stop_ids=(-1,), pad_id=self.tokenizer.pad_id)
        params = relayout(self.config.model, self.state.params)
        self.written, _ = rollout(self.config.model, sampling, params, self.prompts, self.seed, "train", self.number)
        return self.written

    def score(self, rescore: bool = False):
        """The teacher for DASD, nothing but credit for GRPO; with `rescore` the student as well."""
        scored = (self.state.teachers, self.prompts, self.shown, self.written, self.outcomes, self.knobs)
        more = {"rescore": rescore, "tables": self.tables}
        self.experience, *rest = score_step(self.config, self.state.params, *scored, **more)
        return self.experience, rest

    def rescore(self):
        """As in one step of `run.rescore_every`."""
        return self.score(rescore=True)

    def update(self):
        """One optimiser step."""
        self.state, metrics = train_step(self.config, self.optimizer, self.state, self.experience)
        return metrics


def main() -> None:
    """Runs and prints."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    print(f"{hardware()}; {PROBLEMS} problems x {GROUP} rollouts x {RESPONSE} tokens\n")
    with jax.set_mesh(mesh):
        steps = {method: Step(method, mesh) for method in ("grpo", "dasd")}
        parts = {(part, method): getattr(steps[method], part) for part in PARTS for method in steps}
        times = in_turns(parts | {"products": products(PRODUCT, jnp.float32)}, RUNS)
    print("| | GRPO, s, median and range | DASD, s |\n|---|---|---|")
    for part in PARTS:
        print(f"| {part} | {times[part, 'grpo']} | {times[part, 'dasd']} |")
    every = default_config().run.rescore_every
    share = {"score": 1 - 1 / every, "rescore": 1 / every}
    whole = {m: sum(share.get(part, 1) * times[part, m].median for part in PARTS) for m in steps}
    ratio = whole["dasd"] / whole["grpo"]
    print(f"| whole step, of {every} one with rescore | {whole['grpo']:.2f} | {whole['dasd']:.2f} |")
    print(f"\nratio {ratio:.3f}, limit {RATIO}: {verdict(ratio <= RATIO)}")
    passes = (whole["dasd"] - whole["grpo"]) / times["rescore", "grpo"].median
    print(f"DASD takes {passes:.3f} forward passes more, limit {PASSES}: {verdict(passes <= PASSES)}")
    peak = REPEATS * 2 * PRODUCT**3 / min(times["products"].runs)
    batch = work.Batch(PROBLEMS, PROMPT, GROUP, RESPONSE)
    flops = 3 * work.forward_flops(steps["dasd"].config.model, batch)
    rate = flops / times["update", "dasd"].median
    print(
        f"update: {flops / 1e12:.2f} TFLOP of the model at {rate / 1e9:.0f} GFLOP/s, {rate / peak:.0%} of the "
        f"{peak / 1e9:.0f} of {PRODUCT} x {PRODUCT} products; remat {steps['dasd'].config.model.remat}"
    )


def products(size: int, dtype):
    """A function that multiplies two square matrices, REPEATS times: the first products of a pause are slow."""
    # Drawn: a GPU multiplies constants faster, since fewer of its wires change.
    square = jax.random.normal(jax.random.key(0), (size, size), dtype)
    multiply = jax.jit(jnp.matmul)
    return lambda: [multiply(square, square) for _ in range(REPEATS)]


if __name__ == "__main__":
    main()
