"""Boxed final answers in responses and published solutions."""

import re
from collections.abc import Iterator

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is literal text


def boxes(text: str) -> Iterator[str]:
    r"""The content of every `\boxed{...}` and `\fbox{...}`, last opening first; "" for an unclosed box.

    One pass over the text, contents sliced lazily: thousands of unclosed or nested boxes stay linear.
    """
    starts = [box.end() for box in _BOX.finditer(text)]
    ends, opened = {}, []
    for brace in _BRACE.finditer(text):
        if brace.group() == "{":
            opened.append(brace.end())
        elif brace.group() == "}" and opened:
            ends[opened.pop()] = brace.start()
    return (text[start : ends.get(start, start)] for start in reversed(starts))
