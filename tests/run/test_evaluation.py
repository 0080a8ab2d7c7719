"""The figures of evaluation, by hand and by enumeration."""

import dataclasses
import itertools
import json
import types
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dasd_jax.data.sources import Problem
from dasd_jax.model import param_table
from dasd_jax.model.presets import preset
from dasd_jax.run import evaluation, heldout
from dasd_jax.run.evaluation import (
    Answers,
    as_line,
    of_line,
    pass_at_k,
    rise,
    standard_error,
    summary,
    texts_of,
)
from dasd_jax.run.failures import Failures
from dasd_jax.verify.extract import extract_answer
from dasd_jax.verify.verifier import Verdict


def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer():
    for correct in range(6):
        samples = [1] * correct + [0] * (5 - correct)
        for k in range(1, 6):
            subsets = list(itertools.combinations(samples, k))
            expected = sum(map(any, subsets)) / len(subsets)
            assert pass_at_k(5, np.array([correct]), k) == pytest.approx(expected)


def test_pass_at_1_is_the_average_and_pass_at_n_is_any():
    correct = np.array([0, 1, 4, 3])
    assert pass_at_k(4, correct, 1) == pytest.approx(8 / 16)
    assert pass_at_k(4, correct, 4) == pytest.approx(3 / 4)


def test_the_standard_error_is_by_problem():
    """Samples of one problem that all agree count once: four problems, whatever the number of samples."""
    assert standard_error(np.array([0.0, 1.0, 1.0, 0.0])) == pytest.approx(np.sqrt(1 / 3) / 2)
    assert standard_error(np.array([0.5])) is None


def test_the_error_of_one_problem_is_unknown_and_null_in_json():
    """And so is that of every mean that it enters, but not that of all problems together."""
    assert rise({"per_problem": [0.25]}, {"per_problem": [0.75]}) == (0.5, None)
    problems = [problem("tfds:data/aime24"), problem("tfds:data/math500")]
    result = json.loads(json.dumps(summary(problems, [answers(0, 1, 0), answers(1, 1, 1)]), allow_nan=False))
    parts = result["benchmarks"]
    assert [part["standard_error"] for part in (*parts.values(), result["macro"])] == [None, None, None]
    assert result["standard_error"] == pytest.approx(0.25)
    assert result["macro"]["avg@2"] == 0.75


def test_an_evaluation_of_one_problem_is_logged_without_its_error(monkeypatch, tmp_path):
    """A log holds numbers alone, and says nothing of what is not known."""
    result, said = summary([problem("tfds:x")], [answers(0, 1, 0)]), []
    display = types.SimpleNamespace(phase=lambda name: None, say=said.append)
    run = stand_in(monkeypatch, tmp_path, display)
    monkeypatch.setattr(heldout, "evaluate", lambda **arguments: result)
    metrics = heldout.evaluate_heldout(run)
    assert said == ["held out after step 3: avg@2 0.500 ± –, pass@2 1.000, 1 problems"]
    assert "eval/standard_error" not in metrics and metrics["eval/avg@2"] == 0.5
    assert all(isinstance(value, float) for value in metrics.values())
    assert json.loads((tmp_path / "heldout" / "3.json").read_text())["standard_error"] is None


def test_a_held_out_evaluation_says_and_logs_what_was_not_judged_and_what_was_right_though_cut_off(
    monkeypatch, tmp_path
):
    cut = dataclasses.replace(answers(0, 0, 1, 1, 1, finished=False), error=["crash", "", "", ""])
    result, said = summary([problem("tfds:x")], [cut]), []
    run = stand_in(monkeypatch, tmp_path, types.SimpleNamespace(phase=lambda name: None, say=said.append))
    monkeypatch.setattr(heldout, "evaluate", lambda **arguments: result)
    metrics = heldout.evaluate_heldout(run)
    assert said[0].endswith(", 1 problems, 0.250 unjudged, 0.750 truncated but right")
    assert (metrics["eval/unjudged_frac"], metrics["eval/truncated_right_frac"]) == (0.25, 0.75)
    assert json.loads((tmp_path / "heldout" / "3.json").read_text())["unjudged_frac"] == 0.25


def test_why_a_scorer_could_not_judge_an_answer_is_said(monkeypatch):
    """Two problems, two answers each, on which a reward function raises: the line is there once."""
    asked = [dataclasses.replace(problem("jsonl:x"), question=text, scorer="mine.py:f") for text in "ab"]
    crash, said, found = Verdict(0.0, 0.0, None, "crash", "KeyError: 'unit'"), [], []
    batch = types.SimpleNamespace(example_id=np.array([0, 1]), student_prompt=np.zeros((2, 1), np.int32))
    rows = types.SimpleNamespace(
        response=np.ones((4, 3), np.int32), response_mask=np.ones((4, 3), bool), finished=np.ones(4, bool)
    )
    prompts = types.SimpleNamespace(problems=asked, in_order=lambda size, ids: [(batch, np.array([True, True]))])
    for name, stands_in in {
        "rollout": lambda *args: (rows, None),
        "problems_at_a_time": lambda *args: 2,
        "put_rows": lambda mesh, tree: tree,
        "replicate": lambda mesh, tree: tree,
        "fetch": lambda tree: tree,
        "texts_of": lambda tokenizer, prompt, response, mask: ["x"] * len(response),
        "verify": lambda verifier, problems, texts: [crash] * len(texts),
    }.items():
        monkeypatch.setattr(evaluation, name, stands_in)
    evaluation.answer(
        model=None, params=None, mesh=None, tokenizer=None, prompts=prompts, verifier=None,
        failures=Failures(said.append), sampling=types.SimpleNamespace(rollouts=2), example_ids=[0, 1], rows=4, seed=0,
        each_batch=found.extend,
    )  # fmt: skip
    assert len(said) == 1 and said[0].startswith("warning: data.verifier: mine.py:f: KeyError: 'unit': the reward of")
    assert [each.error for each in found] == [["crash"] * 2] * 2
    assert summary(asked, found)["unjudged_frac"] == 1.0


def stand_in(monkeypatch, folder, display):
    """A run after step 3 with two held-out problems, whose model is a matrix."""
    monkeypatch.setattr(heldout, "problems_at_a_time", lambda *arguments: 1)
    for name in ("evaluated", "eval_sampling"):
        monkeypatch.setattr(heldout.setup, name, lambda *arguments: [0, 1])
    asked = types.SimpleNamespace(problems=[problem("tfds:x"), problem("tfds:y")], digest=lambda: "of prompts")
    state = types.SimpleNamespace(params={"w": np.ones((2, 3), np.float32)})
    mesh, tokenizer = types.SimpleNamespace(devices=np.zeros((1, 1, 1))), types.SimpleNamespace(stop_ids=(1,))
    more = {"state": state, "heldout": asked, "mesh": mesh, "tokenizer": tokenizer, "workdir": folder}
    return unittest.mock.Mock(config=tiny.config(), step=3, display=display, **more)


@pytest.mark.parametrize("same_weights", [True, False])
def test_an_evaluation_in_training_goes_on_where_it_was_interrupted_if_the_weights_are_the_same(
    same_weights, monkeypatch, tmp_path
):
    """The run is killed after the first of two problems."""
    run, seen = stand_in(monkeypatch, tmp_path, unittest.mock.Mock()), []

    def evaluate(*, known, example_ids, each_batch, **_):
        seen.append([each.example_id for each in known])
        found = [*known]
        for example_id in example_ids[len(known) :]:
            found.append(answers(example_id, 1, 0))
            each_batch(found[-1:])
            if len(seen) == 1:
                raise KeyboardInterrupt
        return summary(run.heldout.problems, found)

    monkeypatch.setattr(heldout, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        heldout.evaluate_heldout(run)
    if not same_weights:
        run.state.params["w"][1, 2] += 1e-7
    heldout.evaluate_heldout(run)
    assert seen == [[], [0] if same_weights else []]
    assert [path.name for path in sorted((tmp_path / "heldout").iterdir())] == ["3.json", "3.jsonl"]
    lines = [json.loads(line) for line in (tmp_path / "heldout" / "3.jsonl").read_text().splitlines()]
    assert [line["example_id"] for line in lines] == [0, 1]


def test_the_fingerprint_of_weights_is_that_of_their_bits_wherever_they_lie(mesh, mesh8):
    found = []
    for where in (mesh, mesh8):
        with jax.set_mesh(where):
            params = param_table.init(preset("qwen3_tiny"), where, 0)
            found.append(int(param_table.fingerprint(params)))
    with jax.set_mesh(mesh):
        params = param_table.init(preset("qwen3_tiny"), mesh, 0)
        params["final_norm"] = jnp.nextafter(params["final_norm"], 2.0)
        assert found[0] == found[1] != int(param_table.fingerprint(params))


def test_the_rise_is_paired():
    before, after = {"per_problem": [0.0, 0.5, 1.0]}, {"per_problem": [0.25, 0.75, 1.25]}
    assert rise(before, after) == pytest.approx((0.25, 0.0))


def problem(source):
    return Problem(question="q", answer="1", source=source, index=0, scorer="math")


def answers(example_id, *reward, length=10, finished=True):
    count = len(reward)
    texts, extracted = ["So 1"] * count, [None] + ["1"] * (count - 1)
    errors = ["parse"] + [""] * (count - 1)
    return Answers(example_id, texts, extracted, list(reward), [length] * count, [finished] * count, errors)


def test_each_benchmark_counts_once_in_the_macro_average():
    """Three problems of one benchmark and one of another: .5 and 1 by hand; errors by problem, of several problems."""
    problems = [problem("tfds:data/aime24"), problem("tfds:data/math500?split=train")]
    given = [answers(0, 1, 1, 0, 0), answers(0, 1, 1, 1, 1), answers(0, 0, 0, 0, 0), answers(1, 1, 1, 1, 1, length=30)]
    result = summary(problems, given)
    assert list(result["benchmarks"]) == ["aime24", "math500"]
    aime, math500, macro = result["benchmarks"]["aime24"], result["benchmarks"]["math500"], result["macro"]
    assert (aime["avg@4"], math500["avg@4"], macro["avg@4"]) == (0.5, 1.0, 0.75)
    assert result["avg@4"] == pytest.approx(10 / 16)
    assert aime["standard_error"] == pytest.approx(0.5 / np.sqrt(3))
    twice = summary([*problems, problem("tfds:data/math500?split=train")], [*given, answers(2, 0, 0, 0, 0)])
    errors = [part["standard_error"] for part in (*twice["benchmarks"].values(), twice["macro"])]
    assert errors == pytest.approx([0.5 / np.sqrt(3), 0.5, np.hypot(0.5 / np.sqrt(3), 0.5) / 2])
    assert aime["pass@2"] == pytest.approx((5 / 6 + 1 + 0) / 3) and macro["pass@2"] == pytest.approx((11 / 18 + 1) / 2)
    assert [name for name in result if name.startswith("pass@")] == ["pass@1", "pass@2", "pass@4"]
    assert (aime["length_mean"], math500["length_mean"], macro["length_mean"]) == (10, 30, 20)
    assert (result["problems"], aime["problems"], macro["problems"]) == (4, 3, 4)
    assert macro["parse_failure_frac"] == 0.25 and macro["truncated_frac"] == 0
    assert result["per_problem"] == [0.5, 1.0, 0.0, 1.0]


def test_figures_of_health_are_means_over_benchmarks_in_the_macro_average():
    """Lengths of 10 in three problems and of 30 in one; an equality in the other benchmark alone is none of both."""
    problems = [problem("tfds:data/aime24"), problem("tfds:data/math500?split=train")]
    of_both = [
        answers(0, 1, 1, 0, 0),
        answers(0, 1, 1, 1, 1),
        answers(0, 0, 0, 0, 0),
        answers(1, 1, 1, 1, 1, length=30),
    ]
    of_both[-1] = dataclasses.replace(of_both[-1], text=["wait, 1 + 1 = 2"] * 4)
    result = summary(problems, of_both)
    aime, math500, macro = result["benchmarks"]["aime24"], result["benchmarks"]["math500"], result["macro"]
    assert aime["health"]["length_p95"] == 10 and math500["health"]["length_p95"] == 30
    assert macro["health"]["length_p95"] == 20 and result["health"]["length_max"] == 30
    assert math500["health"]["step_accuracy"] == 1 and "step_accuracy" not in aime["health"] | macro["health"]
    assert math500["health"]["epistemic_per_1k"] == pytest.approx(1000 / 30)
    assert aime["health"]["first_answer_repeats_frac"] == 0  # the first sample has no answer


def test_the_kept_answers_of_an_evaluation_are_read_as_they_were_written():
    problems = [problem("tfds:data/aime24")]
    line = json.loads(json.dumps(as_line(problems, answers(0, 1, 0))))
    assert (line["question"], line["source"], line["text"]) == ("q", "tfds:data/aime24", ["So 1"] * 2)
    assert of_line(line) == answers(0, 1, 0)
    for change in ({"text": [1, 2]}, {"length": [1]}, {"extracted": "1"}, {"example_id": "0"}):
        with pytest.raises(ValueError, match=next(iter(change))):
            of_line(line | change)
    with pytest.raises(KeyError):
        of_line({name: value for name, value in line.items() if name != "text"})


def test_128_samples_are_estimated_at_every_power_of_two():
    result = summary([problem("tfds:x")], [answers(0, 1, *[0] * 127)])
    estimates = {name: value for name, value in result.items() if name.startswith("pass@")}
    assert estimates == pytest.approx({f"pass@{2**i}": 2**i / 128 for i in range(8)})


class Letters:
    """A tokenizer whose tokens are characters."""

    def decode(self, ids):
        return "".join(map(chr, ids))


@pytest.mark.parametrize(
    ("prompt", "response", "answer"),
    [
        ("So?<think>\n", r"It might be \boxed{4}", None),
        ("So?<think>\n", r"Hm.</think> \boxed{4}", "4"),
        ("So?<think>\n\n</think>\n\n", r"\boxed{4}", "4"),
        ("So?", r"\boxed{4}", "4"),
    ],
)
def test_thoughts_that_the_prompt_opened_and_no_response_ended_hold_no_answer(prompt, response, answer):
    prompt_ids, ids = (np.array([list(map(ord, text))]) for text in (prompt, response))
    [text] = texts_of(Letters(), prompt_ids[0], ids, np.ones_like(ids, bool))
    assert text.endswith(response) and extract_answer(text) == answer
