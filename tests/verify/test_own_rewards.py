"""Reward functions of the user's own: how they are found and run, and what becomes of graded rewards."""

import dataclasses
import json
import os
import signal
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import tiny

from dasd_jax import config as config_module
from dasd_jax import evaluate
from dasd_jax.batch import RolloutBatch
from dasd_jax.data import verifiers
from dasd_jax.data.pipeline import PromptSet
from dasd_jax.data.sources import Problem, load_source, own_files
from dasd_jax.errors import UserError
from dasd_jax.run import collect, models, records, setup, user_files
from dasd_jax.run.evaluation import Answers, summary
from dasd_jax.run.failures import Failures
from dasd_jax.text.tokenizer_files import load_tokenizer
from dasd_jax.verify import own
from dasd_jax.verify.journal import Journal
from dasd_jax.verify.verifier import REWARD_THRESHOLD, UNJUDGED, Verdict, Verifier

# A reward function that does what the response says, as hostile responses and careless functions do together.
OBEDIENT = '''
import math
import os


def obey(problem, response):
    """In the order of the test."""
    if response == "raise":
        return int("twelve")
    if response == "nan":
        return math.nan
    if response == "above":
        return 1.5
    if response == "text":
        return "1.0"
    if response == "nothing":
        return None
    if response == "no reward":
        return {"score": 1.0}
    if response == "taken part":
        return {"reward": 1.0, "mean": 0.5}
    if response == "bad part":
        return {"reward": 1.0, "brief": math.inf}
    if response == "many parts":
        return {"reward": 1.0} | {f"part{i}": 0.0 for i in range(99)}
    if response == "exit":
        raise SystemExit
    if response == "write":
        open("trace", "w")
    if response == "program":
        os.system("touch trace")
    if response == "long":
        raise ValueError("\\U0001f600" * 10_000)
    if response == "die":
        os._exit(0)
    while response == "loop":
        pass
    if response == "where":
        return {"reward": 0.5, "files_here": len(os.listdir("."))}
    return {"reward": len(response) / 1_000_000, "known": sum(map(len, problem.values())), "wide": "é" in response}


def told(problem, response):
    """The reward says whether the problem is what the row was."""
    return problem == {
        "question": "2+2?", "answer": "4", "solution": "", "hint": "", "response": "",
        "source": problem["source"], "task": "2+2?",
        "level": [1, 2], "unit": "m",
    }


three = 3


def greedy(problem):
    """Takes another number of arguments."""
    return 1.0


def never(problem, response):
    """Never ends."""
    while True:
        pass
'''

BROKEN = {
    "syntax.py:f": ("def f(:", "cannot be imported: SyntaxError"),
    "absent.py:f": ("import no_such_module_anywhere", "cannot be imported: ModuleNotFoundError"),
    "leaves.py:f": ("raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
    "empty.py:f": ("", "has no function 'f'"),
    "mine.py:three": (OBEDIENT, "has no function 'three'"),
    "mine.py:greedy": (OBEDIENT, "greedy cannot be called with a problem and a response: too many positional"),
    "mine.py:never": (OBEDIENT, "an empty response takes more than rollout.verifier_deadline_s = 0.3 s"),
    "raises.py:f": ("def f(problem, response): return problem['level']", "KeyError: 'level'"),
    "half.py:f": ("def f(problem, response): return 'right'", "returned 'right': expected a number from 0 to 1"),
}


def problem(name, answer="4", **fields):
    return Problem(question="2+2?", answer=answer, source="s", index=0, scorer=name, **fields)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Reward functions in files; a package of them that Python finds; problems."""
    path = tmp_path_factory.mktemp("own")
    (path / "mine.py").write_text(OBEDIENT)
    package = path / "rewards_of_a_test"
    package.mkdir()
    (package / "__init__.py").write_text("print('imported')\nLEVEL = 0.25\n")
    (package / "graded.py").write_text(
        "from rewards_of_a_test import LEVEL\n\n\ndef f(problem, response):\n    return LEVEL\n"
    )
    (path / "rows.jsonl").write_text(json.dumps({"task": "2+2?", "answer": 4, "level": [1, 2], "unit": "m"}) + "\n")
    return path


@pytest.fixture(scope="module")
def pool(folder):
    """One worker that finds the package."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", str(folder))
        patched.syspath_prepend(folder)
        with Verifier(num_workers=1, deadline_s=0.3, memory_mb=1024) as made:
            yield made


# ------------------------------------------------------------------------------------------------ functions


def test_a_function_grades_whole_responses_and_its_parts_are_kept(pool, folder):
    """A response longer than any pipe arrives whole, whatever its characters."""
    asked, long = problem(f"{folder}/mine.py:obey"), "é" * 1_000_000
    short, whole, again = pool.verify([asked] * 3, ["x" * 250_000, long, "x" * 250_000])
    assert (short.reward, short.score, short.error, short.answer) == (0.25, 0.25, "", None)
    assert short.parts == {"known": 6.0, "wide": 0.0} and again == short
    assert (whole.reward, whole.parts["wide"], whole.correct, short.correct) == (1.0, 1.0, True, False)


def test_the_answer_is_extracted_beside_a_reward_of_ones_own(pool, folder):
    [verdict] = pool.verify([problem(f"{folder}/mine.py:obey")], [r"\boxed{5}"])
    assert verdict.answer == "5" and verdict.reward == 9 / 1_000_000


ENDS = {
    "raise": ("crash", "ValueError: invalid literal for int() with base 10: 'twelve'"),
    "nan": ("crash", "ValueError: returned nan: expected a number from 0 to 1"),
    "above": ("crash", "ValueError: returned 1.5: expected a number from 0 to 1"),
    "text": ("crash", "ValueError: returned '1.0': expected a number from 0 to 1"),
    "nothing": ("crash", "ValueError: returned None: expected a number from 0 to 1"),
    "no reward": ("crash", "ValueError: returned {'score': 1.0} without 'reward'"),
    "taken part": ("crash", "ValueError: returned a part 'mean'"),
    "bad part": ("crash", "ValueError: returned brief = inf: expected a finite number"),
    "many parts": ("crash", "ValueError: returned 99 parts"),
    "exit": ("crash", "SystemExit"),
    "write": ("crash", "PermissionError: a scorer may not open"),
    "program": ("crash", "PermissionError: a scorer may not os.system"),
    "long": ("crash", "ValueError: \U0001f600\U0001f600"),
    "die": ("crash", ""),
    "loop": ("timeout", ""),
}


def test_every_failure_of_a_function_is_one_verdict_and_the_next_is_judged(pool, folder):
    asked = problem(f"{folder}/mine.py:obey")
    texts = [text for end in ENDS for text in (end, f"after {end}")]
    verdicts = pool.verify([asked] * len(texts), texts)
    for (end, (error, detail)), failed, after in zip(ENDS.items(), verdicts[::2], verdicts[1::2], strict=True):
        assert (failed.reward, failed.error, failed.parts) == (0.0, error, {}), end
        assert failed.detail.startswith(detail) and bool(failed.detail) == bool(detail), end
        assert after.error == "" and after.reward == (len(end) + 6) / 1_000_000


def test_a_worker_that_reads_no_more_is_replaced_and_holds_up_nobody(pool, folder):
    asked, stopped, waited_for = problem(f"{folder}/mine.py:obey"), pool._workers[0].process, []
    pool.verify([asked], ["x"])  # it has started

    def rescue():
        if stopped.poll() is None:
            waited_for.append(stopped.pid)
            stopped.kill()

    timer = threading.Timer(20, rescue)
    os.kill(stopped.pid, signal.SIGSTOP)
    timer.start()
    [verdict] = pool.verify([asked], ["x" * 1_000_000])
    timer.cancel()
    assert verdict.reward == 1.0 and waited_for == []


def test_functions_run_in_an_empty_folder_that_is_removed(folder):
    before = os.listdir()
    with Verifier(num_workers=1, deadline_s=1.0, memory_mb=1024) as made:
        [verdict] = made.verify([problem(f"{folder}/mine.py:obey")], ["where"])
        assert verdict.parts == {"files_here": 0.0} and os.path.isdir(made._folder.name)
    assert not os.path.exists(made._folder.name) and os.listdir() == before


def test_a_function_in_a_module_is_found_without_importing_it_here(pool, capsys):
    name = "rewards_of_a_test.graded:f"
    assert verifiers.file_of(name).name == "graded.py" and capsys.readouterr().out == ""
    [verdict] = pool.verify([problem(name)], [""])
    assert (verdict.reward, verdict.error) == (0.25, "")


def test_a_function_is_told_the_fields_and_the_columns_of_its_row(pool, folder):
    [row] = load_source(f"jsonl:{folder}/rows.jsonl?question=task&verifier={folder}/mine.py:told")
    [verdict] = pool.verify([row], [""])
    assert (verdict.reward, verdict.correct, verdict.detail) == (1.0, True, "")
    [plain] = load_source(f"jsonl:{folder}/rows.jsonl?question=task")
    assert plain == dataclasses.replace(row, scorer="math", source=plain.source, columns="")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_function_is_one_line_at_the_start(name, pool, tmp_path):
    content, why = BROKEN[name]
    (tmp_path / name.partition(":")[0]).write_text(content)
    with pytest.raises(UserError) as refused:
        pool.probe([problem("math"), problem(f"{tmp_path}/{name}")])
    said = str(refused.value)
    assert said.startswith(f"data.verifier: '{tmp_path}/{name}': ") and why in said and own.SIGNATURE in said


def test_the_probe_calls_each_function_once_and_no_shipped_verifier(pool, folder, monkeypatch):
    asked = []
    judge = pool._score
    monkeypatch.setattr(pool, "_score", lambda pairs, progress: asked.extend(pairs) or judge(pairs, progress))
    mine = [problem(f"{folder}/mine.py:obey", answer=answer) for answer in "12"]
    pool.probe([problem("math"), *mine, problem("rewards_of_a_test.graded:f")])
    assert sorted(pair[0].answer for pair in asked) == ["1", "4"] and {pair[1] for pair in asked} == {""}


def test_the_example_of_the_page_grades_as_it_says(tmp_path):
    page = Path(__file__).parents[2].joinpath("docs", "verifier.md").read_text()
    path = tmp_path / "rewards.py"
    path.write_text(page.partition("```python\n")[2].partition("```")[0])
    found = own.load(*verifiers.located(f"{path}:right_or_boxed"))
    given = [own.reward(found, problem("x").as_dict(), text)[0] for text in (r"So \boxed{4}.", r"\boxed{5}", "4")]
    assert given == [1.0, 0.2, 0.0]


def test_a_file_that_changes_while_a_command_runs_is_an_error(tmp_path):
    path = tmp_path / "f.py"
    path.write_text("def f(problem, response): return 1.0")
    name, sha256 = verifiers.located(f"{path}:f")
    path.write_text("def f(problem, response): return 0.0")
    assert own.load(name, sha256) == f"{path} has changed since this command began"


def test_a_catastrophic_pattern_costs_its_deadline(pool):
    slow, fine = pool.verify([problem("regex", "(a+)+b")] * 2, ["Answer: " + "a" * 60, "Answer: aab"])
    assert (slow.error, slow.reward, fine.reward) == ("timeout", 0.0, 1.0)


# ------------------------------------------------------------------------------------------------ graded rewards


def graded(*rewards, **parts):
    return [Verdict(reward, reward, None, parts=dict(parts)) for reward in rewards]


def test_graded_rewards_reach_the_advantage_and_only_whole_ones_are_correct():
    verdicts, finished = graded(0.2, 0.5, 0.99, 1.0, 0.8), np.array([True] * 4 + [False])
    found = collect.outcomes(
        tiny.config("objective.overlong_tokens=8"), verdicts, finished, np.array([1, 12, 1, 1, 16])
    )
    np.testing.assert_array_equal(found.correct, [0, 0, 1, 1, 0])
    np.testing.assert_allclose(found.reward, [0.2, 0.25, 0.99, 1.0, -0.5], rtol=1e-6)


def drawn(rewards, **parts):
    rows = len(rewards)
    ones = np.ones((rows, 1), bool)
    verdicts = graded(*rewards, **parts)
    return collect.Collected(
        prompts=None,
        rollouts=RolloutBatch(ones, ones, None, None, finished=ones[:, 0]),
        outcomes=collect.outcomes(tiny.config(), verdicts, ones[:, 0], np.ones(rows)),
        problems=[problem("mine.py:f")] * rows,
        texts=["x"] * rows,
        verdicts=verdicts,
        batches=1,
        generated=rows,
        steps=np.ones(1, np.int32),
    )


def test_the_log_has_the_mean_of_graded_rewards_and_of_their_parts():
    batch = drawn([0.2, 0.4, 0.5, 0.5], format=1.0)
    batch.verdicts[0].parts["brief"] = 0.25  # of one response alone
    metrics = batch.metrics(2, 4, {"time/rollout_s": 1.0})
    assert metrics["reward/mean"] == pytest.approx(0.4) and metrics["reward/mixed_groups_frac"] == 0.5
    assert (metrics["reward/format"], metrics["reward/brief"], metrics["reward/crash_frac"]) == (1.0, 0.25, 0.0)


def test_groups_whose_graded_rewards_differ_are_mixed_though_none_is_right():
    collector = collect.Collector.__new__(collect.Collector)
    collector._config = tiny.config("rollout.rollouts=2")
    np.testing.assert_array_equal(collector._mixed(drawn([0.2, 0.4, 0.5, 0.5])), [True, False])


def test_pass_at_k_counts_right_responses_and_avg_at_k_their_rewards():
    kept = Answers(0, ["x"] * 4, [None] * 4, [0.5, 0.5, 0.98, 1.0], [1] * 4, [True] * 4, ["", "", "", "crash"])
    result = summary([problem("mine.py:f")], [kept])
    assert (result["avg@4"], result["pass@1"], result["pass@4"]) == (pytest.approx(0.745), 0.25, 1.0)
    assert (result["per_problem"], result["crash_frac"]) == ([result["avg@4"]], 0.25)


def test_the_commands_that_show_runs_take_the_same_for_right_and_for_judged():
    assert (records._RIGHT, records._UNJUDGED) == (REWARD_THRESHOLD, UNJUDGED)


def test_errors_of_a_scorer_are_said_once():
    """A task's scorer may crash too; that an answer takes a scorer of ours too long is common."""
    said = []
    failures = Failures(said.append)
    verdicts = [Verdict(0.0, 0.0, None, "timeout"), Verdict(0.0, 0.0, None, "crash", "ValueError: \x1b[2J")]
    batch = dataclasses.replace(drawn([0.0, 0.0]), verdicts=verdicts)
    of_a_task = dataclasses.replace(batch, problems=[dataclasses.replace(problem("task"), source="gym:x")] * 2)
    of_both = dataclasses.replace(batch, problems=[problem("mine.py:f"), of_a_task.problems[0]])
    slow = dataclasses.replace(of_a_task, verdicts=verdicts[:1] * 2)
    for step, collected in enumerate((slow, of_a_task, of_both, of_both), start=1):
        failures.note(collected.problems, collected.verdicts, f"step {step}: ")
    assert said == [
        "warning: step 2: data.verifier: task of gym:x: ValueError: ␛[2J: the reward of such a response is 0; this is "
        "said once, and their share is among the figures",
        "warning: step 3: data.verifier: mine.py:f: out of time: the reward of such a response is 0; this is said "
        "once, and their share is among the figures",
    ]


# ------------------------------------------------------------------------------------------------ files


def test_a_run_goes_on_with_the_files_that_it_began_with(folder, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OBEDIENT)
    config = tiny.config(f"data.verifier={path}:obey")
    [(name, sha256)] = user_files.of(config).items()
    written = user_files.as_written(config, {name: sha256})
    assert name == str(path) and not config_module.older(written)
    user_files.check_same(config, written, tmp_path)
    path.write_text(OBEDIENT + "\n")
    for theirs in (written, config.to_dict(), config.to_dict() | {config_module.FILES: 3}):
        with pytest.raises(UserError, match="^--workdir: "):
            user_files.check_same(config, theirs, tmp_path)
    assert user_files.as_written(tiny.config(), {}) == tiny.config().to_dict()


def test_the_files_of_every_spec_are_known_and_a_missing_one_names_its_field(folder):
    specs = {"data.sources": ["gym:chain_sum"], "data.benchmarks": [f"jsonl:x?verifier={folder}/mine.py:obey"]}
    found = own_files(specs, "json.decoder:JSONDecoder")
    assert [path.name for path in found.values()] == ["mine.py", "decoder.py"]
    with pytest.raises(UserError, match="^data.benchmarks: 'jsonl:x.*': no Python file"):
        own_files({"data.benchmarks": ["jsonl:x?verifier=gone.py:f"]}, "")


def test_kept_verdicts_do_not_outlive_the_file_that_gave_them(tmp_path):
    path, asked, calls = tmp_path / "verdicts.jsonl", [problem("mine.py:f")], []

    def verify(problems, texts, progress):
        calls.append(texts)
        return graded(0.1 * len(calls), brief=0.5)

    verifier = types.SimpleNamespace(verify=verify)
    had = Journal(path, verifier, {"mine.py": "a"}).verify(0, asked, ["x"])
    assert Journal(path, verifier, {"mine.py": "a"}).verify(0, asked, ["x"]) == had
    assert Journal(path, verifier, {"mine.py": "b"}).verify(0, asked, ["x"]) != had
    other = [dataclasses.replace(asked[0], scorer="mine.py:g")]
    assert Journal(path, verifier, {"mine.py": "a"}).verify(0, other, ["x"]) != had and len(calls) == 3


TOLD = {"columns": '{"level": 2}', "solution": "by heart", "hint": "count", "response": "4", "question": "5 * 8?"}


@pytest.mark.parametrize("name", TOLD)
def test_kept_verdicts_and_evaluations_do_not_outlive_what_the_function_was_told(name, tmp_path, mesh, monkeypatch):
    """A verifier of ours reads none of it: there they stay."""
    monkeypatch.setattr(verifiers, "located", lambda name: (name, "a"))
    bytes_, config = load_tokenizer("byte"), tiny.config("data.sources=('jsonl:x',)")
    calls = []

    def verify(problems, texts, progress):
        calls.append(texts)
        return graded(0.1 * len(calls), brief=0.5)

    verifier = types.SimpleNamespace(verify=verify)
    for scorer, again in (("mine.py:f", True), ("math", False)):
        one = dataclasses.replace(problem(scorer), columns='{"level": 1}' if again else "")
        other = dataclasses.replace(one, **({name: TOLD[name]} if again or name != "columns" else {}))
        path = tmp_path / scorer
        had = Journal(path, verifier).verify(0, [one], ["x"])
        assert (Journal(path, verifier).verify(0, [other], ["x"]) != had) == again
        text = setup.prompt_text(config, [])
        prompts = PromptSet([one], bytes_, text, student_width=999)
        before, after = (
            evaluate.deciding(config, mesh, bytes_, "4", "", prompts, [each])["problems"] for each in (one, other)
        )
        assert (before != after) == (again or name == "question")


# ------------------------------------------------------------------------------------------------ the command


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "no Python file"),
        ("def f(problem, response): return problem['level']", "KeyError: 'level'"),
    ],
)
def test_train_refuses_a_broken_function_before_it_writes_anything(content, why, tmp_path, monkeypatch, capfd):
    path, workdir = tmp_path / "f.py", tmp_path / "run"
    if content:
        path.write_text(content)
    monkeypatch.setattr(models, "open_model", lambda *_: pytest.fail("weights are loaded"))
    words = f"--config.data.verifier={path}:f", "--config.rollout.verifier_workers=1"
    assert tiny.command(monkeypatch)(tiny.TINY, f"--workdir={workdir}", *words) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: data.verifier: ") and error.count("\n") == 1 and why in error
    assert not workdir.exists()


GRADED = '''
def f(problem, response):
    """Shares of even characters, which differ between responses of random weights."""
    even = sum(ord(char) % 2 == 0 for char in response) / max(len(response), 1)
    if even > 0.6:
        raise ValueError(response)
    return {"reward": even, "asked": len(problem["question"])}
'''


@pytest.mark.slow
def test_a_run_learns_from_graded_rewards_and_goes_on_with_their_file_alone(tmp_path, monkeypatch, capfd):
    path, workdir = tmp_path / "f.py", tmp_path / "run"
    path.write_text(GRADED)
    fields = (
        *tiny.SMALL,
        "run.steps=2",
        "run.checkpoint_every=1",
        f"data.verifier={path}:f",
        "objective.truncated=score",
    )
    words = [tiny.TINY, f"--workdir={workdir}", *(f"--config.{field}" for field in fields)]
    train_ = tiny.command(monkeypatch)
    assert train_(*words) == 0
    out = capfd.readouterr().out
    assert "can change the sign of an advantage: graded rewards" in out
    lines = records.metrics(workdir)
    assert [line["step"] for line in lines] == [0, 1, 2]
    for line in lines[1:]:
        assert 0 < line["reward/mean"] < 1 and line["reward/asked"] > 1
        assert line["reward/mixed_groups_frac"] > 0 and line["credit/verifier_abs_mean"] > 0
    failed = sum(line.get(f"{what}_frac", 0) for line in lines for what in ("reward/crash", "eval/unjudged")) > 0
    assert out.count(f"data.verifier: {path}:f: ") == failed
    written = json.loads((workdir / "config.json").read_text())
    assert written["files"] == {str(path): verifiers.sha256(path)}
    assert train_(*words) == 0 and "holds a finished run" in capfd.readouterr().out
    path.write_text(GRADED + "\n")
    assert train_(*words) == 2
    assert f"{path} has changed since the run in {workdir} began" in capfd.readouterr().err
