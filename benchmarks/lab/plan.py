"""The plan of the laboratory, written before the first run of reinforcement learning: methods, grids, seeds, splits.

docs/lab.md says it in words. A change here after that is another experiment.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

STEPS = 60  # of 8 problems × 8 rollouts × at most 64 tokens
SEEDS = (0, 1, 2, 3, 4)  # reported; each has its own base model
TRIAL_SEED = 100  # for the choice of learning rate and strength, not reported
RATES = (1e-4, 3e-4, 1e-3)
MORE_RATES = tuple(float(f"{rate:.2g}") for rate in np.geomspace(3e-5, 3e-3, 9))  # without a strength
SAMPLES = 64  # of each reported problem
PROBLEMS = 64  # of each split that is reported
LENGTH = 96  # tokens of a reported response


@dataclasses.dataclass(frozen=True)
class Arm:
    """A row of the table.

    Attributes:
        label: in the table.
        method: objective.method.
        fields: what it sets beside the shared recipe, GROUP.FIELD → value.
        strength: the field that says how much the teacher counts; "" where a method has none.
        strengths: its three values.
        problems: the split that it is trained on.
    """

    label: str
    method: str
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    strength: str = ""
    strengths: tuple[float, ...] = ()
    problems: str = "train"

    def trials(self) -> list[dict[str, float]]:
        """Nine settings: overrides, GROUP.FIELD → value."""
        if not self.strength:
            return [{"optim.learning_rate": rate} for rate in MORE_RATES]
        return [{"optim.learning_rate": rate, self.strength: strength} for rate in RATES for strength in self.strengths]


def _dasd(label: str, route: str) -> Arm:
    return Arm(label, "dasd", {"objective.route": route}, "objective.beta", (0.1, 0.3, 1.0))


METHODS = {
    "grpo": Arm("GRPO", "grpo"),
    "dasd": _dasd("DASD", "signed"),
    "conformity": _dasd("conformity", "conformity"),
    "novelty": _dasd("novelty", "novelty"),
    "flip_low": _dasd("low arm flipped", "flip_low"),
    "flip_high": _dasd("high arm flipped", "flip_high"),
    # The expectations need those above; the others follow.
    "attract_only": _dasd("attract only", "attract_only"),
    "repel_only": _dasd("repel only", "repel_only"),
    "dr_grpo": Arm("Dr. GRPO", "dr_grpo"),
    "hepo": Arm("HEPO", "hepo", {"rollout.resample": 0}),
    "opsd_full": Arm("OPSD, full", "opsd", {"objective.form": "full"}),
    "opsd_sampled": Arm("OPSD, sampled", "opsd", {"objective.form": "sampled"}),
    "sdpo": Arm("SDPO", "sdpo"),
    "rlsd": Arm("RLSD", "rlsd", {}, "objective.mix", (0.25, 0.5, 1.0)),
    "srpo": Arm("SRPO", "srpo"),
    "rlrt": Arm("RLRT", "rlrt", {}, "objective.mix", (0.25, 0.5, 1.0)),
    "antisd": Arm("AntiSD", "antisd", {}, "objective.strength", (0.25, 0.5, 1.0)),
}
# Written on 2026-11-28, after the choice of settings for those above: a table of its own, by the same rule, with the
# software of its day and GRPO once more beside it. TATA chooses data for supervised fine-tuning, so it has no row.
NEIGHBOURS = {
    "demopsd": Arm("DemoPSD", "demopsd"),
    "pw_opsd": Arm("PW-OPSD", "pw_opsd"),
    "ad_opsd": Arm("AD-OPSD", "ad_opsd"),
    "egrsd": Arm("EGRSD", "egrsd", {}, "objective.eps", (0.1, 0.2, 0.4)),
    "purified_opsd": Arm("Purified OPSD", "purified_opsd"),
    # At least the digit that the way starts from, of four parts: a target alone is no beginning of a way.
    "atesd": Arm("ATESD", "atesd", {"objective.alpha_min": 0.25}, problems="train_parts"),
    "sgsd": Arm("SGSD", "sgsd", {"data.skills": str(Path(__file__).with_name("problems") / "skills.jsonl")}),
}
AGAIN = "grpo_again"  # the name of GRPO's results beside them
ARMS = METHODS | NEIGHBOURS
PRIMARY = ("grpo", "dasd", "conformity", "novelty", "flip_low", "flip_high")
