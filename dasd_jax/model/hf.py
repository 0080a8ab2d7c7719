"""Hugging Face folders of config.json and safetensors, read and written: Llama, Qwen2, Qwen3 and Olmo 3."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from dasd_jax import formats
from dasd_jax.batch import Params
from dasd_jax.errors import UserError
from dasd_jax.model.config import Llama3Scaling, ModelConfig, YarnScaling
from dasd_jax.model.param_table import table
from dasd_jax.model.placement import place

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
MAX_SHARD_BYTES = 4 * 10**9
_FILE_DTYPES = ("BF16", "F16", "F32", "F64")

_FAMILIES = {
    "LlamaForCausalLM": {},
    "Qwen2ForCausalLM": {"qkv_bias": True},
    "Qwen3ForCausalLM": {"qk_norm": "head"},
    "Olmo3ForCausalLM": {"qk_norm": "all", "post_norm": True},
}


def load(path: Path, mesh: Mesh) -> tuple[ModelConfig, Params]:
    """Configuration and float32 parameters of a folder with config.json and *.safetensors; see `weights.load`.

    One file is open at a time.

    Raises:
        UserError: the files are damaged, or contain a model that is not supported.
    """
    from safetensors import SafetensorError, safe_open

    files = sorted(path.glob("*.safetensors"))
    if not files or not (path / "config.json").exists():
        raise UserError(f"model.weights: {path} lacks config.json or *.safetensors: expected a Hugging Face folder")
    try:
        config = _read_config(formats.read_object(path / "config.json"), path)
        found = {}
        for file in files:
            with safe_open(file, framework="numpy") as opened:
                slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  not a dict
                shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
                for name, part in slices.items():
                    # Integers and 8-bit floats are quantised values, meaningless without their scales.
                    if part.get_dtype() not in _FILE_DTYPES:
                        raise ValueError(f"{name} is {part.get_dtype()}: expected {', '.join(_FILE_DTYPES)}")
                if twice := sorted(shapes.keys() & found.keys()):
                    raise ValueError(f"{file.name} and another file both contain {twice[0]}")
                found |= shapes

        def tensors() -> Iterator[tuple[str, Callable]]:
            for file in files:
                with safe_open(file, framework="numpy") as opened:
                    for name in opened.keys():  # noqa: SIM118  not a dict
                        yield name, opened.get_slice(name).__getitem__

        return config, place(config, mesh, path, found, tensors())
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, OSError) as error:
        # Missing or mistyped fields of config.json raise where they are first used.
        raise UserError(f"model.weights: {path} is damaged: {type(error).__name__}: {error}") from error


def _read_config(raw: dict, path: Path) -> ModelConfig:
    family = (raw.get("architectures") or ["none"])[0]
    if family not in _FAMILIES:
        raise UserError(f"model.weights: {path} is a {family}: expected one of {', '.join(_FAMILIES)}")
    if raw.get("hidden_act", "silu") != "silu":
        raise UserError(f"model.weights: {path} has hidden_act {raw['hidden_act']!r}: expected silu")
    heads, layers = raw["num_attention_heads"], raw["num_hidden_layers"]
    kinds = raw.get("layer_types") or ()
    if family == "Olmo3ForCausalLM" and not kinds:
        kinds = ["full_attention" if i % 4 == 3 else "sliding_attention" for i in range(layers)]
    if unknown := set(kinds) - {"full_attention", "sliding_attention"}:
        raise UserError(
            f"model.weights: {path} has a layer of type {min(unknown)}: expected full_attention or sliding_attention"
        )
    if raw.get("use_sliding_window") and not kinds:
        raise UserError(f"model.weights: {path} has use_sliding_window: expected layer_types in config.json as well")
    sliding = tuple(kind == "sliding_attention" for kind in kinds)

    rope = raw.get("rope_parameters") or {"rope_theta": raw.get("rope_theta"), **(raw.get("rope_scaling") or {})}
    rope = rope.get("full_attention", rope)
    scaling = _read_scaling(rope, path)
    if any(sliding) and scaling is not None and family != "Olmo3ForCausalLM":
        # Those families scale the rotary embeddings of sliding-window layers too, which `rope_table` never does.
        raise UserError(
            f"model.weights: {path} has both sliding-window layers and RoPE scaling: expected at most one of them"
        )
    return ModelConfig(
        vocab_size=raw["vocab_size"],
        num_layers=layers,
        width=raw["hidden_size"],
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        ff=raw["intermediate_size"],
        context=raw["max_position_embeddings"],
        rope_base=float(rope.get("rope_theta") or 10_000.0),
        rope_scaling=scaling,
        norm_eps=raw["rms_norm_eps"],
        tied=raw.get("tie_word_embeddings", False),
        window=raw["sliding_window"] if any(sliding) else 0,
        sliding=sliding if any(sliding) else (),
        **_FAMILIES[family],
    )


def _read_scaling(rope: dict, path: Path) -> Llama3Scaling | YarnScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind == "llama3":
        return Llama3Scaling(
            factor=rope["factor"],
            low_freq_factor=rope["low_freq_factor"],
            high_freq_factor=rope["high_freq_factor"],
            original_context=rope["original_max_position_embeddings"],
        )
    if kind == "yarn" and not rope.get("mscale"):
        factor = rope["factor"]
        return YarnScaling(
            factor=factor,
            original_context=rope["original_max_position_embeddings"],
            attention_factor=rope.get("attention_factor") or 0.1 * math.log(factor) + 1.0,
            beta_fast=rope.get("beta_fast") or 32.0,
            beta_slow=rope.get("beta_slow") or 1.0,
        )
    raise UserError(f"model.weights: {path} has rope_type {kind!r}: expected default, llama3 or yarn")


def save(path: Path, config: ModelConfig, params: Params, dtype: str = "bfloat16") -> None:
    """Writes a folder that transformers loads: config.json, and tensors in files of at most MAX_SHARD_BYTES.

    A tensor larger than that gets a file of its own.

    Args:
        path: a folder that does not exist or is empty.
        dtype: one of DTYPES, to which the parameters are rounded.
    """
    from safetensors.numpy import save_file

    path.mkdir(parents=True, exist_ok=True)
    flat = traverse_util.flatten_dict(params, sep="/")
    sizes = {
        name: (leaf_path, leaf, layer, math.prod(leaf.stored_shape) * np.dtype(DTYPES[dtype]).itemsize)
        for leaf_path, leaf in table(config).items()
        for layer, name in enumerate(leaf.tensor_names)
    }
    files, room = [[]], MAX_SHARD_BYTES
    # Ordered by layer, so that the tensors of a layer share a file or two.
    for name in sorted(sizes, key=lambda name: (sizes[name][2], name)):
        size = sizes[name][3]
        if size > room and files[-1]:
            files.append([])
            room = MAX_SHARD_BYTES
        files[-1].append(name)
        room -= size
    index = {}
    for number, names in enumerate(files, start=1):
        file = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors = {}
        for name in names:
            leaf_path, leaf, layer, _ = sizes[name]
            tensor = np.asarray(flat[leaf_path][layer] if leaf.stacked else flat[leaf_path])
            if leaf.inputs:
                tensor = tensor.reshape(leaf.stored_shape[::-1]).T
            tensors[name] = np.ascontiguousarray(tensor.reshape(leaf.stored_shape), DTYPES[dtype])
        save_file(tensors, path / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
    if len(files) > 1:
        total = {"total_size": sum(size for *_, size in sizes.values())}
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": total, "weight_map": index}))
    (path / "config.json").write_text(json.dumps(_config_json(config, dtype), indent=2))


def _config_json(config: ModelConfig, dtype: str) -> dict:
    traits = {"qkv_bias": config.qkv_bias, "qk_norm": config.qk_norm, "post_norm": config.post_norm}
    none = {"qkv_bias": False, "qk_norm": "none", "post_norm": False}
    family = next(name for name, chosen in _FAMILIES.items() if none | chosen == traits)
    rope = {"rope_type": "default", "rope_theta": config.rope_base}
    scaling = config.rope_scaling
    if scaling is not None:
        fields = dataclasses.asdict(scaling)
        rope |= {"original_max_position_embeddings": fields.pop("original_context"), **fields}
        rope["rope_type"] = "llama3" if isinstance(scaling, Llama3Scaling) else "yarn"
    if family == "Olmo3ForCausalLM":
        plain = {"rope_type": "default", "rope_theta": config.rope_base}
        rope = {"full_attention": rope, "sliding_attention": plain}
    raw = {
        "architectures": [family],
        "model_type": family.removesuffix("ForCausalLM").lower(),
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ff,
        "max_position_embeddings": config.context,
        "hidden_act": "silu",
        "rope_parameters": rope,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "dtype": dtype,
    }
    if family == "Olmo3ForCausalLM" or config.sliding:
        kinds = config.sliding or (False,) * config.num_layers
        raw["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in kinds]
        raw["sliding_window"] = config.window or None
        raw["use_sliding_window"] = bool(config.sliding)
    return raw
