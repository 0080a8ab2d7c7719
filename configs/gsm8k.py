"""Qwen2.5-Coder-0.5B-Instruct on GSM8K, worked solutions as privileged context, on one GPU or on two CPU cores.

The model and the problems, once, from the Hugging Face hub (both files of GSM8K, as Parquet or JSONL, in any place):

    hf download Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF qwen2.5-coder-0.5b-instruct-q4_k_m.gguf \\
        --local-dir ~/.cache/dasd_jax
    hf download openai/gsm8k --repo-type dataset --local-dir gsm8k
    python -m dasd_jax.prepare --input=gsm8k/main/train-00000-of-00001.parquet --output=data/gsm8k
    python -m dasd_jax.prepare --input=gsm8k/main/test-00000-of-00001.parquet --output=data/gsm8k_test

Then one of these; docs/results.md has the results:

    python -m dasd_jax.train --config=configs/gsm8k.py                     # one GPU, bfloat16: 32 × 8 responses of 256
    python -m dasd_jax.train --config=configs/gsm8k.py:method=opsd         # another method, all else equal
    python -m dasd_jax.train --config=configs/gsm8k.py:cpu                 # float32, 16 GiB: 10 steps of 4 × 4 × 128
    python -m dasd_jax.train --config=configs/gsm8k.py:cpu,method=grpo

Training reads the training problems and evaluations the test problems. Solutions are free of GSM8K's notes for a
calculator. The learning rate is constant, so that a run that is cut off is the beginning of the longer one.
"""

from dasd_jax.config import require_method
from dasd_jax.config_files import base
from dasd_jax.errors import UserError

WEIGHTS = "~/.cache/dasd_jax/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"


def get_config(arg=""):
    """The config for one GPU (""), or for a CPU ("cpu"); "method=NAME" or ",method=NAME" may follow."""
    arg, _, method = arg.partition("method=")
    method, machine = method or "dasd", arg.rstrip(",")
    require_method(method)
    if machine not in ("", "cpu"):
        raise UserError(
            f"--config: configs/gsm8k.py: unknown argument {machine!r}: expected cpu, method=NAME or cpu,method=NAME"
        )
    config = base(method)
    if "context" in config.objective:
        config.objective.context = ""  # what data.privileged says, for every method
    config.model.update({"weights": WEIGHTS, "sha256": SHA256})
    config.data.update(
        {
            "sources": ("tfds:data/gsm8k",),
            "benchmarks": ("tfds:data/gsm8k_test",),
            "heldout": 0,
            "privileged": "solution",
        }
    )
    # 256 and 512 tokens leave out one training problem and no test problem.
    config.rollout.update(
        {
            "problems": 32,
            "rollouts": 8,
            "prompt_length": 256,
            "teacher_prompt_length": 512,
            "max_new_tokens": 256,
            "verifier_workers": 4,
        }
    )
    config.optim.update({"schedule": "constant", "warmup_steps": 4, "b2": 0.99})
    config.run.update(
        {
            "steps": 100,
            "checkpoint_every": 20,
            "keep_checkpoints": 1,
            "eval_every": 20,
            "eval_problems": 256,
            "eval_samples": 4,
            "eval_top_p": 1.0,
            "logged_rollouts": 16,
        }
    )
    if machine == "cpu":
        _on_two_cores(config)
    return config


def _on_two_cores(config):
    """Small enough for two cores and 16 GiB of memory: shows that the run works, not what a method can do."""
    config.model.compute_dtype = "float32"  # on a CPU faster than bfloat16
    config.rollout.update(
        {
            "problems": 4,
            "rollouts": 4,
            # Leaves out one problem in fifteen; the time of a step grows with the prompts' width.
            "prompt_length": 160,
            "teacher_prompt_length": 320,
            "max_new_tokens": 128,
            "verifier_workers": 1,
        }
    )
    config.objective.token_chunk = 256
    config.optim.update({"minibatches": 1, "warmup_steps": 2})
    config.run.update({"steps": 10, "checkpoint_every": 5, "eval_every": 0, "eval_problems": 16})
