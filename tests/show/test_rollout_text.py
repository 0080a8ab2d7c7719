"""A rollout in words and signs."""

import json
import math
import re

import fake_run
import numpy as np
import pytest

from dasd_jax.errors import UserError
from dasd_jax.run import records
from dasd_jax.show.logged import Samples
from dasd_jax.show.text import LEVELS, Rollout, one_line, pieces_at
from dasd_jax.text.shown import shown

HOSTILE = ["[bold red]x[/]", "\x1b[2J\x1b]0;t\x07", "\u202eabc", "\ud800", "\u2028", "\x9b31m", "<b>", "‹+4›"]
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def opened(folder, change=lambda problem: None, **sizes):
    """A made-up run whose first problem has been changed."""
    fake_run.write(folder, **sizes)
    path = folder / "samples.jsonl"
    first, *others = path.read_text().splitlines()
    problem = json.loads(first)
    change(problem)
    path.write_text("\n".join([json.dumps(problem), *others]) + "\n")  # escaped: half pairs are not UTF-8
    return Samples(folder)


def write_hostile(problem):
    """Puts hostile text wherever a model or a data set may have written."""
    all_of_it = "".join(HOSTILE)
    problem |= {"question": all_of_it, "answer": all_of_it, "source": all_of_it, "prompt": all_of_it}
    problem["teacher_prompts"] = {"teacher": all_of_it}
    rollout = problem["rollouts"][0]
    pieces = (HOSTILE * len(rollout["tokens"]))[: len(rollout["tokens"]) - 1]
    rollout |= {"text": "".join(pieces), "tokens": [*pieces, all_of_it], "extracted": all_of_it, "error": all_of_it}
    rollout["offsets"] = [0, *np.cumsum([len(piece) for piece in pieces]).tolist(), len(rollout["text"])]
    for entry in rollout["alternatives"]:
        entry["student"] = [[piece, 0, 0.1] for piece in HOSTILE[:5]]


def old(problem):
    """A line of an older run: one rollout, without prompts, offsets and alternatives."""
    rollout = problem.pop("rollouts")[0]
    for name in ("row", "offsets", "alternatives", "teacher_prompts", "extracted", "error", "advantage"):
        del rollout[name]
    for name in ("example_id", "prompt", "teacher_prompts"):
        del problem[name]
    problem.update(rollout)


def everything(rollout):
    """All text that is shown of a rollout, but for its line ends."""
    parts = [*rollout.plain(), *rollout.pieces, rollout.student_prompt(), rollout.teacher_prompts()]
    parts += rollout.where + rollout.outcome
    for token in range(len(rollout.pieces)):
        parts += [f"{name}{value}" for name, value in rollout.numbers(token)]
        parts += [piece for words in rollout.alternatives(token).values() for piece, _ in words]
    return "".join(parts)


def test_pieces_together_are_the_marked_text(tmp_path):
    samples = opened(tmp_path, write_hostile, tokens=40)
    for number in range(2):
        raw = samples.problem(0)["rollouts"][number]
        rollout = Rollout(samples, (0, number))
        assert "".join(rollout.pieces[:-1]) == shown(raw["text"])
        assert len(rollout.pieces) == len(raw["tokens"]) and rollout.pieces[-1] == shown(raw["tokens"][-1])
        assert rollout.pieces == pieces_at(samples, (0, number))


def test_no_control_character_of_a_model_is_shown(tmp_path):
    text = everything(Rollout(opened(tmp_path, write_hostile), (0, 0)))
    assert not CONTROLS.search(text)
    assert "[bold red]x[/]" in text and "␛[2J" in text and "<U+202E>" in text


def test_signs_are_the_records_directions_forks_and_strengths(tmp_path):
    """A level says between which two parts of the 95th percentile the strength lies."""
    samples = opened(tmp_path, tokens=200)
    raw = samples.problem(0)["rollouts"][0]
    signs = Rollout(samples, (0, 0)).signs
    assert [sign.direction for sign in signs] == records.directions(raw)
    assert [sign.fork for sign in signs] == records.forks(raw)
    full = np.percentile(records.strengths(raw), 95, method="inverted_cdf")
    for sign, strength in zip(signs, records.strengths(raw), strict=True):
        assert sign.level == (sign.direction and min(LEVELS, math.ceil(LEVELS * strength / full)))
    assert {sign.level for sign in signs if sign.direction < 0} >= {1, 2}
    assert {sign.level for sign in signs if sign.direction > 0} == {1, 2, 3, 4}


def test_signs_in_plain_text_are_those_of_the_tokens(tmp_path):
    """Without its marks the response is the text; a mark stands at the end of its token, before line ends."""
    rollout = Rollout(opened(tmp_path, tokens=60), (0, 0))
    response = "\n".join(rollout.plain()).partition("response: ")[2]
    assert re.sub("‹[^›]*›", "", response) == "".join(rollout.pieces)
    for piece, sign in zip(rollout.pieces, rollout.signs, strict=True):
        mark = ("+" if sign.direction > 0 else "-") + str(sign.level) if sign.level > 1 else ""
        mark += "^" if sign.fork else ""
        text = piece.rstrip("\n")
        token = f"{text}{f'‹{mark}›' if mark else ''}{piece[len(text) :]}"
        assert response.startswith(token)
        response = response.removeprefix(token)


@pytest.mark.parametrize("number", range(2))
def test_the_head_says_what_was_logged(tmp_path, number):
    samples = opened(tmp_path)
    problem = samples.problem(1)
    raw = problem["rollouts"][number]
    rollout = Rollout(samples, (1, number))
    assert rollout.where == [
        f"step {problem['step']}", f"problem {problem['example_id']}", f"rollout {number + 1} of 2", problem["source"]
    ]  # fmt: skip
    said = "right · reward 1 · answer 42" if raw["reward"] else "wrong (parse) · reward 0 · no answer"
    assert " · ".join(rollout.outcome) == (
        f"{said} · reference {problem['answer']} · advantage {raw['advantage']:+} · {len(raw['tokens'])} tokens"
    )


def test_a_reward_that_was_not_learned_from_as_it_is_has_both_numbers(tmp_path):
    def cut_off(problem):
        problem["rollouts"][0] |= {"reward": 1.0, "finished": False, "learned_reward": 0.0}

    assert Rollout(opened(tmp_path, cut_off), (0, 0)).outcome[1] == "reward 1, learned from as 0"


def test_all_numbers_of_a_token_are_named_and_its_units_given(tmp_path):
    def add(problem):
        problem["rollouts"][0]["novelty"] = [0.5] * len(problem["rollouts"][0]["tokens"])

    samples = opened(tmp_path, add)
    raw = samples.problem(0)["rollouts"][0]
    assert Rollout(samples, (0, 0)).numbers(3) == [
        ("entropy", f"{raw['entropy'][3]:.3f} nats"),
        ("gap", f"{raw['gap'][3]:+.4f} nats"),
        ("route", f"{raw['route'][3]:+.4f}"),
        ("gate", f"{raw['gate'][3]:+.4f}"),
        ("teacher's share", f"{raw['dense'][3]:+.4f}"),
        ("verifier's share", f"{raw['advantage']:+.4f}"),
        ("credit", f"{raw['credit'][3]:+.4f}"),
        ("novelty", "+0.5000"),
    ]


def test_alternatives_stand_at_their_tokens_alone(tmp_path):
    samples = opened(tmp_path)
    rollout = Rollout(samples, (0, 0))
    entries = {entry["token"]: entry for entry in samples.problem(0)["rollouts"][0]["alternatives"]}
    assert rollout.with_alternatives == sorted(entries) != []
    for token in range(len(rollout.pieces)):
        expected = {
            view: [(f"“{one_line(piece)}”", probability) for piece, _, probability in entries[token][view]]
            for view in ("student", "teacher")
            if token in entries
        }
        assert rollout.alternatives(token) == expected


def test_prompts_of_problems_and_of_rollouts_are_shown_with_their_views(tmp_path):
    def of_siblings(problem):
        problem["rollouts"][0]["teacher_prompts"] = {"peers": ["one\x1b", "two"]}

    rollout = Rollout(opened(tmp_path, of_siblings), (0, 0))
    assert rollout.student_prompt().startswith("<|im_start|>user\n")
    assert "── teacher ──\n<|im_start|>" in rollout.teacher_prompts()
    assert rollout.teacher_prompts().endswith("── peers, 1 of 2 ──\none␛\n\n── peers, 2 of 2 ──\ntwo")


def test_an_older_run_shows_what_it_has(tmp_path):
    rollout = Rollout(opened(tmp_path, old), (0, 0))
    assert "".join(rollout.pieces) and rollout.with_alternatives == []
    assert rollout.where == ["step 1", "rollout 1 of 1", "jsonl:math.jsonl"]
    assert rollout.outcome == ["wrong", "reward 0", "reference 1", "12 tokens"]
    assert [name for name, _ in rollout.numbers(0)] == ["entropy", "gap", "route", "gate", "teacher's share", "credit"]
    assert everything(rollout)


def without_a_teacher(problem):
    for rollout in problem["rollouts"]:
        for name in ("gap", "route", "gate", "dense", "alternatives"):
            del rollout[name]
    problem["teacher_prompts"] = {}


def without_tokens(problem):
    rollout = problem["rollouts"][0]
    rollout |= {"text": "", "tokens": [], "offsets": [0], "alternatives": []}
    rollout |= {name: [] for name in ("entropy", "gap", "route", "gate", "dense", "credit")}


def with_numbers_that_are_none(problem):
    """JSON of Python writes them so."""
    for name in ("gap", "dense", "credit"):
        problem["rollouts"][0][name][:3] = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("change", [without_a_teacher, without_tokens, with_numbers_that_are_none])
def test_what_a_method_does_not_log_is_left_out(tmp_path, change):
    rollout = Rollout(opened(tmp_path, change), (0, 0))
    assert len(rollout.signs) == len(rollout.pieces)
    assert everything(rollout)
    if change is without_a_teacher:
        assert {(sign.direction, sign.level) for sign in rollout.signs} == {(0, 0)}
        assert any(sign.fork for sign in rollout.signs)


@pytest.mark.parametrize("name", ["dense", "entropy", "offsets", "tokens", "advantage", "alternatives"])
def test_a_damaged_rollout_is_one_line(tmp_path, name):
    def damage(problem):
        problem["rollouts"][0][name] = {"advantage": "x", "alternatives": [3]}.get(name, [0])

    with pytest.raises(UserError, match="RUN: .*samples.jsonl is damaged"):
        Rollout(opened(tmp_path, damage), (0, 0))
