"""Rewards: answers are extracted from responses and scored by worker processes with a deadline and a memory limit.

Scorers run symbolic algebra, or a reward function of the user's own, on text that a model wrote, so any answer may
loop, exhaust memory or kill its process. They run only in `dasd_jax.verify.worker`; this process imports none of them
and only extracts answers.
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
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from dasd_jax.data import verifiers
from dasd_jax.data.sources import Problem
from dasd_jax.errors import UserError
from dasd_jax.verify import own
from dasd_jax.verify.extract import MAX_RESPONSE_CHARS, checksum, extract_answer

REWARD_THRESHOLD = 0.99  # a response with a lower reward is not correct
UNJUDGED = frozenset(["timeout", "memory", "crash"])  # errors that say nothing of the response
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

    # The score of a reward function of the user's own; of the others, whose partial credit is no reward, 1.0 or 0.0:
    # whether the score reaches REWARD_THRESHOLD.
    reward: float
    score: float  # of the scorer, in [0, 1]
    answer: str | None  # as extracted; None if there is none
    # "" | "parse": no answer found | "unreadable": the answer is not mathematics | "timeout" | "memory": above the
    # limit | "crash": the scorer raised or returned no reward, or its process died
    error: str = ""
    detail: str = ""  # of a crash: what was raised; may quote the response
    parts: dict[str, float] = dataclasses.field(
        default_factory=dict
    )  # what a reward function returned beside the reward

    @property
    def correct(self) -> bool:
        """Whether the response counts as right: for Pass@k, and as a sibling's verified rollout."""
        return self.reward >= REWARD_THRESHOLD

    @property
    def judged(self) -> bool:
        """Whether the scorer came to an end: otherwise the reward is 0 whatever the response says."""
        return self.error not in UNJUDGED


@dataclasses.dataclass(frozen=True)
class Slowest:
    """The most expensive attempts of a pool so far."""

    cpu_s: float = 0.0  # CPU seconds of one answer
    over_clock_s: float = -math.inf  # seconds from an answer's wall-clock limit to its verdict; negative: in time


# Errors of verdicts that are logged as fractions, by the name of the metric.
COUNTED = {
    "parse_failure": "parse", "unreadable": "unreadable", "timeout": "timeout", "memory": "memory", "crash": "crash",
}  # fmt: skip


# Called with (answers scored, answers to score) as they are scored; equal answers to one problem count once.
Progress = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """Tells nobody."""


class Outcome(NamedTuple):
    """What a worker says of one text; the error may also be one of _RETRIED."""

    score: float
    error: str
    detail: str = ""
    parts: dict[str, float] = {}


# A problem, and what its scorer judges: the answer, or for a reward function of the user's own the response.
_Pair = tuple[Problem, str]


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
        self._own: dict[str, tuple[str, str]] = {}  # what workers are told of a reward function
        self._folder = tempfile.TemporaryDirectory(prefix="dasd_jax_verifier_", ignore_cleanup_errors=True)
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
        self._folder.cleanup()

    def verify(
        self, problems: Sequence[Problem], texts: Sequence[str], progress: Progress = no_progress
    ) -> list[Verdict]:
        """Scores `texts[i]` as a response to `problems[i]`; equal (problem, answer) pairs are scored once.

        Raises:
          UserError: the workers cannot start, usually because `memory_mb` is too small.
        """
        pairs = [(problem, _judged(problem, text)) for problem, text in zip(problems, texts, strict=True)]
        outcomes = self._score([pair for pair in dict.fromkeys(pairs) if pair[1] is not None], progress)
        verdicts = []
        for (problem, judged), text in zip(pairs, texts, strict=True):
            score, error, detail, parts = outcomes.get((problem, judged), Outcome(0.0, "parse"))
            if verifiers.is_own(problem.scorer):
                verdicts.append(Verdict(score, score, extract_answer(text), error, detail, parts))
            else:
                verdicts.append(Verdict(float(score >= REWARD_THRESHOLD), score, judged, error, detail))
        return verdicts

    def probe(self, problems: Iterable[Problem]) -> None:
        """Calls each reward function of the user's own once, with its first problem and an empty response.

        Raises:
          UserError: one cannot be imported or called, or returns no reward; or the workers cannot start.
        """
        first = {problem.scorer: problem for problem in reversed(list(problems)) if verifiers.is_own(problem.scorer)}
        for name, problem in first.items():
            pair = problem, ""
            outcome = self._score([pair], no_progress)[pair]
            ends = {
                "timeout": f"an empty response takes more than rollout.verifier_deadline_s = {self._deadline_s:g} s",
                "memory": f"it needs more than rollout.verifier_memory_mb = {self._memory_mb} MiB",
            }
            if outcome.error:
                why = outcome.detail or ends.get(outcome.error, "its process died")
                raise UserError(f"data.verifier: {name!r}: {why}: {own.SIGNATURE}")

    def _score(self, pairs: list[_Pair], progress: Progress) -> dict[_Pair, Outcome]:
        """The outcome of every pair."""
        outcomes = self._try(pairs, CLOCK * self._deadline_s, progress)
        again = [pair for pair in pairs if outcomes[pair].error in _RETRIED]
        for number, pair in enumerate(again):
            progress(len(pairs) + number, len(pairs) + len(again))
            outcome = self._try([pair], CLOCK_ALONE * self._deadline_s, no_progress)[pair]
            outcomes[pair] = outcome._replace(error=_RETRIED.get(outcome.error, outcome.error))
        return outcomes

    def _try(self, pairs: list[_Pair], clock_s: float, progress: Progress) -> dict[_Pair, Outcome]:
        """The outcome of every pair after one attempt."""
        for worker in [worker for worker in self._workers if worker.pair]:
            self._replace(worker)  # of a call that was interrupted: its reply would be taken for another pair's
        waiting = deque(pairs)
        outcomes = {}
        while len(outcomes) < len(pairs):
            progress(len(outcomes), len(pairs))
            for worker in [worker for worker in self._workers if not worker.busy][: len(waiting)]:
                try:
                    worker.ask(waiting[0], self._request(waiting[0], clock_s), clock_s)
                    waiting.popleft()
                    if worker.unsent:
                        self._selector.register(worker.process.stdin, selectors.EVENT_WRITE, worker)
                except BrokenPipeError:  # it died between two answers, so no answer caused it
                    self._replace(worker)
            first_deadline = min(worker.deadline for worker in self._workers if worker.busy)
            for key, _ in self._selector.select(max(0.0, first_deadline - time.monotonic())):
                worker = key.data
                if worker not in self._workers:  # replaced for what the other end of it has said
                    continue
                if key.fileobj is worker.process.stdin:
                    with contextlib.suppress(BrokenPipeError):  # its end is seen where replies are read
                        worker.send()
                    if not worker.unsent:
                        self._selector.unregister(worker.process.stdin)
                    continue
                # A reply is one write of less than PIPE_BUF, hence atomic, and a worker has one request at a time.
                line = os.read(key.fd, 65536)
                if worker.pair:
                    outcomes[worker.pair] = self._settled(worker, json.loads(line) if line else _unjudged("lost"))
                if line:
                    worker.ready, worker.pair, self._failed_starts = True, None, 0
                else:
                    self._replace(worker)
            # After reading: a reply that is in the pipe came in time, even if this process was suspended.
            for worker in [worker for worker in self._workers if worker.busy and time.monotonic() > worker.deadline]:
                if worker.pair:
                    outcomes[worker.pair] = self._settled(worker, _unjudged("late"))
                self._replace(worker)
        progress(len(pairs), len(pairs))
        return outcomes

    def _request(self, pair: _Pair, clock_s: float) -> bytes:
        """What the worker reads, see `dasd_jax.verify.worker`.

        Raises:
          UserError: the file of a reward function is gone.
        """
        problem, text = pair
        scorer: str | tuple[str, str] = problem.scorer
        # The source and index of an entry, not the entry: the worker generates it again, so that nothing is pickled.
        known = {"source": problem.source, "index": problem.index, "answer": problem.answer}
        if verifiers.is_own(problem.scorer):
            if problem.scorer not in self._own:
                self._own[problem.scorer] = verifiers.located(problem.scorer)
            scorer, known = self._own[problem.scorer], problem.as_dict()
        return json.dumps([clock_s, scorer, known, text]).encode() + b"\n"

    def _settled(self, worker: "_Worker", reply: Sequence) -> Outcome:
        score, error, cpu_s, detail, parts = reply
        over_s = time.monotonic() - worker.deadline + _GRACE_S
        self.slowest = Slowest(max(self.slowest.cpu_s, cpu_s), max(self.slowest.over_clock_s, over_s))
        return Outcome(score, error, detail, parts)

    def _start(self) -> "_Worker":
        # One thread: on a host with 200 cores the stacks of BLAS threads alone would exceed the memory limit.
        package_root = str(Path(__file__).parents[2])
        python_path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": python_path}
        folder = self._folder.name
        process = subprocess.Popen(
            [sys.executable, "-m", "dasd_jax.verify.worker", *map(str, (self._memory_mb, self._deadline_s, folder))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("DASD_DEBUG") else subprocess.DEVNULL,
            bufsize=0,
            env=env,
            # Ctrl-C and a supervisor's SIGTERM are for the trainer, which may still need the workers; and a process
            # group of their own lets a keeper and its child be killed together.
            start_new_session=True,
        )
        os.set_blocking(process.stdin.fileno(), False)  # a worker that hangs does not hold up the others
        worker = _Worker(process, deadline=time.monotonic() + _START_S)
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)
        return worker

    def _end(self, worker: "_Worker") -> None:
        self._selector.unregister(worker.process.stdout)
        with contextlib.suppress(KeyError):  # nothing is on its way
            self._selector.unregister(worker.process.stdin)
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
    pair: _Pair | None = None
    unsent: bytes = b""  # of the request: the pipe holds 64 KiB, and responses may be longer

    @property
    def busy(self) -> bool:
        return not self.ready or self.pair is not None

    def ask(self, pair: _Pair, request: bytes, clock_s: float) -> None:
        """Begins to send a request.

        Raises:
            BrokenPipeError: the keeper is dead, and the request not on its way.
        """
        self.unsent = request
        try:
            self.send()
        except BrokenPipeError:
            self.unsent = b""
            raise
        self.pair, self.deadline = pair, time.monotonic() + clock_s + _GRACE_S

    def send(self) -> None:
        """Sends as much of the request as the pipe takes."""
        with contextlib.suppress(BlockingIOError):
            while self.unsent:
                self.unsent = self.unsent[os.write(self.process.stdin.fileno(), self.unsent) :]


def _unjudged(error: str) -> tuple:
    """The reply that did not come."""
    return 0.0, error, 0.0, "", {}


def _judged(problem: Problem, text: str) -> str | None:
    """What the scorer of a problem is given of a response; None: the response has no answer."""
    if verifiers.is_own(problem.scorer):
        return text[-MAX_RESPONSE_CHARS:]
    return checksum(text) if problem.scorer == "checksum" else extract_answer(text)
