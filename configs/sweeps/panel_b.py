"""The paper's panel B, the direction map: each route, and GRPO without a teacher, over three seeds.

python -m launchers.sweep --sweep=configs/sweeps/panel_b.py --config=configs/smollm2_math.py --workdir=runs/panel_b

Signed, conformity, novelty and GRPO are the paper's; the names of its other rows are not known.
"""

from configs.sweeps.common import each, grid, seeds

ROUTES = ("signed", "hard", "attract_only", "repel_only", "conformity", "novelty")


def get_sweep():
    """21 points."""
    return grid([*each("objective.route", ROUTES), {"objective.method": "grpo"}], seeds(3))
