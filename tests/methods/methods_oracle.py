"""The second opinion on every method: the loss of each token in NumPy float64, written from the formulas, row by row.

`token_loss(name, hp, batch, hidden)` is f64[rows, R] as a function of the student's hidden states alone: everything
that a formula takes as a constant is computed from the weights that wrote the rollouts.
"""

import numpy as np
import objective_oracle as oracle
from batch_of_all_cases import FORMAT, KNOBS, REWARD, ROWS, G, M, R

LOW, HIGH = 0.2, 0.2


def token_loss(name, hp, batch, hidden, high=HIGH, dual=0.0):
    """f64[rows, R], whose sum is the loss of both minibatches."""
    now, old = batch.logp(hidden), batch.logp(batch.old)
    logp = batch.drawn(now)
    ratio = np.exp(logp - batch.drawn(old))
    advantage, weight, kl = SIGNALS[name](hp, batch)
    views = {view: batch.logp(state) for view, state in batch.states.items()}
    constants, prior = ratio_constant(batch), prior_share(hp, batch) if name == "ad_opsd" else np.zeros((ROWS, R))
    total = np.zeros((ROWS, R))
    for row in range(ROWS):
        for t in range(R):
            if weight is not None and weight[row, t]:
                a = advantage[row, t]
                gained = a * logp[row, t] if name in ("opsd", "sgsd") else surrogate(a, ratio[row, t], high, dual)
                total[row, t] -= weight[row, t] * gained
            if kl is not None and kl[row, t]:
                factor = min(constants[row, t], 2.0) if name in ("sdpo", "srpo") else 1.0
                of_views = {view: logp[row, t] for view, logp in views.items()}
                total[row, t] += kl[row, t] * factor * divergence(name, hp, now[row, t], of_views, prior[row, t])
    return total


def ratio_constant(batch):
    """p_now / p_old at the batch's own weights, not differentiated."""
    return np.exp(batch.drawn(batch.logp(batch.hidden)) - batch.drawn(batch.logp(batch.old)))


def surrogate(a, ratio, high, dual):
    """PPO's, of one token, with dual clip."""
    kept = min(ratio * a, np.clip(ratio, 1 - LOW, 1 + high) * a)
    return max(kept, dual * a) if dual and a < 0 else kept


def divergence(name, hp, ls, views, u):
    """Of the student from its teacher, or from what the method makes of its views; over all words."""
    lt, p = views["teacher"], {view: np.exp(logp) for view, logp in views.items()}
    if name == "atesd":
        return np.sum(jensen_shannon(0, np.exp(ls), p["teacher"]))
    if name == "pw_opsd":
        terms = jensen_shannon(0, np.exp(ls), p["teacher"])
        return np.sum(np.minimum(terms, hp.entry_max) if hp.entry_max else terms)
    if name == "ad_opsd":
        return np.sum(jensen_shannon(0, np.exp(ls), u * p["base"] + (1 - u) * p["teacher"]))
    if name == "purified_opsd":
        d = lt - views["reference"]
        target = p["base"] * np.exp(hp.bound * np.tanh((d - np.mean(d)) / hp.bound) / hp.beta)
        return np.sum(jensen_shannon(hp.b, np.exp(ls), target / np.sum(target)))
    if name == "demopsd":
        apart = np.sum(jensen_shannon(0.5, p["teacher"], p["unaided"]))
        a = 2 * hp.share_max * (1 / (1 + np.exp(-hp.steepness * apart)) - 0.5)
        target = p["teacher"] ** (1 - a) * p["unaided"] ** a
        return np.sum(jensen_shannon(1, *lumped(hp.top_k, ls, np.log(target / np.sum(target)))))
    if name == "opsd":
        soft = [x / hp.softening - np.log(np.sum(np.exp(x / hp.softening))) for x in (ls, lt)]
        terms = jensen_shannon(hp.b, *map(np.exp, soft))
        return np.sum(np.minimum(terms, hp.entry_max) if hp.entry_max else terms)
    return np.sum(jensen_shannon(hp.alpha, *lumped(hp.top_k, ls, lt)))


def lumped(k, ls, lt):
    """Probabilities of the student's k likeliest words, and of all others together."""
    top = np.argsort(-ls, kind="stable")[:k]
    rest = [max(1 - np.exp(x[top]).sum(), 1e-300) for x in (ls, lt)]
    return [np.append(np.exp(x[top]), left) for x, left in zip((ls, lt), rest, strict=True)]


def jensen_shannon(b, p_s, p_t):
    """The terms of b KL(p_t || m) + (1 - b) KL(p_s || m), m = (1 - b) p_s + b p_t; 0 and 1 are the two KLs."""
    if b == 0:
        return p_t * np.log(p_t / p_s)
    if b == 1:
        return p_s * np.log(p_s / p_t)
    m = (1 - b) * p_s + b * p_t
    return b * p_t * np.log(p_t / m) + (1 - b) * p_s * np.log(p_s / m)


def minibatch(row):
    return row // G % M


def over(keep, divisor=None):
    """Each kept token's share: 1 / (tokens in `divisor`, by default the kept ones, of its minibatch)."""
    divisor, out = keep if divisor is None else divisor, np.zeros((ROWS, R))
    for row in range(ROWS):
        count = sum(divisor[other].sum() for other in range(ROWS) if minibatch(other) == minibatch(row))
        out[row] = keep[row] / count if count else 0
    return out


def by_row(keep):
    """Each kept token's share where every response that keeps any counts alike in its minibatch."""
    out = np.zeros((ROWS, R))
    for row in np.flatnonzero(keep.any(1)):
        rows = sum(keep[other].any() for other in range(ROWS) if minibatch(other) == minibatch(row))
        out[row] = keep[row] / (keep[row].sum() * rows)
    return out


def verifier(batch, standardised=True):
    """A_G of every row."""
    out = oracle.advantage(REWARD, batch.written, G)
    if standardised:
        return out
    for start in range(0, ROWS, G):
        live = [row for row in range(start, start + G) if batch.written[row].any()]
        out[live] = REWARD[live] - REWARD[live].mean()
    return out


def gap(batch, view="teacher"):
    """log p_T - log p_S of the drawn token, 0 where nothing is shown."""
    return batch.drawn(batch.of(view)[0]) - batch.drawn(batch.logp(batch.old))


def entropy(logp):
    return -(np.exp(logp) * logp).sum(-1)


def everywhere(batch, a):
    return np.where(batch.mask, a[:, None], 0.0)


def _grpo(hp, batch):
    return everywhere(batch, verifier(batch)), over(batch.mask), None


def _dr_grpo(hp, batch):
    return everywhere(batch, verifier(batch, standardised=False)), batch.mask / (ROWS / M * R), None


def _hepo(hp, batch):
    h, kept = entropy(batch.logp(batch.old)), np.zeros((ROWS, R), bool)
    for m in range(M):
        places = [(row, t) for row in range(ROWS) for t in range(R) if minibatch(row) == m and batch.mask[row, t]]
        places.sort(key=lambda place: -h[place])
        for place in places[: int(np.ceil(round(hp.share * len(places), 9)))]:
            kept[place] = True
    return everywhere(batch, verifier(batch)), over(kept, kept if hp.norm == "kept" else batch.mask), None


def _dasd(hp, batch):
    old = batch.logp(batch.old)
    credit, *_ = oracle.credit(
        batch.drawn(old), batch.drawn(batch.of("teacher")[0]), entropy(old), batch.mask, verifier(batch), hp
    )
    return credit, over(batch.mask), None


def _opsd(hp, batch):
    keep = batch.mask & batch.shown["teacher"][0][:, None]
    return (np.where(keep, gap(batch), 0.0), over(keep), None) if hp.form == "sampled" else (None, None, over(keep))


def _atesd(hp, batch):
    kept, out = batch.mask & batch.shown["teacher"][0][:, None], np.zeros((ROWS, R))
    for m in range(M):
        rows = [row for row in range(ROWS) if minibatch(row) == m and kept[row].any()]
        for row in rows:
            out[row] = kept[row] / kept[row].sum() / len(rows)
    return None, None, out


def _sdpo(hp, batch):
    return None, None, over(batch.mask & batch.shown["teacher"][0][:, None])


def _srpo(hp, batch):
    taught = batch.mask & (batch.shown["teacher"][0] & (REWARD < 0.5))[:, None]
    sure = np.where(taught, np.exp(-hp.sharpness * entropy(batch.of("teacher")[0])), 0.0)
    relative = np.zeros((ROWS, R))
    for m in range(M):
        rows = [row for row in range(ROWS) if minibatch(row) == m]
        if taught[rows].any():
            relative[rows] = sure[rows] / sure[rows][taught[rows]].mean()
    each = over(batch.mask)
    return everywhere(batch, verifier(batch)), np.where(taught, 0.0, each), each * relative


def _factor(hp, batch, of_gap):
    a = verifier(batch)
    mix = hp.mix * (max(0.0, 1 - (KNOBS["step"] - 1) / hp.decay_steps) if hp.decay_steps else 1.0)
    out = np.zeros((ROWS, R))
    for row in range(ROWS):
        factor = np.clip(np.exp(np.sign(a[row]) * of_gap[row]), 1 - hp.eps, 1 + hp.eps)
        out[row] = a[row] * ((1 - mix) + mix * factor)
    return np.where(batch.mask, out, 0.0), over(batch.mask), None


def _rlsd(hp, batch):
    return _factor(hp, batch, gap(batch))


def _rlrt(hp, batch):
    return _factor(hp, batch, np.where((REWARD > 0.5)[:, None], -gap(batch), 0.0))


def _antisd(hp, batch):
    teacher = batch.of("teacher")[0]
    shown = batch.mask & batch.shown["teacher"][0][:, None]
    values = np.sort(entropy(teacher)[shown])
    median, warm = values[int(np.ceil(0.5 * len(values))) - 1], KNOBS["antisd_warm"]
    gate = 1.0 if median >= warm else 0.0 if median < hp.off_below * warm else KNOBS["antisd_gate"]
    if KNOBS["step"] <= hp.measured_steps:
        gate = 0.0
    phi = (np.log1p(np.exp(gap(batch))) - np.log(2)) / 2
    return np.where(batch.mask, verifier(batch)[:, None] - gate * hp.strength * phi, 0.0), over(batch.mask), None


def _rlcsd(hp, batch):
    right, wrong = batch.of("teacher")[0], batch.of("wrong")
    a, credit, selected = verifier(batch), np.zeros((ROWS, R)), np.zeros((ROWS, R), bool)
    both = batch.shown["teacher"][0] & batch.shown["wrong"].any(0)
    for row in range(ROWS):
        for t in np.flatnonzero(batch.mask[row] & both[row]):
            token = batch.tokens[row, t]
            hints = [w[row, t, token] for w, has in zip(wrong, batch.shown["wrong"][:, row], strict=True) if has]
            e = right[row, t, token] - np.log(np.mean(np.exp(hints)))
            term = np.clip(hp.beta * hp.mix * np.tanh(e / hp.tau), -hp.bound, hp.bound)
            selected[row, t] = abs(term) > hp.delta
            moved = a[row] + term if selected[row, t] else a[row]
            credit[row, t] = max(moved, 0) if a[row] > 0 else min(moved, 0) if a[row] < 0 else 0
    keep = batch.mask & both[:, None]
    return credit, over(keep & ~selected) + hp.eta * over(selected), None


def _pw_opsd(hp, batch):
    keep, kl = batch.mask & batch.shown["teacher"][0][:, None], np.zeros((ROWS, R))
    for row in range(ROWS):
        rows = sum(keep[other].any() for other in range(ROWS) if minibatch(other) == minibatch(row))
        n = keep[row].sum()
        for t in range(n):
            place = (t + 0.5) / n
            rise = 1 / (1 + np.exp(-(place - hp.middle) / hp.width))
            kl[row, t] = (hp.weight_min + (1 - hp.weight_min) * rise) / (n * rows)
    return None, None, kl


def prior_share(hp, batch):
    """u of AD-OPSD."""
    old = batch.logp(batch.old)
    s, h, u = batch.drawn(old), entropy(old), np.zeros((ROWS, R))
    t = batch.drawn(batch.of("teacher")[0])
    for row in np.flatnonzero(batch.mask.any(1) & batch.shown["teacher"][0]):
        n = batch.mask[row].sum()
        for at in np.argsort(-h[row, :n], kind="stable")[: int(np.ceil(round(hp.share * n, 9)))]:
            if s[row, at] > t[row, at]:
                u[row, at] = 1 / (1 + np.exp(-np.exp(s[row, at]) * (s[row, at] - t[row, at]) / hp.tau))
    return u


def _egrsd(hp, batch):
    told, h = batch.mask & batch.shown["teacher"][0][:, None], entropy(batch.of("teacher")[0])
    values = np.sort(h[told])
    q, a, out = values[int(np.ceil(hp.quantile * len(values))) - 1], verifier(batch), np.zeros((ROWS, R))
    for row in range(ROWS):
        for t in np.flatnonzero(batch.mask[row]):
            least = min(h[row, k] for k in range(t, min(t + hp.lookahead + 1, R)) if batch.mask[row, k])
            g = hp.floor + (1 - hp.floor) * (1 - min(1, least / q)) if told[row, t] else 1
            out[row, t] = a[row] * g * np.clip(np.exp(np.sign(a[row]) * gap(batch)[row, t]), 1 - hp.eps, 1 + hp.eps)
    return out, over(batch.mask), None


def _purified_opsd(hp, batch):
    return None, None, over(batch.mask & (batch.shown["teacher"][0] & batch.shown["reference"][0])[:, None])


def opinions(hp, batch, view, similarity):
    """Of each SGSD teacher that is shown something at each response: (k, row, its tokens, gaps, α, polarity)."""
    shown, student = batch.shown[view], batch.drawn(batch.logp(batch.old))
    teachers = [batch.drawn(logp) for logp in batch.of(view)]
    for row in range(ROWS):
        places = np.flatnonzero(batch.mask[row] & ~FORMAT[batch.tokens[row]])
        part = np.where(shown[:, row], np.exp(similarity[:, row] / hp.retrieval_temperature), 0)
        for k in np.flatnonzero(shown[:, row]) if len(places) else ():
            gaps = teachers[k][row, places] - student[row, places]
            support = np.clip(gaps, -hp.clip, hp.clip).mean()
            agrees = (support > 0) == (REWARD[row] > 0)
            yield k, row, places, gaps, part[k] / part.sum(), 0 if abs(support) <= hp.neutral else 1 if agrees else -1


def sgsd(hp, batch, view="teacher", similarity=None):
    """The weight of each token's log-probability, derived by hand, and the divisor."""
    similarity = np.ones(batch.shown[view].shape) if similarity is None else similarity
    credit = np.zeros((ROWS, R))
    for _, row, places, gaps, share, polarity in opinions(hp, batch, view, similarity):
        credit[row, places] += share * polarity * gaps / hp.tau / (1 + np.exp(gaps**2 / (2 * hp.tau)))
    return credit, by_row(batch.mask & ~FORMAT[batch.tokens] & batch.shown[view].any(0)[:, None]), None


SIGNALS = {
    "grpo": _grpo,
    "dapo": _grpo,
    "dr_grpo": _dr_grpo,
    "hepo": _hepo,
    "dasd": _dasd,
    "opsd": _opsd,
    "sdpo": _sdpo,
    "srpo": _srpo,
    "rlsd": _rlsd,
    "rlrt": _rlrt,
    "antisd": _antisd,
    "rlcsd": _rlcsd,
    "demopsd": _sdpo,
    "pw_opsd": _pw_opsd,
    "ad_opsd": _sdpo,
    "egrsd": _egrsd,
    "purified_opsd": _purified_opsd,
    "atesd": _atesd,
    "sgsd": sgsd,
}
