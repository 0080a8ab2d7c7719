"""A whole training step beside TRL's: python -m benchmarks.trl_step TRL_PYTHON [--sizes=8x8x64]

TRL_PYTHON is the python of an environment of its own: python3 -m venv ENV && ENV/bin/pip install trl==1.16.0 torch

SmolLM2-135M in float32 on two threads, the same weights and prompts, responses of exactly so many tokens on both sides:
rollouts, what scores them, and one step of AdamW. Ours is the step of `train`: rollout, score_step, train_step. Theirs
is `GRPOTrainer.train` with transformers' generate. Both average the surrogate over all tokens, without a KL term, and
take one optimiser step a rollout batch; TRL then needs no old log-probabilities and scores within its update. The last
size is our DASD step beside TRL's `SDPOTrainer` at its defaults but for the teacher's weights, which are the student's
as in DASD. Its teacher reads a right sibling, so that each response has a prompt of its own; ours reads the answer, one
prompt a problem, which is made as long here as SDPO's. SDPO's loss has no reward in it, DASD's has.

TRL cuts the batch into parts of 600 to 1,100 tokens with their prompts, which take about the memory that ours takes
(--rows chooses others). It computes no activations twice: gradient checkpointing saves memory and costs time.

First both compute with the responses that TRL has sampled: log-probabilities and gradient norm have to agree, and the
log-probabilities again after an update of each. (Advantages differ by 2e-4 of their size: TRL adds 1e-4 to the standard
deviation.) Then they take turns.
"""

import sys
from pathlib import Path

from benchmarks.whole_steps import Case, Peer, run

PEER = Peer(
    name="TRL",
    worker=Path(__file__).with_name("trl_worker.py"),
    cases={
        "8x8x12": Case(problems=8, tokens=12, rows=16, target=None),
        "8x8x64": Case(problems=8, tokens=64, rows=8, target=1.7),
        "2x8x256": Case(problems=2, tokens=256, rows=2, target=1.3),
        "1x8x1024": Case(problems=1, tokens=1024, rows=1, target=1.3),
        "dasd-8x8x64": Case(problems=8, tokens=64, rows=8, target=1.5, ours="dasd", theirs="sdpo"),
    },
    settings="gradients accumulated over parts of the batch, without gradient checkpointing, PyTorch's fused AdamW",
)


if __name__ == "__main__":
    run(PEER, __doc__, sys.argv[1:])
