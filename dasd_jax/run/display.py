"""Progress of a run: a live line on a terminal, otherwise a line a step; seconds of its phases."""

import contextlib
import statistics
import time
from collections.abc import Mapping, Sequence

import jax
import rich.console
import rich.progress

from dasd_jax import hosts

_SHOWN = {
    "reward/mean": "reward",
    "loss/total": "loss",
    "entropy/mean": "entropy",
    "rollout/length_mean": "length",
}


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


class Display:
    """A bar with phase, last reward and time left on a terminal; one line a step anywhere else; in process 0 alone."""

    def __init__(self, total: int, done: int, eval_every: int = 0):
        """A run of `total` steps of which `done` are finished, with an evaluation every `eval_every` and at its end."""
        self._console = rich.console.Console()
        self._speaks = hosts.is_main()
        self._began, self._total, self._eval_every = done, total, eval_every
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description:<10}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[last]}"),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("{task.fields[left]}"),
            console=self._console,
            disable=not (self._speaks and self._console.is_terminal),
        )
        self._task = self._bar.add_task("start", total=total, completed=done, last="", left="")
        self._bar.start()

    def phase(self, name: str) -> None:
        """Says what the program is doing now."""
        self._bar.update(self._task, description=name)

    def step(self, step: int, metrics: Mapping[str, float], lines: Sequence[Mapping[str, float]]) -> None:
        """Marks a step as finished and shows its main numbers, and the time left by the lines of the log up to it."""
        shown = [f"{label} {metrics[name]:.3f}" for name, label in _SHOWN.items() if name in metrics]
        left = f"left {seconds_left(lines, self._began, self._total, self._eval_every) / 60:.1f} min"
        self._bar.update(self._task, completed=step, last="  ".join(shown), left=left)
        if self._speaks and not self._console.is_terminal:
            numbers = "  ".join([*shown, f"{metrics['time/step_s']:.1f} s"])
            print(f"step {step}/{self._total}  {numbers}  {left}", flush=True)

    def say(self, text: str) -> None:
        """A line above the bar."""
        if not self._speaks:
            return
        if self._console.is_terminal:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Stops the bar and restores the terminal."""
        self._bar.stop()


class Clock:
    """Seconds of the phases of a step, each shown while it lasts; a phase that comes again adds up."""

    def __init__(self, display: Display):
        """Starts with no phase."""
        self._display, self.seconds = display, {}

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
