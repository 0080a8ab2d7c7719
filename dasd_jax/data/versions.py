"""Problems with two versions of their solution, from which `python -m dasd_jax.select` chooses."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from dasd_jax.data import tables
from dasd_jax.data.duplicates import normalise
from dasd_jax.data.rows import as_text, unpacked
from dasd_jax.data.sources import Problem, load_source
from dasd_jax.errors import UserError

_FIELD = "versions"


@dataclasses.dataclass(frozen=True)
class Versioned:
    """A problem and the texts that solve it, by the name of the version; without blank ones."""

    problem: Problem
    texts: Mapping[str, str]


def read(paths: Sequence[str], names: Sequence[str], verifier: str = "") -> tuple[list[Versioned], dict[str, int]]:
    """Every problem of .jsonl and .parquet files; of those with the same question only the first.

    Questions and answers are read as those of training problems. A version is the text of that name in the object
    `versions`, which may also be the JSON text of one, or else in the column of that name.

    Args:
        names: of the versions.
        verifier: as for `load_source`.

    Returns:
        (problems in the order of the files, the counts `read`, `duplicates`, and of the others those `without` some).

    Raises:
        UserError: a file that cannot be read, a row that is no problem or holds something else than texts, or no
            problem with all versions; starts with --input or --versions.
    """
    found: dict[str, Versioned] = {}
    read_count, lacking = 0, Counter()
    for path in paths:
        suffix = PurePath(path).suffix.removeprefix(".")
        if suffix not in ("jsonl", "parquet"):
            raise UserError(f"--input: {path}: expected a file name that ends in .jsonl or .parquet")
        problems = load_source(f"{suffix}:{path}", "--input", verifier)
        read_count += len(problems)
        for problem, (where, row) in zip(problems, tables.read_table(path), strict=True):
            key = normalise(problem.question)
            if key not in found:
                found[key] = Versioned(problem, _texts(where, row, names))
    for each in found.values():
        if missing := [name for name in names if name not in each.texts]:
            lacking[f"without {' and '.join(missing)}"] += 1
    if lacking.total() == len(found):
        raise UserError(
            f"--versions: {','.join(names)}: none of the {len(found)} problems has all of them ("
            + ", ".join(f"{count} {what}" for what, count in lacking.items())
            + "): expected the names of two texts in `versions` or of two columns"
        )
    return list(found.values()), {"read": read_count, "duplicates": read_count - len(found), **lacking}


def _texts(where: str, row: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    nested = unpacked(row.get(_FIELD)) or {}
    if not isinstance(nested, Mapping):
        raise UserError(
            f"--input: {where}: field {_FIELD!r} is a {type(nested).__name__}, expected an object of texts by name"
        )
    try:
        texts = {name: as_text(nested if name in nested else row, name) for name in names}
    except UserError as error:
        raise UserError(f"--input: {where}: {error}") from error
    return {name: text for name, text in texts.items() if text}
