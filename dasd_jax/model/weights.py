"""Weights from files: GGUF (llama and qwen2 architectures) and Hugging Face folders of safetensors.

Both are read one parameter at a time, guided by the table in `params.py`: a tensor that the table asks for and the
file lacks, has in another shape, or has left over is an error that names it.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, which safetensors needs
import numpy as np
from jax.sharding import Mesh

from dasd_jax.batch import Params
from dasd_jax.errors import UserError
from dasd_jax.model.config import ModelConfig, RopeScaling
from dasd_jax.model.params import Leaf, shardings, table, tree


def check(path: str, sha256: str) -> None:
    """Refuses weights that are not there or not the expected file, before anything else is done.

    Args:
        path: `~` is expanded.
        sha256: the expected checksum of a single file; empty means that it is not checked.

    Raises:
        UserError: the path is missing, or has another checksum.
    """
    where = Path(path).expanduser()
    if not where.exists():
        raise UserError(
            f"model.weights: {path} does not exist: expected a .gguf file or a Hugging Face folder "
            "(python -m dasd_jax.fetch brings the embedded default)"
        )
    if not sha256:
        return
    if where.is_dir():
        raise UserError(f"model.sha256: {sha256} cannot be of the folder {path}: expected --config.model.sha256=")
    found = file_sha256(where)
    if found != sha256:
        raise UserError(
            f"model.weights: {path} has sha256 {found}: expected {sha256} (model.sha256); fetch the file again, "
            "or set --config.model.sha256= for another one"
        )


def load(path: str, mesh: Mesh) -> tuple[ModelConfig, Params]:
    """Configuration and float32 parameters of a .gguf file or a Hugging Face folder, laid out for training.

    Args:
        path: `~` is expanded; see `check`.

    Raises:
        UserError: the path is damaged, or holds a model that is not supported.
    """
    where = Path(path).expanduser()
    return load_hf(where, mesh) if where.is_dir() else load_gguf(where, mesh)


def file_sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ------------------------------------------------------------------------------------------------ Hugging Face folders


_HF_FAMILIES = {"LlamaForCausalLM": {}, "Qwen2ForCausalLM": {"qkv_bias": True}, "Qwen3ForCausalLM": {"qk_norm": True}}


def load_hf(path: Path, mesh: Mesh) -> tuple[ModelConfig, Params]:
    """The model of a folder with config.json and *.safetensors; see `load`."""
    from safetensors import SafetensorError, safe_open

    files = sorted(path.glob("*.safetensors"))
    if not files or not (path / "config.json").exists():
        raise UserError(f"model.weights: {path} lacks config.json or *.safetensors: expected a Hugging Face folder")
    try:
        config = _config_from_hf(json.loads((path / "config.json").read_text()), path)
        opened = [safe_open(file, framework="numpy") for file in files]
        owner = {name: file for file in opened for name in file.keys()}  # noqa: SIM118  not a dict
        return config, _assemble(config, mesh, path, owner.keys(), lambda name: owner[name].get_tensor(name))
    except (SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise UserError(f"model.weights: {path} is damaged: {error!r}") from error


def _config_from_hf(raw: dict, path: Path) -> ModelConfig:
    family = (raw.get("architectures") or ["none"])[0]
    if family not in _HF_FAMILIES:
        raise UserError(f"model.weights: {path} is a {family}: expected one of {', '.join(_HF_FAMILIES)}")
    rope = raw.get("rope_parameters") or {"rope_theta": raw.get("rope_theta"), **(raw.get("rope_scaling") or {})}
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "llama3"):
        raise UserError(f"model.weights: {path} stretches its rotary angles by {kind!r}: expected default or llama3")
    heads = raw["num_attention_heads"]
    return ModelConfig(
        vocab_size=raw["vocab_size"],
        num_layers=raw["num_hidden_layers"],
        width=raw["hidden_size"],
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads", heads),
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        ff=raw["intermediate_size"],
        context=raw["max_position_embeddings"],
        rope_base=float(rope["rope_theta"] or 10_000.0),
        rope_scaling=RopeScaling(
            factor=rope["factor"],
            low_freq_factor=rope["low_freq_factor"],
            high_freq_factor=rope["high_freq_factor"],
            original_context=rope["original_max_position_embeddings"],
        )
        if kind == "llama3"
        else None,
        norm_eps=raw["rms_norm_eps"],
        tied=raw.get("tie_word_embeddings", False),
        **_HF_FAMILIES[family],
    )


# ------------------------------------------------------------------------------------------------ GGUF files


_GGUF_NAMES = {
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


def load_gguf(path: Path, mesh: Mesh) -> tuple[ModelConfig, Params]:
    """The model of a .gguf file, dequantised to float32; see `load`."""
    from gguf import GGUFReader, dequantize

    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if "tokenizer" not in name}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        arch = fields["general.architecture"]
        config = _config_from_gguf(fields, arch, tensors, path)
    except (ValueError, KeyError, IndexError) as error:
        raise UserError(f"model.weights: {path} is not a whole GGUF file: {error!r}") from error

    def read(name: str) -> np.ndarray:
        gguf_name = _gguf_name(name)
        kind = tensors[gguf_name].tensor_type
        try:
            values = dequantize(tensors[gguf_name].data, kind)
        except NotImplementedError as error:
            raise UserError(f"model.weights: {path} holds {gguf_name} as {kind.name}, which cannot be read") from error
        turned = re.search(r"attn_(q|k)\.weight", gguf_name)
        if arch == "llama" and turned:
            # llama.cpp rotates neighbouring pairs (2h, 2h+1), we rotate (h, h + H/2): its rows are permuted back.
            heads = config.num_heads if turned[1] == "q" else config.num_kv_heads
            values = values.reshape(heads, config.head_dim // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)
        return values

    known = {_gguf_name(name) for leaf in table(config).values() for name in _names(leaf, config)}
    extra = sorted(tensors.keys() - known - {"rope_freqs.weight"})
    if extra:
        raise UserError(f"model.weights: {path} holds {extra[0]}, which a {arch} model here does not have")
    present = {name for leaf in table(config).values() for name in _names(leaf, config) if _gguf_name(name) in tensors}
    return config, _assemble(config, mesh, path, present, read)


def _gguf_name(name: str) -> str:
    for ours, theirs in _GGUF_NAMES.items():
        name = re.sub(rf"(^|\.){re.escape(ours)}\.", rf"\g<1>{theirs}.", name)
    return name


def _config_from_gguf(fields: dict, arch: str, tensors: dict, path: Path) -> ModelConfig:
    if arch not in ("llama", "qwen2"):
        raise UserError(f"model.weights: {path} is a {arch!r} model: expected llama or qwen2")
    if "rope_freqs.weight" in tensors:
        raise UserError(f"model.weights: {path} stretches its rotary angles: use the Hugging Face folder of the model")

    def field(name: str):
        return fields[f"{arch}.{name}"]

    heads, width = field("attention.head_count"), field("embedding_length")
    return ModelConfig(
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        num_layers=field("block_count"),
        width=width,
        num_heads=heads,
        num_kv_heads=field("attention.head_count_kv"),
        head_dim=width // heads,
        ff=field("feed_forward_length"),
        context=field("context_length"),
        rope_base=float(field("rope.freq_base")),
        norm_eps=float(field("attention.layer_norm_rms_epsilon")),
        qkv_bias=arch == "qwen2",
        tied="output.weight" not in tensors,
    )


# ------------------------------------------------------------------------------------------------ both


def _names(leaf: Leaf, config: ModelConfig) -> list[str]:
    return [leaf.name.format(i) for i in range(config.num_layers)] if leaf.stacked else [leaf.name]


def _assemble(
    config: ModelConfig, mesh: Mesh, path: Path, present: Iterable[str], read: Callable[[str], np.ndarray]
) -> Params:
    """Reads, transposes and stacks every parameter of the table, and places each before the next is read."""
    rows = table(config)
    wanted = {name for leaf in rows.values() for name in _names(leaf, config)}
    ignored = {"lm_head.weight"} if config.tied else set()  # some exporters write the tied matrix twice
    missing, extra = sorted(wanted - set(present)), sorted(set(present) - wanted - ignored)
    if missing or extra:
        problem = f"lacks {missing[0]}" if missing else f"holds {extra[0]}, which this architecture does not have"
        raise UserError(f"model.weights: {path} {problem} ({len(missing)} missing, {len(extra)} left over)")

    layout = shardings(config, mesh)
    leaves = {}
    for leaf_path, leaf in rows.items():
        shape = leaf.shape[1:] if leaf.stacked else leaf.shape
        parts = []
        for name in _names(leaf, config):
            values = read(name)
            if values.size != np.prod(shape):
                raise UserError(f"model.weights: {path}: {name} has shape {values.shape}: expected {shape} in total")
            parts.append((values.T if leaf.transpose else values).reshape(shape).astype(np.float32))
        whole = np.stack(parts) if leaf.stacked else parts[0]
        sharding = layout
        for key in leaf_path.split("/"):
            sharding = sharding[key]
        leaves[leaf_path] = jax.device_put(whole, sharding)
    return tree(leaves)
