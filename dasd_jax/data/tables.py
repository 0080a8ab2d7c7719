"""Rows of JSONL and Parquet files, on this machine or behind gs://, a few at a time.

Every mistake in a file is a `UserError` that starts with the file; the caller puts the field or flag before it.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from etils import epath

from dasd_jax.data import buckets
from dasd_jax.errors import UserError

# Rows in memory at a time: pictures lie inside some of the files, and the longest file has 1.8 million rows.
_BATCH_ROWS = 1024

Row = tuple[str, Mapping[str, Any]]  # where it stands, for messages, and its columns


def read_jsonl(path: str) -> Iterator[Row]:
    """One row a line that is not blank; raises UserError for a missing file or a line that is no JSON object."""
    with open_file(path) as lines:
        # Lines of bytes: a text file would also be cut at U+2028, which JSON allows inside a string.
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))  # of bytes json would guess the encoding
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}:{number}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: a JSON {type(row).__name__}, expected an object")
            yield f"{path}:{number}", row


def read_parquet(path: str) -> Iterator[Row]:
    """Its rows, counted from 0; raises UserError for a missing or damaged file."""
    # It takes longer to import than to read a benchmark, and the verifier's workers never need it.
    import pyarrow
    import pyarrow.parquet

    with open_file(path) as file:
        try:
            count = 0
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=_BATCH_ROWS):
                for row in batch.to_pylist():
                    yield f"{path}[{count}]", row
                    count += 1
        except UserError:
            raise
        except Exception as error:  # beside its own classes: MemoryError of a length, OverflowError of a date and more
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{path}: cannot be read as Parquet ({reason})") from error


def read_table(path: str) -> Iterator[Row]:
    """Rows of a file whose name ends in .parquet or .jsonl; raises UserError for any other name too."""
    readers = {".parquet": read_parquet, ".jsonl": read_jsonl}
    suffix = epath.Path(path).suffix
    if suffix not in readers:
        raise UserError(f"{path}: expected a file that ends in {' or '.join(readers)}")
    return readers[suffix](path)


def open_file(path: str) -> BinaryIO:
    """The bytes of a file; raises UserError where there is none, or no way to it."""
    with buckets.reaching(path):
        try:
            return epath.Path(path).expanduser().open("rb")
        except FileNotFoundError as error:
            raise UserError(f"no such file {path!r}") from error
        except (OSError, ValueError) as error:  # the latter of a name that no file may have
            raise UserError(f"{path}: cannot be opened ({getattr(error, 'strerror', None) or error})") from error
