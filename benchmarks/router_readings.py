"""What entropy, gap, router and credit are on real rollouts: python -m benchmarks.router_readings WORKDIR [STEPS]

Reads the rollouts that a run logged in its first STEPS steps (default 5; let run.logged_rollouts be all of them) and
prints what docs/methods.md decides by, the router and the credit for both readings of ρ.
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from dasd_jax.methods.dasd import DasdParams, dasd, dense_bound, gap_scale, router
from dasd_jax.objective.advantage import smallest_advantage
from dasd_jax.objective.masked import row_quantile
from dasd_jax.run import records


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Logged rollouts as padded arrays [rows, R], and which of them were right, [rows]."""

    gap: np.ndarray
    entropy: np.ndarray
    mask: np.ndarray
    right: np.ndarray

    def by_verdict(self, x: np.ndarray) -> str:
        """Mean over the tokens of right and of wrong rollouts."""
        parts = (x[rows][self.mask[rows]] for rows in (self.right, ~self.right))
        return ", ".join(f"{part.mean():+.4f}" if part.size else "none" for part in parts)


def main() -> None:
    """Prints two tables."""
    workdir, steps = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5
    config = json.loads((workdir / "config.json").read_text())
    hp = DasdParams(**{field.name: config["objective"][field.name] for field in dataclasses.fields(DasdParams)})
    rollouts = read(workdir, steps)
    print("| of the rollouts | |\n|---|---|")
    for name, value in of_rollouts(rollouts, hp).items():
        print(f"| {name} | {value} |")
    top, bottom = (of_router(rollouts, dataclasses.replace(hp, rho_side=side)) for side in ("top", "bottom"))
    print("\n| of router and credit | top 20 % are forks | threshold at quantile 0.2 |\n|---|---|---|")
    for name, value in top.items():
        print(f"| {name} | {value} | {bottom[name]} |")
    group = config["rollout"]["rollouts"]
    print(f"\nThe teacher's term is at most {dense_bound(hp):.3f}; the smallest advantage of a mixed group is")
    print(
        f"{smallest_advantage(group):.3f} for these groups of {group} and {smallest_advantage(8):.3f} for groups of 8."
    )


def read(workdir: Path, steps: int) -> Rollouts:
    """The rollouts of samples.jsonl up to a step."""
    problems = [problem for problem in records.samples(workdir) if problem["step"] <= steps]
    samples = [rollout for problem in problems for rollout in problem["rollouts"]]
    lengths = np.array([len(sample["gap"]) for sample in samples])
    mask = np.arange(lengths.max()) < lengths[:, None]
    arrays = {name: np.zeros(mask.shape, np.float32) for name in ("gap", "entropy")}
    for name, array in arrays.items():
        array[mask] = np.concatenate([sample[name] for sample in samples])
    return Rollouts(**arrays, mask=mask, right=np.array([records.is_right(sample) for sample in samples]))


def of_rollouts(rollouts: Rollouts, hp: DasdParams) -> dict[str, str]:
    """Entropies and gaps, before any reading of ρ."""
    gap, entropy = rollouts.gap[rollouts.mask], rollouts.entropy[rollouts.mask]
    size = np.sort(np.abs(gap))[::-1]
    scale = np.asarray(gap_scale(rollouts.gap, rollouts.mask, hp))
    correlation = np.corrcoef(ranks(entropy), ranks(np.abs(gap)))[0, 1]
    return {
        "rollouts, share right, tokens": f"{len(rollouts.right)}, {rollouts.right.mean():.2f}, {gap.size}",
        "entropy, nats": quantiles(entropy, 5, 20, 50, 80, 90, 95, 99),
        "tokens with entropy below 0.01 nat": f"{np.mean(entropy < 0.01):.2f}",
        "gap, nats: mean, mean of its size, largest": f"{gap.mean():+.4f}, {size.mean():.4f}, {size[0]:.1f}",
        "gap, nats: mean in right, in wrong rollouts": rollouts.by_verdict(rollouts.gap),
        "share of the gap's size in the top 5 % of tokens": f"{size[: size.size // 20].sum() / size.sum():.2f}",
        "rank correlation of entropy and the gap's size": f"{correlation:+.2f}",
        "scale of a rollout's gap, nats": quantiles(scale, 5, 50, 95),
        f"rollouts whose scale is at its floor of {hp.s_min}": f"{np.mean(scale <= hp.s_min):.2f}",
    }


def of_router(rollouts: Rollouts, hp: DasdParams) -> dict[str, str]:
    """Router and teacher's term under one reading of ρ, with the verifier's part at 0."""
    mask, nothing = rollouts.mask, np.zeros(len(rollouts.right), np.float32)
    route, on = (np.asarray(x) for x in router(rollouts.entropy, mask, hp))
    threshold = row_quantile(rollouts.entropy, mask, 1 - hp.rho if hp.rho_side == "top" else hp.rho)

    def term(hp: DasdParams) -> tuple[np.ndarray, dict]:
        views = np.zeros_like(rollouts.gap), rollouts.gap, rollouts.entropy
        credit, metrics = dasd(*views, mask, nothing, hp)
        return np.asarray(credit), metrics

    credit, metrics = term(hp)
    free, _ = term(dataclasses.replace(hp, clip=0.0))
    of_token = route[mask]
    masses = (metrics[f"router/{arm}_mass"] for arm in ("attract", "repel"))
    return {
        "threshold, nats, mean over rollouts": f"{np.mean(threshold):.3g}",
        "rollouts that are not routed": f"{1 - on.mean():.2f}",
        "largest route": f"{of_token.max():.2f}",
        "tokens with route > 0.1, < -0.1": f"{np.mean(of_token > 0.1):.2f}, {np.mean(of_token < -0.1):.2f}",
        "tokens with route > 0.5, < -0.5": f"{np.mean(of_token > 0.5):.2f}, {np.mean(of_token < -0.5):.2f}",
        "mass that attracts, that repels": ", ".join(f"{mass:.4f}" for mass in masses),
        "teacher's term: mean of its size, largest": f"{np.abs(credit[mask]).mean():.4f}, {np.abs(credit).max():.3f}",
        "the same without a clip": f"{np.abs(free[mask]).mean():.4f}, {np.abs(free).max():.3f}",
        "teacher's term: mean in right, in wrong rollouts": rollouts.by_verdict(credit),
    }


def quantiles(x: np.ndarray, *percents: int) -> str:
    """Quantiles of all entries."""
    return ", ".join(f"{percent} %: {value:.3g}" for percent, value in zip(percents, np.percentile(x, percents)))  # noqa: B905


def ranks(x: np.ndarray) -> np.ndarray:
    """The rank of each entry."""
    return np.argsort(np.argsort(x))


if __name__ == "__main__":
    main()
