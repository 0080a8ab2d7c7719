"""Runs a sweep over a config: python -m launchers.sweep --sweep=FILE.py --config=FILE.py[:ARG] --workdir=DIR

The points come from get_sweep() in the sweep file (see configs/sweeps/common.py). Each is one training run with a
workdir in DIR that is named after its overrides; its output goes to a .log. Points whose workdir holds done.json are
skipped, and refused if its config.json is not the point's config, or if its files have changed since. A failed point
does not stop the others. Finally a table is printed; the exit code is 1 if a point failed or was stopped before its
end. SIGTERM is passed on to the running points, which save.

--dry-run prints the command of every point, which can be run by hand. With --slices=FILE each point runs on its own TPU
slice: FILE holds flags of launchers.tpu_vm, which runs it, and DIR must be in /bucket.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import math
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from dasd_jax import cli, files, recorded, terminal
from dasd_jax.config import PROBLEMS, Config
from dasd_jax.errors import UserError
from dasd_jax.run import user_files
from launchers import steps, tpu_vm
from launchers.plan import Job


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        overrides: GROUP.FIELD → value, as in the sweep file.
        config: all of the run.
        workdir: of the run; a path on the slice if there is a job.
        command: runs the point, from the repository's folder.
        job: the slice job that runs it; None if it runs on this machine.
    """

    overrides: dict[str, Any]
    config: Config
    workdir: Path
    command: tuple[str, ...]
    job: Job | None = None


def expand(sweep: Iterable[dict], config: str, shared: Sequence[str], workdir: Path) -> list[Point]:
    """The validated points of a sweep.

    Args:
        sweep: the overrides of each point.
        shared: overrides of all points, as on a command line.

    Raises:
        UserError: the sweep is empty or not a list of dictionaries, a point is not a valid config, or two are equal.
    """
    sweep = list(sweep) if isinstance(sweep, Iterable) else [sweep]
    if not sweep or not all(isinstance(overrides, dict) for overrides in sweep):
        raise UserError(f"get_sweep() returned {sweep!r}: expected dictionaries of GROUP.FIELD → value, at least one")
    given = {word.removeprefix("--config.").partition("=")[0] for word in shared}
    points: dict[str, Point] = {}
    for number, overrides in enumerate(sweep, start=1):
        if twice := given & overrides.keys():
            raise UserError(f"point {number}: {min(twice)} is also set on the command line: expected it in one place")
        words = [f"{field}={_text(value)}" for field, value in overrides.items()]
        cli.refuse_secrets(words, f"point {number}")
        name = re.sub(r"[^\w.,=+-]+", "_", ",".join(words), flags=re.ASCII) or "base"
        if len(name) > 200:
            raise UserError(f"point {number}: {name}: too long for a folder name: expected at most 200 characters")
        if name in points:
            raise UserError(f"point {number}: {name}: an earlier point has the same workdir: expected distinct ones")
        flags = [f"--config={config}", f"--workdir={workdir / name}", *shared, *(f"--config.{word}" for word in words)]
        try:
            parsed = cli.parse(cli.parser(""), flags, quiet=True)
        except UserError as error:
            raise UserError(f"point {number}: {error}") from error
        command = ("python", "-m", "dasd_jax.train", *flags)
        points[name] = Point(overrides, parsed.config, workdir / name, command)
    return list(points.values())


def _text(value: Any) -> str:
    """A value in command-line syntax."""
    if isinstance(value, list | tuple):
        return repr(tuple(value))
    return str(value)


def on_slices(points: Sequence[Point], flags: str) -> list[Point]:
    """The same points, each on its own slice, whose name ends with the point's number.

    Raises:
        UserError: the file has an invalid flag.
    """
    placed = []
    try:
        for number, point in enumerate(points, start=1):
            own = ["run", f"@{flags}", "--", *point.command]
            _, job, _ = tpu_vm.parse(own)
            own.insert(2, f"--name={job.name}-{number}")
            _, job, _ = tpu_vm.parse(own)
            placed.append(dataclasses.replace(point, command=("python", "-m", "launchers.tpu_vm", *own), job=job))
    except UserError as error:
        raise UserError(f"--slices: {flags}: {error}") from error
    return placed


def result(point: Point) -> dict | None:
    """The content of a point's done.json; None if it is not finished."""
    if point.job:
        return steps.result(point.job)
    path = point.workdir / "done.json"
    if not os.path.exists(path):
        return None
    with files.reading(path, "--workdir"):
        done = json.loads(path.read_text())
        _figures(done)
    return done


def check_config(point: Point) -> None:
    """Refuses the result of a run with another config or other files than the point's, which would stand for it.

    Raises:
        UserError: naming the first field or file that differs, or there is no config.json beside done.json.
    """
    theirs = _recorded(point)
    if theirs is None:
        raise tpu_vm.without_config(point.workdir)
    recorded.check_same(point.config, theirs, point.workdir)
    if note := tpu_vm.compare_files(point.config, theirs, point.workdir, away=point.job is not None):
        terminal.say(terminal.console(), f"note: {point.workdir.name}: {note}")


def _recorded(point: Point) -> dict[str, Any] | None:
    """The content of a point's config.json."""
    return steps.config(point.job) if point.job else recorded.read(point.workdir)


def evaluated_on_others(finished: Sequence[Point]) -> list[str]:
    """A line for each point whose evaluations cannot be compared with those of an earlier one.

    Their configs name the same problems, whose files changed between the two runs.
    """
    notes: list[str] = []
    first: dict[str, tuple[str, Point]] = {}
    for point in finished:
        digest = (_recorded(point) or {}).get(PROBLEMS, {}).get(user_files.EVALUATED_ON)
        fields = recorded.as_json(point.config)
        named = json.dumps([fields["data"], fields["rollout"]["prompt_length"], fields["model"]])
        if digest and (earlier := first.setdefault(named, (digest, point)))[0] != digest:
            notes.append(
                f"note: {point.workdir.name} was evaluated on other problems than {earlier[1].workdir.name}: the files "
                "of the problems changed between them, and the two are not comparable"
            )
    return notes


def run(points: Sequence[Point], jobs: int, logs: Path) -> dict[Path, int]:
    """Runs the points, `jobs` at a time, each with its output in logs/NAME.log.

    Returns:
        The exit codes by workdir.

    Raises:
        SystemExit: after SIGTERM, when the running points have ended.
    """
    logs.mkdir(parents=True, exist_ok=True)
    codes: dict[Path, int] = {}
    children = _Children()
    before = signal.signal(signal.SIGTERM, lambda *_: children.end())
    pool = concurrent.futures.ThreadPoolExecutor(jobs)
    try:
        running = {
            pool.submit(_run_one, point, logs / f"{point.workdir.name}.log", children): point for point in points
        }
        for future in concurrent.futures.as_completed(running):
            point = running[future]
            codes[point.workdir], last_line = future.result()
            terminal.say(terminal.console(), f"[{len(codes)}/{len(points)}] {point.workdir.name}: {last_line}")
    finally:
        # Ctrl-C reaches the running points as well; do not start the others.
        pool.shutdown(cancel_futures=True)
        signal.signal(signal.SIGTERM, before)
    if children.ended:
        raise SystemExit("stopped by a signal; the same command goes on")
    return codes


class _Children:
    """The processes of the running points, which end with the sweep.

    Attributes:
        ended: no further ones start.
    """

    def __init__(self):
        self.ended = False
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.RLock()  # a second signal comes to the thread that handles the first

    def end(self) -> None:
        """Passes SIGTERM on to all of them."""
        with self._lock:
            self.ended = True
            for process in self._running:
                process.terminate()

    def run(self, command: Sequence[str], output: IO[bytes]) -> int | None:
        """The exit code of a command; None if it did not start."""
        with self._lock:
            if self.ended:
                return None
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            self._running.add(process)
        code = process.wait()
        with self._lock:
            self._running.remove(process)
        return code


def _run_one(point: Point, log: Path, children: _Children) -> tuple[int, str]:
    """(exit code, one line for the progress output)."""
    with log.open("ab") as output:
        code = children.run((sys.executable, *point.command[1:]), output)
    if code is None:
        return 0, "not started"
    if code == 0:
        # On a slice the launcher's exit code says it; train's is also 0 after SIGTERM and before maintenance.
        done = point.job is not None or (point.workdir / "done.json").exists()
        return 0, "done" if done else "stopped before its end"
    lines = log.read_text(errors="replace").strip().splitlines()
    return code, f"exit code {code}: {lines[-1] if lines else 'no output'} ({log})"


def table(
    points: Sequence[Point], results: Sequence[dict | None], codes: dict[Path, int], width: int | None = None
) -> str:
    """The points with their final metrics, followed by the means over seeds.

    Args:
        width: of the terminal, whose columns fold; None: a file, as Markdown.
    """
    fields = list(dict.fromkeys(itertools.chain.from_iterable(point.overrides for point in points)))
    figures = [_figures(done) if done else {} for done in results]
    names = list(dict.fromkeys(itertools.chain.from_iterable(figures)))
    rows = []
    groups: dict[tuple[str, ...], list[dict[str, float]]] = {}
    for point, numbers in zip(points, figures, strict=True):
        values = {field: _text(point.overrides.get(field, "")) for field in fields}
        code = codes.get(point.workdir, 0)
        state = f"exit code {code}" if code else "done" if numbers else "not finished"
        rows.append([*values.values(), state, *(f"{numbers[name]:.3f}" if name in numbers else "" for name in names)])
        if numbers:
            group = tuple(value for field, value in values.items() if field != "run.seed")
            groups.setdefault(group, []).append(numbers)
    text = _table([*fields, "", *names], rows, width, keys=len(fields))
    if "run.seed" not in fields or not any(len(group) > 1 for group in groups.values()):
        return text
    means = [
        [*group, str(len(runs)), *(_mean([run[name] for run in runs if name in run]) for name in names)]
        for group, runs in groups.items()
    ]
    varied = [field for field in fields if field != "run.seed"]
    return f"{text}\n\n" + _table([*varied, "seeds", *names], means, width, keys=len(varied) + 1)


def _figures(done: dict) -> dict[str, float]:
    held, means = done["heldout"], done["mean_over_steps"]
    average, passed = [next(name for name in held if name.startswith(start)) for start in ("avg@", "pass@")]
    figures = {
        f"{average} before": held[average][0],
        f"{average} after": held[average][1],
        "rise": held["rise"],
        "± by problem": held["rise_standard_error"],
        f"{passed} after": held[passed][1],
        **{name: means[name] for name in ("reward/mean", "reward/drawn_mean", "entropy/mean") if name in means},
    }
    return {name: float(value) for name, value in figures.items() if value is not None}


def _mean(values: Sequence[float]) -> str:
    """Mean and its standard error over seeds."""
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values) / math.sqrt(len(values)):.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None, keys: int) -> str:
    if width is not None:
        return terminal.table(head, rows, width, keys)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def main(argv: list[str]) -> None:
    """The command."""
    flags = cli.parser(__doc__)
    flags.add_argument("--sweep", required=True, metavar="FILE.py", help="file with get_sweep(), the points' overrides")
    flags.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    flags.add_argument("--slices", default="", metavar="FILE", help="flags of launchers.tpu_vm: one slice per point")
    flags.add_argument("--dry-run", action="store_true", help="print the commands without running them")
    flags.add_argument("--table", action="store_true", help="only print the table of finished points")
    asked = cli.parse(flags, argv).flags
    if not asked.workdir:
        raise UserError("--workdir: missing: expected the folder for the runs of the sweep")
    if asked.jobs < 1:
        raise UserError(f"--jobs: {asked.jobs}: expected at least 1")
    workdir = Path(asked.workdir).expanduser()
    shared = [word for word in cli.joined(argv) if word.startswith("--config.")]
    try:
        points = expand(cli.call_file("--sweep", asked.sweep, "get_sweep"), asked.config, shared, workdir)
    except UserError as error:
        raise UserError(f"--sweep: {asked.sweep}: {str(error).removeprefix('--sweep: ')}") from error
    if asked.slices:
        points = on_slices(points, asked.slices)
    if asked.dry_run:
        print("\n".join(shlex.join(point.command) for point in points))
        return
    finished = [point for point in points if result(point) is not None]
    for point in finished:
        check_config(point)
    todo = [] if asked.table else [point for point in points if point not in finished]
    codes = run(todo, asked.jobs, Path("runs") / workdir.name if asked.slices else workdir) if todo else {}
    console, results = terminal.console(), [result(point) for point in points]
    terminal.show(console, table(points, results, codes, terminal.width_of(console)))
    for note in evaluated_on_others([point for point, done in zip(points, results, strict=True) if done]):
        terminal.say(console, note)
    failed = sum(code != 0 for code in codes.values())
    stopped = sum(done is None and codes.get(point.workdir) == 0 for point, done in zip(points, results, strict=True))
    if failed or stopped:
        said = [f"{failed} of {len(points)} points failed"] * bool(failed)
        said += [f"{stopped} of {len(points)} points stopped before their end"] * bool(stopped)
        raise SystemExit(f"error: {', '.join(said)}")


if __name__ == "__main__":
    cli.run(main)
