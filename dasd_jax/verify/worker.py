"""A worker process of the verifier, python -m dasd_jax.verify.worker: a keeper, and the child that scores for it.

The keeper imports all scorers once, forks a child and passes it one answer at a time. The child may loop, exhaust
memory or die; the keeper survives, reports the outcome and forks the next child within milliseconds.

Line in:  [clock_s, scorer, problem, text], where the scorer is one of data/verifiers.py, or two strings as from
          `located` there; the problem is what it needs to know of it, and the text the answer, for a reward function of
          the user's own the whole response.
Line out: [score, error, cpu_s, detail, parts]; an empty list before the first, when the keeper is ready.
"""

import ast
import contextlib
import gc
import importlib
import json
import math
import operator
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from dasd_jax.data.sources import gym_dataset
from dasd_jax.verify import own, shipped
from dasd_jax.verify.grading import grade

# The first use of each kind imports modules and builds tables, which should not count as an answer's time.
_FIRST_USES = (
    (r"\sqrt{4}/x", "2/x"),
    (r"\sin 2x", r"2\sin x\cos x"),
    ("x^2+y^2=1", r"y=\sqrt{1-x^2}"),
    ("x^2>4", "x>2"),
)
_OUT_OF_MEMORY = 3  # exit status of a child that reached its memory limit
_PAGE = resource.getpagesize()
_MOST_CHARS = 160  # of a detail: a reply is shorter than PIPE_BUF, whatever the characters

# [score, error, CPU seconds, detail, parts] of one answer, as the fields of a `Verdict`.
Reply = tuple[float, str, float, str, dict[str, float]]

# The user's own reward functions by name and sha256, or why there is none; the keeper fills it for its children.
_OWN: dict[tuple[str, str], Callable | str] = {}


def main(memory_mb: int, deadline_s: float, folder: str) -> None:
    """Answers requests until stdin ends.

    Args:
        folder: where it runs, for what a reward function may leave behind; modules are found from where it was started.
    """
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, replies = os.fdopen(os.dup(0)), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)  # scorers may read from stdin
    os.dup2(2, 1)  # scorers may print
    sys.dont_write_bytecode = True
    import reasoning_gym  # noqa: F401

    os.chdir(folder)
    close_evaluators()
    for pair in _FIRST_USES:
        grade(*pair)
    gc.freeze()  # garbage collection in a child would copy every page that it shares with the keeper
    keeper = Keeper(memory_mb, deadline_s, (requests.fileno(), replies))
    try:
        os.write(replies, b"[]\n")
        for line in requests:
            clock_s, *job = json.loads(line)
            os.write(replies, json.dumps(keeper.score(clock_s, job)).encode() + b"\n")
    finally:
        keeper.end_child()
        with contextlib.suppress(OSError):  # the trainer was killed and did not remove it
            os.rmdir(folder)


class Keeper:
    """Has answers scored by a child process, which is replaced when it ends, is late or has grown."""

    def __init__(self, memory_mb: int, deadline_s: float, private: tuple[int, ...]):
        """Does not fork yet; `private` are the file descriptors that a child closes."""
        self._most_bytes, self._deadline_s, self._private = memory_mb << 19, deadline_s, private
        self._pid = 0

    def score(self, clock_s: float, job: list) -> Reply:
        """The reply; its error is one of a `Verdict` or "late": out of wall-clock before CPU time.

        An answer that ends the child is retried once in a fresh one: an earlier answer may have filled its memory, or
        the host may have been short of memory.
        """
        until = time.monotonic() + clock_s
        if isinstance(job[0], list) and (why := self._load_own(*job[0])):
            return _failed("crash", 0.0, why)
        request = json.dumps([clock_s, *job]).encode() + b"\n"
        for _ in range(2):
            if not self._pid:
                self._fork(job)
            with contextlib.suppress(BrokenPipeError):  # it died between two answers
                os.write(self._requests, request)
            if not select.select([self._replies], [], [], max(0.0, until - time.monotonic()))[0]:
                os.kill(self._pid, signal.SIGKILL)
                return _failed("late", self._reap()[1])
            # A reply is one write of less than PIPE_BUF, hence atomic.
            line = os.read(self._replies, select.PIPE_BUF)
            if line:
                score, error, spent, detail, parts = json.loads(line)
                used, self._spent = spent - self._spent, spent
                if _mapped_bytes(self._pid) > self._most_bytes:
                    self.end_child()
                return score, error, used, detail, parts
            status, used = self._reap()
            if status == -signal.SIGPROF:
                return _failed("timeout", used)
        return _failed("memory" if status == _OUT_OF_MEMORY else "crash", used)

    def end_child(self) -> None:
        """Kills the child, if there is one; it has nothing to save."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            self._reap()

    def _load_own(self, name: str, sha256: str) -> str:
        """Imports a reward function of the user's own for all children to come; why it cannot be, or "".

        Not in a child: imports may open what `_refuse_side_effects` refuses, and every child would repeat them.
        """
        if (name, sha256) not in _OWN:
            self.end_child()
            _OWN[name, sha256] = own.load(name, sha256)
            gc.freeze()
        found = _OWN[name, sha256]
        return found if isinstance(found, str) else ""

    def _fork(self, job: list) -> None:
        scorer, problem, *_ = job
        if scorer == "task":
            with contextlib.suppress(Exception):  # the child raises it again, as a verdict
                gym_dataset(problem["source"])  # cached for all children, not counted as an answer's time
        child_requests, self._requests = os.pipe()
        self._replies, child_replies = os.pipe()
        self._spent = 0.0
        self._pid = os.fork()
        if self._pid:
            os.close(child_requests)
            os.close(child_replies)
            return
        try:
            for private in (*self._private, self._requests, self._replies):
                os.close(private)
            _serve(child_requests, child_replies, self._deadline_s)
        finally:
            os._exit(1)  # never return into the keeper's code

    def _reap(self) -> tuple[int, float]:
        """(exit status, negative for a signal; CPU seconds since the last reply) of the child, which has ended."""
        _, status, usage = os.wait4(self._pid, 0)
        self._pid = 0
        os.close(self._requests)
        os.close(self._replies)
        return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime - self._spent


def _failed(error: str, cpu_s: float, detail: str = "") -> Reply:
    return 0.0, error, cpu_s, detail[:_MOST_CHARS], {}


def _mapped_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as sizes:
        return int(sizes.read().split()[0]) * _PAGE


# From here on: what runs inside a child.


def _serve(requests: int, replies: int, deadline_s: float) -> None:
    """Scores until its requests end; the CPU seconds of its replies are those of this process so far."""
    lines = os.fdopen(requests)
    sys.addaudithook(_refuse_side_effects)
    for line in lines:
        clock_s, *job = json.loads(line)
        # The default actions end the process inside any computation. The first counts CPU, so that a verdict does not
        # depend on the load of the host; the second is for a child whose keeper has died.
        signal.setitimer(signal.ITIMER_PROF, deadline_s)
        signal.alarm(math.ceil(clock_s) + 1)
        try:
            score, error, parts = _score(*job)
            detail = ""
            if math.isnan(score):
                raise ValueError("the scorer returned nan")
            score = min(max(score, 0.0), 1.0)
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)
        except BaseException as problem:  # SystemExit too
            score, error, _, detail, parts = _failed("crash", 0.0, own.said(problem))
            traceback.print_exc()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        os.write(replies, json.dumps([score, error, time.process_time(), detail, parts]).encode() + b"\n")


def _score(scorer: str | list[str], problem: dict[str, Any], text: str) -> tuple[float, str, dict[str, float]]:
    """(score, error, parts beside the score) of an answer, or for a reward function of the user's own of a response."""
    if isinstance(scorer, list):
        score, parts = own.reward(_OWN[tuple(scorer)], problem, text)
        return score, "", parts
    reference = problem["answer"]
    if scorer == "checksum":
        return 1.0 - int(text, 16) % 2, "", {}
    if scorer == "math":
        return *grade(reference, text), {}
    if scorer != "task":
        return *shipped.judge(scorer, reference, text), {}
    dataset = gym_dataset(problem["source"])
    entry = dataset[problem["index"]]
    if str(entry["answer"]) != reference:
        raise RuntimeError(f"{problem['source']!r} generated a different problem {problem['index']} in this process")
    return float(dataset.score_answer(text, entry)), "", {}


def _refuse_side_effects(event: str, args: tuple) -> None:
    """Audit hook, a second barrier after `close_evaluators`: scorers have no effects outside their process."""
    if event == "open":
        path, _, flags = args
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        refused = writes or isinstance(path, int)
    else:
        refused = event.startswith(_OUTSIDE) and event not in ("os.listdir", "os.scandir")
    if refused:
        raise PermissionError(f"a scorer may not {event}")


_OUTSIDE = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "time.sleep", "builtins.input")

# Scorers of reasoning-gym that call eval on an answer, to parse a list or a matrix.
LITERAL_SCORERS = (
    "reasoning_gym.algorithmic.binary_matrix",
    "reasoning_gym.algorithmic.spiral_matrix",
    "reasoning_gym.algorithmic.string_insertion",
    "reasoning_gym.games.n_queens",
)


def close_evaluators() -> None:
    """Replaces `eval` where answers reach it: those scorers parse literals only, sympy's parser mathematics only."""
    for name in LITERAL_SCORERS:
        importlib.import_module(name).eval = ast.literal_eval
    importlib.import_module("sympy.parsing.sympy_parser").eval = evaluate_mathematics


_OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
    ast.UAdd: operator.pos, ast.USub: operator.neg,
}  # fmt: skip


def evaluate_mathematics(code: str, names: Mapping[str, Any], local_names: Mapping[str, Any]) -> Any:
    """The value of code that sympy's parser generates from a text, such as `Integer (2 )*Symbol ('x' )+sin (pi )`.

    Raises:
        ValueError: it contains anything but operators, literals, sympy objects and calls of sympy classes; so
            builtins, attributes and lambdas are refused.
    """
    from sympy import Basic, cbrt, root, sqrt

    def value(node: ast.AST) -> Any:
        match node:
            case ast.Constant(constant):
                return constant
            case ast.Name(name):
                found = local_names.get(name, names.get(name))
                is_class = isinstance(found, type) and issubclass(found, Basic)
                if (
                    is_class
                    or isinstance(found, Basic)
                    or any(found is function for function in (sqrt, cbrt, root, abs))
                ):
                    return found
            case ast.BinOp(left, kind, right) if type(kind) in _OPERATORS:
                return _OPERATORS[type(kind)](value(left), value(right))
            case ast.UnaryOp(kind, operand) if type(kind) in _OPERATORS:
                return _OPERATORS[type(kind)](value(operand))
            case ast.Call(ast.Name() as function, arguments, []):
                return value(function)(*map(value, arguments))
            case ast.Tuple(parts):
                return tuple(map(value, parts))
            case ast.List(parts):
                return list(map(value, parts))
        raise ValueError(f"{ast.unparse(node)[:100]} is not mathematics")

    return value(ast.parse(code.strip(), mode="eval").body)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
