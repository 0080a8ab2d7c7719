"""The terminal program: one rollout at a time, a cursor on one of its tokens, and what is logged of that token."""

import asyncio
import os
import re
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import accumulate

from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import Container
from textual.events import Resize
from textual.widgets import Input, Static

from dasd_jax.errors import UserError
from dasd_jax.show.body import Body, Palette
from dasd_jax.show.layout import flow, side_by_side
from dasd_jax.show.logged import Place, Selection
from dasd_jax.show.reader import HELP, Reader
from dasd_jax.show.text import Rollout, one_line, pieces_at, quoted

_WIDE = 100  # columns from which the details stand beside the response
_READ_AT_A_TIME = 50  # lines or rollouts between two looks at the screen
# As many as there is room for; the first one leads to all.
_KEYS = ("? keys", "q quit", "←→↑↓ token", "n p rollout", "N P step", "f fork", "c likeliest", "/ search")


class Viewer(App[UserError | None]):
    """Shows a selection of rollouts. Returns what ended it, or None when the user quits."""

    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = None  # nothing but the line of a search takes keys from the program
    HORIZONTAL_BREAKPOINTS = [(0, "-tiny"), (80, "-narrow"), (_WIDE, "-wide")]
    CSS = """
    #head { height: auto; max-height: 6; text-style: bold; }
    #middle { height: 1fr; }
    Body { width: 1fr; height: 1fr; border-top: solid $primary; }
    #details { border-top: solid $primary; }
    #keys { height: 1; color: $text-muted; }
    #search { display: none; }
    .-wide #middle { layout: horizontal; }
    .-wide #details { width: 44; height: 1fr; border-left: solid $primary; }
    .-narrow #details { height: 10; max-height: 60%; }
    .-tiny #details { height: 13; max-height: 60%; }
    """
    # With priority a key acts before the next one is looked at, so that keys typed ahead reach what it opens.
    BINDINGS = [
        Binding(keys, action, priority=True)
        for keys, action in {
            "right": "token(1)",
            "left": "token(-1)",
            "home": "first",
            "end": "last",
            "down": "row(1)",
            "up": "row(-1)",
            "pagedown": "page(1)",
            "pageup": "page(-1)",
            "n": "rollout(1)",
            "p": "rollout(-1)",
            "N": "step(1)",
            "P": "step(-1)",
            "r": "only('right')",
            "w": "only('wrong')",
            "t": "only('truncated')",
            "a": "only('')",
            "g": "order",
            "f": "fork",
            "c": "choice",
            "slash": "ask",
            "escape": "leave_search",
            "s": "student",
            "T": "teacher",
            "question_mark": "help",
            "q": "leave",
            "ctrl+c": "quit",
        }.items()
    ]

    def __init__(self, selection: Selection, by_gap: bool = False):
        """Starts with the first rollout of a selection that has some, in the order asked for."""
        colours = "NO_COLOR" not in os.environ
        super().__init__(ansi_color=None if colours else True)  # of ANSI's colours textual can leave out all
        self._selection, self._by_gap = selection, by_gap  # the second as asked for at the start
        self._ranked: list[Place] | None = None  # by gap; None in the order of steps
        self._rollout: Rollout | None = None
        self._body = Body(Palette(colours))
        self._said = ""  # in the place of the keys, until the next one

    def compose(self) -> ComposeResult:
        """Head, response beside or above the details, keys."""
        yield Static(id="head", markup=False)
        with Container(id="middle"):
            yield self._body
            yield Static(id="details", markup=False)
        yield Static(id="keys", markup=False)
        yield Input(id="search", placeholder="search the responses from here on; escape leaves", compact=True)

    async def on_mount(self) -> None:
        """Opens the first rollout."""
        if self._by_gap:
            await self.action_order()
        else:
            await self._open(await self._first(self._selection.all()))

    def on_resize(self, _: Resize) -> None:
        """Breaks the lines again, once the parts have their new sizes."""
        self.call_after_refresh(self._draw)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool:
        """Leaves all keys but those that quit to an open page, and to the line of a search."""
        if isinstance(self.screen, Reader) or self._rollout is None:
            return action == "quit"
        return action == "quit" or (action == "leave_search") == (self.focused is not None)

    # ------------------------------------------------------------------------------------------ what is shown

    @property
    def place(self) -> Place:
        """Of the rollout that is shown."""
        return self._rollout.place

    async def _walk(self, places: Iterable[Place | None]) -> AsyncIterator[Place]:
        """The places of a walk through the file; the screen is drawn meanwhile. A damaged file ends the program."""
        try:
            for number, place in enumerate(places, start=1):
                if place:
                    yield place
                if number % _READ_AT_A_TIME == 0:
                    self._say(f"{number} read …")
                    await asyncio.sleep(0)
        except UserError as error:
            self.exit(error)

    async def _first(self, places: Iterable[Place | None]) -> Place | None:
        """The first place of a walk, or None."""
        async for place in self._walk(places):
            return place
        return None

    async def _rank(self) -> list[Place]:
        """The selected places with the largest gap first."""
        return self._selection.by_gap([place async for place in self._walk(self._selection.all())])

    def _later(self) -> Iterable[Place | None]:
        """The places after this one in the order of now."""
        if self._ranked:
            return self._ranked[self._ranked.index(self.place) + 1 :]
        return self._selection.after(self.place)

    def _earlier(self) -> Iterable[Place | None]:
        """The places before this one, the nearest first."""
        if self._ranked:
            return reversed(self._ranked[: self._ranked.index(self.place)])
        return self._selection.before(self.place)

    async def _open(self, place: Place | None, nothing: str = "", cursor: int = 0) -> None:
        """Shows the rollout of a place; without one it says so."""
        if place is None:
            self._say(nothing)
            return
        try:
            self._rollout = Rollout(self._selection.samples, place)
        except UserError as error:
            self.exit(error)
            return
        self._body.show(self._rollout, cursor)
        self._say("")

    def _say(self, words: str) -> None:
        self._said = words
        self._draw()

    def _draw(self) -> None:
        """Everything beside the response, by the widths of now."""
        head, details, keys = (self.query_one(name, Static) for name in ("#head", "#details", "#keys"))
        keys.update(flow([self._said] if self._said else _KEYS, self.size.width, "  ")[0])
        if self._rollout is None:
            return
        where, outcome = self._rollout.where, self._rollout.outcome
        line, count = self.place[0] + 1, len(self._selection.samples)
        chosen = [f"line {line} of {count}"]
        chosen += [f"only {self._selection.only}"] if self._selection.only else []
        chosen += ["by gap"] if self._ranked else []
        rows = flow([*where, *chosen], self.size.width) + flow(outcome, self.size.width)
        head.update("\n".join(rows))
        details.update(self._details(max(details.content_size.width, 20)))

    def _details(self, width: int) -> str:
        """What is logged of the token under the cursor, in lines of that width."""
        rollout, token = self._rollout, self._body.cursor
        if not rollout.pieces:
            return "the response has no tokens"
        place = f"token {token + 1} of {len(rollout.pieces)}"
        lines = flow([place, quoted(rollout.pieces[token]), rollout.signs[token].words], width, "  ")
        numbers = [f"{name} {value}" for name, value in rollout.numbers(token)]
        lines += numbers if self.size.width >= _WIDE else flow(numbers, width, "   ")
        views = rollout.alternatives(token)
        if views:
            column = (width - 2 * (len(views) - 1)) // len(views)
            table = [
                flow([view], column) + [flow([f"{chance:.3f} {piece}"], column)[0] for piece, chance in words]
                for view, words in views.items()
            ]
            lines += side_by_side(table, column)
        return "\n".join(lines)

    # ------------------------------------------------------------------------------------------ keys: the cursor

    def action_token(self, by: int) -> None:
        """Moves the cursor along the response, at most to its ends."""
        self._move(max(0, min(len(self._rollout.pieces) - 1, self._body.cursor + by)))

    def action_first(self) -> None:
        """To the first token."""
        self._move(0)

    def action_last(self) -> None:
        """To the last token."""
        self.action_token(len(self._rollout.pieces))

    def action_row(self, by: int) -> None:
        """Moves the cursor by rows; above the first one the question is scrolled."""
        token = self._body.beside(by)
        if token == self._body.cursor and by < 0:
            self._body.scroll_relative(y=by, animate=False)
        else:
            self._move(token)

    def action_page(self, by: int) -> None:
        """Moves the cursor by as many rows as are seen."""
        self.action_row(by * self._body.page)

    def action_fork(self) -> None:
        """To the next fork."""
        forks = [token for token, sign in enumerate(self._rollout.signs) if sign.fork]
        self._jump(forks, "fork")

    def action_choice(self) -> None:
        """To the next token with alternatives."""
        self._jump(self._rollout.with_alternatives, "token with likeliest tokens logged")

    def _jump(self, tokens: list[int], what: str) -> None:
        later = tokens[bisect_right(tokens, self._body.cursor) :]
        if later:
            self._move(later[0])
        else:
            self._say(f"no {what} after this token")

    def _move(self, token: int) -> None:
        self._body.move(token)
        self._say("")

    # ------------------------------------------------------------------------------------------ keys: the rollout

    async def action_rollout(self, by: int) -> None:
        """To the next or previous rollout."""
        place = await self._first(self._later() if by > 0 else self._earlier())
        await self._open(place, f"no {'later' if by > 0 else 'earlier'} rollout among the selected")

    async def action_step(self, by: int) -> None:
        """To the first rollout of the next or previous step, in the order of now."""
        steps = self._selection.samples.steps
        here, place = steps[self.place[0]], None
        others = sorted({steps[line] for line in self._selection.lines if (steps[line] - here) * by > 0})
        for step in others if by > 0 else reversed(others):
            if self._ranked:
                place = next((ranked for ranked in self._ranked if steps[ranked[0]] == step), None)
            else:
                place = await self._first(self._selection.in_step(step))
            if place:
                break
        await self._open(place, f"no {'later' if by > 0 else 'earlier'} step among the selected")

    async def action_only(self, verdict: str) -> None:
        """Shows rollouts with one verdict alone, or all again: this one if it is one of them, or else the next."""
        selection = self._selection.with_verdict(verdict or None)
        nearest = await self._first(selection.after((self.place[0], self.place[1] - 1)))
        nearest = nearest or await self._first(selection.before(self.place))
        if nearest is None:
            self._say(f"no rollout is {verdict}: the filter stays as it was")
            return
        self._selection = selection
        if self._ranked:
            self._ranked = await self._rank()
            nearest = self.place if self.place in self._ranked else self._ranked[0]
        if nearest != self.place:
            await self._open(nearest)
        self._say("")

    async def action_order(self) -> None:
        """Orders by the largest gap, beginning with the largest of all; or by steps again."""
        if self._ranked:
            self._ranked = None
            self._say("")
        else:
            self._ranked = await self._rank()
            await self._open(self._ranked[0] if self._ranked else None)

    # ------------------------------------------------------------------------------------------ keys: the rest

    def action_leave(self) -> None:
        """Ends the program."""
        self.exit()

    def action_ask(self) -> None:
        """Opens the line for what to search."""
        line = self.query_one("#search", Input)
        line.display = True
        self.set_focus(line)  # at once: `focus` would let the next key pass

    def action_leave_search(self) -> None:
        """Closes it."""
        self.set_focus(None)
        self.query_one("#search", Input).display = False

    async def on_input_submitted(self, asked: Input.Submitted) -> None:
        """To the next token, in this response or a later one, where the text that was asked for begins."""
        self.action_leave_search()
        if not asked.value:
            return
        pattern = re.compile(re.escape(asked.value), re.IGNORECASE)
        token = _begin(pattern, self._rollout.pieces, self._body.cursor + 1)
        if token is not None:
            self._move(token)
            return
        samples = self._selection.samples

        def matches() -> Iterator[Place | None]:
            for place in self._later():
                yield place if place and _begin(pattern, pieces_at(samples, place)) is not None else None

        if place := await self._first(matches()):
            await self._open(place, cursor=_begin(pattern, pieces_at(samples, place)))
        else:
            self._say(f"not found from here on: {one_line(asked.value)}")

    def action_student(self) -> None:
        """The student's prompt as a page."""
        self.push_screen(Reader("student's prompt", self._rollout.student_prompt()))

    def action_teacher(self) -> None:
        """The teachers' prompts as a page."""
        self.push_screen(Reader("teacher's prompt", self._rollout.teacher_prompts()))

    def action_help(self) -> None:
        """The keys as a page."""
        self.push_screen(Reader("keys", HELP))


def _begin(pattern: re.Pattern[str], pieces: list[str], first: int = 0) -> int | None:
    """The first token, not before `first`, in which a match begins."""
    ends = list(accumulate(map(len, pieces)))
    found = pattern.search("".join(pieces), sum(map(len, pieces[:first])))
    return bisect_right(ends, found.start()) if found else None
