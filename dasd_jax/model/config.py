"""What a decoder is made of, and the presets of the families that we know."""

import dataclasses
import math
from typing import Any

from dasd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama-3's stretching of the low rotary frequencies beyond the context of pre-training."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192  # tokens


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN: low rotary frequencies are stretched by `factor`, and queries and keys grow by `attention_factor`.

    Source: arXiv 2309.00071.
    """

    factor: float
    original_context: int  # tokens
    attention_factor: float
    beta_fast: float = 32.0  # turns within the original context above which a frequency stays as it is
    beta_slow: float = 1.0  # turns below which it is stretched by the whole factor


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A dense Llama, Qwen2.5, Qwen3 or Olmo 3 decoder; hashable, a static argument of jitted functions.

    Raises:
        ValueError: a field that no such decoder has.
    """

    vocab_size: int  # V
    num_layers: int  # L
    width: int  # D
    num_heads: int  # N, query heads
    num_kv_heads: int  # K, divides N
    head_dim: int  # H
    ff: int  # F
    context: int  # tokens, prompt and response together
    rope_base: float = 10_000.0
    rope_scaling: Llama3Scaling | YarnScaling | None = None  # of layers that see everything
    norm_eps: float = 1e-6
    qk_norm: str = "none"  # RMS norm of queries and keys: none | head: of each (Qwen3) | all: of all as one (Olmo 3)
    qkv_bias: bool = False  # biases of the q, k and v projections (Qwen2.5)
    post_norm: bool = False  # attention and feed-forward are normalised behind (Olmo 3) instead of before
    window: int = 0  # tokens that a sliding layer sees, the query's own among them
    sliding: tuple[bool, ...] = ()  # which layers slide; empty: none
    tied: bool = True  # the unembedding is the embedding
    compute_dtype: str = "float32"  # activations and KV cache
    remat: str = "full"  # none | dots | full: what the backward pass computes again
    attention: str = "xla"  # the kernel of passes over whole sequences, one of attention.KINDS
    unroll: bool = False  # decode with the layers one by one: no copies out of a stack, a longer compilation

    def __post_init__(self):
        for name in ("vocab_size", "num_layers", "width", "num_heads", "num_kv_heads", "head_dim", "ff", "context"):
            _require(name, getattr(self, name), _is_count(getattr(self, name)), "a number of 1 to 2147483647")
        _require("num_layers", self.num_layers, self.num_layers <= 1024, "at most 1024 layers")
        fits = self.num_heads % self.num_kv_heads == 0
        _require("num_kv_heads", self.num_kv_heads, fits, f"a divisor of the {self.num_heads} heads")
        _require("head_dim", self.head_dim, self.head_dim % 2 == 0, "an even number")
        for name in ("rope_base", "norm_eps"):
            _require(name, getattr(self, name), _is_positive(getattr(self, name)), "a positive number")
        _require("tied", self.tied, isinstance(self.tied, bool), "true or false")
        kinds = all(isinstance(slides, bool) for slides in self.sliding)
        _require("sliding", self.sliding, kinds and len(self.sliding) in (0, self.num_layers), "one for each layer")
        window = _is_count(self.window) if self.sliding else self.window == 0
        _require("window", self.window, window, "the tokens that a sliding layer sees")
        if self.rope_scaling is not None:
            for name, value in dataclasses.asdict(self.rope_scaling).items():
                _require(f"rope_scaling.{name}", value, _is_positive(value), "a positive number")

    @property
    def num_params(self) -> int:
        """Parameters, counted from the table."""
        from dasd_jax.model.params import table  # the table is written in terms of this class

        return sum(math.prod(leaf.shape) for leaf in table(self).values())

    @classmethod
    def from_dict(cls, raw: dict) -> "ModelConfig":
        """The inverse of `dataclasses.asdict`, also after a way through JSON."""
        if not isinstance(raw, dict):
            raise ValueError(f"{raw!r:.100}: expected the fields of an architecture")
        scaling = raw["rope_scaling"]
        if scaling is not None:
            scaling = (YarnScaling if "attention_factor" in scaling else Llama3Scaling)(**scaling)
        return cls(**raw | {"rope_scaling": scaling, "sliding": tuple(raw["sliding"])})


def _require(field: str, value: Any, fits: bool, expected: str) -> None:
    if not fits:
        raise ValueError(f"{field}: {value!r:.100}: expected {expected}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value < 2**31


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


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
        qk_norm="head",
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
