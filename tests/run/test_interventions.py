"""Interventions: one token apart, where the arm says, continued alike; at tiny size on random weights."""

import dataclasses
import functools
import json
import re
import sys
import types
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest

from dasd_jax import cli, intervene
from dasd_jax.errors import UserError
from dasd_jax.mesh import MeshConfig, make_mesh
from dasd_jax.model import transformer
from dasd_jax.run import interventions, models, places, setup
from dasd_jax.run.evaluation import Answers
from dasd_jax.run.failures import Failures
from dasd_jax.run.interventions import Interventions
from dasd_jax.run.pairs import Outcome, Result, summary
from dasd_jax.run.places import ARMS, BY_ENTROPY, Pair
from dasd_jax.text.prompts import left_pad
from dasd_jax.text.tokenizer import ByteTokenizer
from dasd_jax.verify.verifier import Verdict, Verifier

TINY = "--config=configs/methods.py:tiny,method=dasd"
TOKENIZER = ByteTokenizer()
EIGHT = MeshConfig(data=2, fsdp=2, tensor=2)
# Random weights write no words: every letter is taken for a cue, and every character for the end of a sentence.
LOOSE = {"CUE": re.compile("[a-z]", re.IGNORECASE), "_SENTENCE_ENDS": re.compile(".", re.DOTALL)}


def config(*overrides):
    words = [TINY, *(f"--config.{override}" for override in ("run.eval_problems=6", *overrides))]
    return cli.parse(cli.parser(""), words, quiet=True).config


verifier = functools.cache(functools.partial(Verifier, 1, 5.0, 2048))


@pytest.fixture(scope="module", autouse=True)
def one_verifier():
    """Ends the processes of `verifier()`."""
    with verifier():
        yield


def loud(params):
    """Random weights eight times as large: entropies then differ, and the likeliest token depends on the prompt."""
    layers = {name: x if "norm" in name else 8 * x for name, x in params["layers"].items()}
    return params | {"embed": 8 * params["embed"], "layers": layers}


@dataclasses.dataclass
class Made:
    """What a set of interventions came to."""

    work: Interventions
    responses: dict
    pairs: list[Pair]
    rewards: dict[int, list[float]]
    results: list[Result]


@functools.cache
def made(context="", mesh_config=None, *overrides):
    """Interventions with loose cues, on one device or on the mesh that is given."""
    tiny = config(*overrides)
    mesh = make_mesh(mesh_config or MeshConfig(), None if mesh_config else jax.devices()[:1])
    responses, choose = {}, places.pairs

    def noted(tokenizer, response, seed, budget):
        responses[response.example_id, response.sample] = response
        return choose(tokenizer, response, seed, budget)

    with jax.set_mesh(mesh), mock.patch.multiple(places, pairs=noted, **LOOSE):
        model, params = models.open_model(tiny, mesh)
        prompts = interventions.open_prompts(tiny, TOKENIZER, context)
        work = Interventions(tiny, mesh, model, loud(params), TOKENIZER, prompts, verifier(), Failures(print), context)
        pairs, answers = work.choose(setup.evaluated(tiny, prompts), lambda count: None)
        results = work.outcomes(pairs, lambda count: None)
    return Made(work, responses, pairs, {each.example_id: each.reward for each in answers}, results)


def test_problems_are_those_of_an_evaluation_and_judged_as_there():
    own = f"{Path('benchmarks/lab/task.py').resolve()}:reward"
    benchmark = "jsonl:benchmarks/lab/problems/easy.jsonl"
    asked = config(f"data.verifier={own}", f"data.benchmarks={(benchmark,)}")
    evaluated = setup.open_evaluation(asked, TOKENIZER)
    found = interventions.open_prompts(asked, TOKENIZER, "")
    assert found.problems == evaluated.problems and {problem.scorer for problem in found.problems} == {own}


def of_arms(found, *arms):
    """Its pairs in these arms with the responses that they were made of; at least one of each arm."""
    pairs = [(pair, found.responses[pair.example_id, pair.sample]) for pair in found.pairs if pair.arm in arms]
    assert {pair.arm for pair, _ in pairs} == set(arms)
    return pairs


@pytest.mark.slow
def test_control_and_treated_differ_in_exactly_the_one_token():
    for pair, response in of_arms(made(), *BY_ENTROPY):
        assert len(pair.control) == len(pair.treated) == pair.place + 1
        np.testing.assert_array_equal(pair.control, response.tokens[: pair.place + 1])
        np.testing.assert_array_equal(pair.treated[:-1], pair.control[:-1])
        assert pair.treated[-1] == response.teacher[pair.place] != response.tokens[pair.place]


@pytest.mark.slow
def test_chosen_places_obey_their_arm():
    """High: among the fifth of the response with the highest entropy. Low: not among them. Random: both occur."""
    is_high = {arm: set() for arm in BY_ENTROPY}
    for pair, response in of_arms(made(), *BY_ENTROPY):
        assert pair.entropy == response.entropy[pair.place]
        rank = (response.entropy > pair.entropy).sum()
        is_high[pair.arm].add(bool(rank < 0.2 * (len(response.tokens) - 1)))
    assert is_high == {"high entropy": {True}, "low entropy": {False}, "random": {True, False}}


forward = jax.jit(transformer.forward, static_argnums=0)


def brute_force(work, prompt, tokens):
    """Log-probabilities f32[T, V] of a response after a prompt, as one sequence and the whole vocabulary at once."""
    group = work._config.rollout
    width = group.teacher_prompt_length + group.max_new_tokens
    sequence, mask = left_pad([[*prompt, *tokens]], width, TOKENIZER.pad_id)
    hidden, _ = forward(work._model, work._params, sequence, transformer.prompt_positions(mask), mask)
    logits = transformer.unembed(work._model, work._params, hidden)[0, -len(tokens) - 1 : -1]
    return np.asarray(jax.nn.log_softmax(logits / group.temperature))


@pytest.mark.slow
@pytest.mark.parametrize("context", ["", "hint"])
def test_first_choices_and_entropies_equal_those_over_the_whole_vocabulary(context):
    found, differ = made(context), 0
    for response in found.responses.values():
        shown = found.work._prompts.teacher_batch(np.array([response.example_id]), context, group=1)
        assert shown.shown.all()
        teacher = shown.teacher_prompt[0][shown.teacher_prompt_mask[0]]
        student = found.work._student_prompt(response.example_id)
        assert len(teacher) > len(student)
        logp = brute_force(found.work, student, response.tokens)
        np.testing.assert_array_equal(response.student, logp.argmax(axis=1))
        np.testing.assert_allclose(response.entropy, -(np.exp(logp) * logp).sum(axis=1), atol=1e-4)
        differ += (response.teacher != response.student).sum()
        informed = brute_force(found.work, teacher, response.tokens)
        np.testing.assert_array_equal(response.teacher, informed.argmax(axis=1))
        place = response.cue.start if response.cue else 0
        np.testing.assert_array_equal(response.at_cue, np.argsort(-logp[place])[: len(response.at_cue)])
    assert differ > 20


@pytest.mark.slow
def test_a_teacher_that_is_shown_nothing_puts_the_students_own_choice():
    for pair, response in of_arms(made("none"), *BY_ENTROPY):
        assert pair.treated[-1] == response.student[pair.place] != response.tokens[pair.place]
        assert pair.student_agrees
    assert not all(pair.student_agrees for pair, _ in of_arms(made(), *BY_ENTROPY))


@pytest.mark.slow
def test_a_teacher_may_be_shown_what_the_group_wrote():
    """A right response of the same problem: rows without another that says anything are left out, and no others."""
    found = made("sibling", None, "rollout.teacher_prompt_length=400")
    said = {row: TOKENIZER.decode(response.tokens).strip() for row, response in found.responses.items()}
    for (i, sample), response in found.responses.items():
        others = [other for other in (0, 1) if other != sample and found.rewards[i][other] and said[i, other]]
        assert (response.teacher is not None) == bool(others)
    assert 0 < sum(response.teacher is None for response in found.responses.values()) < len(found.responses)


@pytest.mark.slow
def test_which_problems_are_read_together_decides_nothing():
    """One problem at a time, or all three: another problem's context is that of the same other one."""
    few = "run.eval_problems=3", "run.eval_samples=8", "optim.minibatches=1"
    alone, together = (made("other_problem", None, *few, f"optim.microbatches={parts}") for parts in (4, 1))
    assert [found.work._problems_at_a_time() for found in (alone, together)] == [1, 4]
    assert of_arms(together, *BY_ENTROPY)
    # All but the entropies, which are rounded otherwise.
    results = [
        [dataclasses.replace(result, pair=dataclasses.replace(result.pair, entropy=0.0)) for result in found.results]
        for found in (alone, together)
    ]
    assert repr(results[0]) == repr(results[1])


def answered(prompts, rewards, finished=True):
    """Responses by example id: as many to each problem as it has rewards, that say which one they are."""
    return {
        i: [
            interventions.Answer(np.array([1]), finished, f"response {i}.{k}", Verdict(reward, reward, None, ""))
            for k, reward in enumerate(rewards)
        ]
        for i in range(len(prompts))
    }


def informing(context, rollouts, *overrides):
    """Interventions that know their problems and no model, and these problems."""
    work, tiny = Interventions.__new__(Interventions), config(*overrides)
    work._config, work._context, work._sampling = tiny, context, types.SimpleNamespace(rollouts=rollouts)
    work._prompts = interventions.open_prompts(tiny, TOKENIZER, context)
    return work, work._prompts


def test_another_problem_is_the_next_of_all_that_are_evaluated():
    work, prompts = informing("other_problem", 2)
    shown = work._shown(answered(prompts, [1.0, 0.0]))
    for i in range(len(prompts)):
        assert shown[i] == [[("solution", prompts.problems[(i + 1) % len(prompts)].solution)]]


@pytest.mark.parametrize(
    ("finished", "truncated", "context", "shown"),
    [
        (True, "zero", "sibling", [[3], [3], [3], []]),
        (True, "zero", "wrong_siblings", [[1], [0], [0], [0]]),
        (False, "zero", "sibling", [[]] * 4),
        (False, "score", "sibling", [[3], [3], [3], []]),
    ],
)
def test_a_graded_response_is_a_right_sibling_where_training_takes_it_for_one(finished, truncated, context, shown):
    """From a reward of 0.99 on, as Pass@k has it, and cut off where objective.truncated says so."""
    fields = f"objective.truncated={truncated}", "rollout.teacher_prompt_length=400"
    work, prompts = informing(context, 4, *fields)
    found = work._shown(answered(prompts, [0.2, 0.5, 0.98, 0.99], finished))
    for i, texts in found.items():
        assert texts == [[(context, f"response {i}.{k}") for k in of_row] for of_row in shown]


def test_one_problem_alone_cannot_be_shown_another():
    with pytest.raises(UserError, match="^--context: 'other_problem': one problem is evaluated: expected at least two"):
        informing("other_problem", 2)[0].choose([0], lambda count: None)


@pytest.mark.slow
def test_what_is_chosen_and_what_becomes_of_it_depends_on_the_seed_alone():
    first = made()
    assert repr(made.__wrapped__().results) == repr(first.results)
    other = made("", None, "run.seed=1")
    assert [result.treated.text for result in other.results] != [result.treated.text for result in first.results]


@pytest.mark.slow
def test_eight_devices_intervene_as_one_does():
    assert repr([pair.treated for pair in made("", EIGHT).pairs]) == repr([pair.treated for pair in made().pairs])
    texts = [
        [side.text for result in made("", on).results for side in (result.control, result.treated)]
        for on in (None, EIGHT)
    ]
    assert texts[0] == texts[1]


def continued(found, *pairs):
    """The outcomes of other pairs under the same parameters."""
    with jax.set_mesh(found.work._mesh):
        return found.work.outcomes(pairs, lambda count: None)


@pytest.mark.slow
def test_both_sides_are_continued_alike_and_within_the_budget():
    """Equal beginnings come to equal responses; each outcome begins as its side does."""
    found = made()
    budget = found.work._config.rollout.max_new_tokens
    for result in found.results:
        for side, beginning in ((result.control, result.pair.control), (result.treated, result.pair.treated)):
            assert len(beginning) <= side.length <= budget
            assert side.finished or side.length == budget
    pair = next(pair for pair in found.pairs if pair.arm == "random" and pair.place < budget // 2)
    [same] = continued(found, dataclasses.replace(pair, treated=pair.control))
    assert same.treated == same.control
    assert same.control == next(result.control for result in found.results if result.pair is pair)
    [other] = continued(found, dataclasses.replace(pair, sample=pair.sample + 1))
    assert other.control.text != same.control.text


@pytest.mark.slow
def test_what_has_ended_is_not_continued():
    found = made()
    [stop], budget = TOKENIZER.stop_ids, found.work._config.rollout.max_new_tokens
    whole = np.full(budget, ord("a"), np.int32)
    ended = np.array([ord("b"), stop], np.int32)
    [result] = continued(found, Pair("random", 0, 0, 1, control=whole, treated=ended))
    assert (result.control.text, result.control.length, result.control.finished) == ("a" * budget, budget, False)
    assert (result.treated.text, result.treated.length, result.treated.finished) == ("b", 2, True)


@pytest.mark.slow
def test_every_arm_acts_where_it_says_in_sampled_responses():
    found = made()
    for pair, response in of_arms(found, "suppress cue"):
        assert (pair.place, len(pair.control)) == (response.cue.start, response.cue.end)
        np.testing.assert_array_equal(pair.control, response.tokens[: response.cue.end])
        np.testing.assert_array_equal(pair.treated[:-1], response.tokens[: response.cue.start])
        put = int(pair.treated[-1])
        before = response.at_cue[: list(response.at_cue).index(put)]
        assert not LOOSE["CUE"].match(TOKENIZER.decode([put]))
        assert all(LOOSE["CUE"].match(TOKENIZER.decode([token])) for token in before)
    for pair, response in of_arms(found, "force cue"):
        np.testing.assert_array_equal(pair.control, response.tokens[: pair.place])
        np.testing.assert_array_equal(pair.treated[: pair.place], pair.control)
        assert TOKENIZER.decode(pair.treated[pair.place :]).strip() == places.FORCED


def outcome(reward, text):
    return Outcome(text, reward, None, len(text), True, "")


def result(arm, example_id, rewards, texts=("x", "x")):
    """Of control and treated."""
    pair = Pair(arm, example_id, 0, 0, np.array([1]), np.array([2]), student_agrees=bool(example_id))
    return Result(pair, *map(outcome, rewards, texts))


def sampled(rewards, errors=None, finished=True):
    """The responses to each problem that have these rewards."""
    return [
        Answers(
            i, ["x"] * len(each), [None] * len(each), each, [1] * len(each), [finished] * len(each),
            (errors or {}).get(i, [""] * len(each)),
        )
        for i, each in rewards.items()
    ]  # fmt: skip


def test_accuracy_is_the_share_of_right_responses_whatever_the_others_are_worth():
    results = [result("random", 0, (0.9, 1.0)), result("random", 0, (0.5, 0.98))]
    found = summary(results, sampled({0: [1.0, 0.9, 0.98, 0.99]}), lambda texts, lengths: {})
    assert found["accuracy"] == 0.5
    figures = found["arms"]["random"]["figures"]
    assert (figures["accuracy"]["control"], figures["accuracy"]["treated"]) == (0, 0.5)
    assert (figures["reward"]["control"], figures["reward"]["treated"]) == pytest.approx((0.7, 0.99))


def test_the_difference_is_paired_and_its_standard_error_by_problem():
    """Problem 0: two pairs that change by -1 and 0, mean -.5. Problem 1: one that changes by +1. Mean .25.

    The standard error of (-.5, 1): sqrt(1.125) / sqrt(2) = .75.
    """
    found = [result("random", 0, (1, 0)), result("random", 0, (1, 1)), result("random", 1, (0, 1))]
    found.append(result("force cue", 1, (1, 1)))
    answers = sampled({0: [1.0, 0.0], 1: [0.0, 0.0]})
    got = summary(found, answers, lambda texts, lengths: {})
    assert (got["problems"], got["responses"], got["accuracy"], got["standard_error"]) == (2, 4, 0.25, 0.25)
    arm = got["arms"]["random"]
    assert (arm["pairs"], arm["problems"], arm["left_out"]) == (3, 2, 1)
    assert arm["student_agrees_frac"] == pytest.approx(1 / 3)
    accuracy = arm["figures"]["accuracy"]
    assert accuracy == pytest.approx(
        {"control": 0.5, "treated": 0.75, "difference": 0.25, "standard_error": 0.75, "pairs": 3, "problems": 2}
    )
    assert got["arms"]["force cue"]["figures"]["accuracy"]["standard_error"] is None  # of one problem it is unknown
    assert got["arms"]["high entropy"] == {"pairs": 0, "problems": 0, "left_out": 4, "figures": {}}


def test_what_a_scorer_could_not_judge_is_counted_of_responses_and_of_both_sides():
    """One of four responses, and of the four sides of two pairs one."""
    late = dataclasses.replace(outcome(0.0, "x"), error="timeout")
    found = [result("random", 0, (1, 0)), result("force cue", 0, (1, 1))]
    found.append(dataclasses.replace(found[0], treated=late))
    answers = sampled({0: [1.0, 0.0], 1: [0.0, 1.0]}, {1: ["crash", "parse"]}, finished=False)
    got = summary(found, answers, lambda texts, lengths: {})
    assert (got["unjudged_frac"], got["truncated_right_frac"]) == (0.25, 0.5)
    assert {arm: part["unjudged_frac"] for arm, part in got["arms"].items() if part["pairs"]} == {
        "random": 0.25, "force cue": 0.0,
    }  # fmt: skip


def test_an_error_of_a_scorer_is_said(monkeypatch):
    said = []
    work = Interventions.__new__(Interventions)
    work._prompts, work._verifier = interventions.open_prompts(config(), TOKENIZER, ""), None
    work._failures = Failures(said.append)
    crash = Verdict(0.0, 0.0, None, "crash", "KeyError: 'unit'")
    monkeypatch.setattr(interventions, "verify", lambda verifier, problems, texts: [crash] * len(texts))
    assert work._verify([0, 1, 0], ["x", "y", "z"]) == [crash] * 3
    assert len(said) == 1 and "KeyError: 'unit'" in said[0]


def test_a_figure_is_compared_over_the_pairs_of_which_both_sides_have_it():
    def figures(texts, lengths):
        return {"first": float(texts[0][0])} if texts[0][0].isdigit() else {}

    found = [
        result("random", 0, (1, 1), ("3", "5")),
        result("random", 0, (1, 1), ("x", "9")),
        result("random", 1, (1, 1), ("x", "x")),
    ]
    compared = summary(found, sampled({0: [1.0], 1: [1.0]}), figures)["arms"]["random"]["figures"]
    assert compared["first"] == {
        "control": 3.0, "treated": 5.0, "difference": 2.0, "standard_error": None, "pairs": 1, "problems": 1,
    }  # fmt: skip


def test_the_table_has_every_difference_in_80_columns():
    change = {"control": 0.5, "treated": 0.25, "difference": -0.25, "standard_error": 0.0625}
    doubt = {"control": 1.0, "treated": 30.5, "difference": 29.5, "standard_error": 12.25}
    figures = {"accuracy": change, "step_accuracy": change, "epistemic_count": doubt}
    arms = {arm: {"pairs": 65536, "figures": figures} for arm in ARMS} | {"random": {"pairs": 0, "figures": {}}}
    lines = intervene.table({"arms": arms}, 80).splitlines()
    assert len(lines) == 2 + len(ARMS) and max(map(len, lines)) <= 80
    rows = {arm: next(line.split(arm)[1].split() for line in lines if arm in line) for arm in ARMS}
    assert rows["random"] == ["0", "–", "–", "–", "–", "–"]
    assert " ".join(rows["force cue"]) == "65536 .500 .250 -.250 ± .062 -.250 ± .062 +29.5 ± 12.2"


@pytest.fixture
def call(monkeypatch, tmp_path):
    """call(*argv) → the folder of results after the command on one device, in a run's folder with a config.json."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(config().to_dict()))
    monkeypatch.setattr(intervene, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
    monkeypatch.setattr(places, "CUE", LOOSE["CUE"])

    def command(*argv):
        intervene.main([str(run), "--checkpoint=start", *argv])
        return run / "intervene"

    return command


@pytest.mark.slow
def test_the_command_writes_figures_and_pairs_and_shows_a_table(call, capsys):
    folder = call("--config.run.eval_problems=4")
    said = capsys.readouterr().out
    assert f"written to {folder / 'start.json'}" in said
    figures = json.loads((folder / "start.json").read_text())
    settings, *lines = map(json.loads, (folder / "start.jsonl").read_text().splitlines())
    assert settings == figures["settings"]
    assert sorted(path.name for path in folder.iterdir()) == ["start.json", "start.jsonl"]
    assert figures["settings"]["run.eval_problems"] == 4 and figures["responses"] == 8
    for arm in ARMS:
        of_arm = [line for line in lines if line["arm"] == arm]
        assert len(of_arm) == figures["arms"][arm]["pairs"] == 8 - figures["arms"][arm]["left_out"]
        assert arm in said
    assert all(line["control"]["tokens"] != line["treated"]["tokens"] for line in lines)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=r"start.json was written with run.eval_problems = 4, not 3"):
        call("--config.run.eval_problems=3")
    call("--config.run.eval_problems=4")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "start.json").unlink()
    with pytest.raises(UserError, match=r"start.jsonl was written with run.eval_problems = 4, not 3"):
        call("--config.run.eval_problems=3")


@pytest.mark.slow
def test_an_interrupted_command_leaves_nothing(call, monkeypatch, tmp_path):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Interventions, "outcomes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


@pytest.mark.slow
def test_a_greedy_student_without_a_teacher_leaves_nothing_to_change(call, monkeypatch):
    """Its first choice is what it has written, everywhere; and it writes no cue."""
    monkeypatch.setattr(places, "CUE", re.compile("wait"))
    with pytest.raises(
        UserError, match="run.eval_problems: none of the responses to 6 problem.s. has a place to interv"
    ):
        call("--context=none", "--config.run.eval_temperature=0")


@pytest.mark.parametrize(("privileged", "context", "kind"), [("answer", "hint", "hint"), ("solution", "none", "sol")])
def test_a_wording_without_what_the_teacher_is_to_be_shown_is_one_line(privileged, context, kind):
    asked = config("data.privileged_wording=It is {answer}.", f"data.privileged={privileged}")
    with pytest.raises(
        UserError, match=f"^data.privileged_wording: 'It is {{answer}}.': a teacher .* is shown context of kind {kind}"
    ):
        interventions.open_prompts(asked, TOKENIZER, context)


def test_contexts_that_a_method_decides_in_every_step_are_refused(tmp_path, monkeypatch, capsys):
    for context in ("partial_solution", "skills"):
        monkeypatch.setattr(sys, "argv", ["intervene", str(tmp_path), TINY, f"--context={context}"])
        with pytest.raises(SystemExit) as ended:
            cli.run(intervene.main)
        error = capsys.readouterr().err
        assert ended.value.code == 2 and error.count("\n") == 1
        assert error.startswith(f"error: argument --context: invalid choice: '{context}' (choose from 'answer', 'solu")


@pytest.mark.slow
def test_problems_without_what_the_teacher_is_to_be_shown_are_one_line(tmp_path):
    command = [
        TINY, f"--workdir={tmp_path}", "--checkpoint=start", "--config.data.sources=('gym:chain_sum?size=40',)",
        "--config.rollout.prompt_length=192",
    ]  # fmt: skip
    with pytest.raises(UserError, match="data.privileged: 'solution': all 8 problems were dropped: 8 with no solution"):
        intervene.main(command)
    with pytest.raises(UserError, match="--context: 'hint': none of the . problems to evaluate has a text of kind 'h"):
        intervene.main([*command, "--config.data.privileged=answer", "--context=hint"])
    assert not list(tmp_path.iterdir())
