"""Tokenizers from files: tokenizer.json of Hugging Face, the metadata of GGUF, and SentencePiece models."""

import shutil
from pathlib import Path

import gguf
import tokenizers
from etils import epath
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from dasd_jax import formats
from dasd_jax.errors import UserError
from dasd_jax.text.templates import NAMED_TOKENS
from dasd_jax.text.tokenizer import ByteTokenizer, HubTokenizer, SentencePieceTokenizer, Tokenizer

_MAIN_FILES = ("tokenizer.json", "tokenizer.model")
_ACCOMPANYING_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
_MAX_VOCAB = 2**24
_SAMPLE = "What is 1 + 12?\n\\boxed{13} é 😀"


def load_tokenizer(path: str) -> Tokenizer:
    """The tokenizer at `path`, whose kind follows from the file name.

    Args:
      path: "byte", a .gguf, .model or .json file, or a folder with tokenizer.json or tokenizer.model; gs:// works for
        all but .gguf, which is memory-mapped. Next to a .json file, tokenizer_config.json, generation_config.json and
        chat_template.jinja are read if they exist.

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
    for id in (*ids, *tokenizer.stop_ids, tokenizer.pad_id):
        if not 0 <= id < tokenizer.vocab_size:
            raise ValueError(f"it has a token with id {id}, outside its vocabulary of {tokenizer.vocab_size}")
    for name in ("bos_token", "eos_token", "chat_template"):
        if not isinstance(getattr(tokenizer, name), str):
            raise ValueError(f"its {name} is a {type(getattr(tokenizer, name)).__name__}, not text")


def copy_tokenizer(path: str, folder: Path) -> None:
    """Copies a tokenizer's files into a folder, where `load_tokenizer` and transformers find them.

    Args:
        path: a folder, or a .gguf, .model or tokenizer.json file, as for `load_tokenizer`.

    Raises:
        UserError: there is no tokenizer at `path`, or it has no files.
    """
    tokenizer, source = load_tokenizer(path), Path(path).expanduser()
    if isinstance(tokenizer, ByteTokenizer):
        raise UserError(f"model.tokenizer={path!r}: expected a tokenizer with files, to copy them")
    if source.suffix == ".gguf":
        tokenizer.save(folder)
        return
    if source.is_dir():
        source = next(source / name for name in _MAIN_FILES if (source / name).is_file())
    shutil.copy(source, folder / f"tokenizer{source.suffix}")
    for name in _ACCOMPANYING_FILES:
        if (source.parent / name).is_file():
            shutil.copy(source.parent / name, folder / name)


def _load_sentencepiece(file: epath.Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(file.read_bytes())


def _load_hub(file: epath.Path) -> HubTokenizer:
    """tokenizer.json with the stop ids, pad token, BOS and chat template of the accompanying files."""
    backend = tokenizers.Tokenizer.from_str(file.read_text())
    config, generation = (
        formats.read_object(path) if path.exists() else {}
        for path in (file.parent / "tokenizer_config.json", file.parent / "generation_config.json")
    )

    def declared(name: str) -> str:
        token = config.get(name) or ""
        text = token.get("content") if isinstance(token, dict) else token
        if not isinstance(text, str):
            raise ValueError(f"the {name} of tokenizer_config.json is {token!r:.100}: expected text")
        return text

    def id_of(name: str) -> int | None:
        token = declared(name)
        id = backend.token_to_id(token)
        if token and id is None:
            raise ValueError(f"the {name} {token!r} of tokenizer_config.json is not in its vocabulary")
        return id

    eos, also = id_of("eos_token"), generation.get("eos_token_id")
    stop_ids = [] if eos is None else [eos]
    if also is not None:
        stop_ids += also if isinstance(also, list) else [also]
    if not all(type(id) is int for id in stop_ids):
        raise ValueError(f"the eos_token_id of generation_config.json is {also!r:.100}: expected ids")
    return HubTokenizer(
        backend,
        stop_ids=stop_ids,
        pad_id=id_of("pad_token"),
        bos_token=declared("bos_token"),
        chat_template=_hub_template(file.parent, config),
        other_tokens={name: declared(name) for name in NAMED_TOKENS if name not in ("bos_token", "eos_token")},
    )


def _hub_template(folder: epath.Path, config: dict) -> str | None:
    """The chat template of a Hugging Face folder; chat_template.jinja takes precedence, as in transformers."""
    alone = folder / "chat_template.jinja"
    if alone.exists():
        return alone.read_text()
    template = config.get("chat_template")
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

    bos = value("tokenizer.ggml.bos_token_id", int)
    # EOT ends a turn, in models where that differs from the end of a text.
    ends = (value("tokenizer.ggml.eos_token_id", int), value("tokenizer.ggml.eot_token_id", int))
    return HubTokenizer(
        backend,
        stop_ids=[id for id in ends if id is not None],
        pad_id=value("tokenizer.ggml.padding_token_id", int),
        bos_token="" if bos is None else tokens[bos],
        chat_template=value("tokenizer.chat_template", str),
    )
