"""Configurations of the published Qwen3 sizes, a tiny one for tests, and the laboratory's."""

from dasd_jax.errors import UserError
from dasd_jax.model.config import ModelConfig


def _qwen3(num_layers, width, num_heads, ff, tied) -> ModelConfig:
    return ModelConfig(
        vocab_size=151_936,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        num_kv_heads=8,
        head_dim=128,
        ff=ff,
        context=40_960,
        rope_base=1e6,
        qk_norm="head",
        tied=tied,
    )


PRESETS = {
    "qwen3_0p6b": _qwen3(28, 1024, 16, 3072, tied=True),
    "qwen3_1p7b": _qwen3(28, 2048, 16, 6144, tied=True),
    "qwen3_4b": _qwen3(36, 2560, 32, 9728, tied=True),
    "qwen3_8b": _qwen3(36, 4096, 32, 12_288, tied=False),
    "qwen3_14b": _qwen3(40, 5120, 40, 17_408, tied=False),
    "qwen3_32b": _qwen3(64, 5120, 64, 25_600, tied=False),
    # The Qwen3 architecture at 0.1 M parameters, for tests and smoke runs with random weights.
    "qwen3_tiny": ModelConfig(
        vocab_size=320,
        num_layers=2,
        width=64,
        num_heads=8,
        num_kv_heads=4,
        head_dim=16,
        ff=128,
        context=512,
        rope_base=1e6,
        qk_norm="head",
    ),
    # The laboratory's reasoner at 0.4 M parameters, which writes characters (docs/lab.md).
    "lab": ModelConfig(
        vocab_size=32,
        num_layers=3,
        width=96,
        num_heads=4,
        num_kv_heads=4,
        head_dim=32,
        ff=288,
        context=256,
        rope_base=1e4,
        qk_norm="head",
    ),
}


def preset(name: str) -> ModelConfig:
    """The preset called `name`.

    Raises:
        UserError: no preset has that name.
    """
    if name not in PRESETS:
        raise UserError(f"model.preset: {name!r} is unknown: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
