"""Measures what the teacher's tokens do to answers: python -m dasd_jax.intervene RUN [--checkpoint=STEP|PATH|start]

Answers the problems that an evaluation asks, run.eval_samples times each. In each response one token is exchanged for
the first choice of the teacher, which is shown data.privileged: one of high entropy, one of low entropy, one of any.
Besides, a revision cue such as "Wait" is suppressed, and one is forced at the end of a sentence. The student goes on
from both beginnings, the changed one and the one as it was. Prints accuracy and other figures of both and their paired
difference with its standard error over problems; docs/intervene.md says how to read them.

Writes RUN/intervene/<step>.json, and each pair with both texts into <step>.jsonl beside it. Settings come from
config.json in RUN, or from --config, as for evaluate; --config.GROUP.FIELD=VALUE changes them, for example
run.eval_problems, run.eval_samples, run.seed or data.privileged. A result is never overwritten by one that was made
with others. --context=none is the control: the teacher is then shown nothing, and chooses what the student would.
"""

import argparse
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax

from dasd_jax import cli, files, hosts, recorded, terminal
from dasd_jax.data import contexts
from dasd_jax.errors import UserError
from dasd_jax.health import figures
from dasd_jax.mesh import make_mesh
from dasd_jax.run import compiled, counts, interventions, models, seen, setup, user_files
from dasd_jax.run.asked import Asked, check_filed
from dasd_jax.run.evaluation import remarks
from dasd_jax.run.failures import Failures, said_of
from dasd_jax.run.pairs import Outcome, Result, summary
from dasd_jax.run.partial import check_replaceable, deciding
from dasd_jax.text.prompts import CONTEXTS
from dasd_jax.text.tokenizer import Tokenizer
from dasd_jax.verify.verifier import Verifier

# Skills are retrieved for training problems; how much of a solution is shown, a method decides in every step.
_CONTEXTS = tuple(name for name in CONTEXTS if name not in (contexts.SKILLS, contexts.PARTIAL))


def main(argv: list[str]) -> None:
    """The command."""
    flags = cli.parser(__doc__, of_a_run=True)
    # Not set where it is not given, so that it leaves --workdir as it is.
    flags.add_argument("workdir", nargs="?", default=argparse.SUPPRESS, metavar="RUN", help="the same as --workdir")
    flags.add_argument(
        "--checkpoint", default="", metavar="STEP", help="step, best, path, or start for untrained (default: newest)"
    )
    flags.add_argument(
        "--context",
        default="",
        choices=_CONTEXTS,
        metavar="NAME",
        help=f"what the teacher is shown: {', '.join(_CONTEXTS)} (default: data.privileged)",
    )
    hosts.add_flags(flags)
    command = cli.parse(flags, argv)
    workdir, which, context = command.workdir, command.flags.checkpoint, command.flags.context
    hosts.start(command.flags, {"--checkpoint": which, "--context": context, **command.settings()})
    compiled.keep_programs()
    config = recorded.for_checkpoint(command.config, workdir, which)
    check_filed(workdir, which)
    files.check_writable(workdir / "intervene", "--workdir")
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
        user_files.check_evaluated(config, setup.open_evaluation(config, tokenizer, own), workdir, which)
        prompts = interventions.open_prompts(config, tokenizer, context, own)
        verifier.probe(prompts.problems)
        manifest, model, params = source.open(config, mesh)
        models.check_vocabulary(tokenizer, model)
        hosts.check_same(lambda: {"data": prompts.digest()})
        example_ids = setup.evaluated(config, prompts)
        path, settings = workdir / "intervene" / f"{source.name}{context and '-' + context}.json", {}
        if hosts.is_main():
            asked = [prompts.problems[i] for i in example_ids]
            settings = deciding(config, mesh, tokenizer, source.name, manifest, prompts, asked)
            settings |= {"context": context, "objective.truncated": config.objective.truncated}
            check_replaceable(path, settings)
        console = terminal.console()
        console.quiet = not hosts.is_main()
        for line in counts.lines(config, prompts):
            terminal.say(console, line)
        if hosts.is_main():
            for line in seen.lines(config, prompts, *seen.of_checkpoint(config, workdir, which, own)):
                terminal.say(console, line)
        failures = Failures(lambda line: terminal.say(console, line))
        work = interventions.Interventions(config, mesh, model, params, tokenizer, prompts, verifier, failures, context)
        with console.status("") as status:
            pairs, answers = work.choose(example_ids, _counting(status, "problems", len(example_ids)))
            if not pairs:
                raise UserError(
                    f"run.eval_problems: none of the responses to {len(example_ids)} problem(s) has a place to "
                    "intervene: expected more problems, or a teacher that would write another token somewhere"
                )
            results = work.outcomes(pairs, _counting(status, "continued", 2 * len(pairs)))
    result = {**summary(results, answers, figures.of_responses), "settings": settings}
    if hosts.is_main():
        files.write_lines(path.with_suffix(".jsonl"), [settings, *(_line(each, tokenizer) for each in results)])
        files.write_json(path, result)
    answered = f"{result['responses']} responses to {result['problems']} problem(s)"
    accuracy = terminal.with_error(result["accuracy"], result["standard_error"])
    terminal.say(console, ", ".join([f"{answered}: accuracy {accuracy}", *remarks(result)]))
    for line in said_of({f"after {arm}": found.get("unjudged_frac", 0.0) for arm, found in result["arms"].items()}):
        terminal.say(console, line)
    terminal.show(console, f"\n{table(result, terminal.width_of(console))}\n")
    terminal.say(console, f"written to {path}")


def _counting(status, what: str, total: int):
    """What shows, each time it is told of some more, how many of all are done."""
    done = 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        status.update(f"{what} {done}/{total}")

    return more


def _line(result: Result, tokenizer: Tokenizer) -> dict[str, Any]:
    """A pair for the file: where it differs, in which tokens, and what became of both sides."""
    pair = result.pair

    def side(beginning: Sequence[int], outcome: Outcome) -> dict[str, Any]:
        changed = [tokenizer.piece(int(token)) for token in beginning[pair.place :]]
        return {"tokens": changed, **dataclasses.asdict(outcome)}

    return {
        "arm": pair.arm,
        "example_id": pair.example_id,
        "sample": pair.sample,
        "place": pair.place,
        "entropy": pair.entropy,
        "student_agrees": pair.student_agrees,
        "control": side(pair.control, result.control),
        "treated": side(pair.treated, result.treated),
    }


# Figures with a column of their differences in the table, where they are known, and the head of the column.
_COLUMNS = {"accuracy": "accuracy", "step_accuracy": "StepAcc", "epistemic_count": "E(y)"}


def table(result: dict, width: int | None) -> str:
    """Arms and figures; – stands for what no pair has. In 80 columns it is one block."""
    rows = []
    for arm, found in result["arms"].items():
        of_arm = found["figures"]
        sides = (_number(of_arm.get("accuracy", {}).get(side)) for side in ("control", "treated"))
        rows.append([arm, str(found["pairs"]), *sides, *(_change(of_arm.get(name, {})) for name in _COLUMNS)])
    return terminal.table(("arm", "pairs", "control", "treated", *_COLUMNS.values()), rows, width)


def _change(figure: dict[str, float]) -> str:
    if not figure:
        return "–"
    return f"{_number(figure['difference'], sign='+')} ± {_number(figure['standard_error'])}"


def _number(value: float | None, sign: str = "") -> str:
    """Three digits, as .412, 1.53 or 24.6."""
    if value is None:
        return "–"
    decimals = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1
    return re.sub(r"^([+-]?)0\.", r"\1.", f"{value:{sign}.{decimals}f}")


if __name__ == "__main__":
    cli.run(main)
