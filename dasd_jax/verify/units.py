"""Units at the end of an answer: length, time, money, rates and nouns, apart from the number that they measure.

A unit has a canonical text: miles per hour, mph and `\\text{mi/h}` are "mi/h", square feet are "ft^2", apples "apple".
"""

import re

_UNITS = {
    name: unit
    for unit, *names in (
        line.split()
        for line in """
            mm millimeter millimetre
            cm centimeter centimetre
            m meter metre
            km kilometer kilometre
            in inch inche
            ft foot feet
            yd yard
            mi mile
            g gram
            kg kilogram
            lb pound
            L l liter litre
            ml mL milliliter millilitre
            s sec second
            min minute
            h hr hour
            day
            week
            month
            year
            N newton
            J joule
            W watt
            V volt
            Hz hertz
            mi/h mph
            km/h kmh kph
            unit
            % percent pct percentage
            ° degree deg
            °C
            °F
            $ dollar USD
            € euro EUR
            £ GBP
            ₹ rupee INR
            ¥ yen JPY
            cent
        """.strip().splitlines()
    )
    for name in (unit, *names)
}
_CURRENCIES = {"dollar": "$", "euro": "€", "pounds": "£", "rupee": "₹", "yen": "¥"}
_SCALES = {"thousand", "million", "billion"}
_NO_UNITS = _SCALES | {
    "hundred", "trillion", "dozen", "not", "more", "less", "most", "least", "mod", "factorial", "plus",
    "minus",
}  # fmt: skip
_POWER_BEFORE = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_POWER_AFTER = {"squared": 2, "cubed": 3}

_MONEY = re.compile(r"^((?:[^=]*=)?\s*-?)\s*(?:US\s*)?\\(dollar|euro|pounds|rupee|yen)\s*")
# What may end an answer. One letter is a word only inside \text; elsewhere it is a variable.
_ENDING = re.compile(
    r"""(?<=[^\s,=+*/^_({\[-])\s*
        ((?:\\text\s*\{(?:[a-zA-Z/ .^0-9-]|\\cdot|\{-?[0-9]\})+\}
           |(?<![a-zA-Z\\{])(?:[a-zA-Z]{2,}(?:/[a-zA-Z]{1,2})?|an?(?=\s))\.?(?![a-zA-Z{(])
           |\\(?:dollar|euro|pounds|rupee|yen|cdot)(?![a-zA-Z])|°\s*[CF]?(?![a-zA-Z])|%|/(?=\s*(?:\\text|[a-zA-Z]{3}))
           |\^\s*\{?\s*-?[0-9]\s*\}?|\s
        )+)$""",
    re.VERBOSE,
)
_PIECE = re.compile(
    r"\\text\s*\{((?:[^{}]|\{[^{}]*\})*)\}|\\([a-z]+)|(°\s*[CF]?|%|/)|\^\s*\{?\s*(-?[0-9])\s*\}?|([a-zA-Z]+)"
)


def split_unit(text: str) -> tuple[str, str]:
    """(value, unit) of an answer in the notation of `plain`; the unit is "" if there is none."""
    money = _MONEY.search(text)
    currency = _CURRENCIES[money[2]] if money else ""
    amount = money[1] + text[money.end() :] if money else text
    ending = _ENDING.search(amount)
    words = _words(ending[1]) if ending else []
    scale = words.pop(0)[0] if words and words[0][0] in _SCALES else ""
    powers = _powers(words)
    if currency and powers is not None:
        # $18 dollars and $18 per day, but not $18 euros.
        powers = {**powers, currency: 1} if {name for name in powers if powers[name] > 0} <= {currency} else None
    if not words or powers is None:
        return amount.strip(), currency
    return f"{amount[: ending.start()].strip()} {scale}".strip(), _written(powers)


def _words(ending: str, in_text: bool = False) -> list[tuple[str, bool]]:
    r"""Its words, signs and powers in order, each with whether it stands inside \text."""
    words = []
    for inner, command, sign, power, word in (piece.groups(default="") for piece in _PIECE.finditer(ending)):
        if inner:
            words += _words(inner, in_text=True)
        elif command != "cdot":
            words.append((_CURRENCIES.get(command) or sign.replace(" ", "") or power or word, in_text))
    return words


def _powers(words: list[tuple[str, bool]]) -> dict[str, int] | None:
    r"""The power of each unit, as in m/s^2; None if there are words that are no units.

    A noun that is not in the table is a unit inside \text, as in 7 apples, or after a unit's per, but only by itself.
    """
    powers: dict[str, int] = {}
    side, power, last, is_noun = 1, 1, "", False  # last: the unit that a power would belong to
    for word, in_text in words:
        if word in ("/", "per", "a", "an"):
            side, last, is_noun = -1, "", False
        elif word in _POWER_BEFORE:
            power = _POWER_BEFORE[word]
        elif word in _POWER_AFTER or word.lstrip("-").isdecimal():
            if last not in powers:
                return None
            powers[last] *= _POWER_AFTER.get(word) or int(word)
        elif word == "each":
            powers["each"], last = -1, "each"
        elif word in ("C", "F") and last == "°":
            last = f"°{word}"
            powers[last] = powers.pop("°")
        else:
            unit = _known(word)
            if not unit:
                unit = word.lower().removesuffix("s")
                if is_noun or len(word) < 3 or unit in _NO_UNITS or not (in_text or side < 0):
                    return None
                is_noun = True
            for part, exponent in zip(unit.split("/"), (1, -1), strict=False):
                powers[part] = powers.get(part, 0) + side * exponent * power
            last, power = unit, 1
    return powers if power == 1 and (last or not words) else None


def _known(word: str) -> str:
    """The canonical name of a unit in the table; "" if it is not there. Two letters are no plural: ms is not metres."""
    names = [word, word.removesuffix("s")] if len(word) > 2 else [word]
    return next(
        (_UNITS[name] for name in (*names, *(map(str.lower, names) if len(word) > 2 else ())) if name in _UNITS), ""
    )


def _written(powers: dict[str, int]) -> str:
    above, below = (
        "·".join(
            name + (f"^{abs(power)}" if abs(power) > 1 else "")
            for name, power in sorted(powers.items())
            if sign * power > 0
        )
        for sign in (1, -1)
    )
    return f"{above}/{below}" if below else above
