"""Each method as its own paper runs it, and a tiny set-up in which every method has something to do.

    python -m dasd_jax.train --config=configs/methods.py:rlsd --config.model.weights=/data/Qwen3-8B
    python -m dasd_jax.train --config=configs/methods.py:tiny,method=rlcsd

The shared recipe of the DASD paper for every method is `configs/qwen_math.py:8b,method=NAME`.

A recipe has its paper's learning rate, batch, clip, teacher and context (RECIPES names the sources). Sampling stays
ours, without top-k and top-p, since a truncated sample has no matching score pass; model and data are Qwen3-8B and
DAPO-Math-17k, or where solutions are needed OpenThoughts.

`tiny` is a random-weight model on 48 problems with solutions and hints. Whether a response is right is a checksum of
its text, so that groups are mixed and both kinds of siblings exist; it takes a minute and learns nothing.
"""

from pathlib import Path

from dasd_jax.config_files import shipped
from dasd_jax.errors import UserError
from dasd_jax.methods import METHODS

_TINY, _SKILLS = (Path(__file__).with_name(name) for name in ("tiny.jsonl", "skills.jsonl"))
_GROUPS = {"rollout.problems": 32, "rollout.rollouts": 8, "optim.minibatches": 1}
_SLOW = {"optim.learning_rate": 1e-6, "optim.schedule": "constant"}
# arXiv 2503.14476: 512 × 16, 16 updates, 20,480 tokens whose last 4,096 are penalised, 20 batches of warm-up.
_DAPO = _SLOW | {
    "optim.warmup_steps": 320, "optim.weight_decay": 0.1, "rollout.problems": 512, "rollout.rollouts": 16,
    "optim.minibatches": 16, "rollout.max_new_tokens": 20_480, "objective.overlong_tokens": 4096,
    "objective.clip_dual": 10.0,
}  # fmt: skip
# Method → what its paper or official code states, "group.field" → value.
RECIPES = {
    # arXiv 2605.22263: the defaults.
    "dasd": {},
    # arXiv 2402.03300 as a baseline of verl: no KL, token mean.
    "grpo": _SLOW,
    "dapo": _DAPO,
    # arXiv 2503.20783: 128 × 8, one epoch, 3,000 tokens.
    "dr_grpo": _SLOW | {
        "rollout.problems": 128, "rollout.rollouts": 8,
        "optim.minibatches": 1, "rollout.max_new_tokens": 3072,
    },
    # arXiv 2506.01939 and its scripts: DAPO's, with a shorter warm-up.
    "hepo": _DAPO | {"optim.warmup_steps": 10},
    # arXiv 2601.20802 and config/sdpo.yaml.
    "sdpo": _GROUPS | {"optim.learning_rate": 1e-5, "optim.schedule": "constant", "optim.warmup_steps": 10},
    # arXiv 2604.03128 and its launch script: 256 × 8, 4,096 tokens, clip .2/.28 and dual clip 3.
    "rlsd": _SLOW | {
        "rollout.problems": 256, "optim.minibatches": 1,
        "rollout.max_new_tokens": 4096, "objective.clip_high": 0.28, "objective.clip_dual": 3.0,
        "objective.context": "answer",
    },
    # arXiv 2604.02288.
    "srpo": _GROUPS | {"optim.learning_rate": 5e-6, "optim.schedule": "constant"},
    # arXiv 2605.10781, table 5.
    "rlrt": _SLOW | {
        "optim.warmup_steps": 10, "optim.weight_decay": 0.01,
        "rollout.problems": 256, "optim.minibatches": 2, "rollout.prompt_length": 2048,
        "rollout.teacher_prompt_length": 24_576, "rollout.max_new_tokens": 16_384, "objective.clip_high": 0.28,
    },
    # arXiv 2605.11609.
    "antisd": _GROUPS | _SLOW | {
        "rollout.max_new_tokens": 32_768,
        "rollout.teacher_prompt_length": 8192,
    },
    # arXiv 2606.11709, configs/math_deepmath.
    "rlcsd": _SLOW | {
        "optim.warmup_steps": 50, "optim.weight_decay": 0.01,
        "rollout.problems": 64, "rollout.rollouts": 8, "optim.minibatches": 4, "rollout.max_new_tokens": 16_384,
        "rollout.teacher_prompt_length": 20_480,
    },
    # arXiv 2607.02502.
    "demopsd": _SLOW | {
        "rollout.problems": 64, "rollout.rollouts": 8, "optim.minibatches": 1, "rollout.max_new_tokens": 16_384,
        "rollout.teacher_prompt_length": 20_480,
    },
    # arXiv 2605.13255 was not at hand beyond its abstract: the shared recipe.
    "egrsd": {},
    # arXiv 2605.11458: we know of no numbers; those of OPSD's scripts need LoRA. Its data has solutions, which
    # DAPO-Math-17k lacks.
    "atesd": {
        "data.sources": ("tfds:data/openthoughts_math_30k",), "data.privileged": "solution",
        "rollout.teacher_prompt_length": 8192,
    },
    "sft": {},
}  # fmt: skip
_OF_LORA = {
    "opsd": "arXiv 2601.18734 trains LoRA adapters (rank 64, learning rate 5e-6)",
    "pw_opsd": "arXiv 2605.21606 trains LoRA adapters (learning rate 5e-6)",
    "ad_opsd": "arXiv 2607.10805 trains LoRA adapters (rank 64, learning rate 5e-6)",
    "purified_opsd": "arXiv 2607.02234 trains LoRA adapters (rank 64, learning rate 5e-6)",
    "sgsd": "arXiv 2605.28791 trains LoRA adapters (rank 64, learning rate 5e-6, 16 prompts × 1, 1,024 tokens)",
}


def get_config(arg=""):
    """The recipe of a method ("rlsd"), or the tiny set-up ("tiny,method=rlsd")."""
    name, _, more = arg.partition(",")
    key, _, value = more.partition("=")
    method = value if name == "tiny" and key == "method" else name
    if method not in METHODS or ("," in arg and name != "tiny"):
        raise UserError(
            f"--config: configs/methods.py: {arg or 'no argument'}: expected the name of a method or tiny,method=NAME, "
            f"with NAME one of {', '.join(METHODS)}"
        )
    if name == "tiny":
        return tiny(method)
    if method in _OF_LORA:
        raise UserError(
            f"--config: configs/methods.py:{method}: {_OF_LORA[method]}, which this program does not have yet: "
            f"--config=qwen_math:8b,method={method} trains all parameters"
        )
    config = shipped(f"qwen_math:8b,method={method}")
    config.update_from_flattened_dict(RECIPES[method])
    return config


def tiny(method):
    """The random-weight model and the problems beside this file."""
    config = shipped(f"qwen_math:tiny,method={method}")
    sources = (f"jsonl:{_TINY}?verifier=checksum",)
    config.data.update({"sources": sources, "privileged": "solution", "skills": str(_SKILLS)})
    config.rollout.update(
        {
            "problems": 4,
            "rollouts": 8,
            "prompt_length": 128,
            "teacher_prompt_length": 384,  # whole solutions in the words that stand around their beginnings
            "max_new_tokens": 24 if METHODS[method].rollouts else 96,  # the reference responses are longer
        }
    )
    if "contexts" in config.objective:
        # The bank's texts are longer than a solution, and what random weights make of them is near nothing.
        config.objective.update({"contexts": 2, "neutral": 0.0})
        config.rollout.teacher_prompt_length = 480
    # Hardly any response of random weights ends by itself.
    config.objective.truncated = "score"
    config.optim.schedule = "constant"
    config.run.eval_samples = 2
    return config
