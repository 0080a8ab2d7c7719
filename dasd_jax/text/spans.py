"""Where tokens lie in the text that they are decoded to, and prompts as text."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from dasd_jax.text.tokenizer import Tokenizer

_WINDOW = 16  # tokens decoded together: what precedes a token may change how it begins
_INCOMPLETE = "\ufffd"  # what is decoded in place of a character whose bytes have not all come


def offsets(tokenizer: Tokenizer, ids: Sequence[int], text: str, start: int = 0) -> list[int]:
    """Where each token begins in the text, in code points, and where the last one ends.

    A character whose bytes are spread over several tokens belongs to the last of them; a token without text, such as a
    special one, ends where it begins.

    Args:
        ids: the tokens of a response.
        text: ends with `tokenizer.decode(ids)`.
        start: characters of the text before that.

    Returns:
        len(ids) + 1 places, ascending, the first one `start` and the last one the length of the text.
    """
    places = [start, *(start + end for end in _ends(tokenizer, ids))]
    if places[-1] != len(text):
        # Bytes that are no characters are decoded differently from another start on.
        places = [start, *(start + len(tokenizer.decode(ids[: i + 1]).rstrip(_INCOMPLETE)) for i in range(len(ids)))]
    places[-1] = len(text)
    for i in range(len(places) - 1, 0, -1):  # text that was taken back by a later token
        places[i - 1] = min(places[i - 1], places[i])
    return places


def _ends(tokenizer: Tokenizer, ids: Sequence[int]) -> Iterator[int]:
    """The length of the text up to each token, from decoding a window that moves."""
    window, before, end = 0, 0, 0  # the window's first token; the characters before it; the last end
    for i in range(len(ids)):
        piece = tokenizer.decode(ids[window : i + 1])
        if not piece.endswith(_INCOMPLETE):
            end = before + len(piece)
            if i - window >= 2 * _WINDOW:
                # Half of the window stays; where it began is found from its own text.
                window = i + 1 - _WINDOW
                before = end - len(tokenizer.decode(ids[window : i + 1]))
        yield end


def spelled(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of a prompt, its special tokens included."""
    pieces = ((tokenizer.piece(id), id) for id in map(int, ids))
    parts = []
    for is_control, group in groupby(
        pieces, lambda pair: pair[0] in tokenizer.control or pair[1] in tokenizer.stop_ids
    ):
        group = list(group)
        parts.append("".join(piece for piece, _ in group) if is_control else tokenizer.decode([id for _, id in group]))
    return "".join(parts)
