"""The configuration files: every recipe makes a configuration that a run accepts."""

import dataclasses
from pathlib import Path

import pytest

from dasd_jax import cli, config_files
from dasd_jax.data.published import how_to_prepare
from dasd_jax.errors import UserError
from dasd_jax.methods import METHODS

NEEDS_LORA = ("opsd", "pw_opsd", "ad_opsd", "purified_opsd", "sgsd")


def parsed(file, *overrides):
    return cli.parse(cli.parser(""), [f"--config={file}", *overrides], quiet=True).config


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_shared_recipe_its_own_and_a_tiny_one(name):
    shared = parsed(f"configs/qwen_math.py:8b,method={name}")
    assert shared.objective.method == name and shared.data.privileged == "answer"
    assert getattr(shared.hp, "context", "") == ""
    tiny = parsed(f"configs/methods.py:tiny,method={name}")
    assert tiny.objective.method == name and tiny.model.preset == "qwen3_tiny"
    if name in NEEDS_LORA:
        with pytest.raises(
            UserError, match=f"^--config: configs/methods.py:{name}: .* LoRA .*qwen_math:8b,method={name}"
        ):
            parsed(f"configs/methods.py:{name}")
    else:
        assert parsed(f"configs/methods.py:{name}").objective.method == name


@pytest.mark.parametrize("arg", ["nobody", "tiny,method=nobody", "tiny", "rlsd,method=grpo", ""])
def test_an_argument_that_is_no_method_is_refused_with_those_that_are(arg):
    with pytest.raises(
        UserError, match="expected the name of a method or tiny,method=NAME, with NAME one of dasd, grpo"
    ):
        parsed(f"configs/methods.py:{arg}")
    with pytest.raises(UserError, match="^(objective.method|--config).*dasd, grpo"):
        parsed("configs/qwen_math.py:8b,method=nobody")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_meets_gsm8k_from_the_same_start_with_the_same_solutions(name):
    one, other = parsed(f"configs/gsm8k.py:method={name}"), parsed("configs/gsm8k.py")
    assert one.objective.method == name and getattr(one.hp, "context", "") == ""
    assert all(getattr(one, group) == getattr(other, group) for group in ("model", "data", "run"))
    assert one.optim.minibatches in (other.optim.minibatches, 1)
    assert dataclasses.replace(one.optim, minibatches=other.optim.minibatches) == other.optim
    assert dataclasses.replace(one.rollout, resample=0) == other.rollout
    assert one.data.privileged == "solution"


def test_gsm8k_on_a_cpu_differs_in_size_alone():
    cpu, gpu = parsed("configs/gsm8k.py:cpu,method=grpo"), parsed("configs/gsm8k.py:method=grpo")
    assert dataclasses.replace(cpu.model, compute_dtype="bfloat16") == gpu.model and cpu.data == gpu.data
    assert (cpu.rollout.problems, cpu.rollout.rollouts, cpu.rollout.max_new_tokens, cpu.run.steps) == (4, 4, 128, 10)
    assert cpu.model.compute_dtype == "float32" and gpu.rollout.max_new_tokens == 256


def test_the_data_sets_of_gsm8k_are_those_whose_preparation_is_explained():
    data = parsed("configs/gsm8k.py").data
    for spec in (*data.sources, *data.benchmarks):
        assert "of the files of openai/gsm8k" in how_to_prepare(spec.removeprefix("tfds:"))


@pytest.mark.parametrize("arg", ["gpu", "method=nobody", "cpu,grpo"])
def test_gsm8k_refuses_an_argument_that_it_does_not_know(arg):
    with pytest.raises(UserError, match="expected (cpu, method=NAME or cpu,method=NAME|one of dasd, grpo)"):
        parsed(f"configs/gsm8k.py:{arg}")


# ------------------------------------------------------------------------------------------------ names

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["gsm8k", "methods", "qwen_coder_math", "qwen_math", "smollm2_math"])
def test_a_shipped_file_is_found_by_its_name_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arg = {"methods": ":tiny,method=rlsd", "qwen_math": ":tiny"}.get(name, "")
    command = cli.parse(cli.parser(""), [f"--config={name}{arg}"])
    assert command.config == parsed(f"{ROOT}/configs/{name}.py{arg}")
    assert command.workdir == Path("runs") / (name + arg.replace(":", "-"))
    assert name in config_files.names()


def test_a_path_wins_over_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qwen_math").mkdir()  # a folder is no file of a configuration
    assert parsed("qwen_math:tiny").run.steps == 6
    (tmp_path / "qwen_math").rmdir()
    (tmp_path / "qwen_math").write_text("not the shipped one")
    with pytest.raises(UserError, match=r"^--config: qwen_math is not a Python file"):
        parsed("qwen_math:tiny")


@pytest.mark.parametrize(
    ("given", "near"),
    [("qwen_maths", "qwen_math"), ("configs/qwen_math.py:tiny", "qwen_math"), ("smollm_math.py", "smollm2_math")],
)
def test_an_unknown_name_lists_the_shipped_ones_and_the_nearest(given, near, tmp_path, monkeypatch):
    """Also the path that a shipped file has in the repository, given elsewhere."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        parsed(given)
    said, path = str(refused.value), given.partition(":")[0]
    assert said.startswith(f"--config: {path} is not a Python file: expected one with get_config(arg)")
    assert said.endswith(f"methods, qwen_coder_math, qwen_math, smollm2_math; did you mean --config={near}?")


def test_a_file_of_ones_own_starts_from_the_defaults_or_from_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from dasd_jax.config_files import base, shipped\n\n\ndef get_config(arg):\n"
        "    config = shipped(arg) if arg else base('grpo')\n    config.run.steps = 7\n"
        "    config.data.sources = ('jsonl:x',)\n    return config\n"
    )
    mine, theirs = parsed("mine.py:methods:tiny,method=rlsd"), parsed("methods:tiny,method=rlsd")
    assert mine.run.steps == 7 and mine.rollout == theirs.rollout and mine.objective.method == "rlsd"
    assert parsed("mine.py").objective.method == "grpo"
    with pytest.raises(UserError, match=r"^--config: configs/qwen_math.py: unknown argument 'huge'"):
        parsed("mine.py:qwen_math:huge")
    with pytest.raises(UserError, match=r"^--config: .*nowhere.py is not a Python file"):
        parsed("mine.py:nowhere")
