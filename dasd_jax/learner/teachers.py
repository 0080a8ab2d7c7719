"""Whose weights read the teacher's prompt: those that learn (live), or a copy that the training state keeps.

    live        no copy; a teacher is then the same parameters on another prompt
    frozen      those that the run started from
    ema         an average that moves once a rollout batch: (1 - rate) · average + rate · student
    snapshot    those of the last step whose number `every` divides

A copy is float32 in the layout of the parameters, one for each policy that some view of the method needs.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from dasd_jax.batch import Array, Params
from dasd_jax.objective.contract import View


def policy(view: View) -> str:
    """The key of a view's copy in `TrainState.teachers`; "" where it needs none."""
    return {"live": "", "frozen": "frozen", "ema": f"ema_{view.rate:g}", "snapshot": f"snapshot_{view.every}"}[
        view.weights
    ]


def start(params: Params, views: Mapping[str, View]) -> dict[str, Params]:
    """The copies at the start of a run, all of them the parameters; inside a jitted program."""
    return {key: jax.tree.map(jnp.copy, params) for key in _copied(views)}


def weights(view: View, params: Params, teachers: dict[str, Params]) -> Params:
    """The parameters that a view is computed with, as constants: this is the one stop_gradient."""
    key = policy(view)
    return jax.lax.stop_gradient(teachers[key] if key else params)


def advance(
    teachers: dict[str, Params], views: Mapping[str, View], params: Params, step: Array, updated: Array
) -> dict[str, Params]:
    """The copies after a rollout batch.

    Args:
        params: the student's, after the batch.
        step: i32[], rollout batches learned from, this one among them.
        updated: bool[], whether any update of the batch was made; without one the average stays.
    """

    def after(key: str, view: View) -> Params:
        old = teachers[key]
        if view.weights == "frozen":
            return old
        if view.weights == "ema":
            moved, new = updated, jax.tree.map(lambda a, b: (1 - view.rate) * a + view.rate * b, old, params)
        else:
            moved, new = step % view.every == 0, params
        return jax.tree.map(lambda a, b: jnp.where(moved, a, b), new, old)

    return {key: after(key, view) for key, view in _copied(views).items()}


def _copied(views: Mapping[str, View]) -> dict[str, View]:
    """One view of each policy that needs a copy."""
    return {policy(view): view for view in views.values() if policy(view)}
