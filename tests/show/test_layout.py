"""Tokens in rows: nothing is lost, no row is too wide, and words stay whole."""

import random

import pytest
from rich.cells import cell_len

from dasd_jax.show.layout import flow, lay_out, side_by_side

HOSTILE = [
    *("[bold red]x[/]", " ␛[2J", "<U+202E>", "日本語の文章", "é" * 3, "\n\n", "\t", "   ", "", "x" * 90, "\\", " the"),
    "👩\u200d👩\u200d👧",
]


def drawn(text):
    return text.replace("\n", "⏎").replace("\t", "    ")


@pytest.mark.parametrize("width", [10, 33, 78])
def test_rows_hold_every_token_in_order_and_none_is_too_wide(width):
    draw = random.Random(width)
    for _ in range(50):
        pieces = draw.choices(HOSTILE, k=draw.randrange(40))
        layout = lay_out(pieces, width)
        cells = [cell for row in layout.rows for cell in row]
        for token, piece in enumerate(pieces):
            assert "".join(text for of, text in cells if of == token) == drawn(piece)
        assert [token for token, _ in cells] == sorted(token for token, _ in cells)
        for row in layout.rows:
            assert cell_len("".join(text for _, text in row)) <= width


@pytest.mark.parametrize("width", [10, 33, 78])
def test_a_token_begins_in_the_row_that_is_said(width):
    pieces = random.Random(width).choices(HOSTILE, k=60)
    layout = lay_out(pieces, width)
    for token, piece in enumerate(pieces):
        if piece:
            assert layout.row_of[token] == next(
                number for number, row in enumerate(layout.rows) if token in {of for of, _ in row}
            )
    assert layout.row_of == sorted(layout.row_of)


def test_words_stay_whole_though_they_are_of_several_tokens():
    pieces = [" won", "der", "ful", " an", "swer", "s", " are", " in", "ter", "est", "ing", "."] * 9
    words = "".join(pieces).split()
    for width in range(14, 60):
        rows = lay_out(pieces, width).rows
        shown = ["".join(text for _, text in row) for row in rows]
        assert " ".join(shown).split() == words
        assert not any(row.startswith(" ") for row in shown[1:])


def test_a_word_of_a_megabyte_is_cut_into_full_rows():
    rows = lay_out(["x" * 2**20], 41).rows
    assert {len(row[0][1]) for row in rows[:-1]} == {40}


def test_items_are_cut_only_where_one_is_wider_than_the_line():
    items = ["step 3", "a name that is long", "x" * 50, "日本" * 9]
    for width in (20, 30, 80):
        lines = flow(items, width)
        assert all(cell_len(line) <= width for line in lines)
        shown = " · ".join(lines).split(" · ")
        assert len(shown) == len(items)
        for part, item in zip(shown, items, strict=True):
            assert part == item or cell_len(item) > width and part.endswith("…") and item.startswith(part[:-1])


def test_columns_stand_beside_each_other():
    assert side_by_side([["a", "日本"], ["c"]], 4) == ["a     c   ", "日本      "]
