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
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import rich.box
import rich.console
import rich.table
from jax.sharding import Mesh

from dasd_jax import cli, files, hosts, recorded
from dasd_jax.config import Config
from dasd_jax.data.pipeline import PromptSet
from dasd_jax.errors import UserError
from dasd_jax.evaluate import check_replaceable
from dasd_jax.learner import checkpoint
from dasd_jax.mesh import make_mesh
from dasd_jax.run import interventions, setup
from dasd_jax.run.pairs import Outcome, Result, summary
from dasd_jax.run.places import CUES
from dasd_jax.text.prompts import CONTEXTS
from dasd_jax.text.tokenizer import Tokenizer
from dasd_jax.verify.verifier import Verifier


def main(argv: list[str]) -> None:
    """The command."""
    flags = cli.parser(__doc__, of_a_run=True)
    # Not set where it is not given, so that it leaves --workdir as it is.
    flags.add_argument("workdir", nargs="?", default=argparse.SUPPRESS, metavar="RUN", help="the same as --workdir")
    flags.add_argument(
        "--checkpoint", default="", metavar="STEP", help="step, best, path, or start for untrained (default: newest)"
    )
    flags.add_argument(
        "--context", default="", choices=CONTEXTS, help="what the teacher is shown (default: data.privileged)"
    )
    hosts.add_flags(flags)
    command = cli.parse(flags, argv)
    workdir, which, context = command.workdir, command.flags.checkpoint, command.flags.context
    hosts.start(command.flags, {"--checkpoint": which, "--context": context, **command.settings()})
    config = recorded.for_checkpoint(command.config, workdir, which)
    files.check_writable(workdir / "intervene", "--workdir")
    mesh = make_mesh(config.mesh)
    with (
        jax.set_mesh(mesh),
        Verifier(
            config.rollout.verifier_workers, config.rollout.verifier_deadline_s, config.rollout.verifier_memory_mb
        ) as verifier,
    ):
        tokenizer = setup.open_tokenizer(config.model)
        if which == "start":
            name, manifest, (model, params) = "start", "", setup.open_model(config, mesh)
        else:
            folder = Path(hosts.from_main(lambda: str(checkpoint.find(workdir, which))))
            name = str(int(folder.name)) if folder.name.isdigit() else folder.name
            manifest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
            model, params = checkpoint.restore_params(folder, mesh)
            model = setup.configured(config, model)
        setup.check_vocabulary(tokenizer, model)
        prompts, counts = interventions.open_prompts(config, tokenizer, context)
        hosts.check_same(lambda: {"data": prompts.digest()})
        example_ids = setup.evaluated(config, prompts)
        path, settings = workdir / "intervene" / f"{name}{context and '-' + context}.json", {}
        if hosts.is_main():
            settings = _settings(config, mesh, name, manifest, prompts, example_ids, context)
            _check_replaceable(path, settings)
        # A log file has no width, and rich's default of 80 columns would wrap the lines around the table.
        console = rich.console.Console(width=None if sys.stdout.isatty() else 200, quiet=not hosts.is_main())
        console.print("problems: " + ", ".join(f"{count} {what}" for what, count in counts.items()), highlight=False)
        work = interventions.Interventions(config, mesh, model, params, tokenizer, prompts, verifier, context)
        with console.status("") as status:
            pairs, rewards = work.choose(example_ids, _counting(status, "problems", len(example_ids)))
            if not pairs:
                raise UserError(
                    f"run.eval_problems: none of the responses to {len(example_ids)} problem(s) has a place to "
                    "intervene: expected more problems, or a teacher that would write another token somewhere"
                )
            results = work.outcomes(pairs, _counting(status, "continued", 2 * len(pairs)))
    result = {**summary(results, rewards, _figures), "settings": settings}
    if hosts.is_main():
        _write_lines(path.with_suffix(".jsonl"), [_line(each, tokenizer) for each in results])
        files.write_json(path, result)
    asked = f"{result['responses']} responses to {result['problems']} problem(s)"
    console.print(f"{asked}: accuracy {result['accuracy']:.3f} ± {result['standard_error']:.3f}", highlight=False)
    console.print(table(result))
    console.print(f"written to {path}", highlight=False)


def _counting(status, what: str, total: int):
    """What shows, each time it is told of some more, how many of all are done."""
    done = 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        status.update(f"{what} {done}/{total}")

    return more


def _figures(texts: Sequence[str], lengths: Sequence[int]) -> dict[str, float]:
    """The share of responses with a revision cue."""
    return {"revision_cue_frac": sum(CUES.search(text) is not None for text in texts) / len(texts)}


def _settings(
    config: Config,
    mesh: Mesh,
    name: str,
    manifest: str,
    prompts: PromptSet,
    example_ids: Sequence[int],
    context: str,
) -> dict[str, Any]:
    """Everything that determines pairs and outcomes."""
    groups = config.to_dict()
    del groups["data"]["now"]  # decides nothing but the prompts of some templates
    del groups["rollout"]["verifier_workers"]
    named = ("seed", "eval_problems", "eval_samples", "eval_temperature", "eval_top_k", "eval_top_p")
    deciding = {name: groups[name] for name in ("model", "data", "rollout")}
    deciding |= {"run": {field: groups["run"][field] for field in named}}
    deciding |= {"objective": {"truncated": config.objective.truncated}}
    asked = [prompts.problems[i] for i in example_ids]
    texts = json.dumps([[problem.source, problem.question, problem.answer] for problem in asked])
    return {
        "checkpoint": name,
        "manifest": manifest,
        "context": context,
        # Logits differ in their last digits between device kinds and between numbers of rows per device.
        "devices": [jax.devices()[0].device_kind, *mesh.devices.shape],
        **{f"{group}.{field}": value for group, fields in deciding.items() for field, value in fields.items()},
        "problems": hashlib.sha256(texts.encode()).hexdigest(),
        "prompts": prompts.digest(),
    }


def _check_replaceable(path: Path, settings: dict[str, Any]) -> None:
    """Refuses to overwrite a result of other settings, or pairs whose settings nobody knows.

    Raises:
        UserError: naming the first setting that differs, or the pairs without their result.
    """
    check_replaceable(path, settings)
    lines = path.with_suffix(".jsonl")
    if lines.exists() and not path.exists():
        raise UserError(
            f"--workdir: {lines} is there without {path.name}, which says what made it: expected both, or neither"
        )


def _write_lines(path: Path, lines: Sequence[dict]) -> None:
    """Writes the objects to a file, all of them or none; creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    draft.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    draft.rename(path)


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


def table(result: dict) -> rich.table.Table:
    """Arms and figures in 80 columns; – stands for what no pair has."""
    shown = rich.table.Table(box=rich.box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("arm", no_wrap=True)
    for head in ("pairs", "control", "treated", *_COLUMNS.values()):
        shown.add_column(head, justify="right", no_wrap=True)
    for arm, found in result["arms"].items():
        figures = found["figures"]
        sides = (_number(figures.get("accuracy", {}).get(side)) for side in ("control", "treated"))
        changes = (_change(figures.get(name, {})) for name in _COLUMNS)
        shown.add_row(arm, str(found["pairs"]), *sides, *changes)
    return shown


def _change(figure: dict[str, float]) -> str:
    if not figure:
        return "–"
    return f"{_number(figure['difference'], sign='+')} ± {_number(figure.get('standard_error'))}"


def _number(value: float | None, sign: str = "") -> str:
    """Three digits, as .412, 1.53 or 24.6."""
    if value is None:
        return "–"
    decimals = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1
    return re.sub(r"^([+-]?)0\.", r"\1.", f"{value:{sign}.{decimals}f}")


if __name__ == "__main__":
    cli.run(main)
