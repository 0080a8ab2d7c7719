"""Every method on the same problems, rollouts and budget, over three seeds: the paper's main table and more.

python -m launchers.sweep --sweep=configs/sweeps/methods.py --config=configs/smollm2_math.py --workdir=runs/methods

The config needs groups of at least 5, for the four wrong siblings that `rlcsd` shows its teacher.
What a teacher is shown is the method's own default where it is a sibling, and otherwise data.privileged. Supervised
fine-tuning is left out: it learns from references and not from rollouts. So are what needs solutions of its problems
(`configs/sweeps/atesd.py`) and `sgsd`, which needs a bank of skills made for the problems (docs/data.md).
"""

from configs.sweeps.common import each, grid, seeds
from dasd_jax.methods import METHODS


def get_sweep():
    """51 points."""
    names = [name for name, method in METHODS.items() if method.rollouts and not _needs_more(method)]
    return grid(each("objective.method", names), seeds(3))


def _needs_more(method):
    return any(view.context in ("partial_solution", "skills") for view in method.views(method.fields()).values())
