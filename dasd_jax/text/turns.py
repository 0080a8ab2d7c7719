"""Problems that are conversations: a question may be the JSON text of turns instead of one user's turn.

    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]

`as_question` writes that text when rows are read, and `read` gives the turns back when prompts are made; what lies
between them handles a question as one text.
"""

import json
from collections.abc import Sequence
from typing import Any

from dasd_jax.errors import UserError

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

_EXPECTED = "expected turns of role and content: at most one system turn, at the beginning, and a user turn at the end"


def listed(value: Any) -> list[dict[str, Any]] | None:
    """The turns of a value with the form of a conversation: a list of dictionaries, or the JSON text of one with roles.

    None for any other value.
    """
    if not isinstance(value, str):
        return value if isinstance(value, list) and all(isinstance(turn, dict) for turn in value) else None
    if not value.lstrip().startswith("["):
        return None
    try:
        turns = listed(json.loads(value))
    except (ValueError, RecursionError):
        return None
    return turns if turns and all("role" in turn for turn in turns) else None


def as_question(turns: Sequence[dict[str, Any]]) -> str:
    """The question that stands for a conversation.

    Raises:
        UserError: a turn of another role or without text, a system turn that is not the first, or no user turn last.
    """
    for place, turn in enumerate(turns):
        role, content = turn.get("role"), turn.get("content")
        if role not in ("system", "user", "assistant") or (role == "system" and place):
            raise UserError(f"turn {place} has the role {role!r}: {_EXPECTED}")
        if not isinstance(content, str) or any("\ud800" <= char <= "\udfff" for char in content):
            raise UserError(f"turn {place} has the content {content!r:.50}: expected valid UTF-8 text")
        if more := [name for name, value in turn.items() if name not in ("role", "content") and value is not None]:
            raise UserError(f"turn {place} has a field {more[0]!r}: {_EXPECTED}")
    if not turns or turns[-1]["role"] != "user" or not turns[-1]["content"].strip():
        raise UserError(f"the last turn is no question of a user: {_EXPECTED}")
    return json.dumps([{"role": turn["role"], "content": turn["content"]} for turn in turns], ensure_ascii=False)


def read(question: str) -> list[Message]:
    """The turns of a question: those of the conversation that it stands for, or one of a user."""
    turns = listed(question)
    if turns is not None:
        try:
            return json.loads(as_question(turns))
        except UserError:
            pass  # a problem about such texts
    return [{"role": "user", "content": question}]
