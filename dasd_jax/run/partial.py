"""Answers of an evaluation that is not finished, and what they must have in common to be gone on with."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from dasd_jax import files, formats
from dasd_jax.config import Config
from dasd_jax.data import verifiers
from dasd_jax.data.pipeline import PromptSet
from dasd_jax.data.sources import Problem
from dasd_jax.errors import UserError
from dasd_jax.run.evaluation import of_line
from dasd_jax.text.tokenizer import Tokenizer


class Partial:
    """The answers of an unfinished evaluation: a first line that identifies it, then one line per problem.

    Attributes:
        path: the file.
        known: the answers that earlier runs of the same command wrote.
    """

    def __init__(
        self,
        path: Path,
        settings: dict[str, Any],
        flag: str = "--workdir",
        read: Callable[[dict[str, Any]], Any] = of_line,
    ):
        """Opens the file, or begins it with the first call of `append`.

        Args:
            settings: see `deciding`.
            flag: names the folder in messages.
            read: makes of a line's object what `known` holds; raises ValueError, KeyError or TypeError if it cannot.

        Raises:
            UserError: it belongs to another evaluation. It may hold hours of sampling, so it is never overwritten
                silently.
        """
        self.path, self.known, self._header = path, [], b""
        # Ignores a last line that was cut off by a kill.
        whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
        first, *lines = whole.splitlines() or [b""]
        if lines:
            with files.reading(path, flag):
                theirs = formats.parse_object(first, "its first line")
                self.known = [read(formats.parse_object(line, "a line")) for line in lines]
            check_same(theirs, settings, path, "removed to start over", flag)
            os.truncate(path, len(whole) + 1)
        else:
            self._header = json.dumps(settings).encode() + b"\n"

    def append(self, lines: Iterable[dict]) -> None:
        """Appends objects, such as `run.evaluation.as_line` makes of answers, and syncs the file to disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("wb" if self._header else "ab") as file:
            file.write(self._header + "".join(map(files.json_line, lines)).encode())
            file.flush()
            os.fsync(file.fileno())
        self._header = b""


def check_replaceable(path: Path, settings: dict[str, Any]) -> None:
    """Refuses to overwrite the result of an evaluation with other settings, or its answers.

    Raises:
        UserError: naming the first setting that differs.
    """
    kept = path.with_suffix(".jsonl")
    if path.exists():
        with files.reading(path, "--workdir"):
            check_same(formats.read_object(path).get("settings", {}), settings, path, "renamed to keep both")
    if kept.exists():
        with files.reading(kept, "--workdir"), kept.open("rb") as file:
            theirs = formats.parse_object(file.readline(), "its first line")
            check_same(theirs, settings, kept, "renamed to keep both")


def check_same(
    theirs: dict[str, Any], settings: dict[str, Any], path: Path, otherwise: str, flag: str = "--workdir"
) -> None:
    """Refuses to use a file of ours that was written with other settings.

    Raises:
        UserError: naming the first that differs.
    """
    for name, value in json.loads(json.dumps(settings)).items():
        if theirs.get(name) != value:
            raise UserError(
                f"{flag}: {path} was written with {name} = {theirs.get(name)!r}, not {value!r}: "
                f"expected the same settings, or the file {otherwise}"
            )


def deciding(
    config: Config,
    mesh: Mesh,
    tokenizer: Tokenizer,
    name: str,
    manifest: str,
    prompts: PromptSet,
    asked: Sequence[Problem],
) -> dict[str, Any]:
    """Everything that determines samples and scores: an evaluation with the same settings can resume the file.

    Args:
        name, manifest: of `asked.Asked`.
        asked: those of the problems that are.
    """
    groups = dataclasses.asdict(config)
    del groups["data"]["now"]  # decides nothing but the prompts of some templates
    named = ("seed", "eval_problems", "eval_samples", "eval_temperature", "eval_top_k", "eval_top_p")
    run = {field: groups["run"][field] for field in named}
    # The number of workers is the only field of its group that does not affect the results.
    rollout = {field: value for field, value in groups["rollout"].items() if field != "verifier_workers"}
    of_groups = {"model": groups["model"], "data": groups["data"], "rollout": rollout, "run": run}
    scorers = {problem.scorer for problem in asked}
    texts = json.dumps([[problem.source, problem.question, problem.answer, *problem.told()] for problem in asked])
    return {
        "checkpoint": name,
        "manifest": manifest,
        # Logits differ in their last digits between device kinds and between numbers of rows per device.
        "devices": [jax.devices()[0].device_kind, *mesh.devices.shape],
        # Before the checksums, since the first setting that differs is the one that a refusal names.
        **{f"{group}.{field}": value for group, fields in of_groups.items() for field, value in fields.items()},
        "problems": hashlib.sha256(texts.encode()).hexdigest(),
        "prompts": prompts.digest(),
        "stop ids": list(tokenizer.stop_ids),
        # The files of reward functions of the user's own.
        **{name: verifiers.located(name)[1] for name in sorted(scorers) if verifiers.is_own(name)},
    }
