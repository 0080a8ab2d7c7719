r"""The verifier on answers whose verdict is known: python -m benchmarks.verdicts FILE [FILE …]

What a .jsonl, .parquet or .tsv file holds is recognised by its rows:

- Problems with a reference: each reference has to be right as an answer to itself, and so has each of six harmless
  rewritings: \dfrac for \frac, more spaces, dollars around it, "x = " before it, \left( \right), \text{} around it.
- Labelled solutions, {"is_correct": …, "solution": …} beside a ground truth, as in gsm8k's example solutions, whose
  last line is "A: N": the verdicts have to be the labels. They are then timed one at a time.
- Graded pairs: "gold", "response" and "expected", which is "right" or "wrong"; a .tsv has expected, gold, response.

Prints the counts and every verdict that differs; exit status 1 if there is one.
"""

import json
import os
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.timing import hardware, verdict
from dasd_jax.data.boxes import boxes
from dasd_jax.data.sources import Problem
from dasd_jax.data.tables import read_table
from dasd_jax.verify.verifier import Verifier

DEADLINE_S, MEMORY_MB = 5.0, 2048


class Case(NamedTuple):
    """A response to a problem with this reference, and whether it has to be right."""

    kind: str
    reference: str
    response: str
    is_right: bool

    @property
    def problem(self) -> Problem:
        return Problem(question="", answer=self.reference, source="benchmark", index=0, scorer="math")


def rows_of(path: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a file."""
    if path.endswith(".tsv"):
        lines = filter(None, Path(path).read_text().splitlines())
        return (dict(zip(("expected", "gold", "response"), line.split("\t"), strict=True)) for line in lines)
    return (row for _, row in read_table(path))


def reference_of(row: Mapping[str, Any]) -> str:
    """The final answer of a problem: a column for it, what follows #### there, or the last box of its solution."""
    reward = row.get("reward_model") or {}
    reward = json.loads(reward) if isinstance(reward, str) else reward
    answer = row.get("ground_truth") or reward.get("ground_truth") or row.get("answer") or ""
    boxed = (" ".join(box.split()) for box in boxes(row.get("solution") or ""))
    return str(answer).rpartition("####")[2].strip() or next(filter(None, boxed), "")


_KEPT = re.compile(r"(\\(?:text|mathrm|mbox|textbf|operatorname|begin|end)\s*\{[^{}]*\}|\{,\}|\\[a-zA-Z]+|\\.)")
_SPACED = re.compile(r"[-+=<>()\[\]^_{}/|]|,(?!\d{3}(?!\d))|\s+")  # not the comma of 1,000


def rewritings(reference: str) -> dict[str, str]:
    """Six ways to write the same, by name."""
    spaced = [part if i % 2 else _SPACED.sub(r" \g<0> ", part) for i, part in enumerate(_KEPT.split(reference))]
    opened = re.sub(r"(?<!\\left)(?<!\\)[(\[]", r"\\left\g<0>", reference)
    return {
        r"\dfrac": re.sub(r"\\frac(?![a-zA-Z])", r"\\dfrac", reference),
        "spaces": "  ".join(spaced),
        "$…$": f"${reference}$",
        "x =": f"x = {reference}",
        r"\left( \right)": re.sub(r"(?<!\\right)(?<!\\)[)\]]", r"\\right\g<0>", opened),
        r"\text{}": f"\\text{{{reference}}}",
    }


def cases_of(path: str) -> Iterator[Case]:
    """What a file asks of the verifier."""
    for row in rows_of(path):
        labelled = [value for value in row.values() if isinstance(value, dict) and "is_correct" in value]
        if "expected" in row:
            yield Case("pair", row["gold"], row["response"], row["expected"] == "right")
        elif labelled:
            reference = row["ground_truth"].rpartition("A:")[2].strip()
            for each in labelled:
                yield Case("label", reference, each["solution"].replace("\nA:", "\nAnswer:"), each["is_correct"])
        elif reference := reference_of(row):
            yield Case("itself", reference, f"\\boxed{{{reference}}}", True)
            for name, text in rewritings(reference).items():
                yield Case(name, reference, f"\\boxed{{{text}}}", True)


def measure(pool: Verifier, path: str) -> int:
    """Prints what the verifier makes of one file; the number of verdicts that differ."""
    found = Counter(cases_of(path))
    began = time.monotonic()
    verdicts = pool.verify([case.problem for case in found], [case.response for case in found])
    print(f"\n{path}: {found.total():,} responses, {len(found):,} of them different, {time.monotonic() - began:.0f} s")
    is_right = {case: got.reward == 1 for case, got in zip(found, verdicts, strict=True)}
    for kind in dict.fromkeys(case.kind for case in found):
        of_kind = {case: count for case, count in found.items() if case.kind == kind}
        agree = sum(count for case, count in of_kind.items() if is_right[case] == case.is_right)
        total = sum(of_kind.values())
        print(f"| {kind} | {agree:,} of {total:,} | {verdict(agree == total)} |")
    differ = [case for case in found if is_right[case] != case.is_right]
    for case in differ:
        should = "right" if case.is_right else "wrong"
        print(f"  {case.kind}: {case.reference!r}, {case.response[-150:]!r}: should be {should}")
    labels = [case for case in found if case.kind == "label"]
    if labels:
        print(f"ms per verdict, one at a time: {milliseconds(pool, labels)}")
    return len(differ)


def milliseconds(pool: Verifier, cases: list[Case]) -> str:
    """Median and mean time of a verdict."""
    spent = []
    for case in cases:
        began = time.perf_counter()
        pool.verify([case.problem], [case.response])
        spent.append(1000 * (time.perf_counter() - began))
    return f"median {statistics.median(spent):.3f}, mean {statistics.mean(spent):.3f}"


def main(paths: list[str]) -> None:
    """Measures all files."""
    print(hardware())
    with Verifier(os.cpu_count() or 1, DEADLINE_S, MEMORY_MB) as pool:
        sys.exit(sum(measure(pool, path) for path in paths) > 0)


if __name__ == "__main__":
    main(sys.argv[1:])
