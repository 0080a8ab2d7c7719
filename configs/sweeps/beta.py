"""Weight of the teacher term relative to the verifier: beta from 0, which is GRPO, over three seeds.

python -m launchers.sweep --sweep=configs/sweeps/beta.py --config=configs/smollm2_math.py --workdir=runs/beta
"""

from configs.sweeps.common import each, grid, seeds


def get_sweep():
    """12 points."""
    return grid(each("objective.beta", (0.0, 0.05, 0.1, 0.2)), seeds(3))
