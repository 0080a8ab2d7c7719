"""The final answer that a published solution holds in a box."""

import re

from dasd_jax.data.boxes import boxes

_GROUP = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}")
_ALSO_RIGHT = re.compile(r"\baccept(?:ed as an|able) answer\b")


def boxed_answer(question: str, solution: str) -> str | None:
    """The content of the box that answers the question; "" without a closed box, None if the boxes do not tell.

    With several different boxes it is the last one, as where an intermediate result or another way of writing the
    answer was boxed before. It is the first one where the solution says that others are accepted too, and all of them
    where the question asks for a list and none of them is a list.
    """
    # LaTeX treats a line break in a box as a space; a placeholder has no content.
    contents = [" ".join(box.split()) for box in boxes(solution)][::-1]
    different = list(dict.fromkeys(box for box in contents if box and not box.startswith("\\phantom")))
    if len(different) < 2:
        return "".join(different)
    if any(True for _ in boxes(question)):  # the problem uses boxes as its own notation
        return None
    if _ALSO_RIGHT.search(solution):
        return different[0]
    if "comma" in question.casefold() and not any("," in _GROUP.sub("", box) for box in different):
        return ", ".join(different)
    return different[-1]
