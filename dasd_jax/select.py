"""Selects data for fine-tuning: python -m dasd_jax.select --config=FILE.py --input=FILE[,FILE…] --output=DIR

Of two versions of each problem's solution, such as a chain of thought and a program with its output, takes the one that
the untrained model learns more from, or both (TATA, arXiv 2502.12022; docs/data.md has the format of the files). Each
version is shown as the one worked example before the problems of an anchor set, which stand for clusters of all
problems; run.eval_samples answers to each, sampled as for an evaluation, give the version its score. Quantiles of the
difference of the scores decide.

Writes DIR/selected.jsonl, which objective.method=sft trains on as jsonl:DIR/selected.jsonl, DIR/selected.json with what
was chosen and why, and DIR/scores.jsonl. After an interruption the same command resumes after the versions already
scored. With the first two renamed, other --quantiles select again from the scores, without the model. On several
hosts run the same command on each, with a shared DIR.
"""

import dataclasses
import datetime
import hashlib
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import rich.console
from jax.sharding import Mesh

from dasd_jax import cli, files, formats, hosts, terminal
from dasd_jax.config import Config
from dasd_jax.data import anchors, versions
from dasd_jax.data.anchors import Anchor
from dasd_jax.data.pipeline import PromptSet
from dasd_jax.data.versions import Versioned
from dasd_jax.errors import UserError
from dasd_jax.mesh import make_mesh
from dasd_jax.run import compiled, decisions, models, selection, setup
from dasd_jax.run.counts import listed
from dasd_jax.run.display import duration
from dasd_jax.run.failures import Failures, said_of
from dasd_jax.run.partial import Partial, check_same, deciding
from dasd_jax.run.selection import Example, Score
from dasd_jax.text.tokenizer import Tokenizer
from dasd_jax.verify.verifier import Verifier

_NOTICES = 10  # lines of progress, beside the one that a terminal shows


def main(argv: list[str]) -> None:
    """The command."""
    flags = cli.parser(__doc__)
    flags.add_argument("--input", required=True, metavar="FILE[,FILE…]", help=".jsonl or .parquet, with both versions")
    flags.add_argument("--output", required=True, metavar="DIR", help="folder of the data set")
    flags.add_argument("--versions", default="cot,tir", metavar="A,B", help="their names (default: cot,tir)")
    flags.add_argument("--anchors", type=int, default=100, metavar="N", help="size of the anchor set (default: 100)")
    flags.add_argument(
        "--quantiles",
        default="0.25,0.75",
        metavar="LOW,HIGH",
        help="of score(A) - score(B): only B below LOW, only A above HIGH, else both (default: 0.25,0.75)",
    )
    hosts.add_flags(flags)
    command = cli.parse(flags, argv)
    asked, output = command.flags, Path(command.flags.output).expanduser()
    names, quantiles = _names(asked.versions), _quantiles(asked.quantiles)
    own = {f"--{name}": getattr(asked, name) for name in ("input", "output", "versions", "anchors", "quantiles")}
    hosts.start(asked, own | command.settings())
    compiled.keep_programs()
    config = _config(command.config, asked.input, output)
    files.check_writable(output, "--output")
    console = terminal.console()
    console.quiet = not hosts.is_main()
    config = models.pinned(config, output)
    versioned, counts = versions.read(config.data.sources, names, config.data.verifier)
    setup.check_references(each.problem for each in versioned)
    tokenizer = models.open_tokenizer(config.model)
    terminal.say(console, f"problems: {listed(counts)}")
    anchor_set = _anchors(versioned, asked.anchors, config.run.seed)
    whole = [place for place, each in enumerate(versioned) if len(each.texts) == len(names)]
    text, width = setup.prompt_text(config, []), config.rollout.prompt_length
    fitting = selection.that_fit(text, tokenizer, versioned, whole, anchor_set, width)
    if long := len(whole) - len(fitting):
        terminal.say(
            console, f"{long:,} left out with a version that is too long for rollout.prompt_length = {width:,}"
        )
    examples = [Example(), *(Example(place, name) for place in fitting for name in names)]
    samples, length = config.run.eval_samples, config.rollout.max_new_tokens
    answers = len(examples) * len(anchor_set) * samples
    terminal.say(
        console,
        f"answers: {answers:,} at most, {samples} to each of {len(anchor_set)} anchors after each of the 2 versions of "
        f"{len(fitting):,} problems and without one, of up to {length:,} tokens each",
    )
    scores, settings = _scored(config, output, names, quantiles, tokenizer, versioned, anchor_set, examples, console)
    rows, report = decisions.chosen(versioned, names, whole, anchor_set, scores, quantiles)
    report = {**report, "problems": {**counts, **report["problems"]}, "answers": answers, "settings": settings}
    if hosts.is_main():
        # The report first: it says whose a data set is that is not there yet.
        files.write_json(output / "selected.json", report)
        files.write_lines(output / "selected.jsonl", rows)
    terminal.show(console, f"\n{table(report, terminal.width_of(console))}\n")
    terminal.say(console, f"{len(rows):,} examples written to {output / 'selected.jsonl'}")


def _anchors(versioned: Sequence[Versioned], count: int, seed: int) -> list[Anchor]:
    if not 2 <= count <= len(versioned):
        raise UserError(f"--anchors: {count}: expected 2 to {len(versioned)}, the problems of --input")
    questions = [each.problem.question for each in versioned]
    found = hosts.from_main(lambda: [dataclasses.asdict(each) for each in anchors.choose(questions, count, seed)])
    return [Anchor(**each) for each in found]


def _scored(
    config: Config,
    output: Path,
    names: Sequence[str],
    quantiles: Sequence[float],
    tokenizer: Tokenizer,
    versioned: Sequence[Versioned],
    anchor_set: Sequence[Anchor],
    examples: Sequence[Example],
    console: rich.console.Console,
) -> tuple[dict[Example, Score], dict[str, Any]]:
    """(scores of all examples, after sampling those that DIR/scores.jsonl lacks; all that decides the data set)."""
    mesh, group = make_mesh(config.mesh), config.rollout
    with (
        jax.set_mesh(mesh),
        Verifier(group.verifier_workers, group.verifier_deadline_s, group.verifier_memory_mb) as verifier,
    ):
        verifier.probe(each.problem for each in versioned)
        settings = _settings(config, mesh, tokenizer, versioned, names, anchor_set)
        hosts.check_same(lambda: settings)
        decided = {**settings, "quantiles": list(quantiles)}
        kept = None
        if hosts.is_main():
            _check_replaceable(output, decided)
            header = {**settings, "data.now": config.data.now}
            kept = Partial(output / "scores.jsonl", header, "--output", selection.of_line)
        known = hosts.from_main(lambda: [score.as_line() for score in kept.known])
        scores = {score.example: score for score in map(selection.of_line, known)}
        if scores:
            terminal.say(console, f"{len(scores):,} of {len(examples):,} examples are already scored")
        if scores.keys() >= set(examples):
            return scores, decided
        model, params = models.open_model(config, mesh)
        models.check_vocabulary(tokenizer, model)
        failures = Failures(lambda line: terminal.say(console, line))
        scoring = selection.Scoring(config, mesh, model, params, tokenizer, verifier, failures, versioned, anchor_set)
        with console.status("") as status:
            began, before = time.monotonic(), len(scores)

            def each(found: list[Score]) -> None:
                done = len(scores)
                if kept:
                    kept.append(score.as_line() for score in found)
                scores.update((score.example, score) for score in found)
                left = (time.monotonic() - began) / max(len(scores) - before, 1) * (len(examples) - len(scores))
                line = f"examples {len(scores):,}/{len(examples):,} · {duration(left)} left"
                status.update(line)
                if len(scores) * _NOTICES // len(examples) > done * _NOTICES // len(examples):
                    terminal.say(console, line)

            scoring.of(examples, set(scores), each)
    return scores, decided


def _names(text: str) -> list[str]:
    names = text.split(",")
    if len(set(names)) != 2 or len(names) != 2 or not all(names) or decisions.BOTH in names:
        raise UserError(f"--versions: {text!r}: expected two different names, as in cot,tir")
    return names


def _quantiles(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low, high = math.nan, math.nan
    if not 0 <= low <= high <= 1:
        raise UserError(f"--quantiles: {text!r}: expected LOW,HIGH with 0 <= LOW <= HIGH <= 1, as in 0.25,0.75")
    return low, high


def _config(config: Config, paths: str, output: Path) -> Config:
    """The same with the files of versions as its sources, and with the date of the scores that are already there."""
    if config.data.shots:
        raise UserError(f"data.shots: {config.data.shots}: expected 0, since a version is the one worked example")
    sources = tuple(path for path in paths.split(",") if path)
    if not sources:
        raise UserError(f"--input: {paths!r}: expected at least one file")

    def moment() -> str:
        path, first = output / "scores.jsonl", b""
        with files.reading(path, "--output"):
            if path.is_file():
                with path.open("rb") as file:
                    first = file.readline()
            # Without a line break it was cut off by a kill.
            known = formats.parse_object(first, "its first line").get("data.now") if first.endswith(b"\n") else None
        return known or datetime.datetime.now().isoformat(timespec="seconds")

    now = config.data.now or hosts.from_main(moment)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources, now=now))


def _settings(
    config: Config,
    mesh: Mesh,
    tokenizer: Tokenizer,
    versioned: Sequence[Versioned],
    names: Sequence[str],
    anchor_set: Sequence[Anchor],
) -> dict[str, Any]:
    """Everything that determines the scores."""
    asked = [versioned[anchor.place].problem for anchor in anchor_set]
    prompts = PromptSet(asked, tokenizer, setup.prompt_text(config, []), student_width=config.rollout.prompt_length)
    texts = json.dumps([[each.problem.question, each.problem.answer, each.texts] for each in versioned])
    return {
        "versions": list(names),
        "anchors": len(anchor_set),
        **deciding(config, mesh, tokenizer, "start", models.fingerprint(config), prompts, asked),
        "input": hashlib.sha256(texts.encode()).hexdigest(),
    }


def _check_replaceable(output: Path, settings: dict[str, Any]) -> None:
    """Refuses to overwrite a data set that was chosen with other settings.

    Raises:
        UserError: naming the first setting that differs.
    """
    report, data = output / "selected.json", output / "selected.jsonl"
    if report.exists():
        with files.reading(report, "--output"):
            theirs = formats.read_object(report)["settings"]
            check_same(theirs, settings, report, f"renamed to keep both, as well as {data.name}", "--output")
    elif data.exists():
        raise UserError(f"--output: {data} exists without {report.name}: expected it renamed as well, or removed")


def table(report: dict[str, Any], width: int | None) -> str:
    """Scores with standard errors, thresholds and decisions."""
    figures = {
        name: terminal.with_error(part["mean"], part["standard_error"]) for name, part in report["scores"].items()
    }
    alone = report["without_example"]
    rows = [[name, figures[name], str(report["decisions"][name])] for name in figures]
    rows += [
        [decisions.BOTH, "", str(report["decisions"][decisions.BOTH])],
        ["no example", terminal.with_error(alone["mean"], alone["standard_error"]), ""],
    ]
    scores = terminal.table(("version", "score", "problems"), rows, width)
    limits = ", ".join(f"{value:+.3f} at {quantile}" for quantile, value in report["quantiles"].items())
    lines = [f"quantiles of the difference, {' less '.join(figures)}: {limits}"]
    parts = {**report["scores"], "no example": alone}
    lines += said_of({name: part["unjudged_frac"] for name, part in parts.items()})
    return f"{scores}\n\n" + "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
