"""How much of the gap between two views is rounding: python -m benchmarks.gap_noise --config=FILE.py[:ARG]

One batch of rollouts is sampled in float32 and scored in bfloat16 under eight arrangements: other widths of padding
before both prompts, and other numbers and orders of problems at a time. Without rounding all of them would give the
same numbers. Printed are, over all response tokens and arrangements, in nats,

    genuine       mean |gap| of the teacher with its context, in float32
    noise         mean |gap| of a teacher that reads the student's own prompt, in another arrangement than the student
    error         mean |gap - gap in float32| of the teacher with its context
    wrong sign    of the sum of |teacher's term of DASD|, the share on tokens where its sign is another in float32

and the seconds of a scored arrangement. rollout.problems (a multiple of 8), rollout.rollouts and
rollout.max_new_tokens say how much is scored.
"""

import dataclasses
import time
from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from dasd_jax import cli
from dasd_jax.batch import RolloutBatch
from dasd_jax.config import Config
from dasd_jax.data.pipeline import PromptSet
from dasd_jax.learner import passes
from dasd_jax.learner.step_config import StepConfig
from dasd_jax.mesh import fetch, make_mesh, put_rows, replicate
from dasd_jax.methods.dasd import DasdParams, dasd
from dasd_jax.model.config import ModelConfig
from dasd_jax.objective.token_stats import token_stats
from dasd_jax.rollout.sampler import relayout, rollout
from dasd_jax.run import models, setup


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """Positions of padding before the prompts of each view, and how many problems are scored at a time."""

    student: int
    teacher: int
    problems: int
    backwards: bool = False


PLAIN = Arrangement(0, 0, 8)
ARRANGEMENTS = (
    Arrangement(0, 32, 8),
    Arrangement(17, 0, 8, backwards=True),
    Arrangement(64, 96, 8),
    Arrangement(5, 40, 4),
    Arrangement(33, 1, 4, backwards=True),
    Arrangement(8, 8, 2),
    Arrangement(96, 13, 2, backwards=True),
    Arrangement(0, 64, 1),
)


class Scorer:
    """Scores one batch of rollouts under any arrangement."""

    def __init__(self, config: Config, mesh, model: ModelConfig, params, prompts: PromptSet, tokenizer):
        """Samples the rollouts, in float32."""
        self._steps, self._mesh, self._params = setup.step_config(config, model, mesh), mesh, params
        self._batch = prompts.batches(config.rollout.problems, config.run.seed)[0]
        self._shown = prompts.teacher_batch(self._batch.example_id, group=config.rollout.rollouts)
        exact = _computed_in("float32", model)
        sampling = setup.training_sampling(config, tokenizer)
        seeds = replicate(mesh, (np.int32(config.run.seed), np.int32(0)))
        written = rollout(
            exact, sampling, relayout(exact, params), put_rows(mesh, self._batch), seeds[0], "train", seeds[1]
        )
        self.rollouts: RolloutBatch = fetch(written[0])

    def __call__(self, dtype: str, prompt: str, extra: int, how: Arrangement) -> tuple[np.ndarray, np.ndarray]:
        """Log-probability and entropy of each response token after the "student" or "teacher" prompt, f32[rows, R]."""
        batch = self._batch if prompt == "student" else self._shown
        tokens, mask = (np.asarray(getattr(batch, f"{prompt}_prompt{name}")) for name in ("", "_mask"))
        widths = ((0, 0), (extra, 0))
        tokens, mask = np.pad(tokens, widths), np.pad(mask, widths)
        steps = dataclasses.replace(self._steps, model=_computed_in(dtype, self._steps.model))
        group = steps.shape.rollouts
        order = np.arange(len(tokens))[:: -1 if how.backwards else 1]
        found = np.zeros((2, *self.rollouts.response.shape), np.float32)
        for start in range(0, len(order), how.problems):
            part = order[start : start + how.problems]
            rows = (part[:, None] * group + np.arange(group)).reshape(-1)
            arrays = tokens[part], mask[part], self.rollouts.response[rows], self.rollouts.response_mask[rows]
            found[:, rows] = fetch(score_rows(steps, self._params, *put_rows(self._mesh, arrays)))
        return found[0], found[1]


def _computed_in(dtype: str, model: ModelConfig) -> ModelConfig:
    """The model in another compute dtype; the fused kernels of attention have no float32."""
    kernel = "xla" if dtype == "float32" else model.attention
    return dataclasses.replace(model, compute_dtype=dtype, attention=kernel)


@partial(jax.jit, static_argnums=0)
def score_rows(steps: StepConfig, params, prompt, prompt_mask, response, response_mask):
    """(log-probability, entropy) of response tokens in nats, f32[rows, R]."""
    outputs = passes.outputs(steps, params, prompt, prompt_mask, response, response_mask)
    chunk = steps.chunk(len(response))
    stats = token_stats(outputs, (), response, temperature=steps.temperature, chunk=chunk)
    return stats.logp, stats.entropy


def measure(score: Scorer, hp: DasdParams, arrangements: Sequence[Arrangement] = ARRANGEMENTS) -> dict[str, float]:
    """What the table prints."""
    mask = score.rollouts.response_mask
    nothing = np.zeros(len(mask), np.float32)

    def term(student, teacher, entropy):
        return np.asarray(dasd(student, teacher, entropy, mask, nothing, hp)[0])[mask]

    student, entropy = score("float32", "student", 0, PLAIN)
    teacher, _ = score("float32", "teacher", 0, PLAIN)
    exact_gap, exact_term = (teacher - student)[mask], term(student, teacher, entropy)
    found: dict[str, list] = {"noise": [], "error": [], "wrong sign": [], "seconds": []}
    for how in arrangements:
        student, entropy = score("bfloat16", "student", how.student, how)
        began = time.monotonic()
        teacher, _ = score("bfloat16", "teacher", how.teacher, how)
        found["seconds"].append(time.monotonic() - began)
        blank, _ = score("bfloat16", "student", how.teacher + 32, PLAIN)
        found["noise"].append(np.abs(blank - student)[mask].mean())
        found["error"].append(np.abs((teacher - student)[mask] - exact_gap).mean())
        dense = term(student, teacher, entropy)
        found["wrong sign"].append(np.abs(dense)[np.sign(dense) != np.sign(exact_term)].sum() / np.abs(dense).sum())
    return {
        "tokens": int(mask.sum()),
        "genuine": float(np.abs(exact_gap).mean()),
        **{name: float(np.mean(values)) for name, values in found.items()},
    }


def main(argv: Sequence[str]) -> None:
    """Prints one table."""
    config = cli.parse(cli.parser(__doc__), argv).config
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        tokenizer = models.open_tokenizer(config.model)
        prompts, _, _ = setup.open_prompts(config, tokenizer)
        model, params = models.open_model(config, mesh)
        score = Scorer(config, mesh, model, params, prompts, tokenizer)
        found = measure(score, config.hp)
    table = Table("", "nats a token")
    for name, value in found.items():
        table.add_row(name, f"{value:.4g}")
    Console().print(table)


if __name__ == "__main__":
    cli.run(main)
