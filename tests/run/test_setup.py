"""What is trained on, the same for every method; and what is evaluated instead of a part of it."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from text import tokenizer_samples
from tiny import config

from dasd_jax import train
from dasd_jax.batch import TrainState
from dasd_jax.config import ModelGroup
from dasd_jax.errors import UserError
from dasd_jax.learner import checkpoint, kept
from dasd_jax.model import param_table
from dasd_jax.model.presets import preset
from dasd_jax.objective.contract import NOISE
from dasd_jax.run import counts, models, setup
from dasd_jax.text.tokenizer import ByteTokenizer
from dasd_jax.text.tokenizer_files import load_tokenizer

BYTES = load_tokenizer("byte")


def write(path, questions):
    path.write_text("".join(json.dumps({"question": question, "answer": "1"}) + "\n" for question in questions))
    return f"jsonl:{path}"


def tiny(sources, benchmarks, *overrides):
    data = f"data.sources={tuple(sources)}", f"data.benchmarks={tuple(benchmarks)}", "data.heldout=0"
    return config(*data, "run.eval_problems=0", *overrides)


@pytest.fixture
def files(tmp_path):
    """A source of 20 problems, and two benchmarks that share 3 and 1 of them."""
    source = write(tmp_path / "source.jsonl", [f"What is {i} + 1?" for i in range(20)])
    shared = [f"what  is {i} + 1? " for i in range(3)]
    first = write(tmp_path / "first.jsonl", [*shared, *(f"What is {i} - 1?" for i in range(4))])
    second = write(tmp_path / "second.jsonl", ["WHAT IS 19 + 1?", "What is 2 * 2?"])
    return source, first, second


def test_problems_of_a_benchmark_are_not_trained_on(files):
    source, first, second = files
    train, evaluated, read = setup.open_prompts(tiny([source], [first, second]), BYTES)
    assert len(train) == 16 and read["in a benchmark"] == 4
    assert not {f"What is {i} + 1?" for i in (0, 1, 2, 19)} & {problem.question for problem in train.problems}
    assert [problem.source for problem in evaluated.problems] == [first] * 7 + [second] * 2
    train, _, read = setup.open_prompts(tiny([source], [first], "data.heldout=5"), BYTES)
    assert read["held out and not evaluated"] == 5 and len(train) == 20 - 3 - 5
    train, _, read = setup.open_prompts(tiny([source], [], "data.heldout=4"), BYTES)
    assert "in a benchmark" not in read and len(train) == 16


def test_conversations_of_a_benchmark_are_not_trained_on_as_texts(tmp_path):
    source = write(tmp_path / "source.jsonl", [f"What is ${i} + 1$?" for i in range(6)])
    benchmark = write(tmp_path / "talk.jsonl", [[{"role": "user", "content": "What is  \\(2+1\\)?"}]])
    train, _, read = setup.open_prompts(tiny([source], [benchmark], "rollout.problems=4"), BYTES)
    assert read["in a benchmark"] == 1 and len(train) == 5
    assert "What is $2 + 1$?" not in {problem.question for problem in train.problems}


def test_problems_that_differ_from_a_benchmarks_in_the_order_of_their_numbers_are_not_trained_on(tmp_path):
    source = write(tmp_path / "source.jsonl", ["4 + 9?", "9 + 4?", "3 + 7?", "7 + 3?", "8 + 2?", "4 * 9?", "5 + 1?"])
    benchmark = write(tmp_path / "benchmark.jsonl", ["4 + 9?", "7  + 3?", "2 + 8?"])
    train, _, read = setup.open_problems(tiny([source], [benchmark]))
    assert {problem.question for problem in train} == {"4 * 9?", "5 + 1?"}
    assert read["in a benchmark"] == 2 and read["in a benchmark but for the order of their numbers"] == 3


def test_every_method_draws_the_same_batches_whatever_its_teacher_is_shown(tmp_path):
    """Two of the problems have no hint, and the hint of another one does not fit the teacher's prompt."""
    lines = [{"question": f"What is {i} + 1?", "answer": "1", "hint": "count"} for i in range(12)]
    lines[3]["hint"] = lines[7]["hint"] = ""
    lines[5]["hint"] = "long " * 100
    path = tmp_path / "hints.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    benchmark = write(tmp_path / "benchmark.jsonl", ["What is 2 * 2?"])
    drawn = {}
    for method in ("dasd", "grpo", "sft"):
        made = tiny([f"jsonl:{path}"], [benchmark], f"objective.method={method}", "data.privileged=hint")
        train, _, _ = setup.open_prompts(made, BYTES)
        left_out = train.dropped["no hint"], train.dropped["teacher prompt longer than 320 tokens"]
        assert len(train) == 9 and left_out == (2, 1)
        batches = train.batches(4, seed=0)
        drawn[method] = [train.problems[i].question for n in range(6) for i in batches[n].example_id]
    assert drawn["dasd"] == drawn["grpo"] == drawn["sft"]


def test_the_number_of_problems_is_capped_in_each_benchmark(files):
    source, first, second = files
    for cap, expected in ((0, 7 + 2), (1, 1 + 1), (5, 5 + 2)):
        capped = tiny([source], [first, second], f"run.eval_problems={cap}")
        prompts = setup.open_evaluation(capped, BYTES)
        chosen = setup.evaluated(capped, prompts)
        assert len(chosen) == expected and len(prompts) == 9
        assert {prompts.problems[i].source for i in chosen} == {first, second}
    heldout = tiny([source], [], "run.eval_problems=3", "data.heldout=4")
    assert setup.evaluated(heldout, setup.open_evaluation(heldout, BYTES)) == [0, 1, 2]


def test_what_is_left_out_of_training_and_of_each_benchmark_is_counted_apart_in_one_line(tmp_path):
    """Prompts of more than 192 tokens; the second benchmark is whole."""
    long = [f"{'long ' * 40}{i}?" for i in range(5)]
    source = write(tmp_path / "source.jsonl", [*(f"What is {i} + 1?" for i in range(6)), "What is 0 + 1?", *long[:2]])
    first = write(tmp_path / "first.jsonl", ["What is 5 + 1?", *long[2:]])
    second = write(tmp_path / "second.jsonl", ["What is 2 * 2?", "What is 2 * 3?"])
    made = tiny([source], [first, second], "rollout.problems=4")
    train, evaluated, read = setup.open_prompts(made, BYTES)
    training = "training: 5 of 7, 2 left out: student prompt longer than 192 tokens"
    asked = "to evaluate: 3 of 6, 3 left out: student prompt longer than 192 tokens"
    warning = (
        f"warning: data.benchmarks: '{first}': 3 of its 4 problems are left out: its figures are not those of the "
        "whole benchmark"
    )
    before = "problems: 9 read, 1 duplicates, 8 kept, 1 in a benchmark"
    assert [*counts.lines(made, evaluated, train, read)] == [f"{before}; {training}; {asked}", warning]
    assert [*counts.lines(made, setup.open_evaluation(made, BYTES))] == [f"problems: {asked}", warning]
    whole = tiny([source], [second], "rollout.problems=4")
    assert [*counts.lines(whole, setup.open_evaluation(whole, BYTES))] == ["problems: to evaluate: 2"]


def test_the_shots_of_an_evaluation_are_those_of_the_run_whatever_its_benchmarks(files, tmp_path):
    """Another benchmark holds training problems of the run, of which one is a shot."""
    source, first, second = files

    def asking(benchmarks, heldout=0):
        widths = "rollout.prompt_length=400", "rollout.teacher_prompt_length=500"
        more = "rollout.problems=4", "data.shots=2", f"data.heldout={heldout}", *widths
        return tiny([source], benchmarks, *more)

    _, own, _ = setup.open_prompts(asking([first]), BYTES)
    problems, _, _ = setup.open_problems(asking([first]))
    third = write(tmp_path / "third.jsonl", [problems[1].question, problems[5].question, "What is 2 * 2?"])
    for benchmarks in ([second], [third], [first, third]):
        found, asked = setup.problems_to_evaluate(asking(benchmarks), [first])
        assert setup.prompt_text(asking(benchmarks), found).shots == tuple(problems[:2])
        assert {problem.source for problem in asked} == set(benchmarks)
    evaluated = setup.open_evaluation(asking([third]), BYTES, [first])
    line = next(counts.lines(asking([third]), evaluated))
    assert line == "problems: to evaluate: 3, 1 shown with their answers in every prompt (data.shots)"
    assert setup.open_evaluation(asking([first]), BYTES, [first]).digest() == own.digest()
    found, _ = setup.problems_to_evaluate(asking([], 4), [first])
    assert found[:2] == setup.open_problems(asking([first], 4))[0][:2]


def test_benchmarks_are_evaluated_without_the_training_sources(files):
    _, first, second = files
    elsewhere = tiny(["jsonl:/nowhere.jsonl"], [first, second])
    assert len(setup.open_evaluation(elsewhere, BYTES)) == 9


def test_mistaken_benchmarks_are_one_line_each(files, tmp_path):
    source, first, _ = files
    empty = write(tmp_path / "empty.jsonl", [])
    long = write(tmp_path / "long.jsonl", ["long " * 100])
    all_of_them = write(tmp_path / "all.jsonl", [f"What is {i} + 1?" for i in range(20)])
    for benchmarks, reason in (
        ([first, empty], f"data.benchmarks: '{empty}': it holds no problems, expected at least one"),
        (["jsonl:/nowhere.jsonl"], "data.benchmarks: 'jsonl:/nowhere.jsonl': no such file '/nowhere.jsonl'"),
        ([first, long], f"data.benchmarks: '{long}': no problem fits rollout.prompt_length: expected at least one"),
        ([long], "data.benchmarks: all 1 problems were dropped: 1 with a student prompt longer than 192 tokens"),
        ([all_of_them], "data.sources: all of their problems are in data.benchmarks: expected others to train on"),
    ):
        with pytest.raises(UserError) as refusal:
            setup.open_prompts(tiny([source], benchmarks), BYTES)
        assert str(refusal.value) == reason
    with pytest.raises(UserError, match="expected each benchmark once"):
        tiny([source], [first, first])
    with pytest.raises(UserError, match="data.heldout: 0: expected at least 1 problem"):
        tiny([source], [])


def test_a_padded_vocabulary_is_accepted_where_the_tokenizers_files_explain_it():
    """Any padding that the config.json beside the tokenizer has; without one, as much as common roundings add."""
    model = dataclasses.replace(preset("qwen3_tiny"), vocab_size=2644)
    for explained, sizes in ((None, (259, 259 + 1024)), (2644, (2644,)), (4096, (259,))):
        tokenizer = SimpleNamespace(vocab_size=259, model_vocab=explained)
        for size in sizes:
            models.check_vocabulary(tokenizer, dataclasses.replace(model, vocab_size=size))
    for explained, vocab_size in ((None, 259), (4096, 259), (2644, 2645)):
        with pytest.raises(UserError, match="does not belong to the model's 2644"):
            models.check_vocabulary(SimpleNamespace(vocab_size=vocab_size, model_vocab=explained), model)


def test_templates_that_ask_for_the_date_are_told_that_of_the_run(files):
    """Students, teachers and evaluations alike, on whatever day they are made."""
    source, first, _ = files
    tokenizer = ByteTokenizer()
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }} " + tokenizer.chat_template
    of_the_run = tiny([source], [first], "data.now=2026-03-09T23:59")
    train, evaluated, _ = setup.open_prompts(of_the_run, tokenizer)
    teachers = train.teacher_batch(np.arange(2), group=1)
    prompts = [train[0]["student_prompt"], evaluated[0]["student_prompt"], *teachers.teacher_prompt]
    assert all("09 Mar 2026 user" in tokenizer.decode(ids) for ids in prompts)
    assert setup.open_evaluation(of_the_run, tokenizer).digest() == evaluated.digest()
    another_day = tiny([source], [first], "data.now=2026-03-10")
    assert setup.open_evaluation(another_day, tokenizer).digest() != evaluated.digest()


KINDS = {
    "Hugging Face": lambda folder: tokenizer_samples.write_hub(folder, generation={"eos_token_id": [2, 0]}),
    "GGUF": lambda folder: tokenizer_samples.write_gguf(
        folder / "x.gguf", tokenizer_samples.train_bpe(tokenizer_samples.SMOLLM_WORDS), eot=0
    ),
    "SentencePiece": lambda folder: tokenizer_samples.write_sentencepiece(folder / "tokenizer.model"),
}


def test_a_verifier_that_would_judge_no_problem_is_one_line(files):
    source, *benchmarks = files
    named = f"{source}?verifier=math"
    with pytest.raises(
        UserError, match=r"^data.verifier: 'numeric': has no effect: every source sets verifier= itself \(math\): ex"
    ):
        setup.open_problems(tiny([named], [], "data.verifier=numeric", "data.heldout=2"))
    setup.open_problems(tiny([named], benchmarks, "data.verifier=numeric"))
    setup.open_problems(tiny([source], [], "data.verifier=numeric", "data.heldout=2"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_has_the_tokenizer_and_needs_no_other_file(kind, mesh, tmp_path):
    """Also where the source is gone and the checkpoint stands elsewhere."""
    source = tmp_path / "source"
    source.mkdir()
    path = KINDS[kind](source)
    own = load_tokenizer(str(path))
    beside = models.tokenizer_files(ModelGroup(weights="random", tokenizer=str(path)))
    model = dataclasses.replace(preset("qwen3_tiny"), vocab_size=512)
    params = param_table.init(model, mesh, 0)
    writer = checkpoint.Writer(tmp_path / "run", model, keep=1, beside=beside)
    folder = writer.save(TrainState(np.int32(3), params, (), np.int32(7), {}))
    writer.wait()
    shutil.rmtree(source)
    assert models.open_tokenizer(ModelGroup(weights=str(tmp_path / "run"))).stop_ids == own.stop_ids
    alone = shutil.move(folder, tmp_path / "alone")
    assert not kept.damage(Path(alone))
    group = ModelGroup(weights=str(alone))
    tokenizer = models.open_tokenizer(group)
    for name in ("stop_ids", "pad_id", "vocab_size", "chat_template", "bos_token", "eos_token", "control"):
        assert getattr(tokenizer, name) == getattr(own, name), name
    for text in tokenizer_samples.TEXTS:
        assert tokenizer.encode(text) == own.encode(text)
    (Path(alone) / "generation_config.json").write_text("{}")
    assert kept.damage(Path(alone)) == "generation_config.json differs from its manifest"


def test_weights_without_a_checkpoint_or_a_config_that_can_be_read_are_one_line(mesh, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    group = ModelGroup(weights=str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"^model.weights: .*/run has no finished checkpoint: expected a run that has"):
        models.open_tokenizer(group)
    folder = tmp_path / "run" / "checkpoints" / "000002"
    checkpoint.write(folder, preset("qwen3_tiny"), {"params": param_table.init(preset("qwen3_tiny"), mesh, 0)})
    with pytest.raises(UserError, match="^model.tokenizer="):  # none is known
        models.open_tokenizer(group)
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"^model.weights: .*/run/config.json is damaged \(KeyError\): expected that"):
        models.open_tokenizer(group)
    (tmp_path / "run" / "config.json").write_text(json.dumps(config().to_dict()))
    assert models.open_tokenizer(group).stop_ids == models.open_tokenizer(ModelGroup(weights=str(folder))).stop_ids


def test_only_supervised_fine_tuning_meets_a_question_once_for_each_response(tmp_path):
    """Of six questions every second one has two responses; what is held out is the same, and asked once."""
    rows = [
        {"question": f"What is {i} + 1?", "answer": str(i + 1), "response": f"{way} {i + 1}"}
        for i in range(6)
        for way in ("by hand", "by program")[: 2 - i % 2]
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = {}
    for method in ("sft", "grpo"):
        tiny = config(
            f"objective.method={method}", f"data.sources=('jsonl:{path}',)", "data.heldout=2", "run.eval_problems=2",
            "rollout.max_new_tokens=32",
        )  # fmt: skip
        made[method] = setup.open_prompts(tiny, BYTES)
    (sft, asked, read), (grpo, asked_too, others) = made["sft"], made["grpo"]
    assert [p.question for p in asked.problems] == [p.question for p in asked_too.problems] and len(asked) == 2
    questions = [p.question for p in grpo.problems]
    assert len(questions) == len(set(questions)) == 4 and "further responses" not in others
    assert list(dict.fromkeys(p.question for p in sft.problems)) == questions
    kept = {(p.question, p.response) for p in sft.problems}
    assert kept == {(row["question"], row["response"]) for row in rows if row["question"] in questions}
    assert read["further responses"] == len(sft) - 4 > 0
    targets, mask = sft.target_batch(np.arange(len(sft)))
    texts = [BYTES.decode(ids[keep]) for ids, keep in zip(targets, mask, strict=True)]
    assert texts == [p.response for p in sft.problems]


def test_the_noise_of_a_step_is_the_newest_that_was_measured():
    """A measurement that was not finite is in no line."""
    lines = [{"step": 0}, {"step": 1, NOISE: 0.02}, {"step": 2}, {"step": 3}]
    assert setup.knobs(config(), lines, 4)["noise"] == 0.02
    assert setup.knobs(config(), lines[:1], 1)["noise"] == 0


@pytest.mark.parametrize(
    ("step", "lines", "measured"),
    [
        (41, [{"step": 40}], True),  # the log of the earlier steps is gone
        (42, [{"step": 40}, {"step": 41, NOISE: 0.01}], False),
        (51, [{"step": 50, NOISE: 0.01}], True),
    ],
)
def test_noise_is_measured_at_its_steps_and_where_the_log_has_none(step, lines, measured, monkeypatch):
    monkeypatch.setattr(train, "put_rows", lambda mesh, tree: tree)
    monkeypatch.setattr(train, "rounding_noise", lambda *arguments: 0.5)
    run = SimpleNamespace(
        config=config("run.noise_every=50"), log=SimpleNamespace(lines=lines), mesh=None, steps=None,
        state=SimpleNamespace(params=None),
    )  # fmt: skip
    nothing = SimpleNamespace(prompts=None, rollouts=None, old_logp=None)
    assert train.noise(run, step, nothing, nothing, {"noise": 0.01}) == (0.5 if measured else 0.01)
