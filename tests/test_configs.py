"""The configuration files: every recipe and every sweep makes configurations that a run accepts."""

import itertools
from pathlib import Path

import pytest

from dasd_jax import cli
from dasd_jax.errors import UserError
from dasd_jax.methods import METHODS

SWEEPS = sorted(path for path in Path("configs/sweeps").glob("*.py") if path.stem != "common")
NEEDS_LORA = ("opsd",)


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
        with pytest.raises(UserError, match=f"^--config: configs/methods.py:{name}: .* LoRA .*method={name}"):
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


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_point_of_every_sweep_is_a_configuration(path):
    points = cli.call_file("--sweep", str(path), "get_sweep")
    settings = [tuple(sorted((name, str(value)) for name, value in point.items())) for point in points]
    assert len(set(settings)) == len(points) > 1
    assert f"{len(points)} points." in path.read_text()
    for point in itertools.islice(points, 0, None, 3):
        config = parsed("configs/smollm2_math.py", *(f"--config.{name}={value}" for name, value in point.items()))
        flat = {f"{g}.{f}": v for g, fields in config.to_dict().items() for f, v in fields.items()}
        assert all(flat[name] == value for name, value in point.items())
