"""The words around a problem and around a teacher's context: shipped ones by name, a user's own as a text or a file.

The slots of a wording (text/slots.py):

    {question}   the problem. In an instruction, the rest of the turn: the question, and the teacher's context. Without
                 it the instruction ends the turn.
    {context}    what the teacher is shown, of any kind; {answer}, {solution}, … the same, of that kind alone
"""

import dataclasses
import hashlib
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from dasd_jax.errors import UserError
from dasd_jax.fields import Range
from dasd_jax.text import slots

INSTRUCTIONS = {
    # Verbatim from the Qwen model cards for mathematics: reasoning models have seen it in training.
    "boxed": "Please reason step by step, and put your final answer within \\boxed{}.",
    # A model too small to reason step by step loses its answer on the way, so it is asked for the answer line only.
    "answer_line": "Reply with a single line 'Answer: X', where X is the final answer.",
    # The student's turn of arXiv 2601.18734.
    "opsd": "Problem: {question}\n\nPlease reason step by step, and put your final answer within \\boxed{}.",
}

# The kinds of context that a teacher is shown; data/contexts.py defines how each is made.
KINDS = ("answer", "solution", "hint", "sibling", "partial_solution", "wrong_siblings", "skills")


@dataclasses.dataclass(frozen=True)
class Wording:
    """How a context is put before the teacher.

    Attributes:
        contexts: kind → text with a slot for the context; with {question} if the problem is to stand elsewhere than
            before this text.
        transitions: kind → the sentence between context and instruction, without slots; may be empty.
    """

    contexts: Mapping[str, str]
    transitions: Mapping[str, str]


# The teacher scores tokens of a student that has not seen the context. Without this instruction it expects a reply that
# quotes the context and assigns low probability to an independent solution.
_USE = "Use it to reach the right answer in your own steps, and do not mention that you were given it."
_APPLY = "Use what applies here, reach the right answer in your own steps, and do not mention that you were given it."
_AVOID = "Avoid its mistake, reach the right answer in your own steps, and do not mention that you were given it."

DASD = Wording(
    {
        "answer": "The correct answer to this problem is: {context}",
        "solution": "Here is a correct solution to this problem:\n{context}",
        "hint": "Here is a hint for this problem:\n{context}",
        # A response of the same policy that the verifier accepted: its answer is correct, its reasoning may not be.
        "sibling": "Here is an attempt at this problem that reached the correct answer:\n{context}",
        "partial_solution": (
            "Here is the beginning of a correct solution to this problem, and its final answer:\n{context}"
        ),
        "wrong_siblings": "Here is an attempt at this problem that reached a wrong answer:\n{context}",
        # Retrieved by likeness: it may have nothing to do with the problem.
        "skills": "Here is what other problems have taught; it may not apply to this one:\n{context}",
    },
    {**dict.fromkeys(KINDS, _USE), "wrong_siblings": _AVOID, "skills": _APPLY},
)


def _of_solutions(context: str, transition: str) -> Wording:
    """A published wording of solutions for every kind: with other nouns, and where none fits our own words."""
    nouns = {"answer": "answer", "hint": "hint", "partial_solution": "partial solution"}

    def of_kinds(text: str, own: Mapping[str, str]) -> dict[str, str]:
        with_nouns = {}
        for kind in KINDS:
            noun = nouns.get(kind, "solution")
            with_nouns[kind] = text.replace("solution", noun).replace("Solution", noun.capitalize())
        return with_nouns | {kind: own[kind] for kind in ("wrong_siblings", "skills")}

    return Wording(of_kinds(context, DASD.contexts), of_kinds(transition, DASD.transitions))


DEFAULT = "dasd"
WORDINGS = {
    DEFAULT: DASD,
    # arXiv 2601.18734: for solutions verbatim, line breaks included.
    "opsd": _of_solutions(
        "Here is a reference solution to this problem:\n"
        "=== Reference Solution Begin ===\n{context}\n=== Reference Solution End ===\n",
        "After reading the reference solution above, make sure you truly understand the reasoning behind each step — "
        "do not copy or paraphrase it. Now, using your own words and independent reasoning, derive the same final "
        "answer to the problem above. Think step by step, explore different approaches, and don't be afraid to "
        "backtrack or reconsider if something doesn't work out:",
    ),
    # arXiv 2601.20802: its sentences for a sibling, reconstructed to end in our instruction.
    "sdpo": _of_solutions("Correct solution:\n\n{context}", "Correctly solve the original question."),
    # arXiv 2604.03128: its sentences without those about tags, reconstructed to end in our instruction.
    "rlsd": _of_solutions(
        "Here is a reference solution:\n{context}",
        "After understanding the reference solution, please try to solve this problem using your own approach below.",
    ),
}


@dataclasses.dataclass(frozen=True)
class _Field:
    """What a field of the group `data` may hold.

    Attributes:
        names: of shipped wordings.
        slots: that a text may have.
        empty: whether it may hold nothing.
    """

    names: tuple[str, ...] = ()
    slots: tuple[str, ...] = ()
    empty: bool = False


FIELDS = {
    "instruction": _Field(tuple(INSTRUCTIONS), ("question",), empty=True),
    "system": _Field(empty=True),
    "privileged_wording": _Field(tuple(WORDINGS), ("context", *KINDS, "question")),
    "transition": _Field(("default", "none", *WORDINGS)),
}


def allowed(field: str) -> Range:
    """The values of a field. A word alone is refused where there are names: it would be one that is misspelt."""
    names, empty = FIELDS[field].names, FIELDS[field].empty

    def fits(value: str) -> bool:
        if not value or value.startswith("@"):
            return len(value) > 1 or (not value and empty)
        return value in names or not names or len(value.split()) > 1 or "{" in value

    choices = [*names, "a text of several words" if names else "a text", "@FILE", *["nothing"] * empty]
    return Range(fits, f"{', '.join(choices[:-1])} or {choices[-1]}")


@dataclasses.dataclass(frozen=True)
class Words:
    """The texts of a configuration.

    Attributes:
        instruction: how the answer is asked for, with the slot {question} or without.
        system: the text of the system turn; "" for none.
        wording: of the teacher's context.
    """

    instruction: str
    system: str
    wording: Wording

    @property
    def answer_style(self) -> str:
        """How an answer is written after this instruction: a style of `prompts.format_answer`."""
        return "boxed" if "\\boxed" in self.instruction else "answer_line"


def read(instruction: str, system: str, privileged_wording: str, transition: str) -> Words:
    """The texts that four fields of the group `data` name or hold.

    Raises:
        UserError: a file that cannot be read or is not the recorded one, an unknown slot, or no slot for the context.
    """
    wording = WORDINGS.get(privileged_wording)
    if wording is None:
        wording = Wording(_by_kind(_text("privileged_wording", privileged_wording)), DASD.transitions)
    if transition in WORDINGS:
        wording = Wording(wording.contexts, WORDINGS[transition].transitions)
    elif transition != "default":
        text = "" if transition == "none" else slots.fill(_text("transition", transition), {})
        wording = Wording(wording.contexts, dict.fromkeys(KINDS, text))
    return Words(
        instruction=INSTRUCTIONS.get(instruction) or _text("instruction", instruction),
        system=slots.fill(_text("system", system), {}),
        wording=wording,
    )


def _by_kind(text: str) -> dict[str, str]:
    """The kinds of context that a text has the slot of; all of them for {context}."""
    found = slots.names(text) - {"question"}
    if len(found) != 1:
        many = "several kinds of context" if found else "no slot for the context"
        raise UserError(
            f"data.privileged_wording: {text[:80]!r}: {many}: expected {{context}}, or one of "
            f"{', '.join(f'{{{kind}}}' for kind in KINDS)} for that kind alone"
        )
    return {kind: text for kind in KINDS if found <= {"context", kind}}


# ------------------------------------------------------------------------------------------------ files

_MAX_BYTES = 2**20
_FILE = re.compile(r"@(?P<path>.+?)(?:#sha256=(?P<sha256>[0-9a-f]{64}))?")


def pinned(field: str, value: str) -> str:
    """A field's value as config.json records it: with the sha256 of its file, @FILE#sha256=…, if it names one.

    Raises:
        UserError: as `read`.
    """
    if not value.startswith("@"):
        return value
    path, _, content = _file(field, value)
    return f"@{path}#sha256={hashlib.sha256(content).hexdigest()}"


def _text(field: str, value: str) -> str:
    """The text of a field's value that is no name: itself, or that of its file without white space at the ends."""
    text = value
    if value.startswith("@"):
        path, name, content = _file(field, value)
        try:
            text = content.decode("utf-8-sig").replace("\r\n", "\n").strip()
        except ValueError as error:
            raise UserError(f"{name}: @{path}: expected text in UTF-8") from error
        if not text:
            raise UserError(f"{name}: @{path}: empty: expected a text")
        control = sorted({char for char in text if unicodedata.category(char) == "Cc"} - {"\n", "\t"})
        if control:
            raise UserError(f"{name}: @{path}: it holds {control[0]!r}: expected a text without control characters")
    slots.check(f"data.{field}", text, FIELDS[field].slots)
    return text


def _file(field: str, value: str) -> tuple[str, str, bytes]:
    """(path, GROUP.FIELD, content) of the file that a value names."""
    name = f"data.{field}"
    path, recorded = _FILE.fullmatch(value).group("path", "sha256")
    file = Path(path).expanduser()
    try:
        found = file.is_file()
        content = file.read_bytes() if found and file.stat().st_size <= _MAX_BYTES else None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{name}: @{path}: cannot be read ({reason}): expected a text file") from error
    if content is None:
        why = "too large" if found else "no such file"
        raise UserError(f"{name}: @{path}: {why}: expected a text file of at most {_MAX_BYTES:,} bytes")
    if recorded and recorded != hashlib.sha256(content).hexdigest():
        raise UserError(f"{name}: @{path}: its text has changed since it was recorded: expected the file as it was")
    return path, name, content
