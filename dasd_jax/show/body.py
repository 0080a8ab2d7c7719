"""The widget that shows a question and the tokens of a response, with a cursor on one of them."""

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.events import Resize
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from dasd_jax.show.layout import Layout, lay_out
from dasd_jax.show.text import Rollout, Sign

_EMPTY = Layout([], [])
_MARGIN = 2  # columns to the left, where a mark shows the cursor's row
_NARROWEST = 10

# Blue and orange are told apart by nearly everyone. The second sign is the background: the terminal paints it with any
# font, where italics are often missing. All are colours that a terminal with 256 has, with a contrast of 4.5 or more.
_TOWARD = ("#afd7ff", "#5fafff", "bold #00afff", "bold #0087ff")
_AWAY = ("#ffffff on #875f00", "#ffffff on #af5f00", "bold #000000 on #d78700", "bold #000000 on #ffaf00")
_IGNORED, _CURSOR, _QUESTION, _MARK = "#bcbcbc", "bold #000000 on #ffffff", "#9e9e9e", "bold #ffffff"
# Without colours: the stronger half is bold, what is pushed away from the teacher stands reversed.
_TOWARD_MONO = ("none", "none", "bold", "bold")
_AWAY_MONO = ("reverse", "reverse", "bold reverse", "bold reverse")
_IGNORED_MONO, _CURSOR_MONO, _QUESTION_MONO, _MARK_MONO = "dim", "bold reverse underline", "none", "bold"


class Palette:
    """The style of every sign, in colours or, where NO_COLOR is set, without."""

    def __init__(self, colours: bool):
        """With or without colours."""
        toward = _TOWARD if colours else _TOWARD_MONO
        away = _AWAY if colours else _AWAY_MONO
        self._pushed = {1: tuple(map(Style.parse, toward)), -1: tuple(map(Style.parse, away))}
        self._ignored = Style.parse(_IGNORED if colours else _IGNORED_MONO)
        self.cursor = Style.parse(_CURSOR if colours else _CURSOR_MONO)
        self.question = Style.parse(_QUESTION if colours else _QUESTION_MONO)
        self.mark = Style.parse(_MARK if colours else _MARK_MONO)

    def of(self, sign: Sign) -> Style:
        """The style of a token with that sign."""
        style = self._pushed[sign.direction][sign.level - 1] if sign.level else self._ignored
        return style + Style(underline=True) if sign.fork else style


class Body(ScrollView, can_focus=False):
    """Question and response in rows; the keys belong to the program around it.

    Attributes:
        cursor: the token that it stands on.
    """

    DEFAULT_CSS = "Body { overflow-x: hidden; overflow-y: scroll; }"

    def __init__(self, palette: Palette):
        """Shows nothing yet."""
        super().__init__()
        self.cursor = 0
        self._palette = palette
        self._rollout: Rollout | None = None
        self._styles: list[Style] = []
        self._question, self._response = _EMPTY, _EMPTY

    def show(self, rollout: Rollout, cursor: int = 0) -> None:
        """Shows another rollout with the cursor on one of its tokens."""
        self._rollout, self.cursor = rollout, cursor
        self._styles = [self._palette.of(sign) for sign in rollout.signs]
        self._lay_out()

    def on_resize(self, _: Resize) -> None:
        """Wraps the text again."""
        self._lay_out()

    def _lay_out(self) -> None:
        if self._rollout is None:
            return
        width = max(_NARROWEST, self.scrollable_content_region.width - _MARGIN)
        self._question = lay_out([self._rollout.question], width)
        self._response = lay_out(self._rollout.pieces, width)
        self.virtual_size = Size(width + _MARGIN, self._top + len(self._response.rows))
        self._follow()
        self.refresh()

    @property
    def _top(self) -> int:
        """The first row of the response; an empty one stands before it."""
        return len(self._question.rows) + 1

    def move(self, token: int) -> None:
        """Puts the cursor on a token and scrolls to it."""
        self.cursor = token
        self._follow()
        self.refresh()

    def _follow(self) -> None:
        if not self._response.row_of:
            return
        row = self._response.row_of[self.cursor]
        # With the first row of the response the question is seen too, as far as there is room for both.
        above = 0 if row else min(self._top, self.scrollable_content_region.height - 1)
        self.scroll_to_region(Region(0, self._top + row - above, 1, above + 1), animate=False, force=True)

    def beside(self, rows: int) -> int:
        """The token that many rows below (rows > 0) or above the cursor: fewer at the end, more where none begins."""
        layout = self._response
        if not layout.row_of:
            return self.cursor
        row, found = layout.row_of[self.cursor], self.cursor
        column = _begins(layout.rows[row]).get(self.cursor, 0)  # 0: it has no text
        step, passed = (1 if rows > 0 else -1), 0
        while 0 <= (row := row + step) < len(layout.rows):
            passed += 1
            # Tokens that go on from the row above begin there.
            begins = {token: at for token, at in _begins(layout.rows[row]).items() if layout.row_of[token] == row}
            if begins:
                found = min(begins, key=lambda token: abs(begins[token] - column))
            if passed >= abs(rows) and found != self.cursor:
                break
        return found

    @property
    def page(self) -> int:
        """The rows that are seen at a time."""
        return max(1, self.scrollable_content_region.height - 1)

    def render_line(self, y: int) -> Strip:
        """One row of what is seen."""
        row, width = self.scroll_offset.y + y, self.scrollable_content_region.width
        segments = []
        if row < self._top - 1:
            segments = [Segment(" " * _MARGIN)]
            segments += [Segment(text, self._palette.question) for _, text in self._question.rows[row]]
        elif self._top <= row < self._top + len(self._response.rows):
            cells = self._response.rows[row - self._top]
            here = any(token == self.cursor for token, _ in cells)
            segments = [Segment("▸".ljust(_MARGIN) if here else " " * _MARGIN, self._palette.mark)]
            segments += [
                Segment(text, self._palette.cursor if token == self.cursor else self._styles[token])
                for token, text in cells
            ]
        return Strip(segments).adjust_cell_length(width).apply_style(self.rich_style)


def _begins(row: list[tuple[int, str]]) -> dict[int, int]:
    """Token → column of its first cell in a row."""
    begins: dict[int, int] = {}
    column = 0
    for token, text in row:
        begins.setdefault(token, column)
        column += cell_len(text)
    return begins
