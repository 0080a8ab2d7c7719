"""Direction-Adaptive Self-Distillation (arXiv 2605.22263): entropy decides the direction of the teacher's pressure.

A token's credit is the verifier's group-relative advantage plus β · route · gate(|d|) · d, where d is the scaled gap of
teacher and student. Low-entropy tokens are attracted (route > 0), high-entropy tokens are repelled (route < 0).

Where this differs from the paper's text, or fills what the text leaves open:
    rho        0.20 means that the top 20 % of a response's tokens by entropy are forks. Read as the lower quantile it
               leaves no token to attract; `rho_side="bottom"` keeps that reading.
    scale      the gap is divided by its own mean absolute value in the response, never centred (its sign is the
               teacher's opinion), floored at `s_min` and clipped at ±`clip`.
    off rows   responses with fewer than `min_tokens` tokens, or of constant entropy, are not routed.
    route_by   panel A of the paper routes by other signals than the entropy. Which way round some of them go is
               reconstructed: what counts as uncertain is a late position, a small probability of the drawn token, a
               large gap, a rare token of the batch; `random` draws anew in every step.
    form       sampled: credit of the token that was drawn. full: the exact expectation of the same term over the
               vocabulary; a live teacher is then read with the current weights.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from dasd_jax.batch import Array
from dasd_jax.fields import TRUE_OR_FALSE, Fields, above, at_least, field, inside, one_of
from dasd_jax.mesh import reshard
from dasd_jax.objective.advantage import group_advantage, smallest_advantage
from dasd_jax.objective.contract import (
    BLANK,
    CONTROLS,
    OFFERED,
    SIGNAL_TO_NOISE,
    WEIGHTS,
    Guard,
    Method,
    Scored,
    Shape,
    Signal,
    View,
    mean_guard,
)
from dasd_jax.objective.divergence import Divergence, expected
from dasd_jax.objective.masked import masked_mean, pooled_count, row_quantile
from dasd_jax.objective.normalise import token_mean

SIGNALS = ("entropy", "teacher_entropy", "position", "improbability", "gap", "frequency", "random")
TWO_ARMED = ("signed", "hard", "flip_both")  # routes that attract and repel
ROUTES = (*TWO_ARMED, "attract_only", "repel_only", "flip_low", "flip_high", "conformity", "novelty")
GATES = ("sigmoid", "none", "hard", "inverse", "confidence")
SCALES = ("mean_abs", "mad", "std", "none")


@dataclasses.dataclass(frozen=True)
class DasdParams(Fields):
    """Constants of DASD; the defaults are ours where the paper leaves them open."""

    form: str = field("sampled", one_of("sampled", "full"), "credit of the drawn token, or its expectation")
    rho: float = field(0.2, inside(0, 1), "share of a response's tokens that are forks")
    rho_side: str = field("top", one_of("top", "bottom"), "forks have top entropy, or threshold at quantile rho")
    beta: float = field(0.1, at_least(0), "weight of the teacher's term; 0 is GRPO")
    clip: float = field(3.0, at_least(0, off=True), "bound of the scaled gap")
    s_min: float = field(0.02, above(0, "nats"), "floor of the gap's scale, as gap/noise_mean_abs is")
    scale: str = field("mean_abs", one_of(*SCALES), "what divides a response's gap")
    gate: str = field("sigmoid", one_of(*GATES), "on the teacher's term; sigmoid: of |scaled gap| - 1")
    route_by: str = field("entropy", one_of(*SIGNALS), "what decides a token's direction; entropy: the student's")
    route: str = field("signed", one_of(*ROUTES), "direction map; flip: one arm, or both, the other way round")
    min_tokens: int = field(4, at_least(1, "tokens"), "shorter responses are not routed")
    min_spread: float = field(1e-4, at_least(0, "nats"), "responses whose entropies deviate less are not routed")
    dense_on_zero_adv: bool = field(True, TRUE_OR_FALSE, "keep the teacher's term where a response's advantage is 0")
    repel_kl_max: float = field(0.0, at_least(0, "nats", off=True), "no repulsion above this KL(student || teacher)")
    context: str = field("", one_of(*OFFERED, *CONTROLS), "shown; empty: data.privileged; the last two: controls")
    teacher: str = field("live", one_of(*WEIGHTS), "the teacher's weights: current, initial, averaged, copied")
    rate: float = field(0.05, inside(0, 1), "of ema: student's share in each update of the teacher's weights")
    refresh: int = field(20, at_least(1, "steps"), "of snapshot: steps between two copies")


def dasd(
    student_logp: Array, teacher_logp: Array, entropy: Array, mask: Array, group_advantage: Array, hp: DasdParams
) -> tuple[Array, dict[str, Array]]:
    """DASD's token credit A_t = A_G + β · route_t · gate(|d_t|) · d_t, d the scaled gap of teacher and student.

    Args:
        student_logp, teacher_logp: f32[rows, R], log-probability of the sampled token in each view, nats.
        entropy: f32[rows, R], the student's, over the whole vocabulary, nats; or what else is to be routed by.
        mask: bool[rows, R]; what stands where it is False, NaN and infinities included, changes nothing.
        group_advantage: f32[rows].

    Returns:
        (credit f32[rows, R], 0 where mask is False; scalars for the log). `hp.repel_kl_max`, `hp.route_by` and the gate
        "confidence" need more of every token than this function is given: only `METHOD` applies them.
    """
    live = jnp.any(mask, axis=1)
    credit, _, _, _, metrics = _credit(student_logp, teacher_logp, entropy, mask, live, group_advantage, hp, hp.beta)
    return credit, metrics


def _credit(
    logp, teacher_logp, entropy, mask, live, verifier, hp, beta, noise=0.0, reverse_kl=None, trust=1.0, shown=True
):
    """(credit f32[rows, R], weight of the teacher's term f32[rows, R], scale f32[rows], for samples, for the log)."""
    gap = jnp.where(mask, teacher_logp, 0.0) - jnp.where(mask, logp, 0.0)
    entropy = jnp.where(mask, entropy, 0.0)
    scale = gap_scale(gap, mask, hp, noise)
    route, on = router(entropy, mask, hp)
    if not hp.dense_on_zero_adv:
        route = jnp.where(verifier[:, None] == 0, 0.0, route)
    metrics = {}
    if reverse_kl is not None:
        # Over all that the router repels: over what the bound lets through it could never exceed the bound.
        metrics["gap/repel_kl"] = masked_mean(reverse_kl, mask & (route < 0))
        if hp.repel_kl_max:
            held = (route < 0) & (reverse_kl > hp.repel_kl_max)
            metrics["router/held_frac"] = masked_mean(held, mask)
            route = jnp.where(held, 0.0, route)
    weight = route * trust
    pressure = weight * gated_gap(gap, scale[:, None], hp)

    rows, mass, told = jnp.any(mask, axis=1), jnp.abs(pressure), mask & shown
    metrics |= {
        "router/attract_frac": masked_mean(route > 0, mask),
        "router/repel_frac": masked_mean(route < 0, mask),
        "router/attract_mass": masked_mean(jnp.where(route > 0, mass, 0.0), mask),
        "router/repel_mass": masked_mean(jnp.where(route < 0, mass, 0.0), mask),
        "router/rows_off_frac": masked_mean(~on, rows),
        "gap/mean": masked_mean(gap, told),
        "gap/mean_abs": masked_mean(jnp.abs(gap), told),
        "gap/scale_mean": masked_mean(scale, jnp.any(told, axis=1)),
        "credit/dense_abs_mean": beta * masked_mean(mass, mask),
        "credit/verifier_abs_mean": masked_mean(jnp.abs(verifier), live),
    }
    credit = jnp.where(mask, verifier[:, None] + beta * pressure, 0.0)
    open_by = gate(scaled_gap(gap, scale[:, None], hp), hp) * trust
    return credit, weight, scale, {"route": route, "gate": jnp.where(mask, open_by, 0.0)}, metrics


def router(entropy: Array, mask: Array, hp: DasdParams) -> tuple[Array, Array]:
    """Direction of the teacher's pressure at each token: + attracts, - repels.

    route_t = tanh((τ_ρ - H_t) / (σ_H + 1e-6)), τ_ρ the entropy quantile and σ_H the mean absolute deviation of the
    entropies of that response. Source: arXiv 2605.22263, equation of ω_t.

    Args:
        entropy: f32[rows, R], nats.
        mask: bool[rows, R].

    Returns:
        (route f32[rows, R] in [-1, 1], 0 on padding and on rows that are off; on bool[rows]).
    """
    spread = masked_mean(jnp.abs(entropy - masked_mean(entropy, mask, 1)[:, None]), mask, 1)
    threshold = row_quantile(entropy, mask, 1 - hp.rho if hp.rho_side == "top" else hp.rho)
    on = (jnp.sum(mask, axis=1) >= hp.min_tokens) & (spread >= hp.min_spread)
    signed = jnp.tanh((threshold[:, None] - entropy) / (spread[:, None] + 1e-6))
    route = {
        "signed": lambda: signed,
        "hard": lambda: jnp.sign(signed),
        "attract_only": lambda: jnp.maximum(signed, 0.0),
        "repel_only": lambda: jnp.minimum(signed, 0.0),
        "flip_low": lambda: -jnp.abs(signed),
        "flip_high": lambda: jnp.abs(signed),
        "flip_both": lambda: -signed,
        "conformity": lambda: jnp.ones_like(signed),
        "novelty": lambda: -jnp.ones_like(signed),
    }[hp.route]()
    return jnp.where(mask & on[:, None], route, 0.0), on


def gap_scale(gap: Array, mask: Array, hp: DasdParams, noise: Array | float = 0.0) -> Array:
    """The typical size of a response's gap: f32[rows, R] → f32[rows] in nats (1 for "none").

    It is floored at s_min, and at the size that rounding alone gives a gap (nats): divided by less, noise would look
    like a teacher's opinion.
    """
    if hp.scale == "none":
        return jnp.ones(gap.shape[0], jnp.float32)
    if hp.scale == "mean_abs":
        size = masked_mean(jnp.abs(gap), mask, 1)
    else:
        off_centre = gap - masked_mean(gap, mask, 1)[:, None]
        if hp.scale == "mad":
            size = masked_mean(jnp.abs(off_centre), mask, 1)
        else:
            size = jnp.sqrt(masked_mean(off_centre**2, mask, 1))
    return jnp.maximum(size, jnp.maximum(hp.s_min, noise))


def gated_gap(gap: Array, scale: Array, hp: DasdParams) -> Array:
    """The scaled, clipped and gated gap, elementwise: gate(d) · d with d = clip(gap / scale, ±clip).

    The gate sigmoid(|d| - 1) is 0.269 at 0, one half at a typical gap and 0.881 at three; "hard" is 1 above a typical
    gap and 0 below, "inverse" sigmoid(1 - |d|). The gate "confidence", exp(-teacher's entropy), is the same for all
    words and stands in the weight of the token. Both forms of the loss use this one function: the sampled form at the
    token that was drawn, the full form at every word of the vocabulary.
    """
    scaled = scaled_gap(gap, scale, hp)
    return gate(scaled, hp) * scaled


def scaled_gap(gap: Array, scale: Array, hp: DasdParams) -> Array:
    """The gap in units of its typical size, clipped; elementwise."""
    scaled = gap / scale
    return jnp.clip(scaled, -hp.clip, hp.clip) if hp.clip else scaled


def gate(scaled: Array, hp: DasdParams) -> Array:
    """How far the gate is open at each scaled gap, in [0, 1]; 1 where it is none of these three; elementwise."""
    return {
        "sigmoid": lambda: jax.nn.sigmoid(jnp.abs(scaled) - 1),
        "inverse": lambda: jax.nn.sigmoid(1 - jnp.abs(scaled)),
        "hard": lambda: jnp.where(jnp.abs(scaled) > 1, 1.0, 0.0),
    }.get(hp.gate, lambda: jnp.ones_like(scaled))()


def dense_bound(hp: DasdParams) -> float:
    """The most that the teacher's term can add to a token's credit, with the sigmoid gate β · c · sigmoid(c - 1).

    Infinite without a clip.
    """
    sizes = jnp.linspace(0.0, hp.clip, 1001)  # the inverse gate has its largest value inside
    return hp.beta * float(jnp.max(gated_gap(sizes, 1.0, hp))) if hp.clip or not hp.beta else math.inf


def routed_by(scored: Scored, hp: DasdParams) -> Array:
    """What decides the direction of each token, higher where the student counts as uncertain: f32[rows, R]."""
    mask, view = scored.mask, scored.views["teacher"]
    return {
        "entropy": lambda: scored.entropy,
        "teacher_entropy": lambda: view.entropy[0],
        "position": lambda: jnp.cumsum(mask, axis=1).astype(jnp.float32),
        "improbability": lambda: 1 - jnp.exp(scored.logp),
        "gap": lambda: jnp.abs(view.logp[0] - scored.logp),
        "frequency": lambda: -jnp.log(pooled_count(scored.tokens, mask).astype(jnp.float32)),
        "random": lambda: _uniform(mask, scored.knobs["seed"], scored.knobs["step"]),
    }[hp.route_by]()


def _uniform(mask: Array, seed: Array, step: Array) -> Array:
    """Numbers in [0, 1) that differ from step to step and from run to run: f32[rows, R]."""
    key = jax.random.key(0)
    for number in (seed, step):
        key = jax.random.fold_in(key, number.astype(jnp.int32))
    return reshard(jax.random.uniform(key, mask.shape), "rows", None)


def views(hp: DasdParams) -> dict[str, View]:
    """One teacher."""
    rate, every = hp.rate if hp.teacher == "ema" else 0.0, hp.refresh if hp.teacher == "snapshot" else 0
    return {"teacher": View(hp.context, hp.teacher, rate, every)}


def signal(scored: Scored, shape: Shape, hp: DasdParams) -> Signal:
    """Credit of each token; in the full form the verifier's alone, and the teacher's as weight of the divergence."""
    teacher, mask = scored.views["teacher"], scored.mask
    verifier = group_advantage(scored.reward, scored.live, shape.rollouts)
    beta, shown = hp.beta * scored.knobs["teacher_weight"], teacher.shown[0][:, None]
    credit, pull, scale, logged, metrics = _credit(
        scored.logp,
        teacher.logp[0],
        routed_by(scored, hp),
        mask,
        scored.live,
        verifier,
        hp,
        beta,
        noise=scored.knobs["noise"],
        reverse_kl=None if teacher.reverse_kl is None else teacher.reverse_kl[0],
        trust=jnp.exp(-teacher.entropy[0]) if hp.gate == "confidence" else 1.0,
        shown=shown,
    )
    weight, constant = token_mean(mask, shape), jnp.broadcast_to(verifier[:, None], credit.shape)
    logged |= {"credit": credit, "dense": jnp.where(mask, credit - constant, 0.0)}
    if hp.form == "sampled":
        return Signal(advantage=credit, weight=weight, logged=logged, metrics=metrics)
    # A teacher that is shown nothing may have other weights than the student, and says nothing about its tokens.
    kl = jnp.where(shown, weight * beta * pull, 0.0)
    return Signal(advantage=constant, weight=weight, kl=kl, given=scale, logged=logged, metrics=metrics)


def divergence(hp: DasdParams) -> Divergence | None:
    """The full form: -Σ_v p_S(v) · gate(d(v)) d(v), d taken as a constant; weighted by route it attracts and repels.

    It is the exact expectation of the sampled form's dense term over the token drawn, bounded on both arms; with clip
    and gate off and scale 1 its gradient is that of KL(student || teacher).
    """
    if hp.form == "sampled":
        return None
    return expected("teacher", lambda ls, lt, scale: -gated_gap(lt - ls, scale, hp))


def _notice(hp: DasdParams, rollouts: int, graded: bool) -> str:
    loudest, smallest = dense_bound(hp), smallest_advantage(rollouts)
    if not loudest:
        return ""
    if graded:
        return (
            f"warning: the teacher's term reaches {loudest:.3f} and can change the sign of an advantage: graded "
            "rewards (of objective.overlong_tokens, or a function in data.verifier) allow arbitrarily small advantages"
        )
    if loudest <= smallest:
        return ""
    return (
        f"warning: the teacher's term reaches {loudest:.3f} and can change the sign of the smallest advantage "
        f"{smallest:.3f} of a mixed group of {rollouts} (rollout.rollouts); lower objective.beta or objective.clip"
    )


def _weaker_arm(means: dict[str, float], hp: DasdParams) -> tuple[str, float] | None:
    attract, repel = means["router/attract_mass"], means["router/repel_mass"]
    if hp.route not in TWO_ARMED:
        return None
    weaker = min(attract, repel)
    arm = "attract" if attract == weaker else "repel"
    return f"the share of router/{arm}_mass in both arms", weaker / (attract + repel) if weaker else 0.0


METHOD = Method(
    fields=DasdParams,
    signal=signal,
    views=views,
    scored=lambda hp: ("teacher",),
    rescored=lambda hp: bool(hp.repel_kl_max),
    divergence=divergence,
    notice=_notice,
    anneals=True,
    guards=(
        SIGNAL_TO_NOISE,
        BLANK,
        mean_guard(
            "repel_kl", "gap/repel_kl", high_is_bad=True, means="tokens far from the teacher are pushed further (nats)"
        ),
        Guard(
            level="arm",
            reads=("router/attract_mass", "router/repel_mass"),
            reading=_weaker_arm,
            high_is_bad=False,
            means="the teacher hardly acts in this direction; see objective.rho and objective.rho_side",
        ),
    ),
    watched=(
        "router/rows_off_frac",
        "router/attract_mass",
        "router/repel_mass",
        "credit/dense_abs_mean",
        "credit/verifier_abs_mean",
    ),
)
