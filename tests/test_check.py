"""The look at a run before it starts: what it prints, what it cannot check, and the one line for what needs mending."""

import json
import re
import sys
from pathlib import Path

import jax
import pytest
from tiny import TINY, config

from dasd_jax import check, cli
from dasd_jax.mesh import MeshConfig, make_mesh
from dasd_jax.model import hf, param_table
from dasd_jax.model.presets import preset
from dasd_jax.run import setup
from dasd_jax.run.estimate import estimate
from dasd_jax.text.tokenizer import ByteTokenizer

ROOT = Path(__file__).parents[1]
BIG = "--config=qwen_math:1p7b,v5e-16"
ROW = {"question": "How many is 1 + 2?", "answer": "3"}


@pytest.fixture(autouse=True)
def mesh():
    """None in context, in the place of the one that the other tests run under: the command brings its own."""


@pytest.fixture
def look(monkeypatch, capsys):
    """look(*argv) → (exit code, stdout, stderr) of the command in this process, on one of its devices."""
    monkeypatch.setattr(check, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["check", *map(str, argv)])
        code = 0
        try:
            cli.run(check.main)
        except SystemExit as ended:
            code = ended.code
        return code or 0, *capsys.readouterr()

    return run


def jsonl(folder: Path, *rows: dict) -> str:
    """An override that makes these rows the only source, and none of them held out but one."""
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"--config.data.sources=('jsonl:{path}',)"


FEW = ["--config.data.heldout=1", "--config.run.eval_problems=1", "--config.rollout.problems=4"]
ROWS = [ROW | {"question": f"How many is {a} + 2?", "answer": str(a + 2)} for a in range(1, 9)]


# ------------------------------------------------------------------------------------------------ what it prints


def test_it_prints_both_prompts_as_the_model_reads_them(look, tmp_path):
    code, said, error = look(TINY, jsonl(tmp_path, *ROWS), *FEW)
    assert (code, error) == (0, "")
    student, teacher = re.findall(r"^(?:student|teacher) prompt of .*?\n(.*?)\n  as tokens:", said, re.M | re.S)
    assert "<|im_start|>user\n    How many is" in student and student.endswith("<|im_start|>assistant\n    ")
    asked = re.search(r"is (\d) \+ 2", student)[1]
    assert str(int(asked) + 2) in teacher.replace(student, "") and f"is {asked} + 2" in teacher
    # The tokens are those of the text, one piece each.
    pieces = re.findall(r"  as tokens:\n    (.*)", said)[0].split("│")
    text = student.removeprefix("    ").replace("\n    ", "\n")
    assert "".join(pieces).replace("↵", "\n") == text
    assert f"student prompt of the first problem, {len(ByteTokenizer().encode(text))} tokens" in said


def test_what_is_left_out_is_counted_with_its_reason(look, tmp_path):
    long = {"question": "long " * 100, "answer": "1"}
    said = look(TINY, jsonl(tmp_path, *ROWS, ROWS[0], long), *FEW, "--config.data.heldout=2")[1]
    left_out = "1 left out: student prompt longer than 192 tokens"
    assert f"problems: 10 read, 1 duplicates, 9 kept; training: 6 of 7, {left_out}; to evaluate: 2\n" in said
    assert re.search(r"student prompt: \d+ to \d+ tokens, of at most rollout.prompt_length = 192", said)
    assert "prompt and response: at most 336 of the model's 512 tokens" in said


def test_control_characters_of_a_problem_do_not_reach_the_terminal(look, tmp_path):
    rows = [ROW | {"question": f"{row['question']} \x1b[2J\u202e"} for row in ROWS]
    code, said, _ = look(TINY, jsonl(tmp_path, *rows), *FEW)
    assert code == 0 and "␛[2J<U+202E>" in said and "\x1b" not in said and "\u202e" not in said


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("grpo", "student prompt of the first problem"),
        ("sft", "reference response of the first problem"),
        ("sdpo", "teacher prompt: with responses of the run, which do not exist yet"),
    ],
)
def test_each_method_shows_what_its_views_are_given(look, method, says):
    code, said, error = look(TINY, f"--config.objective.method={method}")
    assert (code, error) == (0, "") and says in said
    assert ("teacher prompt" in said.partition("student prompt of")[2]) is (method == "sdpo")


SOLVED = [row | {"solution": f"Count {i}.\nGo on.\nNearly there.\nSo it is."} for i, row in enumerate(ROWS)]


def partial(said):
    """(alpha, the lines of the solution that are shown) of what is printed."""
    title = r"^teacher prompt, at alpha = ([\d.]+) \(step 1\), of the first problem, \d+ tokens:\n(.*?)\n  as tokens:"
    [(alpha, prompt)] = re.findall(title, said, re.M | re.S)
    lines = SOLVED[0]["solution"].split("\n")[1:]
    return float(alpha), bool(re.search(r"Count \d\.", prompt)) + sum(line in prompt for line in lines)


@pytest.mark.parametrize(("alpha", "lines"), [(0.5, 2), (0.7, 2), (0.25, 1), (0.0, 0)])
def test_a_partial_solution_is_shown_as_far_as_the_method_shows_it(look, tmp_path, alpha, lines):
    bounds = [f"--config.objective.alpha_{end}={alpha}" for end in ("min", "max")]
    atesd = "--config=configs/methods.py:tiny,method=atesd"
    code, said, error = look(atesd, jsonl(tmp_path, *SOLVED), *FEW, *bounds)
    assert (code, error) == (0, "") and partial(said) == (alpha, lines)


def test_solutions_of_one_segment_are_counted(look, tmp_path):
    """An alpha below 1 shows nothing of them."""
    source = jsonl(tmp_path, *(row | {"solution": "It is."} for row in ROWS))
    code, said, _ = look("--config=configs/methods.py:tiny,method=atesd", source, *FEW)
    assert code == 0 and re.search(r", [1-9] with a solution of one segment, shown whole or not at all;", said)


def test_a_context_of_the_teachers_own_is_measured_and_named_where_it_is_missing(look, tmp_path):
    """Two problems have no hint and that of a third does not fit; which problem is the first depends on run.seed."""
    hints = ["", "", "long " * 100, *(f"count{' on' * n}" for n in range(5))]
    source = jsonl(tmp_path, *(row | {"hint": hint} for row, hint in zip(ROWS, hints, strict=True)))
    measured = re.compile(
        r"^teacher prompt with context hint: (\d+) to (\d+) tokens, of at most rollout.teacher_prompt_length = 320; "
        r"problems without one that fits: (\d) of 7$",
        re.M,
    )
    missing = (
        "\nteacher prompt of the first problem: no context: it is missing or does not fit; the teacher reads the "
        "student's prompt\n"
    )
    seen = set()
    for seed in range(4):
        argv = [TINY, source, *FEW, "--config.objective.context=hint", f"--config.run.seed={seed}"]
        code, said, error = look(*argv)
        assert (code, error) == (0, "")
        train, _, _ = setup.open_prompts(cli.parse(cli.parser(""), argv, quiet=True).config, ByteTokenizer())
        lengths = [len(problem.hint) for problem in train.problems if 0 < len(problem.hint) < 100]
        shortest, longest, without = map(int, measured.search(said).groups())
        assert longest - shortest == max(lengths) - min(lengths) and without == 7 - len(lengths)
        prompt = re.search(r"^teacher prompt of the first problem, \d+ tokens:\n(.*?)\n  as tokens:", said, re.M | re.S)
        assert (prompt is None) == (missing in said) and (prompt is None or "count" in prompt[1])
        seen.add(missing in said)
    assert seen == {True, False}


def test_the_share_of_a_solution_is_that_of_the_runs_first_step(look, tmp_path):
    """Which the method draws by run.seed after the evaluation of step 0 is in the log."""
    atesd, found = "--config=configs/methods.py:tiny,method=atesd", set()
    for seed in range(3):
        argv = [atesd, jsonl(tmp_path, *SOLVED), *FEW, f"--config.run.seed={seed}"]
        run = cli.parse(cli.parser(""), argv, quiet=True).config
        alpha = run.method.context(setup.knobs(run, [{"step": 0, "eval/avg@2": 0.5}], step=1), run.hp)["alpha"]
        shown, lines = partial(look(*argv)[1])
        assert (shown, lines) == (pytest.approx(alpha, rel=1e-3), int(4 * alpha))
        found.add(shown)
    assert len(found) == 3


def test_the_amounts_are_those_of_the_whole_run():
    settings = config("run.eval_every=2", "rollout.resample=1")
    found = estimate(settings, evaluated=8)
    rollouts = 6 * 8 * 4 * 16  # steps, problems, responses, tokens
    assert found.evaluations == (0, 2, 4, 6)
    assert found.generated == found.trained == rollouts
    assert found.scored == 2 * rollouts  # student and teacher
    assert found.answered == 4 * 8 * 4 * 16
    assert estimate(config("run.eval_every=4"), 8).evaluations == (0, 4, 6)
    assert estimate(config("objective.method=grpo"), 8).scored == rollouts
    supervised = estimate(config("objective.method=sft"), 8)
    assert (supervised.generated, supervised.scored, supervised.trained) == (0, 0, 6 * 8 * 16)


# ------------------------------------------------------------------------------------------------ what is not here


def test_for_a_slice_what_is_not_here_is_named_and_the_rest_is_counted(look, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = "--config.model.weights=/bucket/weights/Qwen3-1.7B"
    code, said, error = look(BIG, weights, "--topology=v5e:4x4")
    assert (code, error) == (0, "")
    for reason in (
        "not checked: the weights: /bucket/weights/Qwen3-1.7B is not on this machine",
        "not checked: the tokenizer: /bucket/weights/Qwen3-1.7B is not on this machine",
        "not checked: problems and prompts: not on this machine: tfds:data/dapo_math_17k, tfds:data/math500, ",
    ):
        assert reason in said
    assert "a device has 15.75 GiB" in said
    # What compiling this run for this slice has shown: the same slots, and nowhere less memory.
    page = (ROOT / "docs" / "tpu.md").read_text().partition("### configs/qwen_math.py:1p7b,v5e-16 ")[2]
    rows = (line.strip("| ").split(" | ") for line in page.partition("\n\n`")[0].splitlines())
    compiled = {row[0]: row for row in rows}
    counted = re.findall(r"^    ([a-z-]+) +([\d.]+) GiB(?:, (\d+) slots)?$", said, re.M)
    assert {"re-layout", "rollout", "evaluation", "score", "update"} <= {name for name, *_ in counted}
    for name, size, slots in counted:
        if name in compiled:
            assert float(size) <= float(compiled[name][6]) and compiled[name][8] == (slots or "–")
    assert "steps: 200 of 128 problems × 8 rollouts, 800 updates" in said
    assert f"generated {200 * 128 * 8 * 8192:,}; in evaluations not known" in said


def test_without_weights_the_rest_is_checked(look, tmp_path):
    argv = [TINY, jsonl(tmp_path, *ROWS), *FEW, "--config.model.weights="]
    code, said, error = look(*argv)
    assert (code, error) == (0, "")
    assert "not checked: the weights: model.weights is empty" in said and "student prompt of" in said
    code, said, error = look(*argv, "--config.model.tokenizer=", "--config.model.preset=")
    assert (code, error) == (0, "")
    assert "not checked: the weights, memory and context: model.weights is empty" in said
    assert "8 read" in said and "not checked: their prompts, without a tokenizer" in said and "trained" in said


def test_of_weights_the_headers_are_read_and_not_the_tensors(look, tmp_path, monkeypatch):
    model, one = preset("qwen3_tiny"), make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(one):
        hf.save(tmp_path / "w", model, param_table.init(model, one, 0))
    monkeypatch.setattr(hf, "place", None)  # what would read them
    argv = [TINY, f"--config.model.weights={tmp_path / 'w'}"]
    code, said, error = look(*argv)
    assert (code, error) == (0, "") and f"weights: {tmp_path / 'w'}, 0.1 M parameters, context 512 tokens" in said
    wide = json.loads((tmp_path / "w" / "config.json").read_text()) | {"intermediate_size": 256}
    (tmp_path / "w" / "config.json").write_text(json.dumps(wide))
    code, _, error = look(*argv, "--config.model.preset=")
    assert code == 2 and re.match(r"error: model.weights: .* has shape \(128, 64\): expected \(256, 64\)\n$", error)


# ------------------------------------------------------------------------------------------------ what needs mending


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            ["--config.model.weights=Qwen/Qwen3-1.7B"],
            "model.weights: Qwen/Qwen3-1.7B does not exist; if it is a model of the Hugging Face hub: hf download "
            "Qwen/Qwen3-1.7B --local-dir Qwen3-1.7B, then --config.model.weights=Qwen3-1.7B",
        ),
        (["--config.model.weights=Qwen/x.gguf"], "model.weights: Qwen/x.gguf does not exist: expected a .gguf file"),
        (
            ["--config.model.weights=~/none/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"],
            "model.weights: ~/none/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf does not exist: hf download Qwen/"
            "Qwen2.5-Coder-0.5B-Instruct-GGUF qwen2.5-coder-0.5b-instruct-q4_k_m.gguf --local-dir ~/none downloads it",
        ),
        (
            ["--config.data.sources=('tfds:data/dapo_math_17k',)"],
            "data.sources: 'tfds:data/dapo_math_17k': no such directory 'data/dapo_math_17k'; python -m "
            "dasd_jax.prepare --input=dapo-math-17k.parquet --layout=verl --output=data/dapo_math_17k makes it",
        ),
        (
            ["--config.data.benchmarks=('tfds:data/mine',)"],
            "data.benchmarks: 'tfds:data/mine': no such directory 'data/mine'; python -m dasd_jax.prepare --input=FILE "
            "--output=data/mine",
        ),
        (["--config.rollout.max_new_tokens=400"], "rollout.max_new_tokens: 400 + rollout.prompt_length 192"),
        (["--config.rollout.problems=256"], "rollout.problems: 256: expected at most 124, the training problems"),
        (["--config.rollout.prompt_length=10"], "data.sources: all 124 problems were dropped"),
        (["--config.mesh.tensor=3"], "mesh: data=1 fsdp=-1 tensor=3 does not fit 1 device(s)"),
        (["--topology=v5e:3x4"], "--topology: 'v5e:3x4': expected a known slice, nearest are v5e:4x4"),
        (["--topology=v5e:4x4"], "rollout.problems: 8: expected a multiple of the 16 devices along mesh.data"),
    ],
)
def test_the_first_thing_to_mend_is_one_line(look, tmp_path, monkeypatch, argv, expected):
    config = f"--config={Path('configs/qwen_math.py').absolute()}:tiny"
    monkeypatch.chdir(tmp_path)
    code, _, error = look(config, *argv)
    assert code == 2 and error.startswith(f"error: {expected}") and error.count("\n") == 1, error
    assert not list(tmp_path.iterdir())


def test_a_model_that_the_memory_cannot_hold_is_refused(look, monkeypatch):
    monkeypatch.setattr(check.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096}.get(name, 2 * 256))
    code, _, error = look(TINY)
    assert code == 2 and error.startswith("error: mesh: re-layout needs 1.82 MiB of each of 1 device(s) at least")
    code, _, error = look("--config=qwen_math:8b", "--topology=v5e:2x2", "--config.optim.microbatches=1")
    assert code == 2 and error.startswith("error: mesh: re-layout needs 38.14 GiB of each of 4 device(s)")


def test_a_reward_function_is_called(look, tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text("def half(problem, response):\n    return 0.5\n")
    tiny = ["--config=qwen_math:tiny", f"--config.data.verifier={path}:half"]
    assert look(*tiny)[0] == 0
    path.write_text("def half(problem, response):\n    return 50\n")
    code, _, error = look(*tiny)
    assert code == 2 and "returned 50: expected a number from 0 to 1" in error and error.count("\n") == 1
