"""Tokenizers behind one protocol: UTF-8 bytes, `tokenizers` pipelines and SentencePiece models.

None of them adds BOS or EOS by itself: chat templates write control tokens as text, and `encode` turns that text into
their ids. Where a control string is part of a problem or an answer, `encode` has to be told (`plain`).
"""

import functools
import itertools
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import sentencepiece
import tokenizers

from dasd_jax.text import controls, templates
from dasd_jax.text.declared import Declared, SpecialIds
from dasd_jax.text.shown import shown

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# For tokenizers without a template (.model files, base models). Roles are plain words, since such vocabularies have no
# turn markers; only the assistant's turn ends in EOS, which the model has to learn to write.
PLAIN_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token + '\n' }}"
    "{% else %}{{ message['role'] | capitalize + ': ' + message['content'] + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


# What begins and ends thoughts is content of a response, whether or not its files call it special: it tells whether the
# response has come to its answer.
THOUGHTS = ("<think>", "</think>")

# Shows which added tokens a template sets around turns.
_TURNS = [{"role": role, "content": "1"} for role in ("user", "assistant", "user")]


class Tokenizer(Protocol):
    """Text to ids and back.

    Attributes:
      vocab_size: 1 + the largest id that `encode` can return; a model's V may be padded to more.
      pad_id: the id that pads prompts and responses; it may be a stop id, so only masks tell what is padding.
      stop_ids: the ids that end a response; at least one.
      special_ids: what its files declare; `pad_id` is a stop id where they declare no padding.
      model_vocab: V of the model that it comes with, if its files say so.
      chat_template: Jinja source.
      bos_token, eos_token: their text for the chat template, "" if there is none. It may have more attributes of
        `templates.NAMED_TOKENS`.
      control: the texts of control tokens, which only templates may write: special tokens, stop tokens, and other added
        tokens that the template sets before and after turns; not those of `THOUGHTS`.
    """

    vocab_size: int
    pad_id: int
    stop_ids: tuple[int, ...]
    special_ids: SpecialIds
    model_vocab: int | None
    chat_template: str
    bos_token: str
    eos_token: str
    control: frozenset[str]

    def encode(self, text: str, plain: Collection[int] = ()) -> list[int]:
        """Ids of `text`; special tokens in the text are recognised, none is added.

        Args:
          plain: positions in the text; a control string over one of them is encoded as the characters that it is made
            of, together with the text around it.

        Raises:
          UserError: the vocabulary has a control token that plain text is encoded as.
        """

    def lacks(self, character: str) -> bool:
        """Whether the character is lost in `encode`: it becomes no token, or the one for what is unknown."""

    def rules(self) -> str | bytes:
        """All that `encode` goes by, in the form of its kind: equal for tokenizers that were read from equal files."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without ids outside the vocabulary, and without special tokens but for those of `THOUGHTS`.

        A stop token at the end is left out even where it is not special.
        """

    def piece(self, id: int) -> str:
        """Readable text of one token, special or not, for logs."""


class ByteTokenizer:
    """UTF-8 bytes and three ChatML markers, for tests and smoke runs; needs no file."""

    _specials = {"<|pad|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}

    vocab_size = 259
    pad_id = 256
    stop_ids = (258,)
    special_ids = SpecialIds(stop_ids, None, pad_id)
    model_vocab = None
    chat_template = CHATML_TEMPLATE
    bos_token = ""
    eos_token = "<|im_end|>"
    control = frozenset(_specials)

    def encode(self, text: str, plain: Collection[int] = ()) -> list[int]:
        ids = []
        for part, is_control in controls.split(text, self.control, plain):
            ids += [self._specials[part]] if is_control else part.encode()
        return ids

    def lacks(self, character: str) -> bool:
        return False

    def rules(self) -> str:
        return ""

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(id for id in ids if id < 256).decode(errors="replace")

    def piece(self, id: int) -> str:
        if id < 128:
            return chr(id)
        return next((text for text, special in self._specials.items() if special == id), f"<0x{id:02X}>")


class HubTokenizer:
    """A `tokenizers` pipeline with what its accompanying files declare; see `Tokenizer`.

    Raises:
      ValueError: no stop id, or one outside the vocabulary.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_ids: SpecialIds,
        *,
        model_vocab: int | None = None,
        bos_token: str = "",
        chat_template: str | None = None,
        other_tokens: Mapping[str, str] | None = None,
    ):
        """Keeps what the files declare.

        Args:
          other_tokens: by name in `templates.NAMED_TOKENS`, what chat templates may use beside bos and eos.
        """
        # A tokenizer.json may contain the truncation and padding settings of whoever saved it.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values())
        self.special_ids, self.stop_ids, self.model_vocab = special_ids, special_ids.eos, model_vocab
        if not self.stop_ids:
            raise ValueError("it declares no eos token, so no response could end")
        # A model may write ids that its tokenizer does not have.
        if max(self.stop_ids) >= (size := max(self.vocab_size, model_vocab or 0)):
            raise ValueError(f"eos ids {self.stop_ids} exceed its vocabulary of {size}")
        self.pad_id = self.stop_ids[0] if special_ids.pad is None else special_ids.pad
        self.bos_token = bos_token
        self.eos_token = backend.id_to_token(self.stop_ids[0])
        self.chat_template = chat_template or PLAIN_TEMPLATE
        vars(self).update(other_tokens or {})

    @functools.cached_property
    def control(self) -> frozenset[str]:
        special, others = [], []
        for token in self._backend.get_added_tokens_decoder().values():
            (special if token.special else others).append(token.content)
        return _control_of(self, special, others)

    def encode(self, text: str, plain: Collection[int] = ()) -> list[int]:
        if not plain or not controls.pattern(self.control).search(text):
            return self._backend.encode(text, add_special_tokens=False).ids
        return self._guarded.encode(text, plain)

    @functools.cached_property
    def _guarded(self) -> controls.Guarded:
        return controls.Guarded(self._backend, self.control)

    def lacks(self, character: str) -> bool:
        ids = self._backend.encode(character, add_special_tokens=False).ids
        return not ids or self._unknown_id in ids

    def rules(self) -> str:
        return self._backend.to_str()

    @functools.cached_property
    def _unknown_id(self) -> int | None:
        model = self._backend.model
        if isinstance(model, tokenizers.models.Unigram):  # the one kind whose object does not tell it
            return json.loads(self._backend.to_str())["model"]["unk_id"]
        return self._backend.token_to_id(model.unk_token) if model.unk_token else None

    def decode(self, ids: Sequence[int]) -> str:
        ids, special = _without_end(ids, self.stop_ids), self._special
        if not special.keys() & set(THOUGHTS):
            return self._backend.decode(ids, skip_special_tokens=True)  # quicker, for the millions of a rollout
        left_out = {id for text, id in special.items() if text not in THOUGHTS}
        return self._backend.decode([id for id in ids if id not in left_out], skip_special_tokens=False)

    @functools.cached_property
    def _special(self) -> dict[str, int]:
        """The texts and ids of special tokens."""
        added = self._backend.get_added_tokens_decoder().items()
        return {token.content: id for id, token in added if token.special}

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json for `load_tokenizer` and transformers."""
        self._backend.save(str(folder / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.bos_token or None,
            "eos_token": self.eos_token,
            "pad_token": self._backend.id_to_token(self.pad_id),
            "chat_template": self.chat_template,
            "clean_up_tokenization_spaces": False,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False))

    def piece(self, id: int) -> str:
        text = self._backend.decode([id], skip_special_tokens=False)
        # Part of a multi-byte character has no text of its own; its spelling in the vocabulary identifies it.
        return text if text and "\ufffd" not in text else self._backend.id_to_token(id) or f"<{id}>"


class SentencePieceTokenizer:
    """A SentencePiece model whose control symbols are recognised in text; see `Tokenizer`.

    Raises:
      ValueError: not a SentencePiece model, or one without an EOS piece.
    """

    def __init__(self, model: bytes, declared: Declared, chat_template: str | None = None):
        # Imported here because protobuf refuses a second definition of these messages, and transformers brings its own.
        from sentencepiece import sentencepiece_model_pb2

        self._proto = sentencepiece_model_pb2.ModelProto.FromString(model)
        self._processors = self._open({})
        self._opening = self._processors[0]

        self.vocab_size = self._opening.vocab_size()
        bos, eos, pad = self._opening.bos_id(), self._opening.eos_id(), self._opening.pad_id()
        if eos < 0:
            raise ValueError("it has no eos piece, so no response could end")
        bos_id, pad_id = (id if id >= 0 else None for id in (bos, pad))
        self.special_ids = declared.special_ids(self.vocab_size, [eos], bos_id, pad_id)
        self.stop_ids, self.model_vocab = self.special_ids.eos, declared.vocab_size
        self.pad_id = eos if self.special_ids.pad is None else self.special_ids.pad
        self.chat_template = chat_template or PLAIN_TEMPLATE
        self.bos_token = self.piece(bos) if bos >= 0 else ""
        self.eos_token = self.piece(eos)
        self._specials = {self.piece(i): i for i in range(self.vocab_size) if self._opening.is_control(i)}

    def _open(self, names: Mapping[str, str]) -> tuple[sentencepiece.SentencePieceProcessor, ...]:
        """The model at the beginning of a text and behind a special token, its pieces under other names.

        A model with a dummy prefix (a space before the text) expects it once, not after each special token.
        """
        proto = type(self._proto)()
        proto.CopyFrom(self._proto)
        for piece in proto.pieces:
            piece.piece = names.get(piece.piece, piece.piece)
        opening = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        proto.normalizer_spec.add_dummy_prefix = False
        return opening, sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())

    @functools.cached_property
    def control(self) -> frozenset[str]:
        kind = self._proto.SentencePiece.USER_DEFINED
        others = [piece.piece for piece in self._proto.pieces if piece.type == kind]
        return _control_of(self, self._specials, others)

    @functools.cached_property
    def _guarded(self) -> tuple[dict[str, str], tuple[sentencepiece.SentencePieceProcessor, ...]]:
        """(names that no text contains for control tokens, the model that knows these among its pieces by them)."""
        names = controls.secret_names(self.control)
        return names, self._open({text: name for text, name in names.items() if text not in self._specials})

    def encode(self, text: str, plain: Collection[int] = ()) -> list[int]:
        specials, (processor, continuing) = self._specials, self._processors
        if plain:
            names, (processor, continuing) = self._guarded
            text = controls.renamed(text, names, plain)
            specials = {names.get(special, special): id for special, id in specials.items()}
        ids = []
        for part, is_special in controls.split(text, frozenset(specials)):
            if is_special:
                ids.append(specials[part])
            else:
                ids += processor.encode(part)
                processor = continuing
        return ids

    def lacks(self, character: str) -> bool:
        processor, _ = self._processors
        return processor.unk_id() in processor.encode(character)

    def rules(self) -> bytes:
        return self._proto.SerializeToString(deterministic=True)

    def decode(self, ids: Sequence[int]) -> str:
        thoughts = {self._specials[text]: text for text in THOUGHTS if text in self._specials}
        known = (id for id in _without_end(ids, self.stop_ids) if id < self.vocab_size)
        kept = (id for id in known if id in thoughts or not self._opening.is_control(id))
        parts, (processor, continuing) = [], self._processors
        for is_thought, group in itertools.groupby(kept, thoughts.__contains__):
            if is_thought:
                parts += [thoughts[id] for id in group]
            else:
                parts.append(processor.decode(list(group)))
                processor = continuing
        return "".join(parts)

    def piece(self, id: int) -> str:
        return self._opening.id_to_piece(int(id)).replace("\u2581", " ") if id < self.vocab_size else f"<{id}>"


def _without_end(ids: Iterable[int], stop_ids: Collection[int]) -> list[int]:
    """The ids without the stop token that they end in, if they do."""
    ids = list(map(int, ids))
    return ids[:-1] if ids and ids[-1] in stop_ids else ids


def _control_of(tokenizer: Tokenizer, special: Iterable[str], others: Iterable[str]) -> frozenset[str]:
    """The control strings of a tokenizer: `special`, and those of the `others` that files or its template use as such.

    Some families declare neither the markers of their turns nor what ends a text as special.
    """
    declared = {getattr(tokenizer, name, "") for name in templates.NAMED_TOKENS}
    declared |= {tokenizer.piece(id) for id in tokenizer.stop_ids}
    try:
        turns = templates.render_turns(tokenizer, _TURNS, add_generation_prompt=False)
    except templates.TemplateError:
        turns = ""
    used = (text for text in others if text in declared or (text in turns and not text.isspace()))
    return frozenset([*special, *used]).difference(THOUGHTS)


class Watched:
    """A tokenizer that notes which characters its `encode` loses, white space and control tokens aside."""

    def __init__(self, tokenizer: Tokenizer):
        """Has lost nothing yet."""
        self._tokenizer, self._lacking, self._lost = tokenizer, {}, False

    def __getattr__(self, name: str):
        """All else is the tokenizer's own."""
        return getattr(self._tokenizer, name)

    def encode(self, text: str, plain: Collection[int] = ()) -> list[int]:
        """As `Tokenizer.encode`."""
        parts = controls.split(text, self._tokenizer.control, plain)
        characters = set("".join(part for part, is_control in parts if not is_control))
        for character in characters - self._lacking.keys():
            self._lacking[character] = not character.isspace() and self._tokenizer.lacks(character)
        self._lost |= any(self._lacking[character] for character in characters)
        return self._tokenizer.encode(text, plain)

    def has_lost(self) -> bool:
        """Whether a text since the last call has lost one."""
        lost, self._lost = self._lost, False
        return lost

    @property
    def some(self) -> str:
        """Some of those that texts have lost so far."""
        lost = sorted(shown(character) for character, lacks in self._lacking.items() if lacks)
        return " ".join(lost[:12]) + (" …" if len(lost) > 12 else "")
