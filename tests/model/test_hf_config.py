"""config.json of Hugging Face folders: the same model wherever a version of transformers writes it, or a refusal."""

import dataclasses
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dasd_jax.errors import UserError
from dasd_jax.model import hf_config, hf_rope
from dasd_jax.model.config import LinearScaling, Llama3Scaling, ModelConfig, YarnScaling
from dasd_jax.model.rope import rope_table

SIZES = {
    "vocab_size": 320, "hidden_size": 256, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 32
}  # fmt: skip
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128}
YARN = {"factor": 4.0, "original_max_position_embeddings": 128, "attention_factor": 1.2}
SCALINGS = {
    "linear": ({"factor": 4.0}, LinearScaling(4.0)),
    "llama3": (LLAMA3, Llama3Scaling(8.0, 1.0, 4.0, 128)),
    "yarn": (YARN, YarnScaling(4.0, 128, 1.2)),
}


def read(family="Llama", **fields) -> ModelConfig:
    return hf_config.read({"architectures": [f"{family}ForCausalLM"], **SIZES, **fields}, Path("folder"))


def refused(family="Llama", **fields) -> str:
    with pytest.raises(UserError) as refusal:
        read(family, **fields)
    line = str(refusal.value)
    assert line.startswith("model.weights: folder ") and ": expected " in line and "\n" not in line
    return line


@pytest.mark.parametrize("kind", SCALINGS)
def test_rope_fields_mean_the_same_wherever_a_version_writes_them(kind):
    fields, scaling = SCALINGS[kind]
    whole = {"rope_type": kind, "rope_theta": 1e6, **fields}
    for written in (
        {"rope_theta": 1e6, "rope_scaling": {"type": kind, **fields}},  # transformers 4.40
        {"rope_theta": 1e6, "rope_scaling": {"rope_type": kind, "type": kind, **fields}},  # 4.45
        {"rope_parameters": whole},  # 5
        {"rope_theta": 1e6, "rope_parameters": {"rope_type": kind, **fields}},  # tools that edit a folder of 5
        {"rope_theta": 1_000_000, "rope_scaling": {"rope_type": kind, **fields}, "rope_parameters": whole},
    ):
        config = read("Qwen3", **written)
        assert (config.rope_base, config.rope_scaling) == (1e6, scaling), written


def test_a_base_beside_rope_parameters_without_one_is_the_base():
    assert read("Qwen3", rope_theta=1e6, rope_parameters={"rope_type": "default"}).rope_base == 1e6
    assert read("Qwen3", rope_theta=1e6, rope_scaling=None).rope_base == 1e6


def test_missing_fields_have_the_defaults_of_each_family():
    """Those of the configuration classes of transformers 4.55 and 5.24; of Olmo 3, which 4.55 lacks, of 5.24."""
    expected = {
        "Llama": {"context": 2048, "norm_eps": 1e-6, "rope_base": 1e4, "head_dim": 8},
        "Qwen2": {"context": 32_768, "norm_eps": 1e-6, "rope_base": 1e4, "head_dim": 8},
        "Qwen3": {"context": 32_768, "norm_eps": 1e-6, "rope_base": 1e4, "head_dim": 128},
        "Olmo3": {"context": 2048, "norm_eps": 1e-5, "rope_base": 5e5, "head_dim": 8, "window": 4096},
    }
    for family, fields in expected.items():
        config = read(family)
        assert {name: getattr(config, name) for name in fields} == fields
        assert (config.num_kv_heads, config.tied, config.rope_scaling) == (32, False, None)
        assert config.sliding == ((True, True, True, False) if family == "Olmo3" else ())
    assert read("Qwen2", num_attention_heads=64).num_kv_heads == 32  # the class's number, not that of the heads
    assert read("Qwen2", num_attention_heads=64, num_key_value_heads=None).num_kv_heads == 64
    assert read("Llama", num_attention_heads=64).num_kv_heads == 64


def test_model_type_names_the_family_where_architectures_are_missing():
    named = hf_config.read({"model_type": "qwen3", **SIZES}, Path("folder"))
    assert named == read("Qwen3") == read("Qwen3", model_type="qwen3")
    assert "model_type 'qwen2'" in refused("Qwen3", model_type="qwen2")
    assert "is a MistralForCausalLM" in refused("Mistral")


def test_yarn_takes_what_is_missing_from_the_rest():
    """As transformers 5 does; the attention factor is the paper's, 0.1 ln s + 1."""
    short = read(max_position_embeddings=512, rope_scaling={"type": "yarn", "factor": 4.0}).rope_scaling
    assert short == YarnScaling(4.0, 512, 0.1 * math.log(4) + 1)
    ratio = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 128}
    assert read(max_position_embeddings=512, rope_parameters=ratio).rope_scaling == dataclasses.replace(
        short, original_context=128
    )
    both = read(rope_scaling={"type": "yarn", "factor": 4.0, "mscale": 0.5, "mscale_all_dim": 1.0}).rope_scaling
    assert both.attention_factor == pytest.approx((0.05 * math.log(4) + 1) / (0.1 * math.log(4) + 1))
    one = read(rope_scaling={"type": "yarn", "factor": 4.0, "mscale": 0.5}).rope_scaling
    assert one.attention_factor == short.attention_factor
    assert read(rope_scaling={"type": "yarn", "factor": 1.0}).rope_scaling.attention_factor == 1.0
    nulls = {"rope_type": "yarn", **YARN, "beta_fast": None, "beta_slow": None, "truncate": None}
    assert read(rope_scaling=nulls).rope_scaling == YarnScaling(4.0, 128, 1.2)


def test_untruncated_yarn_blends_frequencies_between_fractions_of_an_index():
    config = read(head_dim=64, rope_theta=1e4, rope_scaling={"type": "yarn", **YARN, "truncate": False})
    cos, sin = rope_table(config, jnp.ones((1, 1), jnp.int32), scaled=True)
    index = np.arange(32)
    plain = 1e4 ** (-index / 32)
    first, last = (32 * np.log(128 / (turns * 2 * np.pi)) / np.log(1e4) for turns in (32, 1))
    stretch = np.clip((index - max(first, 0)) / (last - max(first, 0)), 0, 1)
    expected = (1 - stretch) * plain + stretch * plain / 4
    np.testing.assert_allclose(np.arctan2(sin, cos).ravel(), expected, rtol=1e-5)
    assert last % 1 > 0.1  # a rounded index would differ


def test_a_linear_scale_divides_every_frequency():
    plain, scaled = read(rope_theta=1e4), read(rope_theta=1e4, rope_scaling={"type": "linear", "factor": 4.0})
    positions = jnp.array([[0, 4, 8, 200]])
    for got, expected in zip(rope_table(scaled, positions, True), rope_table(plain, positions // 4, True), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_rope_fields_that_contradict_each_other_are_refused():
    whole = {"rope_type": "yarn", "rope_theta": 1e6, **YARN}
    assert "rope_theta 10000.0 and 1000000.0" in refused(rope_theta=1e6, rope_parameters={"rope_theta": 1e4})
    assert "rope_type and type yarn and linear" in refused(rope_scaling={**whole, "type": "linear"})
    default = {"rope_type": "default", "rope_theta": 1e6}
    assert "contradict each other" in refused(rope_parameters=default, rope_scaling={"rope_type": "yarn", **YARN})
    assert "contradict" in refused(rope_theta=1e6, rope_parameters=whole, rope_scaling={**whole, "factor": 2.0})
    assert "original_max_position_embeddings 128 and 64" in refused(
        rope_parameters=whole, original_max_position_embeddings=64
    )


def test_what_these_decoders_cannot_honour_is_refused_by_name():
    for name, value in (
        ("hidden_act", "gelu"), ("attention_bias", True), ("mlp_bias", True), ("partial_rotary_factor", 0.5),
        ("is_causal", False), ("sliding_window", 16),
    ):  # fmt: skip
        assert f"has {name} {value!r}" in refused(**{name: value})
    assert read(hidden_act="swish", attention_bias=False, sliding_window=None) == read()
    assert read("Qwen2", attention_bias=True) == read("Qwen2")  # a field that this family does not have
    for kind in ("dynamic", "longrope"):
        assert f"rope_type '{kind}'" in refused(rope_scaling={"type": kind, "factor": 2.0})
    assert "has rope_type linear without factor" in refused(rope_scaling={"type": "linear"})
    assert "has factor for rope_type default" in refused(rope_scaling={"factor": 2.0})
    assert "has attn_factor for rope_type yarn" in refused(rope_scaling={"type": "yarn", **YARN, "attn_factor": 2.0})
    assert "has partial_rotary_factor 0.5" in refused(rope_parameters={"partial_rotary_factor": 0.5})
    assert "has no hidden_size" in str(pytest.raises(UserError, hf_config.read, {"model_type": "llama"} | {
        name: size for name, size in SIZES.items() if name != "hidden_size"}, Path("folder")).value)  # fmt: skip
    assert "hidden_size 250, and no head_dim" in refused(hidden_size=250)


def test_layers_slide_where_the_family_says():
    kinds = ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]
    for family in ("Qwen2", "Qwen3"):
        by_index = read(family, use_sliding_window=True, sliding_window=16, max_window_layers=2)
        assert by_index == read(family, use_sliding_window=True, sliding_window=16, layer_types=kinds)
        assert by_index.sliding == (False, False, True, True) and by_index.window == 16
        assert read(family, sliding_window=16, max_window_layers=2) == read(family)  # switched off
        assert read(family, use_sliding_window=True, sliding_window=None, max_window_layers=2) == read(family)
        assert "expected use_sliding_window true" in refused(family, sliding_window=16, layer_types=kinds)
        scaled = {"rope_scaling": {"type": "yarn", **YARN}, "use_sliding_window": True, "max_window_layers": 2}
        assert "both sliding-window layers and RoPE scaling" in refused(family, **scaled)
    assert "only full_attention" in refused("Llama", layer_types=kinds, sliding_window=16)
    assert "has 3 layer_types" in refused("Olmo3", layer_types=kinds[:3])
    assert "layer of type chunked" in refused("Olmo3", layer_types=["chunked", *kinds[:3]])


def test_olmo3_has_its_rope_fields_by_the_kind_of_layer():
    yarn, plain = {"rope_type": "yarn", "rope_theta": 1e6, **YARN}, {"rope_type": "default", "rope_theta": 1e6}
    config = read("Olmo3", rope_parameters={"full_attention": yarn, "sliding_attention": plain})
    assert (config.rope_base, config.rope_scaling) == (1e6, YarnScaling(4.0, 128, 1.2))
    legacy = read("Olmo3", rope_theta=5e5, rope_scaling={"rope_type": "yarn", **YARN})
    assert (legacy.rope_base, legacy.rope_scaling) == (5e5, config.rope_scaling)
    other = {"full_attention": yarn, "sliding_attention": {"rope_theta": 1e4}}
    assert "rope_theta [10000.0, 1000000.0] by the kind of layer" in refused("Olmo3", rope_parameters=other)
    both = {"full_attention": yarn, "sliding_attention": yarn}
    assert "both sliding-window layers and RoPE scaling" in refused("Olmo3", rope_parameters=both)
    assert "expected an object by the kind of layer" in refused("Olmo3", rope_parameters=yarn)
    assert "expected no object by the kind of layer" in refused("Qwen3", rope_parameters=other)
    # transformers 4.57 and 5.24 read these differently.
    assert "but not in rope_parameters" in refused("Olmo3", rope_theta=1e6)
    assert "truncate false" in refused("Olmo3", rope_scaling={"rope_type": "yarn", **YARN, "truncate": False})
    assert "no rope_type" in refused("Olmo3", rope_scaling={"type": "yarn", **YARN})


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3", "Olmo3"])
@pytest.mark.parametrize("kind", ["default", *SCALINGS])
def test_a_written_config_means_the_same_to_both_major_versions(family, kind):
    """Reading only the fields that transformers 4 knows, or those of 5, gives the model that was written."""
    fields = {"rope_scaling": {"rope_type": kind, **SCALINGS[kind][0]}} if kind in SCALINGS else {}
    config = read(family, rope_theta=5e5, max_position_embeddings=512, **fields)
    raw = hf_config.write(config, "bfloat16", {"eos_token_id": [2, 7]})
    assert hf_config.read(raw, Path("folder")) == config
    version4 = {name: value for name, value in raw.items() if name not in ("rope_parameters", "dtype")}
    version5 = {name: value for name, value in raw.items() if name not in ("rope_theta", "rope_scaling", "torch_dtype")}
    assert hf_config.read(version4, Path("folder")) == hf_config.read(version5, Path("folder")) == config
    assert raw["dtype"] == raw["torch_dtype"] == "bfloat16"
    assert (raw["eos_token_id"], raw["bos_token_id"], raw["pad_token_id"]) == ([2, 7], None, None)


def test_a_written_yarn_has_the_context_whose_ratio_is_its_factor():
    """transformers 4.55 takes max_position_embeddings / original_max_position_embeddings for the factor."""
    config = read(max_position_embeddings=160, rope_scaling={"type": "yarn", **YARN})
    assert hf_config.write(config, "float32", {})["max_position_embeddings"] == 512
    assert hf_rope.fits_version4(config) and hf_rope.fits_version4(read())
    fraction = read(max_position_embeddings=160, rope_scaling={"type": "yarn", **YARN, "factor": 1.23})
    assert hf_config.write(fraction, "float32", {})["max_position_embeddings"] == 160
    assert not hf_rope.fits_version4(fraction)
