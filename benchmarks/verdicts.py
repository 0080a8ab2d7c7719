r"""The verifier on files of answers whose verdict is known: python -m benchmarks.verdicts FILE [FILE …]

A .jsonl, .parquet or .tsv file, recognised by its rows, holds one of three things:

- references: problems in a published layout. Each reference has to be right as an answer to itself, and so does each of
  six harmless rewritings of it; a rewriting that would change what a reference says is left out and counted.
- labelled solutions: values {"is_correct": …, "solution": …} beside a ground truth, both with a last line "A: N", as in
  gsm8k's example solutions. The verdicts have to be the labels; these are timed too, one at a time.
- graded pairs: "gold", "response" and "expected" ("right" or "wrong"), or these as expected, gold, response in a .tsv.

Exit status 1 if a verdict differs; every one that does is printed.
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
    """A response to a reference, and whether it has to be right."""

    kind: str
    reference: str
    response: str
    is_right: bool


def rows_of(path: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a file; those of a .tsv, expected, gold and response, as objects."""
    if path.endswith(".tsv"):
        for line in filter(None, Path(path).read_text().splitlines()):
            yield dict(zip(("expected", "gold", "response"), line.split("\t"), strict=True))
    else:
        yield from (row for _, row in read_table(path))


def reference_of(row: Mapping[str, Any]) -> str:
    """The final answer of a problem in any layout; after #### if it is a worked solution, else the last box of one."""
    reward = row.get("reward_model", {})
    reward = json.loads(reward) if isinstance(reward, str) else reward
    answer = str(
        row.get("ground_truth") or reward.get("ground_truth") or row.get("final_answer") or row.get("answer", "")
    )
    answer = answer.rpartition("####")[2].strip()
    return answer or next((" ".join(box.split()) for box in boxes(str(row.get("solution", ""))) if box.strip()), "")


def last_line(solution: str) -> str:
    """A solution of gsm8k's example files, its last line "A: N" in words; none if it was cut off before that line."""
    steps, marker, answer = solution.rpartition("\nA:")
    return f"{steps}\nAnswer: {answer.strip()}" if marker else solution


# Spaces are added around these, but not within a command, a word or a number.
_AROUND = re.compile(
    r"(\\(?:[a-zA-Z]+|.)|\\text\s*\{[^{}]*\}|\\(?:begin|end)\s*\{\w+\})|([-+=<>()\[\]^_{}/|])|(,)(?!\d{3}(?!\d))"
)
_IN_TEXT = re.compile(r"[\w\s.,:;'/()\[\]%$+=-]*")  # what LaTeX would set in text as in mathematics


def spaced(reference: str) -> str:
    """Twice the white space, and some around operators, brackets and commas."""
    parts = re.split(r"(\\(?:text|mathrm|mbox|begin|end|textbf|operatorname)\s*\{[^{}]*\}|\\[a-zA-Z]+|\\.)", reference)
    return "  ".join(
        [
            "",
            *(
                part
                if i % 2
                else re.sub(r"\s+", "  ", re.sub(r"([-+=<>()\[\]^_{}/|])|,(?!\d{3}(?!\d))", r" \g<0> ", part))
                for i, part in enumerate(parts)
            ),
        ]
    )


def rewritings(reference: str) -> dict[str, str]:
    """Six ways to write the same, by name; "" for one that would say something else."""
    bracketed = re.sub(r"(?<!\\)[(\[]", r"\\left\g<0>", re.sub(r"(?<!\\)[)\]]", r"\\right\g<0>", reference))
    return {
        r"\dfrac": re.sub(r"\\frac(?![a-zA-Z])", r"\\dfrac", reference),
        "spaces": spaced(reference),
        "$…$": f"${reference}$",
        "x =": f"x = {reference}",
        r"\left( \right)": bracketed,
        r"\text{}": rf"\text{{{reference}}}",
    }


def cases_of(path: str) -> Iterator[Case]:
    """What a file asks of the verifier."""
    for row in rows_of(path):
        labelled = [value for value in row.values() if isinstance(value, dict) and "is_correct" in value]
        if "expected" in row:
            yield Case("pair", row["gold"], row["response"], row["expected"] == "right")
        elif labelled:
            reference = row["ground_truth"].rpartition("A:")[2].strip()
            yield from (Case("label", reference, last_line(each["solution"]), each["is_correct"]) for each in labelled)
        elif reference := reference_of(row):
            yield Case("itself", reference, f"\\boxed{{{reference}}}", True)
            for name, text in rewritings(reference).items():
                yield Case(name, reference, f"\\boxed{{{text}}}", True)


def main(paths: list[str]) -> None:
    print(f"{hardware()}\n")
    differ = 0
    with Verifier(os.cpu_count() or 1, DEADLINE_S, MEMORY_MB) as pool:
        for path in paths:
            found = list(cases_of(path))
            distinct = list(dict.fromkeys(found))
            problems = [
                Problem(question="", answer=case.reference, source="benchmark", index=0, scorer="math")
                for case in distinct
            ]
            began = time.monotonic()
            got = dict(zip(distinct, pool.verify(problems, [case.response for case in distinct]), strict=True))
            print(f"\n{path}: {time.monotonic() - began:.0f} s")
            right, count = Counter(), Counter()
            for case in found:
                count[case.kind] += 1
                right[case.kind] += (got[case].reward == 1) == case.is_right
            for kind in count:
                print(f"| {kind} | {right[kind]:,} of {count[kind]:,} | {verdict(right[kind] == count[kind])} |")
            for case in distinct:
                if (got[case].reward == 1) != case.is_right:
                    differ += 1
                    expected = "right" if case.is_right else "wrong"
                    said = "right" if got[case].reward else got[case].error or "wrong"
                    print(
                        f"  {case.kind}: {case.reference!r}, {case.response[-150:]!r}: expected {expected}, got {said}"
                    )
            labels = [i for i, case in enumerate(distinct) if case.kind == "label"]
            if labels:
                spent = []
                for i in labels:
                    began = time.perf_counter()
                    pool.verify([problems[i]], [distinct[i].response])
                    spent.append(1000 * (time.perf_counter() - began))
                print(
                    f"ms per verdict, one at a time: median {statistics.median(spent):.3f}, mean {statistics.mean(spent):.3f}"
                )
    sys.exit(differ > 0)


if __name__ == "__main__":
    main(sys.argv[1:])
