"""Sends a run's log to a tracker: python -m dasd_jax.run.tracker_process WORKDIR, started by `dasd_jax.run.trackers`.

A process of its own, so that a tracker may hang, crash, print or take memory without the run noticing. A byte on stdin
means that metrics.jsonl has grown: the steps that have not been sent are sent, and tracker.json says how far that is.
The end of stdin means that the run has ended, however it did: the rest is sent, and the process ends within `ENDS_S`.

Only the numbers of metrics.jsonl and the configuration leave the machine, the latter without the folders of its paths.
"""

import dataclasses
import os
import queue
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dasd_jax import files, formats
from dasd_jax.credentials import refuse_secrets
from dasd_jax.errors import UserError
from dasd_jax.run import records
from dasd_jax.text.shown import shown

STATE = "tracker.json"
ENDS_S = 60.0  # after the last step, for what a tracker still holds
_LONGEST_REASON = 300  # characters

Log = Callable[..., None]  # (numbers by name, step=)
Finish = Callable[[], None]


@dataclasses.dataclass(frozen=True)
class State:
    """The content of tracker.json.

    Attributes:
        tracker, project: the fields of `run`; the former is not empty.
        id: of this run among those of its project, made at its first start.
        sent: the last step that the tracker was given; -1 before the first. It keeps what it could not upload.
        failed: why it was given up; "" while it works.
    """

    tracker: str
    project: str
    id: str
    sent: int
    failed: str = ""

    def write(self, workdir: Path) -> None:
        """Replaces tracker.json atomically."""
        files.write_json(workdir / STATE, dataclasses.asdict(self))


def read(workdir: Path) -> State:
    """What tracker.json says.

    Raises:
        UserError: it is not there, or is not what was written.
    """
    with files.reading(workdir / STATE, "--workdir"):
        state = State(**formats.read_object(workdir / STATE))
        if [type(value) for value in dataclasses.astuple(state)] != [str, str, str, int, str]:
            raise ValueError("a value of another type")
        return state


def main(workdir: Path) -> None:
    """Follows the log until stdin ends; what goes wrong is left in tracker.json."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, whose end this process hears of
    woken = os.dup(0)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):  # trackers print, and ask for keys
        os.dup2(null, stream)
    news: queue.SimpleQueue[bool] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(woken, news), daemon=True).start()
    try:
        if news.get():
            _follow(workdir, news)
    except Exception as error:
        dataclasses.replace(read(workdir), failed=_reason(error)).write(workdir)
        os._exit(1)  # without the trackers' own ends, which may hang


def _listen(woken: int, news: "queue.SimpleQueue[bool]") -> None:
    """True for each time that the log has grown, False at the end; after that the process has `ENDS_S`."""
    while os.read(woken, 4096):
        news.put(True)
    news.put(False)
    time.sleep(ENDS_S)
    os._exit(1)


def _follow(workdir: Path, news: "queue.SimpleQueue[bool]") -> None:
    state, config = read(workdir), without_folders(records.config(workdir))
    # Two runs may have folders of one name, and trackio knows a run by its name alone.
    name = f"{re.sub('[^a-zA-Z0-9_.-]', '_', workdir.resolve().name)[:80]}-{state.id}"
    log, finish = TRACKERS[state.tracker](state.project, name, state.id, config, workdir)
    offset, going_on = 0, True
    while going_on:
        lines, offset = _lines_from(workdir / "metrics.jsonl", offset)
        for line in lines:
            if (step := line.pop("step")) > state.sent:
                log(line, step=step)
                state = dataclasses.replace(state, sent=step)
                state.write(workdir)
        going_on = news.get()
    finish()


def _lines_from(path: Path, offset: int) -> tuple[list[dict], int]:
    """(the whole lines from this byte on, the byte behind them)."""
    with path.open("rb") as file:
        file.seek(offset)
        text = file.read()
    text = text[: text.rfind(b"\n") + 1]
    return [formats.parse_object(line, path.name) for line in text.splitlines()], offset + len(text)


def without_folders(config: Any) -> Any:
    """A configuration, or a part of it, with the last name alone of every path: folders may say whose they are."""
    if isinstance(config, dict):
        return {name: without_folders(value) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return [without_folders(value) for value in config]
    if not isinstance(config, str):
        return config
    kind = re.match("(?:[a-z]+:)?", config)[0]  # of a source: jsonl:FILE
    return kind + config[len(kind) :].rstrip("/").rpartition("/")[2]


def _reason(error: Exception) -> str:
    """An exception as a part of a line; one that quotes a secret is not repeated."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    try:
        refuse_secrets([text])
    except UserError:
        text = f"{type(error).__name__}, whose message holds a secret"
    return shown(text)[:_LONGEST_REASON]


def _wandb(project: str, name: str, id: str, config: dict, workdir: Path) -> tuple[Log, Finish]:
    """W&B, which ignores a step that is not above the last one; its entity, mode and key come from the environment."""
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # to its authors
    import wandb

    run = wandb.init(
        project=project,
        name=name,
        id=id,
        resume="allow",
        dir=workdir,
        config=config,
        save_code=False,
        settings=wandb.Settings(
            console="off",
            host="",
            disable_git=True,
            disable_code=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_disable_stats=True,
            x_save_requirements=False,
            symlink=False,  # mounted buckets have none
            silent=True,
        ),
    )

    def log(numbers: dict[str, float], step: int) -> None:
        run.log(numbers, step=step, commit=True)

    return log, run.finish


def _trackio(project: str, name: str, id: str, config: dict, workdir: Path) -> tuple[Log, Finish]:
    """trackio, which keeps every step it is given, one that it has already among them."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import trackio

    run = trackio.init(
        project=project, name=name, resume="allow", config=config, embed=False, auto_log_gpu=False, auto_log_cpu=False
    )
    return run.log, run.finish


TRACKERS = {"wandb": _wandb, "trackio": _trackio}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
