"""Runs that go on, change on their way or start from others, through the command's own door."""

import json
import shutil

import jax
import numpy as np
import pytest
from tiny import SMALL, TINY, command

from dasd_jax import train
from dasd_jax.learner import checkpoint, kept

FIELDS = (*SMALL, "run.checkpoint_every=1")

pytestmark = pytest.mark.slow  # each trains


def call(patch, workdir, *words):
    """The exit code of a training of FIELDS with other fields or flags."""
    flags = [word if word.startswith("--") else f"--config.{word}" for word in (*FIELDS, *words)]
    return command(patch)(TINY, f"--workdir={workdir}", *flags)


def trained(folder, *words):
    """A run in this process, whole."""
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, folder, *words) == 0
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A finished run of two steps."""
    return trained(tmp_path_factory.mktemp("runs") / "first", "run.steps=2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same run with three steps from the start."""
    return trained(tmp_path_factory.mktemp("runs") / "whole", "run.steps=3")


@pytest.fixture
def copied(first, tmp_path):
    """The finished run, to be changed."""
    return shutil.copytree(first, tmp_path / "w")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """run(*words, workdir) → (exit code, stdout, stderr) of a training in this process."""

    def once(*words: str, workdir=tmp_path / "w") -> tuple[int, str, str]:
        return call(monkeypatch, workdir, *words), *capsys.readouterr()

    return once


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def numbers(workdir):
    """metrics.jsonl without what depends on the clock, and without evaluations: one more where a run was finished."""
    unlike = ("time/", "eval/")
    return [
        {name: value for name, value in line.items() if not name.startswith(unlike) and not name.endswith("_per_s")}
        for line in lines_of(workdir / "metrics.jsonl")
    ]


def params(workdir, mesh, step):
    return checkpoint.restore_params(workdir / "checkpoints" / f"{step:06d}", mesh)[1]


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def heldout(workdir, step):
    return json.loads((workdir / "heldout" / f"{step}.json").read_text())


def test_a_finished_run_that_goes_on_ends_like_one_that_was_never_finished(copied, whole, run, mesh):
    """Bit for bit, where the schedule does not depend on the number of steps."""
    code, out, err = run("run.steps=3")
    assert (code, err) == (0, "") and f"resumed from {copied / 'checkpoints' / '000002'}" in out
    assert "from step 3 on: run.steps 2 → 3\nthe learning rate stays 0.0005\n" in out
    assert numbers(copied) == numbers(whole) and heldout(copied, 3) == heldout(whole, 3)
    assert_equal(params(copied, mesh, 3), params(whole, mesh, 3))
    assert lines_of(copied / "changes.jsonl") == [{"step": 3, "field": "run.steps", "before": 2, "after": 3}]
    assert json.loads((copied / "config.json").read_text())["run"]["steps"] == 3
    assert json.loads((copied / "done.json").read_text())["steps"] == 3


def test_a_run_that_was_killed_before_it_went_on_is_no_finished_one(copied, run, monkeypatch):
    """done.json goes before anything else is written, and the next start has the same changes once."""
    more = ("run.steps=3", "guards.on_collapse=anneal")
    whole = train.learn

    def killed(run, step):
        assert step == 3
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "learn", killed)
    assert run(*more)[0] == 130 and not (copied / "done.json").exists()
    noted = (copied / "changes.jsonl").read_text()
    monkeypatch.setattr(train, "learn", whole)
    code, out, err = run(*more)
    assert (code, err) == (0, "")
    assert "from step 3 on: guards.on_collapse stop → anneal\nfrom step 3 on: run.steps 2 → 3\n" in out
    assert (copied / "changes.jsonl").read_text() == noted and noted.count("\n") == 2
    assert json.loads((copied / "config.json").read_text())["guards"]["on_collapse"] == "anneal"


def test_another_rate_and_another_weight_count_from_the_next_step_on(copied, run):
    """And an evaluation of steps after the one that it goes on from, which this run does not repeat, is forgotten."""
    shutil.copy(copied / "heldout" / "2.json", copied / "heldout" / "50.json")
    code, out, err = run("run.steps=3", "objective.beta=0.2", "optim.learning_rate=1e-3")
    assert (code, err) == (0, "")
    for said in (
        "objective.beta 0.1 → 0.2",
        "optim.learning_rate 0.0005 → 0.001",
        "optim/learning_rate 0.0005 → 0.001",
    ):
        assert f"from step 3 on: {said}\n" in out
    assert {path.stem for path in (copied / "heldout").iterdir()} == {"0", "2", "3"}
    rates = [line.get("optim/learning_rate") for line in lines_of(copied / "metrics.jsonl")]
    assert rates == [None, pytest.approx(2e-4), pytest.approx(4e-4), pytest.approx(1e-3)]
    config = json.loads((copied / "config.json").read_text())
    assert (config["objective"]["beta"], config["optim"]["learning_rate"]) == (0.2, 1e-3)
    done = json.loads((copied / "done.json").read_text())
    assert done["objective"]["beta"] == 0.2
    assert [line["field"] for line in lines_of(copied / "changes.jsonl")] == [
        "objective.beta", "optim.learning_rate", "run.steps", "optim/learning_rate",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["run.steps=1"], "run.steps: 1: the run in W has done 2: expected more, or another --workdir"),
        (
            ["run.steps=2", "objective.beta=0.2"],
            "objective.beta: 0.2: the run in W is finished with 0.1: expected more run.steps",
        ),
        (["run.steps=3", "run.seed=1"], "--workdir: W belongs to a run with run.seed = 0, not 1, which would lose"),
        (["run.steps=3", "--from=W"], "--from: W is the --workdir: expected another run"),
    ],
)
def test_what_a_finished_run_cannot_become_is_one_line_and_changes_nothing(changed, said, copied, run):
    before = sorted((path, path.stat().st_mtime_ns) for path in copied.rglob("*"))
    code, _, err = run(*(word.replace("W", str(copied)) for word in changed))
    assert code == 2 and err.count("\n") == 1
    assert err.startswith(f"error: {said.replace('W', str(copied))}"), err
    assert sorted((path, path.stat().st_mtime_ns) for path in copied.rglob("*")) == before


def test_a_run_without_its_last_checkpoint_cannot_end_before_what_it_has_done(copied, run):
    (copied / "done.json").unlink()
    code, _, err = run("run.steps=1")
    assert (
        code == 2
        and err == f"error: run.steps: 1: the run in {copied} has done 2: expected more, or another --workdir\n"
    )
    code, out, err = run("run.steps=2")
    assert (code, err) == (0, "") and (copied / "done.json").exists()


def test_evaluations_of_other_settings_are_made_again_and_compared_among_themselves(copied, run):
    old = heldout(copied, 2)
    code, out, err = run("run.steps=3", "run.eval_samples=4", "run.eval_every=1")
    assert (code, err) == (0, "")
    assert "from step 3 on: run.eval_samples 2 → 4\n" in out
    assert "held-out problems are evaluated again: earlier evaluations are not compared with those from here on" in out
    assert old["samples"] == 2 and heldout(copied, 2)["samples"] == heldout(copied, 3)["samples"] == 4
    done = json.loads((copied / "done.json").read_text())
    assert done["compared_with_step"] == 2 and "rise since step 2: " in out
    assert done["heldout"]["avg@4"] == [heldout(copied, 2)["avg@4"], heldout(copied, 3)["avg@4"]]
    assert kept.find(copied, "best").name == "000003"


# ------------------------------------------------------------------------------------------------ from another run


def test_a_new_run_has_the_weights_and_the_next_batch_and_knows_where_from(first, run, tmp_path):
    """Its first evaluation is the other's last."""
    workdir = tmp_path / "w"
    code, out, err = run(f"--from={first}:2", "run.steps=1")
    assert (code, err) == (0, "")
    assert f"starts from step 2 of {first}: weights; the data go on after 2 batches\n" in out
    assert "was trained on" not in out
    assert heldout(workdir, 0) == heldout(first, 2)
    assert [line["batch"] for line in lines_of(workdir / "verdicts.jsonl")] == [2]
    assert run("run.steps=1")[0] == run("run.steps=1", f"--from={first}")[0] == 0
    code, _, err = run("run.steps=1", f"--from={first}:1")
    assert code == 2 and err.startswith(f"error: --from: {first}:1: the run in {workdir} started from {first}:2: ")


def test_a_run_with_all_of_another_one_goes_the_same_way(run, mesh, tmp_path):
    """Weights, moments and data: at one rate, and where both steps are scored alike, its first is the other's third."""
    once = ("optim.warmup_steps=0", "run.keep_checkpoints=3", "run.rescore_every=1")
    assert run("run.steps=3", *once, workdir=tmp_path / "whole")[0] == 0
    code, out, err = run(f"--from={tmp_path / 'whole'}:2", "--from-optimizer", "run.steps=1", *once)
    assert (code, err) == (0, "") and ": weights and moments; the data go on after 2 batches\n" in out
    assert_equal(params(tmp_path / "w", mesh, 1), params(tmp_path / "whole", mesh, 3))
    assert run(f"--from={tmp_path / 'whole'}:2", "run.steps=1", *once, workdir=tmp_path / "v")[0] == 0
    with pytest.raises(AssertionError):
        assert_equal(params(tmp_path / "v", mesh, 1), params(tmp_path / "whole", mesh, 3))


def test_where_other_batches_are_drawn_the_data_begin_anew(first, run, tmp_path):
    code, out, err = run(f"--from={first}", "run.steps=1", "data.heldout=9")
    assert (code, err) == (0, "")
    assert f"starts from step 2 of {first}: weights; the data start over, since the training problems differ\n" in out
    # Among the nine first problems by their hash are two that differ in the order of their numbers: eight leave no room
    # for both, and the other run was trained on them.
    assert f"warning: the run in {first} was trained on 2 of the 9 problems to evaluate\n" in out
    assert [line["batch"] for line in lines_of(tmp_path / "w" / "verdicts.jsonl")] == [0]


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_from_there_again(first, run, monkeypatch, tmp_path):
    whole = train.learn

    def killed(run, step):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "learn", killed)
    assert run(f"--from={first}:1", "run.steps=1")[0] == 130
    monkeypatch.setattr(train, "learn", whole)
    shutil.copy(first / "heldout" / "2.json", tmp_path / "w" / "heldout" / "2.json")
    code, out, err = run("run.steps=1")
    assert {path.stem for path in (tmp_path / "w" / "heldout").iterdir()} == {"0", "1"}
    assert (code, err) == (0, "") and f"starts from step 1 of {first}: weights; the data go on after 1 batches" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--from=FIRST", "model.preset=qwen3_tiny_other"],
            "--from: model.preset = 'qwen3_tiny_other', but the run in",
        ),
        (["--from=FIRST:7"], "--from: 7: FIRST/checkpoints/000007 does not exist: expected a path or a step of 1, 2"),
        (["--from=/nowhere"], "--from: /nowhere holds no config.json: expected the --workdir of a run"),
        (["--from-optimizer"], "--from-optimizer: expected --from=RUN with it"),
    ],
)
def test_what_no_run_can_start_from_is_one_line_and_leaves_nothing(words, said, first, run, tmp_path):
    code, _, err = run(*(word.replace("FIRST", str(first)) for word in words))
    assert code == 2 and err.count("\n") == 1
    assert err.startswith(f"error: {said.replace('FIRST', str(first))}"), err
    assert not (tmp_path / "w").exists()


# ------------------------------------------------------------------------------------------------ what is kept


def test_without_its_optimiser_a_run_is_smaller_and_ends_there(first, run, mesh, tmp_path):
    workdir = tmp_path / "w"
    code, _, err = run("run.steps=2", "run.keep_optimizer=False")
    assert (code, err) == (0, "")
    assert_equal(params(workdir, mesh, 2), params(first, mesh, 2))
    assert not kept.damage(workdir / "checkpoints" / "000002")
    sizes = [
        sum(file.stat().st_size for file in each.rglob("*"))
        for each in (workdir / "checkpoints", first / "checkpoints")
    ]
    assert sizes[0] < 0.4 * sizes[1]
    code, _, err = run("run.steps=3", "run.keep_optimizer=False")
    assert code == 2 and err.count("\n") == 1 and "whose optimiser was not kept (run.keep_optimizer)" in err
    assert (workdir / "done.json").exists()
    code, _, err = run(f"--from={workdir}", "--from-optimizer", "run.steps=1", workdir=tmp_path / "v")
    assert code == 2 and "without its optimiser (run.keep_optimizer): expected no --from-optimizer" in err
    code, out, err = run(f"--from={workdir}", "run.steps=1", workdir=tmp_path / "v")
    assert (code, err) == (0, "") and ": weights; the data go on after 2 batches\n" in out


def test_a_run_is_weights_with_their_tokenizer(first, run, tmp_path):
    code, _, err = run(f"model.weights={first}", "model.tokenizer=", "model.preset=", "run.steps=1")
    assert (code, err) == (0, "") and heldout(tmp_path / "w", 0) == heldout(first, 2)


def test_a_run_remembers_the_checkpoint_that_it_began_with_when_the_other_run_goes_on(
    copied, run, monkeypatch, tmp_path
):
    """Before its first checkpoint it begins again from there; afterwards it still says so."""
    begin = (f"model.weights={copied}", "model.tokenizer=", "model.preset=", "run.steps=1")
    new, whole = tmp_path / "new", train.learn
    monkeypatch.setattr(train, "learn", lambda run, step: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run(*begin, workdir=new)[0] == 130
    monkeypatch.setattr(train, "learn", whole)
    assert run("run.steps=3", "run.keep_checkpoints=3")[0] == 0
    assert run(*begin, workdir=new)[0] == 0
    assert heldout(new, 0) == heldout(copied, 2) != heldout(copied, 3)
    assert run(*begin[:-1], "run.steps=2", workdir=new)[0] == 0
    started = json.loads((new / "config.json").read_text())["start"]
    assert started.pop("weights") == str(copied / "checkpoints" / "000002") and list(started) == ["fingerprint"]
