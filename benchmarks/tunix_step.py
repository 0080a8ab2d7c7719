"""A whole GRPO step beside tunix's: python -m benchmarks.tunix_step TUNIX_PYTHON [--sizes=8x8x64]

TUNIX_PYTHON is the python of an environment of its own: python3 -m venv ENV && ENV/bin/pip install google-tunix==0.1.7

As trl_step.py, with tunix's GRPOLearner on its own sampler: no KL term, one optimiser step a rollout batch, so that it
needs no old log-probabilities and scores within its update. Its parts of a batch hold whole groups. It averages over
responses, which is our mean over tokens where all have the same length.
"""

import sys
from pathlib import Path

from benchmarks.whole_steps import Case, Peer, run

PEER = Peer(
    name="tunix",
    worker=Path(__file__).with_name("tunix_step_worker.py"),
    cases={
        "8x8x12": Case(problems=8, tokens=12, rows=8, target=None),
        "8x8x64": Case(problems=8, tokens=64, rows=8, target=None),
        "2x8x256": Case(problems=2, tokens=256, rows=8, target=None),
        "1x8x1024": Case(problems=1, tokens=1024, rows=8, target=None),
    },
    settings="gradients accumulated over parts of the batch; its layers are computed again in the backward pass only "
    "for responses of 1,024 tokens",
    whole_groups=True,
)


if __name__ == "__main__":
    run(PEER, __doc__, sys.argv[1:])
