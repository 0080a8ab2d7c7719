"""The file of an interrupted evaluation: what it keeps, what it forgets, and whose it is; the table of a whole one."""

import json

import pytest

from dasd_jax import files
from dasd_jax.data.sources import Problem
from dasd_jax.errors import UserError
from dasd_jax.evaluate import read_again, table
from dasd_jax.run.evaluation import Answers, as_line, summary
from dasd_jax.run.partial import Partial, check_replaceable

IDENTITY = {"checkpoint": "4", "run.eval_samples": 2, "data.benchmarks": ("tfds:a",)}


PROBLEMS = [Problem(question=f"{i}?", answer="1", source="gym:lcm", index=i, scorer="math") for i in range(10)]


def answers(example_id):
    texts, extracted = ["so", "1\u2028"], [None, "1"]
    return Answers(example_id, texts, extracted, [0.0, 1.0], [3, 4], [True, False], ["parse", ""])


def lines(*example_ids):
    return [as_line(PROBLEMS, answers(i)) for i in example_ids]


def test_what_was_appended_is_known_to_the_next_start(tmp_path):
    path = tmp_path / "eval" / "4.partial.jsonl"
    first = Partial(path, IDENTITY)
    assert first.known == []
    first.append(lines(7, 2))
    first.append(lines(5))
    assert Partial(path, IDENTITY).known == [answers(7), answers(2), answers(5)]


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_line_that_a_kill_cut_short_is_forgotten(tmp_path, kept):
    path = tmp_path / "4.partial.jsonl"
    Partial(path, IDENTITY).append(lines(7, 2))
    written = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(written[: kept + 1])[:-5])
    again = Partial(path, IDENTITY)
    assert len(again.known) == max(kept - 1, 0)
    again.append(lines(9))
    assert Partial(path, IDENTITY).known == [*again.known, answers(9)]


def test_a_file_without_an_answer_is_nobodys(tmp_path):
    path = tmp_path / "4.partial.jsonl"
    Partial(path, IDENTITY)
    Partial(path, IDENTITY | {"run.eval_samples": 128}).append(lines(7))
    assert Partial(path, IDENTITY | {"run.eval_samples": 128}).known == [answers(7)]


def test_a_file_of_other_settings_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "4.partial.jsonl"
    Partial(path, IDENTITY).append(lines(7))
    before = path.read_bytes()
    with pytest.raises(UserError, match="was written with run.eval_samples = 2, not 128: expected the same settings"):
        Partial(path, IDENTITY | {"run.eval_samples": 128})
    path.write_bytes(before + b"half a line\n")
    with pytest.raises(UserError, match="is damaged"):
        Partial(path, IDENTITY)
    assert path.read_bytes() == before + b"half a line\n"


def test_a_result_is_replaced_only_by_one_with_the_same_settings(tmp_path):
    path = tmp_path / "eval" / "4.json"
    check_replaceable(path, IDENTITY)
    files.write_json(path, {"avg@2": 0.5, "settings": IDENTITY})
    check_replaceable(path, IDENTITY)
    with pytest.raises(UserError, match="4.json was written with run.eval_samples = 2, not 3: .* renamed to keep both"):
        check_replaceable(path, IDENTITY | {"run.eval_samples": 3})
    path.unlink()  # the answers alone are as much worth
    Partial(path.with_suffix(".jsonl"), IDENTITY).append(lines(7))
    check_replaceable(path, IDENTITY)
    with pytest.raises(UserError, match="4.jsonl was written with run.eval_samples = 2, not 3: .* renamed to keep"):
        check_replaceable(path, IDENTITY | {"run.eval_samples": 3})
    for content in ({"avg@2": 0.5}, {"avg@2": 0.5, "settings": []}):
        files.write_json(path, content)
        with pytest.raises(UserError):
            check_replaceable(path, IDENTITY)


@pytest.mark.parametrize("width", [40, 80, None])
def test_the_table_of_many_samples_fits_the_terminal(width):
    """64 samples have seven estimates of Pass@k: too many columns for 80 cells. A file has them beside each other."""
    names = ("aime25", "aime26", "math500")
    problems = [Problem(question="?", answer="1", source=f"tfds:{name}", index=0, scorer="math") for name in names]
    found = [
        Answers(i, ["so"] * 64, ["1"] * 64, [1.0] + [0.0] * 63, [900] * 64, [True] * 64, [""] * 64) for i in range(3)
    ]
    text = table(summary(problems, found), width)
    blocks = [block.split("\n") for block in text.split("\n\n")]
    assert (len(blocks) > 1) == (width is not None) and max(map(len, text.split("\n"))) <= (width or 200)
    assert all([line.split()[0] for line in block[2:]] == [*names, "macro"] for block in blocks)
    heads = " ".join(block[0].removeprefix("benchmark") for block in blocks).split()
    assert heads[:2] + heads[-4:] == ["problems", "avg@64", "length", "truncated", "no", "answer"]
    assert heads[2:-4] == [f"pass@{2**i}" for i in range(1, 7)]


@pytest.mark.parametrize(
    ("rewards", "shown"),
    [
        ([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]], False),
        ([[0.0, 1.0, 0.0], [0.5, 1.0, 0.5]], True),  # of the second benchmark alone: right is one of three, not .667
    ],
)
def test_pass_at_1_stands_where_it_is_not_the_average(rewards, shown):
    """Three samples for each of two problems, each the whole of a benchmark."""
    problems = [
        Problem(question="?", answer="1", source=f"gym:t{i}", index=i, scorer="math") for i in range(len(rewards))
    ]
    found = [Answers(i, ["x"] * 3, [None] * 3, each, [1] * 3, [True] * 3, [""] * 3) for i, each in enumerate(rewards)]
    head, _, *rows = table(summary(problems, found), None).split("\n")
    assert head.split()[2:5] == ["avg@3", *(["pass@1", "pass@2"] if shown else ["pass@2", "pass@3"])]
    if shown:
        # benchmark, problems, avg@3 ± error, pass@1, …
        assert [row.split()[5] for row in rows] == ["0.333", "0.333", "0.333"]
        assert [row.split()[2] for row in rows] == ["0.333", "0.667", "0.500"]


def test_unjudged_answers_and_right_ones_that_were_cut_off_have_a_column_where_there_are_any():
    """Of the second benchmark's four answers one is unjudged, and one right although it was cut off."""
    problems = [Problem(question="?", answer="1", source=f"gym:t{i}", index=i, scorer="math") for i in range(2)]
    whole = Answers(0, ["x"] * 4, ["1"] * 4, [1.0] * 4, [1] * 4, [True] * 4, [""] * 4)
    cut = Answers(
        1, ["x"] * 4, ["1"] * 4, [1.0, 1.0, 0.0, 0.0], [1] * 4, [False, True, False, True], ["", "", "timeout", ""]
    )
    head, _, *rows = table(summary(problems, [whole, cut]), None).split("\n")
    assert head.split()[-7:] == ["truncated", "no", "answer", "unjudged", "truncated", "but", "right"]
    assert [row.split()[-2:] for row in rows] == [["0.000", "0.000"], ["0.250", "0.250"], ["0.125", "0.125"]]
    head, *_ = table(summary(problems, [whole]), None).split("\n")
    assert head.split()[-3:] == ["truncated", "no", "answer"]


def test_the_figures_of_a_past_evaluation_are_made_again_from_its_answers(tmp_path, capsys):
    """What was written by an older version has no figures of health; everything else stays as it was."""
    found = summary(PROBLEMS, [answers(7), answers(2)])
    path = tmp_path / "eval" / "4.json"
    files.write_json(path, {name: value for name, value in found.items() if name != "health"} | {"settings": IDENTITY})
    Partial(path.with_suffix(".jsonl"), IDENTITY).append(lines(7, 2))
    for which in ("", "4"):
        read_again(tmp_path, which)
        assert json.loads(path.read_text()) == json.loads(json.dumps(found | {"settings": IDENTITY}))
        assert "epistemic_per_1k" in capsys.readouterr().out
    before = path.read_bytes()
    for which in ("5", "start"):
        with pytest.raises(UserError, match="--health: .*expected --checkpoint to name an evaluation that kept"):
            read_again(tmp_path, which)
    path.with_suffix(".jsonl").write_text('{"example_id": 1}\n{"example_id": 2}\n')
    with pytest.raises(UserError, match="is damaged"):
        read_again(tmp_path, "4")
    assert path.read_bytes() == before


def test_health_of_a_run_without_evaluations_says_how_to_make_one(tmp_path):
    with pytest.raises(UserError, match=r"--health: .*eval holds no evaluation of a step with stored answers: "):
        read_again(tmp_path, "")
