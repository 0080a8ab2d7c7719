"""Runs hostile inputs in a worker process and judges what became of each."""

import contextlib
import dataclasses
import json
import os
import random
import resource
import select
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

DEADLINE_S = 30.0  # an input; the longest that ends takes a few seconds
MEMORY_BYTES = 6 << 30  # more address space than a worker has after its imports
_START_S = 180.0
_MAX_LINE = 2500  # characters of a message that still is one line to a person
ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Attributes:
        kind: read | refused (a UserError or TrainingError of one line) | exception | hang | death (of the process) |
            left behind.
        what: the input, in words.
        text: the line that was said, or the traceback.
    """

    target: str
    number: int
    kind: str
    what: str
    text: str
    seconds: float

    @property
    def find(self) -> bool:
        """Whether it is a fault of the program."""
        return self.kind not in ("read", "refused")


def run(
    numbers: Mapping[str, Sequence[int]], seed: int, deadline_s: float = DEADLINE_S, module: str = ""
) -> Iterator[Outcome]:
    """Reads the inputs of each target by their numbers, in order.

    Args:
        module: has TARGETS and write_samples; the real ones by default, others for the test of this runner.
    """
    worker = None
    try:
        for target, wanted in numbers.items():
            for number in wanted:
                worker = worker or _Worker(module)
                outcome = worker.ask(target, number, seed, deadline_s)
                if outcome.kind in ("hang", "death"):
                    worker.close()
                    worker = None
                yield outcome
    finally:
        if worker:
            worker.close()


class _Worker:
    """A process that reads one input at a time."""

    def __init__(self, module: str):
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.fuzz.runner", module or "benchmarks.fuzz.targets"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2"},
        )
        self._read = b""
        if self._line(_START_S) != b"ready":
            self._errors.seek(0)
            said = self._errors.read()[-1500:].decode(errors="replace")
            self.close()
            raise RuntimeError(f"no worker: {said}")

    def ask(self, target: str, number: int, seed: int, deadline_s: float) -> Outcome:
        """What becomes of one input."""
        started = time.monotonic()
        self._process.stdin.write(json.dumps([target, number, seed]).encode() + b"\n")
        what = self._line(deadline_s) or '"?"'
        reply = self._line(deadline_s) if what else None
        seconds = time.monotonic() - started
        if reply:
            return Outcome(target, number, *json.loads(reply), seconds=seconds)
        kind = "hang" if reply is None else "death"
        self._process.kill()
        self._errors.seek(0)
        return Outcome(
            target, number, kind, json.loads(what), self._errors.read()[-1500:].decode(errors="replace"), seconds
        )

    def _line(self, deadline_s: float) -> bytes | None:
        """The next line; b"" at the end of the output, None when it is late."""
        late = time.monotonic() + deadline_s
        while b"\n" not in self._read:
            if not select.select([self._process.stdout], [], [], max(0.0, late - time.monotonic()))[0]:
                return None
            part = os.read(self._process.stdout.fileno(), 65536)
            if not part:
                return b""
            self._read += part
        line, _, self._read = self._read.partition(b"\n")
        return line

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._errors.close()


# ------------------------------------------------------------------------------------------------ inside the worker


def _serve(module: str) -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import importlib

    from dasd_jax.errors import TrainingError, UserError

    fuzzed = importlib.import_module(module)
    with tempfile.TemporaryDirectory() as room:
        valid, tmp = Path(room) / "valid", Path(room) / "tmp"
        valid.mkdir()
        tmp.mkdir()
        fuzzed.write_samples(valid)
        tempfile.tempdir = str(tmp)  # what a parser forgets there is seen too
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.RLIM_INFINITY))
        print("ready", file=replies, flush=True)
        for line in sys.stdin:
            target, number, seed = json.loads(line)
            with tempfile.TemporaryDirectory(dir=room) as folder:
                place = Path(folder) / "input"
                place.mkdir()
                what, read = fuzzed.TARGETS[target][0](random.Random(f"{seed}/{target}/{number}"), valid, place)
                print(json.dumps(what), file=replies, flush=True)
                before = _listing(place, tmp)
                with contextlib.chdir(place):
                    kind, text = _outcome(read, (UserError, TrainingError))
                if (place / "escaped").exists() or (place.parent / "escaped").exists():
                    kind, text = "exception", "the input was run as a program"
                if kind == "refused" and (left := _listing(place, tmp).items() ^ before.items()):
                    kind, text = "left behind", f"{sorted({name for name, _ in left})} after: {text}"
            print(json.dumps([kind, what, text]), file=replies, flush=True)


def _outcome(read, refusal: tuple[type[Exception], ...]) -> tuple[str, str]:
    try:
        read()
    except refusal as error:
        text = str(error)
        if "\n" in text or not text.isprintable() or not text or len(text) > _MAX_LINE:
            return "exception", f"not one printable line of {_MAX_LINE} characters: {text!r:.500}"
        return "refused", text
    except BaseException:  # PanicException of Rust libraries is no Exception
        return "exception", traceback.format_exc()[-3000:]
    return "read", ""


def _listing(*folders: Path) -> dict[str, int]:
    """Every file below the folders with its size, and every folder."""
    return {
        str(path.relative_to(folder.parent)): path.lstat().st_size if not path.is_dir() else -1
        for folder in folders
        for path in folder.rglob("*")
    }


if __name__ == "__main__":
    _serve(sys.argv[1])
