"""The laboratory's tables and figures: written into docs/lab.md between marks, and into docs/img."""

import json
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from scipy import stats

from benchmarks.lab import base, displacement, interventions, mechanism, plan, table
from benchmarks.lab.runs import CURVES, by_name, results
from benchmarks.marks import put
from benchmarks.runs import ROOT

matplotlib.use("agg")
import matplotlib.pyplot as plt

PAGE = ROOT / "docs" / "lab.md"
IMAGES = ROOT / "docs" / "img"
COLUMNS = {
    "avg": "Avg@64", "pass@4": "Pass@4", "pass@16": "Pass@16", "pass@64": "Pass@64", "step_accuracy": "StepAcc",
    "exploration_per_1k": "E(y) per 1k", "revised_frac": "revises", "retried_success": "right after trying again",
    "dist3": "Dist-3", "length": "length",
}  # fmt: skip
COMPARED = ("avg", "pass@16", "step_accuracy", "exploration_per_1k", "length")
DRAWN = {"grpo": "C7", "conformity": "C0", "novelty": "C1", "dasd": "C2"}


def write() -> None:
    """All that the results allow so far."""
    lines = by_name("runs")
    for split in ("easy", "hard"):
        put(PAGE, f"table {split}", main_table(lines, split, labels(plan.METHODS)))
    put(PAGE, "neighbours", main_table(lines, table.SPLIT, {plan.AGAIN: "GRPO", **labels(plan.NEIGHBOURS)}))
    put(PAGE, "properties", properties())
    put(PAGE, "trials", trials())
    put(PAGE, "expectations", expectations(lines))
    flips = {plan.METHODS[name].label: lines.get(name, {}) for name in ("flip_low", "flip_high")}
    put(PAGE, "flips", differences(lines, flips))
    others = {arm.label: lines.get(name, {}) for name, arm in plan.METHODS.items() if name != "grpo"}
    put(PAGE, "less GRPO", differences(lines, others, "grpo"))
    put(PAGE, "ranked by entropy", ranked_by_entropy(lines))
    put(PAGE, "displacement", displacements())
    put(PAGE, "gap by entropy", gaps())
    put(PAGE, "interventions", intervened())
    put(PAGE, "interventions by token", intervened_by_token())
    put(PAGE, "variations", differences(lines, {f"`{name}`": line for name, line in by_name("variations").items()}))
    put(PAGE, "probes", probes(lines))
    if all(arm in lines for arm in DRAWN):
        draw_curves(lines)
        draw_plane(lines)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def labels(arms: Mapping[str, plan.Arm]) -> dict[str, str]:
    """Name in the results → label in a table."""
    return {name: arm.label for name, arm in arms.items()}


def main_table(lines: table.Lines, split: str, rows_of: Mapping[str, str]) -> str:
    """Every method with the mean over seeds and half the width of its 95 % interval.

    Args:
        rows_of: name in the results → label.
    """
    rows = [["base", *base_row(split)]]
    for name, label in rows_of.items():
        if of_arm := lines.get(name):
            cells = [spread(table.values(of_arm, figure, split), figure) for figure in COLUMNS]
            entropy = spread([np.mean(line["curves"]["entropy/mean"][-5:]) for line in of_arm.values()], "entropy")
            rows.append([f"{label} ({len(of_arm)})", *cells, entropy])
    return markdown(["", *COLUMNS.values(), "entropy, nats"], rows)


def base_row(split: str) -> list[str]:
    """The figures of the base models."""
    known = base.measured()
    cells = [
        spread([known[seed][split].get(figure, np.nan) for seed in plan.SEEDS if seed in known], figure)
        for figure in COLUMNS
    ]
    return [*cells, spread([known[seed]["entropies"]["mean"] for seed in plan.SEEDS if seed in known], "entropy")]


def spread(values: Sequence[float], figure: str) -> str:
    """Mean ± half the width of the 95 % interval over seeds."""
    digits = 1 if figure in ("exploration_per_1k", "length") else 3
    known = [value for value in values if not np.isnan(value)]
    if not known:
        return "–"
    half = stats.sem(known) * stats.t.ppf(0.975, len(known) - 1) if len(known) > 1 else np.nan
    return f"{np.mean(known):.{digits}f}" + ("" if np.isnan(half) else f" ± {half:.{digits}f}")


def properties() -> str:
    """The base models, each with what is asked of it."""
    known = base.measured()
    rows = [
        [name, asked, *(f"{read(known[seed]):.3f}" for seed in known)]
        for name, (asked, read) in base.PROPERTIES.items()
    ]
    return markdown(["", "asked for", *(f"seed {seed}" for seed in known)], rows)


def trials() -> str:
    """Validation Avg@16 of every trial; the chosen one in bold."""
    known, rows = results("trials"), []
    for name, arm in plan.ARMS.items():
        of_arm = {
            json.dumps(line["fields"]): line["validation"]["avg"] for line in known.values() if line["name"] == name
        }
        chosen = table.chosen(name)
        cells = []
        for fields in arm.trials():
            value = of_arm.get(json.dumps(fields))
            if value is not None:
                words = ", ".join(f"{setting:g}" for setting in fields.values())
                cells.append(f"**{words}: {value:.3f}**" if fields == chosen else f"{words}: {value:.3f}")
        if cells:
            rows.append([arm.label, " · ".join(cells)])
    return markdown(["", "learning rate (and strength): validation Avg@16"], rows)


def expectations(lines: table.Lines) -> str:
    """The five, on the split that was named before."""
    rows = []
    for name, of_claims, p in table.judged(lines):
        words = [
            f"{COLUMNS[claim.figure]}: {plan.METHODS[claim.higher].label} − {plan.METHODS[claim.lower].label} "
            f"{interval(difference, claim.figure)}" + (f", asked for above {claim.above:g}" if claim.above else "")
            for claim, difference in of_claims
        ]
        rows.append([name, "<br>".join(words), f"{p:.3f}", "confirmed" if p < 0.05 else "not confirmed"])
    return markdown(
        ["expectation", f"paired differences on {table.SPLIT} problems, 95 % intervals", "p (Holm)", ""], rows
    )


def number(value: float, figure: str) -> str:
    """With a sign."""
    return f"{value:+.{1 if figure in ('exploration_per_1k', 'length') else 3}f}"


def differences(lines: table.Lines, arms: Mapping[str, Mapping[int, dict]], reference: str = "dasd") -> str:
    """What arms have more than a method, seed by seed.

    Args:
        arms: label → seed → line; of two seeds or more.
        reference: a name of plan.METHODS.
    """
    rows = [
        [f"{label} ({len(of_arm)})", *(difference(of_arm, lines[reference], figure) for figure in COMPARED)]
        for label, of_arm in arms.items()
        if len(of_arm) > 1
    ]
    return markdown([f"less {plan.METHODS[reference].label}", *(COLUMNS[figure] for figure in COMPARED)], rows)


def ranked_by_entropy(lines: table.Lines) -> str:
    """Over the methods, rank correlations of the entropy in the last ten steps of training with other figures."""

    def mean(name: str, read) -> float:
        return float(np.mean([read(line) for line in lines[name].values()]))

    names = [name for name in plan.METHODS if name in lines]
    entropies = [mean(name, lambda line: np.mean(line["curves"]["entropy/mean"][-10:])) for name in names]
    cells = []
    for figure in ("avg", "pass@16", "step_accuracy", "exploration_per_1k", "dist3"):
        of_methods = [mean(name, lambda line, figure=figure: line[table.SPLIT][figure]) for name in names]
        cells.append((COLUMNS[figure], f"{stats.spearmanr(entropies, of_methods).statistic:+.2f}"))
    return markdown(
        [f"Spearman's ρ, {len(names)} methods", *(name for name, _ in cells)], [["entropy", *(x for _, x in cells)]]
    )


def difference(of_arm: Mapping[int, dict], reference: Mapping[int, dict], figure: str) -> str:
    """Mean of the paired difference with its 95 % interval, on the split of the expectations."""
    both = sorted(set(of_arm) & set(reference))
    found = table.paired(*([side[seed][table.SPLIT][figure] for seed in both] for side in (of_arm, reference)))
    return interval(found, figure)


def interval(found: table.Difference, figure: str) -> str:
    """The mean with the ends of its interval."""
    return f"{number(found.mean, figure)} [{number(found.low, figure)}, {number(found.high, figure)}]"


def displacements() -> str:
    """Total variation of one update at forks and elsewhere."""
    known = list(results("displacement").values())
    rows = [
        [
            plan.METHODS[arm].label,
            *(spread([line[arm][place] for line in known], "") for place in ("forks", "others")),
            spread([line[arm]["forks"] / line[arm]["others"] for line in known], ""),
        ]
        for arm in displacement.ARMS
        if known
    ]
    return markdown(["one update of", "at forks", "elsewhere", "ratio"], rows)


def intervened() -> str:
    """Treated minus control where the teacher is shown a way, and where it is shown nothing; means over seeds."""
    known, rows = by_name("interventions"), []
    names = ("avg", "step_accuracy", "exploration_per_1k", "length")
    for arm in interventions.ARMS:
        for shown in (shown for shown in interventions.SHOWN if shown in known):
            lines = [line[arm] for line in known[shown].values()]
            agrees = f"{np.mean([line['student_agrees'] for line in lines]):.0%}"
            cells = [spread([line["change"][name] for line in lines], name) for name in names]
            rows.append([arm, shown, agrees, *cells])
    head = ["token", "the teacher is shown", "its choice is the student's", *(COLUMNS[name] for name in names)]
    return markdown([*head[:3], "accuracy", *head[4:]], rows)


def intervened_by_token() -> str:
    """The same by what the token is, of low entropy: share of the pairs and change of accuracy."""
    lines = by_name("interventions").get("solution", {}).values()
    of = {name: [line["low entropy"]["written"][name] for line in lines] for name in ("operand", "result", "other")}
    rows = [
        [name, *(spread([one[key] for one in found], "") for key in ("share", "change"))] for name, found in of.items()
    ]
    return markdown(["low entropy, shown a way: the token is", "share of the pairs", "accuracy"], rows)


def gaps() -> str:
    """Entropy and gap of tenths of the tokens, means over seeds."""
    known = [line["gap_by_entropy"] for line in results("displacement").values()]
    if not known:
        return ""
    means = np.mean(known, axis=0)
    names = ("entropy, nats", "mean size of the gap, nats", "mean gap, nats")
    rows = [[name, *(f"{x:.3f}" for x in column)] for name, column in zip(names, means.T, strict=True)]
    return markdown(["tenth of the tokens by entropy", *map(str, range(1, len(means) + 1))], rows)


def probes(lines: table.Lines) -> str:
    """The expectations under each probe, with p as it is: they explain and replace nothing."""
    found, rows = by_name("probes"), []
    for probe, arms in mechanism.PROBED.items():
        probed = {arm: found[f"{probe}/{arm}"] for arm in arms if f"{probe}/{arm}" in found}
        if not probed:
            continue
        # An arm that is still to be run must not be stood in for by its reported run.
        same = {arm: of_arm for arm, of_arm in lines.items() if arm not in arms}
        for name, of_claims, _ in table.judged({**same, **probed}):
            words = [interval(d, claim.figure) for claim, d in of_claims]
            p = max(d.p for _, d in of_claims)
            rows.append([probe, name.partition(" ")[0], "; ".join(words), f"{p:.3f}"])
    return markdown(["probe", "expectation", "differences in the order of the table above", "p, not corrected"], rows)


def draw_curves(lines: table.Lines) -> None:
    """Reward, entropy and length over the steps, the mean over seeds with a band of one standard error."""
    titles = ("reward of the rollouts", "entropy, nats", "length, tokens")
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
    for axis, metric, title in zip(axes, CURVES, titles, strict=True):
        for name, colour in DRAWN.items():
            curves = np.array([line["curves"][metric] for line in lines[name].values()])
            middle, error = curves.mean(axis=0), stats.sem(curves, axis=0)
            steps = np.arange(1, len(middle) + 1)
            axis.plot(steps, middle, color=colour, label=plan.METHODS[name].label, linewidth=1.5)
            axis.fill_between(steps, middle - error, middle + error, color=colour, alpha=0.2, linewidth=0)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("steps")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.savefig(IMAGES / "lab_curves.png", dpi=110)
    plt.close(figure)


def draw_plane(lines: table.Lines) -> None:
    """StepAcc over E(y), and Pass@k, on the split of the expectations."""
    figure, (plane, passes) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    ks = [
        int(name.partition("@")[2])
        for name in next(iter(lines["grpo"].values()))[table.SPLIT]
        if name.startswith("pass@")
    ]
    known = base.measured()
    everything = {
        "base": {seed: known[seed] for seed in plan.SEEDS if seed in known},
        **{name: lines[name] for name in DRAWN},
    }
    for name, of_arm in everything.items():
        colour = DRAWN.get(name, "black")
        label = plan.METHODS[name].label if name in plan.METHODS else name
        x, y = (
            np.array(table.values(of_arm, figure_name, table.SPLIT))
            for figure_name in ("exploration_per_1k", "step_accuracy")
        )
        plane.errorbar(x.mean(), y.mean(), stats.sem(y), stats.sem(x), "o", color=colour, capsize=2)
        plane.annotate(label, (x.mean(), y.mean()), xytext=(5, 5), textcoords="offset points", color=colour, fontsize=9)
        curve = [np.mean(table.values(of_arm, f"pass@{k}", table.SPLIT)) for k in ks]
        passes.plot(ks, curve, "o-", color=colour, label=label, markersize=3)
    plane.set_xlabel("E(y): signs of doubt per 1,000 tokens")
    plane.set_ylabel("StepAcc")
    passes.set_xscale("log", base=2)
    passes.set_xlabel("k")
    passes.set_ylabel("Pass@k, hard problems")
    passes.legend(frameon=False, fontsize=8)
    for axis in (plane, passes):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(IMAGES / "lab.png", dpi=110)
    plt.close(figure)


def quick_table(lines: Mapping[str, dict]) -> str:
    """What --quick prints."""
    rows = [
        [plan.METHODS[name].label, *(f"{line[table.SPLIT].get(figure, np.nan):.3f}" for figure in COLUMNS)]
        for name, line in lines.items()
    ]
    return markdown(["", *COLUMNS.values()], rows)
