"""Teacher contexts: the privileged text a teacher is shown, made from the problems and rollouts of a batch.

    answer, solution, hint   fields of the problem
    partial_solution         the first part of its solution, and its answer
    sibling                  correct responses from the rollout's group
    sibling_or_solution      the same, or the problem's solution where there is none
    wrong_siblings           responses from the rollout's group that were judged incorrect
    skills                   the pairs of a skill and a mistake that are nearest to the problem (data/skills.py)
    none                     nothing: the student's own prompt
    other_problem            the default context of another problem: in training, of the batch
    without_problem          the default context alone, without the question

The default, "", is the kind that the problem's source names (`privileged=` in its spec), else data.privileged. `none`
and `other_problem` are controls: their effect on a run does not come from a context that belongs to the problem.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from dasd_jax.data.skills import Pair
from dasd_jax.data.sources import Problem, privileged_of
from dasd_jax.text import prompts

# Made from the group's responses, so that each rollout has its own.
PER_ROLLOUT = frozenset(["sibling", "sibling_or_solution", "wrong_siblings"])

PARTIAL = "partial_solution"  # as much of it as `alpha` says, which a method decides in every step
NONE = "none"
SKILLS = "skills"  # K prompts a problem, retrieved when the run starts

_OF_DEFAULT = ("", "other_problem", "without_problem")

# Keeps a fraction of exactly k segments at k when float32 rounds it down.
_ROUNDING = 1e-6

Text = tuple[str, str]  # (kind, which selects the surrounding wording; the text itself)
# Of a problem: G lists of at most K texts if any kind of the context is made from rollouts, otherwise one list.
Texts = list[list[Text]]


@dataclasses.dataclass(frozen=True)
class Written:
    """The rollouts of a batch and their verdicts: B*G rows, problem-major."""

    texts: Sequence[str]
    correct: np.ndarray  # f32[rows], 0 or 1
    finished: np.ndarray  # bool[rows]
    judged: np.ndarray  # bool[rows], False where the verifier did not come to a verdict: `correct` says nothing there


def kinds(sources: Sequence[str], privileged: str, context: str) -> frozenset[str]:
    """The kinds of text that a teacher is shown, determined by the config alone.

    Args:
        sources: data.sources, at least one spec.
        privileged: data.privileged.
        context: one of `prompts.CONTEXTS`, or "" for the default.

    Raises:
        ValueError: an unknown context.
        UserError: a spec is invalid.
    """
    if context not in ("", *prompts.CONTEXTS):
        raise ValueError(f"context {context!r}: expected one of {', '.join(prompts.CONTEXTS)}, or ''")
    if context not in _OF_DEFAULT:
        return frozenset([context])
    return frozenset(privileged_of(spec) or privileged for spec in sources)


def per_rollout(shown: frozenset[str]) -> bool:
    """Whether teacher prompts are per rollout, given their `kinds`; otherwise there is one per problem."""
    return not shown.isdisjoint(PER_ROLLOUT)


def worded_as(shown: frozenset[str]) -> frozenset[str]:
    """The kinds of `wordings.KINDS` that the texts of these `kinds` may have."""
    also = {
        NONE: (),
        "sibling_or_solution": ("sibling", "solution"),
        "partial_solution": ("partial_solution", "answer"),
    }
    return frozenset(name for kind in shown for name in also.get(kind, (kind,)))


def batch_shape(shown: frozenset[str], problems: int, group: int, count: int) -> tuple[int, ...]:
    """The leading axes of a TeacherBatch, before tokens: (B,), (B, 1, K) or (B, G, K).

    Raises:
        ValueError: `count` is not 1 although each problem has one prompt.
    """
    if per_rollout(shown):
        return problems, group, count
    if SKILLS in shown:
        return problems, 1, count
    if count != 1:
        raise ValueError(f"count {count}: expected 1 for context kinds {', '.join(sorted(shown))}, one per problem")
    return (problems,)


def may_be_missing(shown: frozenset[str], context: str) -> bool:
    """Whether some teachers may lack a context: the default context of kept problems always exists and fits."""
    return per_rollout(shown) or context not in ("", NONE, "without_problem")


def has(problem: Problem, kind: str) -> bool:
    """Whether a problem has a text of this kind, or may have one that is not made from the problem."""
    return kind == SKILLS or kind in PER_ROLLOUT or bool(_of_problem(problem, kind, alpha=1.0))


def texts(
    context: str,
    default_kinds: Sequence[str],
    problems: Sequence[Problem],
    group: int,
    *,
    count: int,
    written: Written | None,
    alpha: float | None,
    pairs: Sequence[Sequence[Pair]] = (),
) -> list[list[Text]]:
    """The texts shown to the teacher of each row, at most `count` per row.

    Args:
        context: one of `prompts.CONTEXTS`, or "".
        default_kinds: the kind of each problem's default context.
        problems: B problems.
        group: rows per problem, problem-major: G, or 1 if no kind is made from rollouts.
        written: the rollouts of all rows, for kinds made from rollouts.
        alpha: the fraction of the solution that partial_solution shows, in [0, 1]; None for other contexts.
        pairs: those of each problem, for kind skills.

    Raises:
        ValueError: an alpha out of range, or none for partial_solution.
    """
    if context == PARTIAL and alpha is None:
        raise ValueError(f"context {context}: expected an alpha, the fraction of the solution that it shows")
    shown_kinds = default_kinds if context in _OF_DEFAULT else [context] * len(problems)
    of_rollouts = {kind: siblings(written, kind, group, count) for kind in PER_ROLLOUT.intersection(shown_kinds)}
    rows = []
    for row in range(len(problems) * group):
        problem, kind = problems[row // group], shown_kinds[row // group]
        if kind in PER_ROLLOUT:
            found = [(kind, text) for text in of_rollouts[kind][row]]
            if kind == "sibling_or_solution":
                found = [("sibling", text) for _, text in found] or _of_problem(problem, "solution", alpha)
            rows.append(found)
        elif kind == SKILLS:
            own = pairs[row // group][:count]
            rows.append([(kind, prompts.skill_and_mistake(pair.skill, pair.mistake)) for pair in own])
        else:
            rows.append(_of_problem(problem, kind, alpha))
    return _of_other_problems(rows, problems, group) if context == "other_problem" else rows


def siblings(written: Written, kind: str, group: int, count: int) -> list[list[str]]:
    """Finished responses of each row's group that the verifier judged correct, or incorrect for kind wrong_siblings.

    The first `count` of them in group order, without their thinking. After removing it, blank texts, duplicates and
    copies of the row's own response are left out.
    """
    shown_ones = written.finished & written.judged & ((written.correct > 0) == (kind != "wrong_siblings"))
    said = [text.rpartition("</think>")[2].strip() for text in written.texts]
    shown = []
    for row, own in enumerate(said):
        start = row - row % group
        others = [said[other] for other in range(start, start + group) if shown_ones[other]]
        distinct = dict.fromkeys(text for text in others if text and text != own)
        shown.append(list(distinct)[:count])
    return shown


def beginning(solution: str, alpha: float) -> str:
    """The first floor(alpha * m) of a solution's m segments, verbatim.

    Segments are non-blank lines, or sentences if the solution is one line.

    Raises:
        ValueError: alpha is not in [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha {alpha}: expected a fraction in [0, 1]")
    solution = solution.strip()
    ends = segment_ends(solution)
    num_shown = math.floor(min(float(alpha) + _ROUNDING, 1.0) * len(ends))
    return solution[: ends[num_shown - 1]] if num_shown else ""


def segment_ends(solution: str) -> list[int]:
    """Where the segments of a solution end that has no white space at its own ends."""
    ends = [line.end() for line in re.finditer(r"[^\n]*\S", solution)]
    if len(ends) == 1:
        ends = [sentence.end() for sentence in re.finditer(r"\S.*?(?:[.!?](?=\s)|$)", solution)]
    return ends


def _of_problem(problem: Problem, kind: str, alpha: float | None) -> list[Text]:
    """The text of a kind that is made from the problem alone, as a list of one, or empty."""
    if kind == NONE:
        return []
    if kind == PARTIAL:
        if not problem.solution.strip():
            return []
        start = beginning(problem.solution, alpha)
        # If alpha leaves no segment, only the answer is shown, with the wording of kind answer.
        return [(kind, prompts.partial_solution(start, problem.answer)) if start else ("answer", problem.answer)]
    text = getattr(problem, kind).strip()
    return [(kind, text)] if text else []


def _of_other_problems(rows: list[list[Text]], problems: Sequence[Problem], group: int) -> list[list[Text]]:
    """For each row, the texts that the same rollout of the next problem is shown, cyclically.

    Skips problems without a text, copies of the same problem, and those that share a text with the row. A row for which
    every other problem is skipped gets none.
    """

    def others(row: int):
        place, own = row // group, {text for _, text in rows[row]}
        for distance in range(1, len(problems)):
            other = (place + distance) % len(problems)
            shown = rows[other * group + row % group]
            if shown and problems[other] != problems[place] and own.isdisjoint(text for _, text in shown):
                yield shown

    return [next(others(row), []) for row in range(len(rows))]
