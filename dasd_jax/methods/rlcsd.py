"""RLCSD (arXiv 2606.11709): a right sibling against wrong ones, so that what every hint does to style cancels out.

With e_t = log p_T(right) - [logsumexp_k log p_T(wrong_k) - log K] of the drawn token, r_t = clip(beta · λ · tanh(e_t /
tau), ±bound). Tokens with |r_t| > delta are selected: A_t = A_G + r_t, held back where it would change the sign of
A_G. The loss is the token mean over the others plus eta times the token mean over the selected. Rollouts that lack a
right or a wrong sibling are dropped from the update and counted. Defaults are those of the official configuration for
mathematics at 1.7B, not those of its code (tau .03, beta .2, bound .5).

The official code draws one right sibling at random and takes means over micro-batches; ours takes the first of the
group and means over minibatches.
"""

import dataclasses

import jax
import jax.numpy as jnp

from dasd_jax.fields import Fields, above, at_least, field, span
from dasd_jax.objective.advantage import group_advantage
from dasd_jax.objective.contract import TEACHER_GUARDS, Method, Scored, Shape, Signal, View
from dasd_jax.objective.masked import masked_mean
from dasd_jax.objective.normalise import token_mean


@dataclasses.dataclass(frozen=True)
class RlcsdParams(Fields):
    """Constants of RLCSD."""

    beta: float = field(1.0, at_least(0), "weight of the teachers' term")
    mix: float = field(0.5, span(0, 1), "λ, a second factor of the teachers' term")
    tau: float = field(0.02, above(0, "nats"), "scale of the contrast")
    delta: float = field(0.02, at_least(0), "tokens whose term is larger are selected")
    bound: float = field(2.0, above(0), "of the term")
    eta: float = field(1.0, at_least(0), "weight of the selected tokens' mean")
    wrong: int = field(4, span(1, 16), "wrong siblings, K")
    refresh: int = field(10, at_least(1, "steps"), "steps between two copies for the teachers")


def views(hp: RlcsdParams) -> dict[str, View]:
    """One teacher with a right sibling and K prompts with wrong ones, of the same weights."""
    return {
        "teacher": View("sibling", "snapshot", every=hp.refresh),
        "wrong": View("wrong_siblings", "snapshot", every=hp.refresh, count=hp.wrong),
    }


def signal(scored: Scored, shape: Shape, hp: RlcsdParams) -> Signal:
    """The verifier's advantage, and at selected tokens the contrast."""
    right, wrong = scored.views["teacher"], scored.views["wrong"]
    both = right.shown[0] & jnp.any(wrong.shown, axis=0)
    keep = scored.mask & both[:, None]
    verifier = group_advantage(scored.reward, scored.live, shape.rollouts)[:, None]
    valid = jnp.maximum(jnp.sum(wrong.shown, axis=0), 1)[:, None]
    of_wrong = jax.nn.logsumexp(jnp.where(wrong.shown[..., None], wrong.logp, -jnp.inf), axis=0) - jnp.log(valid)
    contrast = jnp.where(keep, right.logp[0] - of_wrong, 0.0)
    term = jnp.clip(hp.beta * hp.mix * jnp.tanh(contrast / hp.tau), -hp.bound, hp.bound)
    term *= scored.knobs["teacher_weight"]
    selected = keep & (jnp.abs(term) > hp.delta)
    moved = verifier + term
    held = jnp.where(verifier > 0, jnp.maximum(moved, 0.0), jnp.where(verifier < 0, jnp.minimum(moved, 0.0), 0.0))
    credit = jnp.where(keep, jnp.where(selected, held, verifier), 0.0)
    weight = token_mean(keep & ~selected, shape) + hp.eta * token_mean(selected, shape)
    return Signal(
        advantage=credit,
        weight=weight,
        logged={"credit": credit, "dense": jnp.where(keep, credit - verifier, 0.0)},
        metrics={
            "teacher/age": (scored.knobs["step"] - 1) % hp.refresh,
            "rlcsd/selected_frac": masked_mean(selected, keep),
            "rlcsd/dropped_frac": masked_mean(~both, scored.live),
            "rlcsd/contrast_mean_abs": masked_mean(jnp.abs(contrast), keep),
            "gap/mean_abs": masked_mean(jnp.abs(right.logp[0] - scored.logp), keep),
            "credit/dense_abs_mean": masked_mean(jnp.abs(credit - verifier), keep),
            "credit/verifier_abs_mean": masked_mean(jnp.abs(verifier[:, 0]), scored.live),
        },
    )


METHOD = Method(
    fields=RlcsdParams,
    signal=signal,
    views=views,
    scored=lambda hp: ("teacher", "wrong"),
    anneals=True,
    guards=TEACHER_GUARDS,
    watched=("rlcsd/selected_frac", "rlcsd/dropped_frac", "credit/verifier_abs_mean"),
)
