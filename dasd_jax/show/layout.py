"""Text in rows of a given width, with what belongs to which token."""

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest

from rich.cells import cell_len, chop_cells, set_cell_size

Cell = tuple[int, str]  # (token, the part of it that stands here, as it is drawn)

_UNIT = re.compile(r"\n|[^\S\n]|\S+")  # a line end, one blank, or a word
_DRAWN = {"\n": "⏎", "\t": "    "}  # so that the cursor can stand on them


@dataclass(frozen=True)
class Layout:
    """Rows of tokens.

    Attributes:
        rows: of cells, each row at most as wide as was asked for.
        row_of: of each token, where it begins.
    """

    rows: list[list[Cell]]
    row_of: list[int]


def lay_out(pieces: Sequence[str], width: int) -> Layout:
    """Wraps tokens between words, which may span tokens; words that are wider than a row are cut.

    Words leave the last column to the blank or line end after them, so that it does not begin the next row.

    Args:
        pieces: the text of each token, in characters that a terminal does not act on.
        width: of a row in terminal cells, at least 6.
    """
    text = "".join(pieces)
    ends = list(accumulate(map(len, pieces)))  # of each token in `text`
    rows: list[list[Cell]] = [[]]
    row_of: list[int] = [-1] * len(pieces)
    column = place = token = 0

    def put(part: str, part_width: int) -> None:
        """Adds a part of the text, which begins at `place`, to the last row."""
        nonlocal column, place, token
        end = place + len(part)
        while place < end:
            while ends[token] <= place:
                token += 1
            stop = min(end, ends[token])
            if row_of[token] < 0:
                row_of[token] = len(rows) - 1
            rows[-1].append((token, _DRAWN.get(text[place:stop], text[place:stop])))
            place = stop
        column += part_width

    def new_row() -> None:
        nonlocal column
        rows.append([])
        column = 0

    for found in _UNIT.finditer(text):
        unit = found[0]
        blank = unit.isspace()
        unit_width = cell_len(_DRAWN.get(unit, unit))
        if column and column + unit_width > width - (not blank):
            new_row()
        if unit_width < width:
            put(unit, unit_width)
            if unit == "\n":
                new_row()
            continue
        for number, part in enumerate(chop_cells(unit, width - 1)):
            if number:
                new_row()
            put(part, cell_len(part))
    if len(rows) > 1 and not rows[-1]:
        rows.pop()
    for index, row in enumerate(row_of):  # a token without text stands where the next one does
        if row < 0:
            at = bisect_right(ends, ends[index])
            row_of[index] = row_of[at] if at < len(pieces) and row_of[at] >= 0 else len(rows) - 1
    return Layout(rows, row_of)


def flow(items: Iterable[str], width: int, between: str = " · ") -> list[str]:
    """Lines of at most `width` cells that are broken between items; an item that is wider is cut off with …."""
    lines: list[str] = []
    for item in items:
        if cell_len(item) > width:
            item = chop_cells(item, width - 1)[0] + "…"
        if lines and cell_len(lines[-1] + between + item) <= width:
            lines[-1] += between + item
        else:
            lines.append(item)
    return lines


def side_by_side(columns: Sequence[Sequence[str]], width: int) -> list[str]:
    """Lines with the columns' lines beside each other, each padded to `width` cells."""
    rows = zip_longest(*columns, fillvalue="")
    return ["  ".join(set_cell_size(cell, width) for cell in row) for row in rows]
