"""Rewards: answers are extracted from responses and scored by worker processes with a deadline and a memory limit.

Scorers run symbolic algebra on text that a model wrote, so any answer may loop, exhaust memory or kill its process.
They run only in `dasd_jax.verify.worker`; this process imports none of them and only extracts answers.
"""

import contextlib
import dataclasses
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from dasd_jax.data.sources import Problem
from dasd_jax.errors import UserError
from dasd_jax.verify.extract import checksum, extract_answer

REWARD_THRESHOLD = 0.99  # task scorers give partial credit, which does not count as correct
# Wall-clock seconds that an answer may take per second of its CPU deadline: at first, and when it is retried alone.
CLOCK, CLOCK_ALONE = 8.0, 32.0
_START_S = 120.0  # for a worker to start, mostly imports, on a busy host
_MAX_FAILED_STARTS = 3
# Errors after which an answer is retried, and the error of the verdict if they occur again.
_RETRIED = {"late": "timeout", "lost": "crash"}
_GRACE_S = 0.3  # for a keeper to report a late answer, which takes milliseconds; after that it is killed itself


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verifier's judgement of one response."""

    reward: float  # 1.0 if score >= REWARD_THRESHOLD, else 0.0
    score: float  # of the scorer, in [0, 1]
    answer: str | None  # as extracted; None if there is none
    # "" | "parse": no answer found | "unreadable": the answer is not mathematics | "timeout" | "memory": above the
    # limit | "crash": the scorer raised or its process died
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Slowest:
    """The most expensive attempts of a pool so far."""

    cpu_s: float = 0.0  # CPU seconds of one answer
    over_clock_s: float = -math.inf  # seconds from an answer's wall-clock limit to its verdict; negative: in time


# Errors of verdicts that are logged as fractions, by the name of the metric.
COUNTED = {"parse_failure": "parse", "unreadable": "unreadable", "timeout": "timeout"}


# Called with (answers scored, answers to score) as they are scored; equal answers to one problem count once.
Progress = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """Tells nobody."""


class Verifier:
    """A pool of worker processes, as a context manager. Construction starts them without waiting for them.

    Args:
      num_workers: at least 1.
      deadline_s: CPU seconds that one answer may take, so that a verdict does not depend on the load of the host. An
        answer that takes CLOCK times as many wall-clock seconds is retried alone, up to CLOCK_ALONE times as many.
      memory_mb: address space of one worker in MiB; imports and first use need about 210.

    Attributes:
      slowest: the most expensive attempts so far.
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
        """Kills all workers, which have nothing to save."""
        while self._workers:
            self._end(self._workers.pop())
        self._selector.close()

    def verify(
        self, problems: Sequence[Problem], texts: Sequence[str], progress: Progress = no_progress
    ) -> list[Verdict]:
        """Scores `texts[i]` as a response to `problems[i]`; equal (problem, answer) pairs are scored once.

        Raises:
          UserError: the workers cannot start, usually because `memory_mb` is too small.
        """
        pairs = [
            (problem, checksum(text) if problem.scorer == "checksum" else extract_answer(text))
            for problem, text in zip(problems, texts, strict=True)
        ]
        outcomes = self._score([pair for pair in dict.fromkeys(pairs) if pair[1] is not None], progress)
        verdicts = []
        for pair in pairs:
            score, error = outcomes.get(pair, (0.0, "parse"))
            verdicts.append(Verdict(float(score >= REWARD_THRESHOLD), score, pair[1], error))
        return verdicts

    def _score(
        self, pairs: list[tuple[Problem, str]], progress: Progress
    ) -> dict[tuple[Problem, str], tuple[float, str]]:
        """(score, error) of every pair."""
        outcomes = self._try(pairs, CLOCK * self._deadline_s, progress)
        again = [pair for pair in pairs if outcomes[pair][1] in _RETRIED]
        for number, pair in enumerate(again):
            progress(len(pairs) + number, len(pairs) + len(again))
            score, error = self._try([pair], CLOCK_ALONE * self._deadline_s, no_progress)[pair]
            outcomes[pair] = score, _RETRIED.get(error, error)
        return outcomes

    def _try(
        self, pairs: list[tuple[Problem, str]], clock_s: float, progress: Progress
    ) -> dict[tuple[Problem, str], tuple[float, str]]:
        """(score, error) of every pair after one attempt; the error may also be one of _RETRIED."""
        for worker in [worker for worker in self._workers if worker.pair]:
            self._replace(worker)  # of a call that was interrupted: its reply would be taken for another pair's
        waiting = deque(pairs)
        outcomes = {}
        while len(outcomes) < len(pairs):
            progress(len(outcomes), len(pairs))
            for worker in [worker for worker in self._workers if not worker.busy][: len(waiting)]:
                try:
                    worker.ask(waiting[0], clock_s)
                    waiting.popleft()
                except BrokenPipeError:  # it died between two answers, so no answer caused it
                    self._replace(worker)
            first_deadline = min(worker.deadline for worker in self._workers if worker.busy)
            for key, _ in self._selector.select(max(0.0, first_deadline - time.monotonic())):
                worker = key.data
                # A reply is one write of less than PIPE_BUF, hence atomic, and a worker has one request at a time.
                line = os.read(key.fd, 65536)
                if worker.pair:
                    outcomes[worker.pair] = self._settled(worker, json.loads(line) if line else (0.0, "lost", 0.0))
                if line:
                    worker.ready, worker.pair, self._failed_starts = True, None, 0
                else:
                    self._replace(worker)
            # After reading: a reply that is in the pipe came in time, even if this process was suspended.
            for worker in [worker for worker in self._workers if worker.busy and time.monotonic() > worker.deadline]:
                if worker.pair:
                    outcomes[worker.pair] = self._settled(worker, (0.0, "late", 0.0))
                self._replace(worker)
        progress(len(pairs), len(pairs))
        return outcomes

    def _settled(self, worker: "_Worker", reply: Sequence) -> tuple[float, str]:
        score, error, cpu_s = reply
        over_s = time.monotonic() - worker.deadline + _GRACE_S
        self.slowest = Slowest(max(self.slowest.cpu_s, cpu_s), max(self.slowest.over_clock_s, over_s))
        return score, error

    def _start(self) -> "_Worker":
        # One thread: on a host with 200 cores the stacks of BLAS threads alone would exceed the memory limit.
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
            # Ctrl-C and a supervisor's SIGTERM are for the trainer, which may still need the workers; and a process
            # group of their own lets a keeper and its child be killed together.
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
                "expected room for their imports (about 210); DASD_DEBUG=1 shows their stderr"
            )
        self._end(worker)
        self._workers[self._workers.index(worker)] = self._start()


@dataclasses.dataclass(eq=False)
class _Worker:
    """A keeper and its child: starting, idle, or busy with one pair."""

    process: subprocess.Popen
    deadline: float  # time.monotonic() by which it has to have started or replied
    ready: bool = False
    pair: tuple[Problem, str] | None = None

    @property
    def busy(self) -> bool:
        return not self.ready or self.pair is not None

    def ask(self, pair: tuple[Problem, str], clock_s: float) -> None:
        problem, answer = pair
        # The source and index of an entry, not the entry: the worker generates it again, so that nothing is pickled.
        request = [clock_s, problem.scorer, problem.source, problem.index, problem.answer, answer]
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.pair, self.deadline = pair, time.monotonic() + clock_s + _GRACE_S
