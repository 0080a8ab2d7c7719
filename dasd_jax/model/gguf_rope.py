"""RoPE scaling in the metadata of GGUF files, and in the tensor rope_freqs.weight, as llama.cpp applies them."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dasd_jax.errors import UserError
from dasd_jax.model.config import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling, yarn_magnitude

# Keys beside these change frequencies in ways that are not known here.
_KNOWN = {"type", "factor", "original_context_length", "attn_factor", "finetuned", "yarn_beta_fast", "yarn_beta_slow"}


def read(
    fields: Mapping[str, Any], arch: str, base: float, head_dim: int, factors: np.ndarray | None, path: Path
) -> RopeScaling | None:
    """The scaling of a file.

    Args:
        fields: metadata by key.
        factors: rope_freqs.weight, f32[H/2], by which frequencies are divided.
        path: of the file, for errors.

    Raises:
        UserError: it has a kind of scaling, or a key, that is not supported.
    """
    prefix = f"{arch}.rope.scaling."
    keys = {key.removeprefix(prefix): value for key, value in fields.items() if key.startswith(prefix)}

    def refusal(problem: str, expected: str) -> UserError:
        return UserError(f"model.weights: {path} has {problem}: expected {expected}")

    if unknown := sorted(keys.keys() - _KNOWN):
        raise refusal(f"{prefix}{unknown[0]} {keys[unknown[0]]!r:.100}", f"only {', '.join(sorted(_KNOWN))}")
    # As in llama.cpp: a file without a type is linear, one without a factor is not scaled, and the old name of the
    # factor counts where the new one is missing.
    kind = keys.get("type", "linear")
    factor = float(keys.get("factor", fields.get(f"{arch}.rope.scale_linear", 0.0)) or 1.0)
    size = float(keys.get("attn_factor", 1.0))
    if kind not in ("none", "linear", "yarn"):
        raise refusal(f"{prefix}type {kind!r:.100}", "none, linear or yarn")
    if kind != "yarn" and size != 1.0:
        raise refusal(f"{prefix}attn_factor {size} with type {kind}", "1")
    scaled = kind != "none" and (factor != 1.0 or size != 1.0)
    if factors is not None and scaled:
        raise refusal(f"{prefix}type {kind} and rope_freqs.weight", "one of them")
    if factors is not None:
        if arch != "llama":
            raise refusal("rope_freqs.weight", f"none in a file of architecture {arch}")
        return _llama3(np.asarray(factors, np.float64), base, head_dim, path)
    if not scaled:
        return None
    if kind == "linear":
        return LinearScaling(factor)
    return YarnScaling(
        factor=factor,
        original_context=keys.get("original_context_length") or fields[f"{arch}.context_length"],
        attention_factor=size * yarn_magnitude(factor),
        beta_fast=float(keys.get("yarn_beta_fast", 32.0)),
        beta_slow=float(keys.get("yarn_beta_slow", 1.0)),
    )


def _llama3(factors: np.ndarray, base: float, head_dim: int, path: Path) -> Llama3Scaling | None:
    """The scaling of Llama 3 that has these factors, with its low_freq_factor 1 and high_freq_factor 4.

    A frequency that makes t rotations within the original context keeps the share s = (t - 1) / 3 of itself, clipped to
    [0, 1], and the rest of it is divided by the whole factor: the file has 1 / (s + (1 - s) / factor).
    """
    half = head_dim // 2
    refusal = UserError(
        f"model.weights: {path} has a rope_freqs.weight that is not of Llama 3: expected {half} factors for "
        "low_freq_factor 1 and high_freq_factor 4, or the model's Hugging Face folder"
    )
    if factors.shape != (half,) or not np.all(np.isfinite(factors) & (factors >= 1)):
        raise refusal
    factor = float(factors.max())
    if factor == 1:
        return None
    per_token = base ** (-np.arange(half) / half) / (2 * np.pi)  # rotations
    share = np.clip((1 / factors - 1 / factor) / (1 - 1 / factor), 0, 1)
    between = (share > 1e-6) & (share < 1 - 1e-6)
    if between.any():
        original = float(np.median((1 + 3 * share[between]) / per_token[between]))
    else:
        # Any context is the same in which the kept frequencies make 4 rotations and the divided ones at most 1.
        least, most = max(4 / per_token[share > 0.5], default=1.0), min(1 / per_token[share < 0.5])
        original = min(max(8192.0, math.ceil(least)), math.floor(most))
    original = round(original) if math.isclose(original, round(original), rel_tol=1e-4) else original
    found = np.clip((original * per_token - 1) / 3, 0, 1)
    if not np.allclose(1 / (found + (1 - found) / factor), factors, rtol=1e-4):
        raise refusal
    return Llama3Scaling(factor, 1.0, 4.0, original)
