"""Files of strangers: JSON and GGUF whose every fault is a ValueError in a few words, found before it costs anything.

The libraries trust lengths that a file states of itself: a flipped bit in one of them would be gigabytes or hours.
"""

import json
import os
from pathlib import PurePath
from typing import Any

import gguf
import numpy as np

_MAX_ENTRIES = 2**24  # of a GGUF array, table or header; the largest vocabularies have a fiftieth of it


def read_object(file: PurePath) -> dict[str, Any]:
    """The object that a JSON file holds; `file` may lie in a bucket.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not whole, or holds something else.
    """
    if file.exists() and not file.is_file():
        raise ValueError(f"{file.name} is no file")
    return parse_object(file.read_bytes(), file.name)


def parse_object(text: str | bytes, name: str) -> dict[str, Any]:
    """The object that JSON text holds; see `read_object`."""
    try:
        # Of bytes json would guess the encoding, and of two zero bytes that it is UTF-32.
        value = json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} holds a {type(value).__name__}: expected an object")
    return value


class GgufReader(gguf.GGUFReader):
    """gguf's reader, held to the end of the file and to counts that a model may have.

    Raises:
        ValueError, KeyError, IndexError: the file is damaged.
    """

    # A plain array: slices of a np.memmap cost three times as much, half a million times.
    @property
    def data(self) -> np.ndarray:
        return self._data

    @data.setter
    def data(self, mapped: np.memmap):
        self._data = mapped.view(np.ndarray)

    def __init__(self, path: os.PathLike[str]):
        try:
            super().__init__(path)
        except RecursionError as error:
            raise ValueError("its metadata nests too deep") from error

    def _get(self, offset, dtype, count=1, override_order=None):
        end = int(offset) + int(count) * np.dtype(dtype).itemsize
        if end > len(self._data):
            raise ValueError(f"it ends before byte {end} of which it speaks")
        return super()._get(int(offset), dtype, int(count), override_order)

    def _get_field_parts(self, orig_offs, raw_type):
        if raw_type == gguf.GGUFValueType.ARRAY:
            _check_count("array", self._get(orig_offs + 4, np.uint64)[0])
        return super()._get_field_parts(orig_offs, raw_type)

    def _build_fields(self, offs, count):
        return super()._build_fields(offs, _check_count("metadata", count))

    def _build_tensor_info(self, offs, count):
        return super()._build_tensor_info(offs, _check_count("tensor table", count))


def _check_count(what: str, count: int) -> int:
    if count > _MAX_ENTRIES:
        raise ValueError(f"its {what} would have {count} entries: expected at most {_MAX_ENTRIES}")
    return int(count)
