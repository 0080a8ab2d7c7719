"""Progress of a run: a line for each step, on a terminal a live line below them; seconds of the phases of a step.

The live line begins like the line of the last finished step, `step 12/200 · reward .41 · 18 s · 58 min left`, and goes
on with what the program is doing now. What the terminal has no room for is left out, the least important first.
"""

import contextlib
import statistics
import sys
import time
from collections.abc import Mapping, Sequence

import jax
import rich.console
import rich.live
from rich.text import Text

from dasd_jax import hosts, terminal

# The parts of a line have ranks, as in terminal.fitted. Of a step's numbers: name, digits after the point, rank.
_STEP, _LEFT, _SECONDS, _COMPILING, _PHASE, _SINCE, _BAR = 0, 1, 3, 4, 5, 6, 10
_FIRST = {"reward/mean": ("reward", 2, 2)}
_LATER = {
    "loss/total": ("loss", 3, 7),
    "entropy/mean": ("entropy", 2, 8),
    "rollout/length_mean": ("length", 1, 9),
}
_BAR_CELLS = 20
# Phases whose programs are compiled when a process is in them for the first time.
_COMPILED = ("relayout", "rollout", "score", "samples", "update", "evaluate")


def seconds_left(lines: Sequence[Mapping[str, float]], began: int, total: int, eval_every: int) -> float:
    """Estimated time to the end of a run, its last evaluation included.

    A step takes the median of those that this process has done after its first, in which programs are compiled; an
    evaluation takes as long as the last one.

    Args:
        lines: the objects of metrics.jsonl, up to that of the step that has just been finished.
        began: the last step that was finished before this process.
        total: steps of the run.
        eval_every: as run.eval_every.
    """
    done = lines[-1]["step"]
    steps = [line["time/step_s"] + line["time/checkpoint_s"] for line in lines if line["step"] > began]
    evaluations = [line["time/eval_s"] for line in lines if "time/eval_s" in line]
    to_come = sum(step == total or (eval_every > 0 and step % eval_every == 0) for step in range(done + 1, total + 1))
    return statistics.median(steps[1:] or steps) * (total - done) + (evaluations[-1] if evaluations else 0.0) * to_come


def duration(seconds: float) -> str:
    """In the unit in which it has two or three digits: "0.4 s", "18 s", "58 min", "12.3 h", "4.1 days"."""
    for size, until, unit in ((1, 100, "s"), (60, 100, "min"), (3600, 48, "h")):
        if seconds < until * size:
            number = seconds / size
            return f"{number:.0f} {unit}" if number >= 9.95 and unit != "h" else f"{number:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"


def clock_time(seconds: float) -> str:
    """As minutes:seconds or hours:minutes:seconds, which rarely changes its width while it counts up."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def decimal(value: float, digits: int) -> str:
    """A number with so many digits after the point, 1 or more, without the 0 before it and the sign of a zero."""
    text = f"{round(value, digits) + 0.0:.{digits}f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


class Display:
    """One line a step, and below them on a terminal what the program is doing now; in process 0 alone.

    The live line begins with the first phase, so that nothing has to be undone if the run ends before.
    """

    def __init__(self, total: int, done: int, eval_every: int = 0, console: rich.console.Console | None = None):
        """A run of `total` steps of which `done` are finished, with an evaluation every `eval_every` and at its end."""
        self._console = console or terminal.console()
        self._speaks = hosts.is_main()
        self._began, self._total, self._eval_every = done, total, eval_every
        self._finished, self._head, self._rest = done, [], []  # the last step: its number, the parts that follow it
        self._phase, self._since, self._count = "", time.monotonic(), ""
        self._compiling, self._seen = False, set()
        self._live = None
        if self._speaks and self._console.is_interactive:
            self._live = rich.live.Live(
                console=self._console,
                get_renderable=lambda: Text(self._now(), no_wrap=True, overflow="crop"),
                transient=True,
                redirect_stderr=sys.stderr.isatty(),
            )

    def phase(self, name: str) -> None:
        """Says what the program is doing now."""
        self._phase, self._since, self._count = name, time.monotonic(), ""
        self._compiling = name in _COMPILED and name not in self._seen
        self._seen.add(name)
        if self._live:
            self._live.start()
            # rich hides the cursor, and a process that is ended in the middle of a device program cannot show it again.
            self._console.show_cursor(True)
            self._live.refresh()

    def progress(self, done: int, total: int, what: str = "") -> None:
        """Says how much of the phase is done, whose programs then are compiled."""
        self._count = f"{done}/{total} {what}".rstrip()
        self._compiling = False

    def step(self, step: int, metrics: Mapping[str, float], lines: Sequence[Mapping[str, float]]) -> None:
        """Marks a step as finished and shows its main numbers, and the time left by the lines of the log up to it."""
        self._finished, self._rest, self._compiling = step, _numbers(metrics, _LATER), False
        self._head = [*_numbers(metrics, _FIRST), (_SECONDS, duration(metrics["time/step_s"]))]
        if step < self._total:
            left = seconds_left(lines, self._began, self._total, self._eval_every)
            self._head.append((_LEFT, f"{duration(left)} left"))
        if self._speaks:
            parts = [self._place(), *self._head, *self._rest]
            terminal.show(self._console, terminal.fitted(parts, terminal.width_of(self._console)))
        if self._live:
            self._live.refresh()

    def say(self, text: str) -> None:
        """A message above the live line."""
        if self._speaks:
            terminal.say(self._console, text)

    def close(self) -> None:
        """Takes the live line away for good."""
        if self._live:
            self._live.stop()
            self._live = None

    def _place(self) -> tuple[int, str]:
        return _STEP, f"step {self._finished}/{self._total}"

    def _now(self) -> str:
        """The live line."""
        first = self._finished == self._began and self._phase != "evaluate"
        compiling = [(_COMPILING, "compiling the first step" if first else "compiling")] if self._compiling else []
        cells = round(_BAR_CELLS * self._finished / self._total)
        parts = [
            self._place(),
            *self._head,
            *compiling,
            (_PHASE, self._phase if compiling else f"{self._phase} {self._count}".rstrip()),
            (_SINCE, clock_time(time.monotonic() - self._since)),
            *self._rest,
            (_BAR, "━" * cells + "─" * (_BAR_CELLS - cells)),
        ]
        return terminal.fitted(parts, self._console.width)


def _numbers(metrics: Mapping[str, float], shown: Mapping[str, tuple[str, int, int]]) -> list[tuple[int, str]]:
    """The parts of a line that name those of the metrics that are there."""
    return [
        (rank, f"{label} {decimal(metrics[name], digits)}")
        for name, (label, digits, rank) in shown.items()
        if name in metrics
    ]


class Clock:
    """Seconds of the phases of a step, each shown while it lasts; a phase that comes again adds up.

    Attributes:
        progress: as that of the display.
    """

    def __init__(self, display: Display):
        """Starts with no phase."""
        self._display, self.seconds = display, {}
        self.progress = display.progress

    @contextlib.contextmanager
    def phase(self, name: str):
        """Times what is done inside, as time/<name>_s."""
        self._display.phase(name)
        started = time.monotonic()
        yield
        key = f"time/{name}_s"
        self.seconds[key] = self.seconds.get(key, 0.0) + time.monotonic() - started


class Compilations:
    """Counts compiled programs and their seconds: shapes that change from step to step would show here."""

    def __init__(self):
        """Starts at none; JAX reports to it until the process ends."""
        self._count, self._seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._add)

    def take(self) -> dict[str, float]:
        """Those since the last time."""
        found = {"time/compiled_programs": float(self._count), "time/compile_s": self._seconds}
        self._count, self._seconds = 0, 0.0
        return found

    def _add(self, event: str, seconds: float, **_) -> None:
        if event.endswith("backend_compile_duration"):
            self._count, self._seconds = self._count + 1, self._seconds + seconds
