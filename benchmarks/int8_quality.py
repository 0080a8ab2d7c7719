"""What rollouts in int8 cost in quality: python -m benchmarks.int8_quality --config=configs/smollm2_math.py

Answers the held-out problems with the untrained model (run.eval_problems, run.eval_samples) and compares Avg@k with the
compute dtype's, problem by problem, on the same random numbers; and samples a training batch and compares the recorded
log-probabilities with those of the score pass. Another model: --config.model.weights=PATH. With --train=DIR the run of
the config is trained in DIR/compute and DIR/int8 (with objective.tis=2) as well, for --config.run.steps.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from benchmarks.gap_noise import score_rows
from benchmarks.runs import numbers, python
from benchmarks.timing import hardware
from dasd_jax import cli, terminal
from dasd_jax.config import Config
from dasd_jax.mesh import fetch, make_mesh, put_rows, replicate
from dasd_jax.rollout.sampler import relayout, rollout
from dasd_jax.run import models, setup
from dasd_jax.run.evaluation import evaluate, rise
from dasd_jax.run.failures import Failures
from dasd_jax.verify.verifier import Verifier

KINDS = {
    "compute": {},
    "int8 weights": {"weights": "int8"},
    "int8 cache": {"cache": "int8"},
    "both": {"weights": "int8", "cache": "int8"},
}
TRAINED = {"compute": (), "int8": ("rollout.weights=int8", "rollout.cache=int8", "objective.tis=2")}


def gaps(config: Config, mesh, model, params, prompts, tokenizer, in_int8: dict[str, str]):
    """What the score pass, p, and the sampler, q, say of a training batch, in nats.

    Returns:
        (|log p - log q| f64[response tokens], the largest |mean of log p - log q| of a row).
    """
    sampling = dataclasses.replace(setup.training_sampling(config, tokenizer), **in_int8)
    batch = put_rows(mesh, prompts.batches(config.rollout.problems, config.run.seed)[0])
    seed, step = replicate(mesh, (np.int32(config.run.seed), np.int32(0)))
    params_of = relayout(model, params, sampling.weights)
    written, _ = rollout(model, sampling, params_of, batch, seed, "train", step)
    del params_of
    asked = batch.student_prompt, batch.student_prompt_mask, written.response, written.response_mask
    logp, _ = score_rows(setup.step_config(config, model, mesh), params, *asked)
    logp, sampled, mask = fetch((logp, written.sampled_logp, written.response_mask))
    gap = np.where(mask, np.float64(logp) - sampled, 0)
    return np.abs(gap[mask]), np.abs(gap.sum(axis=1) / np.maximum(mask.sum(axis=1), 1)).max()


def measure(config: Config) -> None:
    """Prints a row for each kind."""
    group = config.rollout
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    verifier = Verifier(group.verifier_workers, group.verifier_deadline_s, group.verifier_memory_mb)
    with jax.set_mesh(mesh), verifier:
        tokenizer = models.open_tokenizer(config.model)
        train, heldout, _ = setup.open_prompts(config, tokenizer)
        model, params = models.open_model(config, mesh)
        asked, samples, first = setup.evaluated(config, heldout), config.run.eval_samples, None
        print(
            f"{len(asked)} held-out problems; {group.problems} × {group.rollouts} training rollouts of up to "
            f"{group.max_new_tokens} tokens; {config.model.compute_dtype}\n"
        )
        print(f"| sampled in | avg@{samples} | less compute's | gap: tokens | mean | 99.9 % | largest | of a row |")
        print("|---" * 8 + "|", flush=True)
        for kind, in_int8 in KINDS.items():
            found = evaluate(
                model=model,
                params=params,
                mesh=mesh,
                tokenizer=tokenizer,
                prompts=heldout,
                verifier=verifier,
                failures=Failures(print),
                sampling=dataclasses.replace(setup.eval_sampling(config, tokenizer), **in_int8),
                example_ids=asked,
                rows=group.problems * group.rollouts,
                seed=config.run.seed,
            )
            first = first or found
            change, error = rise(first, found)
            gap, of_row = gaps(config, mesh, model, params, train, tokenizer, in_int8)
            average = found[f"avg@{samples}"]
            print(
                f"| {kind} | {terminal.with_error(average, found['standard_error'])} "
                f"| {terminal.with_error(change, error, '+')} "
                f"| {len(gap)} | {gap.mean():.3g} | {np.quantile(gap, 0.999):.3g} | {gap.max():.3g} | {of_row:.3g} |",
                flush=True,
            )


def train(flags: Sequence[str], folder: Path) -> None:
    """Trains both and prints what differs."""
    print("| trained with rollouts in | avg before | after | gap, mean of all steps | tokens at the cap |")
    print("|---" * 5 + "|", flush=True)
    for kind, overrides in TRAINED.items():
        python("dasd_jax.train", *flags, *(f"--config.{each}" for each in overrides), f"--workdir={folder / kind}")
        lines = numbers(folder / kind)
        (average,) = (name for name in lines[0] if name.startswith("eval/avg@"))
        gap = np.mean([line["policy/logp_gap_mean"] for line in lines[1:]])
        capped = np.mean([line.get("policy/tis_capped_frac", math.nan) for line in lines[1:]])
        print(f"| {kind} | {lines[0][average]:.3f} | {lines[-1][average]:.3f} | {gap:.3g} | {capped:.2g} |", flush=True)


def main(argv: Sequence[str]) -> None:
    """Prints both tables."""
    flags = cli.parser(__doc__)
    flags.add_argument("--train", default="", metavar="DIR", help="train as well; runs go on where they lie there")
    command = cli.parse(flags, argv)
    measure(command.config)
    if command.flags.train:
        print()
        train([each for each in argv if not each.startswith("--train")], Path(command.flags.train))
    print(f"\n`python -m benchmarks.int8_quality {' '.join(argv)}`, {hardware()}.")


if __name__ == "__main__":
    cli.run(main)
