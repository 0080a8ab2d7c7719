"""Weights from files: the check before a run, and loading, whatever the format."""

import hashlib
import json
import os
import re
from pathlib import Path

from jax.sharding import Mesh

from dasd_jax.batch import Params
from dasd_jax.errors import UserError
from dasd_jax.model import gguf_file, hf
from dasd_jax.model.config import ModelConfig

# GGUF files that shipped configurations name → their repository on the Hugging Face hub.
_ON_THE_HUB = {"qwen2.5-coder-0.5b-instruct-q4_k_m.gguf": "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF"}


def check(path: str, sha256: str) -> None:
    """Refuses weights that are missing or not the expected file, before any other work.

    Args:
        path: `~` is expanded.
        sha256: the expected checksum of a single file; empty: not checked.

    Raises:
        UserError: the path does not exist, or has another checksum.
    """
    where = Path(path).expanduser()
    if not os.path.exists(where):  # False for a name that no file can have, where Path.exists raises
        if re.fullmatch(r"[\w.-]+/[\w.-]+", path) and where.suffix != ".gguf" and not where.parent.exists():
            name = where.name
            raise UserError(
                f"model.weights: {path} does not exist; if it is a model of the Hugging Face hub: "
                f"hf download {path} --local-dir {name}, then --config.model.weights={name}"
            )
        if where.name in _ON_THE_HUB:
            raise UserError(
                f"model.weights: {path} does not exist: hf download {_ON_THE_HUB[where.name]} {where.name} "
                f"--local-dir {Path(path).parent} downloads it from the Hugging Face hub"
            )
        raise UserError(
            f"model.weights: {path} does not exist: expected a .gguf file, a Hugging Face folder or a checkpoint "
            "(python -m dasd_jax.fetch downloads the default model)"
        )
    if not sha256:
        return
    if where.is_dir():
        raise UserError(
            f"model.sha256: {sha256}: {path} is a folder, which has no checksum: expected --config.model.sha256="
        )
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
        UserError: the files are damaged, or contain a model that is not supported.
    """
    where = Path(path).expanduser()
    return hf.load(where, mesh) if where.is_dir() else gguf_file.load(where, mesh)


def header(path: str) -> ModelConfig:
    """The architecture of what `load` would load, whose files have all of its tensors; none of them is read.

    Raises:
        UserError: as `load`.
    """
    where = Path(path).expanduser()
    return hf.header(where) if where.is_dir() else gguf_file.header(where)


def file_sha256(path: Path) -> str:
    """The SHA-256 checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path: Path) -> str:
    """The sha256 of all that `load` reads of a .gguf file or a Hugging Face folder, in hexadecimal.

    All bytes are read, at 1.6 GB/s on one core of an AMD EPYC: sizes, dates and ends of files are the same in folders
    that differ, or differ in copies of one.

    Raises:
        UserError: as `load`, of files that are missing.
    """
    files = hf.files(path) if path.is_dir() else gguf_file.files(path)
    found = [[file.name, file_sha256(file)] for file in files]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()
