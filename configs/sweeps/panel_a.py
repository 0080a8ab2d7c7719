"""The paper's panel A, what routes a token: the student's entropy and six other signals, over three seeds.

python -m launchers.sweep --sweep=configs/sweeps/panel_a.py --config=configs/smollm2_math.py --workdir=runs/panel_a

The paper's gradient norm and attention entropy are left out: each would cost a pass of its own. Which way round the
others go is reconstructed (dasd_jax/methods/dasd.py).
"""

from configs.sweeps.common import each, grid, seeds

SIGNALS = ("entropy", "teacher_entropy", "position", "improbability", "gap", "frequency", "random")


def get_sweep():
    """21 points."""
    return grid(each("objective.route_by", SIGNALS), seeds(3))
