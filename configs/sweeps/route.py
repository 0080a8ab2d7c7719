"""Direction of the teacher term: each route map, and GRPO without a teacher, over three seeds.

python -m launchers.sweep --sweep=configs/sweeps/route.py --config=configs/smollm2_math.py --workdir=runs/route
"""

from configs.sweeps.common import each, grid, seeds

ROUTES = ("signed", "hard", "attract_only", "repel_only", "conformity", "novelty")


def get_sweep():
    """21 points: six maps and GRPO, three seeds each."""
    return grid([*each("objective.route", ROUTES), {"objective.method": "grpo"}], seeds(3))
