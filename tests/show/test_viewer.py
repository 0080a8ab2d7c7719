"""The terminal program, driven by keys on a screen in memory."""

import asyncio
import json
import re

import fake_run
import pytest
from rich.cells import cell_len

from dasd_jax.errors import UserError
from dasd_jax.run import records
from dasd_jax.show.app import Viewer
from dasd_jax.show.logged import Samples, Selection
from dasd_jax.show.reader import Reader
from dasd_jax.show.text import LEVELS, quoted

HOSTILE = "[bold red]x[/]\x1b[2J\u202e[@click=quit]y[/]"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """4 steps with 2 × 2 rollouts of 80 tokens; one in eight is cut off, and step 3 has a text of its own."""
    folder = fake_run.write(tmp_path_factory.mktemp("run"), tokens=80)
    path = folder / "samples.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[3]["rollouts"][1]["finished"] = lines[6]["rollouts"][0]["finished"] = False
    rollout = lines[5]["rollouts"][1]
    rollout["tokens"][-1] = "<|needle|>"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def drive(run, steps, size=(80, 24), **options):
    """Presses keys and calls what stands between them with the program; what it returned in the end."""

    async def go():
        app = Viewer(Selection(Samples(run)), **options)
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            for step in steps:
                if callable(step):
                    step(app)
                else:
                    await pilot.press(step)
        return app

    return asyncio.run(go())


def screen(app):
    """The screen's rows as text."""
    return [strip.text for strip in app.screen._compositor.render_strips()]


def collect(read):
    """(a list, a step that appends to it what `read` says of the program)."""
    seen = []
    return seen, lambda app: seen.append(read(app))


def repeated(key, note, count):
    """The key so many times, and a note before and after each."""
    return [note, *[step for _ in range(count) for step in (key, note)]]


def places(run, only=None):
    """All rollouts with a verdict, by their place."""
    found = []
    for line, problem in enumerate(records.samples(run)):
        for number, rollout in enumerate(problem["rollouts"]):
            verdict = "truncated" if not rollout["finished"] else "right" if rollout["reward"] else "wrong"
            if only in (None, verdict):
                found.append((line, number))
    return found


@pytest.mark.parametrize(
    ("key", "only"),
    [pytest.param("a", None, marks=pytest.mark.slow), ("r", "right"), ("w", "wrong"), ("t", "truncated")],
)
def test_n_and_p_go_through_exactly_the_rollouts_of_the_filter(run, key, only):
    seen, note = collect(lambda app: app.place)
    expected = places(run, only)
    drive(run, [key, *repeated("n", note, len(expected)), *repeated("p", note, len(expected))])
    assert seen == [*expected, expected[-1], *reversed(expected), expected[0]]


def test_a_filter_without_a_match_stays_as_it_was(run, tmp_path):
    fake_run.write(tmp_path, rollouts=1)
    seen, note = collect(lambda app: (app.place, screen(app)[-1]))
    drive(tmp_path, ["n", "w", "r", note, "n", note])
    assert seen[0][0] == (1, 0) and seen[0][1].startswith("no rollout is right")
    assert seen[1][0] == (2, 0)


def test_capital_n_and_p_go_to_the_first_rollout_of_a_step(run):
    seen, note = collect(lambda app: app.place)
    drive(run, ["n", *repeated("N", note, 4), "n", *repeated("P", note, 4)])
    assert seen == [(0, 1), (2, 0), (4, 0), (6, 0), (6, 0), (6, 1), (4, 0), (2, 0), (0, 0), (0, 0)]


def test_g_orders_by_the_largest_gap_and_back(run):
    seen, note = collect(lambda app: app.place)
    count = len(places(run))
    drive(run, ["g", *repeated("n", note, count), "g", "p", note])
    gaps = {
        (line, number): max(map(abs, rollout["gap"]))
        for line, problem in enumerate(records.samples(run))
        for number, rollout in enumerate(problem["rollouts"])
    }
    ordered = sorted(gaps, key=gaps.get, reverse=True)
    assert seen[:count] == ordered
    assert seen[-1] == places(run)[places(run).index(ordered[-1]) - 1]


def test_the_order_of_the_command_line_is_the_order_of_the_key(run):
    seen, note = collect(lambda app: app.place)
    drive(run, ["g", "n", note])
    drive(run, ["n", note], by_gap=True)
    assert seen[0] == seen[1]


def cursor(app):
    return app._body.cursor


def test_arrows_home_and_end_move_token_by_token_and_stop_at_the_ends(run):
    seen, note = collect(cursor)
    drive(run, ["left", note, "right", "right", note, "left", note, "end", note, "right", note, "home", note])
    assert seen == [0, 2, 1, 79, 79, 0]


@pytest.mark.slow
def test_up_and_down_move_by_rows_and_keep_their_column(run):
    seen, note = collect(cursor)
    rows = []
    drive(run, [lambda app: rows.extend(app._body._response.rows), *["right"] * 3, *repeated("down", note, len(rows))])
    drive(run, [*["right"] * 3, *repeated("down", note, len(rows)), *repeated("up", note, len(rows))])
    down, up = seen[1 : len(rows) + 2], seen[len(rows) + 2 :]

    def row_of(token):
        return next(number for number, row in enumerate(rows) if token in {of for of, _ in row})

    assert [row_of(token) for token in down] == [*range(len(rows)), len(rows) - 1]
    assert [row_of(token) for token in up] == [*reversed(range(len(rows))), 0]


@pytest.mark.parametrize("key", ["f", "c"])
def test_f_and_c_stop_at_every_fork_and_choice(run, key):
    seen, note = collect(cursor)
    raw = next(records.samples(run))["rollouts"][0]
    forks = [token for token, fork in enumerate(records.forks(raw)) if fork]
    expected = {"f": forks, "c": sorted(entry["token"] for entry in raw["alternatives"])}[key]
    expected = [token for token in expected if token]  # the cursor begins on the first
    drive(run, repeated(key, note, len(expected) + 1))
    assert seen == [0, *expected, expected[-1]]


def test_the_details_are_those_of_the_token_under_the_cursor(run):
    seen, note = collect(lambda app: (app._rollout, cursor(app), " ".join("\n".join(screen(app)).split())))
    drive(run, ["n", *repeated("c", note, 4)])
    for rollout, token, text in seen:
        assert f"token {token + 1} of 80 {quoted(rollout.pieces[token])} {rollout.signs[token].words}" in text
        assert all(f"{name} {value}" in text for name, value in rollout.numbers(token))
        lines = zip(*rollout.alternatives(token).values(), strict=True)
        for line in lines:
            assert " ".join(f"{chance:.3f} {piece}" for piece, chance in line) in text
    assert len({token for _, token, _ in seen}) >= 4 and rollout.alternatives(token)


def test_a_token_has_the_colours_of_its_direction_and_strength(run, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    styles = {}

    def read(app):
        body = app._body
        for row in range(body.virtual_size.height - body._top):
            strip = body.render_line(body._top + row - body.scroll_offset.y)
            tokens = [token for token, _ in body._response.rows[row]]
            for token, segment in zip(tokens, strip._segments[1:], strict=False):
                if token != body.cursor:
                    styles.setdefault(app._rollout.signs[token], set()).add(segment.style)

    drive(run, [read, "n", read, "n", read, "n", read])
    assert all(len(of) == 1 for of in styles.values())
    by_push = {}
    for sign, (style,) in styles.items():
        red, _, blue = style.color.triplet
        assert style.underline == sign.fork or not (style.underline or sign.fork)
        if sign.direction > 0:
            assert blue > red
        if sign.direction < 0:
            red, _, blue = style.bgcolor.triplet
            assert red > blue
        by_push.setdefault((sign.direction, sign.level), set()).add((style.color, style.bgcolor))
    assert {(1, level) for level in range(1, LEVELS + 1)} < set(by_push)
    assert len({colours for of in by_push.values() for colours in of}) == len(by_push)


def test_no_color_leaves_signs_without_colours(run, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    seen = []

    def read(app):
        for strip in app.screen._compositor.render_strips():
            for segment in strip.apply_filter(app._filters[-1], app.background_colors[1])._segments:
                seen.append(segment.style)

    drive(run, [read, "n", read])
    colours = {colour.name for style in seen if style for colour in (style.color, style.bgcolor) if colour}
    assert colours <= {"default"}
    assert any(style.reverse for style in seen if style) and any(style.underline for style in seen if style)


@pytest.mark.parametrize("size", [(40, 16), (60, 24), (80, 24), (120, 40), (200, 60)])
def test_no_word_is_cut_at_any_size(run, size):
    """All of the head, the keys that have room, and the details, stand whole between the borders."""
    seen, note = collect(lambda app: (app._rollout, cursor(app), screen(app)))
    drive(run, ["c", note], size=size)
    rollout, token, rows = seen[0]
    assert len(rows) == size[1] and all(cell_len(row) == size[0] for row in rows)
    text = " ".join(re.split(r"[\s│┌─·]+", "\n".join(rows)))
    for item in [*rollout.where, *rollout.outcome]:
        assert " ".join(item.split()) in text
    assert "? keys" in text and "q quit" in text
    if size[1] > 16:
        assert all(f"{name} {value}" in text for name, value in rollout.numbers(token))
        for piece, chance in rollout.alternatives(token)["teacher"]:
            assert f"{chance:.3f} {' '.join(piece.split())}" in text


def test_every_key_is_explained(run):
    seen, note = collect(screen)
    drive(run, ["question_mark", note])
    explained = {word for row in seen[0] for word in row[2:20].replace("/", " / ").split()}
    names = {"question_mark": "?", "slash": "/", "left": "←", "right": "→", "up": "↑", "down": "↓", "pagedown": "down"}
    for binding in Viewer.BINDINGS:
        assert {names.get(key, key) for key in binding.key.split(",")} <= explained


@pytest.mark.parametrize(("key", "part"), [("s", "What is 1 + 0?"), ("T", "The answer is 1.")])
def test_prompts_are_pages_that_close(run, key, part):
    seen, note = collect(lambda app: (isinstance(app.screen, Reader), part in "\n".join(screen(app))))
    drive(run, [key, note, "down", "escape", note])
    assert seen[0] == (True, True) and not seen[1][0]


def test_search_goes_on_in_this_response_and_in_later_ones(run):
    seen, note = collect(lambda app: (app.place, cursor(app)))
    first = next(records.samples(run))["rollouts"][0]
    maybes = [token for token, piece in enumerate(first["tokens"]) if piece == " maybe" and token]
    drive(run, ["slash", *"MAYBE", "enter", note, "slash", *"<|NEEDLE|>", "enter", note, "n", note])
    assert seen == [((0, 0), maybes[0]), ((5, 1), 79), ((6, 0), 0)]


def test_keys_typed_ahead_reach_what_the_key_before_them_opens(run):
    """As they arrive over a slow line: all at once."""
    seen, note = collect(lambda app: (app.place, cursor(app), isinstance(app.screen, Reader)))

    def burst(*keys):
        return lambda app: [app.simulate_key(key) for key in keys]

    drive(run, [burst("n", "slash", *"wait", "enter"), "escape", note, burst("T", "q"), "escape", "home", note])
    pieces = next(records.samples(run))["rollouts"][1]["tokens"]
    assert seen == [((0, 1), pieces.index(" wait", 1), False), ((0, 1), 0, False)]


def test_search_for_what_is_nowhere_says_so_and_stays(run):
    seen, note = collect(lambda app: (app.place, cursor(app), screen(app)[-1]))
    drive(run, ["n", "right", "slash", *"[/]x(", "enter", note, "slash", "q", "escape", "right", note])
    assert seen[0][:2] == ((0, 1), 1) and seen[0][2].startswith("not found from here on: [/]x(")
    assert seen[1][:2] == ((0, 1), 2)


def test_text_of_models_is_never_markup(run, tmp_path):
    fake_run.write(tmp_path)
    path = tmp_path / "samples.jsonl"
    problem = json.loads(path.read_text().splitlines()[0])
    problem |= {name: HOSTILE for name in ("question", "answer", "source", "prompt")}
    problem["teacher_prompts"] = {HOSTILE: HOSTILE}
    rollout = problem["rollouts"][0]
    rollout |= {"tokens": [HOSTILE] * 12, "text": HOSTILE * 12, "extracted": HOSTILE, "error": HOSTILE}
    rollout["offsets"] = [len(HOSTILE) * token for token in range(13)]
    rollout["alternatives"] = [{"token": 1, HOSTILE: [[HOSTILE, 1, 0.5]], "teacher": [[HOSTILE, 1, 0.5]]}]
    path.write_text(json.dumps(problem) + "\n")
    seen, note = collect(lambda app: "\n".join(screen(app)))
    drive(tmp_path, ["c", note, "s", note, "escape", "T", note], size=(250, 50))
    assert all("[bold red]x[/]␛[2J<U+202E>[@click=quit]y[/]" in text for text in seen)
    assert not any(control in text for text in seen for control in "\x1b\u202e")
    counts = [text.count("[bold red]x[/]") for text in seen]
    assert counts[0] > 12 and counts[1] >= 1 and counts[2] >= 2


def test_a_token_of_a_megabyte_can_be_passed(run, tmp_path):
    fake_run.write(tmp_path)
    path = tmp_path / "samples.jsonl"
    problem = json.loads(path.read_text().splitlines()[0])
    rollout = problem["rollouts"][0]
    long = "x" * 2**20
    rollout["tokens"][1] = long
    rollout["text"] = "".join(rollout["tokens"])
    rollout["offsets"] = [sum(map(len, rollout["tokens"][:token])) for token in range(13)]
    path.write_text(json.dumps(problem) + "\n")
    seen, note = collect(cursor)
    drive(tmp_path, ["right", note, "down", note, "up", note, "end", note])
    assert seen[0] == 1 and seen[1] > 1 and seen[2] <= 1 and seen[3] == 11


def test_a_response_without_tokens_is_shown(tmp_path):
    fake_run.write(tmp_path)
    path = tmp_path / "samples.jsonl"
    problem = json.loads(path.read_text().splitlines()[0])
    names = ("tokens", "entropy", "gap", "route", "gate", "dense", "credit", "alternatives")
    problem["rollouts"][0] |= {"text": "", "offsets": [0]} | {name: [] for name in names}
    path.write_text(json.dumps(problem) + "\n")
    seen, note = collect(lambda app: "\n".join(screen(app)))
    drive(tmp_path, ["right", "down", "up", "end", "home", "f", "c", note, "slash", "x", "enter", "n", note])
    assert "the response has no tokens" in seen[0] and "the response has no tokens" not in seen[1]


def test_a_damaged_line_ends_the_program_with_what_is_wrong(tmp_path):
    fake_run.write(tmp_path)
    path = tmp_path / "samples.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:300], *lines[2:]]) + "\n")
    app = drive(tmp_path, ["n", "n"])
    assert isinstance(app.return_value, UserError) and "line 2 is damaged" in str(app.return_value)
