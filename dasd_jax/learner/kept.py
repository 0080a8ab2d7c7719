"""The checkpoints that a run has kept: which are whole, the newest, the best, and the one that a flag names.

`learner/checkpoint.py` writes and restores them, and says what lies in their folders.
"""

import contextlib
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from dasd_jax import files, formats
from dasd_jax.errors import UserError
from dasd_jax.model.weights import file_sha256


def latest(workdir: Path, *, set_aside: bool) -> Path | None:
    """The newest valid checkpoint, or None.

    Args:
        set_aside: rename newer ones that are damaged and remove unfinished ones, with a line on stdout; only for the
            run that owns the folder, since another process could still be writing an unfinished one. Without it, a
            line on stderr names the damaged ones that are passed over.

    Raises:
        UserError: with `set_aside`, there are finished checkpoints and none is valid.
        OSError: a file could not be read, so its checkpoint may still be valid.
    """
    passed_over = []
    for folder in reversed(folders(workdir)):
        problem = damage(folder)
        if not problem:
            _say_passed_over(passed_over, folder)
            return folder
        finished = (folder / "manifest.json").exists()
        if not set_aside:
            passed_over += [f"{folder} is damaged: {problem}"] if finished else []
            continue
        if not finished:
            shutil.rmtree(folder)
            print(f"checkpoint {folder.name}: {problem}; removed")
            continue
        aside = folder.with_name(folder.name + ".damaged")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        print(f"checkpoint {folder.name}: {problem}; set aside as {aside.name}")
    if set_aside and (damaged := sorted((workdir / "checkpoints").glob("*.damaged"))):
        raise UserError(
            f"--workdir: {workdir}: no checkpoint is valid, the newest is {damaged[-1].name}: expected another "
            "--workdir, or to start over, this one without checkpoints/ and metrics.jsonl"
        )
    return None


def _say_passed_over(reasons: Iterable[str], used: Path) -> None:
    for reason in reasons:
        print(f"note: {reason}; step {name_of(used)} is used", file=sys.stderr)


def name_of(folder: Path) -> str:
    """What results of a checkpoint are called: its step, or the name of a folder that is no step."""
    return str(int(folder.name)) if folder.name.isdecimal() else folder.name


def find(workdir: Path, which: str, flag: str = "--checkpoint") -> Path:
    """The checkpoint that a flag selects: "" for the newest, "best", a step number, or a path.

    Raises:
        UserError: it does not exist, is not valid or cannot be read; starts with the flag.
    """
    try:
        return _find(workdir, which, flag)
    except OSError as error:
        where = error.filename or workdir
        raise UserError(f"{flag}: {where}: {error.strerror or error}: expected readable files") from error


def _find(workdir: Path, which: str, flag: str) -> Path:
    if not which:
        folder = latest(workdir, set_aside=False)
        if folder is None:
            raise UserError(
                f"{flag}: {workdir} has no valid checkpoint: expected the workdir of a run that has saved one"
            )
        return folder
    if which == "best":
        which = best(workdir)
        if not which:
            raise UserError(f"{flag}: best: {workdir} has no best checkpoint: expected a run with run.eval_every")
        unknown = [folder for folder in folders(workdir) if folder.name > which and _was_best(folder) is None]
        reasons = (f"{folder} may be better, and its manifest is damaged" for folder in unknown)
        _say_passed_over(reasons, workdir / "checkpoints" / which)
    folder = workdir / "checkpoints" / f"{int(which):06d}" if which.isdecimal() else Path(which).expanduser()
    try:
        there = folder.is_dir()
    except OSError:  # an invalid folder name
        there = False
    if not there:
        have = ", ".join(str(int(path.name)) for path in folders(workdir)) or "none"
        raise UserError(f"{flag}: {which}: {folder} does not exist: expected a path or a step of {have}")
    problem = damage(folder)
    if problem:
        raise UserError(f"{flag}: {which}: {folder} is damaged: {problem}")
    return folder


def newest(workdir: Path) -> Path | None:
    """The newest checkpoint that was finished, whose files are not read; None if there is none."""
    return next((path for path in reversed(folders(workdir)) if (path / "manifest.json").exists()), None)


def keep_params_alone(workdir: Path) -> None:
    """Takes from every finished checkpoint of a run what only training reads: optimiser, teachers, step.

    The manifest is changed first, by a rename: whatever else lies in rest/ then belongs to no checkpoint.
    """
    for folder in folders(workdir):
        # One that is damaged stays as it is.
        with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
            manifest = formats.read_object(folder / "manifest.json")
            kept = {name: checksum for name, checksum in manifest["files"].items() if not _is_rest(name)}
            files.write_json(folder / "manifest.json", {**manifest, "files": kept})
            shutil.rmtree(folder / "rest")


def goes_on(folder: Path) -> bool:
    """Whether a valid checkpoint has more than the parameters."""
    return any(map(_is_rest, formats.read_object(folder / "manifest.json")["files"]))


def _is_rest(name: str) -> bool:
    return name.startswith("rest/")


def folders(workdir: Path) -> list[Path]:
    """Those of all steps, from the first on; they may be unfinished or damaged."""
    return sorted(path for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdigit())


def best(workdir: Path) -> str:
    """The name of the newest finished checkpoint that was the best when written, "" if there is none."""
    return next((folder.name for folder in reversed(folders(workdir)) if _was_best(folder)), "")


def _was_best(folder: Path) -> bool | None:
    """Whether a checkpoint is finished and was the best when written; None: its manifest cannot be read."""
    try:
        # Completion and best are in one manifest, so that a kill cannot separate them.
        return bool(formats.read_object(folder / "manifest.json").get("best"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return None


def checksums(folder: Path) -> dict[str, str]:
    """By name, the sha256 of every file in a folder but the manifest."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(folder)): file_sha256(path) for path in found}


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint, in a few words; "" if it is valid.

    Raises:
        OSError: one of its files could not be read.
    """
    try:
        expected = formats.read_object(folder / "manifest.json")["files"]
    except FileNotFoundError:
        return "it was never finished"
    except (ValueError, KeyError):
        return "its manifest is damaged"
    if not isinstance(expected, dict):
        return "its manifest is damaged"
    found = checksums(folder)
    if not any(map(_is_rest, expected)):  # a kill may have left a part of it behind
        found = {name: checksum for name, checksum in found.items() if not _is_rest(name)}
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            return f"{name} differs from its manifest"
    return ""
