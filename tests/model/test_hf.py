"""Weights from files: what is written in a file's layout comes back in ours, and what does not belong is named."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors import safe_open
from safetensors.numpy import save, save_file

from dasd_jax.errors import UserError
from dasd_jax.model import hf, param_table, weights
from dasd_jax.model.config import Llama3Scaling, YarnScaling
from dasd_jax.model.presets import preset

TINY = preset("qwen3_tiny")
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
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
        rope_base=5e5,
        rope_scaling=YarnScaling(8.0, 64, 1.2),
    ),
}


def write_hf(folder, family, config, params, extra=None):
    """A Hugging Face folder in two shards, by the names and layouts of that format: projections are [out, in].

    Args:
        extra: more tensors for the second shard, by name.
    """
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
    save_file({name: tensors[name] for name in names[::2]}, folder / SHARDS[0])
    save_file({name: tensors[name] for name in names[1::2]} | (extra or {}), folder / SHARDS[1])
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


def write_index(folder):
    """The index of the two shards."""
    where = {}
    for shard in SHARDS:
        with safe_open(folder / shard, framework="numpy") as opened:
            where |= dict.fromkeys(opened.keys(), shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return where


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


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


@pytest.fixture
def params(mesh):
    return param_table.init(TINY, mesh, 0)


@pytest.fixture
def folder(params, tmp_path):
    """Qwen3 in two shards without an index."""
    return write_hf(tmp_path / "hf", "Qwen3ForCausalLM", TINY, params)


def refused(folder, mesh, match, **change):
    """The folder with a changed config.json is refused."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=match):
        weights.load(str(folder), mesh)
    (folder / "config.json").write_text(json.dumps(config))


def test_what_does_not_belong_is_named(mesh, folder):
    refused(folder, mesh, "is a GemmaForCausalLM: expected one of Llama", architectures=["GemmaForCausalLM"])
    refused(folder, mesh, "lacks model.layers.2.input_layernorm.weight", num_hidden_layers=3)
    refused(folder, mesh, "contains model.layers.0.self_attn.k_norm.weight", architectures=["LlamaForCausalLM"])
    refused(folder, mesh, "model.layers.0.mlp.gate_proj.weight has shape", intermediate_size=64)
    refused(folder, mesh, "lacks lm_head.weight", tie_word_embeddings=False)
    refused(folder, mesh, "num_layers: 1000000000: expected at most 1024", num_hidden_layers=10**9)
    refused(folder, mesh, "num_kv_heads: 3: expected a divisor", num_key_value_heads=3)
    refused(folder, mesh, "rope_base: nan: expected a positive number", rope_theta=float("nan"))
    refused(folder, mesh, "width: '64': expected an integer", hidden_size="64")
    integers = folder / SHARDS[0]
    integers.write_bytes(save({"model.norm.weight": np.zeros(64, np.int32)}))
    refused(folder, mesh, "model.norm.weight is I32: expected BF16, F16, F32")


@pytest.mark.parametrize("indexed", [False, True])
def test_a_missing_or_damaged_shard_is_named_as_a_file(mesh, folder, indexed):
    if indexed:
        write_index(folder)
    second = folder / SHARDS[1]
    whole = second.read_bytes()
    second.write_bytes(whole[:-100])
    refused(folder, mesh, rf"is damaged: .*{SHARDS[1]}: ")
    second.unlink()
    refused(folder, mesh, rf"lacks {SHARDS[1]} \(1 of 2 files are missing\)")
    (folder / SHARDS[0]).unlink()
    refused(
        folder, mesh, "files are missing" if indexed else "lacks model.safetensors and model.safetensors.index.json"
    )


def test_the_index_says_which_files_belong(mesh, folder, params):
    """The same weights in another format and an adapter's may lie beside them, even with tensors of the same names."""
    write_index(folder)
    consolidated = save(
        {"model.norm.weight": np.zeros(64, np.float32), "tok_embeddings.weight": np.zeros((4, 4), np.int8)}
    )
    (folder / "consolidated.safetensors").write_bytes(consolidated)
    (folder / "adapter_model.safetensors").write_bytes(
        save({"base_model.q.lora_A.weight": np.zeros((2, 2), np.float32)})
    )
    assert_equal(weights.load(str(folder), mesh)[1], params)


def test_the_index_says_which_of_two_tensors_belongs(mesh, params, tmp_path):
    """Shards that share a name are refused without an index, and read by it."""
    stale = {"model.embed_tokens.weight": np.zeros((320, 64), np.float32)}
    folder = write_hf(tmp_path / "hf", "Qwen3ForCausalLM", TINY, params, extra=stale)
    refused(folder, mesh, "both contain model.embed_tokens.weight")
    where = write_index(folder) | {"model.embed_tokens.weight": SHARDS[0]}
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    assert_equal(weights.load(str(folder), mesh)[1], params)


def test_an_index_that_does_not_fit_its_files_is_refused(mesh, folder, params):
    where = write_index(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": where | {"lm_head.weight": SHARDS[0]}}))
    assert_equal(weights.load(str(folder), mesh)[1], params)  # the tied head, which is not stored
    for change, match in (
        ({"model.extra.weight": SHARDS[0]}, f"{SHARDS[0]} lacks model.extra.weight"),
        ({"model.norm.weight": "../other.safetensors"}, "names '../other.safetensors'"),
        ({"model.norm.weight": 3}, "has no weight_map"),
    ):
        (folder / INDEX).write_text(json.dumps({"weight_map": where | change}))
        refused(folder, mesh, match)
    write_index(folder)
    (folder / "model.safetensors").write_bytes(save({"model.norm.weight": np.zeros(64, np.float32)}))
    refused(folder, mesh, "has model.safetensors, and model.safetensors.index.json that names others")


def test_one_file_counts_where_there_is_no_index(mesh, params, tmp_path):
    hf.save(tmp_path / "hf", TINY, params, "float32")
    (tmp_path / "hf" / "adapter_model.safetensors").write_bytes(save({"a": np.zeros(2, np.float32)}))
    assert_equal(weights.load(str(tmp_path / "hf"), mesh)[1], params)
    (tmp_path / "hf" / "model.safetensors").unlink()
    refused(tmp_path / "hf", mesh, "lacks model.safetensors and .*, and has adapter_model.safetensors")


@pytest.mark.parametrize("whole", [True, False])
def test_an_adapter_is_refused_with_and_without_weights_beside_it(mesh, params, tmp_path, whole):
    """transformers applies it to the weights: without it the model is another one."""
    folder = tmp_path / "hf"
    folder.mkdir()
    if whole:
        hf.save(folder, TINY, params, "float32")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    (folder / "adapter_model.safetensors").write_bytes(save({"a": np.zeros(2, np.float32)}))
    for read in (lambda: weights.load(str(folder), mesh), lambda: weights.header(str(folder))):
        with pytest.raises(UserError, match=r"has adapter_config.json: an adapter would not be applied: expected it m"):
            read()


def test_rotary_buffers_of_old_versions_are_ignored_and_others_are_not(mesh, params, tmp_path):
    buffers = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float16),
        "model.rotary_emb.inv_freq": np.ones(8, np.float32),
    }
    folder = write_hf(tmp_path / "hf", "Qwen3ForCausalLM", TINY, params, extra=buffers)
    assert_equal(weights.load(str(folder), mesh)[1], params)
    scales = {"model.layers.0.self_attn.k_scale": np.ones(1, np.float32)}
    folder = write_hf(tmp_path / "scaled", "Qwen3ForCausalLM", TINY, params, extra=scales)
    refused(folder, mesh, "contains model.layers.0.self_attn.k_scale, which this architecture does not have")


def test_a_head_of_its_own_is_kept_whatever_the_config_says(mesh, params, tmp_path, capsys):
    """As transformers 5 does: tie_word_embeddings true means the embedding only where the head equals it."""
    embed = np.asarray(params["embed"])
    folder = write_hf(tmp_path / "equal", "Qwen3ForCausalLM", TINY, params, extra={"lm_head.weight": embed})
    config, read = weights.load(str(folder), mesh)
    assert config.tied and "unembed" not in read and not capsys.readouterr().err
    head = embed.copy()
    head[-1, -1] += 1e-3
    folder = write_hf(tmp_path / "own", "Qwen3ForCausalLM", TINY, params, extra={"lm_head.weight": head})
    config, read = weights.load(str(folder), mesh)
    assert not config.tied and "lm_head.weight differs" in capsys.readouterr().err
    np.testing.assert_array_equal(read["unembed"], head)
    hf.save(tmp_path / "again", config, read)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["tie_word_embeddings"] is False
