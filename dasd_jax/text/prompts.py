"""Student and teacher prompts, as messages and as token ids.

Both prompts end with the same text (the answer-format instruction and the template's start of the assistant turn); only
the teacher's contains the privileged context, between the problem and the instruction.
"""

import datetime
import itertools
from collections.abc import Sequence

import numpy as np

from dasd_jax.errors import UserError
from dasd_jax.text import controls, templates
from dasd_jax.text.tokenizer import Tokenizer

Message = dict[str, str]  # {"role": "user" | "assistant", "content": text}

INSTRUCTIONS = {
    # Verbatim from the Qwen model cards for mathematics: reasoning models have seen it in training.
    "boxed": "Please reason step by step, and put your final answer within \\boxed{}.",
    # A model too small to reason step by step loses its answer on the way, so it is asked for the answer line only.
    "answer_line": "Reply with a single line 'Answer: X', where X is the final answer.",
}

_ANSWERS = {"boxed": "\\boxed{%s}", "answer_line": "Answer: %s"}

# Default teacher contexts, for methods that do not choose one; data/contexts.py defines how each is made.
PRIVILEGED = ("answer", "solution", "hint", "sibling")

CONTEXTS = (
    *PRIVILEGED,
    "sibling_or_solution",
    "partial_solution",
    "wrong_siblings",
    "none",
    "other_problem",
    "without_problem",
)

# The teacher scores tokens of a student that has not seen the context. Without this instruction it expects a reply that
# quotes the context and assigns low probability to an independent solution.
_USE = "Use it to reach the right answer in your own steps, and do not mention that you were given it."
_AVOID = "Avoid its mistake, reach the right answer in your own steps, and do not mention that you were given it."

# The text before and after each kind of context.
_CONTEXT_TEMPLATES = {
    "answer": ("The correct answer to this problem is: {}", _USE),
    "solution": ("Here is a correct solution to this problem:\n{}", _USE),
    "hint": ("Here is a hint for this problem:\n{}", _USE),
    # A response of the same policy that the verifier accepted: its answer is correct, its reasoning may not be.
    "sibling": ("Here is an attempt at this problem that reached the correct answer:\n{}", _USE),
    "partial_solution": (
        "Here is the beginning of a correct solution to this problem, and its final answer:\n{}",
        _USE,
    ),
    "wrong_siblings": ("Here is an attempt at this problem that reached a wrong answer:\n{}", _AVOID),
}


def student_messages(question: str, *, instruction: str, shots: Sequence[tuple[str, str]] = ()) -> list[Message]:
    """The messages of the student prompt.

    Args:
      question: the problem.
      instruction: the answer format, one of `INSTRUCTIONS` or a user's own text; may be empty.
      shots: pairs (question, answer text), rendered as earlier turns with the same instruction.

    Returns:
      Messages that end with a user turn. No system message is added: the template applies its default.
    """
    messages = []
    for shot_question, answer_text in shots:
        messages += [_user(shot_question, instruction), {"role": "assistant", "content": answer_text}]
    return [*messages, _user(question, instruction)]


def teacher_messages(
    question: str,
    *,
    instruction: str,
    context_kind: str,
    context: str,
    shots: Sequence[tuple[str, str]] = (),
    with_question: bool = True,
) -> list[Message]:
    """The messages of the student prompt with privileged context in the last turn.

    Args:
      question, instruction, shots: as in `student_messages`.
      context_kind: answer, solution, hint, sibling, partial_solution or wrong_siblings; selects the text around the
        context.
      context: the privileged text. A blank one gives exactly the student's messages, so that the gap is 0.
      with_question: False omits the question from the last turn, for a teacher that sees only the context.

    Raises:
      ValueError: an unknown `context_kind`.
    """
    if context_kind not in _CONTEXT_TEMPLATES:
        raise ValueError(f"context_kind {context_kind!r}: expected one of {', '.join(_CONTEXT_TEMPLATES)}")
    messages = student_messages(question, instruction=instruction, shots=shots)
    if context.strip():
        before, after = _CONTEXT_TEMPLATES[context_kind]
        privileged = f"{before.format(context.strip())}\n\n{after}"
        messages[-1] = _user(question if with_question else "", privileged, instruction)
    return messages


def partial_solution(beginning: str, answer: str) -> str:
    """The text of context kind partial_solution: the beginning of a solution, verbatim, and its answer."""
    return f"{beginning}\n\nFinal answer: {answer}"


def format_answer(answer: str, style: str) -> str:
    """The assistant's text for `answer` in the format that `INSTRUCTIONS[style]` asks for; for shots and SFT targets.

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


def _user(*parts: str) -> Message:
    return {"role": "user", "content": "\n\n".join(part for part in parts if part)}
