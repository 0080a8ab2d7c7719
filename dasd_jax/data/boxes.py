"""Final answers in their box, as responses and published solutions write them."""

import re
from collections.abc import Iterator

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is text


def boxes(text: str) -> Iterator[str]:
    r"""The content of every `\boxed{...}` and `\fbox{...}`, the last opening first; "" for one that never closes.

    One pass over the text, and no content before it is asked for: thousands of open or nested boxes cost no more.
    """
    starts = [box.end() for box in _BOX.finditer(text)]
    ends, opened = {}, []
    for brace in _BRACE.finditer(text):
        if brace.group() == "{":
            opened.append(brace.end())
        elif brace.group() == "}" and opened:
            ends[opened.pop()] = brace.start()
    return (text[start : ends.get(start, start)] for start in reversed(starts))
