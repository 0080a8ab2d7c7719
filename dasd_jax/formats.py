"""Readers for untrusted JSON and GGUF files: every defect is a short ValueError, raised before it costs time or memory.

The libraries trust the lengths stored in a file: a flipped bit in one could cost gigabytes or hours.
"""

import json
import os
from pathlib import PurePath
from typing import Any

import gguf
import numpy as np

_MAX_ENTRIES = 2**24  # per GGUF array, table or header; the largest vocabularies are 50 times smaller


def read_object(file: PurePath) -> dict[str, Any]:
    """The object in a JSON file; `file` may be in a bucket.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or is not an object.
    """
    if file.exists() and not file.is_file():
        raise ValueError(f"{file.name} is not a file")
    return parse_object(file.read_bytes(), file.name)


def parse_object(text: str | bytes, name: str) -> dict[str, Any]:
    """The object in JSON text; see `read_object`."""
    try:
        # Given bytes, json would guess the encoding: two zero bytes would mean UTF-32.
        value = json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} holds a {type(value).__name__}: expected an object")
    return value


class GgufReader(gguf.GGUFReader):
    """gguf's reader with bounds checks: offsets within the file, counts within _MAX_ENTRIES.

    Raises:
        ValueError, KeyError, IndexError: the file is damaged.
    """

    # A plain array: slicing a np.memmap takes three times as long, and there are half a million slices.
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
            raise ValueError("its metadata is nested too deeply") from error

    def _get(self, offset, dtype, count=1, override_order=None):
        end = int(offset) + int(count) * np.dtype(dtype).itemsize
        if end > len(self._data):
            raise ValueError(f"it ends before byte {end}, which its header refers to")
        return super()._get(int(offset), dtype, int(count), override_order)

    def _get_field_parts(self, orig_offs, raw_type):
        """An array in one go: gguf's own reader takes a second for 50,000 tokens, each of which is one call of this."""
        if raw_type != gguf.GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        (kind,), (count,) = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
        _check_count("array", count)
        start = orig_offs + 12
        if kind in self.gguf_scalar_to_np:
            values = self._get(start, self.gguf_scalar_to_np[kind], count)
            return 12 + values.nbytes, [values], [0], [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType(kind)]
        if kind == gguf.GGUFValueType.STRING:
            end, texts = self._texts(start, int(count))
            types = [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING]
            return end - orig_offs, texts, list(range(len(texts))), types
        return super()._get_field_parts(orig_offs, raw_type)

    def _texts(self, start: int, count: int) -> tuple[int, list[np.ndarray]]:
        """(where they end, the bytes of each) of an array's strings; each follows its length."""
        raw, order = memoryview(self._data), "little" if self.byte_order == "I" else "big"
        texts = []
        for _ in range(count):
            end = start + 8 + int.from_bytes(raw[start : start + 8], order)
            if end > len(raw):
                raise ValueError(f"it ends before byte {end}, which its header refers to")
            texts.append(self._data[start + 8 : end])
            start = end
        return start, texts

    def _build_fields(self, offs, count):
        return super()._build_fields(offs, _check_count("metadata", count))

    def _build_tensor_info(self, offs, count):
        return super()._build_tensor_info(offs, _check_count("tensor table", count))


def _check_count(what: str, count: int) -> int:
    if count > _MAX_ENTRIES:
        raise ValueError(f"its {what} has {count} entries: expected at most {_MAX_ENTRIES}")
    return int(count)
