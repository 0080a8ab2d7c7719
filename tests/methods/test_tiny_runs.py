"""Every method trains in the set-up where it has something to do, and goes on from a checkpoint as if never stopped."""

import json

import jax
import numpy as np
import pytest
from tiny import command

from dasd_jax import train
from dasd_jax.learner import checkpoint
from dasd_jax.methods import METHODS

# The others in continuous integration: each compiles programs of its own.
IN_MAKE_TEST = ("opsd",)
NAMES = [name if name in IN_MAKE_TEST else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
SMALLER = (
    "run.checkpoint_every=1",
    "run.eval_problems=1",
    "run.eval_samples=1",
    "optim.minibatches=1",
    "optim.microbatches=1",
)
# Steps, of which the last one is interrupted, and fields with which so few of them are enough.
SHORT = {
    "antisd": (2, ["objective.measured_steps=1"]),
    # Two settings that mean nothing to it, which it says.
    "opsd": (2, ["guards.on_collapse=anneal", "objective.tis=2"]),
    # Its controller learns from the alphas of the steps 1 and 3 before it draws another one for step 5.
    "atesd": (5, ["objective.hold=2", "objective.look_ahead=1", "objective.controller_batch=2"]),
}


def numbers(workdir):
    """metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/") and not k.endswith("_per_s")} for line in lines]


@pytest.mark.parametrize("name", NAMES)
def test_a_method_trains_on_the_tiny_set_up_and_resumes_bit_equal(name, monkeypatch, mesh, capsys, tmp_path):
    call, method = command(monkeypatch), METHODS[name]
    last, own = SHORT.get(name, (2, []))
    fields = [f"--config.{field}" for field in (*SMALLER, f"run.steps={last}", *own)]

    def run(workdir):
        return call(f"--config=configs/methods.py:tiny,method={name}", f"--workdir={workdir}", *fields)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(whole) == 0
    refreshed_too_late = any(view.every > last for view in method.views(method.fields()).values())
    said = " ".join(capsys.readouterr().out.split())
    assert ("they stay those of the start" in said) == refreshed_too_late
    for setting in ("guards.on_collapse = anneal is the same as stop", "objective.tis = 2 has no effect"):
        assert (setting in said) == (name == "opsd")
    with monkeypatch.context() as patched:
        learn = train.learn

        def killed(run, step):
            if step == last:
                raise KeyboardInterrupt
            return learn(run, step)

        patched.setattr(train, "learn", killed)
        assert run(parts) == 130
    assert run(parts) == 0
    assert numbers(parts) == numbers(whole)
    states = [checkpoint.restore_params(folder / "checkpoints" / f"{last:06d}", mesh)[1] for folder in (whole, parts)]
    jax.tree.map(np.testing.assert_array_equal, *states)

    steps = numbers(whole)[1:]
    assert len(steps) == last
    assert all(line["optim/grad_norm"] > 0 and np.isfinite(line["loss/total"]) for line in steps)
    assert all(name in line for line in steps for name in method.watched)
    if method.rollouts:
        assert any(line["reward/mixed_groups_frac"] > 0.5 for line in steps)
    if name == "atesd":
        alphas = [line["context/alpha"] for line in steps]
        assert len(set(alphas)) == 3 and alphas[0::2] == [*alphas[1::2], alphas[4]]
        assert steps[0]["atesd/a"] == steps[3]["atesd/a"] != steps[4]["atesd/a"]
        assert all(line["probe/answer_logp"] < 0 for line in steps)
    for view in method.views(method.fields()):
        assert all(line.get(f"{view}/blank_frac", 0) < 1 for line in steps)
