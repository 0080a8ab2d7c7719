"""Divergences over the whole vocabulary, as functions of log-probabilities that see a few words at a time.

`objective/fused_pass.py` applies them without an array [rows, R, V]: once a chunk of positions over all words for
`summary` and `value`, and once a block of words over all positions for the gradient, from `slope`.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from dasd_jax.batch import Array
from dasd_jax.mesh import reshard


@dataclasses.dataclass(frozen=True)
class Divergence:
    """Σ_v f(v) of the student's distribution p_S and those of some teachers.

    The functions take ls, the student's log-probabilities f32[rows, r, words]; lts, a tuple of the teachers'; `given`,
    the tree `Signal.given` with leaves f32[rows, r, 1]; and all but the first `sums`.

    Attributes:
        views: the teachers that it reads, names in `Method.views`, each with one prompt per rollout.
        summary: (ls, lts, given) → sums, a tree of f32[rows, r, 1], from the whole vocabulary.
        value: (ls, lts, given, sums) → f, f32[rows, r, words].
        slope: (ls, lts, given, sums) → p_S(v) · ∂ Σ_w f(w) / ∂ p_S(v), f32[rows, r, words]; then the gradient by the
            logit of v is slope(v) - p_S(v) · Σ_w slope(w). What a formula takes as a constant lies in given or sums.
    """

    views: tuple[str, ...]
    summary: Callable
    value: Callable
    slope: Callable


def _no_summary(ls: Array, lts: tuple[Array, ...], given) -> tuple:
    return ()


def expected(view: str, credit: Callable[[Array, Array, Array], Array]) -> Divergence:
    """Σ_v p_S(v) · credit(v), the credit taken as a constant: the exact expectation of a sampled token's term.

    Its gradient is the expectation, over the token that is drawn, of credit · ∇ log p_S(token).

    Args:
        view: the teacher.
        credit: elementwise (ls, lt, given) → f32[rows, r, words].
    """

    def value(ls, lts, given, sums):
        return jnp.exp(ls) * credit(ls, lts[0], given)

    return Divergence((view,), _no_summary, value, slope=value)


def gjsd(view: str, b: float, entry_max: float = math.inf) -> Divergence:
    """Generalised Jensen-Shannon divergence b · KL(p_T || m) + (1 - b) · KL(p_S || m), m = b p_T + (1 - b) p_S.

    b = 0 is KL(p_T || p_S) and b = 1 is KL(p_S || p_T), by definition. Source: arXiv 2306.13649, equation 1.

    Args:
        view: the teacher.
        b: in [0, 1], the teacher's share.
        entry_max: nats; each word's term is at most this, before they are added up (OPSD's clamp).
    """

    def value(ls, lts, given, sums):
        return jnp.minimum(_term(b, ls, lts[0]), entry_max)

    def slope(ls, lts, given, sums):
        return jnp.where(_term(b, ls, lts[0]) < entry_max, _term_slope(b, ls, lts[0]), 0.0)

    return Divergence((view,), _no_summary, value, slope)


def softened(divergence: Divergence, by: float) -> Divergence:
    """The divergence of distributions whose logits are divided by `by` once more, the teachers' as the student's.

    With q = softmax(logits / by) its gradient by a logit is (slope_q(v) - q(v) · Σ_w slope_q(w)) / by. That sums to 0
    over the words, so that it is the slope itself.

    Args:
        by: positive.
    """
    if by == 1:
        return divergence

    def tempered(ls, lts, norms):
        return [logp / by - norm for logp, norm in zip((ls, *lts), norms, strict=True)]

    def summary(ls, lts, given):
        norms = tuple(jax.nn.logsumexp(logp / by, axis=-1, keepdims=True) for logp in (ls, *lts))
        student, *teachers = tempered(ls, lts, norms)
        inner = divergence.summary(student, tuple(teachers), given)
        slopes = divergence.slope(student, tuple(teachers), given, inner)
        return norms, inner, jnp.sum(slopes, axis=-1, keepdims=True)

    def value(ls, lts, given, sums):
        norms, inner, _ = sums
        student, *teachers = tempered(ls, lts, norms)
        return divergence.value(student, tuple(teachers), given, inner)

    def slope(ls, lts, given, sums):
        norms, inner, slopes = sums
        student, *teachers = tempered(ls, lts, norms)
        return (divergence.slope(student, tuple(teachers), given, inner) - jnp.exp(student) * slopes) / by

    return Divergence(divergence.views, summary, value, slope)


def top_k_tail(view: str, k: int, b: float) -> Divergence:
    """`gjsd` over the student's k likeliest words and one more that holds all the rest (SDPO, arXiv 2601.20802).

    The words are those above a threshold halfway between the student's ranks k and k + 1, in log-probability: the
    forward and the backward pass compute it differently, and without that margin rounding could select other words.
    """

    def summary(ls, lts, given):
        if ls.shape[-1] <= k:
            threshold = jnp.full_like(jnp.max(ls, axis=-1, keepdims=True), -jnp.inf)  # in the layout of the rows
        else:
            # Ranking needs a token's whole vocabulary on one device.
            ranked, _ = jax.lax.top_k(reshard(ls, "rows", None, None), k + 1)
            threshold = jnp.mean(ranked[..., k - 1 :], axis=-1, keepdims=True)
        rest = [jnp.where(ls > threshold, -jnp.inf, logp) for logp in (ls, lts[0])]
        return threshold, *(jax.nn.logsumexp(logp, axis=-1, keepdims=True) for logp in rest)

    def spread(of: Callable, ls, lts, given, sums):
        """A function of two log-probabilities at the words above the threshold, and its share of the rest below it."""
        threshold, rest_ls, rest_lt = sums
        share = jnp.exp(ls - rest_ls)
        return jnp.where(ls > threshold, of(ls, lts[0]), share * of(rest_ls, rest_lt))

    return Divergence((view,), summary, partial(spread, partial(_term, b)), partial(spread, partial(_term_slope, b)))


def toward(divergence: Divergence, views: tuple[str, ...], constants: Callable, target: Callable) -> Divergence:
    """The divergence of the student from one distribution that is made of several teachers.

    Args:
        divergence: from one teacher; the target takes its place.
        views: the teachers of the target.
        constants: (lts, given) → a tree of f32[rows, r, 1], from the whole vocabulary.
        target: (lts, given, constants) → log-probabilities f32[rows, r, words].
    """

    def summary(ls, lts, given):
        of_target = constants(lts, given)
        return of_target, divergence.summary(ls, (target(lts, given, of_target),), given)

    def applied(of: Callable, ls, lts, given, sums):
        of_target, inner = sums
        return of(ls, (target(lts, given, of_target),), given, inner)

    return Divergence(views, summary, partial(applied, divergence.value), partial(applied, divergence.slope))


def geometric(divergence: Divergence, views: tuple[str, str], share_max: float, steepness: float) -> Divergence:
    """The divergence from a target proportional to p_T^(1 - a) p_U^a, nearer to p_U where the two disagree.

    a = 2 share_max (sigmoid(steepness · JSD(p_T, p_U)) - 1/2). Source: DemoPSD, arXiv 2607.02502.

    Args:
        views: T, the teacher, and U, what it is mixed with.
        share_max: bound of a, in [0, 1].
        steepness: 1 / nats.
    """

    def mixed(lts, share):
        return (1 - share) * lts[0] + share * lts[1]

    def share_and_norm(lts, given):
        apart = jnp.sum(_term(0.5, *lts), axis=-1, keepdims=True)
        share = share_max * jnp.tanh(steepness * apart / 2)
        return share, jax.nn.logsumexp(mixed(lts, share), axis=-1, keepdims=True)

    return toward(divergence, views, share_and_norm, lambda lts, given, of: mixed(lts, of[0]) - of[1])


def arithmetic(divergence: Divergence, views: tuple[str, str]) -> Divergence:
    """The divergence from (1 - u) p_T + u p_P, with u in [0, 1] of each token in `given` (AD-OPSD, arXiv 2607.10805).

    Args:
        views: T, the teacher, and P, the prior.
    """

    def target(lts, given, of):
        return jnp.logaddexp(lts[0] + jnp.log1p(-given), lts[1] + jnp.log(given))

    return toward(divergence, views, lambda lts, given: (), target)


def evidence(divergence: Divergence, views: tuple[str, str, str], bound: float, beta: float) -> Divergence:
    """The divergence from softmax(log p_B + bound · tanh(D / bound) / beta), D = log p_T - log p_R less its mean.

    The mean is over the words of the vocabulary, each counted once. Source: Purified OPSD, arXiv 2607.02234.

    Args:
        views: T, the teacher; R, the reference, whose opinion is taken out of it; B, the base that D is added to.
        bound: nats, of D.
        beta: positive.
    """

    def moved(lts, mean):
        return lts[2] + bound / beta * jnp.tanh((lts[0] - lts[1] - mean) / bound)

    def mean_and_norm(lts, given):
        mean = jnp.mean(lts[0] - lts[1], axis=-1, keepdims=True)
        return mean, jax.nn.logsumexp(moved(lts, mean), axis=-1, keepdims=True)

    return toward(divergence, views, mean_and_norm, lambda lts, given, of: moved(lts, of[0]) - of[1])


def _term(b: float, ls: Array, lt: Array) -> Array:
    """One word's term of `gjsd`."""
    if b == 0:
        return jnp.exp(lt) * (lt - ls)
    if b == 1:
        return jnp.exp(ls) * (ls - lt)
    mixed = _mixed(b, ls, lt)
    return b * jnp.exp(lt) * (lt - mixed) + (1 - b) * jnp.exp(ls) * (ls - mixed)


def _term_slope(b: float, ls: Array, lt: Array) -> Array:
    """p_S times the term's derivative by p_S."""
    if b == 0:
        return -jnp.exp(lt)
    if b == 1:
        return jnp.exp(ls) * (ls - lt + 1)
    return (1 - b) * jnp.exp(ls) * (ls - _mixed(b, ls, lt))


def _mixed(b: float, ls: Array, lt: Array) -> Array:
    return jnp.logaddexp(ls + math.log1p(-b), lt + math.log(b))
