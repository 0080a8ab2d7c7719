"""The final answer of a response.

Runs in the trainer's process, without a deadline, on text that a model wrote: every step is linear in its length.
"""

import hashlib
import re

from dasd_jax.data.boxes import box_spans

MAX_ANSWER_CHARS = 1000
MAX_RESPONSE_CHARS = 1_000_000  # longer responses are cut at the start
_MARKER = re.compile(r"\banswer(?:\*\*)?(?:\s*:|\s+is\b:?)|^####\s", re.IGNORECASE | re.MULTILINE)
_DECORATION = re.compile(r"(?:\s|\$|\*\*)*")


def extract_answer(text: str) -> str | None:
    r"""The last balanced, non-empty `\boxed{...}` or `\fbox{...}`; without any box, the answer after the last marker.

    Boxes with nothing but commas, "and", "or", names and white space between them are one list of answers. Markers are
    "Answer:", "answer is", and "####" at the start of a line.

    Text before a `</think>` is ignored, and a response that ends within its thoughts has no answer. Surrounding `$`,
    `**` and white space are stripped, and a line's final period. Takes time linear in the length of the response, of
    which only the last MAX_RESPONSE_CHARS are read.

    Returns:
      The answer, or None if there is none or it is longer than MAX_ANSWER_CHARS.
    """
    text = text.rpartition("</think>")[2]
    if "<think>" in text:
        return None
    text = text[-MAX_RESPONSE_CHARS:]
    answer = _boxed(text)
    if answer is None:
        *_, rest = "", *_MARKER.split(text)[1:]
        answer = _stated(rest)
    return answer if 0 < len(answer) <= MAX_ANSWER_CHARS else None


def checksum(text: str) -> str:
    """Sixteen hexadecimal digits of a text, the answer of problems whose verifier is `checksum`."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


# Boxes.

_MOST_BETWEEN = 60  # characters between two boxes of one list
_NAME = r"\\?[a-zA-Z]+(?:_\{?\w+\}?)?\s*="
_BETWEEN = re.compile(
    rf"""(?:\s|\$|\*\*|\\[()\[\],;:\\ ]|\\q?quad|[,;&]|\\text\s*\{{[\s,;]*(?:and|or)[\s,;]*\}}|(?:and|or|also)\b
          |\n\s*(?:[-*•]|\d[.)])\s)*(?:{_NAME})?(?:\s|\$|\\[(\[])*""",
    re.VERBOSE,
)
_NAME_BEFORE = re.compile(rf"({_NAME})(?:\s|\$)*$")


def _boxed(text: str) -> str | None:
    """The answer in the last box, or the list of those in the last boxes; "" if all are empty, None without any."""
    spans = list(box_spans(text))
    answers, names = [], []
    behind = 0  # where the next box that is not empty begins
    for command, start, end in spans:
        answer = _undecorated(text[start:end])
        if not answer:
            continue
        if answers and not (end < behind <= end + _MOST_BETWEEN and _BETWEEN.fullmatch(text, end + 1, behind)):
            break
        behind = command
        name = _NAME_BEFORE.search(text, max(command - _MOST_BETWEEN, 0), command)
        answers.append(answer)
        names.append("" if "=" in answer else name and name[1])
        if sum(map(len, answers)) > MAX_ANSWER_CHARS:
            break
    if len(set(answers)) > 1 and None not in names:  # n = 1 and n = -2
        answers = [f"{name} {answer}".strip() for name, answer in zip(names, answers, strict=True)]
    return ", ".join(dict.fromkeys(reversed(answers))) if spans else None


# Answers after a marker.

_DELIMITED = re.compile(
    r"""(?:(?:therefore|thus|then|hence|simply|just|exactly|equal\ to|given\ by
            |the\ (?:number|value|integer|fraction|interval|set|point)),?\s+)*
        (?:\$\$(.+?)\$\$|\$((?:\\.|[^$\\\n])+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]|\*\*([^*\n]+)\*\*)""",
    re.VERBOSE | re.DOTALL,
)
# The end of the statement: a period, or a clause that gives a reason, and what else the line says.
_REMARK = re.compile(
    r"(?:\s*\**\s*[.,;:!]|\s+(?=I\s)|\s+(?:because|since|by|as\s+(?:required|desired|claimed|wanted|needed|expected|shown))\b)(.*)"
)
_SENTENCE = re.compile(r"(.*?(?:[\d})\]%°$]|(?<![\s.])[a-z]))\s*[.!]\s+([A-Z].*\s.*)")
# Remarks that may change the answer: other numbers or mathematics, alternatives, and doubts.
_DOUBT = re.compile(
    r"""[\d$\\=<>]|n['’]t\b|\b(?:and|or|nor|not?|but|however|wait|actually|instead|rather|n?either|unless|except|if|when
        |otherwise|maybe|perhaps|possibly|alternatively|also|another|others?|wrong|incorrect|false|mistake\w*|errors?
        |doubt\w*|unsure|sorry|correction|scratch|never|cannot|plus|minus|negative|times|half|twice|squared|cubed|percent
        |zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|dozen|(?:hundred|thousand|million)s?)\b""",
    re.VERBOSE | re.IGNORECASE,
)


def _stated(text: str) -> str:
    """The answer at the start of the text behind a marker: mathematics between dollars, a sentence or the line."""
    text = text.lstrip()
    if text[:2] == "**" and text[2:3].isspace():  # the end of a bold marker
        text = text[2:].lstrip()
    delimited = _DELIMITED.match(text)
    if delimited:
        answer, rest = delimited[delimited.lastindex], text[delimited.end() :].partition("\n")[0]
        remark = _REMARK.fullmatch(rest)
        if not rest.strip(" \t*") or (remark and not _DOUBT.search(remark[1])):
            return _without_period(answer)
        line = answer + rest
    else:
        line = text.lstrip(" \t\n*$").partition("\n")[0]
    sentence = _SENTENCE.fullmatch(line)
    if sentence and not _DOUBT.search(sentence[2]):
        line = sentence[1]
    return _without_period(line)


def _without_period(text: str) -> str:
    return _undecorated(_undecorated(text).removesuffix("."))


def _undecorated(text: str) -> str:
    """`text` without surrounding `$`, `**` and white space."""
    text = text[_DECORATION.match(text).end() :]
    # The end is matched in the reversed text: a search for decoration before the end would be quadratic.
    backwards = text[::-1]
    return backwards[_DECORATION.match(backwards).end() :][::-1]
