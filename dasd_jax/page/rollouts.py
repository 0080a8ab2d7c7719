"""The logged rollouts of a run, packed step by step, and a sample of their tokens for the plane of entropy and gap."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from dasd_jax.page.pack import clean, clipped, evenly, halves, packed, rounded
from dasd_jax.run import records

_NOT_NUMBERS = {"tokens", "offsets", "alternatives"}
_LONGEST_PIECE = 500  # characters; tokens of real vocabularies have at most half of that
_LEVELS = 4  # of strength, in the colours of the page
_MARKS = "0123456789abcdefghijklmnopqrstuv"
_PLANE_TOKENS = 30_000  # of a run


class Rollouts:
    """What samples.jsonl holds, ready for the page.

    Attributes:
        blocks: step → its rollouts, packed.
        verdicts: step → a text per problem with a letter per rollout: r right, w wrong, in upper case where the
            response was cut off at the longest length.
    """

    def __init__(self, steps: int):
        """Holds nothing yet; `steps` is about how many there will be."""
        self.blocks: dict[int, str] = {}
        self.verdicts: dict[int, list[str]] = {}
        self._sample = _PlaneSample(max(_PLANE_TOKENS // max(steps, 1), 8))

    def passing(self, problems: Iterable[dict]) -> Iterator[dict]:
        """Packs problems as `records.samples` has them, a step at a time, and passes their rollouts on.

        So the file, by far the largest of a run, is read once, and one step of it is in memory as objects.
        """
        for step, group in itertools.groupby(problems, lambda problem: problem["step"]):
            of_step = list(group)
            rollouts = [rollout for problem in of_step for rollout in problem["rollouts"]]
            self.blocks[step] = _block(of_step)
            self.verdicts[step] = ["".join(map(_verdict, problem["rollouts"])) for problem in of_step]
            self._sample.add(step, rollouts)
            yield from rollouts

    @property
    def plane(self) -> str | None:
        """Packed sample of tokens with entropy, gap and the teacher's share; None where none has entropy and gap."""
        return self._sample.packed()


def _verdict(rollout: dict) -> str:
    letter = "r" if records.is_right(rollout) else "w"
    return letter if rollout.get("finished", True) else letter.upper()


def _block(problems: Sequence[dict]) -> str:
    """The problems of one step; the numbers stand rollout by rollout, array by array, as "names" has them."""
    numbers, heads = [], []
    for problem in problems:
        rollouts = []
        for rollout in problem["rollouts"]:
            head, arrays = _rollout(rollout)
            rollouts.append(head)
            numbers += arrays
        heads.append({**clean({name: value for name, value in problem.items() if name != "rollouts"}),
                      "rollouts": rollouts})  # fmt: skip
    return packed({"problems": heads}, numbers)


def _rollout(rollout: dict) -> tuple[dict, list[np.ndarray]]:
    """(what is text, or one number a response; the numbers per token in the order of "names")."""
    count = len(rollout["tokens"])
    names = [
        name
        for name, values in rollout.items()
        if isinstance(values, list) and len(values) == count and name not in _NOT_NUMBERS
    ]
    of_verifier = ("reward", "score", "extracted", "error", "finished")
    single = ("row", *of_verifier, "learned_reward", "advantage", "teacher_prompts")
    head = {
        **clean({name: rollout[name] for name in single if name in rollout}),
        "count": count,
        "names": clean(names),
        # After slicing by offsets: the marks of `clipped` change lengths.
        "pieces": [clipped(piece, _LONGEST_PIECE) for piece in records.pieces(rollout)],
        "marks": marks(rollout),
        "alternatives": {
            str(each["token"]): {
                clean(view): [[clipped(piece, _LONGEST_PIECE), rounded(p, 3)] for piece, _, p in likeliest]
                for view, likeliest in each.items()
                if view != "token"
            }
            for each in rollout.get("alternatives", [])
        },
    }
    return head, [halves(rollout[name]) for name in names]


def marks(rollout: dict) -> str:
    """A base-32 digit per token: level + 5 · (0 off, 1 toward the teacher, 2 away) + 15 where it is a fork.

    The level is 0 where the teacher does not act, otherwise 1 to 4: quarters of the rollout's 95th percentile.
    """
    direction = np.array(records.directions(rollout))
    level = np.ceil(_LEVELS * relative(_strengths(rollout))).clip(1, _LEVELS) * (direction != 0)
    digits = level.astype(int) + 5 * (direction % 3) + 15 * np.array(records.forks(rollout), int)
    return "".join(_MARKS[digit] for digit in digits)


def _strengths(rollout: dict) -> np.ndarray:
    """f64[T], finite."""
    return np.nan_to_num(np.array(records.strengths(rollout), float))


def relative(strength: np.ndarray) -> np.ndarray:
    """f64[T] strengths as shares of the 95th percentile of those that are not 0, at most 1."""
    acting = strength[strength > 0]
    return np.minimum(strength / np.quantile(acting, 0.95), 1) if acting.size else np.zeros(strength.shape)


def teacher_share(rollout: dict) -> np.ndarray:
    """f64[T] in [0, 1]: |dense| / (|dense| + |advantage|), the teacher's share of a token's credit.

    Of a method that logs no dense term the strength of its teacher, relative to the rollout's 95th percentile.
    """
    strength = _strengths(rollout)
    if "dense" not in rollout:
        return relative(strength)
    whole = strength + abs(rollout.get("advantage") or 0.0)
    return np.divide(strength, whole, out=np.zeros(strength.shape), where=whole > 0)


class _PlaneSample:
    """Evenly picked tokens of every step: entropy, gap, and the teacher's share times the direction."""

    def __init__(self, per_step: int):
        self._per_step = per_step
        self._head = {"steps": [], "drawn": [], "logged": []}
        self._columns: list[list[np.ndarray]] = [[], [], []]

    def add(self, step: int, rollouts: Sequence[dict]) -> None:
        usable = [rollout for rollout in rollouts if rollout.get("entropy") and rollout.get("gap")]
        if not usable:
            return
        columns = [
            np.concatenate([np.asarray(rollout[name], float) for rollout in usable]) for name in ("entropy", "gap")
        ]
        # A direction without a share is still a direction: a millionth of one.
        signed = [np.array(records.directions(each)) * np.maximum(teacher_share(each), 1e-6) for each in usable]
        columns.append(np.concatenate(signed))
        picked = evenly(range(len(columns[0])), self._per_step)
        for column, values in zip(self._columns, columns, strict=True):
            column.append(halves(values[picked]))
        for name, value in (("steps", step), ("drawn", len(picked)), ("logged", len(columns[0]))):
            self._head[name].append(value)

    def packed(self) -> str | None:
        if not self._head["steps"]:
            return None
        return packed(self._head, [np.concatenate(column) for column in self._columns])
