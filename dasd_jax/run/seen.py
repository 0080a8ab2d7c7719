"""Problems to evaluate that the model has been trained on: by the run of its checkpoint, or by one before that.

A run does not train on what it evaluates. A run that starts from another one may hold out, or have as a benchmark, what
that one was trained on: its figures are then not those of new problems.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from dasd_jax import files, recorded
from dasd_jax.config import START, Config
from dasd_jax.data.duplicates import twins
from dasd_jax.data.pipeline import PromptSet
from dasd_jax.data.sources import Problem
from dasd_jax.errors import UserError
from dasd_jax.run import origin, setup

# What decides which problems a run is trained on, and is read of runs of older versions too.
_DECIDING = ("sources", "benchmarks", "heldout", "verifier", "shots")


def lines(config: Config, evaluated: PromptSet, run: Path | None, itself: bool) -> Iterator[str]:
    """A line for each run that was, or may have been, trained on problems to evaluate, the newest first.

    They count as the same as they do where a run leaves benchmarks out of training: also with their numbers in another
    order.

    Args:
        run: the folder of the run that trains, or has trained, the model; None: there is none.
        itself: whether that is compared too, and not only those that it started from.
    """
    asked, walked = [twins(problem.question) for problem in evaluated.problems], set()
    while run and run.absolute() not in walked:
        walked.add(run.absolute())
        try:
            known = {twins(problem.question) for problem in _trained_on(config, run)} if itself else set()
            if count := sum(key in known for key in asked):
                yield f"warning: the run in {run} was trained on {count:,} of the {len(asked):,} problems to evaluate"
        except UserError as error:  # an evaluation needs no training problems
            yield f"note: not compared with the training problems of the run in {run}: {error}"
        try:
            run, itself = _before(run), True
        except UserError as error:
            yield f"note: not known from which run the one in {run} started: {error}"
            return


def of_weights(path: str) -> Path | None:
    """The folder of the run that weights are of, as model.weights names them; None if they are not a run's."""
    where = Path(path).expanduser()
    if (where / "checkpoints").is_dir():
        return where
    return where.parent.parent if where.parent.name == "checkpoints" else None


def of_checkpoint(config: Config, workdir: Path, which: str, own: Sequence[str] | None) -> tuple[Path | None, bool]:
    """`run` and `itself` of `lines`, for an evaluation of the checkpoint that --checkpoint names.

    A run is compared with what is not among its own evaluations, which it does not train on.

    Args:
        config: of `recorded.for_checkpoint`: with the run's own sources.
        which: the flag --checkpoint.
        own: of `recorded.benchmarks`.
    """
    run = recorded.run_of(workdir, which)
    if which == "start":  # what the run took from another one by --from is not in it
        with files.reading(run / recorded.NAME, "--workdir"):
            begun = (recorded.read(run) or {}).get(START, {}).get("weights", config.model.weights)
        return of_weights(str(begun)), True
    if own is None:
        return None, False
    asked = set(config.data.benchmarks)
    return run, not (asked <= set(own) if asked else not own)


def _before(run: Path) -> Path | None:
    """The folder of the run that the one in a folder started from; None if from none."""
    if found := origin.read(run):
        return Path(found.run)
    with files.reading(run / recorded.NAME, "--workdir"):
        theirs = recorded.read(run) or {}
        return of_weights(str(theirs.get(START, {}).get("weights") or theirs.get("model", {}).get("weights", "")))


def _trained_on(config: Config, run: Path) -> list[Problem]:
    """The training problems of the run in a folder, its shots among them.

    Raises:
        UserError: config.json or the problems are gone, or cannot be read.
    """
    theirs = recorded.read(run)
    if theirs is None:
        raise UserError(f"{run / recorded.NAME} does not exist")
    with files.reading(run / recorded.NAME, "--workdir"):
        data = {name: theirs["data"][name] for name in _DECIDING if name in theirs["data"]}
        data |= {name: tuple(data[name]) for name in ("sources", "benchmarks")}
        own = dataclasses.replace(config.data, **data)
    return setup.of_data(own)[0]
