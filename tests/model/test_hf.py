"""Weights from files: what is written in a file's layout comes back in ours, and what does not belong is named."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from dasd_jax.errors import UserError
from dasd_jax.model import hf, param_table, weights
from dasd_jax.model.config import Llama3Scaling, YarnScaling
from dasd_jax.model.presets import preset

TINY = preset("qwen3_tiny")
FAMILIES = {
    "Qwen3ForCausalLM": TINY,
    "Qwen2ForCausalLM": dataclasses.replace(TINY, qk_norm="none", qkv_bias=True, tied=False),
    "LlamaForCausalLM": dataclasses.replace(TINY, qk_norm="none", rope_scaling=Llama3Scaling()),
    "Olmo3ForCausalLM": dataclasses.replace(
        TINY,
        num_layers=4,
        qk_norm="all",
        post_norm=True,
        tied=False,
        window=6,
        sliding=(True, True, True, False),
        rope_scaling=YarnScaling(8.0, 64, 1.2),
    ),
}


def write_hf(folder, family, config, params):
    """A Hugging Face folder in two shards, by the names and layouts of that format: projections are [out, in]."""
    folder.mkdir()
    flat = {path: np.asarray(x) for path, x in traverse_util.flatten_dict(params, sep="/").items()}
    tensors = {"model.embed_tokens.weight": flat["embed"], "model.norm.weight": flat["final_norm"]}
    if not config.tied:
        tensors["lm_head.weight"] = flat["unembed"]
    for i in range(config.num_layers):
        prefix = f"model.layers.{i}."
        norms = ("post_attention", "post_feedforward") if config.post_norm else ("input", "post_attention")
        for name, path in zip(norms, ("attn_norm", "mlp_norm"), strict=True):
            tensors[f"{prefix}{name}_layernorm.weight"] = flat[f"layers/{path}"][i]
        for n in "qkv":
            tensors[f"{prefix}self_attn.{n}_proj.weight"] = flat[f"layers/{n}"][i].reshape(config.width, -1).T
            if config.qkv_bias:
                tensors[f"{prefix}self_attn.{n}_proj.bias"] = flat[f"layers/{n}_bias"][i].reshape(-1)
            if config.qk_norm != "none" and n != "v":
                tensors[f"{prefix}self_attn.{n}_norm.weight"] = flat[f"layers/{n}_norm"][i].reshape(-1)
        tensors[prefix + "self_attn.o_proj.weight"] = flat["layers/o"][i].reshape(-1, config.width).T
        for n in ("gate", "up", "down"):
            tensors[f"{prefix}mlp.{n}_proj.weight"] = flat[f"layers/{n}"][i].T
    tensors = {name: np.ascontiguousarray(x, np.float32) for name, x in tensors.items()}
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[::2]}, folder / "model-00001-of-00002.safetensors")
    save_file({name: tensors[name] for name in names[1::2]}, folder / "model-00002-of-00002.safetensors")
    raw = {
        "architectures": [family],
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ff,
        "max_position_embeddings": config.context,
        "rope_theta": config.rope_base,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
    }
    scaling = config.rope_scaling
    if isinstance(scaling, YarnScaling):
        raw["sliding_window"] = config.window
        raw["rope_scaling"] = {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "attention_factor": scaling.attention_factor,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "original_max_position_embeddings": scaling.original_context,
        }
    elif scaling:
        raw["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_hugging_face_folder_is_read_into_any_mesh(family, mesh, mesh8, tmp_path):
    config = FAMILIES[family]
    with jax.set_mesh(mesh):
        params = jax.tree.map(
            lambda x: x + jnp.arange(x.size).reshape(x.shape) * 1e-6, param_table.init(config, mesh, 0)
        )
    folder = write_hf(tmp_path / "hf", family, config, params)
    read_config, read = weights.load(str(folder), mesh8)
    assert read_config == config
    for got, expected, layout in zip(
        jax.tree.leaves(read),
        jax.tree.leaves(params),
        jax.tree.leaves(param_table.shardings(config, mesh8)),
        strict=True,
    ):
        np.testing.assert_array_equal(got, expected)
        assert got.sharding.is_equivalent_to(layout, got.ndim)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_read_back_bit_for_bit_in_files_of_bounded_size(family, mesh8, tmp_path, monkeypatch):
    """A folder in bfloat16, read and written again from eight devices, holds the same bytes under the same names."""
    monkeypatch.setattr(hf, "MAX_SHARD_BYTES", 60_000)
    config = FAMILIES[family]
    first, second = tmp_path / "first", tmp_path / "second"
    hf.save(first, config, param_table.init(config, mesh8, 0))
    read_config, params = hf.load(first, mesh8)
    assert read_config == config
    hf.save(second, read_config, params)
    names = sorted(path.name for path in first.iterdir())
    assert len(names) >= 5 and names == sorted(path.name for path in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    index = json.loads((first / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {name for name in names if name.endswith(".safetensors")}
    # The one matrix of the vocabulary is larger than a file is meant to be and gets one of its own.
    sizes = [path.stat().st_size for path in first.glob("*.safetensors")]
    assert sorted(sizes)[-3 if not config.tied else -2] < 62_000


def test_what_does_not_belong_is_named(mesh, tmp_path):
    params = param_table.init(TINY, mesh, 0)
    folder = write_hf(tmp_path / "hf", "Qwen3ForCausalLM", TINY, params)
    config = json.loads((folder / "config.json").read_text())

    def refused(match, **change):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=match):
            weights.load(str(folder), mesh)

    refused("is a GemmaForCausalLM: expected one of Llama", architectures=["GemmaForCausalLM"])
    refused("lacks model.layers.2.input_layernorm.weight", num_hidden_layers=3)
    refused("contains model.layers.0.self_attn.k_norm.weight", architectures=["LlamaForCausalLM"])
    refused("model.layers.0.mlp.gate_proj.weight has shape", intermediate_size=64)
    refused("rope_type 'dynamic'", rope_scaling={"rope_type": "dynamic"})
    refused("hidden_act 'gelu'", hidden_act="gelu")
    kinds = ["sliding_attention", "full_attention"]
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    refused("both sliding-window layers and RoPE scaling", layer_types=kinds, sliding_window=8, rope_scaling=yarn)
    refused("num_layers: 1000000000: expected at most 1024", num_hidden_layers=10**9)
    refused("num_kv_heads: 3: expected a divisor", num_key_value_heads=3)
    refused("rope_base: nan: expected a positive number", rope_theta=float("nan"))
    refused("width: '64': expected an integer", hidden_size="64")
    shard = folder / "model-00002-of-00002.safetensors"
    more = folder / "more.safetensors"
    more.write_bytes(shard.read_bytes())
    refused("more.safetensors and another file both contain")
    save_file({"model.norm.weight": np.zeros(64, np.int32)}, more)
    refused("model.norm.weight is I32: expected BF16, F16, F32")
    more.unlink()
    shard.write_bytes(shard.read_bytes()[:-100])
    refused("is damaged")
