"""config.json of Hugging Face folders, read as transformers reads it and written for its versions 4 and 5.

A field that is missing has the default of its family's configuration class in transformers, and one that these decoders
cannot honour is refused.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dasd_jax.model import hf_rope
from dasd_jax.model.config import ModelConfig
from dasd_jax.model.hf_rope import FULL, SLIDING, refusal


@dataclasses.dataclass(frozen=True)
class _Family:
    model_type: str
    traits: Mapping[str, Any]  # fields of ModelConfig
    defaults: Mapping[str, Any]  # fields of config.json, where they are not those of _DEFAULTS
    rope_base: float = 10_000.0


_LLAMA, _QWEN2, _QWEN3, _OLMO3 = "LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Olmo3ForCausalLM"
_QWEN_DEFAULTS = {"max_position_embeddings": 32_768, "num_key_value_heads": 32, "sliding_window": 4096}
_FAMILIES = {
    _LLAMA: _Family("llama", {}, {}),
    _QWEN2: _Family("qwen2", {"qkv_bias": True}, _QWEN_DEFAULTS),
    _QWEN3: _Family("qwen3", {"qk_norm": "head"}, _QWEN_DEFAULTS | {"head_dim": 128}),
    # The base is that of transformers 5 and of the published weights; transformers 4 had 10,000.
    _OLMO3: _Family(
        "olmo3", {"qk_norm": "all", "post_norm": True}, {"rms_norm_eps": 1e-5, "sliding_window": 4096}, 500_000.0
    ),
}
_DEFAULTS = {
    "max_position_embeddings": 2048,
    "num_key_value_heads": None,  # as many as num_attention_heads
    "head_dim": None,  # hidden_size / num_attention_heads
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "sliding_window": None,
    "max_window_layers": 28,  # a layer of Qwen from this one on slides, unless layer_types says otherwise
    "layer_types": None,
}
# The values that these decoders can honour, of fields that would change what is computed; None stands for absence.
_ONLY = {
    "hidden_act": (None, "silu", "swish"),
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "partial_rotary_factor": (None, 1),
    "is_causal": (None, True),
    "per_layer_config": (None, {}),
}


def read(raw: Mapping[str, Any], path: Path) -> ModelConfig:
    """The architecture that the content of a config.json describes.

    Args:
        path: the folder, for errors.

    Raises:
        UserError: an unknown family, or a field that is missing, contradicts another or cannot be honoured.
        ValueError: a value that no such decoder can have.
    """
    name = _family(raw, path)
    family = _FAMILIES[name]
    for field, values in _ONLY.items():
        # Qwen2 has no attention_bias: its projections to queries, keys and values always have biases.
        if raw.get(field) not in values and (field, name) != ("attention_bias", _QWEN2):
            raise refusal(path, f"has {field} {raw[field]!r:.100}", f"{values[1]}, or no such field")
    given = {**_DEFAULTS, **family.defaults, **raw}
    for field in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        if field not in given:
            raise refusal(path, f"has no {field} in config.json", "a number")
    heads = given["num_attention_heads"]
    config = ModelConfig(
        vocab_size=given["vocab_size"],
        num_layers=given["num_hidden_layers"],
        width=given["hidden_size"],
        num_heads=heads,
        num_kv_heads=heads if given["num_key_value_heads"] is None else given["num_key_value_heads"],
        head_dim=_head_dim(given, path),
        ff=given["intermediate_size"],
        context=given["max_position_embeddings"],
        norm_eps=given["rms_norm_eps"],
        tied=given["tie_word_embeddings"],
        **family.traits,
    )
    sliding = _sliding(name, given, path)
    base, scaling = hf_rope.read(given, sliding, by_kind=name == _OLMO3, base=family.rope_base, path=path)
    window = given["sliding_window"] if sliding else 0
    return dataclasses.replace(config, rope_base=base, rope_scaling=scaling, sliding=sliding, window=window)


def _head_dim(given: Mapping[str, Any], path: Path) -> Any:
    width, heads = given["hidden_size"], given["num_attention_heads"]
    if given["head_dim"] is not None:
        return given["head_dim"]
    if type(width) is type(heads) is int and heads > 0 and width % heads == 0:
        return width // heads
    raise refusal(path, f"has hidden_size {width!r:.100}, and no head_dim", f"a multiple of its {heads!r:.100} heads")


def _family(raw: Mapping[str, Any], path: Path) -> str:
    """Its key in _FAMILIES, by `architectures`, or by `model_type` where there are none."""
    names = {family.model_type: name for name, family in _FAMILIES.items()}
    kind = raw.get("model_type")
    name = (raw.get("architectures") or [names.get(kind, kind)])[0]
    if name not in _FAMILIES:
        raise refusal(path, f"is a {name or 'model of no stated family'}", f"one of {', '.join(_FAMILIES)}")
    if kind not in (None, _FAMILIES[name].model_type):
        expected = f"model_type {_FAMILIES[name].model_type}"
        raise refusal(path, f"has architectures {name} and model_type {kind!r:.100}", expected)
    return name


def _sliding(name: str, given: Mapping[str, Any], path: Path) -> tuple[bool, ...]:
    """Whether each layer has sliding-window attention; empty if none has."""
    kinds, window, layers = given["layer_types"], given["sliding_window"], given["num_hidden_layers"]
    if unknown := set(kinds or ()) - {FULL, SLIDING}:
        raise refusal(path, f"has a layer of type {min(unknown)}", f"{FULL} or {SLIDING}")
    if kinds is not None and len(kinds) != layers:
        raise refusal(path, f"has {len(kinds)} layer_types", f"one for each of its {layers} layers")
    if kinds is not None:
        sliding = tuple(kind == SLIDING for kind in kinds)
    elif name == _OLMO3:
        sliding = tuple(i % 4 != 3 for i in range(layers))
    elif name != _LLAMA and given["use_sliding_window"] and window is not None:
        sliding = tuple(i >= given["max_window_layers"] for i in range(layers))
    else:
        sliding = ()
    if name == _LLAMA and any(sliding):
        raise refusal(path, f"has layers of type {SLIDING}", f"only {FULL} in a Llama")
    if name == _LLAMA and window is not None and window < given["max_position_embeddings"]:
        raise refusal(path, f"has sliding_window {window!r:.100}", "none in a Llama")
    if name != _OLMO3 and any(sliding) and not given["use_sliding_window"]:
        raise refusal(path, f"has layers of type {SLIDING}", "use_sliding_window true as well")
    return sliding if any(sliding) else ()


def write(config: ModelConfig, dtype: str, ids: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a config.json that transformers 4 and 5 load as the same model.

    What one of them reads elsewhere than the other is written in both places.

    Args:
        dtype: of the tensors.
        ids: bos_token_id, eos_token_id and pad_token_id; null where it has none, for the classes have defaults.
    """
    traits = {"qkv_bias": config.qkv_bias, "qk_norm": config.qk_norm, "post_norm": config.post_norm}
    none = {"qkv_bias": False, "qk_norm": "none", "post_norm": False}
    name, family = next((name, family) for name, family in _FAMILIES.items() if none | dict(family.traits) == traits)
    raw = {
        "architectures": [name],
        "model_type": family.model_type,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ff,
        "hidden_act": "silu",
        **hf_rope.write(config, by_kind=name == _OLMO3),
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "dtype": dtype,
        "torch_dtype": dtype,
        **{field: ids.get(field) for field in ("bos_token_id", "eos_token_id", "pad_token_id")},
    }
    if name == _OLMO3 or config.sliding:
        kinds = config.sliding or (False,) * config.num_layers
        raw["layer_types"] = [SLIDING if slides else FULL for slides in kinds]
        raw["sliding_window"] = config.window or None
        raw["use_sliding_window"] = bool(config.sliding)
    return raw
