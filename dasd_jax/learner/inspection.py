"""What the log shows of a few rollouts beyond the method's own numbers: both views' likeliest tokens, and every gap.

The rollouts are chosen before they are scored, and the score pass returns their hidden states. What it leaves
out, views that the update alone reads or the student, is computed here on these rows.
"""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp

from dasd_jax import vocab
from dasd_jax.batch import Array, Params
from dasd_jax.learner import passes, teachers
from dasd_jax.learner.passes import STUDENT
from dasd_jax.learner.step_config import StepConfig
from dasd_jax.mesh import reshard, spec
from dasd_jax.model.transformer import unembedding, with_embedding
from dasd_jax.objective.fused_pass import Outputs, in_chunks
from dasd_jax.objective.token_stats import token_logp

PLACES, LIKELIEST = 12, 5  # tokens of a rollout whose alternatives are kept, and how many of each view


@partial(jax.jit, static_argnames=("config",))
def inspect(
    config: StepConfig,
    params: Params,
    copies: dict[str, Params],
    prompts: dict[str, tuple[Array, Array]],
    response: Array,
    mask: Array,
    states: dict[str, Array],
    logged: dict[str, Array],
    rows: Array,
) -> tuple[dict[str, Array], Array, dict[str, tuple[Array, Array]]]:
    """The numbers per token of some rollouts, and the likeliest tokens of all views where the teacher acts most.

    Args:
        params, copies: those of `score_step`.
        prompts: view that the score pass has not computed, or "student" → (prompt i32[n, W], its mask) of the chosen
            rows.
        response, mask: [n, R].
        states: hidden states of the chosen rows, from `score_step`.
        logged: what `score_step` logs, of all rows.
        rows: i32[n], the chosen ones.

    Returns:
        (f32[n, R] by name: `logged`, and the gap of each teacher in `prompts`; i32[n, places], the tokens where the
        teacher's share of the credit is largest, or the gap, or without teachers the entropy; view → (ids
        i32[n, places, 5], probabilities f32, falling) at them).
    """
    chosen = {name: x.at[rows].get(out_sharding=spec("rows", None)) for name, x in logged.items()}
    views = {name: _outputs(config, params, copies, name, hidden) for name, hidden in states.items()}
    for name, prompt in prompts.items():
        views[name] = passes.outputs(config, _weights(config, params, copies, name), *prompt, response, mask)
    if unread := [name for name in prompts if name != STUDENT]:
        options = {"temperature": config.temperature, "chunk": config.chunk(response.shape[0])}
        of = {name: token_logp(views[name], response, **options) for name in (STUDENT, *unread)}
        chosen |= {gap_name(name): of[name] - of[STUDENT] for name in unread}
    strength = jnp.where(mask, jnp.abs(_strength(chosen)), -1.0)
    places = jnp.sort(jax.lax.top_k(strength, min(PLACES, strength.shape[1]))[1], axis=1)
    return chosen, places, {name: _likeliest(config, outputs, places) for name, outputs in views.items()}


def gap_name(view: str) -> str:
    """The name in the log of a view's gap."""
    return "gap" if view == "teacher" else f"gap/{view}"


def _outputs(config: StepConfig, params: Params, copies: dict[str, Params], name: str, hidden: Array) -> Outputs:
    """Hidden states that the score pass has made, beside the matrix that makes logits of them."""
    return hidden, unembedding(config.model, with_embedding(config.model, _weights(config, params, copies, name)))


def _weights(config: StepConfig, params: Params, copies: dict[str, Params], name: str) -> Params:
    return params if name == STUDENT else teachers.weights(config.views[name], params, copies)


def _strength(chosen: Mapping[str, Array]) -> Array:
    gaps = [name for name in sorted(chosen) if name.split("/")[0] == "gap"]
    return chosen["dense" if "dense" in chosen else gaps[0] if gaps else "entropy"]


def _likeliest(config: StepConfig, outputs: Outputs, places: Array) -> tuple[Array, Array]:
    """(ids i32[n, places, 5], probabilities) of a view's likeliest tokens at these places of its responses."""
    hidden, unembed = outputs

    def at(state: Array) -> tuple[Array, Array]:
        logp = reshard(vocab.log_probs(state, unembed, config.temperature), "rows", None, None)
        logp, ids = jax.lax.top_k(logp, min(LIKELIEST, logp.shape[-1]))
        return ids, jnp.exp(logp)

    hidden = reshard(jnp.take_along_axis(hidden, places[..., None], axis=1), "rows", None, None)
    return in_chunks(at, config.chunk(hidden.shape[0]), hidden)
