"""The user's files that decide a run's results: reward functions, banks of skills, and the files of its problems.

config.json holds the sha256 of each of the first two, and of the problems and prompts that the others came to, so that
a run goes on with what it began with.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dasd_jax import files, hosts, recorded
from dasd_jax.config import FILES, PROBLEMS, START, Config
from dasd_jax.data import contexts, skills, sources, verifiers
from dasd_jax.data.pipeline import PromptSet
from dasd_jax.data.sources import Problem
from dasd_jax.errors import UserError
from dasd_jax.recorded import NAME

TRAINED_ON, EVALUATED_ON = "training problems", "problems to evaluate"


def of(config: Config) -> dict[str, str]:
    """The sha256 of each file, under its name as the config has it.

    Raises:
        UserError: one is not there or cannot be read; starts with the field that names it.
    """
    return _rewards(config) | {path: skills.sha256(path) for path in banks(config)}


def _rewards(config: Config) -> dict[str, str]:
    """Those of reward functions."""
    data = config.data
    found = sources.own_files({"data.sources": data.sources, "data.benchmarks": data.benchmarks}, data.verifier)
    return {name: verifiers.sha256(path) for name, path in found.items()}


def banks(config: Config) -> list[str]:
    """The banks of skills that the method's teachers are shown: data.skills, or nothing."""
    shown = {view.context for view in config.method.views(config.hp).values()}
    return [config.data.skills] if contexts.SKILLS in shown else []


def of_problems(training: PromptSet, evaluated: PromptSet) -> dict[str, str]:
    """The sha256 of the problems that are trained on and evaluated, in their order, and of the prompts made of them."""
    return {TRAINED_ON: _sha256(training.problems), **_evaluated(evaluated), "training prompts": training.digest()}


def _evaluated(prompts: PromptSet) -> dict[str, str]:
    return {EVALUATED_ON: _sha256(prompts.problems), "prompts to evaluate": prompts.digest()}


def _sha256(problems: Iterable[Problem]) -> str:
    """That of all that is known of some problems, in their order: answers and columns are in no prompt."""
    found = hashlib.sha256()
    for problem in problems:
        # Without empty fields: one that a later version adds changes nothing.
        known = {name: value for name, value in vars(problem).items() if value not in ("", ())}
        found.update(json.dumps(known, sort_keys=True).encode() + b"\n")
    return found.hexdigest()


def as_written(
    config: Config, mine: dict[str, str], problems: dict[str, str] | None = None, start: dict[str, str] | None = None
) -> dict[str, Any]:
    """The content of config.json: the groups, and beside them what there is of the rest.

    Args:
        mine: of `of`.
        problems: of `of_problems`.
        start: of `models.as_begun`.
    """
    beside = {FILES: mine, PROBLEMS: problems, START: start}
    return config.to_dict() | {name: content for name, content in beside.items() if content}


def check_same(config: Config, theirs: dict[str, Any], workdir: Path) -> None:
    """Refuses to continue a run with files that have changed.

    Args:
        theirs: the content of its config.json.

    Raises:
        UserError: naming the first.
    """
    with files.reading(workdir / NAME, "--workdir"):
        before = dict(theirs.get(FILES, {}))
    for name, sha256 in of(config).items():
        if before.get(name) != sha256:
            raise UserError(
                f"--workdir: {name} has changed since the run in {workdir} began, with sha256 "
                f"{str(before.get(name)):.12}… and not {sha256:.12}…: expected the file as it was, or another --workdir"
            )


def check_problems(mine: dict[str, str], theirs: dict[str, Any], workdir: Path) -> None:
    """Refuses to continue a run with problems or prompts that have changed; one of an older version has not kept any.

    Args:
        mine: of `of_problems`, or a part of it.
        theirs: the content of its config.json.

    Raises:
        UserError: naming the first.
    """
    with files.reading(workdir / NAME, "--workdir"):
        before = dict(theirs.get(PROBLEMS, {}))
    for name, sha256 in mine.items():
        if before.get(name, sha256) != sha256:
            raise UserError(
                f"--workdir: {name} have changed since the run in {workdir} began, with sha256 "
                f"{str(before[name]):.12}… and not {sha256:.12}…: expected the files of problems and tokenizer as they "
                "were, or another --workdir"
            )


def check_evaluated(config: Config, prompts: PromptSet, workdir: Path, which: str) -> None:
    """Refuses to ask a checkpoint other problems than those of its run's own evaluations, if the config says the same.

    Nor may a reward function have changed that has judged the run's answers.

    Args:
        config: of `recorded.for_checkpoint`.
        which: the flag --checkpoint.

    Raises:
        UserError: they have changed since the run began.
    """
    run = recorded.run_of(workdir, which)
    theirs, mine = hosts.from_main(lambda: recorded.read(run)) or {}, recorded.as_json(config)
    with files.reading(run / NAME, "--workdir"):
        judged = dict(theirs.get(FILES, {}))
        length = theirs.get("rollout", {}).get("prompt_length")  # longer prompts have no place among the problems
        alike = theirs.get("data") == mine["data"] and length == mine["rollout"]["prompt_length"]
    for name, sha256 in _rewards(config).items():
        if judged.get(name, sha256) != sha256:
            raise UserError(
                f"data.verifier: {name}: its file has changed since it judged the answers of {run}: expected the "
                f"content of sha256 {judged[name]:.12}… and not {sha256:.12}…, or a copy under another name"
            )
    if alike:
        check_problems(_evaluated(prompts), theirs, run)
