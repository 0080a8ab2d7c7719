"""Weights from files and back: Hugging Face folders of safetensors in and out, GGUF (llama and qwen2) in.

Tensors are read one at a time in the order of their files, each device's part of each straight into its place, guided
by the table in `params.py`: a tensor that the table asks for and the files lack, one in another shape, or one left
over is an error that names it.
"""

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from dasd_jax import formats
from dasd_jax.batch import Params
from dasd_jax.errors import UserError
from dasd_jax.mesh import named
from dasd_jax.model.config import Llama3Scaling, ModelConfig, YarnScaling
from dasd_jax.model.params import Leaf, shardings, table, tree

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
MAX_SHARD_BYTES = 4 * 10**9
_FILE_DTYPES = ("BF16", "F16", "F32", "F64")
_ROWS_AT_A_TIME = 4096


def check(path: str, sha256: str) -> None:
    """Refuses weights that are not there or not the expected file, before anything else is done.

    Args:
        path: `~` is expanded.
        sha256: the expected checksum of a single file; empty means that it is not checked.

    Raises:
        UserError: the path is missing, or has another checksum.
    """
    where = Path(path).expanduser()
    if not os.path.exists(where):  # which is False for a name that no file can have; Path.exists raises
        raise UserError(
            f"model.weights: {path} does not exist: expected a .gguf file, a Hugging Face folder or a checkpoint "
            "(python -m dasd_jax.fetch brings the embedded default)"
        )
    if not sha256:
        return
    if where.is_dir():
        raise UserError(f"model.sha256: {sha256} cannot be of the folder {path}: expected --config.model.sha256=")
    try:
        found = file_sha256(where)
    except OSError as error:
        raise UserError(f"model.weights: {path} cannot be read: {error.strerror}") from error
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


# ------------------------------------------------------------------------------------------------ Hugging Face, in


_FAMILIES = {
    "LlamaForCausalLM": {},
    "Qwen2ForCausalLM": {"qkv_bias": True},
    "Qwen3ForCausalLM": {"qk_norm": "head"},
    "Olmo3ForCausalLM": {"qk_norm": "all", "post_norm": True},
}


def load_hf(path: Path, mesh: Mesh) -> tuple[ModelConfig, Params]:
    """The model of a folder with config.json and *.safetensors; see `load`.

    One file is open at a time, so that the host holds the parameters of its own devices and one tensor beside them.
    """
    from safetensors import SafetensorError, safe_open

    files = sorted(path.glob("*.safetensors"))
    if not files or not (path / "config.json").exists():
        raise UserError(f"model.weights: {path} lacks config.json or *.safetensors: expected a Hugging Face folder")
    try:
        config = _config_from_hf(formats.read_object(path / "config.json"), path)
        found = {}
        for file in files:
            with safe_open(file, framework="numpy") as opened:
                slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  not a dict
                shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
                for name, part in slices.items():
                    # An integer or an eight-bit float is a code that means something only with its scale.
                    if part.get_dtype() not in _FILE_DTYPES:
                        raise ValueError(f"{name} is of {part.get_dtype()}: expected {', '.join(_FILE_DTYPES)}")
                if twice := sorted(shapes.keys() & found.keys()):
                    raise ValueError(f"{file.name} and another file both hold {twice[0]}")
                found |= shapes

        def tensors() -> Iterator[tuple[str, Callable]]:
            for file in files:
                with safe_open(file, framework="numpy") as opened:
                    for name in opened.keys():  # noqa: SIM118  not a dict
                        yield name, opened.get_slice(name).__getitem__

        return config, _fill(config, mesh, path, found, tensors())
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, OSError) as error:
        # The names and types of a damaged config.json fail where they are first used.
        raise UserError(f"model.weights: {path} is damaged: {type(error).__name__}: {error}") from error


def _config_from_hf(raw: dict, path: Path) -> ModelConfig:
    family = (raw.get("architectures") or ["none"])[0]
    if family not in _FAMILIES:
        raise UserError(f"model.weights: {path} is a {family}: expected one of {', '.join(_FAMILIES)}")
    if raw.get("hidden_act", "silu") != "silu":
        raise UserError(f"model.weights: {path} activates with {raw['hidden_act']!r}: expected silu")
    heads, layers = raw["num_attention_heads"], raw["num_hidden_layers"]
    kinds = raw.get("layer_types") or ()
    if family == "Olmo3ForCausalLM" and not kinds:
        kinds = ["full_attention" if i % 4 == 3 else "sliding_attention" for i in range(layers)]
    if unknown := set(kinds) - {"full_attention", "sliding_attention"}:
        raise UserError(f"model.weights: {path} has layers of {min(unknown)}: expected full or sliding attention")
    if raw.get("use_sliding_window") and not kinds:
        raise UserError(f"model.weights: {path} does not say which layers slide: expected layer_types in config.json")
    sliding = tuple(kind == "sliding_attention" for kind in kinds)

    rope = raw.get("rope_parameters") or {"rope_theta": raw.get("rope_theta"), **(raw.get("rope_scaling") or {})}
    rope = rope.get("full_attention", rope)
    scaling = _scaling_from_hf(rope, path)
    if any(sliding) and scaling is not None and family != "Olmo3ForCausalLM":
        # There the layers that slide are stretched too, here they never are.
        raise UserError(
            f"model.weights: {path} has layers that slide and stretches its rotary angles: expected one of them"
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


def _scaling_from_hf(rope: dict, path: Path) -> Llama3Scaling | YarnScaling | None:
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
    raise UserError(f"model.weights: {path} stretches its rotary angles by {kind!r}: expected default, llama3 or yarn")


# ------------------------------------------------------------------------------------------------ Hugging Face, out


def save_hf(path: Path, config: ModelConfig, params: Params, dtype: str = "bfloat16") -> None:
    """Writes a folder that transformers loads: config.json and safetensors in files of at most MAX_SHARD_BYTES.

    Args:
        path: a folder that does not exist or is empty.
        dtype: bfloat16 | float16 | float32, of the tensors; parameters are rounded to it.
    """
    from safetensors.numpy import save_file

    path.mkdir(parents=True, exist_ok=True)
    flat = traverse_util.flatten_dict(params, sep="/")
    sizes = {
        name: (leaf_path, leaf, layer, math.prod(leaf.stored_shape) * np.dtype(DTYPES[dtype]).itemsize)
        for leaf_path, leaf in table(config).items()
        for layer, name in enumerate(_names(leaf))
    }
    files, room = [[]], MAX_SHARD_BYTES
    # In the order of the layers, so that a reader needs few files at a time.
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
    (path / "config.json").write_text(json.dumps(_config_to_hf(config, dtype), indent=2))


def _config_to_hf(config: ModelConfig, dtype: str) -> dict:
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


# ------------------------------------------------------------------------------------------------ GGUF


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
    """The model of a .gguf file, dequantised to float32 tensor by tensor; see `load`."""
    from gguf import dequantize

    try:
        reader = formats.GgufReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if "tokenizer" not in name}
        stored = {tensor.name: tensor for tensor in reader.tensors}
        arch = fields["general.architecture"]
        config = _config_from_gguf(fields, arch, stored, path)
    except (ValueError, KeyError, IndexError, TypeError, ArithmeticError, OSError) as error:
        raise UserError(f"model.weights: {path} is not a whole GGUF file: {error!r}") from error

    ours = {_gguf_name(name): name for leaf in table(config).values() for name in _names(leaf)}
    # A name that we do not know stays as it is, and is refused under that name.
    stored = {ours.get(name, name): tensor for name, tensor in stored.items() if name != "rope_freqs.weight"}

    def read(name: str) -> np.ndarray:
        kind = stored[name].tensor_type
        try:
            values = dequantize(stored[name].data, kind)
        except NotImplementedError as error:
            raise UserError(f"model.weights: {path} holds {name} as {kind.name}, which cannot be read") from error
        turned = re.search(r"(q|k)_proj\.weight", name)
        if arch == "llama" and turned:
            # llama.cpp rotates neighbouring pairs (2h, 2h+1), we rotate (h, h + H/2): its rows are permuted back.
            heads = config.num_heads if turned[1] == "q" else config.num_kv_heads
            values = values.reshape(heads, config.head_dim // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)
        return values

    found = {name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in stored.items()}
    return config, _fill(config, mesh, path, found, ((name, read(name).__getitem__) for name in stored))


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


def _names(leaf: Leaf) -> list[str]:
    return [leaf.name.format(i) for i in range(leaf.shape[0])] if leaf.stacked else [leaf.name]


def _fill(
    config: ModelConfig,
    mesh: Mesh,
    path: Path,
    found: dict[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, Callable[[tuple[slice, ...]], np.ndarray]]],
) -> Params:
    """The parameters of a model, filled tensor by tensor.

    Args:
        found: shape of every tensor in the files, by its Hugging Face name.
        tensors: the same ones, each with a function that reads a part of it.
    """
    rows = table(config)
    place = {name: (leaf_path, i) for leaf_path, leaf in rows.items() for i, name in enumerate(_names(leaf))}
    ignored = {"lm_head.weight"} if config.tied else set()  # some exporters write the tied matrix twice
    missing, extra = sorted(place.keys() - found.keys()), sorted(found.keys() - place.keys() - ignored)
    if missing or extra:
        problem = f"lacks {missing[0]}" if missing else f"holds {extra[0]}, which this architecture does not have"
        raise UserError(f"model.weights: {path} {problem} ({len(missing)} missing, {len(extra)} left over)")
    for name, (leaf_path, _) in place.items():
        if found[name] != rows[leaf_path].stored_shape:
            raise UserError(
                f"model.weights: {path}: {name} has shape {found[name]}: expected {rows[leaf_path].stored_shape}"
            )

    layout = traverse_util.flatten_dict(shardings(config, mesh), sep="/")
    leaves = {
        leaf_path: jax.jit(partial(jnp.zeros, leaf.shape, jnp.float32), out_shardings=layout[leaf_path])()
        for leaf_path, leaf in rows.items()
        if leaf.stacked
    }
    for name, read in tensors:
        if name in ignored:
            continue
        leaf_path, layer = place[name]
        leaf = rows[leaf_path]
        axes = leaf.axes[1:] if leaf.stacked else leaf.axes
        tensor = jax.make_array_from_callback(leaf.layer_shape, named(mesh, *axes), partial(_part, leaf, read))
        leaves[leaf_path] = _put(leaves[leaf_path], tensor, layer) if leaf.stacked else tensor
    return tree(leaves)


@partial(jax.jit, donate_argnums=0)
def _put(stack: jax.Array, tensor: jax.Array, layer: int) -> jax.Array:
    """The stack with one layer replaced, in its own memory."""
    return jax.lax.dynamic_update_index_in_dim(stack, tensor, layer, 0)


def _part(leaf: Leaf, read: Callable, index: tuple[slice, ...]) -> np.ndarray:
    """One device's part of a tensor, in our shape and float32, from a function that reads parts in the file's shape.

    Only the first of the dimensions that share one in the file is ever split, so that a part is a slice there too.
    """
    shape = leaf.layer_shape
    bounds = [slice(*part.indices(size)[:2]) for part, size in zip(index, shape, strict=True)]

    def flat(dims: range) -> slice:
        inner = math.prod(shape[dim] for dim in dims[1:])
        return slice(bounds[dims[0]].start * inner, bounds[dims[0]].stop * inner)

    here = tuple(bound.stop - bound.start for bound in bounds)
    if leaf.inputs:
        outputs, inputs = range(leaf.inputs, len(shape)), range(leaf.inputs)
        return np.ascontiguousarray(read((flat(outputs), flat(inputs))).T.reshape(here), np.float32)
    if len(leaf.stored_shape) == 1:
        return np.asarray(read((flat(range(len(shape))),)), np.float32).reshape(here)
    # The vocabulary's matrices are by far the largest tensors: cast by rows, they need no second copy.
    values = np.empty(here, np.float32)
    for start in range(0, here[0], _ROWS_AT_A_TIME):
        rows = slice(bounds[0].start + start, min(bounds[0].start + start + _ROWS_AT_A_TIME, bounds[0].stop))
        values[start : start + _ROWS_AT_A_TIME] = read((rows, bounds[1]))
    return values
