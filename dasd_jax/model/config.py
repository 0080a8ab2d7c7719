"""What a decoder is made of, and the presets of the families that we know."""

import dataclasses
import math

from dasd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama-3's stretching of the low rotary frequencies beyond the context of pre-training."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192  # tokens


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A dense Llama, Qwen2.5 or Qwen3 decoder; hashable, so that it is a static argument of jitted functions."""

    vocab_size: int  # V
    num_layers: int  # L
    width: int  # D
    num_heads: int  # N, query heads
    num_kv_heads: int  # K, divides N
    head_dim: int  # H
    ff: int  # F
    context: int  # tokens, prompt and response together
    rope_base: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    qk_norm: bool = False  # RMS norm of each query and key head (Qwen3)
    qkv_bias: bool = False  # biases of the q, k and v projections (Qwen2.5)
    tied: bool = True  # the unembedding is the embedding
    compute_dtype: str = "float32"  # activations and KV cache
    remat: str = "full"  # none | dots | full: what the backward pass computes again

    @property
    def num_params(self) -> int:
        """Parameters, counted from the table."""
        from dasd_jax.model.params import table  # the table is written in terms of this class

        return sum(math.prod(leaf.shape) for leaf in table(self).values())


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
        qk_norm=True,
        tied=tied,
    )


PRESETS = {
    "qwen3_0p6b": _qwen3(28, 1024, 16, 3072, tied=True),
    "qwen3_1p7b": _qwen3(28, 2048, 16, 6144, tied=True),
    "qwen3_4b": _qwen3(36, 2560, 32, 9728, tied=True),
    "qwen3_8b": _qwen3(36, 4096, 32, 12_288, tied=False),
    # Qwen3 in shape and 0.1 M parameters in size, for tests and smoke runs with random weights.
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
        qk_norm=True,
    ),
}


def preset(name: str) -> ModelConfig:
    """The preset called `name`.

    Raises:
        UserError: there is none.
    """
    if name not in PRESETS:
        raise UserError(f"model.preset: {name!r} is unknown: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
