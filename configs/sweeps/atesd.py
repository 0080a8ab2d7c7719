"""ATESD's constants, which its sources leave open: one at a time beside our reconstruction, over three seeds.

python -m launchers.sweep --sweep=configs/sweeps/atesd.py --config=configs/gsm8k.py --workdir=runs/atesd

The config's problems need solutions. Of the points, fixed alphas and a controller that does not learn are the paper's
own baselines; the one with alpha 1 shows whole solutions, as OPSD does.
"""

from configs.sweeps.common import each, grid, seeds, zipped

FIXED = (0.25, 0.5, 0.75, 1.0)
OTHERS = {
    "hold": (1, 10),
    "look_ahead": (1, 5, 20),
    "discount": (0.5, 1.0),
    "probe_weight": (0.0, 1.0),
    "entropy_target": (-1.5, 0.0),
    "entropy_weight": (0.0, 1.0),
    "controller_rate": (0.0, 0.005, 0.1),
    "controller_batch": (2, 8),
}


def get_sweep():
    """69 points."""
    fixed = zipped(each("objective.alpha_min", FIXED), each("objective.alpha_max", FIXED))
    others = [point for name, values in OTHERS.items() for point in each(f"objective.{name}", values)]
    return grid([{"objective.method": "atesd"}], [{}, *fixed, *others], seeds(3))
