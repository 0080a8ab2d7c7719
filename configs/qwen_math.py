"""The paper's recipe on Qwen3 (arXiv 2605.22263): DAPO-Math-17k, 128 problems × 8 rollouts, 8,192 tokens, 200 updates.

Prepare the data sets under data/ (docs/data.md), then run one of these on the named slice:

    1.7B    python -m dasd_jax.train --config=configs/qwen_math.py:1p7b,v5e-16 --config.model.weights=/data/Qwen3-1.7B
    4B      python -m dasd_jax.train --config=configs/qwen_math.py:4b,v5p-16 --config.model.weights=/data/Qwen3-4B
    8B      python -m dasd_jax.train --config=configs/qwen_math.py:8b,v5p-64 --config.model.weights=/data/Qwen3-8B
    tiny    on a laptop, without any download
        python -m dasd_jax.train --config=configs/qwen_math.py:tiny

`,method=NAME` after the size or the slice runs another method (docs/methods.md) in this recipe, as the paper's table
does: everything else is equal, what a teacher is shown among it. configs/methods.py has each method's own recipe.

The paper trains for 200 rollout batches of four optimiser steps at a learning rate of 3e-6 with cosine decay, and
evaluates with 16 samples at temperature 1.0 and top-p 0.9: those are the defaults. It does not
name its hardware; the slices (SLICES) are our choice. None has been run; docs/tpu.md lists those compiled for. All but
v6e-8 have several hosts: run the command on each of them (launchers/README.md). `8b,v5p-64,32k` has responses of up to
32,768 tokens, as the other slices for 1.7B and 8B with `,32k` do.

`:tiny` is the same program on a random-weight model of Qwen3's architecture with a byte tokenizer: it takes under a
minute and learns nothing.
"""

from dasd_jax.config import require_method
from dasd_jax.config_files import base
from dasd_jax.errors import UserError

BENCHMARKS = ("math500", "aime24", "aime25", "hmmt25", "minerva", "olympiadbench")  # prepared as in docs/data.md
# Argument → preset, microbatches per minibatch.
SIZES = {
    "0p6b": ("qwen3_0p6b", 2),
    "1p7b": ("qwen3_1p7b", 2),
    "4b": ("qwen3_4b", 2),
    "8b": ("qwen3_8b", 1),
}
_LONG = {"rollout.max_new_tokens": 32_768}
# Overrides per slice that make every program fit; docs/tpu.md has the output of `python -m dasd_jax.compile` for each.
SLICES = {
    ("1p7b", "v5e-16"): {"mesh.tensor": 2, "optim.microbatches": 4},
    ("1p7b", "v6e-8"): {"optim.microbatches": 4},
    ("4b", "v5p-16"): {},
    ("4b", "v6e-16"): {},
    ("8b", "v5p-64"): {},
    ("8b", "v6e-64"): {"mesh.tensor": 2},
    ("1p7b", "v5e-16,32k"): {"mesh.tensor": 2, "optim.microbatches": 16} | _LONG,
    ("1p7b", "v6e-8,32k"): {"optim.microbatches": 16} | _LONG,
    ("8b", "v5p-64,32k"): {"optim.microbatches": 4} | _LONG,
    ("8b", "v6e-64,32k"): {"mesh.tensor": 2, "optim.microbatches": 8} | _LONG,
}


def get_config(arg=""):
    """The config of a size ("8b"), of a size on a slice ("8b,v5p-64"), or "tiny"; ",method=NAME" may follow."""
    arg, _, method = arg.partition("method=")
    method, arg = method or "dasd", arg.rstrip(",")
    require_method(method)
    if arg == "tiny":
        return _tiny(method)
    size, _, on = (arg or "1p7b").partition(",")
    if size not in SIZES:
        expected = f"{', '.join(SIZES)}, tiny, and ,method=NAME"
        raise UserError(f"--config: configs/qwen_math.py: unknown argument {arg!r}: expected one of {expected}")
    if on and (size, on) not in SLICES:
        expected = ", ".join(",".join(pair) for pair in SLICES)
        raise UserError(f"--config: configs/qwen_math.py: unknown slice {on!r}: expected one of {expected}")
    config = base(method)
    if "context" in config.objective:
        config.objective.context = ""  # what data.privileged says, for every method
    config.model.preset, config.optim.microbatches = SIZES[size]
    config.data.sources = ("tfds:data/dapo_math_17k",)
    config.data.benchmarks = tuple(f"tfds:data/{name}" for name in BENCHMARKS)
    config.data.heldout = 0
    config.run.eval_problems = 0
    config.update_from_flattened_dict(SLICES.get((size, on), {}))
    return config


def _tiny(method):
    config = base(method)
    config.model.update(
        {"weights": "random", "preset": "qwen3_tiny", "tokenizer": "byte", "compute_dtype": "float32", "remat": "none"}
    )
    config.data.update(
        {
            "sources": ("gym:chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=1&size=200&seed=1",),
            "heldout": 8,
            "instruction": "answer_line",
        }
    )
    config.rollout.update(
        {
            "problems": 8,
            "rollouts": 4,
            "prompt_length": 192,
            "teacher_prompt_length": 320,
            "max_new_tokens": 16,
            "verifier_workers": 1,
        }
    )
    config.optim.update({"learning_rate": 1e-3, "minibatches": 2, "microbatches": 2})
    config.run.update({"steps": 6, "checkpoint_every": 2, "keep_checkpoints": 2, "eval_problems": 8, "eval_samples": 4})
    return config
