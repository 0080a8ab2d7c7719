"""The laboratory: its task judges exactly, its splits share nothing, its tests are those of the textbook."""

import itertools
import json
import random

import jax
import numpy as np
import pytest
from scipy import stats

from benchmarks.lab import base, figures, plan, problems, runs, table, task
from benchmarks.runs import python
from dasd_jax import train
from dasd_jax.config_files import shipped
from dasd_jax.errors import UserError
from dasd_jax.mesh import make_mesh
from dasd_jax.text import prompts, wordings
from dasd_jax.text.tokenizer_files import load_tokenizer

PROBLEM = {"question": "3 1 2 5>7", "answer": "7"}
CLAIM = "3+1=4,4-2=2,2+5=7:7!"


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (CLAIM, 1),
        ("1*3=3,3+2=5~5,5-5=0:7?" + CLAIM, 1),
        ("3+1=5~4,4-2=2,2+5=7:7!", 1),  # the value that counts is the last one
        ("3+1=4~5,5-2=3,3+5=8:7!", 0),  # a false equation
        ("3+1=5,5-2=2,2+5=7:7!", 0),  # two of them that meet the target
        ("3+1=4,4-2=2,2+5=7:7", 0),  # not claimed
        ("3+1=4,4-2=2,2+5=7:7!?", 0),
        ("3+1=4,2-2=0,0+5=5:7!", 0),  # the second does not go on from the first
        ("3+2=5,5-1=4,4+5=9:7!", 0),  # another order, another result
        ("2+3=5,5+1=6,6-5=1:7!", 0),
        ("2+5=7:7!", 0),  # digits are left over
        ("", 0),
        ("!" * 10_000, 0),
    ],
)
def test_a_claim_is_right_only_if_every_equation_of_it_is_true(response, expected):
    assert task.reward(PROBLEM, response) == expected


def test_ways_are_those_of_plain_arithmetic():
    for digits in random.Random(0).sample(list(itertools.product(range(1, 10), repeat=4)), 50):
        for way, value in task.ways(digits).items():
            parts = [f"{operation}{digit}" for operation, digit in way.moves]
            nested = f"((({way.start}{parts[0]}){parts[1]}){parts[2]})"
            assert eval(nested) == value and 0 <= value <= 9
            assert sorted([way.start, *(digit for _, digit in way.moves)]) == sorted(digits)


def test_an_informed_writer_without_slips_is_always_right(monkeypatch):
    monkeypatch.setattr(task, "WRONG_INFORMED", 0.0)
    rng, puzzles = random.Random(0), list(task.puzzles())
    for puzzle in rng.sample(puzzles, 15):
        for way in puzzle.solutions:
            problem = {"question": puzzle.question, "answer": str(puzzle.target)}
            assert task.reward(problem, task.informed(rng, puzzle, way)) == 1


def test_traces_fit_and_hold_the_share_of_slips_that_is_declared():
    rng, puzzles = random.Random(0), list(task.puzzles())
    texts = [task.searched(rng, puzzle, problems.WIDTH) for puzzle in rng.sample(puzzles, 400)]
    assert max(map(len, texts)) <= problems.WIDTH
    unchecked = [equation.holds for text in texts for equation in task.equations(text) if not equation.checks]
    assert np.mean(unchecked) == pytest.approx(1 - task.WRONG, abs=0.03)


def test_splits_share_no_problem_even_in_another_order():
    cut = problems.splits()
    sets = {
        name: {(tuple(sorted(puzzle.digits)), puzzle.target) for puzzle in cut[name]}
        for name in ("easy", "hard", "learned")
    }
    assert not sets["learned"] & (sets["easy"] | sets["hard"])
    assert {puzzle.question for puzzle in cut["train"]} <= {puzzle.question for puzzle in cut["learned"]}
    assert all(len(cut[name]) == size for name, size in problems.SIZES.items())


def test_the_files_beside_the_code_are_those_that_it_writes(tmp_path):
    problems.write_problems(tmp_path / "problems")
    problems.write_tokenizer(tmp_path / "tokenizer")
    for folder in ("problems", "tokenizer"):
        for path in (tmp_path / folder).iterdir():
            assert path.read_bytes() == (base.LAB / folder / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("kind", "context", "read"),
    [
        ("partial_solution", prompts.partial_solution("3\n+1", "7"), "3+1"),
        ("skills", prompts.skill_and_mistake("3+1-2+5", "5+3-1-2"), "3+1-2+5"),
        ("solution", "3+1-2+5", "3+1-2+5"),
    ],
)
def test_a_teacher_reads_a_way_and_nothing_around_it(kind, context, read):
    data = shipped("lab").data
    words = wordings.read(data.instruction, "", data.privileged_wording, data.transition)
    tokenizer = load_tokenizer(str(base.LAB / "tokenizer"))
    messages = prompts.teacher_messages(
        PROBLEM["question"], instruction=words.instruction, context_kind=kind, context=context, wording=words.wording
    )
    assert tokenizer.decode(prompts.encode_prompt(tokenizer, messages)) == f"3 1 2 5>7@{read}|"


def test_a_skill_leads_to_its_target_and_a_mistake_does_not():
    bank = [json.loads(line) for line in (base.LAB / "problems" / "skills.jsonl").read_text().splitlines()]
    for line in bank:
        digits, target = line["question"].split(">")
        values = {str(way): value for way, value in task.ways(tuple(map(int, digits.split()))).items()}
        assert (values[line.get("skill") or line["mistake"]] == int(target)) == ("skill" in line)
    assert len(bank) == 2 * problems.SKILLS


def test_figures_of_answers():
    lines = [
        {"text": [CLAIM, "3+1=5,5-2=3~3,3+5=8:7?x"], "reward": [1, 0], "length": [21, 24], "finished": [True, False]},
        {"text": ["x", "x"], "reward": [0, 0], "length": [2, 2], "finished": [True, True]},
    ]
    found = figures.of_answers([{**line, "extracted": [None, None]} for line in lines])
    assert found["avg"] == 0.25 and found["pass@2"] == 0.5 and found["length"] == 12.25
    assert found["step_accuracy"] == 5 / 6 and found["checked_accuracy"] == 1
    assert found["exploration_per_1k"] == pytest.approx(1000 * 2 / 49)
    assert found["revised_frac"] == 0.25 and found["retried_success"] == 0 and found["first_success"] == 0.25


def test_choices_are_starts_and_operations():
    marked = base.is_choice("1*3=3:7?3-1=2", 14)
    assert [place for place in range(14) if marked[place]] == [0, 1, 8, 9]


def test_paired_differences_are_scipys():
    first, second = np.array([0.5, 0.6, 0.7, 0.4]), np.array([0.45, 0.5, 0.62, 0.41])
    found = table.paired(first, second)
    assert found.p == pytest.approx(stats.ttest_rel(first, second, alternative="greater").pvalue)
    interval = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert table.paired(first, second, above=0.3).p > 0.9


def test_holm_corrects_in_order():
    assert table.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@pytest.mark.parametrize("name", plan.ARMS)
def test_every_method_has_nine_trials_that_its_config_takes(name):
    trials = plan.ARMS[name].trials()
    assert len({str(fields) for fields in trials}) == 9
    for fields in trials:
        shipped(f"lab:{name},seed=2").update_from_flattened_dict(fields)


def test_another_method_is_refused():
    with pytest.raises(UserError, match="lab.py: nothing: expected seed=N, base, or a method: grpo, dasd"):
        shipped("lab:nothing")


@pytest.mark.slow
def test_quick_prints_a_row_of_each_of_two_methods():
    rows = [line for line in python("benchmarks.lab", "--quick").splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| GRPO", "| conformity"]


@pytest.mark.slow
def test_conformity_ends_doubt_and_novelty_breaks_steps(tmp_path, monkeypatch):
    """The two signs that are far from noise: a seed moves E(y) by about 2 and StepAcc by about .005."""
    monkeypatch.setattr(runs, "WORK", tmp_path)
    monkeypatch.setattr(train, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))

    def of(name, **fields):
        job = runs.Job("test", name, name, plan.SEEDS[0], {"optim.learning_rate": 3e-4, **fields}, reported=False)
        return runs.run(job)["validation"]

    alone, strength = of("grpo"), {"objective.beta": 0.3}
    assert of("conformity", **strength)["exploration_per_1k"] < alone["exploration_per_1k"] - 6
    assert of("novelty", **strength)["step_accuracy"] < alone["step_accuracy"] - 0.04
