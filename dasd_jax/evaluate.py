"""Evaluates a checkpoint: python -m dasd_jax.evaluate --workdir=DIR [--checkpoint=STEP|PATH|start] [--config=FILE.py]

Answers data.benchmarks, or the held-out problems of data.sources, run.eval_samples times each. Prints Avg@K with its
standard error over problems, Pass@k, length, truncation and how the answers are written (docs/health.md), for each
benchmark and their mean; writes eval/<step>.json, and eval/<step>.jsonl with every answer. After an interruption, the
same command resumes after the problems already answered. On several hosts run the same command on each, with a shared
workdir. --health computes the figures of a past evaluation again from its stored answers.

Settings come from config.json in DIR, where the run left it; --config.GROUP.FIELD=VALUE changes them, for example
run.eval_samples or data.benchmarks. With --config they come from that file, which has to agree with config.json about
model, tokenizer, prompts and training problems. eval/<step>.json records the settings that it was made with, and is
never overwritten by an evaluation with others.
"""

import dataclasses
import math
from pathlib import Path

import jax
import rich.console

from dasd_jax import cli, files, formats, hosts, recorded, terminal
from dasd_jax.data.sources import Problem
from dasd_jax.errors import UserError
from dasd_jax.learner import kept
from dasd_jax.mesh import make_mesh
from dasd_jax.run import compiled, counts, models, records, seen, setup, user_files
from dasd_jax.run.asked import Asked, check_filed
from dasd_jax.run.evaluation import REMARKED, Answers, as_line, evaluate, of_line, problems_at_a_time, summary
from dasd_jax.run.failures import Failures
from dasd_jax.run.partial import Partial, check_replaceable, deciding
from dasd_jax.verify.verifier import Verifier


def main(argv: list[str]) -> None:
    """The command."""
    flags = cli.parser(__doc__, of_a_run=True)
    flags.add_argument(
        "--checkpoint", default="", metavar="STEP", help="step, best, path, or start for untrained (default: newest)"
    )
    flags.add_argument(
        "--health", action="store_true", help="compute the figures again from the stored answers, without the model"
    )
    hosts.add_flags(flags)
    command = cli.parse(flags, argv)
    workdir, which = command.workdir, command.flags.checkpoint
    if command.flags.health:
        read_again(workdir, which)
        return
    hosts.start(command.flags, {"--checkpoint": which, **command.settings()})
    compiled.keep_programs()
    config = recorded.for_checkpoint(command.config, workdir, which)
    check_filed(workdir, which)
    files.check_writable(workdir / "eval", "--workdir")
    source = Asked.of(workdir, which)
    mesh = make_mesh(config.mesh)
    with (
        jax.set_mesh(mesh),
        Verifier(
            config.rollout.verifier_workers, config.rollout.verifier_deadline_s, config.rollout.verifier_memory_mb
        ) as verifier,
    ):
        tokenizer = source.tokenizer(config.model)
        own = recorded.benchmarks(workdir, which)
        prompts = setup.open_evaluation(config, tokenizer, own)
        user_files.check_evaluated(config, prompts, workdir, which)
        verifier.probe(prompts.problems)
        manifest, model, params = source.open(config, mesh)
        models.check_vocabulary(tokenizer, model)
        hosts.check_same(lambda: {"data": prompts.digest()})
        example_ids = setup.evaluated(config, prompts)
        asked = [prompts.problems[i] for i in example_ids]
        path, partial, settings = workdir / "eval" / f"{source.name}.json", None, {}
        if hosts.is_main():
            settings = deciding(config, mesh, tokenizer, source.name, manifest, prompts, asked)
            check_replaceable(path, settings)
            partial = Partial(path.with_suffix(".partial.jsonl"), settings)
        known = hosts.from_main(lambda: [dataclasses.asdict(answers) for answers in partial.known])
        done = len(known)
        console = terminal.console()
        console.quiet = not hosts.is_main()
        for line in counts.lines(config, prompts):
            terminal.say(console, line)
        if hosts.is_main():
            for line in seen.lines(config, prompts, *seen.of_checkpoint(config, workdir, which, own)):
                terminal.say(console, line)
        if done:
            terminal.say(console, f"{done} of {len(asked)} problems are already answered")
        rows = config.rollout.problems * config.rollout.rollouts
        sampling = setup.eval_sampling(config, tokenizer)
        at_a_time = problems_at_a_time(rows, sampling.rollouts, mesh)
        sampling = setup.with_free_slots(config, sampling, model, mesh, at_a_time, params)
        with console.status(f"problems {done}/{len(asked)}") as status:

            def each_batch(answers: list[Answers]) -> None:
                nonlocal done
                if partial:
                    partial.append(as_line(prompts.problems, answer) for answer in answers)
                done += len(answers)
                status.update(f"problems {done}/{len(asked)}")

            result = evaluate(
                model=model,
                params=params,
                mesh=mesh,
                tokenizer=tokenizer,
                prompts=prompts,
                verifier=verifier,
                failures=Failures(lambda line: terminal.say(console, line)),
                sampling=sampling,
                example_ids=example_ids,
                rows=rows,
                seed=config.run.seed,
                known=[Answers(**answers) for answers in known],
                each_batch=each_batch,
            )
    if partial:
        partial.path.rename(path.with_suffix(".jsonl"))
        files.write_json(path, {**result, "settings": settings})
    show(console, result, path)


def read_again(workdir: Path, which: str) -> None:
    """Makes the figures of a past evaluation again from the answers that it kept, and writes them in its place.

    Args:
        which: as --checkpoint: names the evaluation; the newest one by default.

    Raises:
        UserError: no evaluation of that name, or one that kept no answers.
    """
    check_filed(workdir, which)
    folder = workdir / "eval"
    if which in ("", "best"):
        found = [int(path.stem) for path in folder.glob("*.jsonl") if path.stem.isdecimal()]
        if not which and not found:
            raise UserError(
                f"--health: {folder} holds no evaluation of a step with stored answers: expected one, made by the "
                "command without --health, or --checkpoint"
            )
        which = kept.find(workdir, which).name if which else str(max(found))
    path = folder / f"{kept.name_of(Path(which))}.json"
    lines = path.with_suffix(".jsonl")
    if not path.exists() or not lines.exists():
        raise UserError(
            f"--health: {lines} and {path.name} must both exist: expected --checkpoint to name an evaluation that "
            "kept its answers, as this version does"
        )
    problems, answers = {}, []
    with files.reading(lines, "--workdir"):
        for line in records.answers(lines):
            answers.append(of_line(line))
            asked = {name: line[name] for name in ("source", "question", "answer")}
            problems[answers[-1].example_id] = Problem(**asked, index=0, scorer="")
        result = summary(problems, answers)
    with files.reading(path, "--workdir"):
        settings = formats.read_object(path)["settings"]
    files.write_json(path, {**result, "settings": settings})
    show(terminal.console(), result, path)


def show(console: rich.console.Console, result: dict, path: Path) -> None:
    """Prints the tables of an evaluation, and where it was written."""
    width = terminal.width_of(console)
    terminal.show(console, f"\n{table(result, width)}\n\n{health_table(result, width)}\n")
    terminal.say(console, f"written to {path}")


def table(result: dict, width: int | None) -> str:
    """The figures of each benchmark and their means, in blocks of columns that fit the width."""
    k, parts = result["samples"], {**result["benchmarks"], "macro": result["macro"]}
    # Where rewards are 0 and 1 the chance of a right sample is their mean; graded rewards may be right less often.
    graded = any(not math.isclose(part["pass@1"], part[f"avg@{k}"], abs_tol=1e-9) for part in parts.values())
    passed = [name for name in result if name.startswith("pass@") and (name != "pass@1" or graded)]
    columns = {name: name for name in passed}
    columns |= {"length": "length_mean", "truncated": "truncated_frac", "no answer": "parse_failure_frac"}
    columns |= {label: name for label, name in REMARKED.items() if any(part[name] for part in parts.values())}
    rows = []
    for label, figures in parts.items():
        average = terminal.with_error(figures[f"avg@{k}"], figures["standard_error"])
        rows.append([label, str(figures["problems"]), average, *(f"{figures[name]:.3f}" for name in columns.values())])
    return terminal.table(("benchmark", "problems", f"avg@{k}", *columns), rows, width)


def health_table(result: dict, width: int | None) -> str:
    """How each benchmark was answered; docs/health.md explains the figures."""
    parts = {**result["benchmarks"], "macro": result["macro"]}
    rows = [
        [name, *(f"{part['health'][name]:.3f}" if name in part["health"] else "–" for part in parts.values())]
        for name in result["health"]
    ]
    return terminal.table(("health", *parts), rows, width)


if __name__ == "__main__":
    cli.run(main)
