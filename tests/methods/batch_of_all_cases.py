"""One small scored batch in which every method has something to do, made in NumPy float64.

Four problems of four rollouts in two minibatches: rewards that differ, all right, all wrong, and one right of four. One
row is empty, one has a single token, one is cut off and left out of the loss, and some lack a context.
"""

import numpy as np
import objective_oracle as oracle

from dasd_jax.objective.contract import Scored, Shape, ViewStats

G, M, R, V, D, K = 4, 2, 6, 23, 3, 4
ROWS = 16
SHAPE = Shape(rollouts=G, minibatches=M, max_new_tokens=R)
LENGTHS = np.array([6, 1, 0, 4, 3, 5, 6, 2, 5, 6, 4, 6, 2, 6, 5, 3])
REWARD = np.array([1, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0], np.float64)
OUT_OF_LOSS = 9
FORMAT = np.arange(V) % 7 == 3  # tokens that are form and not content
KNOBS = {
    "step": 8.0,
    "seed": 0.0,
    "teacher_weight": 1.0,
    "noise": 0.0,
    "antisd_warm": 0.5,
    "antisd_gate": 1.0,
    "atesd_a": 2.0,
    "atesd_b": 3.0,
    "atesd_alpha": 0.4,
}


class Batch:
    """Hidden states and unembedding of student, old student and teachers, and what they say of the tokens."""

    def __init__(self, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.written = np.arange(R) < LENGTHS[:, None]
        self.mask = self.written & (np.arange(ROWS) != OUT_OF_LOSS)[:, None]
        self.tokens = rng.integers(0, V, (ROWS, R))
        self.unembed = rng.normal(size=(V, D))
        self.old = rng.normal(size=(ROWS, R, D))
        self.hidden = self.old + 0.2 * rng.normal(size=self.old.shape)  # the weights have moved since
        self.teacher = self.old + 0.5 * rng.normal(size=self.old.shape)
        self.wrong = self.old + 0.5 * rng.normal(size=(K, *self.old.shape))
        self.reference, self.base = (self.old + 0.4 * rng.normal(size=self.old.shape) for _ in range(2))
        correct = REWARD > 0.5
        groups = np.arange(ROWS) // G
        others = lambda row, kind: np.sum(correct[groups == groups[row]] == kind) - (correct[row] == kind)  # noqa: E731
        right, wrong = (np.array([others(row, kind) for row in range(ROWS)]) for kind in (True, False))
        self.shown = {"teacher": right[None] > 0, "wrong": np.arange(K)[:, None] < wrong}
        # What a reference alone is shown may be missing where the teacher's is not.
        self.shown["reference"] = self.shown["teacher"] & (np.arange(ROWS) != 6)

    @property
    def states(self) -> dict[str, np.ndarray]:
        """Hidden states of each view that a divergence may read; the student's own prompt has two names."""
        return {"teacher": self.teacher, "reference": self.reference, "base": self.base, "unaided": self.base}

    def logp(self, hidden):
        """log p of every word, f64[rows, R, V]."""
        return oracle.log_probs(hidden, self.unembed, 1.0)

    def drawn(self, logp):
        """Of the drawn token, f64[rows, R]."""
        return np.take_along_axis(logp, self.tokens[..., None], -1)[..., 0]

    def of(self, view: str) -> list[np.ndarray]:
        """log p of every word for each prompt of a view; the old student's where it is shown nothing."""
        old = self.logp(self.old)
        states = {"teacher": self.teacher[None], "wrong": self.wrong}[view]
        return [
            np.where(has[:, None, None], self.logp(state), old)
            for state, has in zip(states, self.shown[view], strict=True)
        ]

    def view(self, name: str, *, shown=True) -> ViewStats:
        """What a method reads of a view."""
        s = self.logp(self.old)
        per = [
            (self.drawn(t), -(np.exp(t) * t).sum(-1), (np.exp(t) * (t - s)).sum(-1), (np.exp(s) * (s - t)).sum(-1))
            for t in self.of(name)
        ]
        stats = (np.stack(x).astype(np.float32) for x in zip(*per, strict=True))
        return ViewStats(*stats, self.shown[name], np.ones(self.shown[name].shape, np.float32))

    def unscored(self, name: str) -> ViewStats:
        """What a method reads of a view that its divergence alone computes."""
        return ViewStats(None, None, None, None, self.shown[name], np.ones(self.shown[name].shape, np.float32))

    def scored(self, **changes) -> Scored:
        """All of it as a method is given it."""
        s = self.logp(self.old)
        return Scored(
            mask=self.mask,
            live=self.written.any(1),
            tokens=self.tokens.astype(np.int32),
            logp=self.drawn(s).astype(np.float32),
            entropy=(-(np.exp(s) * s).sum(-1)).astype(np.float32),
            reward=REWARD.astype(np.float32),
            correct=REWARD.astype(np.float32),
            tables={"format": FORMAT},
            views={name: self.view(name) for name in ("teacher", "wrong")} | {"reference": self.unscored("reference")},
            knobs={name: np.float32(value) for name, value in KNOBS.items()},
        ).replace(**changes)
