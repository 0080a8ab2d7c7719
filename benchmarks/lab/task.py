"""The laboratory's task: reach a target from four digits with three operations, in attempts one after another.

A problem is `3 1 2 5>7`: start from any of the four digits, then take the others in the order in which they stand. No
result may leave 0 to 9. A response is a search, with a sign for each of its moves:

    1*3=3,3+2=5~5,5-5=0:7?3+1=4,4-2=2,2+5=7:7!

    ,  the next equation of the attempt follows       ~  the result is calculated again, and this value counts
    :  the result beside the target                   ?  not the same: another attempt follows
    !  the same: the last attempt is claimed          x  gives up

Which digit and which operations lead to the target cannot be seen from the problem without calculating: a writer who
does not know has to try. One who is shown the way (`3+1-2+5`, calculated from left to right) writes it at once.
"""

import functools
import itertools
import random
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

DIGITS = range(1, 10)  # that problems are made of
COUNT = 4  # of them in a problem
BELOW = 10  # all results
FEWEST_WAYS = 8  # through the digits of a problem, so that there is something to search

_OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
_EQUATION = r"(\d)([-+*])(\d)=(\d)((?:~\d)*)"
EQUATION = re.compile(_EQUATION)
_CLAIM = re.compile(",".join([_EQUATION] * (COUNT - 1)) + r":(\d)!")
LONGEST_ATTEMPT = 9 * (COUNT - 1) + 2  # characters, with a check of every result

# What a writer of traces does. The informed one knows the way and has nothing to look for.
WRONG = 0.09  # of results, before they are checked
WRONG_AGAIN = 0.02  # of results that are calculated again
CHECKS = 0.20  # of results
GIVES_UP = 0.03  # after a failed attempt
WRONG_INFORMED = 0.01


class Way(NamedTuple):
    """A way through the digits of a problem, calculated from left to right."""

    start: int
    moves: tuple[tuple[str, int], ...]  # (operation, digit)

    @property
    def parts(self) -> list[str]:
        """The digit that it starts from, and each of its moves."""
        return [str(self.start), *(f"{operation}{digit}" for operation, digit in self.moves)]

    def __str__(self) -> str:
        return "".join(self.parts)


class Puzzle(NamedTuple):
    """Digits, a target, and the ways to it."""

    digits: tuple[int, ...]
    target: int
    solutions: tuple[Way, ...]

    @property
    def question(self) -> str:
        """As it stands in a prompt."""
        return f"{' '.join(map(str, self.digits))}>{self.target}"


class Equation(NamedTuple):
    """One that a response states: the value that counts is the last one."""

    a: int
    operation: str
    b: int
    value: int
    checks: int

    @property
    def holds(self) -> bool:
        """Whether it is true."""
        return calculate(self.a, self.operation, self.b) == self.value


def calculate(a: int, operation: str, b: int) -> int:
    """The value of one operation."""
    return _OPERATIONS[operation](a, b)


@functools.cache
def ways(digits: tuple[int, ...]) -> Mapping[Way, int]:
    """Every way through the digits whose results stay below 10 and above -1, with its value."""
    found = {}
    for place, start in enumerate(digits):
        rest = digits[:place] + digits[place + 1 :]
        for operations in itertools.product(_OPERATIONS, repeat=len(rest)):
            values = list(
                itertools.accumulate(
                    zip(operations, rest, strict=True), lambda v, move: calculate(v, *move), initial=start
                )
            )
            if all(0 <= value < BELOW for value in values):
                found[Way(start, tuple(zip(operations, rest, strict=True)))] = values[-1]
    return found


def puzzles() -> Iterator[Puzzle]:
    """All problems, in a fixed order."""
    for digits in itertools.product(DIGITS, repeat=COUNT):
        leading: dict[int, list[Way]] = {}
        through = ways(digits)
        for way, value in through.items():
            leading.setdefault(value, []).append(way)
        if len(through) >= FEWEST_WAYS:
            for target, solutions in sorted(leading.items()):
                yield Puzzle(digits, target, tuple(solutions))


def searched(rng: random.Random, puzzle: Puzzle, width: int) -> str:
    """A response of a writer who does not know the way: attempts in random order, with slips and checks.

    Args:
        width: characters that it has room for.
    """
    order, text = list(ways(puzzle.digits)), ""
    rng.shuffle(order)
    for way in order:
        attempt, value = _attempt(rng, way, WRONG, CHECKS)
        text += f"{attempt}:{puzzle.target}"
        if value == puzzle.target:
            return text + "!"
        text += "?"
        if rng.random() < GIVES_UP or len(text) + LONGEST_ATTEMPT > width:
            break
    return text + "x"


def informed(rng: random.Random, puzzle: Puzzle, way: Way) -> str:
    """A response of a writer who is shown a way to the target."""
    text, value = _attempt(rng, way, WRONG_INFORMED, checks=0.0)
    return f"{text}:{puzzle.target}{'!' if value == puzzle.target else '?x'}"


def _attempt(rng: random.Random, way: Way, wrong: float, checks: float) -> tuple[str, int]:
    """The equations of a way, and the value that the writer arrives at."""
    stated, value = [], way.start
    for operation, digit in way.moves:
        text = f"{value}{operation}{digit}="
        true = calculate(value, operation, digit)
        value = _slipped(rng, true, wrong)
        text += str(value)
        if rng.random() < checks:
            value = _slipped(rng, true, WRONG_AGAIN)
            text += f"~{value}"
        stated.append(text)
    return ",".join(stated), value


def _slipped(rng: random.Random, value: int, share: float) -> int:
    # A slip further up may have led out of the range, which the writer cannot write.
    value += rng.choice((-1, 1)) if rng.random() < share else 0
    return min(max(value, 0), BELOW - 1)


def equations(text: str) -> list[Equation]:
    """The equations of a response."""
    return [_read(*match.groups()) for match in EQUATION.finditer(text)]


def _read(a: str, operation: str, b: str, value: str, checks: str) -> Equation:
    values = [value, *checks.split("~")[1:]]
    return Equation(int(a), operation, int(b), int(values[-1]), len(values) - 1)


def reward(problem: dict, response: str) -> float:
    """1 if the last attempt is claimed, is a way through the digits, states true equations and reaches the target."""
    digits = tuple(map(int, problem["question"].partition(">")[0].split()))
    claim = response.rpartition("?")[2]
    if not _CLAIM.fullmatch(claim):
        return 0.0
    stated = equations(claim)
    way = Way(stated[0].a, tuple((equation.operation, equation.b) for equation in stated))
    continued = all(before.value == after.a for before, after in itertools.pairwise(stated))
    right = way in ways(digits) and continued and all(equation.holds for equation in stated)
    return float(right and stated[-1].value == int(problem["answer"]))
