"""A rollout in words and signs: what both the terminal program and the plain text show."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real

from dasd_jax import files
from dasd_jax.run import records
from dasd_jax.show.logged import Place, Samples, verdict
from dasd_jax.text.shown import shown

LEVELS = 4  # of the teacher's strength
_LONGEST = 60  # characters of a name or an answer in the head
_NAMES = {"dense": "teacher's share", "advantage": "verifier's share"}  # of the token's credit
_ORDER = ("entropy", "gap", "route", "gate", "dense", "advantage", "credit")  # first of the numbers of a token
_NATS = ("entropy", "gap")

LEGEND = f"""\
After a token, ‹+2› to ‹+{LEVELS}›: the method pulls toward the teacher; ‹-2› to ‹-{LEVELS}›: it pushes away from it.
The number is the strength in quarters of the response's 95th percentile; the first quarter has no mark.
^ is a fork: the token is among the fifth of the response with the highest entropy."""


@dataclass(frozen=True)
class Sign:
    """What the teacher's term does at a token.

    Attributes:
        direction: 1 pulls toward the teacher, -1 pushes away from it, 0 neither.
        level: 1 to LEVELS, in that many parts of the response's 95th percentile of strength; 0 without a direction.
        fork: the token is among the response's most uncertain.
    """

    direction: int
    level: int
    fork: bool

    @property
    def words(self) -> str:
        """The sign as words."""
        push = {1: "toward the teacher", -1: "away from the teacher", 0: "no push"}[self.direction]
        strength = f", strength {self.level} of {LEVELS}" if self.level else ""
        return f"{push}{strength}{', fork' if self.fork else ''}"


class Rollout:
    """One response to a problem, as text that a terminal does not act on.

    Attributes:
        place: where it was logged.
        question: of the problem.
        pieces: the text of each token.
        signs: of each token.
        where, outcome: where the rollout stands and what became of it, each as items of one line.
        with_alternatives: the tokens of which alternatives are logged, in order.
    """

    def __init__(self, samples: Samples, place: Place):
        """The rollout at a place.

        Raises:
            UserError: what is logged of it is damaged.
        """
        self.place = place
        self._problem = samples.problem(place[0])
        with files.reading(samples.path, "RUN"):
            self._read(self._problem, place[1])

    def _read(self, problem: dict, number: int) -> None:
        self._raw = problem["rollouts"][number]
        self.question = shown(problem["question"])
        self.pieces = _pieces(self._raw)
        strengths = records.strengths(self._raw)
        full = _percentile_95(strengths)
        self.signs = [
            Sign(direction, _level(strength, full) if direction else 0, fork)
            for _, direction, strength, fork in zip(
                self.pieces, records.directions(self._raw), strengths, records.forks(self._raw), strict=True
            )
        ]
        self._alternatives = {
            entry["token"]: {
                one_line(view): [(quoted(piece), float(probability)) for piece, _, probability in words]
                for view, words in entry.items()
                if view != "token"
            }
            for entry in self._raw.get("alternatives", ())
        }
        self.with_alternatives = sorted(self._alternatives)
        self.where, self.outcome = self._where(problem, number), self._outcome(problem)

    def _where(self, problem: dict, number: int) -> list[str]:
        known = [] if problem["example_id"] is None else [f"problem {problem['example_id']}"]
        rollout = f"rollout {number + 1} of {len(problem['rollouts'])}"
        return [f"step {problem['step']}", *known, rollout, one_line(problem["source"])]

    def _outcome(self, problem: dict) -> list[str]:
        raw = self._raw
        why = f" ({one_line(raw['error'])})" if raw.get("error") else ""
        learned = f", learned from as {raw['learned_reward']:g}" if "learned_reward" in raw else ""
        items = [f"{verdict(raw)}{why}", f"reward {raw['reward']:g}{learned}"]
        if "extracted" in raw:
            items.append("no answer" if raw["extracted"] is None else f"answer {one_line(str(raw['extracted']))}")
        items.append(f"reference {one_line(problem['answer'])}")
        if "advantage" in raw:
            items.append(f"advantage {raw['advantage']:+.3g}")
        return [*items, f"{len(self.pieces)} tokens"]

    def numbers(self, token: int) -> list[tuple[str, str]]:
        """(name, value with its unit) of all that is logged of a token; the response's advantage among them."""
        arrays = {
            name: values[token]
            for name, values in self._raw.items()
            if isinstance(values, list) and len(values) == len(self.pieces) and isinstance(values[token], Real)
        }
        if "advantage" in self._raw:
            arrays["advantage"] = self._raw["advantage"]
        names = [name for name in _ORDER if name in arrays] + sorted(arrays.keys() - set(_ORDER))
        return [
            (_NAMES.get(name, name), f"{arrays[name]:{'.3f' if name == 'entropy' else '+.4f'}}{_unit(name)}")
            for name in names
        ]

    def alternatives(self, token: int) -> dict[str, list[tuple[str, float]]]:
        """View → (piece, probability) of its likeliest tokens; empty where none are logged of the token."""
        return self._alternatives.get(token, {})

    def student_prompt(self) -> str:
        """The text of the student's prompt, or that there is none."""
        return shown(self._problem["prompt"]) or "this run logged no prompts"

    def teacher_prompts(self) -> str:
        """The teachers' prompts one after the other, each under the name of its view."""
        prompts = {view: [text] for view, text in self._problem["teacher_prompts"].items()}
        prompts |= self._raw.get("teacher_prompts", {})
        if not prompts:
            return "this run logged no teacher's prompts"
        return "\n\n".join(
            f"── {one_line(view)}{f', {number} of {len(texts)}' if len(texts) > 1 else ''} ──\n{shown(text)}"
            for view, texts in prompts.items()
            for number, text in enumerate(texts, start=1)
        )

    def plain(self) -> Iterator[str]:
        """The rollout in lines without colours; the signs are those of LEGEND."""
        yield f"══ {' · '.join(self.where)}"
        yield " · ".join(self.outcome)
        yield f"question: {self.question}"
        yield f"response: {''.join(map(_signed, self.pieces, self.signs))}"


def pieces_at(samples: Samples, place: Place) -> list[str]:
    """The `Rollout.pieces` of a place, without the rest; raises as that does."""
    problem = samples.problem(place[0])
    with files.reading(samples.path, "RUN"):
        return _pieces(problem["rollouts"][place[1]])


def _pieces(rollout: dict) -> list[str]:
    # Cut first and marked then: marks are longer than what they stand for, and offsets count the original.
    return [shown(piece) for piece in records.pieces(rollout)]


def one_line(text: str) -> str:
    """The text on one line and not too long for one, marked as `shown` does."""
    cut = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    return shown(cut).replace("\n", "⏎").replace("\t", " ")


def quoted(piece: str) -> str:
    """A token's text on one line, in quotes because of its blanks."""
    return f"“{one_line(piece)}”"


def _signed(piece: str, sign: Sign) -> str:
    """A token with its sign; the sign stands before line ends."""
    strength = f"{'+' if sign.direction > 0 else '-'}{sign.level}" if sign.level > 1 else ""
    mark = f"‹{strength}{'^' if sign.fork else ''}›" if strength or sign.fork else ""
    text = piece.rstrip("\n")
    return f"{text}{mark}{piece[len(text) :]}"


def _unit(name: str) -> str:
    return " nats" if name in _NATS else ""


def _level(strength: float, full: float) -> int:
    """1 to LEVELS, in parts of the strength that counts as full."""
    return max(1, math.ceil(min(LEVELS, LEVELS * strength / full)))


def _percentile_95(strengths: list[float]) -> float:
    """The smallest that 95 % of them do not exceed; where that is 0, the largest."""
    ordered = sorted(value for value in strengths if math.isfinite(value)) or [0.0]
    return ordered[math.ceil(0.95 * len(ordered)) - 1] or ordered[-1] or 1.0
