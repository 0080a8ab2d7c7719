"""What a finished run came to: done.json, and the lines that are printed of it."""

import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dasd_jax import files, formats, terminal
from dasd_jax.config import Config
from dasd_jax.run.evaluation import rise

_WATCHED = ("entropy/mean", "reward/mean", "reward/drawn_mean")  # of every method, after its own


def read(workdir: Path) -> str:
    """The lines of a run that is finished.

    Raises:
        UserError: done.json is damaged.
    """
    with files.reading(workdir / "done.json", "--workdir"):
        text = as_text(formats.read_object(workdir / "done.json"))
        text.encode()  # half a surrogate pair would fail when it is printed
    return text


def summarise(config: Config, workdir: Path, lines: Sequence[dict], seconds: float, since: int = 0) -> dict:
    """The object of done.json.

    Args:
        lines: the objects of metrics.jsonl.
        seconds: that this process has spent on the run.
        since: the first step whose evaluation was made like the last one, with which that is compared.
    """
    before, after = (formats.read_object(workdir / "heldout" / f"{step}.json") for step in (since, config.run.steps))
    k = after["samples"]
    change, error = rise(before, after)
    lines = [line for line in lines if line["step"] > 0]
    return {
        "workdir": str(workdir),
        "steps": config.run.steps,
        "compared_with_step": since,
        "objective": config.to_dict()["objective"],
        "heldout": {
            f"avg@{k}": [before[f"avg@{k}"], after[f"avg@{k}"]],
            f"pass@{k}": [before[f"pass@{k}"], after[f"pass@{k}"]],
            f"macro_avg@{k}": [before["macro"][f"avg@{k}"], after["macro"][f"avg@{k}"]],
            "standard_error": [before["standard_error"], after["standard_error"]],
            "rise": change,
            "rise_standard_error": error,
            "problems": after["problems"],
        },
        "mean_over_steps": {
            name: float(np.mean([line[name] for line in lines if name in line]))
            for name in (*config.method.watched, *_WATCHED)
            if any(name in line for line in lines)
        },
        "seconds_this_session": seconds,
        "peak_memory_gib": peak_memory_gib(),
    }


def peak_memory_gib() -> float:
    """The most memory of the host that this process has held, in GiB."""
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes of ru_maxrss, which other systems count in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def as_text(done: dict) -> str:
    """The lines that are printed of done.json: of up to 80 cells, if the workdir's name is not longer."""
    held = done["heldout"]
    average = next(name for name in held if name.startswith("avg@"))
    passed = next(name for name in held if name.startswith("pass@"))
    error = held["rise_standard_error"]
    if error is None:
        spread = "of one problem"
    elif error:
        spread = f"{held['rise'] / error:.1f} standard errors by problem"
    else:
        spread = "every problem changed by the same amount"
    before, after = map(terminal.with_error, held[average], held["standard_error"])
    means = [(name, f"{value:.4g}") for name, value in done["mean_over_steps"].items()]
    since = f" since step {done['compared_with_step']}" if done.get("compared_with_step") else ""
    lines = [
        f"held-out {average}: {before} before, {after} after, {held['problems']} problems",
        f"rise{since}: {terminal.with_error(held['rise'], error, '+')}, {spread}",
        f"held-out {passed}: {held[passed][0]:.3f} before, {held[passed][1]:.3f} after",
        *([terminal.table(("mean over the steps that logged it", ""), means, None)] if means else []),
        f"this session: {done['seconds_this_session'] / 60:.1f} min, "
        f"host memory at most {done['peak_memory_gib']:.1f} GiB",
        f"the run is in {done['workdir']}",
    ]
    return "\n".join(lines)
