"""The paper's table 11: the share of tokens that are forks, over three seeds.

python -m launchers.sweep --sweep=configs/sweeps/rho.py --config=configs/smollm2_math.py --workdir=runs/rho

0.2 is the paper's best; the other shares are ours.
"""

from configs.sweeps.common import each, grid, seeds

SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)


def get_sweep():
    """15 points."""
    return grid(each("objective.rho", SHARES), seeds(3))
