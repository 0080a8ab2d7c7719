r"""The arithmetic that a response states: which of its equalities between numbers hold.

An equality is checked if both sides are numbers, + - * / ^ and parentheses alone, and one of them has an operator:
"3 × 4 = 12" is, "x = 5", "5 = 5" and "2x + 1 = 7" are not. A chain a = b = c is two equalities. GSM8K's marks
<<3*4=12>> are equalities too, and the text around a mark is not counted again. What is doubtful is left out rather than
judged: a side next to a letter, a function, a word that stands for an operator, or two numbers in a row.

Takes time linear in the length of the text: sides, numbers, powers and the count of equalities are bounded.
"""

import re
from collections.abc import Iterator

from dasd_jax.health.arithmetic import Side, equal, evaluate

MOST = 2000  # equalities of one text; the rest are not looked at
_MOST_CHARS = 200  # of a side


def held(text: str) -> list[bool]:
    """Whether it holds, of each equality of the text that can be checked, marks first."""
    if "=" not in text:
        return []
    marks = []
    if "<<" in text:
        marks = [mark[1] for mark in _MARK.finditer(text)]
        text = _MARK.sub(" ; ", text)
    found = []
    for looked_at, (left, right) in enumerate(_sides("\n".join([*marks, text]))):
        if looked_at == MOST:
            break
        if left and right and (left.operator or right.operator):
            found.append(equal(left, right))
    return found


# ------------------------------------------------------------------------------------ notation to plain arithmetic

# The calculator marks of GSM8K's solutions, with the equals sign of the text around them.
_MARK = re.compile(r"(?:=[ $]{0,3})?<<([^<>\n]{0,200})>>(?: ?=)?")
_CONTINUED = re.compile(r"(?:\\\\[ \t]*+\n?|\n)[ \t&$]*+=(?!=)")  # a line that goes on with "= ..."
_UNFINISHED = re.compile(r"(?<![-+/])([-+/×÷·]|\\times|\\cdot|\\div)[ \t&$]*+\n")  # a line that ends in an operator
# Relations other than equality, arrows, and arrows of code. They end an expression.
_RELATION = re.compile(r"[<>!:=]=+|=>|(?<!-)-+>|<-+")
_FRACTION = re.compile(r"\\[dtc]?frac\s?\{([^{}]{0,200})\}\s?\{([^{}]{0,200})\}")
_NESTED = 3  # fractions in fractions
_GROUPED = re.compile(r"(?<=\d)(?:\{,\}|\\,|,\\!)(?=\d{3}(?!\d))")
_TEXT = re.compile(r"\\(?:text|mathrm|textrm|textbf|mathbf)\s?\{([^{}]{0,60})\}")
_COMMAND = re.compile(r"\\([A-Za-z]+|.)")
_COMMANDS = {
    **dict.fromkeys(("times", "cdot", "ast"), "*"),
    "div": "/",
    **dict.fromkeys(("left", "right", "big", "Big", "bigl", "bigr", "boxed", "displaystyle", "!"), ""),
    **dict.fromkeys((",", ";", ":", " ", "(", ")", "[", "]", "$"), " "),
    **dict.fromkeys(("\\", "quad", "qquad", "implies", "Rightarrow", "to", "therefore", "approx", "neq", "ne"), " ; "),
    "%": "%",
    "dots": "…",
    "ldots": "…",
}
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("×·⋅∗", "*"), **dict.fromkeys("÷∕⁄", "/"), **dict.fromkeys("−–", "-"),
        **dict.fromkeys("{[", "("), **dict.fromkeys("}]", ")"), **dict.fromkeys("$€£&\t\r\v\f\u00a0\u2009\u202f", " "),
        "°": "", "²": "^2", "³": "^3",
    }
)  # fmt: skip
_DEGREES = re.compile(r"\^\s?(?:\{\\circ\}|\\circ)")
_SPACES = re.compile(" {2,}")
_BULLET = re.compile(r"^ ?[-*+•] ", re.MULTILINE)
_POWER = re.compile(r"(?<=[\d)])\*\*(?=[\d(])")
_BOLD = re.compile(r"\*\*+")
_CROSS = re.compile(r"(?<=[\d)]) {0,2}[xX] {0,2}(?=\d)")
_PERCENT = re.compile(r"(?<=\d) ?percent\b")
_SHORT_UNITS = "km|cm|mm|kg|mg|ml|mL|ft|lb|lbs|oz|hr|hrs|min|mins|sec|secs|mph|kmh|mi|yd|gal|pts|cents|dollars|hours"
# Words after a number that are no unit: conjunctions, and words that change the number.
_NO_UNIT = """and|or|so|then|is|are|was|were|to|from|but|if|where|with|than|we|of|by|plus|minus|times|over|mod|modulo
|divided|multiplied|squared|cubed|remainder|half|dozen|hundred|thousand|million|billion|choose""".replace("\n", "")
_UNIT = re.compile(
    rf"(?<=[\d)%])(?: ?(?:{_SHORT_UNITS})| (?!(?:{_NO_UNIT})\b)[A-Za-z]{{3,20}}+)(?![A-Za-z])(?: ?\^ ?\(?\d\)?)?"
    r"(?: ?(?:/|\bper\b) ?[A-Za-z]{2,20}+)?(?= ?(?:[-+*/=)]|$))",
    re.MULTILINE,
)


def _plain(text: str) -> str:
    """The lines with an equals sign: LaTeX and other notation as plain arithmetic, units after numbers dropped."""
    text = _RELATION.sub(";", _UNFINISHED.sub(r"\1 ", _CONTINUED.sub(" =", text)))
    text = "\n".join(line for line in text.split("\n") if "=" in line)
    text = _GROUPED.sub(",", text)
    if "\\" in text:
        text = _TEXT.sub(r" \1 ", _DEGREES.sub("", text))
        for _ in range(_NESTED):
            text, changed = _FRACTION.subn(r" ((\1)/(\2))", text)  # the space: 1\frac{1}{2} is no product
            if not changed:
                break
        text = _COMMAND.sub(lambda command: _COMMANDS.get(command[1], command[0]), text)
    text = _SPACES.sub(" ", text.translate(_SIGNS).replace("...", "…"))
    text = _BOLD.sub("", _POWER.sub("^", _BULLET.sub("", text)))
    return _UNIT.sub("", _PERCENT.sub("%", _CROSS.sub("*", text)))


# ------------------------------------------------------------------------------------------- the sides of an equality

_CHARS = "0123456789.,+-*/^()% "  # characters of an expression
_PUNCTUATION = re.compile(r"[.,](?!\d)")
_PAREN = re.compile(r"[()]")
_MAY_STAND_BEFORE = set(":;?!\"“”'’`|#•→⇒—<>≤≥≈≠~✓")
_MAY_STAND_BEHIND = _MAY_STAND_BEFORE - {"!"}  # a factorial
_OPERATOR_BEFORE = re.compile(
    r"""(?:\\[a-z]+|\b(?:[a-z]|times|plus|minus|over|mod|modulo|than|sqrt|root|log|ln|sin|cos|tan|exp|gcd|lcm|max|min
        |choose|negative|(?:divided|multiplied)\ by)
        |(?:[\d%)]|\b(?:half|thirds?|quarters?|fourths?|fifths?|twice))\ of)\ ?$""",
    re.VERBOSE | re.IGNORECASE,
)
_OPERATOR_BEHIND = re.compile(
    r"""(?:[a-z]|times|plus|minus|divided|multiplied|over|mod|modulo|squared|cubed|remainder|dozen|hundred|thousand
        |million|billion|choose|to\ the|and\ (?:a|one))\b""",
    re.VERBOSE | re.IGNORECASE,
)
_ROUNDED = re.compile(r"[ ,(]*(?:to the nearest|rounded)\b")
_ATTACHED_UNIT = re.compile(rf"(?:{_SHORT_UNITS})\b")


def _sides(text: str) -> Iterator[tuple[Side | None, Side | None]]:
    """The sides of every equals sign; None for one that cannot be evaluated."""
    for line in _plain(text).split("\n"):
        parts = line.split("=")
        for before, after in zip(parts, parts[1:], strict=False):
            left = _left(before)
            yield (left, _right(after)) if left else (None, None)


def _left(part: str) -> Side | None:
    """The expression at the end of the text before an equals sign."""
    rest = part.rstrip(_CHARS)
    side = part[len(rest) :]
    if len(side) > _MOST_CHARS:
        return None
    *cut, side = _PUNCTUATION.split(side)
    if alone := _unmatched(side):
        paren, side = side[alone[-1]], side[alone[-1] + 1 :]
        if paren == ")" and not re.match(" +[^- ]", side):
            return None  # the end of something like f(x), which may also be the first operand
    elif rest and not cut:
        if _OPERATOR_BEFORE.search(rest[-30:]):
            return None
        if rest[-1] in "!:" and rest[-2:-1].isdigit():
            return None  # a factorial or a ratio
        if rest[-1] not in _MAY_STAND_BEFORE and not (rest[-1].isalpha() and side.startswith(" ")):
            return None
        if side.lstrip().startswith("-") and rest[-1] not in ":;":
            return None  # "area - 3 * 2 = ..." is a difference, no negative number
        if rest[-1].isalpha():
            found = evaluate(side.strip())
            return found if found and found.operator else None  # "the eggs of week 2 = 5 * 3": the 2 is of the label
    return evaluate(side.strip())


def _right(part: str) -> Side | None:
    """The expression at the beginning of the text after an equals sign."""
    rest = part.lstrip(_CHARS)
    side = part[: len(part) - len(rest)]
    if len(side) > _MOST_CHARS:
        return None
    whole, (side, *cut) = side, _PUNCTUATION.split(side, maxsplit=1)
    if (cut and ".." in whole) or _ROUNDED.match(part, len(side)):
        return None
    if rest and (not cut or (cut == [""] and rest[0] == "\\")):  # "7.\overline{3}" has not ended at its period
        attached = not side.endswith((" ", "("))
        if rest[0].isalpha():
            if _ATTACHED_UNIT.match(rest) is None if attached else _OPERATOR_BEHIND.match(rest):
                return None
        elif rest[0] not in _MAY_STAND_BEHIND or (rest[0] == ":" and rest[1:2].isdigit()):
            return None
    if alone := _unmatched(side):
        paren, side = side[alone[0]], side[: alone[0]]
        if paren == "(" and not side.endswith(" "):
            return None  # the beginning of something like 2(x + 1)
    return evaluate(side.strip())


def _unmatched(side: str) -> list[int]:
    """The places of parentheses without a partner, in order."""
    opened, alone = [], []
    for paren in _PAREN.finditer(side):
        if paren[0] == "(":
            opened.append(paren.start())
        elif opened:
            opened.pop()
        else:
            alone.append(paren.start())
    return sorted(alone + opened)
