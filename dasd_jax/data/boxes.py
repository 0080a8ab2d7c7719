"""Boxed final answers in responses and published solutions."""

import re
from collections.abc import Iterator

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is literal text


def boxes(text: str) -> Iterator[str]:
    r"""The content of every `\boxed{...}` and `\fbox{...}`, last opening first; "" for an unclosed box."""
    return (text[start:end] for _, start, end in box_spans(text))


def box_spans(text: str) -> Iterator[tuple[int, int, int]]:
    r"""(start of the command, start and end of the content) of the same boxes in the same order.

    One pass over the text, and nothing is sliced: thousands of unclosed or nested boxes stay linear.
    """
    found = [box.span() for box in _BOX.finditer(text)]
    ends, opened = {}, []
    for brace in _BRACE.finditer(text):
        if brace.group() == "{":
            opened.append(brace.end())
        elif brace.group() == "}" and opened:
            ends[opened.pop()] = brace.start()
    return ((command, start, ends.get(start, start)) for command, start in reversed(found))
