"""The configuration files: every recipe makes a configuration that a run accepts."""

import pytest

from dasd_jax import cli
from dasd_jax.errors import UserError
from dasd_jax.methods import METHODS

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
