"""Tokenizers from files: tokenizer.json of Hugging Face, the metadata of GGUF, and SentencePiece models."""

import json
import shutil
from pathlib import Path

import gguf
import tokenizers
from etils import epath
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from dasd_jax import formats
from dasd_jax.errors import UserError
from dasd_jax.text.declared import Declared, SpecialIds, write_generation_config
from dasd_jax.text.templates import NAMED_TOKENS
from dasd_jax.text.tokenizer import ByteTokenizer, HubTokenizer, SentencePieceTokenizer, Tokenizer

_MAIN_FILES = ("tokenizer.json", "tokenizer.model")
_COPIED_FILES = ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
_MAX_VOCAB = 2**24
_SAMPLE = "What is 1 + 12?\n\\boxed{13} é 😀"


def load_tokenizer(path: str) -> Tokenizer:
    """The tokenizer at `path`, whose kind follows from the file name.

    Args:
      path: "byte", a .gguf, .model or .json file, or a folder with tokenizer.json or tokenizer.model; gs:// works for
        all but .gguf, which is memory-mapped. Beside a .json or .model file, chat_template.jinja and the files of
        `declared` are read if they exist.

    Raises:
      UserError: the file does not exist, is of another kind or damaged, or declares no stop id.
    """
    if path == "byte":
        return ByteTokenizer()
    file = epath.Path(path).expanduser()
    if file.is_dir():
        file = next((file / name for name in _MAIN_FILES if (file / name).exists()), file)
    load = {".json": _load_hub, ".gguf": _load_gguf, ".model": _load_sentencepiece}.get(file.suffix)
    if load is None or not file.is_file():
        raise UserError(
            f"model.tokenizer={path!r}: expected 'byte', a .gguf, .model or .json file that exists, "
            "or a folder with tokenizer.json or tokenizer.model"
        )
    try:
        tokenizer = load(file)
        _try_out(tokenizer)
        return tokenizer
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # damaged files share no error class; a Rust panic is not even an Exception
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"model.tokenizer={path!r}: expected a readable {file.suffix} tokenizer, but {reason}"
        ) from error


def _try_out(tokenizer: Tokenizer) -> None:
    """Uses a tokenizer once, since the libraries check some parts of a file only when the first text is encoded.

    Raises:
        ValueError: its ids, texts or template violate `Tokenizer`.
    """
    if tokenizer.vocab_size > _MAX_VOCAB:
        raise ValueError(f"its largest id is {tokenizer.vocab_size - 1}: expected less than {_MAX_VOCAB}")
    ids = tokenizer.encode(_SAMPLE)
    tokenizer.decode(ids)
    declared = max(tokenizer.vocab_size, tokenizer.model_vocab or 0)
    for id, size in [(id, tokenizer.vocab_size) for id in ids] + [
        (id, declared) for id in (*tokenizer.stop_ids, tokenizer.pad_id)
    ]:
        if not 0 <= id < size:
            raise ValueError(f"it has a token with id {id}, outside its vocabulary of {size}")
    for name in ("bos_token", "eos_token", "chat_template"):
        if not isinstance(getattr(tokenizer, name), str):
            raise ValueError(f"its {name} is a {type(getattr(tokenizer, name)).__name__}, not text")


def copy_tokenizer(path: str, folder: Path) -> SpecialIds:
    """Copies a tokenizer's files into a folder, where `load_tokenizer` and transformers 4 and 5 find them.

    Args:
        path: a folder, or a .gguf, .model or tokenizer.json file, as for `load_tokenizer`.

    Returns:
        Its special ids, which are also in the folder's generation_config.json.

    Raises:
        UserError: there is no tokenizer at `path`, or it has no files.
    """
    tokenizer, source = load_tokenizer(path), Path(path).expanduser()
    if isinstance(tokenizer, ByteTokenizer):
        raise UserError(f"model.tokenizer={path!r}: expected a tokenizer with files, to copy them")
    if source.suffix == ".gguf":
        tokenizer.save(folder)
        write_generation_config(folder, {}, tokenizer.special_ids)
        return tokenizer.special_ids
    if source.is_dir():
        source = next(source / name for name in _MAIN_FILES if (source / name).is_file())
    declared = Declared(source.parent)
    shutil.copyfile(source, folder / f"tokenizer{source.suffix}")
    for name in _COPIED_FILES:
        if (source.parent / name).is_file():
            shutil.copyfile(source.parent / name, folder / name)
    if declared.tokenizer_config:
        content = json.dumps(_for_both_versions(declared.tokenizer_config), indent=2, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(content)
    write_generation_config(folder, declared.generation_config, tokenizer.special_ids)
    return tokenizer.special_ids


def copy_special_ids(source: Path, folder: Path) -> SpecialIds:
    """`copy_tokenizer` for a folder of weights without a tokenizer, whose configuration files may declare ids.

    Raises:
        UserError: one of these files is damaged.
    """
    try:
        declared = Declared(source)
        ids = declared.special_ids(_MAX_VOCAB, [], None, None)
    except ValueError as error:
        raise UserError(f"model.weights: {source}: {error}") from error
    write_generation_config(folder, declared.generation_config, ids)
    return ids


def _for_both_versions(config: dict) -> dict:
    """tokenizer_config.json with what transformers 5 renamed under the names that version 4 knows too."""
    config = dict(config)
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    return config


def _load_sentencepiece(file: epath.Path) -> SentencePieceTokenizer:
    declared = Declared(file.parent)
    tokenizer = SentencePieceTokenizer(file.read_bytes(), declared, _template(file.parent, declared))
    pads = declared.texts("pad_token").values()
    for id, token in sorted(declared.added_tokens().items()):
        if id >= tokenizer.vocab_size and token.content not in pads:
            raise ValueError(
                f"the files beside it add {token.content!r} with id {id}, which it does not have: a tokenizer.json is "
                "needed, which transformers writes"
            )
    return tokenizer


def _load_hub(file: epath.Path) -> HubTokenizer:
    """tokenizer.json with the special tokens and the chat template of the accompanying files."""
    declared = Declared(file.parent)
    backend, left_out = _open_backend(file.read_text(), declared)

    def ids_of(name: str) -> list[int]:
        texts = {where: text for where, text in declared.texts(name).items() if text not in left_out}
        found = {where: backend.token_to_id(text) for where, text in texts.items()}
        if unknown := [where for where, id in found.items() if id is None]:
            raise ValueError(f"the {name} {texts[unknown[0]]!r} of {unknown[0]} is not in its vocabulary")
        return list(found.values())

    def text_of(name: str) -> str:
        return next(iter(declared.texts(name).values()), "")

    bos, pad = (next(iter(ids_of(name)), None) for name in ("bos_token", "pad_token"))
    vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values())
    return HubTokenizer(
        backend,
        declared.special_ids(vocab_size, ids_of("eos_token"), bos, pad),
        model_vocab=declared.vocab_size,
        bos_token=text_of("bos_token"),
        chat_template=_template(file.parent, declared),
        other_tokens={name: text_of(name) for name in NAMED_TOKENS if name not in ("bos_token", "eos_token")},
    )


def _open_backend(text: str, declared: Declared) -> tuple[tokenizers.Tokenizer, set[str]]:
    """(the pipeline with the tokens that other files add, the padding tokens that are left out).

    Padding is often added to the tokenizer of a model that does not grow. Without it another id pads, and the same
    characters in a text are only text.
    """
    backend, size = tokenizers.Tokenizer.from_str(text), declared.vocab_size
    others = {text for name in ("bos_token", "eos_token") for text in declared.texts(name).values()}
    pads = set(declared.texts("pad_token").values()) - others if size is not None else set()
    left_out = {pad for pad in pads if (backend.token_to_id(pad) or 0) >= size}
    if left_out:
        content = json.loads(text)
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in left_out]
        backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    # As in transformers, tokens that tokenizer.json does not have continue its ids.
    for id, token in sorted(declared.added_tokens().items()):
        if token.content in pads and id >= size:
            left_out.add(token.content)
        elif backend.token_to_id(token.content) is None:
            backend.add_tokens([token])
            if (found := backend.token_to_id(token.content)) != id:
                raise ValueError(f"the files beside it add {token.content!r} with id {id}, but its next id is {found}")
    return backend, left_out


def _template(folder: epath.Path, declared: Declared) -> str | None:
    """The chat template of a Hugging Face folder; chat_template.jinja takes precedence, as in transformers."""
    alone = folder / "chat_template.jinja"
    if alone.exists():
        return alone.read_text()
    template = declared.tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        if "default" not in named:
            raise ValueError(f"its chat templates are {sorted(named)} and none of them is 'default'")
        return named["default"]
    return template


def _split_words(number: str) -> pre_tokenizers.PreTokenizer:
    """The pre-tokenizer of Llama 3 and Qwen2, which differ in the regex for `number`, how many digits stay together."""
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + number
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(words), "isolated"), byte_level])


_GPT2_WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_GGUF_PRE_TOKENIZERS = {
    "gpt-2": _GPT2_WORDS,
    "llama-bpe": _split_words(r"\p{N}{1,3}"),
    "qwen2": _split_words(r"\p{N}"),
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT2_WORDS]),
}


def _load_gguf(file: epath.Path) -> HubTokenizer:
    """The byte-level BPE that the metadata of a GGUF file describes; tensors are not read."""
    fields = formats.GgufReader(file).fields

    def value(key: str, *kinds: type):
        found = fields[key].contents() if key in fields else None
        if found is not None and not isinstance(found, kinds):
            raise ValueError(f"its {key} is a {type(found).__name__}: expected {kinds[0].__name__}")
        return found

    model, pre = value("tokenizer.ggml.model", str), value("tokenizer.ggml.pre", str)
    if model != "gpt2" or pre not in _GGUF_PRE_TOKENIZERS:
        raise ValueError(
            f"its tokenizer.ggml.model is {model!r} and .pre is {pre!r}; supported are model 'gpt2' with pre "
            + ", ".join(map(repr, _GGUF_PRE_TOKENIZERS))
        )
    tokens, kinds, merges = (value(f"tokenizer.ggml.{key}", list) for key in ("tokens", "token_type", "merges"))
    if not tokens or not kinds or not merges or len(tokens) != len(kinds):
        raise ValueError("its tokens, token types or merges are incomplete")

    backend = tokenizers.Tokenizer(
        models.BPE(
            # UNUSED entries only pad the vocabulary to the size of the embedding.
            vocab={token: i for i, token in enumerate(tokens) if kinds[i] != gguf.TokenType.UNUSED},
            merges=[tuple(merge.split(" ", 1)) for merge in merges],
            # Llama 3 looks up whole words before merging, since its merges cannot build every token.
            ignore_merges=pre == "llama-bpe",
        )
    )
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _GGUF_PRE_TOKENIZERS[pre]
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_tokens(
        [
            AddedToken(token, special=kind == gguf.TokenType.CONTROL, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED)
        ]
    )

    # EOT and EOM end a turn and a message, in models where that differs from the end of a text.
    bos, *ends = (value(f"tokenizer.ggml.{name}_token_id", int) for name in ("bos", "eos", "eot", "eom"))
    eos = tuple(dict.fromkeys(id for id in ends if id is not None))
    return HubTokenizer(
        backend,
        SpecialIds(eos, bos, value("tokenizer.ggml.padding_token_id", int)),
        model_vocab=len(tokens),
        bos_token="" if bos is None else tokens[bos],
        chat_template=value("tokenizer.chat_template", str),
    )
