"""Which problems to evaluate the model has been trained on, by its run and by those that it started from."""

import json
from pathlib import Path

import pytest
from tiny import config

from dasd_jax import recorded
from dasd_jax.run import origin, seen, setup
from dasd_jax.run.origin import Origin
from dasd_jax.text.tokenizer_files import load_tokenizer

BYTES = load_tokenizer("byte")
QUESTIONS = [f"What is {i} + {i * i + 100}?" for i in range(40)]


def write(path, questions):
    path.write_text("".join(json.dumps({"question": question, "answer": "1"}) + "\n" for question in questions))
    return f"jsonl:{path}"


def made(source, benchmarks=(), heldout=0, *overrides):
    data = f"data.sources={(source,)}", f"data.benchmarks={tuple(benchmarks)}", f"data.heldout={heldout}"
    return config(*data, "rollout.problems=4", f"run.eval_problems={heldout}", *overrides)


def run_of(folder, of, started_from=None):
    """The folder of a run with this config."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(of.to_dict()))
    if started_from:
        origin.write(folder, Origin(str(started_from), 2, "", False))
    return folder


def trained_on(of):
    return {problem.question for problem in setup.open_problems(of)[0]}


def warning(run, count, of):
    return f"warning: the run in {run} was trained on {count} of the {of} problems to evaluate"


@pytest.fixture
def runs(tmp_path):
    """(configs, folders) of three runs, each from the one before it: on all problems, on half of them, on a quarter."""
    parts = [write(tmp_path / f"{name}.jsonl", QUESTIONS[:: 2**i]) for i, name in enumerate("abc")]
    configs = [made(part, heldout=count) for part, count in zip(parts, (4, 6, 5), strict=True)]
    folders = [run_of(tmp_path / "a", configs[0])]
    folders.append(run_of(tmp_path / "b", configs[1], folders[0]))
    # As model.weights names the checkpoint of a run.
    third = configs[2].to_dict() | {"start": {"weights": f"{folders[1]}/checkpoints/000002"}}
    folders.append(run_of(tmp_path / "c", configs[2]))
    (folders[2] / "config.json").write_text(json.dumps(third))
    return configs, folders


def test_what_is_held_out_now_was_trained_on_by_runs_before(runs):
    """Counted against the definition, all the way back; a run's own training problems are none of them."""
    configs, folders = runs
    asked = setup.open_evaluation(configs[2], BYTES)
    questions = {problem.question for problem in asked.problems}
    of_b, of_a = (len(questions & trained_on(each)) for each in (configs[1], configs[0]))
    assert of_b and of_a and not questions & trained_on(configs[2])
    expected = [warning(folders[1], of_b, 5), warning(folders[0], of_a, 5)]
    for itself in (False, True):
        assert [*seen.lines(configs[2], asked, folders[2], itself)] == expected
    whole = setup.open_evaluation(configs[0], BYTES)
    assert [*seen.lines(configs[0], whole, folders[0], True)] == []


def test_a_run_is_compared_with_other_benchmarks_than_its_own(tmp_path):
    """Questions count as the same with their numbers in another order, as where benchmarks are left out of training."""
    source = write(tmp_path / "source.jsonl", QUESTIONS)
    own = write(tmp_path / "own.jsonl", QUESTIONS[:3])
    other = write(tmp_path / "other.jsonl", [*QUESTIONS[2:5], "What is 136 + 6?", "What is 1 * 1?"])
    folder = run_of(tmp_path / "run", made(source, [own]))
    for benchmarks, count in (([own], 0), ([other], 3), ([own, other], 3)):
        asked = made(source, benchmarks)
        evaluated = setup.open_evaluation(asked, BYTES)
        found = seen.of_checkpoint(asked, folder, "2", recorded.benchmarks(folder, "2"))
        assert found == (folder, bool(count))
        expected = [warning(folder, count, len(evaluated))] if count else []
        assert [*seen.lines(asked, evaluated, *found)] == expected


def test_the_problems_of_another_run_need_not_go_with_the_rest_of_this_config(tmp_path):
    """500 problems of each benchmark are asked; with the run's own held-out problems at most 8 could be."""
    source, other = write(tmp_path / "source.jsonl", QUESTIONS), write(tmp_path / "other.jsonl", QUESTIONS)
    folder = run_of(tmp_path / "run", made(source, [], 8))
    asked = made(source, [other], 8, "run.eval_problems=500", "data.shots=1", "rollout.prompt_length=400")
    evaluated = setup.open_evaluation(asked, BYTES, ())
    assert [*seen.lines(asked, evaluated, folder, True)] == [warning(folder, 32, 40)]


def test_the_untrained_model_is_that_of_the_run_that_model_weights_names(runs):
    """And not what --from took: the start of the second run is its model.weights, which no run has trained."""
    configs, (first, second, third) = runs
    assert seen.of_checkpoint(configs[1], second, "start", ()) == (None, True)
    assert seen.of_checkpoint(configs[2], third, "start", ()) == (second, True)
    (first / "checkpoints").mkdir()
    named = made("x", (), 1, f"model.weights={first}")
    assert seen.of_checkpoint(named, first.parent / "none", "start", None) == (first, True)
    assert seen.of_checkpoint(named, first.parent / "none", f"{first.parent}/converted", None) == (None, False)


def test_what_is_gone_or_damaged_is_a_note(runs):
    configs, (first, second, third) = runs
    asked = setup.open_evaluation(configs[2], BYTES)
    lines = [*seen.lines(configs[2], asked, third, False)]
    Path(configs[1].data.sources[0].partition(":")[2]).unlink()
    note, last = seen.lines(configs[2], asked, third, False)
    assert note.startswith(f"note: not compared with the training problems of the run in {second}: data.sources: ")
    assert last == lines[1]
    (first / "config.json").unlink()
    assert [*seen.lines(configs[2], asked, third, False)][1:] == [
        f"note: not compared with the training problems of the run in {first}: {first}/config.json does not exist"
    ]
    (second / "from.json").write_text("[]")
    *_, last = seen.lines(configs[2], asked, third, False)
    assert last.startswith(f"note: not known from which run the one in {second} started: --workdir: ")


def test_runs_that_start_from_one_another_come_to_an_end(runs):
    configs, (first, _, third) = runs
    origin.write(first, Origin(str(third), 2, "", False))
    asked = setup.open_evaluation(configs[2], BYTES)
    assert len([*seen.lines(configs[2], asked, third, False)]) == 2
