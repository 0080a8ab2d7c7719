"""Rewards: extract the answer from a response, score it in a worker process with a hard deadline and a memory cap.

Scorers run symbolic algebra on what a model wrote, so any answer may loop, eat memory or kill its process. A worker is
`python -m dasd_jax.rollout.verifier`; it speaks one JSON line a request and a reply, and is killed and replaced when an
answer costs more than its deadline. The parent imports no scorer.
"""

import dataclasses
import json
import math
import os
import re
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from dasd_jax.data.boxes import boxes
from dasd_jax.data.sources import Problem, gym_dataset
from dasd_jax.errors import UserError
from dasd_jax.rollout.grading import grade

REWARD_THRESHOLD = 0.99  # task scorers give partial credit, which is not a correct answer
MAX_ANSWER_CHARS = 1000
_START_S = 120.0  # imports of a starting worker on a busy host
_MAX_FAILED_STARTS = 3


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the verifier found in one response."""

    reward: float  # 1.0 when score >= REWARD_THRESHOLD, else 0.0
    score: float  # raw score of the scorer in [0, 1]
    answer: str | None  # as extracted; None on a parse failure
    error: str = ""  # "" | "parse": no answer found | "unreadable" | "timeout" | "crash": scorer raised or process died


# What the log counts, by the error of a verdict.
COUNTED = {"parse_failure": "parse", "unreadable": "unreadable", "timeout": "timeout"}

_MARKER = re.compile(r"\banswer(?:\*\*)?(?:\s*:|\s+is\b:?)|^####\s", re.IGNORECASE | re.MULTILINE)
_DECORATION = re.compile(r"^(?:\s|\$|\*\*)+|(?:\s|\$|\*\*)+$")


def extract_answer(text: str) -> str | None:
    r"""The last balanced, non-empty `\boxed{...}` or `\fbox{...}`; without any box the line after the last marker.

    Markers are "Answer:", "answer is", and "####" at the start of a line.

    Text before a `</think>` is ignored; surrounding `$`, `**` and white space are stripped, and a line's final period.

    Returns:
      The answer, or None when there is none or it is longer than MAX_ANSWER_CHARS.
    """
    text = text.rpartition("</think>")[2]
    found = boxes(text)
    if found:
        answer = next(filter(None, map(_undecorated, reversed(found))), "")
    else:
        lines = [after.lstrip(" \t\n*$").partition("\n")[0] for after in _MARKER.split(text)[1:]]
        answer = _undecorated(_undecorated(lines[-1]).removesuffix(".")) if lines else ""
    return answer if 0 < len(answer) <= MAX_ANSWER_CHARS else None


def _undecorated(text: str) -> str:
    return _DECORATION.sub("", text)


class Verifier:
    """A pool of scoring processes, as a context manager.

    Construction starts the workers and does not wait for them.

    Args:
      num_workers: processes, at least 1.
      deadline_s: seconds one answer may take, the start of a worker not counted.
      memory_mb: address space of one worker in MiB; imports and first use take about 210.

    Invariant: between two calls of `verify` no worker has a job that anyone waits for.
    """

    def __init__(self, num_workers: int, deadline_s: float, memory_mb: int):
        self._deadline_s = deadline_s
        self._memory_mb = memory_mb
        self._failed_starts = 0
        self._selector = selectors.DefaultSelector()
        self._workers = [self._start() for _ in range(num_workers)]

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(self, *_exc) -> None:
        self.close()

    def close(self) -> None:
        """Ends every worker; they hold nothing that is worth a farewell."""
        while self._workers:
            self._end(self._workers.pop())
        self._selector.close()

    def verify(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Verdict]:
        """Scores `texts[i]` as a response to `problems[i]`; equal (problem, answer) pairs are scored once.

        Raises:
          UserError: the workers cannot start, which is nearly always too small a `memory_mb`.
        """
        pairs = [(problem, extract_answer(text)) for problem, text in zip(problems, texts, strict=True)]
        outcomes = self._score([pair for pair in dict.fromkeys(pairs) if pair[1] is not None])
        verdicts = []
        for pair in pairs:
            score, error = outcomes.get(pair, (0.0, "parse"))
            verdicts.append(Verdict(float(score >= REWARD_THRESHOLD), score, pair[1], error))
        return verdicts

    def _score(self, pairs: list[tuple[Problem, str]]) -> dict[tuple[Problem, str], tuple[float, str]]:
        """(score, error) of every pair."""
        for worker in [worker for worker in self._workers if worker.pair]:
            self._replace(worker)  # left by a call that was interrupted: its reply would answer the wrong pair
        waiting = deque(pairs)
        outcomes = {}
        while len(outcomes) < len(pairs):
            for worker in [worker for worker in self._workers if not worker.busy][: len(waiting)]:
                try:
                    worker.ask(waiting[0], self._deadline_s)
                    waiting.popleft()
                except BrokenPipeError:  # it died between two answers: no answer is to blame
                    self._replace(worker)
            first_deadline = min(worker.deadline for worker in self._workers if worker.busy)
            for key, _ in self._selector.select(max(0.0, first_deadline - time.monotonic())):
                worker = key.data
                # A reply is one write below PIPE_BUF, hence whole, and a worker has one request at a time.
                line = os.read(key.fd, 65536)
                if worker.pair:
                    outcomes[worker.pair] = tuple(json.loads(line)) if line else (0.0, "crash")
                if line:
                    worker.ready, worker.pair, self._failed_starts = True, None, 0
                else:
                    self._replace(worker)
            # Only after reading: a reply that lies in the pipe came in time, even if this process was asleep.
            for worker in [worker for worker in self._workers if worker.busy and time.monotonic() > worker.deadline]:
                if worker.pair:
                    outcomes[worker.pair] = (0.0, "timeout")
                self._replace(worker)
        return outcomes

    def _start(self) -> "_Worker":
        # One thread: on a host with 200 cores the stacks of BLAS threads alone would exceed the memory cap.
        package_root = str(Path(__file__).parents[2])
        python_path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": python_path}
        orphan_s = math.ceil(self._deadline_s) + 1
        process = subprocess.Popen(
            [sys.executable, "-m", "dasd_jax.rollout.verifier", str(self._memory_mb), str(orphan_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("DASD_DEBUG") else subprocess.DEVNULL,
            bufsize=0,
            env=env,
            start_new_session=True,  # Ctrl-C and a supervisor's SIGTERM are for the trainer, which may still need us
        )
        worker = _Worker(process, deadline=time.monotonic() + _START_S)
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)
        return worker

    def _end(self, worker: "_Worker") -> None:
        self._selector.unregister(worker.process.stdout)
        worker.process.kill()
        worker.process.wait()
        worker.process.stdin.close()
        worker.process.stdout.close()

    def _replace(self, worker: "_Worker") -> None:
        self._failed_starts += not worker.ready
        if self._failed_starts >= _MAX_FAILED_STARTS:
            raise UserError(
                f"rollout.verifier_memory_mb: {self._memory_mb}: {self._failed_starts} workers in a row did not start, "
                "expected room for their imports (about 210); DASD_DEBUG=1 shows what they say"
            )
        self._end(worker)
        self._workers[self._workers.index(worker)] = self._start()


@dataclasses.dataclass(eq=False)
class _Worker:
    """A scoring process: starting, idle, or busy with one pair."""

    process: subprocess.Popen
    deadline: float  # time.monotonic() at which its start or its answer is late
    ready: bool = False
    pair: tuple[Problem, str] | None = None

    @property
    def busy(self) -> bool:
        return not self.ready or self.pair is not None

    def ask(self, pair: tuple[Problem, str], deadline_s: float) -> None:
        problem, answer = pair
        # The name of an entry and not the entry: the worker makes it again, so nothing is pickled.
        request = [problem.scorer, problem.source, problem.index, problem.answer, answer]
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.pair, self.deadline = pair, time.monotonic() + deadline_s


# From here on: what runs inside a worker.


def _task_score(source: str, index: int, reference: str, answer: str) -> float:
    dataset = gym_dataset(source)
    entry = dataset[index]
    if str(entry["answer"]) != reference:
        raise RuntimeError(f"{source!r} drew another problem {index} in this process")
    return dataset.score_answer(answer, entry)


def _refuse_side_effects(event: str, args: tuple) -> None:
    """Audit hook: several task scorers and sympy's parser `eval` what the model wrote, so nothing may leave here."""
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    outside = event.startswith(("os.", "subprocess.", "socket.", "shutil.", "ctypes."))
    if writes or (outside and event not in ("os.listdir", "os.scandir")):
        raise PermissionError(f"a scorer may not {event}")


def _serve(memory_mb: int, orphan_s: int) -> None:
    """Answers requests until stdin ends; see `_Worker.ask` for a request, a reply is [score, error]."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.dup(1)
    os.dup2(2, 1)  # scorers print
    sys.dont_write_bytecode = True
    import reasoning_gym  # noqa: F401

    grade(r"\sqrt{4}/x", "2/x")  # the first use builds tables, which is not an answer's time

    sys.addaudithook(_refuse_side_effects)
    os.write(replies, b"ready\n")
    for line in sys.stdin:
        scorer, source, index, reference, answer = json.loads(line)
        # SIGALRM's default action ends the process inside any computation: no orphan outlives its parent for long.
        signal.alarm(orphan_s)
        try:
            if scorer == "task":
                score = _task_score(source, index, reference, answer)
                reply = [min(max(float(score), 0.0), 1.0), ""]
            else:
                reply = grade(reference, answer)
        except MemoryError:
            raise  # what filled the cap may still be cached: end here and be replaced
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            reply = [0.0, "crash"]
        signal.alarm(0)
        os.write(replies, json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
