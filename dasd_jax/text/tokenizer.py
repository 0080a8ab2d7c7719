"""Tokenizers of four origins behind one protocol: bytes, tokenizer.json, GGUF and SentencePiece.

None of them adds BOS or EOS by itself: chat templates write special tokens as text, and `encode` turns that text into
their ids. Whoever tokenises text of strangers therefore lets them write special tokens too.
"""

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import gguf
import sentencepiece
import tokenizers
from etils import epath
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from dasd_jax import formats
from dasd_jax.errors import UserError

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# For tokenizers that carry no template (.model files, base models). Roles are plain words, since such vocabularies
# have no turn markers; only the assistant's turn ends in EOS, for that is what the model has to learn to write.
PLAIN_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token + '\n' }}"
    "{% else %}{{ message['role'] | capitalize + ': ' + message['content'] + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


class Tokenizer(Protocol):
    """Text to ids and back.

    Attributes:
      vocab_size: 1 + the largest id that `encode` can produce; a model's V may be larger, for padding.
      pad_id: the id that fills prompts and responses; it may be a stop id, so masks decide and never the id.
      stop_ids: every id that ends a response; at least one.
      chat_template: Jinja source.
      bos_token, eos_token: their text for the chat template, "" where there is none.
    """

    vocab_size: int
    pad_id: int
    stop_ids: tuple[int, ...]
    chat_template: str
    bos_token: str
    eos_token: str

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; special tokens written in it are recognised, none is added."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens and without ids that the vocabulary does not hold."""

    def piece(self, id: int) -> str:
        """Readable text of one token, special ones included, for logs."""


def load_tokenizer(path: str) -> Tokenizer:
    """The tokenizer at `path`, chosen by its name.

    Args:
      path: "byte", a .gguf, .model or .json file, or a folder that holds tokenizer.json or tokenizer.model; gs://
        works for all but .gguf, which is memory-mapped. Beside a .json file, tokenizer_config.json,
        generation_config.json and chat_template.jinja are read where they exist.

    Raises:
      UserError: nothing there, another kind of file, a damaged one, or one that declares no stop id.
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
    except BaseException as error:  # no common class for a damaged file; a panic of Rust is not even an Exception
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"model.tokenizer={path!r}: expected a readable {file.suffix} tokenizer, but {reason}"
        ) from error


def _try_out(tokenizer: Tokenizer) -> None:
    """Raises where a tokenizer loads and cannot be used: its parts are checked when they meet the first text.

    Raises:
        ValueError: its ids, texts or template are not what `Tokenizer` says.
    """
    if tokenizer.vocab_size > _MAX_VOCAB:
        raise ValueError(f"its largest id is {tokenizer.vocab_size - 1}: expected less than {_MAX_VOCAB}")
    ids = tokenizer.encode(_SAMPLE)
    tokenizer.decode(ids)
    for id in (*ids, *tokenizer.stop_ids, tokenizer.pad_id):
        if not 0 <= id < tokenizer.vocab_size:
            raise ValueError(f"it has a token of id {id} in a vocabulary of {tokenizer.vocab_size}")
    for name in ("bos_token", "eos_token", "chat_template"):
        if not isinstance(getattr(tokenizer, name), str):
            raise ValueError(f"its {name} is a {type(getattr(tokenizer, name)).__name__}, not text")


_MAX_VOCAB = 2**24
_SAMPLE = "What is 1 + 12?\n\\boxed{13} é 😀"


def copy_tokenizer(path: str, folder: Path) -> None:
    """Puts a tokenizer's files into a folder, so that it is found there, by transformers too.

    Args:
        path: a folder, or a .gguf, .model or tokenizer.json file, as for `load_tokenizer`.

    Raises:
        UserError: there is none at `path`.
    """
    tokenizer, source = load_tokenizer(path), Path(path).expanduser()
    if isinstance(tokenizer, ByteTokenizer):
        raise UserError(f"model.tokenizer={path!r}: expected one with files of its own")
    if source.suffix == ".gguf":
        tokenizer.save(folder)
        return
    if source.is_dir():
        source = next(source / name for name in _MAIN_FILES if (source / name).is_file())
    shutil.copy(source, folder / f"tokenizer{source.suffix}")
    for name in _NEIGHBOURS:
        if (source.parent / name).is_file():
            shutil.copy(source.parent / name, folder / name)


_MAIN_FILES = ("tokenizer.json", "tokenizer.model")
_NEIGHBOURS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")


class ByteTokenizer:
    """UTF-8 bytes and three ChatML markers; needs no file, for tests and smoke runs."""

    _specials = {"<|pad|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}

    vocab_size = 259
    pad_id = 256
    stop_ids = (258,)
    chat_template = CHATML_TEMPLATE
    bos_token = ""
    eos_token = "<|im_end|>"

    def encode(self, text: str) -> list[int]:
        ids = []
        for part in _split_specials(text, self._specials):
            ids += [self._specials[part]] if part in self._specials else part.encode()
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(id for id in ids if id < 256).decode(errors="replace")

    def piece(self, id: int) -> str:
        if id < 128:
            return chr(id)
        return next((text for text, special in self._specials.items() if special == id), f"<0x{id:02X}>")


class HubTokenizer:
    """A `tokenizers` pipeline with the facts that its neighbouring files declare; see `Tokenizer`.

    Raises:
      ValueError: no stop id, or one outside the vocabulary.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        stop_ids: Iterable[int],
        pad_id: int | None = None,
        bos_token: str = "",
        chat_template: str | None = None,
    ):
        # A tokenizer.json may carry the truncation and padding of whoever saved it.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values())
        self.stop_ids = tuple(dict.fromkeys(stop_ids))
        if not self.stop_ids:
            raise ValueError("it declares no eos token, so no response could end")
        if max(self.stop_ids) >= self.vocab_size:
            raise ValueError(f"eos ids {self.stop_ids} reach beyond its {self.vocab_size} tokens")
        self.pad_id = self.stop_ids[0] if pad_id is None else pad_id
        self.bos_token = bos_token
        self.eos_token = backend.id_to_token(self.stop_ids[0])
        self.chat_template = chat_template or PLAIN_TEMPLATE

    def encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json and the files beside it that `load_tokenizer` and transformers read."""
        self._backend.save(str(folder / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.bos_token or None,
            "eos_token": self.eos_token,
            "pad_token": self._backend.id_to_token(self.pad_id),
            "chat_template": self.chat_template,
            "clean_up_tokenization_spaces": False,
        }
        generation = {"eos_token_id": list(self.stop_ids), "pad_token_id": self.pad_id}
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False))
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2))

    def piece(self, id: int) -> str:
        text = self._backend.decode([id], skip_special_tokens=False)
        # Part of a multi-byte character has no text of its own; the vocabulary's spelling at least tells pieces apart.
        return text if text and "\ufffd" not in text else self._backend.id_to_token(id) or f"<{id}>"


class SentencePieceTokenizer:
    """A SentencePiece model; its control symbols are recognised in text. See `Tokenizer`.

    Raises:
      ValueError: not a SentencePiece model, or one without an EOS piece.
    """

    chat_template = PLAIN_TEMPLATE

    def __init__(self, model: bytes):
        # Imported here because protobuf refuses a second definition of these messages, and transformers has its own.
        from sentencepiece import sentencepiece_model_pb2

        proto = sentencepiece_model_pb2.ModelProto.FromString(model)
        self._opening = sentencepiece.SentencePieceProcessor(model_proto=model)
        # A model that puts a space before its text expects it once, not again after each special token.
        proto.normalizer_spec.add_dummy_prefix = False
        self._continuing = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())

        self.vocab_size = self._opening.vocab_size()
        bos, eos, pad = self._opening.bos_id(), self._opening.eos_id(), self._opening.pad_id()
        if eos < 0:
            raise ValueError("it has no eos piece, so no response could end")
        self.stop_ids = (eos,)
        self.pad_id = pad if pad >= 0 else eos
        self.bos_token = self.piece(bos) if bos >= 0 else ""
        self.eos_token = self.piece(eos)
        self._specials = {self.piece(i): i for i in range(self.vocab_size) if self._opening.is_control(i)}

    def encode(self, text: str) -> list[int]:
        ids, processor = [], self._opening
        for part in _split_specials(text, self._specials):
            if part in self._specials:
                ids.append(self._specials[part])
            else:
                ids += processor.encode(part)
                processor = self._continuing
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        kept = [int(id) for id in ids if id < self.vocab_size and not self._opening.is_control(int(id))]
        return self._opening.decode(kept)

    def piece(self, id: int) -> str:
        return self._opening.id_to_piece(int(id)).replace("\u2581", " ") if id < self.vocab_size else f"<{id}>"


def _split_specials(text: str, specials: Iterable[str]) -> list[str]:
    """`text` cut before and after each special token, without empty parts; of two that match, the longer one wins."""
    pattern = "|".join(map(re.escape, sorted(specials, key=len, reverse=True)))
    return [part for part in re.split(f"({pattern})", text) if part]


def _load_sentencepiece(file: epath.Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(file.read_bytes())


def _load_hub(file: epath.Path) -> HubTokenizer:
    """tokenizer.json with the stop ids, pad token, BOS and chat template of the files beside it."""
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
    )


def _hub_template(folder: epath.Path, config: dict) -> str | None:
    """The chat template of a Hugging Face folder; the newer file of its own wins, as it does in transformers."""
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
    """The pre-tokenizer of Llama 3 and Qwen, which differ in how many digits stay together (a regex)."""
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
    """The byte-level BPE that the metadata of a GGUF file describes; its tensors are not read."""
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
        raise ValueError("its tokens, token types and merges are not complete")

    backend = tokenizers.Tokenizer(
        models.BPE(
            # UNUSED entries only fill the embedding up to its padded size.
            vocab={token: i for i, token in enumerate(tokens) if kinds[i] != gguf.TokenType.UNUSED},
            merges=[tuple(merge.split(" ", 1)) for merge in merges],
            # Llama 3 looks a whole word up before it merges, since its merges cannot build every token.
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
    # EOT is the end of a turn where that differs from the end of a text.
    ends = (value("tokenizer.ggml.eos_token_id", int), value("tokenizer.ggml.eot_token_id", int))
    return HubTokenizer(
        backend,
        stop_ids=[id for id in ends if id is not None],
        pad_id=value("tokenizer.ggml.padding_token_id", int),
        bos_token="" if bos is None else tokens[bos],
        chat_template=value("tokenizer.chat_template", str),
    )
