"""Control strings in text: the spellings of control tokens, which only a chat template may turn into tokens.

A problem, an answer or a response may quote them. Whoever encodes such a text says at which positions it is plain.
"""

import functools
import json
import re
import secrets
from collections.abc import Collection, Iterator, Mapping

import tokenizers

from dasd_jax.errors import UserError


@functools.lru_cache(maxsize=16)
def pattern(control: frozenset[str]) -> re.Pattern:
    """Finds control strings; of several that begin at one place the longest."""
    return re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))) or "(?!)")


def split(text: str, control: frozenset[str], plain: Collection[int] = ()) -> Iterator[tuple[str, bool]]:
    """The parts of `text` in order, none of them empty: control strings, with True, and what lies between, with False.

    A control string over one of the positions `plain` is not cut out.
    """
    end = 0
    for match in pattern(control).finditer(text):
        if any(place in plain for place in range(*match.span())):
            continue
        if end < match.start():
            yield text[end : match.start()], False
        yield match[0], True
        end = match.end()
    if end < len(text):
        yield text[end:], False


def secret_names(control: Collection[str]) -> dict[str, str]:
    """For each control string a name that no text contains."""
    secret = secrets.token_hex(16)
    return {text: f"\ue000{secret}-{number}\ue000" for number, text in enumerate(sorted(control))}


def renamed(text: str, names: Mapping[str, str], plain: Collection[int]) -> str:
    """The text with names in the place of the control strings that are not plain."""
    parts = split(text, frozenset(names), plain)
    return "".join(names[part] if is_control else part for part, is_control in parts)


class Guarded:
    """A `tokenizers` pipeline in which every control token is found under a name that no text contains.

    The whole text passes through it in one piece, so that whatever it does at its beginning, around its control tokens
    and to plain text it does as before.
    """

    def __init__(self, backend: tokenizers.Tokenizer, control: frozenset[str]):
        """Reads the pipeline's own description again with the other names."""
        self._names = secret_names(control)
        pipeline = json.loads(backend.to_str())
        texts = [token["content"] for token in pipeline["added_tokens"]]
        for token in pipeline["added_tokens"]:
            token["content"] = self._names.get(token["content"], token["content"])
        self._backend = tokenizers.Tokenizer.from_str(json.dumps(pipeline))
        # An added token that has no place in the model's vocabulary under its new name is given another id.
        self._ids = {
            self._backend.token_to_id(self._names.get(text, text)): backend.token_to_id(text) for text in texts
        }
        # None is the id of those that are not in the vocabulary; that of unknown text is written for any such text.
        model = pipeline["model"]
        unknown = {None, model.get("unk_id"), self._backend.token_to_id(model.get("unk_token") or "")}
        in_vocabulary = {self._backend.token_to_id(text): text for text in control}
        self._written = {id: text for id, text in in_vocabulary.items() if id not in unknown}

    def encode(self, text: str, plain: Collection[int]) -> list[int]:
        """As `Tokenizer.encode`."""
        ids = self._backend.encode(renamed(text, self._names, plain), add_special_tokens=False).ids
        if written := self._written.keys() & ids:
            raise UserError(
                f"model.tokenizer: it makes a control token of {self._written[min(written)]!r} even as plain text, and "
                "a problem contains that: expected a tokenizer of kind BPE, or other problems"
            )
        return [self._ids.get(id, id) for id in ids]
