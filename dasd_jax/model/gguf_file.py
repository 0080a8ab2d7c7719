"""GGUF files of the architectures llama and qwen2, read only."""

import re
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from dasd_jax import formats
from dasd_jax.batch import Params
from dasd_jax.errors import UserError
from dasd_jax.model.config import ModelConfig
from dasd_jax.model.param_table import table
from dasd_jax.model.placement import place

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


def load(path: Path, mesh: Mesh) -> tuple[ModelConfig, Params]:
    """Configuration and float32 parameters of a .gguf file, dequantised tensor by tensor; see `weights.load`.

    Raises:
        UserError: the file is damaged, or contains a model or a quantisation that is not supported.
    """
    from gguf import dequantize

    try:
        reader = formats.GgufReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if "tokenizer" not in name}
        stored = {tensor.name: tensor for tensor in reader.tensors}
        arch = fields["general.architecture"]
        config = _read_config(fields, arch, stored, path)
    except (ValueError, KeyError, IndexError, TypeError, ArithmeticError, OSError) as error:
        raise UserError(f"model.weights: {path} is not a valid GGUF file: {error!r}") from error

    ours = {gguf_name(name): name for leaf in table(config).values() for name in leaf.tensor_names}
    # Unknown names stay as they are, so that `place` refuses them by the name in the file.
    stored = {ours.get(name, name): tensor for name, tensor in stored.items() if name != "rope_freqs.weight"}

    def read(name: str) -> np.ndarray:
        kind = stored[name].tensor_type
        try:
            values = dequantize(stored[name].data, kind)
        except NotImplementedError as error:
            raise UserError(f"model.weights: {path} stores {name} as {kind.name}, which is not supported") from error
        rotated = re.search(r"(q|k)_proj\.weight", name)
        if arch == "llama" and rotated:
            # llama.cpp rotates the pairs (2h, 2h + 1), `rotate` the pairs (h, h + H/2): undo the permutation of rows.
            heads = config.num_heads if rotated[1] == "q" else config.num_kv_heads
            values = values.reshape(heads, config.head_dim // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)
        return values

    found = {name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in stored.items()}
    return config, place(config, mesh, path, found, ((name, read(name).__getitem__) for name in stored))


def gguf_name(name: str) -> str:
    """The GGUF name of a tensor with this Hugging Face name."""
    for ours, theirs in _NAMES.items():
        name = re.sub(rf"(^|\.){re.escape(ours)}\.", rf"\g<1>{theirs}.", name)
    return name


def _read_config(fields: dict, arch: str, tensors: dict, path: Path) -> ModelConfig:
    if arch not in ("llama", "qwen2"):
        raise UserError(f"model.weights: {path} is a {arch!r} model: expected llama or qwen2")
    if "rope_freqs.weight" in tensors:
        raise UserError(
            f"model.weights: {path} has RoPE scaling (rope_freqs.weight): expected the model's Hugging Face folder"
        )

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
