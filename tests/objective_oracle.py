"""The second opinion: DASD, GRPO and the token statistics in NumPy float64, written from the formulas, row by row."""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gated(gap, scale, *, clip, gate):
    """Scaled, clipped and gated gap, by default sigma(|d| - 1) d."""
    d = np.asarray(gap, np.float64) / scale
    if clip:
        d = np.clip(d, -clip, clip)
    size = np.abs(d)
    return d * {"sigmoid": sigmoid(size - 1), "inverse": sigmoid(1 - size), "hard": 1.0 * (size > 1)}.get(gate, 1.0)


def row_scale(gap, hp):
    """gap: the response's own tokens only."""
    size = {
        "mean_abs": lambda: np.mean(np.abs(gap)),
        "mad": lambda: np.mean(np.abs(gap - np.mean(gap))),
        "std": lambda: np.std(gap),
        "none": lambda: None,
    }[hp.scale]()
    return 1.0 if size is None else max(size, hp.s_min)


def row_route(entropy, hp):
    """entropy: the response's own tokens only."""
    spread = np.mean(np.abs(entropy - np.mean(entropy)))
    if len(entropy) < hp.min_tokens or spread < hp.min_spread:
        return np.zeros(len(entropy))
    threshold = np.quantile(entropy, 1 - hp.rho if hp.rho_side == "top" else hp.rho)
    signed = np.tanh((threshold - entropy) / (spread + 1e-6))
    return {
        "signed": signed,
        "hard": np.sign(threshold - entropy),
        "attract_only": np.where(signed > 0, signed, 0),
        "repel_only": np.where(signed < 0, signed, 0),
        "flip_low": np.where(signed > 0, -signed, signed),
        "flip_high": np.where(signed < 0, -signed, signed),
        "flip_both": -signed,
        "conformity": np.full(len(entropy), 1.0),
        "novelty": np.full(len(entropy), -1.0),
    }[hp.route]


def advantage(reward, mask, group):
    """(r - mean) / (sample std + 1e-6) over the live rows of each group, 0 where they do not differ."""
    out = np.zeros(len(reward))
    for start in range(0, len(reward), group):
        live = [i for i in range(start, start + group) if mask[i].any()]
        r = np.asarray(reward, np.float64)[live]
        if len(live) > 1 and np.ptp(r) > 0:
            out[live] = (r - r.mean()) / (r.std(ddof=1) + 1e-6)
    return out


def credit(student_logp, teacher_logp, entropy, mask, verifier, hp, reverse_kl=None):
    """(A, route, scale) of every row; scale is None for rows without a token."""
    total, direction, scales = np.zeros(mask.shape), np.zeros(mask.shape), []
    for i, keep in enumerate(mask):
        if not keep.any():
            scales.append(None)
            continue
        gap = teacher_logp[i, keep].astype(np.float64) - student_logp[i, keep].astype(np.float64)
        route = row_route(entropy[i, keep].astype(np.float64), hp)
        if hp.repel_kl_max and reverse_kl is not None:
            route[(route < 0) & (reverse_kl[i, keep] > hp.repel_kl_max)] = 0
        if verifier[i] == 0 and not hp.dense_on_zero_adv:
            route[:] = 0
        scales.append(row_scale(gap, hp))
        direction[i, keep] = route
        total[i, keep] = verifier[i] + hp.beta * route * gated(gap, scales[-1], clip=hp.clip, gate=hp.gate)
    return total, direction, scales


def log_probs(hidden, unembed, temperature):
    z = np.einsum("...d,vd->...v", np.asarray(hidden, np.float64), np.asarray(unembed, np.float64)) / temperature
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def stats(student_hidden, student_unembed, teacher_hidden, teacher_unembed, response, temperature):
    """The six statistics by name, [rows, R] each."""
    s = log_probs(student_hidden, student_unembed, temperature)
    t = log_probs(teacher_hidden, teacher_unembed, temperature)
    token = np.asarray(response)[..., None]
    return {
        "student_logp": np.take_along_axis(s, token, -1)[..., 0],
        "teacher_logp": np.take_along_axis(t, token, -1)[..., 0],
        "student_entropy": -(np.exp(s) * s).sum(-1),
        "teacher_entropy": -(np.exp(t) * t).sum(-1),
        "forward_kl": (np.exp(t) * (t - s)).sum(-1),
        "reverse_kl": (np.exp(s) * (s - t)).sum(-1),
    }


def central_differences(f, arrays, step=1e-5):
    """Gradient of the float64 scalar f(*arrays), an array for each; its own error is about 1e-10 here."""
    arrays = [np.array(x, np.float64) for x in arrays]
    slopes = [np.zeros_like(x) for x in arrays]
    for x, slope in zip(arrays, slopes, strict=True):
        for at in np.ndindex(x.shape):
            kept = x[at]
            x[at] = kept + step
            above = f(*arrays)
            x[at] = kept - step
            slope[at] = (above - f(*arrays)) / (2 * step)
            x[at] = kept
    return slopes
