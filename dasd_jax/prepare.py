"""Makes a data set of problems: python -m dasd_jax.prepare --input=FILE[,FILE…] --output=DIR [--layout=…|--columns=…]

Reads JSONL or Parquet, drops and counts unverifiable problems and duplicates, and writes a TFDS data set in ArrayRecord
format, without TensorFlow: features question, answer, solution, hint and response, one split, train. DIR/prepared.json
holds the counts. A config reads it as tfds:DIR. FILE and DIR may be in a bucket (gs://…).
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

from etils import epath

from dasd_jax import cli, files, terminal
from dasd_jax.data import buckets, layouts, tables
from dasd_jax.data.duplicates import normalise
from dasd_jax.data.layouts import Layout
from dasd_jax.data.rows import Drop, Fields
from dasd_jax.errors import UserError

_RECORD = "prepared.json"
_DUPLICATE = Drop("duplicate question")
_ROWS_NAMED = 10  # of each reason, printed and recorded


def main(argv: list[str]) -> None:
    """The command."""
    flags = cli.Parser(
        description=__doc__,
        formatter_class=terminal.HelpFormatter,
        allow_abbrev=False,
        epilog=_epilog(),
    )
    flags.add_argument("--input", required=True, metavar="FILE[,FILE…]", help=".jsonl or .parquet, local or gs://")
    flags.add_argument("--output", required=True, metavar="DIR", help="folder of the data set; must not exist yet")
    flags.add_argument("--layout", default="auto", metavar="NAME", help="a layout listed below (default: by columns)")
    flags.add_argument("--columns", default="", metavar="FIELD=COLUMN,…", help="columns of any other file; see below")
    asked = flags.parse_args(argv)
    layout = _layout(asked.layout, asked.columns)
    inputs = [path for path in asked.input.split(",") if path]
    if not inputs:
        raise UserError(f"--input: {asked.input!r}: expected at least one file")
    record = prepare(inputs, asked.output, layout, {"layout": asked.layout, "columns": asked.columns})
    print(f"{asked.output}: {record['read']} rows read, {record['kept']} problems kept")
    for reason, count in record["dropped"].items():
        rows = record.get("dropped_rows", {}).get(reason, [])
        named = f" ({', '.join(rows)}{', …' if count > len(rows) else ''})" if rows else ""
        print(f"  {count} dropped: {reason}{named}")


def prepare(inputs: Sequence[str], output: str, layout: Layout | None, settings: dict[str, str]) -> dict[str, Any]:
    """Writes the data set atomically.

    Args:
        layout: of all files; None recognises the layout of each file.
        settings: further inputs that determine the result, kept in the record.

    Returns:
        The record: inputs with their sha256, settings, the counts `read`, `kept` and `dropped` by reason, and in
        `dropped_rows` the first rows of each reason. If the output already holds this data set, its existing record.

    Raises:
        UserError: files that cannot be read, no problems left, or an output that holds something else.
    """
    target = epath.Path(output).expanduser()
    recipe = {"inputs": [[epath.Path(path).name, _sha256(path)] for path in inputs], **settings}
    with buckets.client_errors(target, "--output"):
        if target.exists() if buckets.is_bucket(target) else os.path.exists(target):
            return _same(target, recipe)
    if buckets.is_bucket(target):
        new_folder = buckets.new_folder(target, "--output", last=_RECORD)
    else:
        new_folder = files.new_folder(Path(target), "--output")
    with new_folder as folder:
        counts: Counter[str] = Counter()
        dropped_rows: dict[str, list[str]] = {}
        rows = _problems(inputs, layout, counts, dropped_rows)
        first = next(rows, None)
        if first is None:
            reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common()) or "no rows"
            raise UserError(f"--input: {','.join(inputs)}: no problems left: {reasons}")
        # TFDS writes into NAME/VERSION subfolders, which are redundant here, and leaves temporary folders behind.
        with tempfile.TemporaryDirectory(dir=folder) as draft:
            kept, written = _write(Path(draft), _name(target), first, rows)
            for path in list(written.iterdir()):
                path.rename(folder / path.name)
        record = {
            **recipe,
            "read": kept + counts.total(),
            "kept": kept,
            "dropped": dict(counts.most_common()),
            "dropped_rows": dropped_rows,
        }
        (folder / _RECORD).write_text(json.dumps(record, indent=1))
    return record


def _problems(
    inputs: Sequence[str], layout: Layout | None, dropped: Counter[str], dropped_rows: dict[str, list[str]]
) -> Iterator[Fields]:
    """The problems kept, in file order; the others are counted in `dropped`, the first of them named beside it."""
    # Digests instead of questions bound the memory: the largest public file has 1.8 million rows.
    seen: set[bytes] = set()
    for path in inputs:
        try:
            of_file = layout
            for where, row in tables.read_table(path):
                of_file = of_file or _recognised(path, row)
                found = layouts.read(of_file, where, row)
                if isinstance(found, Fields):
                    # Another response to the same question is another example for supervised fine-tuning.
                    text = "\0".join((normalise(found.question), found.response))
                    digest = hashlib.sha256(text.encode()).digest()
                    if digest not in seen:
                        seen.add(digest)
                        yield found
                        continue
                    found = _DUPLICATE
                dropped[found.reason] += 1
                if dropped[found.reason] <= _ROWS_NAMED:
                    dropped_rows.setdefault(found.reason, []).append(PurePath(where).name)
        except UserError as error:
            raise UserError(f"--input: {error}") from error
        except OSError as error:
            raise UserError(f"--input: {path}: cannot be read ({error})") from error


def _recognised(path: str, row: dict) -> Layout:
    layout = layouts.recognise(row)
    if layout is None:
        raise UserError(
            f"{path}: no known layout has the columns {', '.join(sorted(row))}: "
            "expected --columns=question=COLUMN,answer=COLUMN"
        )
    return layout


def _layout(name: str, columns: str) -> Layout | None:
    """The layout that the flags select; None: recognise it from the columns."""
    if columns:
        if name != "auto":
            raise UserError(f"--layout: {name!r}: expected it or --columns, not both")
        pairs = [pair.partition("=") for pair in columns.split(",")]
        if not all(field and column for field, _, column in pairs):
            raise UserError(f"--columns: {columns!r}: expected FIELD=COLUMN,FIELD=COLUMN")
        try:
            return layouts.of_columns({field: column for field, _, column in pairs})
        except UserError as error:
            raise UserError(f"--columns: {columns!r}: {error}") from error
    known = {layout.name: layout for layout in layouts.LAYOUTS}
    if name != "auto" and name not in known:
        raise UserError(f"--layout: {name!r}: expected auto or one of {', '.join(known)}")
    return known.get(name)


def _write(draft: Path, name: str, first: Fields, rest: Iterator[Fields]) -> tuple[int, Path]:
    """(number of problems, the data set's folder), in the order of the problems."""
    import tensorflow_datasets as tfds

    class Info(tfds.core.DatasetInfo):
        """Skips the query to Google's public bucket, which leaves an empty temporary folder behind."""

        def initialize_from_bucket(self):
            pass

    class Problems(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """The generator of one data set."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text = {field: tfds.features.Text() for field in layouts.FIELDS}
            return Info(
                builder=self,
                description="Problems with verifiable answers.",
                features=tfds.features.FeaturesDict(text),
                disable_shuffling=True,
            )

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield 0, dataclasses.asdict(first)
            for index, fields in enumerate(rest, start=1):
                yield index, dataclasses.asdict(fields)

    Problems.name = name
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # its messages mention downloads and the temporary folder
        builder = Problems(data_dir=draft, file_format="array_record")
        builder.download_and_prepare()
    return builder.info.splits["train"].num_examples, Path(builder.data_dir)


def _name(target: PurePath) -> str:
    """The data set's name in TFDS, which allows only word characters."""
    name = re.sub(r"\W+", "_", target.name.lower(), flags=re.ASCII).strip("_")
    return name if name[:1].isalpha() else f"problems_{name}"


def _same(target: epath.Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """The record of a folder that holds the data set of `recipe`; raises UserError if it holds anything else."""
    try:
        record = json.loads((target / _RECORD).read_text())
    except (OSError, ValueError):
        record = {}
    if not isinstance(record, dict) or any(record.get(name) != value for name, value in recipe.items()):
        raise UserError(
            f"--output: {target} exists and holds something else: expected a folder that does not exist yet"
        )
    print(f"{target} already exists, made from the same files")
    return record


def _sha256(path: str) -> str:
    try:
        with tables.open_file(path) as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except UserError as error:
        raise UserError(f"--input: {error}") from error


def _epilog() -> str:
    width = max(len(layout.name) for layout in layouts.LAYOUTS)
    known = "\n".join(f"  {layout.name:{width}}  {layout.published_as}" for layout in layouts.LAYOUTS)
    return f"""layouts:
{known}

examples:
  python -m dasd_jax.prepare --input=dapo-math-17k.parquet --output=data/dapo_math_17k
  python -m dasd_jax.prepare --input=aime2025-I.jsonl,aime2025-II.jsonl --output=data/aime25
  python -m dasd_jax.prepare --input=mine.jsonl --output=data/mine --columns=question=task,answer=result,hint=tip
"""


if __name__ == "__main__":
    cli.run(main)
