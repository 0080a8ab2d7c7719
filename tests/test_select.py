"""The command that chooses data for fine-tuning: what it asks, keeps, refuses and writes; training on the result."""

import functools
import json
import sys

import jax
import numpy as np
import pytest
from tiny import command

from dasd_jax import cli, select
from dasd_jax.data.sources import load_source
from dasd_jax.mesh import make_mesh
from dasd_jax.run import models, selection
from dasd_jax.run.evaluation import Answers
from dasd_jax.run.selection import Example
from dasd_jax.text import prompts
from dasd_jax.text.tokenizer import ByteTokenizer

TINY = "--config=configs/qwen_math.py:tiny"
BYTES = ByteTokenizer()
SAMPLES = 2
FIELDS = [f"--config.{field}" for field in (
    "rollout.problems=4", "rollout.rollouts=2", "rollout.prompt_length=400", "rollout.max_new_tokens=4",
    f"run.eval_samples={SAMPLES}", "data.verifier=checksum",
)]  # fmt: skip
ANCHORS = 4


def row(number, **fields):
    names = "what is", "find the sum", "how many are"
    return {"question": f"{names[number % 3]} {number} + 1?", "answer": str(number + 1), **fields}


def texts(number):
    return {"cot": f"count on from {number}. Answer: {number + 1}", "tir": f"print({number} + 1)\nAnswer: {number + 1}"}


@pytest.fixture
def written(tmp_path):
    """A file of nine problems, of which the fourth lacks a program and the sixth has one that is too long."""
    rows = [row(i, versions=texts(i)) for i in range(9)]
    del rows[3]["versions"]["tir"]
    rows[5]["versions"]["tir"] = "print(6) " * 40
    path = tmp_path / "versions.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


@pytest.fixture
def call(monkeypatch, capsys):
    """call(*argv) → (exit code, stdout, stderr) of the command in this process, on one device."""
    monkeypatch.setattr(select, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["select", *map(str, argv)])
        code = 0
        try:
            cli.run(select.main)
        except SystemExit as ended:
            code = ended.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


class Asked:
    """In the place of the sampler: which prompts were answered, with rewards that the prompts decide."""

    def __init__(self):
        self.prompts = []
        self.stop_after = None  # batches
        self.crashes = lambda prompt: False

    def answer(self, *, prompts, sampling, example_ids, rows, failures, each_batch, **_):
        size = rows // sampling.rollouts
        for start in range(0, len(example_ids), size):
            if self.stop_after is not None and len(self.prompts) >= self.stop_after * size:
                raise KeyboardInterrupt
            ids = example_ids[start : start + size]
            said = [BYTES.decode(prompts[i]["student_prompt"][prompts[i]["student_prompt_mask"]]) for i in ids]
            self.prompts += said
            each_batch([self.of(i, text) for i, text in zip(ids, said, strict=True)])

    def of(self, i, text):
        reward, errors = rewards(text), [""] * SAMPLES
        if self.crashes(text):
            reward[-1], errors[-1] = 0.0, "timeout"
        return Answers(i, [""] * SAMPLES, [None] * SAMPLES, reward, [1] * SAMPLES, [True] * SAMPLES, errors)


def rewards(prompt):
    """Two verdicts that depend on all of the prompt."""
    value = sum(place * byte for place, byte in enumerate(prompt.encode(), start=1))
    return [float(value % 2), float(value // 2 % 2)]


@pytest.fixture
def asked(monkeypatch):
    """`Asked`, and no model at all."""
    fake = Asked()
    monkeypatch.setattr(selection, "answer", fake.answer)
    monkeypatch.setattr(selection, "relayout", lambda model, params, weights: params)
    monkeypatch.setattr(models, "open_model", lambda config, mesh: (None, {}))
    monkeypatch.setattr(models, "check_vocabulary", lambda tokenizer, model: None)
    return fake


def flags(written, output, *more):
    return [TINY, f"--input={written}", f"--output={output}", f"--anchors={ANCHORS}", *FIELDS, *more]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_version_is_shown_before_every_anchor_but_its_own(written, call, asked, tmp_path):
    """All prompts from their definition, and scores and decisions from the verdicts on them."""
    code, out, error = call(*flags(written, tmp_path / "out"))
    assert (code, error) == (0, "")
    report = json.loads((tmp_path / "out" / "selected.json").read_text())
    anchors = [each["question"] for each in report["anchors"]]
    assert len(set(anchors)) == ANCHORS and sum(each["cluster"] for each in report["anchors"]) == 9

    def prompt(question, shots):
        messages = prompts.student_messages(question, instruction=WORDS, shots=shots)
        return BYTES.decode(prompts.encode_prompt(BYTES, messages))

    expected = {(Example(), q): prompt(q, []) for q in anchors}
    scored = [i for i in range(9) if i not in (3, 5)]
    for i in scored:
        for name, text in texts(i).items():
            shots = [(row(i)["question"], text)]
            expected |= {(Example(i, name), q): prompt(q, shots) for q in anchors if q != row(i)["question"]}
    assert sorted(asked.prompts) == sorted(expected.values())
    mean = {}
    for example in dict.fromkeys(example for example, _ in expected):
        mean[example] = np.mean([rewards(p) for (other, _), p in expected.items() if other == example])
    assert report["without_example"]["mean"] == pytest.approx(mean[Example()])
    first, second = (np.array([mean[Example(i, name)] for i in scored]) for name in ("cot", "tir"))
    assert report["scores"]["tir"]["mean"] == pytest.approx(second.mean())
    low, high = np.quantile(np.round(first - second, 6), (0.25, 0.75))
    taken = [
        (i, name)
        for i, d in zip(scored, np.round(first - second, 6), strict=True)
        for name in ("cot", "tir")
        if (d >= low - 1e-9 if name == "cot" else d <= high + 1e-9)
    ]
    rows = lines(tmp_path / "out" / "selected.jsonl")
    assert [(each["question"], each["response"]) for each in rows] == [
        (row(i)["question"], texts(i)[name]) for i, name in taken
    ]
    assert {0, 1, 2} == {len([1 for j, _ in taken if j == i]) for i in range(9)}
    assert report["problems"] == {
        "read": 9, "duplicates": 0, "without tir": 1, "with a version that is too long": 1, "scored": 7,
    }  # fmt: skip
    assert "9 read" in out and "answers: 120 at most" in out and "1 left out with a version that is too long" in out
    assert [each.response for each in load_source(f"jsonl:{tmp_path}/out/selected.jsonl")] == [
        each["response"] for each in rows
    ]


def test_answers_that_no_scorer_could_judge_are_counted_with_every_score(written, call, asked, tmp_path):
    """One of two answers after every program: a decision by such scores compares nothing."""
    asked.crashes = lambda prompt: "print(" in prompt
    out = tmp_path / "out"
    code, said, _ = call(*flags(written, out))
    report = json.loads((out / "selected.json").read_text())
    assert code == 0 and {name: part["unjudged_frac"] for name, part in report["scores"].items()} == {
        "cot": 0.0, "tir": 0.5,
    }  # fmt: skip
    assert report["without_example"]["unjudged_frac"] == 0.0
    assert {line["unjudged_frac"] for line in lines(out / "scores.jsonl")[1:] if line["version"] == "tir"} == {0.5}
    assert "unjudged answers, which count as wrong: tir 0.500\n" in said


WORDS = "Reply with a single line 'Answer: X', where X is the final answer."  # data.instruction=answer_line


@pytest.mark.parametrize("batches", [0, 1, 3, 7])
def test_an_interrupted_selection_goes_on_and_ends_in_the_same_files(batches, written, call, asked, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert call(*flags(written, whole))[0] == 0
    many = len(asked.prompts)
    asked.prompts, asked.stop_after = [], batches
    code, _, error = call(*flags(written, parts))
    assert code == 130 and "select go on with the same command" in error
    assert not (parts / "selected.jsonl").exists() and not (parts / "selected.json").exists()
    before, asked.stop_after = len(asked.prompts), None
    if (parts / "scores.jsonl").exists():
        with (parts / "scores.jsonl").open("a") as file:
            file.write('{"problem": 0, "vers')  # as a kill leaves it
    code, out, _ = call(*flags(written, parts))
    assert code == 0 and ("already scored" in out) == bool(batches)
    assert len(asked.prompts) - many < before + ANCHORS * 2 and len(asked.prompts) >= many
    ours, theirs = ((folder / "scores.jsonl").read_text().split("\n", 1)[1] for folder in (parts, whole))
    assert ours == theirs
    assert (parts / "selected.jsonl").read_bytes() == (whole / "selected.jsonl").read_bytes()
    assert (parts / "selected.json").read_bytes() == (whole / "selected.json").read_bytes()


def test_other_quantiles_are_decided_from_the_scores_and_replace_nothing(written, call, asked, monkeypatch, tmp_path):
    out = tmp_path / "out"
    assert call(*flags(written, out))[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(models, "open_model", None)  # nothing is sampled from here on
    assert call(*flags(written, out))[0] == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    code, _, error = call(*flags(written, out, "--quantiles=0,1"))
    assert code == 2 and error == (
        f"error: --output: {out}/selected.json was written with quantiles = [0.25, 0.75], not [0.0, 1.0]: "
        "expected the same settings, or the file renamed to keep both, as well as selected.jsonl\n"
    )
    (out / "selected.json").rename(out / "first.json")
    code, _, error = call(*flags(written, out, "--quantiles=0,1"))
    assert code == 2 and error.startswith(f"error: --output: {out}/selected.jsonl exists without selected.json")
    (out / "selected.jsonl").rename(out / "first.jsonl")
    assert call(*flags(written, out, "--quantiles=0,1"))[0] == 0
    report = json.loads((out / "selected.json").read_text())
    assert report["decisions"] == {"cot": 0, "tir": 0, "both": 7} and len(lines(out / "selected.jsonl")) == 14
    assert (out / "scores.jsonl").read_bytes() == before["scores.jsonl"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("--config.run.seed=1", "run.seed = 0, not 1"),
        ("--config.run.eval_samples=4", "run.eval_samples = 2, not 4"),
        ("--anchors=3", "anchors = 4, not 3"),
        ("--versions=tir,cot", "versions = ['cot', 'tir'], not ['tir', 'cot']"),
        ("--config.data.instruction=boxed", "data.instruction = 'answer_line', not 'boxed'"),
    ],
)
def test_scores_of_other_settings_are_refused_and_left_alone(change, says, written, call, asked, tmp_path):
    out = tmp_path / "out"
    asked.stop_after = 3
    assert call(*flags(written, out))[0] == 130
    before, asked.stop_after = (out / "scores.jsonl").read_bytes(), None
    code, _, error = call(*flags(written, out, change))
    assert code == 2 and error.startswith(f"error: --output: {out}/scores.jsonl was written with ")
    assert says in error and error.count("\n") == 1 and (out / "scores.jsonl").read_bytes() == before


def test_scores_of_other_texts_are_refused(written, call, asked, tmp_path):
    out = tmp_path / "out"
    asked.stop_after = 3
    assert call(*flags(written, out))[0] == 130
    written.write_text(written.read_text().replace("count on from 7", "go on from 7"))
    code, _, error = call(*flags(written, out))
    assert code == 2 and "was written with input = " in error


# Each: flags in the place of the good ones, and how the message begins.
MISTAKES = {
    "more anchors than problems": (["--anchors=10"], "--anchors: 10: expected 2 to 9, the problems of --input"),
    "one anchor": (["--anchors=1"], "--anchors: 1: expected 2 to 9"),
    "no number of anchors": (["--anchors=many"], "argument --anchors: invalid int value: 'many'"),
    "one version": (["--versions=cot"], "--versions: 'cot': expected two different names"),
    "one version twice": (["--versions=cot,cot"], "--versions: 'cot,cot': expected two different names"),
    "three versions": (["--versions=cot,tir,pot"], "--versions: 'cot,tir,pot': expected two different names"),
    "an unknown version": (["--versions=cot,pot"], "--versions: cot,pot: none of the 9 problems has all of them"),
    "one quantile": (["--quantiles=0.5"], "--quantiles: '0.5': expected LOW,HIGH"),
    "quantiles the other way round": (["--quantiles=0.7,0.3"], "--quantiles: '0.7,0.3': expected LOW,HIGH"),
    "quantiles in per cent": (["--quantiles=25,75"], "--quantiles: '25,75': expected LOW,HIGH"),
    "no quantiles": (["--quantiles=nan,nan"], "--quantiles: 'nan,nan': expected LOW,HIGH"),
    "shots": (["--config.data.shots=1"], "data.shots: 1: expected 0, since a version is the one worked example"),
    "missing file": (["--input=none.jsonl"], "--input: 'jsonl:none.jsonl': no such file"),
    "no file": (["--input=,"], "--input: ',': expected at least one file"),
    "anchors that do not fit": (
        ["--config.rollout.prompt_length=90"],
        "rollout.prompt_length: 90: 4 of 4 anchors are longer: expected room for each of them",
    ),
    "no version that fits": (
        ["--config.rollout.prompt_length=190"],
        "rollout.prompt_length: 190: all 8 problems have a version that does not fit before the longest anchor",
    ),
    "missing weights": (["--config.model.weights=/nowhere.gguf"], "model.weights: /nowhere.gguf does not exist"),
    "budget above context": (["--config.rollout.max_new_tokens=500"], "rollout.max_new_tokens: 500 + rollout.prompt"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(mistake, written, call, tmp_path):
    change, expected = MISTAKES[mistake]
    code, _, error = call(*flags(written, tmp_path / "out", *change))
    assert code == 2 and error.startswith(f"error: {expected}") and error.count("\n") == 1, error
    assert not (tmp_path / "out").exists()


def test_a_damaged_file_is_refused_and_left_alone(written, call, asked, tmp_path):
    written.write_text(written.read_text() + '{"question": "1 + 1?"\n')
    code, _, error = call(*flags(written, tmp_path / "out"))
    assert code == 2 and f"{written}:10: not JSON" in error and not (tmp_path / "out").exists()
    scores = tmp_path / "out" / "scores.jsonl"
    scores.parent.mkdir()
    scores.write_text("{}\nno score\n")
    written.write_text("".join(written.read_text().splitlines(keepends=True)[:9]))
    code, _, error = call(*flags(written, tmp_path / "out"))
    assert code == 2 and error.startswith(f"error: --output: {scores} is damaged") and not asked.prompts
    assert scores.read_text() == "{}\nno score\n"


@pytest.mark.slow
def test_what_is_selected_is_trained_on(written, call, monkeypatch, capsys, tmp_path):
    """With the model itself: stopped scores are those of a whole run, and both versions of a problem are imitated."""
    out, again = tmp_path / "out", tmp_path / "again"
    code, said, error = call(*flags(written, out, "--quantiles=0.2,0.8"))
    assert code == 0, error
    whole = (out / "scores.jsonl").read_bytes()
    assert {reward for line in lines(out / "scores.jsonl")[1:] for reward in line["rewards"] or ()} > {0.0, 1.0}
    again.mkdir()
    header, _, scores = whole.partition(b"\n")
    (again / "scores.jsonl").write_bytes(header + b"\n" + scores[: len(scores) // 2])
    assert call(*flags(written, again, "--quantiles=0.2,0.8"))[0] == 0
    assert (again / "scores.jsonl").read_bytes() == whole
    assert (again / "selected.jsonl").read_bytes() == (out / "selected.jsonl").read_bytes()
    rows = lines(out / "selected.jsonl")
    problems = len({each["question"] for each in rows})
    assert problems < len(rows)
    fields = (
        f"data.sources=('jsonl:{out}/selected.jsonl',)", "data.heldout=2", "run.eval_problems=1", "run.eval_samples=1",
        "rollout.problems=4", "rollout.max_new_tokens=96", "optim.minibatches=1", "optim.microbatches=1", "run.steps=2",
    )  # fmt: skip
    train = functools.partial(command(monkeypatch), "--config=configs/qwen_math.py:tiny,method=sft")
    assert train(f"--workdir={tmp_path / 'run'}", *(f"--config.{field}" for field in fields)) == 0
    said = capsys.readouterr().out
    assert f"{len(rows)} read, {len(rows) - problems} duplicates, {problems} kept" in said
    losses = [line["loss/total"] for line in lines(tmp_path / "run" / "metrics.jsonl") if "loss/total" in line]
    assert len(losses) == 2 and all(loss > 0 for loss in losses)
