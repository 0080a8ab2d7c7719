"""Text of a model as it may be shown: control characters as marks that a terminal or a page does not act on."""

import unicodedata

# Direction marks reorder what is shown around them; the others of category Cf, such as joiners, belong to scripts.
_BIDI = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
_SEPARATORS = {0x2028, 0x2029}  # line ends to some programs and not to others
_KEPT = {ord("\n"), ord("\t")}


class _Marks(dict):
    """Code point → its mark, for `str.translate`; of what needs none, itself."""

    def __missing__(self, point: int) -> str | int:
        self[point] = mark = _mark(point)
        return mark


def _mark(point: int) -> str | int:
    if point in _KEPT:
        return point
    if point < 0x20:
        return chr(0x2400 + point)  # the control pictures: ESC is ␛
    if point == 0x7F:
        return "\u2421"
    if point in _BIDI or point in _SEPARATORS or unicodedata.category(chr(point)) in ("Cc", "Cs"):
        return f"<U+{point:04X}>"
    return point


_MARKS = _Marks()


def shown(text: str) -> str:
    """The text with ESC, other C0 and C1 controls, bidi controls and lone surrogates as marks; newline and tab stay."""
    return text.translate(_MARKS)
