"""The paper's figure 6: either arm of the router the other way round, or both, over three seeds.

python -m launchers.sweep --sweep=configs/sweeps/flips.py --config=configs/smollm2_math.py --workdir=runs/flips

Low is the arm of low entropy, which attracts; high the one that repels.
"""

from configs.sweeps.common import each, grid, seeds

ROUTES = ("signed", "flip_low", "flip_high", "flip_both")


def get_sweep():
    """12 points."""
    return grid(each("objective.route", ROUTES), seeds(3))
