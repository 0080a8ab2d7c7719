"""The paper's panel C, the reliability gate with router and map held fixed, over three seeds.

python -m launchers.sweep --sweep=configs/sweeps/panel_c.py --config=configs/smollm2_math.py --workdir=runs/panel_c

The sigmoid is the paper's; the other gates are our reconstruction of the panel.
"""

from configs.sweeps.common import each, grid, seeds

GATES = ("sigmoid", "none", "hard", "inverse", "confidence")


def get_sweep():
    """15 points."""
    return grid(each("objective.gate", GATES), seeds(3))
