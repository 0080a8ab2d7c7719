"""Hugging Face folders of config.json and safetensors, read and written: Llama, Qwen2, Qwen3 and Olmo 3."""

import contextlib
import dataclasses
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from dasd_jax import formats, hosts
from dasd_jax.batch import Params
from dasd_jax.errors import UserError
from dasd_jax.model import hf_config
from dasd_jax.model.config import ModelConfig
from dasd_jax.model.param_table import table
from dasd_jax.model.placement import check, place

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
MAX_SHARD_BYTES = 4 * 10**9
_FILE_DTYPES = ("BF16", "F16", "F32", "F64")
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"  # with peft installed, transformers applies what it describes
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")
# Buffers that older versions of transformers saved and newer ones compute from config.json.
_IGNORED = re.compile(r"(.+\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)")
_EMBED, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_BLOCK_ROWS = 4096


def load(path: Path, mesh: Mesh) -> tuple[ModelConfig, Params]:
    """Configuration and float32 parameters of a folder with config.json and safetensors; see `weights.load`.

    The files are those that transformers loads: model.safetensors, or the shards that model.safetensors.index.json
    names. Tensors are placed from one file after the other.

    Raises:
        UserError: files are missing or damaged, or contain a model that is not supported.
    """
    with _described(path) as (config, files, shapes):

        def tensors() -> Iterator[tuple[str, Callable]]:
            for file in dict.fromkeys(file for file, _ in files.values()):
                with _opened(file) as opened:
                    for name in opened.keys():  # noqa: SIM118  not a dict
                        if name in shapes and files[name][0] == file:
                            yield name, opened.get_slice(name).__getitem__

        return config, place(config, mesh, path, shapes, tensors())


def header(path: Path) -> ModelConfig:
    """The architecture of such a folder, whose files have all of its tensors by name and shape; none of them is read.

    Raises:
        UserError: as `load`.
    """
    with _described(path) as (config, _, shapes):
        check(config, path, shapes)
    return config


def files(path: Path) -> list[Path]:
    """config.json and the safetensors files that `load` reads.

    Raises:
        UserError: one is missing, or the index is damaged.
    """
    try:
        return [path / name for name in ("config.json", *_names(path)[0])]
    except (ValueError, LookupError, TypeError, OSError) as error:
        raise UserError(f"model.weights: {path} is damaged: {error}") from error


@contextlib.contextmanager
def _described(path: Path) -> Iterator[tuple[ModelConfig, dict[str, tuple[Path, tuple[int, ...]]], dict]]:
    """(architecture, file and shape of each tensor in the files, shape of each that is a parameter).

    What fails while they are used is the fault of the files too.
    """
    from safetensors import SafetensorError

    try:
        if (path / _ADAPTER).exists():
            raise UserError(
                f"model.weights: {path} has {_ADAPTER}: an adapter would not be applied: expected it merged into the "
                f"weights, in a folder without {_ADAPTER}"
            )
        if not (path / "config.json").is_file():
            raise UserError(f"model.weights: {path} lacks config.json: expected a Hugging Face folder")
        config = hf_config.read(formats.read_object(path / "config.json"), path)
        files = _files(path)
        shapes = {name: shape for name, (_, shape) in files.items()}
        if config.tied and _HEAD in files:
            config = dataclasses.replace(config, tied=_same_rows(files, _EMBED, _HEAD))
            if config.tied:
                del shapes[_HEAD]
            elif hosts.is_main():
                print(
                    f"warning: {path}: {_HEAD} differs from {_EMBED}: loaded as it is, although config.json has "
                    "tie_word_embeddings true",
                    file=sys.stderr,
                )
        yield config, files, shapes
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError) as error:
        # Mistyped fields of config.json raise where they are first used.
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise UserError(f"model.weights: {path} is damaged: {reason}") from error


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A safetensors file; errors name it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file.name}: {error}") from error


def _files(path: Path) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """The model's tensors: the file and the shape of each, by name.

    Raises:
        UserError: a file is missing.
        ValueError: two files have a tensor of the same name, or one has a dtype that is not supported.
    """
    found: dict[str, tuple[Path, tuple[int, ...]]] = {}
    names, index = _names(path)
    for file in (path / name for name in names):
        with _opened(file) as opened:
            for name in opened.keys():  # noqa: SIM118  not a dict
                if index.get(name, file.name) != file.name or _IGNORED.fullmatch(name):
                    continue
                part = opened.get_slice(name)
                # Integers and 8-bit floats are quantised values, meaningless without their scales.
                if part.get_dtype() not in _FILE_DTYPES:
                    raise ValueError(f"{name} is {part.get_dtype()}: expected {', '.join(_FILE_DTYPES)}")
                if name in found:
                    raise ValueError(f"{file.name} and {found[name][0].name} both contain {name}")
                found[name] = file, tuple(part.get_shape())
    # A tied head may stand in an index without being stored; an untied one is missed later.
    if lacking := sorted(name for name in index.keys() - found.keys() - {_HEAD} if not _IGNORED.fullmatch(name)):
        raise ValueError(f"{index[lacking[0]]} lacks {lacking[0]}, which {_INDEX} says is there")
    return found


def _names(path: Path) -> tuple[list[str], dict[str, str]]:
    """(names of the model's files, the file of each tensor by the index or {} without one).

    Other safetensors files may lie beside them: adapters, or the same weights in another format.
    """
    there = sorted(file.name for file in path.glob("*.safetensors"))
    if (path / _INDEX).exists():
        index = formats.read_object(path / _INDEX)["weight_map"]
        if not isinstance(index, dict) or not all(isinstance(file, str) for file in index.values()):
            raise ValueError(f"{_INDEX} has no weight_map from tensors to files")
        names, source = sorted(set(index.values())), _INDEX
        if outside := [name for name in names if Path(name).name != name]:
            raise ValueError(f"{_INDEX} names {outside[0]!r:.100}: expected files beside it")
        if _SINGLE in there and _SINGLE not in names:
            raise UserError(
                f"model.weights: {path} has {_SINGLE}, and {_INDEX} that names others: expected one of the two"
            )
    elif _SINGLE in there:
        return [_SINGLE], {}
    else:
        sets = {(shard[1], shard[3]) for name in there if (shard := _SHARD.fullmatch(name))}
        if len(sets) != 1:
            others = f", and has {', '.join(there):.300}" if there else ""
            raise UserError(
                f"model.weights: {path} lacks {_SINGLE} and {_INDEX}{others}: expected a Hugging Face folder"
            )
        (prefix, count), index = sets.pop(), {}
        names = [f"{prefix}-{i:0{len(count)}}-of-{count}.safetensors" for i in range(1, min(int(count), 10_000) + 1)]
        source = there[0]
    if missing := [name for name in names if name not in there]:
        raise UserError(
            f"model.weights: {path} lacks {missing[0]} ({len(missing)} of {len(names)} files are missing): "
            f"expected all that {source} names"
        )
    return names, index


def _same_rows(files: Mapping[str, tuple[Path, tuple[int, ...]]], one: str, other: str) -> bool:
    """Whether two matrices hold the same values; True if one of them is missing."""
    if one not in files or other not in files:
        return True
    (first, shape), (second, other_shape) = files[one], files[other]
    if shape != other_shape:
        return False
    with _opened(first) as opened, _opened(second) as also:
        left, right = opened.get_slice(one), also.get_slice(other)
        rows = (slice(at, min(at + _BLOCK_ROWS, shape[0])) for at in range(0, shape[0], _BLOCK_ROWS))
        return all(np.array_equal(left[part], right[part]) for part in rows)


def rounded(params: Params, dtype: str) -> int:
    """How many of the parameters a dtype of DTYPES does not hold as they are."""
    count = 0
    with np.errstate(over="ignore"):  # beyond float16's range
        for leaf in jax.tree.leaves(params):
            rows = np.asarray(leaf).reshape(-1, leaf.shape[-1])
            for at in range(0, len(rows), _BLOCK_ROWS):
                part = rows[at : at + _BLOCK_ROWS]
                count += np.count_nonzero(part.astype(DTYPES[dtype]).astype(part.dtype) != part)
    return int(count)


def save(
    path: Path, config: ModelConfig, params: Params, dtype: str = "bfloat16", ids: Mapping[str, Any] | None = None
) -> None:
    """Writes a folder that transformers loads: config.json, and tensors in files of at most MAX_SHARD_BYTES.

    A tensor larger than that gets a file of its own.

    Args:
        path: a folder that does not exist or is empty.
        dtype: one of DTYPES, to which the parameters are rounded.
        ids: bos_token_id, eos_token_id and pad_token_id, if they are known.
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
        file = _SINGLE if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
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
        (path / _INDEX).write_text(json.dumps({"metadata": total, "weight_map": index}))
    (path / "config.json").write_text(json.dumps(hf_config.write(config, dtype, ids or {}), indent=2))
