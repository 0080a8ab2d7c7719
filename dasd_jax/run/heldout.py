"""The evaluations of a training on its held-out problems."""

import dataclasses
import time

from dasd_jax import files, hosts, terminal
from dasd_jax.errors import UserError
from dasd_jax.model import param_table
from dasd_jax.run import setup
from dasd_jax.run.evaluation import REMARKED, Answers, as_line, evaluate, problems_at_a_time, remarks
from dasd_jax.run.partial import Partial, deciding
from dasd_jax.run.start import Run


def evaluate_heldout(run: Run) -> dict[str, float]:
    """Scores the held-out problems, writes heldout/<step>.json and .jsonl, returns the main figures for the log.

    Answers are kept in heldout/<step>.partial.jsonl until all are there: a run that was interrupted, and comes to the
    same weights again, goes on with them.
    """
    run.display.phase("evaluate")
    started, config, step = time.monotonic(), run.config, run.step
    rows = config.rollout.problems * config.rollout.rollouts
    at_a_time = problems_at_a_time(rows, config.run.eval_samples, run.mesh)
    example_ids = setup.evaluated(config, run.heldout)
    partial = _partial(run, example_ids)
    known = hosts.from_main(lambda: [dataclasses.asdict(answers) for answers in partial.known])
    known = [Answers(**answers) for answers in known]
    kept = [as_line(run.heldout.problems, answers) for answers in known]

    def each_batch(batch: list[Answers]) -> None:
        lines = [as_line(run.heldout.problems, answers) for answers in batch]
        kept.extend(lines)
        if partial:
            partial.append(lines)
        run.display.progress(len(kept), len(example_ids), "problems")

    result = evaluate(
        model=run.model,
        params=run.state.params,
        mesh=run.mesh,
        tokenizer=run.tokenizer,
        prompts=run.heldout,
        verifier=run.verifier,
        failures=run.failures,
        sampling=run.with_slots(setup.eval_sampling(config, run.tokenizer), at_a_time),
        example_ids=example_ids,
        rows=rows,
        seed=config.run.seed,
        known=known,
        each_batch=each_batch,
    )
    if partial:
        files.write_lines(run.workdir / "heldout" / f"{step}.jsonl", kept)
        files.write_json(run.workdir / "heldout" / f"{step}.json", result)
        partial.path.unlink(missing_ok=True)
    k = result["samples"]
    run.display.say(
        f"held out after step {step}: avg@{k} {terminal.with_error(result[f'avg@{k}'], result['standard_error'])}, "
        f"pass@{k} {result[f'pass@{k}']:.3f}, " + ", ".join([f"{result['problems']} problems", *remarks(result)])
    )
    named = (f"avg@{k}", f"pass@{k}", "standard_error", "length_mean", "truncated_frac", "parse_failure_frac")
    named += tuple(REMARKED.values())
    metrics = {f"eval/{name}": result[name] for name in named if result[name] is not None}
    metrics |= {f"eval/health/{name}": value for name, value in result["health"].items()}
    if config.data.benchmarks:
        parts = {**result["benchmarks"], "macro": result["macro"]}
        averages = {name: figures[f"avg@{k}"] for name, figures in parts.items()}
        run.display.say("    " + ", ".join(f"{name} {average:.3f}" for name, average in averages.items()))
        metrics |= {f"eval/{name}/avg@{k}": average for name, average in averages.items()}
    return metrics | {"time/eval_s": time.monotonic() - started}


def _partial(run: Run, example_ids: list[int]) -> Partial | None:
    """What there is of this evaluation already, in process 0; answers of other weights or settings are removed."""
    weights = str(int(param_table.fingerprint(run.state.params)))
    if not hosts.is_main():
        return None
    asked = [run.heldout.problems[i] for i in example_ids]
    name = f"step {run.step}"
    settings = deciding(run.config, run.mesh, run.tokenizer, name, weights, run.heldout, asked)
    path = run.workdir / "heldout" / f"{run.step}.partial.jsonl"
    try:
        return Partial(path, settings)
    except UserError:
        path.unlink()
        return Partial(path, settings)
