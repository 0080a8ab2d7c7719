"""Streams the rows of JSONL and Parquet files, local or in a bucket (gs://).

Every error in a file is a `UserError` that starts with the path; the caller prefixes the field or flag.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from etils import epath

from dasd_jax.data import buckets
from dasd_jax.errors import UserError

# Rows in memory at a time: some files embed images, and the longest has 1.8 million rows.
_BATCH_ROWS = 1024

Row = tuple[str, Mapping[str, Any]]  # its location for error messages, and its columns


def read_jsonl(path: str) -> Iterator[Row]:
    """One row per non-blank line; raises UserError for a missing file or a line that is not a JSON object."""
    with open_file(path) as lines:
        # Read as bytes: text mode would also split at U+2028, which JSON allows inside a string.
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))  # given bytes, json would guess the encoding
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}:{number}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: a JSON {type(row).__name__}, expected an object")
            yield f"{path}:{number}", row


def read_parquet(path: str) -> Iterator[Row]:
    """Rows of a Parquet file, counted from 0; raises UserError for a missing or damaged file."""
    # Imported here: it takes longer to import than to read a benchmark, and the verifier's workers never need it.
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
        except Exception as error:  # besides its own classes: MemoryError for a length, OverflowError for a date, …
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{path}: cannot be read as Parquet ({reason})") from error


def read_table(path: str) -> Iterator[Row]:
    """Rows of a .parquet or .jsonl file; raises UserError for any other suffix too."""
    readers = {".parquet": read_parquet, ".jsonl": read_jsonl}
    suffix = epath.Path(path).suffix
    if suffix not in readers:
        raise UserError(f"{path}: expected a file name that ends in {' or '.join(readers)}")
    return readers[suffix](path)


def open_file(path: str) -> BinaryIO:
    """Opens a file for reading bytes; raises UserError if it does not exist or cannot be opened."""
    with buckets.client_errors(path):
        try:
            return epath.Path(path).expanduser().open("rb")
        except FileNotFoundError as error:
            raise UserError(f"no such file {path!r}") from error
        except (OSError, ValueError) as error:  # ValueError: an invalid file name
            raise UserError(f"{path}: cannot be opened ({getattr(error, 'strerror', None) or error})") from error
