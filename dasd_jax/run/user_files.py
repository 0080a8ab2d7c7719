"""The user's own files beside data and weights that decide a run's results, such as reward functions.

config.json holds the sha256 of each, so that a run goes on with the files that it began with.
"""

from pathlib import Path
from typing import Any

from dasd_jax import files
from dasd_jax.config import FILES, Config
from dasd_jax.data import contexts, skills, sources, verifiers
from dasd_jax.errors import UserError
from dasd_jax.recorded import NAME


def of(config: Config) -> dict[str, str]:
    """The sha256 of each file, under its name as the config has it.

    Raises:
        UserError: one is not there or cannot be read; starts with the field that names it.
    """
    data = config.data
    found = sources.own_files({"data.sources": data.sources, "data.benchmarks": data.benchmarks}, data.verifier)
    of_banks = {path: skills.sha256(path) for path in banks(config)}
    return {name: verifiers.sha256(path) for name, path in found.items()} | of_banks


def banks(config: Config) -> list[str]:
    """The banks of skills that the method's teachers are shown: data.skills, or nothing."""
    shown = {view.context for view in config.method.views(config.hp).values()}
    return [config.data.skills] if contexts.SKILLS in shown else []


def as_written(config: Config, mine: dict[str, str]) -> dict[str, Any]:
    """The content of config.json: the groups, and the files where there are some."""
    return config.to_dict() | ({FILES: mine} if mine else {})


def check_same(config: Config, theirs: dict[str, Any], workdir: Path) -> None:
    """Refuses to continue a run with files that have changed.

    Args:
        theirs: the content of its config.json.

    Raises:
        UserError: naming the first.
    """
    with files.reading(workdir / NAME, "--workdir"):
        before = dict(theirs.get(FILES, {}))
    for name, sha256 in of(config).items():
        if before.get(name) != sha256:
            raise UserError(
                f"--workdir: {workdir} belongs to a run with another content of {name}, of sha256 "
                f"{str(before.get(name)):.12}… and not {sha256:.12}…: expected the same file, or another --workdir"
            )
