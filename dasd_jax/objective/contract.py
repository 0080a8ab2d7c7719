"""What a method is made of: the teachers that it asks for."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class View:
    """A teacher: what it is shown, and whose weights read it."""

    context: str = ""  # a name in prompts.CONTEXTS; "": the default, data.privileged
    weights: str = "live"  # live | frozen | ema | snapshot
    rate: float = 0.0  # ema: share of the student an update
    every: int = 0  # snapshot: steps between refreshes
    count: int = 1  # prompts a rollout, K
