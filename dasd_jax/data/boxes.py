"""Final answers in their box, as responses and published solutions write them."""

import re

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is text


def boxes(text: str) -> list[str]:
    r"""The content of every `\boxed{...}` and `\fbox{...}`, by their openings; "" for one that never closes."""
    return [_balanced(text, box.end()) for box in _BOX.finditer(text)]


def _balanced(text: str, start: int) -> str:
    """The text from `start` up to the brace that closes the one before it; "" when none does."""
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[start : brace.start()]
    return ""
