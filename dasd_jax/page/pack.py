"""How data travels in the page: JSON that is safe inside HTML, and compressed blocks of JSON and float16 numbers.

A block is opened by the page when it is looked at (`unpack` in base.js). It is deflated:

    u32            little-endian, bytes of the JSON that follows
    JSON           UTF-8
    high bytes     of N float16, in their order
    low bytes      of the same; apart from the high ones, which repeat and therefore compress
"""

import base64
import json
import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dasd_jax.text.shown import shown

_LARGEST = float(np.finfo(np.float16).max)
LONGEST_TEXT = 100_000  # characters; a browser lays out a longer one for seconds


def clean(value: Any) -> Any:
    """The same tree as the page may show it: texts through `shown` and not too long, None for NaN and infinities."""
    if isinstance(value, str):
        return clipped(value, LONGEST_TEXT)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {shown(name): clean(child) for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [clean(child) for child in value]
    return value


def clipped(text: str, longest: int) -> str:
    """The text with marks for control characters, its end in words where it has more than `longest` characters."""
    if text.isascii() and text.isprintable() and len(text) <= longest:
        return text  # most tokens; three times as fast
    if len(text) > longest:
        return f"{shown(text[:longest])}… ({len(text) - longest:,} more characters)"
    return shown(text)


def rounded(value: float, digits: int = 4) -> float | None:
    """To so many significant digits; None for what is not finite."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def halves(values: Sequence[float]) -> np.ndarray:
    """f16[N]: 11 significant bits, 3 decimal digits; beyond ±65,504 the nearest that there is."""
    return np.clip(np.asarray(values, np.float64), -_LARGEST, _LARGEST).astype(np.float16)


def packed(head: dict, numbers: Sequence[np.ndarray] = ()) -> str:
    """A block in base64.

    Args:
        head: cleaned.
        numbers: f16[N] each; `head` has to say which is which.
    """
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    planes = np.concatenate([*numbers, np.zeros(0, np.float16)]).astype("<f2").view(np.uint8).reshape(-1, 2)
    content = struct.pack("<I", len(text)) + text + planes[:, 1].tobytes() + planes[:, 0].tobytes()
    return base64.b64encode(zlib.compress(content)).decode()


def element(name: str, value: Any) -> str:
    """A data block of the page: JSON in which no text can end the element or begin a comment.

    Args:
        name: its id.
        value: cleaned; ASCII alone is written, so that the encoding of the file does not matter.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def evenly(items: Sequence, count: int) -> list:
    """`count` of the items, evenly spaced, the first and the last among them; all where there are no more."""
    if count >= len(items):
        return list(items)
    if count < 2:
        return list(items[:count])
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]
