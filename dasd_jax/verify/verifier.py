"""Rewards: extract the answer from a response, have it scored by a worker with a hard deadline and a memory cap.

Scorers run symbolic algebra on what a model wrote, so any answer may loop, eat memory or kill its process. They run in
`dasd_jax.verify.worker` alone: this process imports none, and reads of a response only what the passes below read.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from dasd_jax.data.boxes import boxes
from dasd_jax.data.sources import Problem
from dasd_jax.errors import UserError

REWARD_THRESHOLD = 0.99  # task scorers give partial credit, which is not a correct answer
MAX_ANSWER_CHARS = 1000
MAX_RESPONSE_CHARS = 1_000_000  # of a longer response the end is read
# Seconds of the clock an answer may take for each second of CPU: beside the other workers, and then once more alone.
CLOCK, CLOCK_ALONE = 8.0, 32.0
_START_S = 120.0  # imports of a starting worker on a busy host
_MAX_FAILED_STARTS = 3
# Tried once more, and what each of them is when it comes again.
_AGAIN = {"late": "timeout", "lost": "crash"}
_GRACE_S = 0.3  # a keeper ends a late answer itself, in milliseconds; after this it is itself at fault


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the verifier found in one response."""

    reward: float  # 1.0 when score >= REWARD_THRESHOLD, else 0.0
    score: float  # raw score of the scorer in [0, 1]
    answer: str | None  # as extracted; None on a parse failure
    # "" | "parse": no answer found | "unreadable" | "timeout" | "memory": above the cap | "crash": scorer raised or
    # its process died
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Slowest:
    """What the most expensive tries of a pool have cost."""

    cpu_s: float = 0.0  # seconds of CPU of one answer
    over_clock_s: float = -math.inf  # seconds from the end of an answer's clock to its verdict; negative: before it


# What the log counts, by the error of a verdict.
COUNTED = {"parse_failure": "parse", "unreadable": "unreadable", "timeout": "timeout"}

_MARKER = re.compile(r"\banswer(?:\*\*)?(?:\s*:|\s+is\b:?)|^####\s", re.IGNORECASE | re.MULTILINE)
_DECORATION = re.compile(r"(?:\s|\$|\*\*)*")


def extract_answer(text: str) -> str | None:
    r"""The last balanced, non-empty `\boxed{...}` or `\fbox{...}`; without any box the line after the last marker.

    Markers are "Answer:", "answer is", and "####" at the start of a line.

    Text before a `</think>` is ignored; surrounding `$`, `**` and white space are stripped, and a line's final period.
    It costs a few passes over at most MAX_RESPONSE_CHARS, whatever they hold.

    Returns:
      The answer, or None when there is none or it is longer than MAX_ANSWER_CHARS.
    """
    text = text[-MAX_RESPONSE_CHARS:].rpartition("</think>")[2]
    answer = None
    for box in boxes(text):
        answer = _undecorated(box)
        if answer:
            break
    if answer is None:
        *_, line = "", *_MARKER.split(text)[1:]
        answer = _undecorated(_undecorated(line.lstrip(" \t\n*$").partition("\n")[0]).removesuffix("."))
    return answer if 0 < len(answer) <= MAX_ANSWER_CHARS else None


def _undecorated(text: str) -> str:
    text = text[_DECORATION.match(text).end() :]
    # From the end it is read backwards: a search for decoration before the end would try every run of white space.
    backwards = text[::-1]
    return backwards[_DECORATION.match(backwards).end() :][::-1]


class Verifier:
    """A pool of workers, as a context manager.

    Construction starts them and does not wait for them.

    Args:
      num_workers: at least 1.
      deadline_s: seconds of CPU one answer may take. A verdict therefore does not depend on what else the host does:
        an answer that meets CLOCK times as many seconds of the clock before is tried once more, alone.
      memory_mb: address space of one worker in MiB; imports and first use take about 210.

    Attributes:
      slowest: what the most expensive tries so far have cost.

    Invariant: between two calls of `verify` no worker has a job that anyone waits for.
    """

    def __init__(self, num_workers: int, deadline_s: float, memory_mb: int):
        self.slowest = Slowest()
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
        outcomes = self._try(pairs, CLOCK * self._deadline_s)
        for pair in pairs:
            if outcomes[pair][1] in _AGAIN:
                score, error = self._try([pair], CLOCK_ALONE * self._deadline_s)[pair]
                outcomes[pair] = score, _AGAIN.get(error, error)
        return outcomes

    def _try(self, pairs: list[tuple[Problem, str]], clock_s: float) -> dict[tuple[Problem, str], tuple[float, str]]:
        """(score, error) of every pair, where an error may also be one of _AGAIN."""
        for worker in [worker for worker in self._workers if worker.pair]:
            self._replace(worker)  # left by a call that was interrupted: its reply would answer the wrong pair
        waiting = deque(pairs)
        outcomes = {}
        while len(outcomes) < len(pairs):
            for worker in [worker for worker in self._workers if not worker.busy][: len(waiting)]:
                try:
                    worker.ask(waiting[0], clock_s)
                    waiting.popleft()
                except BrokenPipeError:  # it died between two answers: no answer is to blame
                    self._replace(worker)
            first_deadline = min(worker.deadline for worker in self._workers if worker.busy)
            for key, _ in self._selector.select(max(0.0, first_deadline - time.monotonic())):
                worker = key.data
                # A reply is one write below PIPE_BUF, hence whole, and a worker has one request at a time.
                line = os.read(key.fd, 65536)
                if worker.pair:
                    outcomes[worker.pair] = self._settled(worker, json.loads(line) if line else (0.0, "lost", 0.0))
                if line:
                    worker.ready, worker.pair, self._failed_starts = True, None, 0
                else:
                    self._replace(worker)
            # Only after reading: a reply that lies in the pipe came in time, even if this process was asleep.
            for worker in [worker for worker in self._workers if worker.busy and time.monotonic() > worker.deadline]:
                if worker.pair:
                    outcomes[worker.pair] = self._settled(worker, (0.0, "late", 0.0))
                self._replace(worker)
        return outcomes

    def _settled(self, worker: "_Worker", reply: Sequence) -> tuple[float, str]:
        score, error, cpu_s = reply
        over_s = time.monotonic() - worker.deadline + _GRACE_S
        self.slowest = Slowest(max(self.slowest.cpu_s, cpu_s), max(self.slowest.over_clock_s, over_s))
        return score, error

    def _start(self) -> "_Worker":
        # One thread: on a host with 200 cores the stacks of BLAS threads alone would exceed the memory cap.
        package_root = str(Path(__file__).parents[2])
        python_path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": python_path}
        process = subprocess.Popen(
            [sys.executable, "-m", "dasd_jax.verify.worker", str(self._memory_mb), str(self._deadline_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("DASD_DEBUG") else subprocess.DEVNULL,
            bufsize=0,
            env=env,
            # Ctrl-C and a supervisor's SIGTERM are for the trainer, which may still need us; and a group of their own
            # lets a keeper and its child be ended together.
            start_new_session=True,
        )
        worker = _Worker(process, deadline=time.monotonic() + _START_S)
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)
        return worker

    def _end(self, worker: "_Worker") -> None:
        self._selector.unregister(worker.process.stdout)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.process.pid, signal.SIGKILL)
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
    """A keeper and its child: starting, idle, or busy with one pair."""

    process: subprocess.Popen
    deadline: float  # time.monotonic() at which its start is late, or it has not said what became of an answer
    ready: bool = False
    pair: tuple[Problem, str] | None = None

    @property
    def busy(self) -> bool:
        return not self.ready or self.pair is not None

    def ask(self, pair: tuple[Problem, str], clock_s: float) -> None:
        problem, answer = pair
        # The name of an entry and not the entry: the worker makes it again, so nothing is pickled.
        request = [clock_s, problem.scorer, problem.source, problem.index, problem.answer, answer]
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.pair, self.deadline = pair, time.monotonic() + clock_s + _GRACE_S
