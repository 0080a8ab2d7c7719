"""Which problems are never trained on."""

from collections.abc import Sequence

from dasd_jax.data.duplicates import twins
from dasd_jax.data.sources import Problem, by_hash
from dasd_jax.errors import UserError


def split_heldout(problems: Sequence[Problem], num_heldout: int) -> tuple[list[Problem], list[Problem]]:
    """(train, heldout): held out are the problems whose question has the smallest sha256, in that order.

    Problems that differ in the order of their numbers alone go to one side together: the other side would know their
    answers. They are held out with the first of them, if there is room. The training part is in the same order, except
    that a problem which leaves it for this is replaced, in its place, by one that is not held out instead.

    The split depends on the questions alone, not on the order of problems or sources: the first problems of either part
    are a mixture of all sources. Call `load_problems` first, which removes duplicates.

    Raises:
        UserError: too few problems, or no choice of whole groups has `num_heldout`.
    """
    if not 0 <= num_heldout < len(problems):
        raise UserError(
            f"data.heldout: {num_heldout}: data.sources holds {len(problems)} distinct problems, "
            f"expected 0 to {len(problems) - 1} to leave some for training"
        )
    ordered = by_hash(problems)
    groups: dict[tuple[str, ...], list[int]] = {}
    for place, problem in enumerate(ordered):
        groups.setdefault(twins(problem.question), []).append(place)
    chosen: set[int] = set()
    for places in groups.values():
        if len(chosen) + len(places) <= num_heldout:
            chosen.update(places)
    if len(chosen) < num_heldout:
        possible = len(chosen) or min(map(len, groups.values()))
        raise UserError(
            f"data.heldout: {num_heldout}: problems that differ in the order of their numbers alone stay together: "
            f"exactly {num_heldout} cannot be held out without splitting such a group: expected {possible}, for example"
        )
    back = (problem for place, problem in enumerate(ordered[:num_heldout]) if place not in chosen)
    train = [next(back) if place in chosen else ordered[place] for place in range(num_heldout, len(ordered))]
    return train, [ordered[place] for place in sorted(chosen)]
