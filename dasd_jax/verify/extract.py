"""The final answer of a response.

Runs in the trainer's process, without a deadline, on text that a model wrote: every step is linear in its length.
"""

import re

from dasd_jax.data.boxes import boxes

MAX_ANSWER_CHARS = 1000
MAX_RESPONSE_CHARS = 1_000_000  # longer responses are cut at the start
_MARKER = re.compile(r"\banswer(?:\*\*)?(?:\s*:|\s+is\b:?)|^####\s", re.IGNORECASE | re.MULTILINE)
_DECORATION = re.compile(r"(?:\s|\$|\*\*)*")


def extract_answer(text: str) -> str | None:
    r"""The last balanced, non-empty `\boxed{...}` or `\fbox{...}`; without any box, the line after the last marker.

    Markers are "Answer:", "answer is", and "####" at the start of a line.

    Text before a `</think>` is ignored; surrounding `$`, `**` and white space are stripped, and a line's final period.
    Takes time linear in the length of the response, of which only the last MAX_RESPONSE_CHARS are read.

    Returns:
      The answer, or None if there is none or it is longer than MAX_ANSWER_CHARS.
    """
    text = text[-MAX_RESPONSE_CHARS:].rpartition("</think>")[2]
    answer = None
    for box in boxes(text):
        answer = _undecorated(box)
        if answer:
            break
    if answer is None:
        *_, line = "", *_MARKER.split(text)[1:]
        answer = _undecorated(_undecorated(line.lstrip(" \t\n*$").partition("\n")[0]).removesuffix("."))
    return answer if 0 < len(answer) <= MAX_ANSWER_CHARS else None


def _undecorated(text: str) -> str:
    """`text` without surrounding `$`, `**` and white space."""
    text = text[_DECORATION.match(text).end() :]
    # The end is matched in the reversed text: a search for decoration before the end would be quadratic.
    backwards = text[::-1]
    return backwards[_DECORATION.match(backwards).end() :][::-1]
