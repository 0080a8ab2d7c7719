"""Which files of the user's a run, its evaluations and its sweeps have to find as they were; no model is loaded."""

import json

import jax
import pytest
import tiny

from dasd_jax import evaluate, intervene, recorded
from dasd_jax.errors import UserError
from dasd_jax.learner import kept
from dasd_jax.mesh import make_mesh
from dasd_jax.recorded import Change
from dasd_jax.run import models, setup, user_files
from dasd_jax.run.asked import Asked
from dasd_jax.text.tokenizer_files import load_tokenizer

BYTES = load_tokenizer("byte")
REWARD = "def f(problem, response): return problem['level'] / 12"


@pytest.fixture
def rows():
    return [
        {"question": f"{i} + 1?", "answer": str(i + 1), "solution": f"count on from {i}", "level": i} for i in range(12)
    ]


@pytest.fixture
def problems(tmp_path, rows):
    """The file of a run's problems."""
    return written(tmp_path / "mine.jsonl", rows)


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config_of(problems, *more):
    """Of a run on these problems, judged by a function of the user's own, with the date of its start."""
    reward = problems.with_name("reward.py")
    reward.write_text(REWARD)
    named = f"data.sources=('jsonl:{problems}',)", f"data.verifier={reward}:f", "data.heldout=4", "data.now=2026-03-09"
    return tiny.config(*named, "run.eval_problems=4", "rollout.problems=4", "rollout.verifier_workers=1", *more)


def begun(folder, config):
    """The folder of a run that has begun."""
    train, evaluated, _ = setup.open_prompts(config, BYTES)
    folder.mkdir()
    content = user_files.as_written(config, user_files.of(config), user_files.of_problems(train, evaluated))
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def words(config, folder):
    """The command line of a config, for its folder."""
    fields = {f"{group}.{name}": value for group, of in config.to_dict().items() for name, value in of.items()}
    changed = {name: value for name, value in fields.items() if name.startswith(("data.", "run.eval_", "rollout."))}
    return [tiny.TINY, f"--workdir={folder}", *(f"--config.{name}={value}" for name, value in changed.items())]


CHANGES = {
    "an answer": lambda rows: rows[0].update(answer="7"),
    "a solution": lambda rows: rows[0].update(solution="by heart"),
    "a column of its own": lambda rows: rows[0].update(level=9),
    "a question": lambda rows: rows[0].update(question="2 + 2?"),
    "one more": lambda rows: rows.append({"question": "5 * 5?", "answer": "25", "solution": "so"}),
    "the order": lambda rows: rows.reverse(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_run_does_not_go_on_with_other_problems_behind_the_same_name(what, problems, rows, tmp_path, monkeypatch):
    """Also where no prompt tells them apart: nothing is loaded, and the line says what differs."""
    config = config_of(problems)
    folder = begun(tmp_path / "run", config)
    before = (folder / "config.json").read_bytes()
    for heldout in setup.open_problems(config)[1]:  # so that what is changed is trained on
        rows.sort(key=lambda row: row["question"] == heldout.question)
    CHANGES[what](rows)
    written(problems, rows)
    monkeypatch.setattr(models, "open_model", lambda *_: pytest.fail("weights are loaded"))
    said = []
    monkeypatch.setattr("dasd_jax.hosts.leave", lambda code, line: said.append((code, line)))
    tiny.command(monkeypatch)(*words(config, folder))
    [(code, line)] = said
    assert code == 2 and line.startswith(
        f"error: --workdir: training problems have changed since the run in {folder} began, "
    )
    assert "\n" not in line and (folder / "config.json").read_bytes() == before


def test_a_run_goes_on_with_the_same_files_and_one_of_an_older_version_without_the_check(problems, rows, tmp_path):
    config = config_of(problems)
    train, evaluated, _ = setup.open_prompts(config, BYTES)
    mine = user_files.of_problems(train, evaluated)
    user_files.check_problems(mine, user_files.as_written(config, {}, mine), tmp_path)
    user_files.check_problems(mine, user_files.as_written(config, {}), tmp_path)
    for name in mine:
        with pytest.raises(
            UserError, match=f"{name} have changed since the run in .* began, with sha256 0… and not {mine[name]:.12}"
        ):
            user_files.check_problems(mine, user_files.as_written(config, {}, mine | {name: "0"}), tmp_path)


def test_what_stands_beside_the_groups_of_a_config_is_no_group(problems, tmp_path):
    """A run with files of the user's own may change what any run may."""
    folder = begun(tmp_path / "run", config_of(problems))
    asked = recorded.changes(config_of(problems, "run.steps=9"), recorded.read(folder), folder)
    assert asked == [Change("run.steps", 6, 9)]


@pytest.fixture(params=[evaluate, intervene])
def command(request, monkeypatch):
    """A command that uses a checkpoint, on one device; where it would open that, LookupError."""
    monkeypatch.setattr(request.param, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))

    def opened(*_):
        raise LookupError

    monkeypatch.setattr(kept, "find", lambda workdir, *_: workdir / "checkpoints" / "000004")
    monkeypatch.setattr(Asked, "open", opened)
    return request.param


def test_a_checkpoint_is_not_asked_other_problems_than_its_run_was(command, problems, rows, tmp_path):
    """Unless the command line names others: then they are meant."""
    config = config_of(problems)
    folder = begun(tmp_path / "run", config)
    [asked, *_] = setup.open_problems(config)[1]
    next(row for row in rows if row["question"] == asked.question)["answer"] = "7"
    written(problems, rows)
    with pytest.raises(
        UserError, match=f"^--workdir: problems to evaluate have changed since the run in {folder} began, "
    ):
        command.main([f"--workdir={folder}"])
    with pytest.raises(LookupError):
        command.main([f"--workdir={folder}", f"--config.data.benchmarks=('jsonl:{problems}',)"])


def test_a_reward_function_that_has_changed_judges_no_checkpoint_of_its_run(command, problems, tmp_path):
    folder, rewards = begun(tmp_path / "run", config_of(problems)), problems.with_name("reward.py")
    rewards.write_text(REWARD.replace("12", "6"))
    (tmp_path / "copy.py").write_text(rewards.read_text())
    with pytest.raises(UserError, match=f"^data.verifier: {rewards}: its file has changed since it judged the answers"):
        command.main([f"--workdir={folder}"])
    with pytest.raises(LookupError):
        command.main([f"--workdir={folder}", f"--config.data.verifier={tmp_path / 'copy.py'}:f"])


@pytest.mark.parametrize(
    ("overrides", "same"),
    [
        (("data.system=" + "Be brief. " * 9,), False),
        (("data.transition=" + "Now do it yourself. " * 9,), False),
        (("objective.method=sft", "rollout.max_new_tokens=60"), False),
        (("data.system=Be brief.", "data.instruction=answer_line", "data.now=2026-03-10"), True),
        (("objective.method=grpo", "rollout.max_new_tokens=60"), True),
    ],
    ids=str,
)
def test_whatever_leaves_out_a_problem_changes_the_problems_and_all_else_does_not(overrides, same, rows, tmp_path):
    """A longer one fits without the longer texts."""
    rows += [{"question": f"{i} + {'0' * 30}?", "answer": str(i), "solution": "no change " * 5} for i in range(20)]
    widths = "rollout.prompt_length=200", "rollout.teacher_prompt_length=395", "data.privileged=solution"
    before, after = (
        user_files.of_problems(*setup.open_prompts(config_of(written(tmp_path / "mine.jsonl", rows), *each), BYTES)[:2])
        for each in (widths, (*widths, *overrides))
    )
    assert (before[user_files.TRAINED_ON] == after[user_files.TRAINED_ON]) == same
