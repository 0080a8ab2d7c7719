"""The fields of the group `guards`."""

import dataclasses
from typing import ClassVar

from dasd_jax.fields import Fields, above, at_least, field, one_of

_LEVEL = at_least(0, off=True)


@dataclasses.dataclass(frozen=True)
class GuardsGroup(Fields):
    """When a run warns about its metrics, and when it stops; a level of 0 is off (docs/reliability.md)."""

    group: ClassVar[str] = "guards"

    window: int = field(5, at_least(1), "steps over which the guards below average")
    on_collapse: str = field("stop", one_of("stop", "anneal"), "at a stop level: stop, or halve the teacher's weight")
    entropy_warn: float = field(0.05, _LEVEL, "nats a token; warns when the policy's mean entropy is below this")
    entropy_stop: float = field(0.005, _LEVEL, "nats a token; acts as `on_collapse` says below this")
    length_warn: float = field(0.25, _LEVEL, "share of the mean length at step 1; warns below this")
    length_stop: float = field(0.05, _LEVEL, "share of the length at step 1; acts as `on_collapse` says below this")
    tail_warn: float = field(2.0, _LEVEL, "95th percentile of the lengths over that of step 1; warns above this")
    tail_stop: float = field(0.0, _LEVEL, "the same; acts as `on_collapse` says above this")
    repetition_warn: float = field(0.5, _LEVEL, "share of 4-grams that a response already holds; warns above this")
    repetition_stop: float = field(0.9, _LEVEL, "share of repeated 4-grams; acts as `on_collapse` says above this")
    repel_kl_warn: float = field(5.0, _LEVEL, "nats, KL(student || teacher) of repelled tokens; warns above this")
    repel_kl_stop: float = field(0.0, _LEVEL, "nats, the same KL; acts as `on_collapse` says above this")
    arm_warn: float = field(0.01, _LEVEL, "share of the router's mass in its weaker arm; warns below this")
    arm_stop: float = field(0.0, _LEVEL, "share in the weaker arm; acts as `on_collapse` says below this")
    signal_noise_warn: float = field(3.0, _LEVEL, "gap/mean_abs over gap/noise_mean_abs; warns below this")
    signal_noise_stop: float = field(0.0, _LEVEL, "gap/mean_abs over its noise; acts as `on_collapse` says below this")
    blank_warn: float = field(0.9, _LEVEL, "share of rollouts whose teacher is shown nothing; warns above this")
    blank_stop: float = field(0.0, _LEVEL, "the same share; acts as `on_collapse` says above this")
    teacher_kl_warn: float = field(2.0, _LEVEL, "nats a token, KL(student || teacher); warns above this")
    teacher_kl_stop: float = field(0.0, _LEVEL, "the same KL; acts as `on_collapse` says above this")
    equal_rewards_warn: float = field(10.0, _LEVEL, "steps in a row whose groups have equal rewards; warns above this")
    equal_rewards_stop: float = field(0.0, _LEVEL, "steps in a row whose groups have equal rewards; stops above this")
    logp_gap_mean_warn: float = field(0.01, _LEVEL, "nats, mean |sampler - score pass|; warns above this")
    logp_gap_mean_max: float = field(0.02, above(0, "nats"), "the same of one step; stops before its update above this")
    logp_gap_p999_max: float = field(0.5, above(0, "nats"), "its 99.9th percentile; stops before the update above this")
    int8_gap_mean_warn: float = field(0.06, _LEVEL, "nats, as logp_gap_mean_warn where rollouts are in int8")
    int8_gap_mean_max: float = field(0.12, above(0, "nats"), "as logp_gap_mean_max where rollouts are in int8")
    int8_gap_p999_max: float = field(2.5, above(0, "nats"), "as logp_gap_p999_max where rollouts are in int8")
    skipped_steps_stop: int = field(3, at_least(1), "steps in a row with an update that was not finite; stops at this")
    empty_steps_stop: int = field(10, at_least(1), "steps in a row with nothing in the loss; stops at this")
