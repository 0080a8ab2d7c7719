"""Pages of text over the terminal program, and the one that explains its keys."""

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from dasd_jax.show.text import LEVELS

HELP = f"""\
← →  home  end    the token before, after; the first, the last
↑ ↓  pageup/down  a row, a page
n  p              next, previous rollout
N  P              next, previous step
r  w  t  a        right, wrong, truncated rollouts alone; all
g                 order by largest gap, or by step again
f                 next fork
c                 next token with both views' likeliest tokens
/                 search the responses from here on
s  T              prompt of the student, of the teacher
?                 this page
escape            leaves a page or the search
q  ctrl+c         quit

blue              the method pulls toward the teacher
on orange         the method pushes away from the teacher
bold              the stronger half of both
underlined        a fork, in the top fifth of the response by entropy
strength          in {LEVELS} parts of the response's 95th percentile"""


class Reader(ModalScreen[None]):
    """A text to scroll through; most keys close it."""

    AUTO_FOCUS = "#page"
    BINDINGS = [Binding("escape,q,s,T,question_mark,enter", "dismiss")]
    CSS = """
    #page { height: 1fr; border: round $primary; padding: 0 1; }
    """

    def __init__(self, title: str, text: str):
        """A page with a title; the text is shown as it stands."""
        super().__init__()
        self._title, self._text = title, text

    def compose(self) -> ComposeResult:
        """The page."""
        page = VerticalScroll(Static(self._text, markup=False), id="page")
        page.border_title = f"{self._title} (escape closes)"
        yield page
