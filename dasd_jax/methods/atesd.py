"""ATESD, Adaptive Teacher Exposure (arXiv 2605.11458): OPSD whose teacher is shown as much of the solution as helps.

The loss is KL(teacher || student) over the whole vocabulary, every response counting alike. The teacher is shown the
first floor(alpha · m) of a solution's m segments (lines, or sentences if it is one line) and always its answer;
rollouts of problems without a solution are left out. alpha comes from a policy that learns with the run
(methods/exposure.py).

What we know of it are formulas without constants: all of the controller's are a reconstruction. So is what its inputs
are: the mismatch is the mean |log p_T - log p_S| of the drawn tokens, the confidence the student's mean probability of
them, progress reaches 1 at `progress_steps`, and the probe scores the answer alone, in the form that the prompt asks
for, right after the teacher's prompt. Whose weights read the solution is not known either.

Its baselines: alpha_min = alpha_max holds one alpha, and a controller_rate of 0 draws all from the first distribution.
"""

import dataclasses

import jax.numpy as jnp

from dasd_jax.fields import Fields, at_least, field, one_of, require, span
from dasd_jax.methods import exposure
from dasd_jax.objective.contract import TEACHER_GUARDS, Method, Scored, Shape, Signal, View
from dasd_jax.objective.divergence import gjsd
from dasd_jax.objective.masked import masked_mean
from dasd_jax.objective.normalise import sequence_mean


@dataclasses.dataclass(frozen=True)
class AtesdParams(Fields):
    """Constants of ATESD; their values are a reconstruction."""

    hold: int = field(5, at_least(1, "steps"), "H, consecutive steps with the same alpha; reconstructed")
    look_ahead: int = field(10, at_least(1, "steps"), "L, steps whose loss and probe give its reward; reconstructed")
    discount: float = field(0.9, span(0, 1), "γ, of later steps in the reward; reconstructed")
    probe_weight: float = field(0.1, at_least(0, off=True), "λ, of the answers' log p in the reward; reconstructed")
    alpha_min: float = field(0.05, span(0, 1), "least share of a solution that is shown; reconstructed")
    alpha_max: float = field(0.95, span(0, 1), "largest share of a solution that is shown; reconstructed")
    entropy_target: float = field(-0.5, span(-10, 0, "nats"), "penalty above this controller entropy; reconstructed")
    entropy_weight: float = field(0.1, at_least(0, off=True), "weight of the entropy penalty; reconstructed")
    controller_rate: float = field(0.02, at_least(0, off=True), "learning rate of the controller; reconstructed")
    controller_batch: int = field(4, at_least(2, "alphas"), "per update of the controller; reconstructed")
    progress_steps: int = field(200, at_least(1, "steps"), "at which its input progress is 1; reconstructed")
    teacher: str = field("live", one_of("live", "frozen"), "whose weights read the solution")

    def __post_init__(self):
        super().__post_init__()
        fits = self.alpha_min <= self.alpha_max
        require("objective.alpha_min", self.alpha_min, fits, f"at most objective.alpha_max = {self.alpha_max}")


def signal(scored: Scored, shape: Shape, hp: AtesdParams) -> Signal:
    """The mean divergence of the responses whose teacher is shown something, and what the controller reads."""
    view, knobs = scored.views["teacher"], scored.knobs
    keep = scored.mask & view.shown[0][:, None]
    weight = sequence_mean(keep, shape)
    loss = jnp.sum(jnp.where(keep, weight * view.forward_kl[0], 0.0))
    return Signal(
        kl=weight,
        metrics={
            # The weights of a minibatch add up to 1, or to 0 where it keeps nothing.
            exposure.LOSS: loss / jnp.maximum(jnp.sum(weight), 1.0),
            exposure.MISMATCH: masked_mean(jnp.abs(view.logp[0] - scored.logp), keep),
            exposure.CONFIDENCE: masked_mean(jnp.exp(scored.logp), keep),
            "atesd/a": knobs["atesd_a"],
            "atesd/b": knobs["atesd_b"],
        },
    )


METHOD = Method(
    fields=AtesdParams,
    signal=signal,
    views=lambda hp: {"teacher": View("partial_solution", hp.teacher)},
    scored=lambda hp: ("teacher",),
    rescored=lambda hp: True,
    divergence=lambda hp: gjsd("teacher", 0.0),
    memory=exposure.remembered,
    context=exposure.exposure,
    probe="teacher",
    guards=TEACHER_GUARDS,
    watched=(exposure.ALPHA, exposure.LOSS),
)
