"""From problems to prompt batches: tokenised once, too long ones dropped and counted, read at any position.

The position of a run in its data is one integer, the number of batches drawn: batch n is the same on every host and on
any number of them, whatever came before. A host places the rows of its own devices (`mesh.put_rows`): together they
hold each example of the batch once.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from dasd_jax.batch import PromptBatch, TeacherBatch
from dasd_jax.data.sources import Problem
from dasd_jax.errors import UserError
from dasd_jax.text import prompts
from dasd_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class PromptText:
    """What stands around a problem, the same for the student and the teacher."""

    instruction: str  # name in prompts.INSTRUCTIONS
    privileged: str  # what the teacher is shown of problems that do not say it, a name in prompts.PRIVILEGED
    enable_thinking: bool | None
    shots: tuple[Problem, ...]

    def student(self, tokenizer: Tokenizer, problem: Problem) -> list[int]:
        """Token ids of the prompt that the policy answers."""
        return self._encode(tokenizer, prompts.student_messages(problem.question, **self._common()))

    def kind(self, problem: Problem) -> str:
        """What the teacher is shown of a problem."""
        return problem.privileged or self.privileged

    def teacher(self, tokenizer: Tokenizer, problem: Problem, context: str) -> list[int]:
        """Token ids of the same prompt with privileged context in it; blank context gives the student's."""
        kind = self.kind(problem)
        messages = prompts.teacher_messages(problem.question, context_kind=kind, context=context, **self._common())
        return self._encode(tokenizer, messages)

    def target(self, tokenizer: Tokenizer, problem: Problem) -> list[int]:
        """Token ids of the reference response, ended by a stop token: what supervised fine-tuning imitates."""
        answer = prompts.format_answer(problem.answer, self.instruction)
        text = f"{problem.solution}\n\n{answer}" if problem.solution else answer
        return [*tokenizer.encode(text), tokenizer.stop_ids[0]]

    def _common(self) -> dict:
        shots = [(shot.question, prompts.format_answer(shot.answer, self.instruction)) for shot in self.shots]
        return {"instruction": prompts.INSTRUCTIONS[self.instruction], "shots": shots}

    def _encode(self, tokenizer: Tokenizer, messages) -> list[int]:
        return prompts.encode_prompt(tokenizer, messages, enable_thinking=self.enable_thinking)


class PromptSet:
    """Problems whose prompts fit, tokenised and padded; `example_id` is the index of a problem in it.

    Attributes:
        problems: those that are left.
        dropped: reason → how many problems were left out.
        shows_siblings: some of the teacher's prompts hold another rollout of the same problem; see `teacher_rows`.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        tokenizer: Tokenizer,
        text: PromptText,
        *,
        student_width: int,
        teacher_width: int = 0,
        target_width: int = 0,
        field: str = "data.sources",
    ):
        """Tokenises every problem once.

        Args:
            student_width: tokens, P.
            teacher_width: tokens, Q; 0 makes no teacher prompts and asks for no privileged context.
            target_width: tokens of the reference response, R, for supervised fine-tuning; 0 makes no targets.
            field: the one that names the problems, for the message when none fits.

        Raises:
            UserError: a problem without the privileged context that was asked for, or none that fits.
        """
        kept, student, teacher, targets = [], [], [], []
        widths = {"student prompt": student_width, "teacher prompt": teacher_width, "reference response": target_width}
        self.dropped = {f"{what} longer than {width} tokens": 0 for what, width in widths.items() if width}
        self.shows_siblings = False
        for problem in problems:
            encoded = {"student prompt": text.student(tokenizer, problem)}
            if teacher_width:
                kind = text.kind(problem)
                self.shows_siblings |= kind == "sibling"
                # A sibling is not written yet: until then its place is blank.
                context = "" if kind == "sibling" else getattr(problem, kind)
                if kind != "sibling" and not context:
                    raise UserError(
                        f"data.privileged: {kind!r}: {problem.source} problem {problem.index} has none: "
                        "expected it for every problem"
                    )
                encoded["teacher prompt"] = text.teacher(tokenizer, problem, context)
            if target_width:
                encoded["reference response"] = text.target(tokenizer, problem)
            misfit = next((what for what, ids in encoded.items() if len(ids) > widths[what]), None)
            if misfit:
                self.dropped[f"{misfit} longer than {widths[misfit]} tokens"] += 1
                continue
            kept.append(problem)
            student.append(encoded["student prompt"])
            teacher.append(encoded.get("teacher prompt", []))
            targets.append(encoded.get("reference response", []))
        if not kept:
            reasons = ", ".join(f"{count} with a {reason}" for reason, count in self.dropped.items() if count)
            raise UserError(f"{field}: no problem is left of {len(problems)}: dropped {reasons}")
        self.problems: list[Problem] = kept
        self._tokenizer, self._text = tokenizer, text
        self._student_width, self._teacher_width, self._target_width = student_width, teacher_width, target_width
        # Kept at their own lengths: padded to the widths of a long-context run they would be gigabytes.
        self._student, self._teacher, self._target = (
            [np.asarray(ids, np.int32) for ids in sequences] for sequences in (student, teacher, targets)
        )

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One problem for Grain: the fields of a PromptBatch without their batch axis."""
        tokens, mask = prompts.left_pad([self._student[index]], self._student_width, self._tokenizer.pad_id)
        return {"student_prompt": tokens[0], "student_prompt_mask": mask[0], "example_id": np.int32(index)}

    def digest(self) -> str:
        """A checksum of all token ids: equal where problems, tokenizer and the text around them are."""
        arrays = (array for pair in (self._student, self._teacher, self._target) for array in pair)
        return hashlib.sha256(b"".join(hashlib.sha256(array).digest() for array in arrays)).hexdigest()

    def teacher_batch(self, example_id: np.ndarray) -> TeacherBatch:
        """The same problems with privileged context: i32[B] → TeacherBatch of NumPy arrays."""
        ids = [self._teacher[i] for i in example_id]
        return TeacherBatch(*prompts.left_pad(ids, self._teacher_width, self._tokenizer.pad_id))

    def blank_teacher_batch(self, example_id: np.ndarray) -> TeacherBatch:
        """The same problems without privileged context: the student's prompts in the teacher's width."""
        ids = [self._student[i] for i in example_id]
        return TeacherBatch(*prompts.left_pad(ids, self._teacher_width, self._tokenizer.pad_id))

    def teacher_rows(self, example_id: np.ndarray, siblings: Sequence[str]) -> tuple[TeacherBatch, float]:
        """A teacher prompt for every rollout.

        Args:
            example_id: i32[B].
            siblings: a text for each of the B*G rollouts, problem-major: what its teacher is shown where the problem
                shows siblings. Blank ones, and those that do not fit, leave the student's prompt: a gap of 0.

        Returns:
            (TeacherBatch of [B, G, Q], share of rollouts without context).
        """
        group, blank, sequences = len(siblings) // len(example_id), 0, []
        for row, sibling in enumerate(siblings):
            index = example_id[row // group]
            ids = self._teacher[index]
            if self._text.kind(self.problems[index]) == "sibling":
                shown = self._text.teacher(self._tokenizer, self.problems[index], sibling) if sibling else ids
                fits = len(shown) <= self._teacher_width
                blank += not sibling or not fits
                ids = shown if fits else ids
            sequences.append(ids)
        padded = prompts.left_pad(sequences, self._teacher_width, self._tokenizer.pad_id)
        batch = TeacherBatch(*(x.reshape(len(example_id), group, -1) for x in padded))
        return batch, blank / len(siblings)

    def target_batch(self, example_id: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reference responses, right-padded: i32[B] → (i32[B, R], bool[B, R])."""
        ids = [self._target[i] for i in example_id]
        return prompts.right_pad(ids, self._target_width, self._tokenizer.pad_id)

    def batches(self, size: int, seed: int) -> grain.MapDataset:
        """An endless random-access sequence of PromptBatch-es; each epoch in an order of its own.

        No problem stands twice in a batch; an epoch's incomplete last batch is left out.

        Raises:
            UserError: fewer problems than one batch holds.
        """
        if size > len(self):
            raise UserError(f"rollout.problems: {size}: expected at most the {len(self)} training problems that fit")
        return (
            grain.MapDataset.source(self)
            .seed(seed)
            .shuffle()
            .batch(size, drop_remainder=True)
            .map(lambda batch: PromptBatch(**batch))
            .repeat()
        )

    def in_order(self, size: int, example_ids: Sequence[int]) -> Iterator[tuple[PromptBatch, np.ndarray]]:
        """These problems in batches of `size`, the last one filled up with the first of them.

        Yields:
            PromptBatch, and bool[size] that is False where a problem fills up.
        """
        for start in range(0, len(example_ids), size):
            places = np.arange(start, start + size)
            items = [self[int(example_ids[place % len(example_ids)])] for place in places]
            batch = PromptBatch(**{name: np.stack([item[name] for item in items]) for name in items[0]})
            yield batch, places < len(example_ids)
