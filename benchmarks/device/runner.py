"""Runs parts one after another, each in a process with its own time limit, and keeps a line of JSON for each."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from dasd_jax import files

RESULTS = "results.jsonl"
_TAIL = 15  # lines of what a part that failed wrote to stderr


@dataclasses.dataclass(frozen=True)
class Part:
    """One measurement: a command that prints its figures as lines of JSON objects, as soon as it has them.

    Attributes:
        command: may hold {seconds}, what it is given at most.
        limit_s: seconds after which it is killed, with all that it started.
        least_s: with fewer seconds left it is not started.
        needs: files without which it is not started.
    """

    name: str
    command: tuple[str, ...]
    limit_s: float
    least_s: float
    needs: tuple[Path, ...] = ()


def run_parts(parts: Sequence[Part], output: Path, seconds: float, environment: Mapping[str, str]) -> list[dict]:
    """Runs what fits into so many seconds; after each part its line stands in output/results.jsonl and on stdout.

    A line has part, status (ok | failed | timeout | skipped), seconds, figures, whose names end in their unit, and
    reason where it is not ok. Figures that a part had printed before it ended are kept.
    """
    deadline, lines = time.monotonic() + seconds, []
    output.mkdir(parents=True, exist_ok=True)
    for part in parts:
        left = deadline - time.monotonic()
        if lacking := [str(path) for path in part.needs if not path.exists()]:
            line = {"part": part.name, "status": "skipped", "reason": f"needs {', '.join(lacking)}"}
        elif left < part.least_s:
            line = {"part": part.name, "status": "skipped", "reason": f"{left:.0f} s left of {part.least_s:.0f} needed"}
        else:
            line = _run(part, min(part.limit_s, left), environment)
        lines.append(line)
        text = files.json_line(line)
        with (output / RESULTS).open("a", encoding="utf-8") as file:
            file.write(text)
        print(text, end="", flush=True)
    return lines


def _run(part: Part, limit: float, environment: Mapping[str, str]) -> dict:
    began = time.monotonic()
    command = [word.replace("{seconds}", f"{limit:.0f}") for word in part.command]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        # A session of its own, so that what it has started ends with it: processes left over would keep the GPU.
        process = subprocess.Popen(
            command, stdout=out, stderr=err, env=os.environ | environment, start_new_session=True
        )  # fmt: skip
        try:
            code = process.wait(limit)
            status = "failed" if code else "ok"
        except subprocess.TimeoutExpired:
            status = "timeout"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        printed, said = (_read(file).splitlines() for file in (out, err))
    line = {"part": part.name, "status": status, "seconds": round(time.monotonic() - began, 1), "figures": {}}
    for text in printed:
        with contextlib.suppress(ValueError):
            if isinstance(found := json.loads(text), dict):
                line["figures"] |= found
    if status == "failed":
        line["reason"] = f"exit code {code}: " + "\n".join(said[-_TAIL:])
    elif status == "timeout":
        line["reason"] = f"limit of {limit:.0f} s: " + "\n".join(said[-_TAIL:])
    return line


def _read(file) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
