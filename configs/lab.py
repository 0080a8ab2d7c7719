"""The laboratory (docs/lab.md): a reasoner of 0.4 M parameters that searches, and every method in one recipe.

    python -m dasd_jax.train --config=configs/lab.py                        DASD, in about a minute on one core
    python -m dasd_jax.train --config=configs/lab.py:grpo,seed=3            another method, another base model
    python -m dasd_jax.train --config=configs/lab.py:base,seed=3            makes a base model anew, in ten minutes

A seed has its own base model, and is the seed of the run. Methods have the names of benchmarks/lab/plan.py: those of
objective.method, and DASD with other directions (conformity, novelty, attract_only, …). `python -m benchmarks.lab` runs
all of them.
"""

from pathlib import Path

from dasd_jax.config_files import base
from dasd_jax.errors import UserError

_LAB = Path(__file__).resolve().parents[1] / "benchmarks" / "lab"


def get_config(arg=""):
    """NAME of a method (default dasd) or base, and seed=N (default 0), with a comma between them."""
    if not _LAB.is_dir():
        raise UserError(f"--config: configs/lab.py: {_LAB} is missing: expected a clone of the repository")
    from benchmarks.lab import plan

    name, seed = "dasd", 0
    for part in filter(None, arg.split(",")):
        key, _, value = part.rpartition("=")
        if key == "seed" and value.isdecimal():
            seed = int(value)
        elif not key and part in ("base", *plan.ARMS):
            name = part
        else:
            raise UserError(
                f"--config: configs/lab.py: {part}: expected seed=N, base, or a method: {', '.join(plan.ARMS)}"
            )
    config = base("sft" if name == "base" else plan.ARMS[name].method)
    config.model.update({"tokenizer": str(_LAB / "tokenizer"), "compute_dtype": "float32", "remat": "none"})
    config.data.update(
        {
            "benchmarks": (f"jsonl:{_LAB / 'problems' / 'validation.jsonl'}",),
            "heldout": 0,
            "instruction": "{question}",
            "privileged_wording": "{question}@{context}",
            "transition": "none",
            "verifier": f"{_LAB / 'task.py'}:reward",
        }
    )
    config.rollout.update({"teacher_prompt_length": 18, "verifier_workers": 1})
    config.objective.token_chunk = 8192
    config.optim.update({"minibatches": 1, "b2": 0.98})
    config.run.update({"seed": seed, "keep_checkpoints": 1, "eval_problems": 64, "eval_samples": 16, "eval_top_p": 1.0})
    # A policy that collapses is a result here: every run goes to its end.
    config.guards.update({"entropy_stop": 0.0, "length_stop": 0.0, "repetition_stop": 0.0})
    if name == "base":
        _learn(config, seed)
    else:
        _post_train(config, seed, plan.STEPS, plan.ARMS[name].problems)
        config.update_from_flattened_dict(plan.ARMS[name].fields)
    return config


def _learn(config, seed):
    """Supervised fine-tuning of random weights on traces of both views."""
    traces = _LAB.parents[1] / "runs" / "lab" / "traces" / f"{seed}.jsonl"
    config.model.update({"weights": "random", "preset": "lab"})
    config.data.update({"sources": (f"jsonl:{traces}",), "privileged": "answer"})
    config.rollout.update({"problems": 64, "prompt_length": 18, "teacher_prompt_length": 24, "max_new_tokens": 96})
    config.optim.update({"learning_rate": 6e-3, "warmup_steps": 50, "microbatches": 8})
    config.run.update({"steps": 1200, "checkpoint_every": 300})


def _post_train(config, seed, steps, problems):
    config.model.weights = str(_LAB / "base" / str(seed))
    config.data.update({"sources": (f"jsonl:{_LAB / 'problems' / f'{problems}.jsonl'}",), "privileged": "solution"})
    config.rollout.update(
        {"problems": 8, "rollouts": 8, "prompt_length": 10, "teacher_prompt_length": 18, "max_new_tokens": 64}
    )
    config.optim.update({"learning_rate": 3e-4, "schedule": "constant", "microbatches": 4})
    config.run.update({"steps": steps, "checkpoint_every": steps})
    if "context" in config.objective:
        config.objective.context = ""  # the solution, as every teacher is shown
