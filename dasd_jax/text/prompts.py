"""Student and teacher prompts, as messages and as token ids.

Both prompts end with the same text (the answer-format instruction and the template's start of the assistant turn); only
the teacher's contains the privileged context, between the problem and the instruction.
"""

import datetime
import itertools
from collections.abc import Sequence

import numpy as np

from dasd_jax.errors import UserError
from dasd_jax.text import controls, slots, templates
from dasd_jax.text.tokenizer import THOUGHTS, Tokenizer
from dasd_jax.text.turns import Message
from dasd_jax.text.turns import read as read_turns
from dasd_jax.text.wordings import DASD, Wording

_ANSWERS = {"boxed": "\\boxed{%s}", "answer_line": "Answer: %s"}

# Default teacher contexts, for methods that do not choose one; data/contexts.py defines how each is made.
PRIVILEGED = ("answer", "solution", "hint", "sibling")

CONTEXTS = (
    *PRIVILEGED,
    "sibling_or_solution",
    "partial_solution",
    "wrong_siblings",
    "skills",
    "none",
    "other_problem",
    "without_problem",
)


def student_messages(
    question: str, *, instruction: str, system: str = "", shots: Sequence[tuple[str, str]] = ()
) -> list[Message]:
    """The messages of the student prompt.

    Args:
      question: the problem; it may be the JSON text of a conversation (text/turns.py).
      instruction: how the answer is asked for, a text with the slot {question} or without; may be empty.
      system: the system turn, unless the problem has its own; "": none, and the template applies its default.
      shots: pairs (question, answer text), rendered as earlier turns with the same instruction.

    Returns:
      Messages that end with a user turn: system, shots, the turns of the problem.
    """
    turns = read_turns(question)
    messages = [{"role": "system", "content": system}] if system else []
    if turns[0]["role"] == "system":
        messages = [turns.pop(0)]
    for shot_question, answer_text in shots:
        shot = [turn for turn in read_turns(shot_question) if turn["role"] != "system"]
        messages += [*_asked(shot, instruction), {"role": "assistant", "content": answer_text}]
    return messages + _asked(turns, instruction)


def teacher_messages(
    question: str,
    *,
    instruction: str,
    context_kind: str,
    context: str,
    system: str = "",
    shots: Sequence[tuple[str, str]] = (),
    wording: Wording = DASD,
    with_question: bool = True,
) -> list[Message]:
    """The messages of the student prompt with privileged context in the last turn.

    Args:
      question, instruction, system, shots: as in `student_messages`.
      context_kind: a kind that the wording has a text for.
      context: the privileged text. A blank one gives exactly the student's messages, so that the gap is 0.
      wording: the text around the context.
      with_question: False omits the question, all turns of it, for a teacher that sees only the context.

    Raises:
      ValueError: an unknown `context_kind`.
    """
    if context_kind not in wording.contexts:
        raise ValueError(f"context_kind {context_kind!r}: expected one of {', '.join(wording.contexts)}")
    told = question if with_question or not context.strip() else ""
    messages = student_messages(told, instruction=instruction, system=system, shots=shots)
    if context.strip():
        text = wording.contexts[context_kind]
        asked = read_turns(told)[-1]["content"]
        values = {"question": asked, "context": context.strip(), context_kind: context.strip()}
        before = "" if "question" in slots.names(text) else asked
        messages[-1] = _user(instruction, before, slots.fill(text, values), wording.transitions[context_kind])
    return messages


def partial_solution(beginning: str, answer: str) -> str:
    """The text of context kind partial_solution: the beginning of a solution, verbatim, and its answer."""
    return f"{beginning}\n\nFinal answer: {answer}"


def skill_and_mistake(skill: str, mistake: str) -> str:
    """The text of context kind skills: one of each, verbatim."""
    return f"What helps:\n{skill}\n\nWhat goes wrong:\n{mistake}"


def format_answer(answer: str, style: str) -> str:
    """The assistant's text for `answer`, in a box or in a line of its own; for shots and SFT targets.

    Raises:
      ValueError: an unknown `style`.
    """
    if style not in _ANSWERS:
        raise ValueError(f"style {style!r}: expected one of {', '.join(_ANSWERS)}")
    return _ANSWERS[style] % answer


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    enable_thinking: bool | None = None,
    now: datetime.datetime | None = None,
) -> str:
    """Renders `messages` with the tokenizer's chat template, up to the start of the assistant turn.

    Args:
      enable_thinking: passed to the template unless None; a template without thinking modes ignores it.
      now: what a template is told that asks for the date; None: the present.

    Raises:
      UserError: the template is damaged, rejects the messages, or uses something that the sandbox forbids.
    """
    try:
        return templates.render_turns(
            tokenizer, messages, add_generation_prompt=True, enable_thinking=enable_thinking, now=now
        )
    except templates.TemplateError as error:
        raise UserError(
            f"model.tokenizer: its chat template failed ({error}); expected one that renders user and assistant turns"
        ) from error


def encode_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    enable_thinking: bool | None = None,
    now: datetime.datetime | None = None,
) -> list[int]:
    """Token ids of `render_chat`: control tokens come from the template alone, none is added.

    A control string in a message's content is marked while the template is rendered, so that it is known in the text,
    and encoded as plain text. The ids are those of encoding the text as it stands where no content has one.

    Args:
      tokenizer, messages, enable_thinking, now: as in `render_chat`.

    Raises:
      UserError: as `render_chat`, and `Tokenizer.encode`.
    """
    control, words = controls.pattern(tokenizer.control), {"enable_thinking": enable_thinking, "now": now}
    contents = [message["content"] for message in messages]
    if not any(map(control.search, contents)):
        return tokenizer.encode(render_chat(tokenizer, messages, **words))
    mark = _unused_character([*contents, tokenizer.chat_template])
    marked = [
        {**message, "content": control.sub(lambda match: match[0][0] + mark + match[0][1:], content)}
        for message, content in zip(messages, contents, strict=True)
    ]
    parts = render_chat(tokenizer, marked, **words).split(mark)
    first_characters = {end - 1 for end in itertools.accumulate(map(len, parts[:-1]))}
    return tokenizer.encode("".join(parts), plain=first_characters)


def encode_response(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text that an assistant could have written, with its stop token; control strings are plain text."""
    return [*tokenizer.encode(text, plain=range(len(text))), tokenizer.stop_ids[0]]


def opened_thoughts(tokenizer: Tokenizer, prompt: Sequence[int]) -> str:
    """The "<think>" that a prompt ends in, as with some chat templates, with white space after it; "" without one."""
    text = tokenizer.decode(prompt[-16:])
    begin = len(text.rstrip()) - len(THOUGHTS[0])
    return text[begin:] if text.startswith(THOUGHTS[0], begin) else ""


def encode_target(tokenizer: Tokenizer, text: str, prompt: Sequence[int]) -> list[int]:
    """`encode_response` of a response behind a prompt: the "<think>" of both stands once.

    Raises:
      UserError: the prompt opens thoughts that the text does not end, so that its answer would be learnt as a thought.
    """
    begin, end = THOUGHTS
    if opened := opened_thoughts(tokenizer, prompt):
        if end not in text:
            raise UserError(
                f"data.sources: the reference response {text!r:.80} has no {end}: expected thoughts, {end} and the "
                f"answer in each, since the prompt of this chat template ends in {begin} (data.thinking=off may keep "
                "it from that)"
            )
        if text.lstrip().startswith(begin):
            text = text.lstrip().removeprefix(begin).removeprefix(opened.removeprefix(begin))
    return encode_response(tokenizer, text)


def _unused_character(texts: Sequence[str]) -> str:
    """A character that none of the texts contains; one for private use if possible."""
    used = set().union(*texts)
    return next(char for char in map(chr, range(0xE000, 0x110000)) if char not in used)


def left_pad(sequences: Sequence[Sequence[int]], width: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Left-pads B prompts to one array.

    Returns:
      (i32[B, width], bool[B, width]): ids right-aligned, and True for real tokens.

    Raises:
      ValueError: a sequence longer than `width`. Prompts are never truncated: the pipeline drops such problems.
    """
    return _pad(sequences, width, pad_id, left=True)


def right_pad(sequences: Sequence[Sequence[int]], width: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-pads B responses to one array; as `left_pad`, with ids left-aligned."""
    return _pad(sequences, width, pad_id, left=False)


def _pad(sequences, width, pad_id, *, left):
    tokens = np.full((len(sequences), width), pad_id, np.int32)
    mask = np.zeros((len(sequences), width), np.bool_)
    for row, sequence in enumerate(sequences):
        if len(sequence) > width:
            raise ValueError(f"sequence {row} has {len(sequence)} tokens, more than the width {width}")
        start = width - len(sequence) if left else 0
        tokens[row, start : start + len(sequence)] = sequence
        mask[row, start : start + len(sequence)] = True
    return tokens, mask


def _asked(turns: Sequence[Message], instruction: str) -> list[Message]:
    """The turns with the instruction in the last one."""
    return [*turns[:-1], _user(instruction, turns[-1]["content"])]


def _user(instruction: str, *parts: str) -> Message:
    """A user's turn: the parts that are not empty, inside the instruction or before it."""
    rest = "\n\n".join(part for part in parts if part)
    text = slots.fill(instruction, {"question": rest})
    if "question" in slots.names(instruction):
        return {"role": "user", "content": text}
    return {"role": "user", "content": "\n\n".join(part for part in (rest, text) if part)}
