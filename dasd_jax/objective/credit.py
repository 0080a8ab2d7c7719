"""Token credit: how much each sampled token is to be reinforced. Arrays in, arrays out; no model, no gradients.

Every method is a pure function registered by name, `(stats, mask, reward, group, hp) → Credit`. Positive credit
raises the probability of the token that was sampled.

Where this differs from the text of arXiv 2605.22263, or fills what the text leaves open:
    rho        0.20 means that the top 20 % of a response's tokens by entropy are forks. Read as the lower quantile it
               leaves no token to attract; `rho_side="bottom"` keeps that reading.
    scale      the gap is divided by its own mean absolute value in the response, never centred (its sign is the
               teacher's opinion), floored at `s_min` and clipped at ±`clip`.
    off rows   responses with fewer than `min_tokens` tokens, or of constant entropy, are not routed.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from dasd_jax.batch import Array, TokenStats

TWO_ARMED = ("signed", "hard")  # routes that attract and repel
ROUTES = (*TWO_ARMED, "attract_only", "repel_only", "conformity", "novelty")
SCALES = ("mean_abs", "mad", "std", "none")


@dataclasses.dataclass(frozen=True)
class DasdParams:
    """Constants of DASD; the defaults are ours where the paper leaves them open."""

    rho: float = 0.2  # share of a response's tokens on the far side of the entropy threshold, in (0, 1)
    rho_side: str = "top"  # top: the rho share of highest entropy is repelled | bottom: threshold at quantile rho
    beta: float = 0.1  # weight of the teacher's term against the verifier's advantage
    clip: float = 3.0  # bound of the scaled gap; 0 takes it as it is
    s_min: float = 0.02  # nats, floor of the gap's scale: below it teacher and student differ by noise
    scale: str = "mean_abs"  # mean_abs | mad | std | none: what divides the gap of a response
    gate: bool = True  # sigmoid(|scaled gap| - 1); False: 1
    route: str = "signed"  # signed | hard | attract_only | repel_only | conformity (+1) | novelty (-1)
    min_tokens: int = 4  # shorter responses are not routed
    min_spread: float = 1e-4  # nats, mean absolute deviation of the entropies; below it a response is not routed
    dense_on_zero_adv: bool = True  # keep the teacher's term where all of a group scored the same
    repel_kl_max: float = 0.0  # nats; no repulsion where KL(student || teacher) of the token exceeds it; 0: no bound


@struct.dataclass
class Credit:
    """What a method says of a batch of rollouts; f32 arrays over [rows, R].

    Attributes:
        advantage: the token's credit, in units of the group-standardised reward; 0 where the mask is False.
        keep: bool, the tokens that enter the loss; the divisor is their number.
        scale: f32[rows], the divisor of the response's gap, in nats; the full form takes it as a constant.
        route: the direction of the teacher's pressure, in [-1, 1]; beta times it is the full form's weight.
        verifier: f32[rows], the part of the advantage that comes from the reward alone.
        metrics: scalars for the log.
    """

    advantage: Array
    keep: Array
    scale: Array
    route: Array
    verifier: Array
    metrics: dict[str, Array]


METHODS: dict[str, Callable[..., Credit]] = {}
NEEDS_TEACHER: set[str] = set()  # the methods that read the teacher's fields of TokenStats


def method(name: str, *, teacher: bool) -> Callable:
    """Registers a method under a name; without a teacher no second forward pass is made."""

    def register(function: Callable[..., Credit]) -> Callable[..., Credit]:
        METHODS[name] = function
        if teacher:
            NEEDS_TEACHER.add(name)
        return function

    return register


def masked_mean(x: Array, mask: Array, axis=None) -> Array:
    """Mean of x where mask is True, 0 where nothing is; x may be anything, NaN too, where mask is False."""
    return jnp.sum(jnp.where(mask, x, 0.0), axis=axis) / jnp.maximum(jnp.sum(mask, axis=axis), 1)


def group_advantage(reward: Array, mask: Array, group: int) -> Array:
    """GRPO's advantage: (reward - mean) / (sample standard deviation + 1e-6) within each group.

    Args:
        reward: f32[rows], problem-major.
        mask: bool[rows, R]; rows without a token are padding and do not count.
        group: G ≥ 2, rollouts of each problem.

    Returns:
        f32[rows]; 0 for padding and in groups whose rewards are all equal. Source: arXiv 2402.03300, equation 3.
    """
    live = jnp.any(mask, axis=1).reshape(-1, group)
    reward = jnp.where(live, reward.reshape(-1, group), 0.0)
    count = jnp.sum(live, axis=1, keepdims=True)
    centred = jnp.where(live, reward - jnp.sum(reward, axis=1, keepdims=True) / jnp.maximum(count, 1), 0.0)
    std = jnp.sqrt(jnp.sum(centred**2, axis=1, keepdims=True) / jnp.maximum(count - 1, 1))
    # Equal rewards leave rounding behind, which 1e-6 would blow up.
    return jnp.where(std > 1e-5, centred / (std + 1e-6), 0.0).reshape(-1)


def row_quantile(x: Array, mask: Array, q: float) -> Array:
    """Quantile of each row's masked values, linear between neighbours: f32[rows, R] → f32[rows]; 0 for empty rows."""
    ordered = jnp.sort(jnp.where(mask, x, jnp.inf), axis=1)
    count = jnp.sum(mask, axis=1)
    at = q * jnp.maximum(count - 1, 0).astype(jnp.float32)
    low = jnp.floor(at).astype(jnp.int32)
    high = jnp.minimum(low + 1, jnp.maximum(count - 1, 0))
    below, above = (jnp.where(count > 0, jax.vmap(lambda row, i: row[i])(ordered, index), 0.0) for index in (low, high))
    return below + (at - low) * (above - below)


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
        "conformity": lambda: jnp.ones_like(signed),
        "novelty": lambda: -jnp.ones_like(signed),
    }[hp.route]()
    return jnp.where(mask & on[:, None], route, 0.0), on


def gap_scale(gap: Array, mask: Array, hp: DasdParams) -> Array:
    """The typical size of a response's gap, floored at s_min: f32[rows, R] → f32[rows] in nats (1 for "none")."""
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
    return jnp.maximum(size, hp.s_min)


def gated_gap(gap: Array, scale: Array, hp: DasdParams) -> Array:
    """The scaled, clipped and gated gap, elementwise: gate(d) · d with d = clip(gap / scale, ±clip).

    The gate sigmoid(|d| - 1) is 0.269 at 0, one half at a typical gap and 0.881 at three. Both forms of the loss use
    this one function: the sampled form at the token that was drawn, the full form at every entry of the vocabulary.
    """
    scaled = gap / scale
    if hp.clip:
        scaled = jnp.clip(scaled, -hp.clip, hp.clip)
    return jax.nn.sigmoid(jnp.abs(scaled) - 1) * scaled if hp.gate else scaled


def dense_bound(hp: DasdParams) -> float:
    """The most that the teacher's term can add to a token's credit: β · c · sigmoid(c - 1); infinite without a clip."""
    return hp.beta * float(gated_gap(hp.clip, 1.0, hp)) if hp.clip or not hp.beta else math.inf


def smallest_advantage(group: int) -> float:
    """The smallest non-zero |A_G| of 0/1 rewards in a group of G: that of the many in a split of 1 against G - 1.

    With the sample standard deviation it is 1 / √G; a `dense_bound` above it can turn the verifier's verdict.
    """
    return group**-0.5


def dasd(
    student_logp: Array,
    teacher_logp: Array,
    entropy: Array,
    mask: Array,
    group_advantage: Array,
    hp: DasdParams,
) -> tuple[Array, dict[str, Array]]:
    """DASD's token credit A_t = A_G + β · route_t · gate(|d_t|) · d_t, d the scaled gap of teacher and student.

    Args:
        student_logp, teacher_logp: f32[rows, R], log-probability of the sampled token in each view, nats.
        entropy: f32[rows, R], the student's, over the whole vocabulary, nats.
        mask: bool[rows, R]; what stands where it is False, NaN and infinities included, changes nothing.
        group_advantage: f32[rows].

    Returns:
        (credit f32[rows, R], 0 where mask is False; dict of scalars for the log). hp.repel_kl_max needs the divergence
        of every token, which this function is not given: it holds in the registered method.
    """
    parts = _dasd_parts(student_logp, teacher_logp, entropy, mask, group_advantage, hp)
    return parts.advantage, parts.metrics


def _dasd_parts(student_logp, teacher_logp, entropy, mask, verifier, hp, reverse_kl=None) -> Credit:
    gap = jnp.where(mask, teacher_logp, 0.0) - jnp.where(mask, student_logp, 0.0)
    entropy = jnp.where(mask, entropy, 0.0)
    scale = gap_scale(gap, mask, hp)
    route, on = router(entropy, mask, hp)
    if not hp.dense_on_zero_adv:
        route = jnp.where(verifier[:, None] == 0, 0.0, route)
    metrics = {}
    if reverse_kl is not None:
        # Of all that the router repels: of what the bound lets through it would say nothing but the bound.
        metrics["gap/repel_kl"] = masked_mean(reverse_kl, mask & (route < 0))
        if hp.repel_kl_max:
            held = (route < 0) & (reverse_kl > hp.repel_kl_max)
            metrics["router/held_frac"] = masked_mean(held, mask)
            route = jnp.where(held, 0.0, route)
    pressure = route * gated_gap(gap, scale[:, None], hp)

    live = jnp.any(mask, axis=1)
    mass = jnp.abs(pressure)
    metrics |= {
        "router/attract_frac": masked_mean(route > 0, mask),
        "router/repel_frac": masked_mean(route < 0, mask),
        "router/attract_mass": masked_mean(jnp.where(route > 0, mass, 0.0), mask),
        "router/repel_mass": masked_mean(jnp.where(route < 0, mass, 0.0), mask),
        "router/rows_off_frac": masked_mean(~on, live),
        "gap/mean": masked_mean(gap, mask),
        "gap/mean_abs": masked_mean(jnp.abs(gap), mask),
        "gap/scale_mean": masked_mean(scale, live),
        "credit/dense_abs_mean": hp.beta * masked_mean(mass, mask),
        "credit/verifier_abs_mean": masked_mean(jnp.abs(verifier), live),
    }
    return Credit(
        advantage=jnp.where(mask, verifier[:, None] + hp.beta * pressure, 0.0),
        keep=mask,
        scale=scale,
        route=route,
        verifier=verifier,
        metrics=metrics,
    )


@method("dasd", teacher=True)
def dasd_credit(stats: TokenStats, mask: Array, reward: Array, group: int, hp: DasdParams) -> Credit:
    """Direction-adaptive self-distillation on top of the group-relative advantage; see `dasd`."""
    verifier = group_advantage(reward, mask, group)
    return _dasd_parts(
        stats.student_logp, stats.teacher_logp, stats.student_entropy, mask, verifier, hp, stats.reverse_kl
    )


@method("grpo", teacher=False)
def grpo_credit(stats: TokenStats, mask: Array, reward: Array, group: int, hp: DasdParams) -> Credit:
    """The group-relative advantage alone, the same for every token of a response."""
    verifier = group_advantage(reward, mask, group)
    advantage = jnp.where(mask, verifier[:, None], 0.0)
    return Credit(
        advantage=advantage,
        keep=mask,
        scale=jnp.ones_like(verifier),
        route=jnp.zeros_like(advantage),
        verifier=verifier,
        metrics={"credit/verifier_abs_mean": masked_mean(jnp.abs(verifier), jnp.any(mask, axis=1))},
    )
