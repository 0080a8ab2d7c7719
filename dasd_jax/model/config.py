"""The architecture of a decoder: sizes, rotary embedding scaling and what distinguishes the model families."""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Position interpolation: every rotary frequency is divided by `factor`. Source: arXiv 2306.15595."""

    factor: float


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """RoPE scaling of Llama 3: low frequencies are divided by `factor`, to reach beyond the context of pre-training."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192  # tokens


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN: low rotary frequencies are divided by `factor`; queries and keys are multiplied by `attention_factor`.

    Source: arXiv 2309.00071.
    """

    factor: float
    original_context: int  # tokens
    attention_factor: float
    beta_fast: float = 32.0  # rotations within the original context above which a frequency is unchanged
    beta_slow: float = 1.0  # rotations below which a frequency is divided by the whole factor
    truncate: bool = True  # the indices of the two frequencies are rounded outwards to integers


def yarn_magnitude(factor: float, weight: float = 1.0) -> float:
    """`attention_factor` where a file does not state it. Source: arXiv 2309.00071, equation 22."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A dense Llama, Qwen2.5, Qwen3 or Olmo 3 decoder; hashable, a static argument of jitted functions.

    Raises:
        ValueError: a field has a value that no such decoder can have.
    """

    vocab_size: int  # V
    num_layers: int  # L
    width: int  # D
    num_heads: int  # N, query heads
    num_kv_heads: int  # K, divides N
    head_dim: int  # H
    ff: int  # F
    context: int  # tokens of prompt and response together
    rope_base: float = 10_000.0
    rope_scaling: RopeScaling | None = None  # of layers with full attention
    norm_eps: float = 1e-6
    qk_norm: str = "none"  # RMS norm of queries and keys: none | head: per head (Qwen3) | all: over all heads (Olmo 3)
    qkv_bias: bool = False  # biases of the q, k and v projections (Qwen2.5)
    post_norm: bool = False  # normalise the outputs of attention and feed-forward (Olmo 3), not their inputs
    window: int = 0  # tokens visible in sliding-window layers, including the query itself; 0: no such layers
    sliding: tuple[bool, ...] = ()  # whether each layer has sliding-window attention; empty: none has
    tied: bool = True  # the unembedding is the embedding
    compute_dtype: str = "float32"  # arguments of matrix products, and KV cache
    remat: str = "full"  # none | dots | full: what the backward pass recomputes
    attention: str = "xla"  # kernel for whole sequences, one of attention.KINDS
    unroll: bool = False  # decode without a scan over layers: avoids copies out of the stack, compiles longer

    def __post_init__(self):
        for name in ("vocab_size", "num_layers", "width", "num_heads", "num_kv_heads", "head_dim", "ff", "context"):
            _require(name, getattr(self, name), _is_count(getattr(self, name)), "an integer from 1 to 2147483647")
        _require("num_layers", self.num_layers, self.num_layers <= 1024, "at most 1024 layers")
        fits = self.num_heads % self.num_kv_heads == 0
        _require("num_kv_heads", self.num_kv_heads, fits, f"a divisor of the {self.num_heads} heads")
        _require("head_dim", self.head_dim, self.head_dim % 2 == 0, "an even number")
        for name in ("rope_base", "norm_eps"):
            _require(name, getattr(self, name), _is_positive(getattr(self, name)), "a positive number")
        _require("tied", self.tied, isinstance(self.tied, bool), "true or false")
        kinds = all(isinstance(slides, bool) for slides in self.sliding)
        _require("sliding", self.sliding, kinds and len(self.sliding) in (0, self.num_layers), "one boolean per layer")
        window = _is_count(self.window) if self.sliding else self.window == 0
        _require("window", self.window, window, "a number of tokens if layers slide, else 0")
        if self.rope_scaling is not None:
            self._check_scaling(self.rope_scaling)

    def _check_scaling(self, scaling: RopeScaling) -> None:
        for name, value in dataclasses.asdict(scaling).items():
            if name == "truncate":
                _require("rope_scaling.truncate", value, isinstance(value, bool), "true or false")
            else:
                _require(f"rope_scaling.{name}", value, _is_positive(value), "a positive number")
        if isinstance(scaling, Llama3Scaling):
            high, low = scaling.high_freq_factor, scaling.low_freq_factor
            _require("rope_scaling.high_freq_factor", high, high > low, f"more than low_freq_factor, {low}")
        if isinstance(scaling, YarnScaling):
            fast, slow = scaling.beta_fast, scaling.beta_slow
            _require("rope_scaling.beta_fast", fast, fast > slow, f"more than beta_slow, {slow}")

    @classmethod
    def from_dict(cls, raw: dict) -> "ModelConfig":
        """The inverse of `dataclasses.asdict`, also after a round trip through JSON."""
        if not isinstance(raw, dict):
            raise ValueError(f"{raw!r:.100}: expected the fields of an architecture")
        scaling = raw["rope_scaling"]
        if scaling is not None:
            kinds = {"attention_factor": YarnScaling, "low_freq_factor": Llama3Scaling}
            scaling = next((kind for field, kind in kinds.items() if field in scaling), LinearScaling)(**scaling)
        return cls(**raw | {"rope_scaling": scaling, "sliding": tuple(raw["sliding"])})


def _require(field: str, value: Any, fits: bool, expected: str) -> None:
    if not fits:
        raise ValueError(f"{field}: {value!r:.100}: expected {expected}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value < 2**31


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf
