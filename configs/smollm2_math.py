"""SmolLM2-135M-Instruct on written sums of three numbers with DASD, in float32 on two CPU cores.

make train          (or: python -m dasd_jax.train --config=configs/smollm2_math.py)
"""

from dasd_jax.config_files import base

WEIGHTS = "~/.cache/dasd_jax/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def get_config(arg=""):
    """The only variant; takes no argument."""
    if arg:
        raise ValueError(f"smollm2_math.py takes no argument, got {arg!r}")
    config = base()
    config.model.update({"weights": WEIGHTS, "sha256": SHA256, "compute_dtype": "float32"})
    config.data.update(
        {
            "sources": ("jsonl:~/.cache/dasd_jax/sums.jsonl",),
            "heldout": 128,
            "shots": 2,  # they alone show how to write the steps and the answer
            "instruction": "",
        }
    )
    config.rollout.update(
        {
            "problems": 8,
            "rollouts": 8,
            "prompt_length": 136,
            "teacher_prompt_length": 176,
            "max_new_tokens": 28,
            "temperature": 0.6,  # at 1 so small a model seldom keeps to the steps
            "verifier_workers": 1,
        }
    )
    config.objective.token_chunk = 256
    config.optim.update({"learning_rate": 5e-6, "warmup_steps": 3, "minibatches": 1, "microbatches": 2, "b2": 0.99})
    config.run.update(
        {
            "steps": 16,
            "checkpoint_every": 8,
            "keep_checkpoints": 1,
            "eval_problems": 128,
            "eval_samples": 4,
            "eval_temperature": 0.6,
            "eval_top_p": 1.0,
        }
    )
    return config
