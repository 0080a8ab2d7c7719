"""GGUF files: the metadata means what llama.cpp takes it to mean, or is refused by its key."""

import dataclasses
import math

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from dasd_jax.errors import UserError
from dasd_jax.model import param_table, weights
from dasd_jax.model.config import LinearScaling, Llama3Scaling
from dasd_jax.model.gguf_file import gguf_name
from dasd_jax.model.presets import preset
from dasd_jax.model.rope import rope_table

LLAMA = dataclasses.replace(preset("qwen3_tiny"), qk_norm="none", tied=False, head_dim=8, rope_base=1e5)
QWEN2 = dataclasses.replace(LLAMA, qkv_bias=True)
NEEDED = {
    "context_length": LLAMA.context,
    "embedding_length": LLAMA.width,
    "block_count": LLAMA.num_layers,
    "feed_forward_length": LLAMA.ff,
    "attention.head_count": LLAMA.num_heads,
    "attention.layer_norm_rms_epsilon": 1e-6,
}
KEYS = NEEDED | {"attention.head_count_kv": LLAMA.num_kv_heads, "rope.freq_base": 1e5}


def tensors_of(config, params, arch="llama"):
    """Tensors by their names in the file, in the layout of llama.cpp."""
    flat = {path: np.asarray(x) for path, x in traverse_util.flatten_dict(params, sep="/").items()}
    tensors = {}
    for path, leaf in param_table.table(config).items():
        for layer, name in enumerate(leaf.tensor_names):
            x = flat[path][layer] if leaf.stacked else flat[path]
            if leaf.inputs:
                x = x.reshape(leaf.stored_shape[::-1]).T
            if arch == "llama" and path in ("layers/q", "layers/k"):
                # Rows (h, h + H/2) of a head become neighbours, which llama.cpp rotates together.
                x = x.reshape(-1, 2, config.head_dim // 2, config.width).swapaxes(1, 2)
            tensors[gguf_name(name)] = np.ascontiguousarray(x.reshape(leaf.stored_shape), np.float32)
    return tensors


def write(file, keys, tensors, arch="llama", split=None):
    """A file with `keys` after the architecture; `split` is (number, count, tensors in all parts)."""
    writer = gguf.GGUFWriter(file, arch)
    for key, value in keys.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
        (writer.add_bool if isinstance(value, bool) else add[type(value)])(f"{arch}.{key}", value)
    for key, value in zip(("no", "count", "tensors.count"), split or (), strict=False):
        writer.add_uint16(f"split.{key}", value)
    for name, x in tensors.items():
        writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture
def params(mesh):
    return param_table.init(LLAMA, mesh, 0)


@pytest.fixture
def load(mesh, params, tmp_path):
    """load(keys, arch=…, more tensors) → configuration of a file with these keys, in a name of its own."""

    def write_and_load(keys, arch="llama", **more):
        config = LLAMA if arch == "llama" else QWEN2
        held = params if arch == "llama" else param_table.init(config, mesh, 0)
        tensors = tensors_of(config, held, arch) | {f"{name}.weight": x for name, x in more.items()}
        return weights.load(str(write(tmp_path / "tiny.gguf", keys, tensors, arch)), mesh)[0]

    return write_and_load


def refused(load, match, keys, **more):
    with pytest.raises(UserError, match=match) as refusal:
        load(keys, **more)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_a_file_holds_the_parameters_that_were_written(arch, mesh, tmp_path):
    config = LLAMA if arch == "llama" else QWEN2
    params = param_table.init(config, mesh, 0)
    file = write(tmp_path / "tiny.gguf", KEYS, tensors_of(config, params, arch), arch)
    read_config, read = weights.load(str(file), mesh)
    assert read_config == dataclasses.replace(config, norm_eps=read_config.norm_eps)
    assert read_config.norm_eps == pytest.approx(1e-6)
    jax.tree.map(np.testing.assert_array_equal, read, params)


def test_missing_keys_have_the_defaults_of_the_format(mesh, load, tmp_path):
    assert load(NEEDED | {"attention.head_count_kv": 4}).rope_base == 10_000.0
    whole = dataclasses.replace(LLAMA, num_kv_heads=LLAMA.num_heads, head_dim=16, rope_base=1e4)
    file = tmp_path / "whole.gguf"
    lengths = {"attention.key_length": 16, "attention.value_length": 16, "rope.dimension_count": 16}
    write(file, NEEDED | lengths, tensors_of(whole, param_table.init(whole, mesh, 0)))
    read = weights.load(str(file), mesh)[0]
    assert (read.num_kv_heads, read.head_dim) == (8, 16)
    for key in NEEDED:
        refused(load, f"has no llama.{key}", {name: value for name, value in KEYS.items() if name != key})
    for key in ("attention.value_length", "rope.dimension_count"):
        refused(load, f"llama.{key} 4: expected 8", KEYS | {key: 4})


def test_lists_of_equal_values_for_all_layers_are_one_value(load):
    per_layer = {"attention.head_count": [8, 8], "attention.head_count_kv": [4, 4], "feed_forward_length": [128, 128]}
    assert load(KEYS | per_layer) == load(KEYS)
    refused(load, r"head_count_kv \[4, 8\]: expected the same", KEYS | {"attention.head_count_kv": [4, 8]})


def llama_cpp_angles(keys, factors=None):
    """(rotary angles per token f64[H/2], magnitude), written from ggml's rope for this metadata.

    Frequencies are first divided by rope_freqs.weight; interpolation multiplies them by 1 / factor, YaRN blends both by
    a ramp over the index and multiplies sines and cosines.
    """
    half = LLAMA.head_dim // 2
    extrapolated = np.array([1e5 ** (-2 * i / LLAMA.head_dim) for i in range(half)]) / (
        1 if factors is None else factors
    )
    scale = 1 / keys.get("rope.scaling.factor", 1.0)
    interpolated = scale * extrapolated
    if keys.get("rope.scaling.type") != "yarn":
        return interpolated, 1.0

    def index(turns):
        context = keys.get("rope.scaling.original_context_length", LLAMA.context)
        return LLAMA.head_dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(1e5))

    low = max(0, math.floor(index(keys.get("rope.scaling.yarn_beta_fast", 32.0))))
    high = min(LLAMA.head_dim - 1, math.ceil(index(keys.get("rope.scaling.yarn_beta_slow", 1.0))))
    ramp = np.array([1 - min(1, max(0, (i - low) / max(0.001, high - low))) for i in range(half)])
    size = keys.get("rope.scaling.attn_factor", 1.0) * (1 + 0.1 * math.log(1 / scale))
    return interpolated * (1 - ramp) + extrapolated * ramp, size


YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}


@pytest.mark.parametrize(
    "scaling",
    [
        {},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        {"rope.scaling.factor": 2.0},
        YARN,
        YARN | {"rope.scaling.original_context_length": 128},
        YARN | {"rope.scaling.original_context_length": 128, "rope.scaling.attn_factor": 0.75},
        YARN | {"rope.scaling.yarn_beta_fast": 8.0, "rope.scaling.yarn_beta_slow": 0.5},
    ],
)
def test_scaling_stretches_as_in_llama_cpp(load, scaling):
    config = load(KEYS | scaling)
    expected, size = llama_cpp_angles(scaling)
    cos, sin = (np.asarray(x, np.float64).ravel() for x in rope_table(config, jnp.ones((1, 1), jnp.int32), True))
    np.testing.assert_allclose(np.arctan2(sin, cos), expected, rtol=1e-5)
    np.testing.assert_allclose(np.hypot(sin, cos), size, rtol=1e-5)


def test_the_old_key_of_the_factor_counts_and_type_none_switches_it_off(load):
    assert load(KEYS | {"rope.scale_linear": 4.0}).rope_scaling == LinearScaling(4.0)
    assert load(KEYS | {"rope.scaling.factor": 2.0, "rope.scale_linear": 4.0}).rope_scaling == LinearScaling(2.0)
    assert load(KEYS | {"rope.scaling.type": "none", "rope.scaling.factor": 2.0}).rope_scaling is None


def llama3_factors(scaling, base, half):
    """rope_freqs.weight as converters write it: what each frequency is divided by."""
    factors = []
    for i in range(half):
        wavelength = 2 * math.pi * base ** (i / half)
        smooth = (scaling.original_context / wavelength - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor
        )
        if wavelength < scaling.original_context / scaling.high_freq_factor:
            factors.append(1.0)
        elif wavelength > scaling.original_context / scaling.low_freq_factor:
            factors.append(scaling.factor)
        else:
            factors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return np.array(factors, np.float32)


@pytest.mark.parametrize("original", [16, 64, 512, 8192])
@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_factors_of_llama3_are_read_as_its_scaling(load, factor, original):
    factors = llama3_factors(Llama3Scaling(factor, 1.0, 4.0, original), 1e5, LLAMA.head_dim // 2)
    config = load(KEYS, rope_freqs=factors)
    expected, _ = llama_cpp_angles({}, factors)
    cos, sin = (np.asarray(x, np.float64).ravel() for x in rope_table(config, jnp.ones((1, 1), jnp.int32), True))
    np.testing.assert_allclose(np.arctan2(sin, cos), expected, rtol=1e-4)
    if ((factors > 1) & (factors < factor)).any():
        assert config.rope_scaling == Llama3Scaling(factor, 1.0, 4.0, original)  # determined by the blended ones


def test_factors_of_a_published_size_give_back_its_fields(load):
    """Half a head of 64 frequencies, as in Llama 3.1 8B, has blended ones."""
    from dasd_jax.model import gguf_rope

    scaling = Llama3Scaling(8.0, 1.0, 4.0, 8192)
    factors = llama3_factors(scaling, 5e5, 64)
    assert gguf_rope.read({}, "llama", 5e5, 128, factors, "file") == scaling
    assert load(KEYS, rope_freqs=np.ones(4, np.float32)).rope_scaling is None


def test_what_is_not_supported_is_refused_by_its_key(load):
    refused(
        load, "rope.scaling.type 'longrope': expected none, linear or yarn", KEYS | {"rope.scaling.type": "longrope"}
    )
    for key in ("yarn_ext_factor", "yarn_attn_factor", "yarn_log_multiplier"):
        refused(load, f"llama.rope.scaling.{key} 0.5", KEYS | YARN | {f"rope.scaling.{key}": 0.5})
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    refused(load, "attn_factor 0.5 with type linear", KEYS | linear | {"rope.scaling.attn_factor": 0.5})
    factors = llama3_factors(Llama3Scaling(8.0, 1.0, 4.0, 64), 1e5, 4)
    refused(load, "type linear and rope_freqs.weight", KEYS | linear, rope_freqs=factors)
    refused(
        load, "rope_freqs.weight: expected none in a file of architecture qwen2", KEYS, arch="qwen2", rope_freqs=factors
    )
    for other in (np.array([1, 3, 2, 8]), np.array([1, 2, 4]), np.array([1, 0.5, 8, 8])):
        refused(load, "rope_freqs.weight that is not of Llama 3", KEYS, rope_freqs=other.astype(np.float32))
    for key, value in (("attention.sliding_window", 64), ("expert_count", 8), ("attention.causal", False)):
        refused(load, rf"llama.{key} {value}: expected no such key", KEYS | {key: value})
    refused(load, "is a 'qwen3' model", KEYS, arch="qwen3")


def test_a_split_model_is_read_from_its_first_part(mesh, params, tmp_path):
    tensors = tensors_of(LLAMA, params)
    names = sorted(tensors)
    parts = [{name: tensors[name] for name in names[i::3]} for i in range(3)]
    files = [tmp_path / f"tiny-{i:05d}-of-00003.gguf" for i in (1, 2, 3)]
    for i, (file, part) in enumerate(zip(files, parts, strict=True)):
        write(file, KEYS if i == 0 else {}, part, split=(i, 3, len(tensors)))
    jax.tree.map(np.testing.assert_array_equal, weights.load(str(files[0]), mesh)[1], params)

    def refused(file, match):
        with pytest.raises(UserError, match=match):
            weights.load(str(file), mesh)

    refused(files[1], "is part 2 of 3: expected the first")
    renamed = tmp_path / "tiny.gguf"
    renamed.write_bytes(files[0].read_bytes())
    refused(renamed, "ends in -00001-of-00003.gguf")
    whole = files[2].read_bytes()
    files[2].write_bytes(files[1].read_bytes())
    refused(files[0], "is not part 3 of 3")
    files[2].unlink()
    refused(files[0], "lacks tiny-00003-of-00003.gguf")
    files[2].write_bytes(whole)
    write(files[1], {}, dict(list(parts[1].items())[1:]), split=(1, 3, len(tensors)))
    refused(files[0], f"have {len(tensors) - 1} tensors: expected {len(tensors)}")
