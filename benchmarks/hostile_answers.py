r"""10,000 answers at once, a tenth of them hostile, while workers are killed: python -m benchmarks.hostile_answers

Ordinary answers are right or wrong by construction, in twelve notations. Hostile ones are towers of exponents, huge
factorials and sums, a response of 2**30 characters, deep nesting, unbalanced braces, digits of other scripts, inputs
for catastrophic regular expressions, and Python for scorers that used to evaluate it; no two answers are equal. For the
first minute scorers and their keepers are killed and stopped as well. Then every ordinary answer is scored again, one
at a time in a pool of one worker: its verdict has to be the same.

Exit status 1 if an answer is lost, out of order, late, or judged otherwise; or if the pool outgrows its cap.
"""

import contextlib
import os
import random
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.timing import hardware, verdict
from dasd_jax.data.sources import Problem, load_source
from dasd_jax.verify.extract import extract_answer
from dasd_jax.verify.verifier import CLOCK, CLOCK_ALONE, Verdict, Verifier

COUNT, HOSTILE = 10_000, 1_000
WORKERS, DEADLINE_S, MEMORY_MB = 4, 0.5, 1024
OVER_S = 0.5  # seconds above a deadline that are allowed
CHAOS_S = 60.0  # seconds over which workers are killed and stopped


class Case(NamedTuple):
    """One response, and the reward that it has to get."""

    kind: str
    problem: Problem
    text: str
    reward: float


def math_problem(index: int, answer: str) -> Problem:
    """A problem of its own for every index, so that no two answers are scored as one."""
    return Problem(question=str(index), answer=answer, source="benchmark", index=index, scorer="math")


# Each: a number n >= 2 and one that differs → reference, right answer, wrong answer.
ORDINARY: list[Callable[[int, int], tuple[str, str, str]]] = [
    lambda n, m: (f"{n}", f"{n}.0", f"{m}"),
    lambda n, m: (rf"\frac{{{n}}}{{7}}", f"{n}/7", f"{m}/7"),
    lambda n, m: (rf"\sqrt{{{4 * n}}}", rf"2\sqrt{{{n}}}", rf"2\sqrt{{{m}}}"),
    lambda n, m: (f"x^2+{n}x", f"x(x+{n})", f"x(x+{m})"),
    lambda n, m: (rf"\{{1,{n}\}}", rf"\{{{n},1\}}", rf"\{{{m},1\}}"),
    lambda n, m: (f"(-1,{n}]", rf"\left(-1,{n}\right]", f"(-1,{n})"),
    lambda n, m: (f"({n},3)", f"x={n}, y=3", f"x={m}, y=3"),
    lambda n, m: (rf"{n}\text{{ cm}}", f"{n}", rf"{n}\text{{ m}}"),
    lambda n, m: (rf"{n}\%", f"{n / 100}", f"{m}"),
    lambda n, m: (f"2^{{{n % 50}}}", f"{2 ** (n % 50)}", f"{2 ** (n % 50) + 1}"),
    lambda n, m: (rf"\frac{{{n}}}{{\sqrt{{2}}}}", rf"\frac{{{n}\sqrt{{2}}}}{{2}}", rf"\frac{{{m}\sqrt{{2}}}}{{2}}"),
    lambda n, m: (rf"\begin{{pmatrix}}{n}&1\\0&2\end{{pmatrix}}", rf"\begin{{bmatrix}}{n}&1\\0&2\end{{bmatrix}}",
                  rf"\begin{{pmatrix}}{m}&1\\0&2\end{{pmatrix}}"),
]  # fmt: skip

DEVANAGARI = str.maketrans("0123456789", "०१२३४५६७८९")
# Each: an index → an answer for a reference of 5. Not one of them is right.
ANSWERS: dict[str, Callable[[int], str]] = {
    "towers": lambda i: f"{2003 + i}^{{2002^{{2001}}}}",
    "factorials": lambda i: f"{9_999_999_999 + i}!",
    "nested factorials": lambda i: f"(({7 + i}!)!)!",
    "sums": lambda i: rf"\sum_{{k=1}}^{{{10**9 + i}}} \frac{{1}}{{k^3+k+1}}",
    "powers of sums": lambda i: f"(a+b+c+d+e)^{{{60 + i}}} = (a+b+c+d)^{{{61 + i}}}",
    "digits": lambda i: "7" * (900 + i % 100) + f"^{i}",
    "parentheses": lambda i: "(" * (300 + i) + "6" + ")" * (300 + i),
    "fractions of fractions": lambda i: r"\frac{1}{1+" * (60 + i % 20) + f"{i}" + "}" * (60 + i % 20),
    "roots of roots": lambda i: r"\sqrt{" * (120 + i % 40) + f"{i + 2}" + "}" * (120 + i % 40),
    "absolute values": lambda i: "|" * (200 + i) + "6",
    "scripts of scripts": lambda i: "x_{" * (150 + i) + "6" + "}" * (150 + i),
    "Unicode digits": lambda i: f"{60 + i}".translate(DEVANAGARI),
    "superscripts": lambda i: "9" + "⁹" * (3 + i % 900),
    "white space": lambda i: "6" + " \t" * (400 + i % 90) + "6",
    "thousands": lambda i: "1" + ",000" * (200 + i % 40) + "x",
    "texts": lambda i: r"\text{" + "and or " * (100 + i % 30) + "}",
    "intervals": lambda i: r"\cup".join(f"({k},{k + 1})" for k in range(i, i + 80)),
    "lists": lambda i: ",".join(f"{k}x" for k in range(i, i + 200)),
    "equations": lambda i: "=".join(f"x_{{{k}}}" for k in range(i, i + 100)),
    "control characters": lambda i: "\0\x1b[2J\ud800" + f"{i}",
}
# Each: an index → a whole response.
RESPONSES: dict[str, Callable[[int], str]] = {
    "unclosed boxes": lambda i: r"\boxed{" * (100_000 + i),
    "boxes of boxes": lambda i: r"\boxed{" * (50_000 + i) + f"6{i}" + "}" * (50_000 + i),
    "closing braces": lambda i: f"\\boxed{{6{i}" + "}" * 500_000 + r"\boxed{",
    "dollars": lambda i: "Answer: " + "$ " * 400_000 + f"{i}" + "$ " * 400_000 + "!",
    "markers": lambda i: "answer is " * 90_000 + f"6{i}",
    "backslashes": lambda i: "\\" * 900_000 + f"boxed{{{i}",
    "gigabyte": lambda i: "9" * 2**30 if i == 0 else "9" * (2**20 + i),
}
# Each: a task, and an index → an answer that is Python.
PYTHON: dict[str, tuple[str, Callable[[int], str]]] = {
    "shell": ("spiral_matrix", lambda i: f"[__import__('os').system('touch {MARK}{i}')]"),
    "file": ("countdown", lambda i: f"open('{MARK}{i}','w')"),
    "forged reply": ("countdown", lambda i: f"__import__('os').write({3 + i % 10},b'[1.0,\"\",0]\\n')"),
    "memory": ("countdown", lambda i: f"[0]*({i % 8 + 1}*2*10**7+{i})"),
    "list of powers": ("spiral_matrix", lambda i: f"[9**9**9**9, {i}]"),
    "sleep": ("countdown", lambda i: f"__import__('time').sleep({1000 + i})"),
    "exit": ("spiral_matrix", lambda i: f"[exit({i})]"),
    "lambda": ("countdown", lambda i: f"(lambda f:f(f,{i}))(lambda f,n:f(f,n+1))"),
    "attributes": ("countdown", lambda i: f"().__class__.__base__.__subclasses__()[{i}]"),
}
MARK = f"hostile_answers.{os.getpid()}."  # what the files of a successful attack would be called


def cases() -> list[Case]:
    """All of them, shuffled."""
    hostile = [(f"{kind}", lambda i, make=make: (math_problem(-i, "5"), f"\\boxed{{{make(i)}}}"))
               for kind, make in ANSWERS.items()]  # fmt: skip
    hostile += [(kind, lambda i, make=make: (math_problem(-i, "5"), make(i))) for kind, make in RESPONSES.items()]
    for kind, (task, make) in PYTHON.items():
        problems = load_source(f"gym:{task}?size=50")
        hostile.append((kind, lambda i, make=make, problems=problems: (problems[i % 50], f"\\boxed{{{make(i)}}}")))
    found = []
    for number in range(HOSTILE):
        kind, make = hostile[number % len(hostile)]
        found.append(Case(kind, *make(number // len(hostile)), 0.0))
    for number in range(COUNT - HOSTILE):
        n = number // len(ORDINARY) + 2
        reference, right, wrong = ORDINARY[number % len(ORDINARY)](n, n + 1)
        is_right = number // len(ORDINARY) % 2
        text = f"Adding up, I find \\boxed{{{right if is_right else wrong}}}."
        found.append(Case("ordinary", math_problem(number, reference), text, float(is_right)))
    random.Random(0).shuffle(found)
    return found


class Watch(threading.Thread):
    """Measures the memory of a pool and disturbs its workers, until it is stopped."""

    def __init__(self, pool: Verifier):
        """Starts with the first measurement."""
        super().__init__(daemon=True)
        self.pool, self.over = pool, threading.Event()
        self.resident_mb, self.mapped_mb, self.disturbed = 0.0, 0.0, Counter()
        self.start()

    def run(self) -> None:
        """Every tenth of a second."""
        chosen, began, turn = random.Random(0), time.monotonic(), 0
        while not self.over.wait(0.1):
            keepers = [worker.process.pid for worker in list(self.pool._workers) if worker.ready]
            scorers = [child for keeper in keepers for child in children(keeper)]
            self.measure(keepers + scorers)
            turn += 1
            if time.monotonic() - began > CHAOS_S or not keepers or not scorers:
                continue
            if turn % 10 == 0:
                self.disturb("scorers killed", chosen.choice(scorers), signal.SIGKILL)
            if turn % 60 == 30:
                self.disturb("scorers stopped", chosen.choice(scorers), signal.SIGSTOP)
            if turn % 150 == 75:
                self.disturb("keepers killed", chosen.choice(keepers), signal.SIGKILL)
            if turn % 300 == 145:
                self.disturb("keepers stopped", chosen.choice(keepers), signal.SIGSTOP)

    def measure(self, pids: list[int]) -> None:
        """Peaks of the pool's memory, a page that two processes share counted once, and of one process's addresses."""
        resident = 0
        for pid in pids:
            resident += kilobytes(pid, "smaps_rollup", "Pss")
            self.mapped_mb = max(self.mapped_mb, kilobytes(pid, "status", "VmPeak") / 1024)
        self.resident_mb = max(self.resident_mb, resident / 1024)

    def disturb(self, what: str, pid: int, sign: int) -> None:
        """Sends a signal to a process that may be gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sign)
            self.disturbed[what] += 1


def kilobytes(pid: int, file: str, field: str) -> int:
    """A field of /proc/PID/FILE; 0 when the process is gone."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/{file}").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def children(pid: int) -> list[int]:
    """The processes that a process has forked."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def score(found: list[Case]) -> tuple[list[Verdict], float, Watch, Verifier]:
    """Verdicts, seconds, and what was seen meanwhile."""
    with Verifier(WORKERS, DEADLINE_S, MEMORY_MB) as pool:
        pool.verify([math_problem(0, "1")] * WORKERS, [f"Answer: {i}" for i in range(WORKERS)])  # starts are not timed
        watch, began = Watch(pool), time.monotonic()
        verdicts = pool.verify([case.problem for case in found], [case.text for case in found])
        seconds = time.monotonic() - began
        watch.over.set()
        watch.join()
    return verdicts, seconds, watch, pool


def main() -> None:
    """Runs, prints and judges."""
    print(f"{hardware()}\n")
    found = cases()
    verdicts, seconds, watch, pool = score(found)
    print(f"{len(found):,} answers, {WORKERS} workers: {seconds:.0f} s, {len(found) / seconds:.0f} answers/s")
    print("meanwhile: " + ", ".join(f"{count} {what}" for what, count in sorted(watch.disturbed.items())) + "\n")
    said: dict[str, Counter] = {}
    for case, got in zip(found, verdicts, strict=True):
        word = "right" if got.reward else got.error or "wrong"
        said.setdefault(case.kind, Counter())[word] += 1
    print("| kind | answers | verdicts |\n|---|---|---|")
    for kind, words in sorted(said.items()):
        print(f"| {kind} | {words.total()} | {', '.join(f'{count} {word}' for word, count in words.most_common())} |")

    ordinary = [i for i, case in enumerate(found) if case.kind == "ordinary"]
    with Verifier(1, DEADLINE_S, MEMORY_MB) as pool_of_one:
        pool_of_one.verify([math_problem(0, "1")], ["Answer: 1"])
        began = time.monotonic()
        alone = [pool_of_one.verify([found[i].problem], [found[i].text])[0] for i in ordinary]
        rate = len(alone) / (time.monotonic() - began)
    print(f"\nordinary answers alone, one worker: {rate:.0f} answers/s\n")

    placed = sum(got.answer == extract_answer(case.text) for case, got in zip(found, verdicts, strict=True))
    judged = sum(got.reward == case.reward for case, got in zip(found, verdicts, strict=True))
    differ = sum(verdicts[i] != other for i, other in zip(ordinary, alone, strict=True))
    traces = list(Path().glob(f"{MARK}*"))
    checks = [
        (f"verdicts of their own answer, in order: {placed:,} of {len(found):,}", placed == len(found)),
        (f"rewards as constructed: {judged:,} of {len(found):,}", judged == len(found)),
        (f"ordinary verdicts that differ from the one alone: {differ} of {len(ordinary):,}", differ == 0),
        (f"most CPU of an answer: {pool.slowest.cpu_s:.2f} s, deadline {DEADLINE_S} s",
         pool.slowest.cpu_s <= DEADLINE_S + OVER_S),
        (f"latest verdict after its clock of {CLOCK * DEADLINE_S:.0f} s, alone {CLOCK_ALONE * DEADLINE_S:.0f} s: "
         f"{pool.slowest.over_clock_s:+.2f} s", pool.slowest.over_clock_s <= OVER_S),
        (f"memory of the pool: {watch.resident_mb:.0f} MiB, cap {WORKERS * MEMORY_MB} MiB",
         watch.resident_mb <= WORKERS * MEMORY_MB),
        (f"addresses of one process: {watch.mapped_mb:.0f} MiB, cap {MEMORY_MB} MiB", watch.mapped_mb <= MEMORY_MB),
        (f"files and programs of attackers: {len(traces)}", not traces),
    ]  # fmt: skip
    for line, holds in checks:
        print(f"{line}: {verdict(holds)}")
    sys.exit(not all(holds for _, holds in checks))


if __name__ == "__main__":
    main()
