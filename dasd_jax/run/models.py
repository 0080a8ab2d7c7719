"""The tokenizer and the model that a config names."""

import dataclasses
import os
import tempfile
from pathlib import Path

import jax
from jax.sharding import Mesh

from dasd_jax import files, formats, hosts, recorded
from dasd_jax.batch import Params
from dasd_jax.config import START, Config, ModelGroup
from dasd_jax.errors import UserError
from dasd_jax.learner import checkpoint, kept
from dasd_jax.model import attention, param_table, weights
from dasd_jax.model.config import ModelConfig
from dasd_jax.model.presets import preset
from dasd_jax.text.tokenizer import Tokenizer
from dasd_jax.text.tokenizer_files import copy_tokenizer, load_tokenizer

# Padding of a vocabulary to a round number is common; more than this is another model's tokenizer, unless the files
# beside it have a model of just this size.
_MAX_UNUSED_IDS = 1024


def open_tokenizer(group: ModelGroup) -> Tokenizer:
    """The tokenizer that the config names, or the one that lies with the weights.

    Raises:
        UserError: no weights are named, or they are not there, or no tokenizer is.
    """
    if not group.weights:
        raise UserError(
            "model.weights: empty: set --config.model.weights=PATH to a .gguf file or a Hugging Face folder; "
            "to try the program without weights: --config=qwen_math:tiny"
        )
    if group.weights != "random":
        weights.check(group.weights, group.sha256)
    elif not group.tokenizer:
        raise UserError("model.tokenizer: empty: expected one beside random weights, such as byte")
    path = tokenizer_path(group)
    return load_tokenizer(path if path == "byte" else str(Path(path).expanduser()))


def tokenizer_path(group: ModelGroup) -> str:
    """What `load_tokenizer` reads: the tokenizer that the config names, or the one that lies with the weights."""
    return group.tokenizer or located(group.weights, "model.weights")[1] or group.weights


def tokenizer_files(group: ModelGroup) -> dict[str, bytes]:
    """Name → content of the files that a checkpoint needs to be loaded without any other; none of `byte`, or in gs://."""
    path = tokenizer_path(group)
    if path == "byte" or "://" in path or not hosts.is_main():
        return {}
    with tempfile.TemporaryDirectory() as folder:
        copy_tokenizer(path, Path(folder))
        return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer lies in a folder."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def located(path: str, flag: str) -> tuple[Path, str]:
    """Where weights are, and their tokenizer or "" where it is not known.

    Args:
        path: a .gguf file, a Hugging Face folder, a checkpoint of ours, or the workdir of a run, whose newest
            checkpoint is taken. Where that has no tokenizer, of older versions, it is the one that the run names.

    Raises:
        UserError: a run without a checkpoint, or without a config.json that can be read; starts with the flag.
    """
    where = Path(path).expanduser()
    if not os.path.exists(where):
        return where, ""
    run = where if (is_run := (where / "checkpoints").is_dir()) else where.parent.parent
    if is_run:
        newest = hosts.from_main(lambda: str(kept.newest(where) or ""))
        if not newest:
            raise UserError(f"{flag}: {path} has no finished checkpoint: expected a run that has saved one")
        where = Path(newest)
    if where.is_file() or has_tokenizer(where):
        return where, str(where)
    if where.parent.name != "checkpoints" or not (run / "config.json").exists():
        return where, ""
    try:
        group = formats.read_object(run / "config.json")["model"]
        return where, str(group["tokenizer"] or group["weights"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{flag}: {run / 'config.json'} is damaged ({type(error).__name__}): expected that of a run, which names "
            "the tokenizer, or a checkpoint that has one"
        ) from error


def open_model(config: Config, mesh: Mesh) -> tuple[ModelConfig, Params]:
    """The weights that a run starts from, laid out for training.

    Raises:
        UserError: weights that are missing, damaged or not what the config says, or a mesh that does not fit them.
    """
    group = config.model
    if group.weights == "random":
        model, params = preset(group.preset), None
    else:
        model, params = load_weights(group.weights, mesh)
        if group.preset:
            check_architecture(model, group.preset, group.weights)
    model = configured(config, model)
    return model, param_table.init(model, mesh, config.run.seed) if params is None else params


def pinned(config: Config, workdir: Path) -> Config:
    """The config with a checkpoint as model.weights where that names a run, whose newest is not always the same one.

    Args:
        workdir: of the run that starts from there, or has: its config.json says from which checkpoint.

    Raises:
        UserError: the run has no checkpoint, or no longer the one that was started from.
    """
    group = config.model
    if group.weights == "random" or not (Path(group.weights).expanduser() / "checkpoints").is_dir():
        return config
    path = begun(workdir).get("weights") or str(located(group.weights, "model.weights")[0].absolute())
    weights.check(path, "")
    return dataclasses.replace(config, model=dataclasses.replace(group, weights=path))


def begun(workdir: Path) -> dict[str, str]:
    """What the config.json in a folder notes of the weights that its run began with; see `as_begun`."""
    theirs = hosts.from_main(lambda: recorded.read(workdir)) or {}
    with files.reading(workdir / recorded.NAME, "--workdir"):
        return {str(name): str(value) for name, value in theirs.get(START, {}).items()}


def as_begun(config: Config, begins: Config, params: Params | None) -> dict[str, str]:
    """What config.json notes, under `start`, of the weights that a run begins with.

    Args:
        begins: of `pinned`.
        params: those weights; None where the run begins with another one's checkpoint instead.

    Returns:
        weights: the checkpoint that model.weights stands for, where that names a run; fingerprint: of `noted`. Random
        weights have none, which run.seed and model.preset decide.
    """
    found = {} if begins is config else {"weights": begins.model.weights}
    if params is None or config.model.weights == "random":
        return found
    return found | {"fingerprint": noted(params)}


def noted(params: Params) -> str:
    """The fingerprint of parameters as config.json has it. Made on the devices: no file is read a second time."""
    return f"{int(param_table.fingerprint(params)):08x}"


def fingerprint(config: Config) -> str:
    """What tells the weights that `open_model` opens from others behind the same path, equal in all processes.

    Returns:
        The sha256 of the manifest of a checkpoint of ours, or of all files that are read of others (see
        `weights.fingerprint`); "" of random weights, which run.seed and model.preset decide.
    """
    if config.model.weights == "random":
        return ""
    where, _ = located(config.model.weights, "model.weights")

    def found() -> str:
        manifest = where / "manifest.json"
        return weights.file_sha256(manifest) if manifest.is_file() else weights.fingerprint(where)

    return hosts.from_main(found)


def load_weights(path: str, mesh: Mesh) -> tuple[ModelConfig, Params]:
    """Architecture and float32 parameters of what `located` finds.

    Raises:
        UserError: they are damaged, or of a model that is not supported.
    """
    where, _ = located(path, "model.weights")
    if not (where / "manifest.json").is_file():
        return weights.load(path, mesh)
    if problem := hosts.from_main(lambda: kept.damage(where)):
        raise UserError(f"model.weights: {where} is damaged: {problem}")
    return checkpoint.restore_params(where, mesh)


def read_architecture(config: Config) -> ModelConfig:
    """The architecture of the weights that a run starts from, of their headers alone.

    Raises:
        UserError: weights that are missing, incomplete or not what the config says.
    """
    group = config.model
    weights.check(group.weights, group.sha256)
    where, _ = located(group.weights, "model.weights")
    ours = (where / "manifest.json").is_file()
    model = checkpoint.architecture(where) if ours else weights.header(group.weights)
    if group.preset:
        check_architecture(model, group.preset, group.weights)
    return model


def configured(config: Config, model: ModelConfig, platform: str | None = None) -> ModelConfig:
    """An architecture, from weights or a checkpoint, with what the config says of its computation.

    Args:
        platform: cpu | gpu | tpu, what it is computed on; None: this process's own.

    Raises:
        UserError: it cannot hold a prompt and a response, or its attention does not run there.
    """
    config.check_context(model.context)
    platform = platform or jax.default_backend()
    # A CPU has the memory for what products give, and no time to spare; elsewhere memory decides the batch.
    fastest = "dots" if platform == "cpu" else "full"
    return dataclasses.replace(
        model,
        compute_dtype=config.model.compute_dtype,
        attention=attention.choose(config.model.attention, platform, config.model.compute_dtype),
        remat=fastest if config.model.remat == "auto" else config.model.remat,
        unroll=platform == "cpu",
    )


def check_tokenizer(tokenizer: Tokenizer, folder: Path, flag: str) -> None:
    """Refuses to train on from a checkpoint with another tokenizer than the one that lies in it, if one does.

    Raises:
        UserError: naming what differs; starts with the flag.
    """
    if not has_tokenizer(folder):
        return
    theirs = load_tokenizer(str(folder))
    alike = {
        "chat template": tokenizer.chat_template == theirs.chat_template,
        "ids that end an answer": set(tokenizer.stop_ids) == set(theirs.stop_ids),
        "beginning of a text": tokenizer.bos_token == theirs.bos_token,
        "vocabulary": tokenizer.rules() == theirs.rules(),
    }
    if others := [what for what, same in alike.items() if not same]:
        raise UserError(
            f"{flag}: the tokenizer has changed since {folder} was written: the {', the '.join(others)}: "
            "expected its files as they were, of which the checkpoint has a copy, or another --workdir"
        )


def check_vocabulary(tokenizer: Tokenizer, model: ModelConfig) -> None:
    """Refuses a tokenizer of another model.

    Raises:
        UserError: it makes ids that the model does not have, or leaves too many of the model's ids unused.
    """
    unused = model.vocab_size - tokenizer.vocab_size
    if unused < 0 or (unused > _MAX_UNUSED_IDS and tokenizer.model_vocab != model.vocab_size):
        raise UserError(
            f"model.tokenizer: its vocabulary of {tokenizer.vocab_size} does not belong to the model's "
            f"{model.vocab_size}: expected at most as many, and at most {_MAX_UNUSED_IDS} fewer unless the config.json "
            "beside it has that vocab_size"
        )


def check_architecture(model: ModelConfig, name: str, path: str) -> None:
    """Refuses weights of another architecture than `model.preset` names.

    Raises:
        UserError: naming the first size that differs.
    """
    expected = preset(name)
    for field in ("num_layers", "width", "num_heads", "num_kv_heads", "head_dim", "ff", "vocab_size"):
        if getattr(model, field) != getattr(expected, field):
            raise UserError(
                f"model.preset: {name} has {field} {getattr(expected, field)}, but {path} has {getattr(model, field)}: "
                "expected the weights of that model, or an empty preset"
            )
