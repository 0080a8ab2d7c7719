r"""How answers are written: one notation for LaTeX and plain text, and the exact value of a written number."""

import functools
import re
import string
import unicodedata
from fractions import Fraction

_SIGNS = str.maketrans(
    {
        "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "π": r"\pi ", "∞": r"\infty ",
        "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ",
        "∈": r"\in ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "€": r"\euro ", "£": r"\pounds ",
        "₹": r"\rupee ", "¥": r"\yen ",
    }
)  # fmt: skip
_FUNCTIONS = "(?:arc)?(?:sin|cos|tan)h?|(?:arc)?(?:cot|csc)|arcsec|log|ln|exp|sqrt"
_TEXT = r"\\text\s*\{\s*"
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\$", r"\\dollar "),
        (r"\$|(?<!\\)\\[()\[\]]|\\displaystyle|\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\.?|\s*\\!\s*", ""),
        (r"(?<!\\)\\[,;: ]|\\q?quad|~", " "),
        (r"\\(?:[lc]?dots[bcimo]?|hdots)(?![a-zA-Z])|…|⋯|\.\.\.", r"\\ldots "),
        (r"\\langle", "("),
        (r"\\rangle", ")"),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\{\\rm\s+([^{}]*)\}|\\mathrm\s+([a-zA-Z])(?![a-zA-Z])", r"\\text{\1\2}"),
        (r"\\(?:mathrm|mathsf|mbox|textrm|textnormal|operatorname\*?)\s*(?=\{)", r"\\text"),
        (r"\\(?:mathbf|boldsymbol|textbf|textit|mathit)\s*\{([^{}]*)\}", r"\1"),
        (r"\\text\s*\{([^a-zA-Z{}\\]*)\}", r"\1"),
        # Functions and constants in roman type or without a backslash; sec alone is a second.
        (rf"{_TEXT}({_FUNCTIONS}|sec)\s*\}}(?=\s*[\\({{^_0-9a-z])", r"\\\1 "),
        (r"(?<![a-zA-Z\\])sqrt\s*(\d+)", r"\\sqrt{\1}"),
        (rf"(?<![a-zA-Z\\])({_FUNCTIONS}|sec(?=\())(?=\s*[\\({{^_|0-9a-zA-Z])(?![a-zA-Z])", r"\\\1 "),
        (r"(?<![a-zA-Z\\])[pP]i(?![a-zA-Z])", r"\\pi "),
        (rf"(?<=[_^]){_TEXT}([ei])\s*\}}", r"\1"),
        (rf"{_TEXT}(\\pi|\\dollar|\\euro|\\pounds|\\rupee|\\yen|[ei])\s*\}}", r" \1 "),
        (r"(?<=[\w)}])\s*\*\*\s*(?=[\w({\\-])", "^"),
        (r"\^\s*(-\s*[0-9]+)", r"^{\1}"),
        (rf"[,;]?\s*(?:{_TEXT}[,;]?\s*(?:and|or)\s*[,;]?\s*\}}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])|\\&)\s*,?", ", "),
        (r"√\s*(\d+|[a-zA-Z]|(?=\())", r"\\sqrt{\1}"),
        (r"\\sqrt\{\}", r"\\sqrt"),
        (r"\\varnothing|\\\{\s*\\\}", r"\\emptyset"),
        (r"(?i)^no (?:real )?solutions?$", r"\\emptyset"),
        (r"(?i)^all real numbers$", r"\\mathbb{R}"),
        (rf"(?i){_TEXT}infinity\s*\}}|(?<![a-z\\])infinity(?![a-z])", r"\\infty"),
        (r"\+\s*\\infty", r"\\infty"),
        (r"\s*\^\s*\{?\s*\\circ\s*\}?|\s*\\degree(?![a-zA-Z])", "°"),
        (r"\^\s*\{?\s*\\prime\s*\\prime\s*\}?", "''"),
        (r"\^\s*\{?\s*\\prime\s*\}?", "'"),
        (r"\\%", "%"),
        (r"(?<![a-zA-Z])per\s+cent(?![a-zA-Z])", "percent"),
        (rf"\\frac\s*\{{\s*({_TEXT}[^{{}}]*\}})\s*\}}\s*\{{\s*({_TEXT}[^{{}}]*\}}\s*(?:\^\s*\d)?)\s*\}}", r"\1/\2"),
        (r"<=|\\leq(?:slant)?(?![a-zA-Z])", r"\\le "),
        (r">=|\\geq(?:slant)?(?![a-zA-Z])", r"\\ge "),
        (r"!=|\\neq(?![a-zA-Z])", r"\\ne "),
        (r"\s*\{\s*,\s*\}\s*", ","),
        # \frac\pi6 and \sqrt\pi with braces
        (r"\\(frac|sqrt)\s*(\\(?!frac|sqrt|text)[a-zA-Z]+|\w)", r"\\\1{\2}"),
        (r"(\\frac\{[^{}]*\})\s*(\\(?!frac|sqrt|text)[a-zA-Z]+|\w)", r"\1{\2}"),
        (r"^\](.*)", r"(\1"),  # ]1,2[ for (1,2)
        (r"(.*)\[$", r"\1)"),
    )
]
_NUMBER = re.compile(r"\s*-?[0-9,]+(?:\.[0-9]+)?\.?\s*")
_WHOLE = re.compile(r"\s*\$*\s*\\(?:text\w*|math(?:rm|bf|it|sf)|mbox|boldsymbol)\s*\{(.*)\}\s*\$*\s*", re.DOTALL)
_BEFORE_BRACES = re.compile(r"(\\sqrt(?:\s*\[[^\[\]]*\])?|\^)\s*\(")
_SUPERSCRIPTS = "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"
_TO_NORMAL_SIZE = str.maketrans(_SUPERSCRIPTS, "-0123456789")


@functools.lru_cache(maxsize=1024)
def plain(text: str) -> str:
    """The answer in one notation: LaTeX for symbols, no layout, no final period, `{1,2}` as a set, `{5}` as 5."""
    if not text.isascii():
        text = re.sub(f"[{_SUPERSCRIPTS}]+", lambda run: f"^{{{run[0].translate(_TO_NORMAL_SIZE)}}}", text)
        text = re.sub("[¼-¾⅐-⅞]", lambda sign: " " + unicodedata.normalize("NFKC", sign[0]).replace("⁄", "/"), text)
        text = re.sub("[０-９]", lambda digit: unicodedata.normalize("NFKC", digit[0]), text)
        text = text.translate(_SIGNS)
    if not _NUMBER.fullmatch(text):  # most answers are numbers, in which there is nothing to rewrite
        while (whole := _WHOLE.fullmatch(text)) and is_balanced(whole[1]):
            text = whole[1]
        for pattern, replacement in _REWRITES:
            text = pattern.sub(replacement, text)
        text = _braced(text)
    text = re.sub(r"\s*\.\s*(\}?)$", r"\1", re.sub(r"\s+", " ", text).strip().rstrip("\\ "))
    while text[:1] == "(" and text[-1:] == ")" and is_balanced(text[1:-1]) and len(split_at(text[1:-1], ",;")) == 1:
        text = text[1:-1].strip()
    braced = re.fullmatch(r"\\?\{(.*?)\\?\}", text)
    if braced and is_balanced(braced[1]):
        text = f"\\{{{braced[1]}\\}}" if len(split_at(braced[1], ",")) > 1 else braced[1].strip()
    return text


def _braced(text: str) -> str:
    r"""`\sqrt{x}` and `a^{b+1}` for `\sqrt(x)` and `a^(b+1)`."""
    start = 0
    while opening := _BEFORE_BRACES.search(text, start):
        start, depth = opening.end(1), 1
        for end in range(opening.end(), len(text)):
            depth += (text[end] == "(") - (text[end] == ")")
            if depth == 0:
                text = f"{text[:start]}{{{text[opening.end() : end]}}}{text[end + 1 :]}"
                break
    return text


@functools.lru_cache(maxsize=1024)
def spelling(text: str) -> str:
    """Equal for answers with the same spelling: spaces between digits matter, the case of words does not."""
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"(?<![0-9])\s+|\s+(?![0-9])", "", text)
    text = re.sub(r"\{(\w)\}", r"\1", text)
    return text.lower().replace(".m.", "m").replace(".m", "m") if has_words(text) else text


_NAMES = {"sec", "lim", "max", "min", "gcd", "lcm", "mod", "det"}
_WORD = re.compile(r"(?<![a-zA-Z\\])(?:[a-zA-Z]{3,}|[nN]o|[ap]\.?m|[AP]\.?M)(?![a-zA-Z])")
_COMMANDS = re.compile(r"\\(?:begin|end)\s*\{\w+\*?\}|\\[a-zA-Z]+")


def has_words(text: str) -> bool:
    """Whether the text contains natural language; consecutive letters such as abc or xyz are a product."""
    words = [] if exact_value(text) is not None else _WORD.findall(_COMMANDS.sub(" ", text))
    return any(word not in _NAMES and word not in string.ascii_lowercase for word in words)


def letters(text: str) -> set[str]:
    """The letters outside LaTeX commands."""
    return set(re.findall("[a-zA-Z]", _COMMANDS.sub(" ", text)))


def is_balanced(text: str) -> bool:
    """Whether brackets of all kinds, taken as one kind, open before they close and all close."""
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return False
    return depth == 0


def split_at(text: str, separator: str) -> list[str]:
    """The parts between separators that are outside all brackets."""
    parts = [""]
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character in separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


# math-verify rounds decimals to six places, so that 1e-7 equals 2e-7 and 0.333333 a third; here they are exact.

_SIMPLE_FRAC = re.compile(r"\\frac\s*(?:\{([-+]?[0-9]+)\}|([0-9]))\s*(?:\{([-+]?[0-9]+)\}|([0-9]))")
_FRACTION = re.compile(r"([-+]?)\s*(?:([0-9]+)\s+(?=[0-9]))?([-+]?[0-9]+)\s*/\s*([-+]?[0-9]+)")
_DECIMAL = re.compile(
    r"""([-+]?)\s*((?:[0-9]+|[1-9][0-9]{0,2}(?:[, ][0-9]{3})+)(?:\.[0-9]*)?|\.[0-9]+)
        (?:\\overline\s*\{([0-9]+)\})?
        (?:(?:[eE]|\s*(?:\\times|\\cdot)\s*10\s*\^)\s*\{?([-+]?[0-9]{1,3})\}?)?
        (?:\s*(?:\\text\s*\{\s*)?(thousand|million|billion)\s*\}?)?""",
    re.VERBOSE,
)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}


@functools.lru_cache(maxsize=1024)
def exact_value(text: str) -> Fraction | None:
    r"""The exact value of a written number: -3, 1,250.5, .5, 0.1\overline{6}, 3\times10^5, 1/2, 1\frac{1}{2}."""
    fraction = _FRACTION.fullmatch(_SIMPLE_FRAC.sub(r" \1\2/\3\4", text).strip())
    if fraction:
        sign, whole, top, bottom = fraction.groups()
        if int(bottom) == 0:
            return None
        value = int(whole or 0) + Fraction(int(top), int(bottom))
        return -value if sign == "-" else value
    decimal = _DECIMAL.fullmatch(text)
    if not decimal:
        return None
    sign, digits, period, exponent, scale = decimal.groups()
    digits = re.sub("[, ]", "", digits).removesuffix(".")
    value = Fraction(digits)
    if period:
        places = len(digits.partition(".")[2])
        value += Fraction(int(period), 10**places * (10 ** len(period) - 1))
    value *= Fraction(10) ** int(exponent or 0) * _SCALES.get(scale, 1)
    return -value if sign == "-" else value
