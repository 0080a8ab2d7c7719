"""A run's record of its verdicts, one line per batch, written by process 0."""

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from dasd_jax import formats, hosts
from dasd_jax.data.sources import Problem
from dasd_jax.verify.verifier import Progress, Verdict, Verifier, no_progress


def verify(
    verifier: Verifier, problems: Sequence[Problem], texts: Sequence[str], progress: Progress = no_progress
) -> list[Verdict]:
    """Verdicts on all responses, equal in every process: each process verifies a share, and all are gathered.

    Args:
        progress: hears of this process's share.
    """
    mine = hosts.share(len(texts))
    verdicts = [dataclasses.astuple(verdict) for verdict in verifier.verify(problems[mine], texts[mine], progress)]
    return [Verdict(*verdict) for part in hosts.gather(verdicts) for verdict in part]


class Journal:
    """A verifier with a record: a resumed run that produces the same responses again gets the same verdicts.

    Deadlines and memory limits take effect at slightly different points each time, so that a second verification may
    differ. The file is append-only, one JSON object per batch. A line is valid for its batch number and exactly the
    responses, what reward functions are told of their problems, the files of these functions and the limit on memory
    that it was written for; of several such lines the last counts.
    """

    def __init__(self, path: Path, verifier: Verifier, given: Mapping[str, str] = MappingProxyType({})):
        """Neither reads nor writes the file before the first call of `verify`.

        Args:
            given: what else verdicts depend on and may change: the sha256 of files of the user's, a limit on memory.
        """
        self._path, self._verifier, self._given = path, verifier, dict(given)
        self._known: dict[tuple[int, str], list] | None = None

    def verify(
        self, batch: int, problems: Sequence[Problem], texts: Sequence[str], progress: Progress = no_progress
    ) -> list[Verdict]:
        """Verdicts on `texts[i]` as a response to `problems[i]`, for the batch with this number."""
        digest = _digest(problems, texts, self._given)
        known = hosts.from_main(lambda: self._recall(batch, digest))
        if known is not None and len(known) == len(texts):
            return [Verdict(*fields) for fields in known]
        verdicts = verify(self._verifier, problems, texts, progress)
        if not hosts.is_main():
            return verdicts
        line = {"batch": batch, "responses": digest, "verdicts": [dataclasses.astuple(each) for each in verdicts]}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return verdicts

    def _recall(self, batch: int, digest: str) -> list | None:
        if self._known is None:
            self._known = self._read()
        return self._known.get((batch, digest))

    def _read(self) -> dict[tuple[int, str], list]:
        """Verdicts by batch number and digest; a partial last line, left by a killed process, is truncated."""
        if not self._path.exists():
            return {}
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            with self._path.open("r+b") as file:
                file.truncate(len(whole))
        known = {}
        for text in whole.splitlines():
            # A damaged line: its batch is verified again.
            with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
                line = formats.parse_object(text, "line")
                verdicts = [dataclasses.astuple(_verdict(*fields)) for fields in line["verdicts"]]
                known[int(line["batch"]), str(line["responses"])] = verdicts
        return known


def _verdict(
    reward: float, score: float, answer: str | None, error: str, detail: str, parts: dict[str, float]
) -> Verdict:
    """A verdict from its fields.

    Raises:
        ValueError: a field has the wrong type or is not finite.
    """
    numbers = all(type(number) is float and math.isfinite(number) for number in (reward, score, *parts.values()))
    if not numbers or not isinstance(answer, str | None) or not all(isinstance(text, str) for text in (error, detail)):
        raise ValueError("no verdict")
    return Verdict(reward, score, answer, error, detail, parts)


def _digest(problems: Sequence[Problem], texts: Sequence[str], given: dict[str, str]) -> str:
    asked = [(problem.source, problem.index, problem.answer, problem.scorer, *problem.told()) for problem in problems]
    return hashlib.sha256(json.dumps([asked, list(texts), given]).encode()).hexdigest()
