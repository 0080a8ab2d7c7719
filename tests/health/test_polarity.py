"""Marker polarity on rollouts written by hand, and the command that shows it."""

import math
import random

import fake_run
import pytest

from dasd_jax import marker_polarity
from dasd_jax.errors import UserError
from dasd_jax.health.polarity import polarity


def rollout(*tokens):
    """A rollout of (piece, gap) pairs."""
    pieces = [piece for piece, _ in tokens]
    ends = [sum(map(len, pieces[:i])) for i in range(len(pieces) + 1)]
    return {"text": "".join(pieces), "tokens": pieces, "offsets": ends, "gap": [gap for _, gap in tokens]}


def test_log_odds_and_z_are_those_of_fightin_words():
    # Suppressed: wait 6, final 1 (7); favoured: wait 1, final 4 (5). A prior of 0.5 for each of two words.
    # wait: log(6.5 / 1.5) - log(1.5 / 4.5) = log 13; variance 1/6.5 + 1/1.5.
    pairs = [(" wait", -0.2)] * 6 + [(" final", -0.2)] + [(" wait", 0.2)] + [(" final", 0.2)] * 4
    wait, final = polarity([rollout(*pairs)])
    assert (wait.word, wait.suppressed, wait.favoured) == ("wait", 6, 1)
    assert (final.word, final.suppressed, final.favoured) == ("final", 1, 4)
    assert wait.log_odds == pytest.approx(math.log(13))
    assert wait.z == pytest.approx(math.log(13) / math.sqrt(1 / 6.5 + 1 / 1.5))
    assert final.log_odds == pytest.approx(-math.log(13))


def test_gaps_within_the_threshold_count_for_neither_side():
    pairs = [(" wait", -0.05), (" wait", 0.05), (" wait", -0.06), (" so", 0.06), (" so", 0.0)]
    assert {(w.word, w.suppressed, w.favoured) for w in polarity([rollout(*pairs)], minimum=1)} == {
        ("wait", 1, 0), ("so", 0, 1),
    }  # fmt: skip
    assert {w.word for w in polarity([rollout(*pairs)], threshold=0.01, minimum=2)} == {"wait"}


def test_pieces_count_in_lower_case_without_white_space_and_only_if_they_are_words():
    odd = [(piece, -1.0) for piece in ("12", "+", " don't", "\n\n", "<|im_end|>", "a1", "_", ".")]
    pairs = [("Wait", -1.0), (" wait", -1.0), ("WAIT\n", -1.0), (" so", 1.0), *odd]
    assert {w.word: w.suppressed + w.favoured for w in polarity([rollout(*pairs)], minimum=1)} == {"wait": 3, "so": 1}


def test_the_stop_token_has_no_word():
    row = rollout((" wait", -1.0), (" so", 1.0))
    row["tokens"].append("stop")
    row["offsets"].append(len(row["text"]))
    row["gap"].append(-1.0)
    assert {w.word for w in polarity([row], minimum=1)} == {"wait", "so"}


def test_words_below_the_minimum_are_not_returned():
    pairs = [(" wait", -1.0)] * 5 + [(" so", 1.0)] * 4
    assert [w.word for w in polarity([rollout(*pairs)])] == ["wait"]
    assert [w.word for w in polarity([rollout(*pairs)], minimum=4)] == ["wait", "so"]


def test_rollouts_without_offsets_are_read_by_their_pieces():
    row = rollout(*[(" wait", -1.0)] * 5, *[(" so", 1.0)] * 5)
    older = {name: row[name] for name in ("text", "tokens", "gap")}
    assert polarity([older]) == polarity([row])


def test_rollouts_without_a_gap_and_without_two_words_give_nothing():
    assert polarity([]) == []
    row = rollout((" wait", -1.0), (" so", 1.0))
    assert polarity([{**row, "gap": []}], minimum=1) == []
    del row["gap"]
    assert polarity([row], minimum=1) == []
    assert polarity([rollout(*[(" wait", -1.0)] * 9)]) == []


def test_the_order_of_rollouts_does_not_matter():
    draw = random.Random(0)
    rows = [rollout(*[(f" {draw.choice('abcd')}", draw.gauss(0, 1)) for _ in range(20)]) for _ in range(8)]
    words = polarity(rows)
    assert len(words) == 4 and [w.z for w in words] == sorted((w.z for w in words), reverse=True)
    assert polarity(rows[::-1]) == words


def test_suppressed_and_favoured_change_places_with_the_sign_of_the_gap():
    draw = random.Random(1)
    pairs = [(f" {draw.choice('abcd')}", draw.gauss(0, 1)) for _ in range(200)]
    words = polarity([rollout(*pairs)])
    turned = polarity([rollout(*[(piece, -gap) for piece, gap in pairs])])
    assert {w.word: w.z for w in turned} == pytest.approx({w.word: -w.z for w in words})


# ------------------------------------------------------------------------------------------------------- the command


def show(capsys, *argv):
    """What the command prints."""
    marker_polarity.main([str(word) for word in argv])
    return capsys.readouterr().out


def test_the_command_shows_both_halves_in_80_columns(tmp_path, capsys):
    run = fake_run.write(tmp_path / "run", steps=6, rollouts=8, tokens=40)
    printed = show(capsys, run)
    heading, *lines = printed.splitlines()
    assert heading.split() == ["suppressed", "z", "counts", "favoured", "z", "counts"]
    assert max(map(len, printed.splitlines())) <= 80
    # 6 steps of 2 problems with 8 rollouts of 40 tokens.
    assert "96 rollouts, 3840 tokens" in printed and "0.05 nats" in printed
    assert any("wait" in line for line in lines)


def test_the_command_takes_the_steps_and_the_count_that_are_asked(tmp_path, capsys):
    run = fake_run.write(tmp_path / "run", steps=6, rollouts=8, tokens=40)
    printed = show(capsys, run, "--steps=2-3", "--top=1")
    assert "32 rollouts, 1280 tokens" in printed  # 2 steps
    assert len(printed.splitlines()) == 1 + 1 + 2  # heading, one row, and the sentence below in two lines


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps=3"], "--steps: 3: expected A-B"),
        (["--steps=5-3"], "--steps: 5-3: expected A-B"),
        (["--steps=90-99"], "--steps: 90-99: "),
        (["--top=0"], "--top: 0: expected a whole number"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_a_wrong_flag_is_one_line(tmp_path, flags, message):
    run = fake_run.write(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        marker_polarity.main([str(run), *flags])


def test_a_folder_that_is_no_run_and_a_run_without_a_teacher_are_refused(tmp_path):
    with pytest.raises(UserError, match="RUN: .* holds no metrics.jsonl"):
        marker_polarity.main([str(tmp_path)])
    run = fake_run.write(tmp_path / "run")
    samples = run / "samples.jsonl"
    samples.write_text(samples.read_text().replace('"gap"', '"other"'))
    with pytest.raises(UserError, match=r"hold no gap \(method dasd\)"):
        marker_polarity.main([str(run)])
