"""What the JSON files beside a tokenizer declare: special tokens and their ids, and the size of the model's vocabulary.

transformers has kept these in config.json, generation_config.json, tokenizer_config.json, special_tokens_map.json and
added_tokens.json, and each is found without the others. A text ends at every end-of-text token that any of them names.
"""

import dataclasses
import json
from pathlib import PurePath
from typing import Any

from tokenizers import AddedToken

from dasd_jax import formats


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """The ids that end, begin and pad a text; None where none is declared."""

    eos: tuple[int, ...] = ()
    bos: int | None = None
    pad: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The fields of config.json and generation_config.json."""
        eos = self.eos[0] if len(self.eos) == 1 else list(self.eos) or None
        return {"bos_token_id": self.bos, "eos_token_id": eos, "pad_token_id": self.pad}


class Declared:
    """The files of one folder; those that do not exist declare nothing."""

    def __init__(self, folder: PurePath):
        """Reads them.

        Raises:
            ValueError: one is damaged, or is not an object.
        """
        self._files = {
            name: formats.read_object(folder / name) if (folder / name).exists() else {}
            for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json")
        }
        self._added = formats.read_object(file) if (file := folder / "added_tokens.json").exists() else {}
        manifest = formats.read_object(file) if (file := folder / "manifest.json").exists() else {}
        self._architecture = manifest.get("architecture")

    @property
    def tokenizer_config(self) -> dict[str, Any]:
        """The content of tokenizer_config.json."""
        return self._files["tokenizer_config.json"]

    @property
    def generation_config(self) -> dict[str, Any]:
        """The content of generation_config.json."""
        return self._files["generation_config.json"]

    @property
    def vocab_size(self) -> int | None:
        """V of the model in the same folder, by its config.json or by the manifest of a checkpoint."""
        architecture = self._architecture if isinstance(self._architecture, dict) else self._files["config.json"]
        size = architecture.get("vocab_size")
        return size if type(size) is int else None

    def texts(self, name: str) -> dict[str, str]:
        """The text of a special token such as eos_token, by the file that declares it.

        Raises:
            ValueError: it is not text.
        """
        found = {}
        for file in ("tokenizer_config.json", "special_tokens_map.json"):
            token = self._files[file].get(name) or ""
            text = token.get("content") if isinstance(token, dict) else token
            if not isinstance(text, str):
                raise ValueError(f"the {name} of {file} is {token!r:.100}: expected text")
            if text:
                found[file] = text
        return found

    def ids(self, name: str) -> list[int]:
        """The ids of a special token such as eos_token, first those of generation_config.json.

        Raises:
            ValueError: they are not integers.
        """
        found = []
        for file in ("generation_config.json", "config.json"):
            value = self._files[file].get(f"{name}_id")
            ids = value if isinstance(value, list) else [] if value is None else [value]
            if not all(type(id) is int for id in ids):
                raise ValueError(f"the {name}_id of {file} is {value!r:.100}: expected ids")
            found += ids
        return found

    def added_tokens(self) -> dict[int, AddedToken]:
        """The tokens that were added to the vocabulary, by id, with how they are matched in text.

        Raises:
            ValueError: an entry is not a token.
        """
        found = {}
        specials = {text for name in ("bos_token", "eos_token", "pad_token") for text in self.texts(name).values()}
        try:
            for text, id in self._added.items():
                found[int(id)] = AddedToken(text, special=text in specials, normalized=False)
            for id, fields in (self.tokenizer_config.get("added_tokens_decoder") or {}).items():
                names = ("single_word", "lstrip", "rstrip", "normalized", "special")
                how = {name: fields[name] for name in names if name in fields}
                found[int(id)] = AddedToken(fields["content"], **how)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"its added tokens are damaged: {type(error).__name__}: {error}") from error
        return found

    def special_ids(self, vocab_size: int, eos: list[int], bos: int | None, pad: int | None) -> SpecialIds:
        """The ids of the files, together with those of the own tokens of a tokenizer with `vocab_size` ids.

        Ids of configuration files count before `bos` and `pad`, and after `eos`. A padding id that is none (often -1)
        stands for none.
        """

        def first(name: str, own: int | None) -> int | None:
            return next((id for id in self.ids(name) if 0 <= id < max(vocab_size, self.vocab_size or 0)), own)

        ends = tuple(dict.fromkeys([*eos, *self.ids("eos_token")]))
        return SpecialIds(ends, first("bos_token", bos), first("pad_token", pad))


def write_generation_config(folder: PurePath, base: dict[str, Any], ids: SpecialIds) -> None:
    """Writes generation_config.json: `base` with these ids, on which generation in transformers depends."""
    # It would let transformers 4 take config.json's values for these.
    content = {name: value for name, value in base.items() if name != "_from_model_config"}
    content |= {name: value for name, value in ids.as_json().items() if value is not None}
    (folder / "generation_config.json").write_text(json.dumps(content, indent=2))
