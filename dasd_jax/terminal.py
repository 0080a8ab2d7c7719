"""Text for a terminal of any width: wrapped messages, lines of parts that fit, tables whose columns fold.

A width counts cells, of which a Chinese character takes two. A width of None is that of a log file: nothing is wrapped,
left out or folded there. Words are never cut: one that is longer than the width stands on a line of its own.
"""

import argparse
import re
import sys
import textwrap
from collections.abc import Sequence

import rich.console
from rich.cells import cell_len
from rich.text import Text

from dasd_jax.errors import UserError

_GAP = 2  # cells between the columns of a table
_INDENT = 4  # cells before the second and later lines of a message


def console() -> rich.console.Console:
    """A console on stdout: a terminal only if stdout is one, whatever the environment says.

    NO_COLOR and TERM=dumb are rich's to obey; it would also take a log file for a terminal where FORCE_COLOR is set.
    """
    return rich.console.Console(force_terminal=sys.stdout.isatty(), highlight=False)


def width_of(shown_on: rich.console.Console) -> int | None:
    """Cells of a line; None where the console is no terminal."""
    return shown_on.width if shown_on.is_terminal else None


def say(shown_on: rich.console.Console, message: str) -> None:
    """Prints a message, wrapped where the console is a terminal."""
    show(shown_on, wrapped(message, width_of(shown_on)))


def show(shown_on: rich.console.Console, text: str) -> None:
    """Prints lines as they stand, for which `fitted` or `table` have seen to the width."""
    if shown_on.quiet:
        return
    if shown_on.is_terminal:
        # Neither rich's markup nor its own wrapping, which would cut a long path.
        shown_on.print(Text(text), soft_wrap=True)
    else:
        print(text, file=shown_on.file, flush=True)


def wrapped(text: str, width: int | None, indent: int = _INDENT) -> str:
    """Each line of the text, broken between words into lines of at most `width`.

    Args:
        indent: cells before each line but the first, more than those that the line itself begins with.
    """
    if width is None:
        return text
    lines = []
    for line in text.split("\n"):
        words = re.findall(r" *[^ ]+", line)  # each with the blanks before it
        begin = " " * (indent + len(line) - len(line.lstrip(" ")))
        lines.append("")
        for word in words:
            if lines[-1].strip() and cell_len(lines[-1] + word) > width:
                lines.append(begin + word.lstrip(" "))
            else:
                lines[-1] += word
    return "\n".join(lines)


def fitted(parts: Sequence[tuple[int, str]], width: int | None, between: str = " · ") -> str:
    """One line of as many parts as fit, in their order.

    Args:
        parts: (rank, text); those of the highest rank are dropped first, that of the lowest never.
    """
    kept = sorted(parts)
    while True:
        ranks = [rank for rank, _ in kept]
        line = between.join(text for rank, text in parts if rank in ranks)
        if width is None or len(kept) == 1 or cell_len(line) <= width:
            return line
        kept.pop()


def table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None, keys: int = 1) -> str:
    """Aligned columns; those that do not fit beside the others follow in further blocks below.

    Args:
        head: the columns' names.
        rows: the cells, as many as names.
        keys: the first columns that tell the rows apart, repeated in each block. Where they leave no room for another
            column each row becomes a list of names and cells.
    """
    columns = [list(column) for column in zip(head, *rows, strict=True)]
    sizes = [max(map(cell_len, column)) for column in columns]
    taken = sum(sizes[:keys]) + _GAP * (keys - 1)
    if width is not None and taken + _GAP + max(sizes[keys:]) > width:
        return "\n\n".join(_listed(head, row, width) for row in rows)
    blocks, used = [list(range(keys))], taken
    for i in range(keys, len(columns)):
        if width is not None and used + _GAP + sizes[i] > width:
            blocks.append(list(range(keys)))
            used = taken
        blocks[-1].append(i)
        used += _GAP + sizes[i]
    return "\n\n".join(_aligned([columns[i] for i in block], [sizes[i] for i in block]) for block in blocks)


def with_error(value: float, error: float | None, sign: str = "") -> str:
    """A value with its standard error, which may be unknown; "+" as the sign shows one before positive values too."""
    return f"{value:{sign}.3f} ± {'–' if error is None else f'{error:.3f}'}"


def _aligned(columns: Sequence[Sequence[str]], sizes: Sequence[int]) -> str:
    """Columns beside each other, a rule below their names."""
    ruled = [[names, "─" * size, *cells] for (names, *cells), size in zip(columns, sizes, strict=True)]
    gap = " " * _GAP
    return "\n".join(
        gap.join(_padded(cell, size) for cell, size in zip(line, sizes, strict=True)).rstrip()
        for line in zip(*ruled, strict=True)
    )


def _listed(head: Sequence[str], row: Sequence[str], width: int) -> str:
    """One row as a line per cell; those without content are left out."""
    size = max(map(cell_len, head)) + _GAP
    cells = [_padded(name, size) + cell for name, cell in zip(head, row, strict=True) if cell]
    return "\n".join(wrapped(cell, width, size) for cell in cells)


def _padded(text: str, size: int) -> str:
    return text + " " * (size - cell_len(text))


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help whose paragraphs are filled to the terminal's width; lines that begin with a blank stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        def filled(paragraph: str) -> str:
            lines = paragraph.split("\n")
            if len(paragraph) <= width or any(line.startswith(" ") for line in lines):
                return paragraph
            said, _, command = paragraph.partition(": python -m ")  # as the first line of a docstring has it
            if len(lines) > 1 or not command:
                return textwrap.fill(paragraph, width)
            command = textwrap.fill(f"python -m {command}", width - 4, subsequent_indent="    ")
            return f"{textwrap.fill(said, width)}:\n{textwrap.indent(command, '    ')}"

        return "\n\n".join(filled(paragraph) for paragraph in text.strip().split("\n\n"))


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UserErrors."""

    def error(self, message: str):
        raise UserError(f"{message} (--help lists the flags)")
