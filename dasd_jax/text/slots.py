r"""Slots in a text: `{name}`, with a name of lower-case letters and underscores, filled in one pass.

What is put in is never searched for slots. `{{name}}` stands for the name in braces, and `{{{name}}}` for a slot in
braces. All other braces, as in `\boxed{}`, `x^{2}` and `\{A, b\}`, are text.
"""

import re
from collections.abc import Collection, Mapping

from dasd_jax.errors import UserError

_SLOT = re.compile(r"\{\{\{(?P<in_braces>[a-z_]+)\}\}\}|\{\{(?P<word>[a-z_]+)\}\}|\{(?P<slot>[a-z_]+)\}")


def names(text: str) -> set[str]:
    """The names of the slots in a text."""
    return {name for match in _SLOT.finditer(text) if (name := match["slot"] or match["in_braces"])}


def fill(text: str, values: Mapping[str, str]) -> str:
    """The text with its slots filled.

    Raises:
        KeyError: a slot without a value.
    """

    def put(match: re.Match) -> str:
        if match["slot"]:
            return values[match["slot"]]
        return "{" + (match["word"] or values[match["in_braces"]]) + "}"

    return _SLOT.sub(put, text)


def check(field: str, text: str, known: Collection[str]) -> None:
    """Refuses a slot that does not exist.

    Args:
        field: GROUP.FIELD, for the message.
        known: the names that the text may have.

    Raises:
        UserError: naming the slot, and those that exist.
    """
    for name in sorted(names(text).difference(known)):
        exist = ", ".join(f"{{{slot}}}" for slot in known) or "none"
        raise UserError(
            f"{field}: {text[:80]!r}: {{{name}}} is no slot: expected those that exist here ({exist}), and "
            f"{{{{{name}}}}} for the word in braces"
        )
