"""GGUF files of the architectures llama and qwen2, read only, with the defaults of llama.cpp."""

import glob
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from jax.sharding import Mesh

from dasd_jax import formats
from dasd_jax.batch import Params
from dasd_jax.errors import UserError
from dasd_jax.model import gguf_rope
from dasd_jax.model.config import ModelConfig
from dasd_jax.model.param_table import table
from dasd_jax.model.placement import check, place

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
# What these decoders can honour, of keys that would change what is computed; absent, they are None.
_ONLY = {
    "attention.causal": (None, True),
    "attention.scale": (None,),
    "attention.sliding_window": (None, 0),
    "expert_count": (None, 0),
    "logit_scale": (None,),
}


def load(path: Path, mesh: Mesh) -> tuple[ModelConfig, Params]:
    """Configuration and float32 parameters of a .gguf file, dequantised tensor by tensor; see `weights.load`.

    Of a model that is split into several files, `path` is the first, and the others lie beside it.

    Raises:
        UserError: a file is missing or damaged, or contains a model or a quantisation that is not supported.
    """
    config, arch, stored = _described(path)

    def read(name: str) -> np.ndarray:
        kind = stored[name].tensor_type
        try:
            values = gguf.dequantize(stored[name].data, kind)
        except NotImplementedError as error:
            raise UserError(f"model.weights: {path} stores {name} as {kind.name}, which is not supported") from error
        rotated = re.search(r"(q|k)_proj\.weight", name)
        if arch == "llama" and rotated:
            # llama.cpp rotates the pairs (2h, 2h + 1), `rotate` the pairs (h, h + H/2): undo the permutation of rows.
            heads = config.num_heads if rotated[1] == "q" else config.num_kv_heads
            values = values.reshape(heads, config.head_dim // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)
        return values

    return config, place(config, mesh, path, _shapes(stored), ((name, read(name).__getitem__) for name in stored))


def header(path: Path) -> ModelConfig:
    """The architecture of such a file, which has all of its tensors by name and shape; none of them is read.

    Raises:
        UserError: as `load`, but for a quantisation that is not supported.
    """
    config, _, stored = _described(path)
    check(config, path, _shapes(stored))
    return config


def _shapes(stored: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in stored.items()}


def _described(path: Path) -> tuple[ModelConfig, str, dict[str, Any]]:
    """(architecture, its name in the file, tensors of all parts by their Hugging Face names)."""
    try:
        readers = _open_parts(path)
        fields = {name: field.contents() for name, field in readers[0].fields.items() if "tokenizer" not in name}
        stored = {}
        for reader in readers:
            for tensor in reader.tensors:
                if tensor.name in stored:
                    raise ValueError(f"two of its parts contain {tensor.name}")
                stored[tensor.name] = tensor
        if len(stored) != fields.get("split.tensors.count", len(stored)):
            raise ValueError(f"its parts have {len(stored)} tensors: expected {fields['split.tensors.count']}")
        arch = fields["general.architecture"]
        factors = stored.pop("rope_freqs.weight", None)
        config = _read_config(fields, arch, stored, None if factors is None else factors.data, path)
    except (ValueError, LookupError, TypeError, ArithmeticError, OSError) as error:
        raise UserError(f"model.weights: {path} is not a valid GGUF file: {error!r}") from error

    ours = {gguf_name(name): name for leaf in table(config).values() for name in leaf.tensor_names}
    # Unknown names stay as they are, so that `check` refuses them by the name in the file.
    return config, arch, {ours.get(name, name): tensor for name, tensor in stored.items()}


def gguf_name(name: str) -> str:
    """The GGUF name of a tensor with this Hugging Face name."""
    for ours, theirs in _NAMES.items():
        name = re.sub(rf"(^|\.){re.escape(ours)}\.", rf"\g<1>{theirs}.", name)
    return name


def files(path: Path) -> list[Path]:
    """The file, or all parts of the split model, by their names."""
    name = _PART.fullmatch(path.name)
    return sorted(path.parent.glob(f"{glob.escape(name[1])}-*-of-{name[3]}.gguf")) if name else [path]


def _open_parts(path: Path) -> list[formats.GgufReader]:
    """The file, or all parts of the split model whose first part it is."""
    first = formats.GgufReader(path)

    def split(reader: formats.GgufReader, key: str) -> int:
        return reader.fields[f"split.{key}"].contents() if f"split.{key}" in reader.fields else 0

    count = split(first, "count")
    if count <= 1:
        return [first]
    name = _PART.fullmatch(path.name)
    if split(first, "no") != 0 or not name or int(name[2]) != 1 or int(name[3]) != count:
        raise UserError(
            f"model.weights: {path} is part {split(first, 'no') + 1} of {count}: expected the first of them, "
            f"with a name that ends in -00001-of-{count:05d}.gguf"
        )
    readers = [first]
    for number in range(1, count):
        part = path.with_name(f"{name[1]}-{number + 1:05d}-of-{name[3]}.gguf")
        if not part.is_file():
            raise UserError(f"model.weights: {path.parent} lacks {part.name}: expected all {count} parts of the model")
        readers.append(formats.GgufReader(part))
        if (split(readers[-1], "no"), split(readers[-1], "count")) != (number, count):
            raise UserError(f"model.weights: {part} is not part {number + 1} of {count}: expected the part of its name")
    return readers


def _read_config(
    fields: Mapping[str, Any], arch: str, tensors: dict, factors: np.ndarray | None, path: Path
) -> ModelConfig:
    if arch not in ("llama", "qwen2"):
        raise UserError(f"model.weights: {path} is a {arch!r} model: expected llama or qwen2")

    def field(name: str, *default: Any) -> Any:
        """A value of the metadata; lists have one for each layer, which must be equal."""
        key = f"{arch}.{name}"
        if key not in fields and not default:
            raise UserError(f"model.weights: {path} has no {key}: expected it in the metadata")
        value = fields.get(key, *default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise UserError(f"model.weights: {path} has {key} {str(value):.200}: expected the same for all layers")
            value = value[0]
        return value

    for name, values in _ONLY.items():
        if (value := field(name, None)) not in values:
            raise UserError(f"model.weights: {path} has {arch}.{name} {value!r:.100}: expected no such key")
    heads, width = field("attention.head_count"), field("embedding_length")
    head_dim = field("attention.key_length", width // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if (value := field(name, head_dim)) != head_dim:
            raise UserError(
                f"model.weights: {path} has {arch}.{name} {value}: expected {head_dim}, the width of a head"
            )
    base = float(field("rope.freq_base", 10_000.0))
    return ModelConfig(
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        num_layers=field("block_count"),
        width=width,
        num_heads=heads,
        num_kv_heads=field("attention.head_count_kv", heads),
        head_dim=head_dim,
        ff=field("feed_forward_length"),
        context=field("context_length"),
        rope_base=base,
        rope_scaling=gguf_rope.read(fields, arch, base, head_dim, factors, path),
        norm_eps=float(field("attention.layer_norm_rms_epsilon")),
        qkv_bias=arch == "qwen2",
        tied="output.weight" not in tensors,
    )
