"""The log of a run: metrics.jsonl, the same numbers as TensorBoard events and in a tracker, and samples.jsonl."""

import itertools
import math
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from dasd_jax import files, hosts
from dasd_jax.errors import UserError
from dasd_jax.run import trackers
from dasd_jax.run.records import whole_lines

LEFT_OUT = "samples/left_out"  # in the log: rollouts of a step for which samples.jsonl had no room


class RunLog:
    """One object a step in metrics.jsonl, the same numbers as TensorBoard events, and a few rollouts in samples.jsonl.

    samples.jsonl grows to a limit that all steps share evenly: rollouts of a step for which there is no room are left
    out, and counted in the log.

    Opened for a run that goes on from step n, it cuts the files back to n and makes the events again, so that each
    step is in them once. A number that is not finite is left out, since JSON cannot represent it. With several
    processes, process 0 writes and all of them know the lines. Whatever cannot be written is an OSError in the caller.

    Attributes:
        lines: the objects of metrics.jsonl, in order.
    """

    def __init__(
        self, workdir: Path, step: int, samples_a_step: float = math.inf, tracker: trackers.Tracker | None = None
    ):
        """Opens the log of a run whose last finished step is `step`; -1 for a run that starts.

        Args:
            samples_a_step: bytes of samples.jsonl that each step adds to what may be filled.
            tracker: hears of every step that stands in metrics.jsonl, and is closed with the log.

        Raises:
            UserError: a line before the last of one of the files is not what was written, or a step is missing.
        """
        self._metrics, self._samples = workdir / "metrics.jsonl", workdir / "samples.jsonl"
        self.lines = hosts.from_main(lambda: list(_cut_back(self._metrics, step, numbers=True)))
        self._samples_a_step = samples_a_step
        self._size = hosts.from_main(lambda: _size_cut_back(self._samples, step))
        self._writes, self._tracker = hosts.is_main(), tracker
        if not self._writes:
            return
        folder = workdir / "tensorboard"
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        # Not SummaryWriter: it writes in a thread of its own, and waits for it for ever once the disk is full.
        self._events = EventsWriter(str(folder / "events"))
        for line in self.lines:
            self._add_events(line)
        self._events.flush()
        if self.lines:
            self._wake_tracker()

    def write(self, step: int, metrics: dict[str, float], samples: Sequence[dict] = ()) -> int:
        """Appends one step; samples first, so that a step with metrics has its samples.

        Args:
            samples: problems with their rollouts, as `dasd_jax.run.records` describes them, but for the step.

        Returns:
            How many of the rollouts had no room.
        """
        logged, left_out = self._that_fit(step, samples)
        finite = {name: float(value) for name, value in sorted(metrics.items()) if math.isfinite(value)}
        line = {"step": step, **finite} | ({LEFT_OUT: float(left_out)} if left_out else {})
        self.lines.append(line)
        if self._writes:
            _append(self._samples, logged)
            _append(self._metrics, [files.json_line(line)])
            self._add_events(line)
            self._events.flush()
            self._wake_tracker()
        return left_out

    def _that_fit(self, step: int, samples: Sequence[dict]) -> tuple[list[str], int]:
        """(lines of samples.jsonl, rollouts left out), the same in every process.

        All of a step or none: filled up with what is small enough, the file would have few long responses.
        """
        lines = [files.json_line({"step": step, **problem}) for problem in samples]
        size = sum(len(line.encode()) for line in lines)
        if self._size + size > self._samples_a_step * max(step, 1):
            return [], sum(len(problem["rollouts"]) for problem in samples)
        self._size += size
        return lines, 0

    def close(self) -> None:
        """Closes the events and the tracker; nothing else is open between two steps."""
        if self._writes:
            self._events.close()
        if self._tracker:
            self._tracker.close()

    def _wake_tracker(self) -> None:
        if self._tracker:
            self._tracker.wake(self.lines[-1]["step"])

    def _add_events(self, line: dict) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in line.items() if name != "step"]
        self._events.write_event(Event(wall_time=time.time(), step=line["step"], summary=Summary(value=values)))


def _append(path: Path, lines: Iterable[str]) -> None:
    """Adds lines and closes the file: a mounted bucket has nothing of a file that is open."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(lines)


def _size_cut_back(path: Path, step: int) -> int:
    """Keeps the lines up to `step`; bytes that stay."""
    for _ in _cut_back(path, step, numbers=False):
        pass
    return path.stat().st_size if path.exists() else 0


def _cut_back(path: Path, step: int, numbers: bool) -> Iterable[dict]:
    """Keeps the lines up to `step` and yields them; a half-written last line goes with the rest.

    Raises:
        UserError: a line is not what was written, or of `numbers` a step up to `step` is missing.
    """
    if not path.exists():
        return
    kept = list(
        itertools.takewhile(lambda pair: pair[1]["step"] <= step, whole_lines(path, "--workdir", numbers=numbers))
    )
    if numbers and (odd := _first_odd_step([line["step"] for _, line in kept], step)) is not None:
        raise UserError(
            f"--workdir: {path}: step {odd} is missing or logged twice, and the checkpoint is of step {step}: "
            "expected each step once; if the file is removed, the run goes on and its guards start over"
        )
    draft = path.with_suffix(".tmp")
    draft.write_bytes(b"".join(text + b"\n" for text, _ in kept))
    draft.rename(path)
    yield from (line for _, line in kept)


def _first_odd_step(found: list[int], last: int) -> int | None:
    """The first step up to `last` that is not in its place; None where all are.

    The log begins with step 0, or later if it was removed on the way.
    """
    first = found[0] if found else 0
    return next((step for step in range(first, last + 1) if found[step - first : step - first + 1] != [step]), None)
