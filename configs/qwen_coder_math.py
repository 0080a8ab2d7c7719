"""Qwen2.5-Coder-0.5B-Instruct on arithmetic with step-by-step reasoning, on a CPU with two cores and 20 GiB.

    python -m dasd_jax.train --config=configs/qwen_coder_math.py --config.model.weights=PATH

PATH is Qwen2.5-Coder-0.5B-Instruct as a GGUF file or a Hugging Face folder. 20 steps in float32;
docs/results.md has the results. On an accelerator raise rollout.problems, rollout.rollouts and rollout.max_new_tokens.
"""

from dasd_jax.config_files import base


def get_config(arg=""):
    """The only variant; takes no argument."""
    if arg:
        raise ValueError(f"qwen_coder_math.py takes no argument, got {arg!r}")
    config = base()
    config.model.compute_dtype = "float32"
    config.data.update(
        {
            "sources": (
                "gym:chain_sum?min_terms=2&max_terms=2&min_digits=2&max_digits=3&size=2000&seed=1",
                "gym:basic_arithmetic?min_terms=2&max_terms=2&min_digits=1&max_digits=2&size=2000&seed=1",
                "gym:simple_equations?min_terms=2&max_terms=2&min_value=1&max_value=20&size=2000&seed=1",
            ),
            "heldout": 200,
        }
    )
    config.rollout.update(
        {
            "problems": 4,
            "rollouts": 4,
            "prompt_length": 80,
            "teacher_prompt_length": 112,
            "max_new_tokens": 128,
            "verifier_workers": 1,
        }
    )
    config.objective.token_chunk = 256
    config.optim.update({"minibatches": 1, "warmup_steps": 2, "schedule": "constant", "b2": 0.99})
    config.run.update(
        {
            "steps": 20,
            "checkpoint_every": 5,
            "keep_checkpoints": 1,
            "eval_problems": 16,
            "eval_samples": 4,
            "eval_top_p": 1.0,
            "logged_rollouts": 16,
        }
    )
    return config
