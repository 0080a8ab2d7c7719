"""The page without a browser: what it holds, what it lets run, and how large it is."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import fake_run
import hostile_run as hostile
import numpy as np
import pytest
from reading import Page, rollouts, unpacked

from dasd_jax.errors import UserError
from dasd_jax.page import build
from dasd_jax.page.pack import evenly
from dasd_jax.run import records

ROOM = Path(build.__file__).parent
SCRIPTS = "".join(path.read_text(encoding="utf-8") for path in sorted(ROOM.glob("*.js")))
WARNING = {"step": 1, "until": 2, "text": hostile.HOSTILE}


def page_of(*runs, max_mb=15.0):
    return Page(build.report(runs, max_mb, lambda run: [WARNING]).html)


@pytest.fixture
def run(tmp_path):
    return fake_run.write(tmp_path / "run", steps=5)


def edit(path, change):
    """Writes every object of a .jsonl file as `change` returns it."""
    lines = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    path.write_bytes(b"".join(json.dumps(change(line)).encode() + b"\n" for line in lines))


# ------------------------------------------------------------------------------------------------ safety


def test_the_policy_names_the_hashes_of_the_only_script_and_style(run):
    page = page_of(run)
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    assert "unsafe" not in policy and policy.startswith("default-src 'none';")
    for kind in ("script", "style"):
        (text,) = (text for tag, a, text in page.texts if tag == kind and not a)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert re.findall(rf"{kind}-src ([^;]*)", policy) == [f"'sha256-{digest}'"]
    assert {"base-uri 'none'", "form-action 'none'"} <= {part.strip() for part in policy.split(";")}


def test_nothing_in_the_page_loads_or_runs_anything_else(run):
    for tag, attributes in page_of(run).elements:
        assert not {"src", "style", "srcset", "action", "data"} & attributes.keys(), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert attributes.get("href", "#").startswith("#")


@pytest.mark.parametrize("name", ["innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function("])
def test_the_scripts_never_read_text_as_markup_or_code(name):
    assert name not in SCRIPTS


def test_hostile_text_adds_no_element_and_ends_no_block(tmp_path, run):
    page, usual = page_of(hostile.write(tmp_path)), page_of(run)

    def elements(page):
        return [(tag, a) for tag, a in page.elements if tag != "meta" and not a.get("id", "").startswith("step-")]

    assert elements(page) == elements(usual)
    every = json.dumps([page.data, *(unpacked(page.block(name))[0] for name in page.blocks if name != "data")])
    assert "onerror" in every  # it is there, as text
    for mark in ("\\u202e", "\\u2028", "\\ud800", "\\u001b", "\\u0000"):
        assert mark not in every


def test_long_texts_are_cut_and_say_so(tmp_path):
    page = page_of(hostile.write(tmp_path))
    piece = rollouts(page.block("step-0-1"))[0][0]["pieces"][1]
    assert len(piece) < 1000 and piece.endswith(f"({hostile.LONG - 500:,} more characters)")


# ------------------------------------------------------------------------------------------------ content


def test_the_blocks_give_back_the_numbers_of_the_log(run):
    page = page_of(run)
    for problem in records.samples(run):
        index = dict(page.data["runs"][0]["index"])[problem["step"]]
        assert all(len(verdicts) == len(problem["rollouts"]) for verdicts in index)
    for step in range(1, 6):
        logged = [problem["rollouts"] for problem in records.samples(run) if problem["step"] == step]
        for ours, theirs in zip(sum(rollouts(page.block(f"step-0-{step}")), []), sum(logged, []), strict=True):
            assert ours["pieces"] == records.pieces(theirs)
            for name in ("entropy", "gap", "route", "gate", "dense", "credit"):
                np.testing.assert_allclose(ours["arrays"][name], theirs[name], rtol=2**-11, atol=1e-7)


def test_marks_say_direction_strength_and_fork(run):
    rollout = next(records.samples(run))["rollouts"][0]
    marks = [int(mark, 32) for mark in rollouts(page_of(run).block("step-0-1"))[0][0]["marks"]]
    directions, strengths = np.array(records.directions(rollout)), np.array(records.strengths(rollout))
    assert [(0, 1, -1)[mark % 15 // 5] for mark in marks] == directions.tolist()
    assert [mark >= 15 for mark in marks] == records.forks(rollout)
    levels = np.array([mark % 5 for mark in marks])
    assert ((levels > 0) == (directions != 0)).all()
    acting = np.argsort(strengths)[directions[np.argsort(strengths)] != 0]
    assert (np.diff(levels[acting]) >= 0).all() and levels.max() == 4


def test_verdicts_tell_right_wrong_and_truncated(run):
    def change(problem):
        for place, rollout in enumerate(problem["rollouts"]):
            rollout |= {"reward": float(place), "finished": place == 0}
        return problem

    edit(run / "samples.jsonl", change)
    assert page_of(run).data["runs"][0]["index"][0] == [1, ["wR", "wR"]]


def test_a_graded_reward_below_that_of_a_right_answer_is_wrong(run):
    """As in Pass@k: a response is right from a reward of 0.99 on, and one of 0.2 or 0.98 is wrong."""
    rewards = [0.2, 0.98, 0.99, 1.0]

    def graded(problem):
        [first, *_] = problem["rollouts"]
        return problem | {"rollouts": [first | {"reward": reward} for reward in rewards]}

    edit(run / "samples.jsonl", graded)
    for step in (0, 5):
        edit(run / "heldout" / f"{step}.jsonl", lambda line: line | {"reward": rewards})
    page = page_of(run)
    assert page.data["runs"][0]["index"][0] == [1, ["wwrr", "wwrr"]]
    for problem in unpacked(page.block("answers-0"))[0]["problems"]:
        assert [[each["right"] for each in side] for side in problem["sides"]] == [[False, False, True, True]] * 2


def test_the_plane_has_an_even_sample_of_every_step(run):
    head, numbers = unpacked(page_of(run).block("plane-0"))
    assert head["steps"] == [1, 2, 3, 4, 5] and head["logged"] == [2 * 2 * 12] * 5
    assert head["drawn"] == head["logged"]  # a small run is drawn whole
    entropy, gap, share = numbers.reshape(3, -1)
    logged = [rollout for problem in records.samples(run) for rollout in problem["rollouts"]]
    np.testing.assert_allclose(entropy, np.concatenate([each["entropy"] for each in logged]), rtol=2**-11, atol=1e-7)
    np.testing.assert_allclose(gap, np.concatenate([each["gap"] for each in logged]), rtol=2**-11, atol=1e-7)
    assert np.sign(share).tolist() == sum((records.directions(each) for each in logged), [])
    assert (np.abs(share) <= 1).all()


def test_curves_hold_the_log_to_four_digits_and_errors_of_evaluations(run):
    data = page_of(run).data["runs"][0]
    place, values = data["values"]["reward/mean"]
    lines = records.metrics(run)[1:]
    assert data["step_lists"][place] == [line["step"] for line in lines]
    np.testing.assert_allclose(values, [line["reward/mean"] for line in lines], rtol=5e-4)
    assert data["step_lists"][data["values"]["eval/math/avg@4"][0]] == [0, 5]
    assert data["errors"]["eval/math/avg@4"] == data["errors"]["eval/avg@4"] == [0.1, 0.1]


def test_seeds_of_different_length_keep_the_same_steps_of_long_curves(tmp_path):
    """A mean over seeds is of all of them: none is thinned to steps of its own. A rarer number keeps its own."""
    lengths = (2500, 2600, 900)
    runs = [fake_run.write(tmp_path / f"dasd-seed{seed}", seed=seed) for seed in range(3)]
    for run, length in zip(runs, lengths, strict=True):
        lines = [{"step": step, "reward/mean": step / 2} for step in range(length + 1)]
        for line in lines[1::8]:
            line["policy/logp_gap_mean"] = 0.5
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps = {"reward/mean": [], "policy/logp_gap_mean": []}
    for data in page_of(*runs).data["runs"]:
        for name, found in steps.items():
            place, values = data["values"][name]
            found.append(data["step_lists"][place])
            assert len(values) == len(found[-1]) <= 1000
    longest = steps["reward/mean"][1]
    assert len(longest) == 1000 and (longest[0], longest[-1]) == (0, 2600)
    assert steps["reward/mean"] == [[step for step in longest if step <= length] for length in lengths]
    assert steps["policy/logp_gap_mean"] == [list(range(1, length + 1, 8)) for length in lengths]


def test_settings_that_differ_are_listed_and_no_others(tmp_path):
    runs = [fake_run.write(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 1))]
    config = json.loads((runs[1] / "config.json").read_text())
    config["objective"]["beta"], config["data"] = 0.0, {"now": "2026-01-01"}
    del config["optim"]
    (runs[1] / "config.json").write_text(json.dumps(config))
    rows = {row["name"]: row["values"] for row in page_of(*runs).data["settings"]}
    assert rows == {"objective.beta": [0.1, 0.0], "optim.learning_rate": [1e-6, None], "run.seed": [0, 1]}


def test_runs_that_differ_in_their_seed_alone_are_one_series(tmp_path):
    runs = [fake_run.write(tmp_path / f"dasd-seed{seed}", seed=seed) for seed in range(3)]
    runs.insert(1, fake_run.write(tmp_path / "long", steps=6))
    groups = page_of(*runs).data["groups"]
    assert groups == [{"name": "dasd, 3 seeds", "runs": [0, 2, 3]}, {"name": "long", "runs": [1]}]


CHANGES = [
    {"step": 3, "field": "optim.learning_rate", "before": 1e-6, "after": 3e-6},
    {"step": 3, "field": "optim/learning_rate", "before": 4e-7, "after": 1.2e-6},
]
ORIGIN = {"run": "/runs/first", "step": 50, "weights": "ab" * 32, "optimizer": False}


def with_history(run, changes=(), origin=None):
    """Gives a made-up run changes.jsonl and from.json."""
    if changes:
        (run / "changes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changes))
    if origin:
        (run / "from.json").write_text(json.dumps(origin))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((CHANGES,), ()),
        ((CHANGES,), ([CHANGES[0] | {"step": 4}, CHANGES[1] | {"step": 4}],)),
        ((CHANGES,), ([CHANGES[0] | {"before": 2e-6}, CHANGES[1]],)),
        (((), ORIGIN), ()),
        (((), ORIGIN), ((), ORIGIN | {"step": 40})),
        (((), ORIGIN), ((), ORIGIN | {"weights": "cd" * 32})),
        (((), ORIGIN), ((), ORIGIN | {"optimizer": True})),
    ],
)
def test_runs_that_began_or_were_changed_in_other_ways_are_series_of_their_own(one, other, tmp_path):
    """Runs 0 and 2 as `one`, runs 1 and 3 as `other`, all with the same config.json but for the seed."""
    runs = [fake_run.write(tmp_path / f"r{seed}", seed=seed) for seed in range(4)]
    for run, past in zip(runs, (one, other, one, other), strict=True):
        with_history(run, *past)
    assert [group["runs"] for group in page_of(*runs).data["groups"]] == [[0, 2], [1, 3]]


def test_the_folder_of_the_run_that_two_started_from_does_not_part_them(tmp_path):
    runs = [fake_run.write(tmp_path / f"r{seed}", seed=seed) for seed in range(2)]
    for run in runs:
        with_history(run, CHANGES, ORIGIN | {"run": f"/copies/{run.name}"})
    assert [group["runs"] for group in page_of(*runs).data["groups"]] == [[0, 1]]


def test_what_a_run_began_with_and_was_changed_to_is_said(run):
    assert page_of(run).data["runs"][0]["notes"] == []
    with_history(run, CHANGES, ORIGIN)
    assert page_of(run).data["runs"][0]["notes"] == [
        "started from step 50 of /runs/first",
        "optim.learning_rate 1e-06 → 3e-06 from step 3",
    ]
    with_history(run, origin=ORIGIN | {"optimizer": True})
    assert page_of(run).data["runs"][0]["notes"][0].endswith("of /runs/first, with the optimiser’s moments")
    (run / "from.json").write_text('{"run": "/runs/first"}')
    with pytest.raises(UserError, match=r"RUN: .*from\.json is damaged"):
        page_of(run)


def test_prompts_that_tell_the_date_leave_seeds_together_and_other_problems_do_not(tmp_path):
    runs = [fake_run.write(tmp_path / f"dasd-seed{seed}", seed=seed) for seed in range(3)]
    for run, problems, prompts in zip(runs, ("a", "a", "b"), ("x", "y", "z"), strict=True):
        config = json.loads((run / "config.json").read_text())
        config["problems"] = {
            "training problems": problems,
            "training prompts": prompts,
            "prompts to evaluate": prompts,
        }
        (run / "config.json").write_text(json.dumps(config))
    data = page_of(*runs).data
    assert [group["runs"] for group in data["groups"]] == [[0, 1], [2]]
    assert [row["name"] for row in data["settings"]] == ["run.seed", "problems.training problems"]


def test_runs_of_one_name_are_told_apart_by_the_folders_above(tmp_path):
    runs = [fake_run.write(tmp_path / name / "run") for name in ("a", "b")]
    assert [run["name"] for run in page_of(*runs).data["runs"]] == ["a/run", "b/run"]


def test_the_rise_is_that_of_paired_problems(run):
    for step, each in ((0, [0.0, 0.5, 1.0, 0.5]), (5, [0.5, 0.5, 1.0, 1.0])):
        path = run / "heldout" / f"{step}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"per_problem": each}))
    held = page_of(run).data["runs"][0]["heldout"]
    # Changes 0.5, 0, 0, 0.5: mean 0.25, standard deviation sqrt(1/12), by sqrt(4).
    assert held["rise"] == 0.25 and held["rise_error"] == pytest.approx((1 / 12) ** 0.5 / 2)


def test_errors_of_one_problem_are_unknown(run):
    for step, average in ((0, 0.25), (5, 0.75)):
        path = run / "heldout" / f"{step}.json"
        found = json.loads(path.read_text())
        one = {"problems": 1, "avg@4": average, "standard_error": None}
        found["benchmarks"]["math"] |= one
        path.write_text(json.dumps(found | one | {"per_problem": [average]}))
    data = page_of(run).data["runs"][0]
    held = data["heldout"]
    assert [held[side]["average"] for side in ("before", "after")] == [0.25, 0.75] and held["rise"] == 0.5
    assert [held["before"]["error"], held["after"]["error"], held["rise_error"]] == [None] * 3
    assert not any(value is not None for errors in data["errors"].values() for value in errors)


def evaluated(step, average, text):
    """heldout/STEP.json and .jsonl of four problems, all with the same average and answer."""
    figures = {"problems": 4, "avg@4": average, "pass@4": average, "standard_error": 0.1}
    result = {**figures, "samples": 4, "macro": figures, "benchmarks": {"math": figures}, "per_problem": [average] * 4}
    line = {
        "source": "s", "question": "?", "answer": "1", "text": [text] * 4, "reward": [0.0] * 4,
        "extracted": [None] * 4, "length": [1] * 4, "finished": [True] * 4, "error": [""] * 4,
    }  # fmt: skip
    return result, [{"example_id": i, **line} for i in range(4)]


@pytest.mark.parametrize("field", ["run.eval_temperature", "run.eval_problems"])
def test_evaluations_that_were_made_in_another_way_are_not_compared(run, field):
    """Sampled at steps 0 and 3, greedy since: step 3 was evaluated anew, its line in the log is of the old way."""
    for step, average, text in ((0, 0.2, "sampled"), (3, 0.5, "greedy"), (5, 0.75, "greedy")):
        result, lines = evaluated(step, average, text)
        (run / "heldout" / f"{step}.json").write_text(json.dumps(result))
        (run / "heldout" / f"{step}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    old = {"eval/avg@4": 0.25, "eval/length_mean": 10.0}
    edit(run / "metrics.jsonl", lambda line: line | (old if line["step"] in (0, 3, 5) else {}))
    changed = [(3, "optim.learning_rate", 1e-6, 2e-6), (4, field, 1.0, 0.0), (5, "run.steps", 4, 5)]
    names = ("step", "field", "before", "after")
    (run / "changes.jsonl").write_text("".join(json.dumps(dict(zip(names, of))) + "\n" for of in changed))  # noqa: B905
    page = page_of(run)
    [data] = page.data["runs"]
    held = data["heldout"]
    assert (held["before"]["step"], held["after"]["step"]) == (3, 5)
    assert (held["before"]["average"], held["after"]["average"], held["rise"]) == (0.5, 0.75, 0.25)
    for name in ("eval/avg@4", "eval/math/avg@4"):
        place, values = data["values"][name]
        assert (data["step_lists"][place], values) == ([3, 5], [0.5, 0.75])
    place, values = data["values"]["eval/length_mean"]
    assert (data["step_lists"][place], values) == ([5], [10.0])
    head, _ = unpacked(page.block("answers-0"))
    assert head["steps"] == [3, 5]
    assert {each["text"] for problem in head["problems"] for side in problem["sides"] for each in side} == {"greedy"}
    assert data["evaluated_since"] == 3
    (run / "changes.jsonl").unlink()
    [data] = page_of(run).data["runs"]
    assert (data["heldout"]["before"]["step"], data["evaluated_since"]) == (0, 0)


def test_an_evaluation_of_a_step_that_is_not_in_the_log_is_not_of_this_run(run):
    """It was left behind by steps that are done again, or is of a step whose line is not written yet."""
    result, lines = evaluated(7, 0.99, "left behind")
    (run / "heldout" / "7.json").write_text(json.dumps(result))
    (run / "heldout" / "7.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(run)
    [data] = page.data["runs"]
    assert data["heldout"]["after"]["step"] == 5
    assert data["step_lists"][data["values"]["eval/math/avg@4"][0]] == [0, 5]
    assert unpacked(page.block("answers-0"))[0]["steps"] == [0, 5]


def test_answers_of_the_first_and_the_last_evaluation_stand_side_by_side(run):
    head, _ = unpacked(page_of(run).block("answers-0"))
    assert head["steps"] == [0, 5] and len(head["problems"]) == 4
    for i, step in enumerate((0, 5)):
        for ours, line in zip(head["problems"], records.answers(run / "heldout" / f"{step}.jsonl"), strict=True):
            assert ours["question"] == line["question"]
            assert [each["text"] for each in ours["sides"][i]] == line["text"]
            assert [each["right"] for each in ours["sides"][i]] == [reward == 1 for reward in line["reward"]]


# ------------------------------------------------------------------------------------------------ size


@pytest.mark.parametrize("max_mb", [0.3, 0.4, 0.5])
def test_the_page_is_not_larger_than_allowed_and_keeps_the_first_and_last_step(tmp_path, max_mb):
    runs = [fake_run.write(tmp_path / f"{i}", steps=steps, tokens=100, seed=i) for i, steps in enumerate((40, 10))]
    made = build.report(runs, max_mb, lambda run: [])
    assert len("".join(made.html).encode()) <= max_mb * 1e6
    page = Page(made.html)
    for i, run in enumerate(page.data["runs"]):
        steps = [step for step, _ in run["index"]]
        assert (steps[0], steps[-1]) == (1, run["steps"]) and run["logged_steps"] == run["steps"]
        assert {f"step-{i}-{step}" for step in steps} == {name for name in page.blocks if name.startswith(f"step-{i}-")}
        gaps = np.diff(steps)
        assert gaps.max() - gaps.min() <= 1
    left = [run for run in page.data["runs"] if len(run["index"]) < run["logged_steps"]]
    assert bool(left) and len(made.notes) == len(left)


def test_a_size_below_what_the_numbers_need_is_refused_with_one_that_is_enough(run):
    with pytest.raises(UserError, match="--max_mb: 0.01: expected at least") as refused:
        page_of(run, max_mb=0.01)
    least = float(re.search(r"at least ([\d.]+)", str(refused.value))[1])
    page_of(run, max_mb=least)
    with pytest.raises(UserError, match="at least"):
        page_of(run, max_mb=least - 0.01)


def test_evenly_keeps_both_ends_and_even_distances():
    for count in range(2, 12):
        places = evenly(range(11), count)
        assert len(places) == count and places[0] == 0 and places[-1] == 10
        assert max(np.diff(places)) - min(np.diff(places)) <= 1


# ------------------------------------------------------------------------------------------------ runs of all kinds


def test_a_run_that_is_still_written_is_shown_up_to_its_last_whole_line(run):
    for name in ("metrics.jsonl", "samples.jsonl"):
        path = run / name
        path.write_bytes(path.read_bytes()[:-30])
    (run / "done.json").unlink()
    data = page_of(run).data["runs"][0]
    assert data["steps"] == 4 and data["planned"] == 5 and not data["finished"]


def test_a_run_without_samples_and_evaluations_has_its_curves(run):
    (run / "samples.jsonl").unlink()
    for path in (run / "heldout").iterdir():
        path.unlink()
    page = page_of(run)
    assert page.blocks == ["data"] and "reward/mean" in page.data["runs"][0]["values"]


def test_a_run_without_teacher_has_rollouts_and_no_plane(run):
    def change(problem):
        for rollout in problem["rollouts"]:
            for name in ("gap", "route", "gate", "dense", "alternatives"):
                del rollout[name]
        return problem

    edit(run / "samples.jsonl", change)
    page = page_of(run)
    assert "plane-0" not in page.blocks
    rollout = rollouts(page.block("step-0-1"))[0][0]
    assert rollout["names"] == ["entropy", "credit"] and set(rollout["marks"]) <= {"0", "f"}


def test_an_older_run_is_shown(run):
    def lines():
        for problem in records.samples(run):
            for rollout in problem["rollouts"]:
                kept = ("text", "reward", "score", "finished", "tokens", "entropy", "gap", "credit")
                about = {name: problem[name] for name in ("step", "source", "question", "answer")}
                yield about | {name: rollout[name] for name in kept}

    (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines()))
    edit(run / "heldout" / "5.jsonl", lambda line: {"step": 5})
    page = page_of(run)
    assert unpacked(page.block("answers-0"))[0]["steps"] == [0]
    assert len(rollouts(page.block("step-0-1"))) == 4


def test_a_damaged_line_is_one_line_of_error(run):
    def change(problem):
        problem["rollouts"][0]["route"] = [1.0]
        return problem

    edit(run / "samples.jsonl", change)
    with pytest.raises(UserError, match=r"RUN: .*samples\.jsonl is damaged"):
        page_of(run)


def test_what_is_no_run_or_given_twice_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="holds no metrics.jsonl"):
        page_of(tmp_path)
    with pytest.raises(UserError, match="is given twice"):
        page_of(run, run.parent / "." / run.name)


# ------------------------------------------------------------------------------------------------ the page's own files


def luminance(colour):
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4) @ (
        0.2126,
        0.7152,
        0.0722,
    )


def contrast(one, other):
    """Of WCAG 2.2."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


COLOURS = dict(re.findall(r"--(\w+): light-dark\(([^)]*)\)", (ROOM / "page.css").read_text()))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_has_a_contrast_of_at_least_four_and_a_half(scheme):
    colour = {name: pair.split(", ")[scheme] for name, pair in COLOURS.items()}
    for token in ("a1", "a2", "a3", "a4", "r1", "r2", "r3", "r4"):
        assert contrast(colour["on"], colour[token]) >= 4.5, token
    for text in ("ink", "quiet", "link", "good", "bad", "late"):
        assert contrast(colour[text], colour["paper"]) >= 4.5 and contrast(colour[text], colour["raised"]) >= 4.5, text
    for shape in ("s0", "s1", "s2", "s3", "s4", "s5", "attract", "repel"):
        assert contrast(colour[shape], colour["paper"]) >= 3, shape


def test_every_element_that_the_scripts_look_for_is_in_the_page():
    ids = set(re.findall(r'id="([\w-]+)"', (ROOM / "page.html").read_text(encoding="utf-8"))) | {"data"}
    named = set(re.findall(r'byId\("([\w-]+)"\)', SCRIPTS))
    assert named and named <= ids


def test_the_page_is_made_without_jax():
    code = "import sys; import dasd_jax.page.build; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOM.parents[1])


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="--output: "):
        build.write(tmp_path / ("x" * 252 + ".html"), ["text"])
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="--output: "):
        build.write(tmp_path / "taken", ["text"])
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
