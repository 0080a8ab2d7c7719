"""From problems to prompt batches: tokenised once, overlong prompts dropped and counted, random access by position.

The data position of a run is one integer, the number of batches drawn: batch n does not depend on the host, the number
of hosts or earlier batches. Each host places the rows of its own devices (`mesh.put_rows`); together they hold every
example of the batch once.
"""

import dataclasses
import datetime
import functools
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from dasd_jax.batch import PromptBatch, TeacherBatch
from dasd_jax.data import contexts, skills
from dasd_jax.data.sources import Problem
from dasd_jax.errors import UserError
from dasd_jax.text import prompts, wordings
from dasd_jax.text.tokenizer import Tokenizer, Watched


@dataclasses.dataclass(frozen=True)
class PromptText:
    """The prompt text around a problem, shared by student and teacher."""

    instruction: str  # this and the fields without a comment: as in the config's group `data`
    sources: tuple[str, ...]  # data.sources, whose specs may name a context kind for their problems
    privileged: str  # the context kind for the other sources, a name in prompts.PRIVILEGED
    enable_thinking: bool | None
    shots: tuple[Problem, ...]
    now: datetime.datetime | None = None  # what a chat template that asks for the date is told; None: the present
    system: str = ""
    privileged_wording: str = wordings.DEFAULT
    transition: str = "default"

    @functools.cached_property
    def words(self) -> wordings.Words:
        """The texts of instruction, system, privileged_wording and transition.

        Raises:
            UserError: as `wordings.read`.
        """
        return wordings.read(self.instruction, self.system, self.privileged_wording, self.transition)

    def check_worded(self, context: str) -> None:
        """Checks that the wording has a text for every kind that a teacher with this context is shown.

        Raises:
            UserError: it has none for one of them.
        """
        given = self.privileged_wording.partition("#sha256=")[0]
        for kind in sorted(contexts.worded_as(self.kinds(context)).difference(self.words.wording.contexts)):
            raise UserError(
                f"data.privileged_wording: {given[:80]!r}: a teacher of this run is shown context of kind {kind}: "
                f"expected the slot {{context}} or {{{kind}}}"
            )

    def student(self, tokenizer: Tokenizer, problem: Problem) -> list[int]:
        """Token ids of the prompt that the policy answers."""
        return self._encode(tokenizer, prompts.student_messages(problem.question, **self._common()))

    def kind(self, problem: Problem) -> str:
        """The context kind of a problem by default."""
        return problem.privileged or self.privileged

    def kinds(self, context: str) -> frozenset[str]:
        """The kinds of text that a teacher with this context is shown; see `contexts.kinds`."""
        return contexts.kinds(self.sources, self.privileged, context)

    def teacher(
        self, tokenizer: Tokenizer, problem: Problem, kind: str, text: str, *, with_question: bool = True
    ) -> list[int]:
        """Token ids of the student's prompt with a text of that kind inserted; a blank text inserts nothing."""
        messages = prompts.teacher_messages(
            problem.question,
            context_kind=kind,
            context=text,
            wording=self.words.wording,
            with_question=with_question,
            **self._common(),
        )
        return self._encode(tokenizer, messages)

    def target(self, tokenizer: Tokenizer, problem: Problem, prompt: Sequence[int]) -> list[int]:
        """What supervised fine-tuning learns to write after `student`: `encode_target` of the reference response."""
        return prompts.encode_target(tokenizer, self._reference(problem), prompt)

    def answer(self, tokenizer: Tokenizer, problem: Problem) -> list[int]:
        """Token ids of the reference answer alone, without a stop token."""
        return prompts.encode_response(tokenizer, prompts.format_answer(problem.answer, self.words.answer_style))[:-1]

    def _common(self) -> dict:
        shots = [(shot.question, self._reference(shot)) for shot in self.shots]
        return {"instruction": self.words.instruction, "system": self.words.system, "shots": shots}

    def _reference(self, problem: Problem) -> str:
        """The reference response, which shots show and supervised fine-tuning imitates."""
        if problem.response:
            return problem.response
        answer = prompts.format_answer(problem.answer, self.words.answer_style)
        return f"{problem.solution}\n\n{answer}" if problem.solution else answer

    def _encode(self, tokenizer: Tokenizer, messages) -> list[int]:
        return prompts.encode_prompt(tokenizer, messages, enable_thinking=self.enable_thinking, now=self.now)


class Prompts:
    """Problems with the prompts that the policy answers, tokenised and padded; `example_id` indexes `problems`."""

    def __init__(self, problems: Sequence[Problem], student: Sequence[Sequence[int]], width: int, pad_id: int):
        """Takes prompts as they are.

        Args:
            student: token ids of each problem's prompt, at most `width`.
            width: tokens, P.
        """
        self.problems = list(problems)
        # Stored unpadded: padded to the widths of a long-context run they would take gigabytes.
        self._student = [np.asarray(ids, np.int32) for ids in student]
        self._student_width, self._pad_id = width, pad_id

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One problem for Grain: the fields of a PromptBatch without their batch axis."""
        tokens, mask = prompts.left_pad([self._student[index]], self._student_width, self._pad_id)
        return {"student_prompt": tokens[0], "student_prompt_mask": mask[0], "example_id": np.int32(index)}

    def in_order(self, size: int, example_ids: Sequence[int]) -> Iterator[tuple[PromptBatch, np.ndarray]]:
        """These problems in batches of `size`; the last batch is padded by repeating the first problems.

        Yields:
            PromptBatch, and bool[size] that is False for padding.
        """
        for start in range(0, len(example_ids), size):
            places = np.arange(start, start + size)
            items = [self[int(example_ids[place % len(example_ids)])] for place in places]
            batch = PromptBatch(**{name: np.stack([item[name] for item in items]) for name in items[0]})
            yield batch, places < len(example_ids)


class PromptSet(Prompts):
    """Problems whose prompts fit, tokenised and padded; `example_id` indexes `problems`.

    Attributes:
        problems: the problems kept.
        given: spec of a source → number of its problems before any was dropped.
        dropped: reason → number of problems dropped.
        counts: the same in words, and how many lose characters for which the tokenizer has no token.
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
            teacher_width: tokens, Q. A problem whose default context is missing or does not fit is dropped for every
                method, so that all methods train on the same problems; 0 makes no teacher prompts.
            target_width: tokens of the reference response, R, for supervised fine-tuning; 0 makes no targets.
            field: the config field that names the problems, for the error message if none fits.

        Raises:
            UserError: no problem has the requested context and fits, or as `prompts.encode_target`.
        """
        kept, student, teacher, targets = [], [], [], []
        widths = {"student prompt": student_width, "teacher prompt": teacher_width, "reference response": target_width}
        self.dropped = {f"{what} longer than {width} tokens": 0 for what, width in widths.items() if width}
        watched, lossy, self.given = Watched(tokenizer), 0, Counter(problem.source for problem in problems)
        for problem in problems:
            kind = text.kind(problem)
            if teacher_width and not contexts.has(problem, kind):
                self.dropped[f"no {kind}"] = self.dropped.get(f"no {kind}", 0) + 1
                continue
            encoded = {"student prompt": text.student(watched, problem)}
            if teacher_width:
                # Siblings are not sampled yet: the context is blank until then.
                context = "" if kind in contexts.PER_ROLLOUT else getattr(problem, kind)
                encoded["teacher prompt"] = text.teacher(watched, problem, kind, context)
            if target_width:
                encoded["reference response"] = text.target(watched, problem, encoded["student prompt"])
            lossy += watched.has_lost()
            too_long = next((what for what, ids in encoded.items() if len(ids) > widths[what]), None)
            if too_long:
                self.dropped[f"{too_long} longer than {widths[too_long]} tokens"] += 1
                continue
            kept.append(problem)
            student.append(encoded["student prompt"])
            teacher.append(encoded.get("teacher prompt", []))
            targets.append(encoded.get("reference response", []))
        if not kept:
            reasons = [f"{n} with {'' if why.startswith('no ') else 'a '}{why}" for why, n in self.dropped.items() if n]
            if f"no {text.privileged}" in self.dropped:
                field = f"data.privileged: {text.privileged!r}"
            raise UserError(f"{field}: all {len(problems)} problems were dropped: {', '.join(reasons)}")
        super().__init__(kept, student, student_width, tokenizer.pad_id)
        self.counts = {f"left out: {why}": n for why, n in self.dropped.items()}
        self.counts |= {f"with characters that have no token ({watched.some})": lossy} if lossy else {}
        self._tokenizer, self._text = tokenizer, text
        self._pairs: list[list[skills.Pair]] = []  # of each problem, from `retrieve`
        self._teacher_width, self._target_width = teacher_width, target_width
        self._teacher, self._target = (
            [np.asarray(ids, np.int32) for ids in sequences] for sequences in (teacher, targets)
        )

    def lengths(self) -> dict[str, list[int]]:
        """Tokens of every problem's prompts and reference response, by what they are; only those that it has."""
        made = {"student prompt": self._student, "teacher prompt": self._teacher, "reference response": self._target}
        return {what: [len(ids) for ids in each] for what, each in made.items() if any(map(len, each))}

    def digest(self) -> str:
        """A checksum of all token ids: changes with the problems, the tokenizer or the prompt text."""
        arrays = (array for pair in (self._student, self._teacher, self._target) for array in pair)
        return hashlib.sha256(b"".join(hashlib.sha256(array).digest() for array in arrays)).hexdigest()

    def check_context(self, context: str) -> None:
        """Checks that at least one problem has a context that is made from the problem.

        Raises:
            ValueError: an unknown context.
            UserError: no problem has it.
        """
        for kind in self._text.kinds(context) - {"none"}:
            if not any(contexts.has(problem, kind) for problem in self.problems):
                needed = "solution" if kind == contexts.PARTIAL else kind
                raise UserError(
                    f"data.sources: none of the {len(self)} training problems has a {needed}: expected at least one, "
                    f"since the method shows its teacher context {context!r}"
                )

    def retrieve(self, bank: skills.Bank, count: int) -> int:
        """Chooses the pairs of skills and mistakes that context skills shows the teacher of each problem.

        Texts that not even the problem with the shortest prompt has room for are left out of the choice.

        Args:
            count: pairs of a problem, K.

        Returns:
            How many texts were left out.

        Raises:
            UserError: too few are left, or as `skills.nearest`.
        """
        shortest = min(range(len(self)), key=lambda index: len(self._student[index]))

        def fits(item: skills.Item) -> bool:
            ids = self._with_context(contexts.SKILLS, shortest, contexts.SKILLS, item.text)
            return len(ids) <= self._teacher_width

        fitting = bank.only(fits)
        bank.require(count, "without those of problems to evaluate")
        fitting.require(count, f"fit rollout.teacher_prompt_length = {self._teacher_width}")
        self._pairs = skills.nearest(fitting, [problem.question for problem in self.problems], count)
        return len(bank.items) - len(fitting.items)

    def teacher_batch(
        self,
        example_id: np.ndarray,
        context: str = "",
        count: int = 1,
        *,
        group: int,
        written: contexts.Written | None = None,
        alpha: float | None = None,
    ) -> TeacherBatch:
        """The teacher prompts of a batch of problems and their rollouts: `with_texts` of their `teacher_texts`."""
        texts = self.teacher_texts(example_id, context, count, group=group, written=written, alpha=alpha)
        return self.with_texts(example_id, texts, context, count, group=group)

    def teacher_texts(
        self,
        example_id: np.ndarray,
        context: str = "",
        count: int = 1,
        *,
        group: int,
        written: contexts.Written | None = None,
        alpha: float | None = None,
    ) -> list[contexts.Texts]:
        """What the teachers of B problems and of their rollouts are to be shown, of each problem; not all may fit.

        Args:
            example_id: i32[B]; other_problem is one of these.
            context: one of `prompts.CONTEXTS`, or "" for the default.
            count: prompts per rollout, or of skills per problem, K; 1 if the context is made from the problem.
            group: rollouts per problem, G.
            written: the B*G rollouts; may be None if the context is made from the problem.
            alpha: the fraction of the solution that partial_solution shows, in [0, 1]; None for other contexts.

        Raises:
            ValueError: an unknown context, a wrong or missing alpha, or a count above 1 with one prompt per problem.
        """
        shape = contexts.batch_shape(self._text.kinds(context), len(example_id), group, count)
        group = math.prod(shape[1:2])
        problems = [self.problems[i] for i in example_id]
        default = [self._text.kind(problem) for problem in problems]
        pairs = [self._pairs[i] for i in example_id] if context == contexts.SKILLS else []
        given = {"count": count, "written": written, "alpha": alpha, "pairs": pairs}
        rows = contexts.texts(context, default, problems, group, **given)
        return [rows[start : start + group] for start in range(0, len(rows), group)]

    def with_texts(
        self, example_id: np.ndarray, texts: Sequence[contexts.Texts], context: str = "", count: int = 1, *, group: int
    ) -> TeacherBatch:
        """The teacher prompts of a batch of problems, given their `teacher_texts` of the same context, count and group.

        Without a text, or with one that does not fit, it is the student's prompt, and `shown` is False.

        Returns:
            NumPy arrays. The prompt is i32[B, Q], or [B, G, K, Q] for all problems if any kind of the context is made
            from rollouts, or [B, 1, K, Q] of skills; the config alone decides, see `contexts.kinds`.
        """
        shape = contexts.batch_shape(self._text.kinds(context), len(example_id), group, count)
        rows = [(index, row) for index, of_problem in zip(example_id, texts, strict=True) for row in of_problem]
        # Cached: rollouts of a group are shown the same few texts.
        encode = functools.cache(functools.partial(self._with_context, context))
        shown, sequences = np.zeros((len(rows), count), np.bool_), []
        for row, (index, of_row) in enumerate(rows):
            for place in range(count):
                ids = self._student[index]
                if place < len(of_row):
                    with_context = encode(index, *of_row[place])
                    if len(with_context) <= self._teacher_width:
                        ids, shown[row, place] = with_context, True
                sequences.append(ids)
        batch = self._teacher_batch(sequences, shown.reshape(shape))
        for row, index in enumerate(example_id if context == contexts.SKILLS else ()):
            batch.weight[row, 0, : len(self._pairs[index])] = [pair.similarity for pair in self._pairs[index]]
        return batch

    def blank_teacher_batch(
        self, example_id: np.ndarray, context: str = "", count: int = 1, *, group: int
    ) -> TeacherBatch:
        """`teacher_batch` of the same arguments without context: the student's prompts at the teacher's width."""
        shape = contexts.batch_shape(self._text.kinds(context), len(example_id), group, count)
        sequences = [self._student[i] for i in example_id for _ in range(math.prod(shape[1:]))]
        return self._teacher_batch(sequences, np.zeros(shape, np.bool_))

    def _with_context(self, context: str, index: int, kind: str, text: str) -> Sequence[int]:
        problem = self.problems[index]
        if not context and kind not in contexts.PER_ROLLOUT:
            return self._teacher[index]
        with_question = context != "without_problem"
        return self._text.teacher(self._tokenizer, problem, kind, text, with_question=with_question)

    def _teacher_batch(self, sequences: Sequence[Sequence[int]], shown: np.ndarray) -> TeacherBatch:
        padded = prompts.left_pad(sequences, self._teacher_width, self._tokenizer.pad_id)
        prompt, mask = (x.reshape(*shown.shape, -1) for x in padded)
        return TeacherBatch(prompt, mask, shown, np.ones(shown.shape, np.float32))

    def target_batch(self, example_id: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reference responses, right-padded: i32[B] → (i32[B, R], bool[B, R])."""
        ids = [self._target[i] for i in example_id]
        return prompts.right_pad(ids, self._target_width, self._tokenizer.pad_id)

    def answer_batch(self, example_id: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Reference answers in the form that shots have, at most their first `width` tokens, right-padded.

        i32[B] → (i32[B, width], bool[B, width]).
        """
        ids = [self._text.answer(self._tokenizer, self.problems[i])[:width] for i in example_id]
        return prompts.right_pad(ids, width, self._tokenizer.pad_id)

    def batches(self, size: int, seed: int) -> grain.MapDataset:
        """An endless random-access sequence of PromptBatch, reshuffled in each epoch.

        No problem occurs twice in a batch; an epoch's incomplete last batch is dropped.

        Raises:
            UserError: fewer problems than the batch size.
        """
        if size > len(self):
            raise UserError(f"rollout.problems: {size}: expected at most {len(self)}, the training problems that fit")
        return (
            grain.MapDataset.source(self)
            .seed(seed)
            .shuffle()
            .batch(size, drop_remainder=True)
            .map(lambda batch: PromptBatch(**batch))
            .repeat()
        )
