r"""Removes what other recipes wrote around a question: how to reason, and where to put the answer.

`data.instruction` adds our own, and theirs would ask for another format ("after ####"). Only whole requests in known
words are removed, at the beginning and the end of the text: what a problem itself asks of its answer ("as a common
fraction", "separated by commas") stays.
"""

import re

_REACH = 600  # characters from either end that are searched for requests: bounds the time that a hostile text takes

# A box to be filled in; a box with content, such as \boxed{x}, is notation of the problem.
_EMPTY_BOX = r"""
    \\boxed(?:
        \s*\{\s*(?:
            (?:\.\.\.|…|\\[lc]?dots|(?:\\text\{)?[\[<(]?(?:(?:the|your)\s+)?(?:final\s+)?answer[\]>)]?\}?)\s*
        )?\}
        |(?!\s*\{)
    )
"""
_PLACE = rf"""
    ["'`“”$]*(?:{_EMPTY_BOX}|\#\#\#\#|<(?:answer|think)>[^<>]*</(?:answer|think)>|(?<=["'`“])answer:(?=["'`”]))["'`“”$]*
"""
_POLITE = r"""
    (?:(?:please|kindly|first|finally|lastly|also|remember\s+to|make\s+sure\s+to|be\s+sure\s+to|you\s+(?:must|should))
    ,?\s+)*
"""
_STEPS = r"""
    (?:let(?:'|’)?s\s+|let\s+us\s+)?(?:think|reason|work|go|proceed|solve)
    (?:\s+(?:carefully|through|about|out|on|it|this|the|following|given|above|math|maths|mathematical|problem|question))*
    ,?\s+step[\s-]by[\s-]step(?:\s+carefully)?
"""
_PUT = r"""
    (?:output|put|give|write|present|provide|return|state|enclose|place|box|report|express|wrap|include|show|display)
    \s+(?:only\s+)?(?:the|your)\s+(?:(?:single|final|numeric|numerical|correct)\s+)*
    (?:answer|result|solution|(?:thinking|reasoning)(?:\s+process)?)
    (?:\s*\([^()]*\))?(?:\s+at\s+the\s+end(?:\s+of\s+(?:your|the)\s+(?:response|solution|answer))?)?
"""
_IS_PUT = r"""
    (?:the|your)\s+(?:final\s+)?answer\s+(?:must|should|has\s+to|needs\s+to)\s+be
    (?:\s+(?:put|placed|enclosed|given|written|boxed|presented|wrapped))?
"""
_WHERE = rf"""
    \s+(?:within|in|inside|after|between|using|into|with|as|on)\s+
    (?:(?:an?|the|single|following|latex|format|form):?\s+)*{_PLACE}
    (?:\s+(?:tags?|format|environment|notation|command|box|block))?
"""
_REQUEST = rf"{_POLITE}(?:{_STEPS}|(?:{_PUT}|{_IS_PUT}){_WHERE})"
_REQUESTS = rf"{_REQUEST}(?:[\s,;.:]*(?:(?:and|then)\s+)*{_REQUEST})*\s*[.!:]?"
_FLAGS = re.IGNORECASE | re.VERBOSE
_AT_END = re.compile(
    rf"""(?:^|(?<=[\s.?!$)\]}}]))(?:(?:(?:and|then)\s+)*{_REQUESTS}|(?:\\[(\[]|\$+)\s*{_EMPTY_BOX}\s*(?:\\[)\]]|\$+))
    (?:\s*\n\s*(?:answer|solution)\s*:)?\s*$""",
    _FLAGS,
)
_AT_START = re.compile(rf"{_REQUESTS}(?=\s)", _FLAGS)
_LABEL = re.compile(r"^(?:problem|question)\s*:\s*", re.IGNORECASE)  # of a question in a wrapper

_DAPO_BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem."
)
_DAPO_AFTER = 'Remember to put your answer on its own line after "Answer:".'

# Words of a wrapper that hardly occur in problems: a prompt that still has them was not unwrapped.
_LEFT_OVER = re.compile(
    rf"""
    {_EMPTY_BOX}|\#\#\#\#|</?(?:think|answer|reasoning|tool\w*)>|<\|\w+\|>|\[/?INST\]|step[\s-]by[\s-]step
    |\bfinal\s+answer\b|(?-i:\bAnswer)\s*:|["'`]answer["'`]?\s*:|\bon\s+its\s+own\s+line\b|\b(?:last|final)\s+line\b|\byour\s+response\b
    """,
    _FLAGS,
)


def without_instructions(text: str) -> str:
    """The question without the requests around it; the stripped text itself where it has none.

    Applied again, it changes nothing.
    """
    text = text.strip()
    if text.startswith(_DAPO_BEFORE) and text.endswith(_DAPO_AFTER):
        text = text[len(_DAPO_BEFORE) : -len(_DAPO_AFTER)].strip()
    while (bare := _unwrapped_once(text)) != text:
        text = bare
    return text


def _unwrapped_once(text: str) -> str:
    if found := _AT_END.search(text, max(len(text) - _REACH, 0)):
        bare = text[: found.start()].rstrip().removesuffix(",").rstrip()
    elif found := _AT_START.match(text, 0, _REACH):
        bare = text[found.end() :].strip()
    else:
        return text
    return _LABEL.sub("", bare, count=1)


def is_wrapped(question: str) -> bool:
    """Whether words of a wrapper are left in a question: it stood in words that we do not know."""
    return bool(_LEFT_OVER.search(question))
