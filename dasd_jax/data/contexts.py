"""Contexts: what a teacher is shown of the problems and the rollouts of a batch, as text.

    answer, solution, hint   of the problem
    partial_solution         the first part of its solution, and its answer
    sibling                  right responses of the rollout's group
    wrong_siblings           wrong ones
    none                     nothing: the student's own prompt
    other_problem            the default context of another problem of the batch
    without_problem          the default context alone, without the question

The default, "", is what the problem's source says (`privileged=` in its spec), or else data.privileged. `none` and
`other_problem` are controls: what they do to a run is not the work of a context that is true of the problem.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from dasd_jax.data.sources import Problem, privileged_of
from dasd_jax.text import prompts

# Made of what the group wrote, so that each rollout has its own.
PER_ROLLOUT = frozenset(["sibling", "wrong_siblings"])

_OF_DEFAULT = ("", "other_problem", "without_problem")

# A share of whole segments stays one when float32 rounds it down.
_ROUNDING = 1e-6

Text = tuple[str, str]  # the kind, which chooses the words around it, and the text itself


@dataclasses.dataclass(frozen=True)
class Written:
    """What a batch's rollouts are to one another: B*G rows, problem-major."""

    texts: Sequence[str]
    correct: np.ndarray  # f32[rows], 0 or 1
    finished: np.ndarray  # bool[rows]


def kinds(sources: Sequence[str], privileged: str, context: str) -> frozenset[str]:
    """The kinds of text that a teacher is shown, from the config alone.

    Args:
        sources: data.sources, at least one spec.
        privileged: data.privileged.
        context: one of `prompts.CONTEXTS`, or "" for the default.

    Raises:
        ValueError: an unknown context.
        UserError: a spec is at fault.
    """
    if context not in ("", *prompts.CONTEXTS):
        raise ValueError(f"context {context!r}: expected one of {', '.join(prompts.CONTEXTS)}, or nothing")
    if context not in _OF_DEFAULT:
        return frozenset([context])
    return frozenset(privileged_of(spec) or privileged for spec in sources)


def per_rollout(shown: frozenset[str]) -> bool:
    """Whether a batch holds prompts for each rollout of every problem, given its `kinds`; else one for each problem."""
    return not shown.isdisjoint(PER_ROLLOUT)


def batch_shape(shown: frozenset[str], problems: int, group: int, count: int) -> tuple[int, ...]:
    """The axes of a TeacherBatch before that of tokens: (B,) or (B, G, K).

    Raises:
        ValueError: several prompts are asked for where each problem has one.
    """
    if per_rollout(shown):
        return problems, group, count
    if count != 1:
        raise ValueError(f"count {count}: expected 1 of {', '.join(sorted(shown))}, which is made of the problem")
    return (problems,)


def may_be_missing(shown: frozenset[str], context: str) -> bool:
    """Whether some teachers may have no context: the default of problems that are left always exists and fits."""
    return per_rollout(shown) or context not in ("", "none", "without_problem")


def has(problem: Problem, kind: str) -> bool:
    """Whether there is such a text of a problem, or may be once it is answered."""
    return kind in PER_ROLLOUT or bool(_of_problem(problem, kind, alpha=1.0))


def texts(
    context: str,
    default_kinds: Sequence[str],
    problems: Sequence[Problem],
    group: int,
    *,
    count: int,
    written: Written | None,
    alpha: float,
) -> list[list[Text]]:
    """What the teacher of each row is shown, at most `count` texts each.

    Args:
        context: one of `prompts.CONTEXTS`, or "".
        default_kinds: the kind of each problem's default context.
        problems: B of them.
        group: rows a problem, problem-major: G, or 1 where nothing is made of rollouts.
        written: the rollouts of all rows, for kinds that are made of them.
        alpha: of partial_solution, in [0, 1].
    """
    shown_kinds = default_kinds if context in _OF_DEFAULT else [context] * len(problems)
    of_rollouts = {kind: siblings(written, kind, group, count) for kind in PER_ROLLOUT.intersection(shown_kinds)}
    rows = []
    for row in range(len(problems) * group):
        problem, kind = problems[row // group], shown_kinds[row // group]
        if kind in PER_ROLLOUT:
            rows.append([(kind, text) for text in of_rollouts[kind][row]])
        else:
            rows.append(_of_problem(problem, kind, alpha))
    return _of_other_problems(rows, problems, group) if context == "other_problem" else rows


def siblings(written: Written, kind: str, group: int, count: int) -> list[list[str]]:
    """Finished responses of each row's group that the verifier judged right, or wrong for kind wrong_siblings.

    The first `count` of them in the order of the group, without their thinking. As they are shown, none is blank, equal
    to what the row itself wrote, or equal to another.
    """
    judged = written.finished & ((written.correct > 0) == (kind == "sibling"))
    said = [text.rpartition("</think>")[2].strip() for text in written.texts]
    shown = []
    for row, own in enumerate(said):
        start = row - row % group
        others = [said[other] for other in range(start, start + group) if judged[other]]
        distinct = dict.fromkeys(text for text in others if text and text != own)
        shown.append(list(distinct)[:count])
    return shown


def beginning(solution: str, alpha: float) -> str:
    """The first floor(alpha * m) of a solution's m segments, as they are written.

    Segments are the lines that are not blank; of a solution in one line, its sentences.

    Raises:
        ValueError: alpha is not in [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha {alpha}: expected a share of the solution, 0 to 1")
    solution = solution.strip()
    ends = [line.end() for line in re.finditer(r"[^\n]*\S", solution)]
    if len(ends) == 1:
        ends = [sentence.end() for sentence in re.finditer(r"\S.*?(?:[.!?](?=\s)|$)", solution)]
    num_shown = math.floor(min(float(alpha) + _ROUNDING, 1.0) * len(ends))
    return solution[: ends[num_shown - 1]] if num_shown else ""


def _of_problem(problem: Problem, kind: str, alpha: float) -> list[Text]:
    """The one text of a kind that is made of the problem alone, or none."""
    if kind == "none":
        return []
    if kind == "partial_solution":
        if not problem.solution.strip():
            return []
        start = beginning(problem.solution, alpha)
        # Where nothing of it is shown, the words are those of the answer, as there is no beginning to speak of.
        return [(kind, prompts.partial_solution(start, problem.answer)) if start else ("answer", problem.answer)]
    text = getattr(problem, kind).strip()
    return [(kind, text)] if text else []


def _of_other_problems(rows: list[list[Text]], problems: Sequence[Problem], group: int) -> list[list[Text]]:
    """For each row what the same rollout of the next problem is shown, cyclically.

    Passed over are problems that have nothing to show, the same problem drawn twice, and those with a text of the row
    itself. Where all are, the row has none.
    """

    def others(row: int):
        place, own = row // group, {text for _, text in rows[row]}
        for distance in range(1, len(problems)):
            other = (place + distance) % len(problems)
            shown = rows[other * group + row % group]
            if shown and problems[other] != problems[place] and own.isdisjoint(text for _, text in shown):
                yield shown

    return [next(others(row), []) for row in range(len(rows))]
