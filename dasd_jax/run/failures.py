"""What is said of responses that a scorer could not judge, whose reward is 0 whatever they say."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from dasd_jax.data.sources import Problem
from dasd_jax.data.verifiers import is_own
from dasd_jax.text.shown import shown
from dasd_jax.verify.verifier import Verdict

_ENDS = {"timeout": "out of time", "memory": "out of memory", "crash": "its process died"}


class Failures:
    """Says of each scorer, once, why it could not judge a response."""

    def __init__(self, say: Callable[[str], None]):
        """`say` is handed each line."""
        self._say = say
        self._said: set[str] = set()

    def note(self, problems: Sequence[Problem], verdicts: Sequence[Verdict], where: str = "") -> None:
        """Says what is new in these verdicts, of which there is one for each problem, or none at all.

        Args:
            where: begins each line, as "step 3: ".
        """
        for name, why in of(problems, verdicts).items():
            if name not in self._said:
                self._said.add(name)
                self._say(f"warning: {where}data.verifier: {name}: {why}")


def of(problems: Sequence[Problem], verdicts: Sequence[Verdict]) -> dict[str, str]:
    """Of each scorer that could not judge a response: why, and what comes of it.

    Answers to mathematics that are expensive without end are common: of scorers that are not the user's own crashes
    alone are named.
    """
    found: dict[str, str] = {}
    for problem, verdict in zip(problems, verdicts, strict=False):  # no verdicts where nothing is sampled
        own = is_own(problem.scorer)
        name = problem.scorer if own else f"{problem.scorer} of {problem.source}"
        if verdict.error in (_ENDS if own else ["crash"]) and name not in found:
            found[name] = (
                f"{shown(verdict.detail) or _ENDS[verdict.error]}: the reward of such a response is 0; this is said "
                "once, and their share is among the figures"
            )
    return found


def said_of(shares: Mapping[str, float]) -> Iterator[str]:
    """A line of the shares of unjudged answers, by what was answered; nothing where all are 0."""
    if some := [f"{name} {share:.3f}" for name, share in shares.items() if share]:
        yield f"unjudged answers, which count as wrong: {', '.join(some)}"
