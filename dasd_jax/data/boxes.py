"""Boxed final answers in responses and published solutions."""

import re
from collections.abc import Iterator

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is literal text
_GROUP = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}")
_ALSO_RIGHT = re.compile(r"\baccept(?:ed as an|able) answer\b")


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


def reference(question: str, solution: str) -> str | None:
    """The final answer of a published solution; "" without a closed box, None if its boxes do not tell which it is.

    With several different boxes it is the last one, as where an intermediate result or another way of writing the
    answer was boxed before. It is the first one where the solution says that others are accepted too, and all of them
    where the question asks for a list and none of them is a list.
    """
    # LaTeX treats a line break in a box as a space; a placeholder has no content.
    contents = [" ".join(box.split()) for box in boxes(solution)][::-1]
    different = list(dict.fromkeys(box for box in contents if box and not box.startswith("\\phantom")))
    if len(different) < 2:
        return "".join(different)
    if _BOX.search(question):  # the problem uses boxes as its own notation
        return None
    if _ALSO_RIGHT.search(solution):
        return different[0]
    if "comma" in question.casefold() and not any("," in _GROUP.sub("", box) for box in different):
        return ", ".join(different)
    return different[-1]
