"""The verifier: what counts as right, and what a hostile answer may cost."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import math_verify
import pytest
from verifier_table import ROWS, Row

from dasd_jax.data.sources import Problem, load_source
from dasd_jax.errors import UserError
from dasd_jax.verify.extract import extract_answer
from dasd_jax.verify.verifier import CLOCK, Outcome, Verifier

TOWER = r"\boxed{2003^{2002^{2001}}}"
DEADLINE_S = 2.0


def math_problem(answer: str, index: int = 0) -> Problem:
    return Problem(question=f"problem {index}", answer=answer, source="test", index=index, scorer="math")


@pytest.fixture(scope="module")
def verifier():
    with Verifier(num_workers=1, deadline_s=DEADLINE_S, memory_mb=1024) as pool:
        yield pool


def test_no_answer_is_a_parse_failure_and_not_a_timeout(verifier):
    [verdict] = verifier.verify([math_problem("4")], ["no idea"])
    assert (verdict.reward, verdict.score, verdict.answer) == (0.0, 0.0, None)
    assert verdict.error == "parse"


def test_partial_credit_is_no_reward_but_extraction_makes_a_verbose_answer_right(verifier):
    [problem] = load_source("gym:chain_sum?min_terms=2&max_terms=2&size=1")
    wordy, right = verifier.verify(
        [problem] * 2, [f"\\boxed{{The answer is {problem.answer}}}", f"The answer is {problem.answer}"]
    )
    assert 0 < wordy.score < 0.99 and wordy.reward == 0.0
    assert (right.score, right.reward) == (1.0, 1.0)


def test_progress_goes_up_by_one_to_the_number_of_different_answers(verifier):
    told, problem = [], math_problem("4")
    verifier.verify(
        [problem] * 5, ["no idea", *(f"Answer: {i}" for i in (3, 4, 3, 5))], lambda *count: told.append(count)
    )
    assert list(dict.fromkeys(told)) == [(done, 3) for done in range(4)]


def test_progress_counts_what_is_tried_again(monkeypatch):
    told, problem = [], math_problem("4")
    with Verifier(num_workers=1, deadline_s=DEADLINE_S, memory_mb=1024) as pool:
        monkeypatch.setattr(
            pool, "_try", lambda pairs, *_: {pair: Outcome(0.0, "late" if pair[1] == "3" else "") for pair in pairs}
        )
        late, _ = pool.verify([problem] * 2, ["Answer: 3", "Answer: 4"], lambda *count: told.append(count))
    assert late.error == "timeout" and told == [(2, 3)]


@pytest.mark.parametrize(
    ("reference", "answer", "right"),
    [
        ("1/2", "0.5", True),
        ("0.5", r"\frac{1}{2}", True),
        (r"\frac{1}{2}", r"\dfrac{1}{2}", True),
        ("1/3", "0.33", False),
        ("1,000", "1000", True),
        (r"\{1,2\}", r"\{2,1\}", True),
        (r"\{1,2\}", r"\{1,3\}", False),
        ("(1,2]", r"\left(1, 2\right]", True),
        ("(1,2]", "(1,2)", False),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        ("x^2+1", "1+x^2", True),
        ("5", "5 or 6", False),
        (r"\text{north east}", r"\text{north east}", True),
    ],
)
def test_equal_mathematics_in_other_words_is_right(verifier, reference, answer, right):
    [verdict] = verifier.verify([math_problem(reference)], [f"\\boxed{{{answer}}}"])
    assert verdict.reward == float(right) and verdict.error == ""


def test_every_row_of_the_table_gets_its_verdict(verifier):
    problems = [math_problem(row.reference, i) for i, row in enumerate(ROWS)]
    verdicts = verifier.verify(problems, [row.response for row in ROWS])
    said = ["right" if verdict.reward else verdict.error or "wrong" for verdict in verdicts]
    assert [(row, word) for row, word in zip(ROWS, said, strict=True) if word != row.expected] == []


@pytest.mark.slow
def test_the_marked_rows_of_the_table_are_all_the_disagreements_with_math_verify():
    judged = [row for row in ROWS if row.expected != "timeout"]  # it has no deadline that holds there
    disagreements = [row for row in judged if math_verify_says(row) != (row.expected == "right")]
    assert disagreements == [row for row in judged if row.math_verify]


def math_verify_says(row: Row) -> bool:
    gold, guess = (
        math_verify.parse(text, parsing_timeout=None) for text in (f"\\boxed{{{row.reference}}}", row.response)
    )
    return math_verify.verify(gold, guess, timeout_seconds=None)


def test_the_verifiers_page_explains_every_disagreement_and_every_limit():
    page = Path(__file__).parents[2].joinpath("docs", "verifier.md").read_text()
    missed = [row for row in ROWS if row.math_verify and row.expected == "right"]
    accepted = [row for row in ROWS if row.math_verify and row.expected != "right"]
    assert f"The {len(ROWS)} pairs" in page
    assert f"rejects {len(missed)} right answers and accepts {len(accepted)} that are not right" in page
    for reason, count in Counter(row.math_verify for row in missed + accepted).items():
        assert f"| {count} | {reason} |" in page
    assert [row for row in ROWS if row.limit not in page] == []


def test_an_answer_that_nothing_reads_is_neither_wrong_nor_missing(verifier):
    unread, wrong, text = verifier.verify(
        [math_problem("5"), math_problem("5", 1), math_problem("north")],
        [r"\boxed{about five}", r"\boxed{6}", r"\boxed{south}"],
    )
    assert unread.error == "unreadable" and (unread.reward, unread.score, unread.answer) == (0.0, 0.0, "about five")
    assert wrong.error == text.error == "" and (wrong.reward, text.reward) == (0.0, 0.0)


def test_a_tower_of_exponents_costs_its_deadline_and_the_next_answers_are_right(verifier):
    verifier.verify([math_problem("1")], ["Answer: 1"])  # so that the start is not timed
    began = time.monotonic()
    tower, *rest = verifier.verify([math_problem("1", i) for i in range(4)], [TOWER] + [r"\boxed{2/2}"] * 3)
    assert time.monotonic() - began < DEADLINE_S + 8  # 8 s: a new worker's start on a busy host
    assert tower.error == "timeout" and tower.reward == 0.0
    assert [verdict.reward for verdict in rest] == [1.0] * 3


def test_equal_answers_to_a_problem_are_scored_once(verifier):
    began = time.monotonic()
    verdicts = verifier.verify([math_problem("1")] * 8, [TOWER] * 8)
    assert all(verdict.error == "timeout" for verdict in verdicts)
    assert time.monotonic() - began < 4 * DEADLINE_S


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_scorer_that_dies_is_replaced_and_its_answer_tried_again():
    with Verifier(num_workers=1, deadline_s=DEADLINE_S, memory_mb=1024) as pool:
        pool.verify([math_problem("1")], [r"\boxed{2/2}"])
        keeper = pool._workers[0].process.pid
        [scorer] = children(keeper)
        threading.Timer(0.5, os.kill, (scorer, signal.SIGKILL)).start()
        tower, fine = pool.verify([math_problem("1"), math_problem("1", 1)], [TOWER, r"\boxed{2/2}"])
        assert pool._workers[0].process.pid == keeper and children(keeper) != [scorer]
    assert tower.error == "timeout"
    assert (fine.error, fine.reward) == ("", 1.0)


@pytest.mark.parametrize("what", ["scorer", "keeper"])
def test_a_process_that_stops_or_dies_costs_its_answer_nothing_but_time(what):
    """Stopped it uses no CPU, as on a host that is busy with other things: its clock ends it, alone it is right."""
    with Verifier(num_workers=1, deadline_s=0.25, memory_mb=1024) as pool:
        problems = [math_problem("1", i) for i in range(12)]
        pool.verify(problems[:8], [r"\boxed{2/2}"] * 8)
        for worker in pool._workers:
            [scorer] = children(worker.process.pid)
            os.kill(scorer if what == "scorer" else worker.process.pid, signal.SIGSTOP)
        began = time.monotonic()
        verdicts = pool.verify(problems, [r"\boxed{4/4}"] * 12)
    assert [(verdict.reward, verdict.error) for verdict in verdicts] == [(1.0, "")] * 12
    assert time.monotonic() - began >= CLOCK * 0.25
    assert -0.5 < pool.slowest.over_clock_s < 2


def test_no_answer_costs_more_than_its_deadline_of_cpu():
    hungry = [TOWER, r"\boxed{9999999999!}", r"\boxed{\prod_{k=1}^{10^7} (x+k)}"]
    with Verifier(num_workers=1, deadline_s=0.5, memory_mb=1024) as pool:
        verdicts = pool.verify([math_problem("1", i) for i in range(3)], hungry)
    assert [verdict.error for verdict in verdicts] == ["timeout"] * 3
    assert 0.4 < pool.slowest.cpu_s < 1.0


def test_a_problem_that_differs_in_the_worker_is_an_error_and_not_a_wrong_answer(verifier):
    [problem] = load_source("gym:chain_sum?size=1")
    [verdict] = verifier.verify([dataclasses.replace(problem, answer="?")], [f"Answer: {problem.answer}"])
    assert verdict.error == "crash" and verdict.reward == 0.0


def test_an_answer_cannot_reach_outside_its_process(verifier, tmp_path):
    [problem] = load_source("gym:spiral_matrix?size=1")  # its scorer evaluates what the model wrote
    trace = tmp_path / "trace"
    attacks = [f"[__import__('os').system('touch {trace}')]", f"[open('{trace}', 'w')]"]
    verdicts = verifier.verify([problem] * 2, [f"\\boxed{{{attack}}}" for attack in attacks])
    assert [verdict.reward for verdict in verdicts] == [0.0, 0.0]
    assert not trace.exists()


def test_workers_killed_from_outside_are_replaced_and_results_stay_in_order():
    with Verifier(num_workers=2, deadline_s=10.0, memory_mb=1024) as pool:
        problems = [math_problem(str(i), i) for i in range(20)]
        texts = [f"\\boxed{{{i + i % 2}}}" for i in range(20)]
        for _ in range(2):
            verdicts = pool.verify(problems, texts)
            assert [verdict.reward for verdict in verdicts] == [1.0, 0.0] * 10
            for worker in pool._workers:
                os.kill(worker.process.pid, signal.SIGKILL)
                worker.process.wait()


def test_order_is_kept_when_three_workers_finish_out_of_order():
    cases = [(str(i), f"\\boxed{{{i}.0}}", 1.0) for i in range(12)]
    cases += [(str(i), f"\\boxed{{{i + 1}}}", 0.0) for i in range(12)]
    cases += [("1", TOWER, 0.0), ("7", "nothing", 0.0), (r"\sqrt{8}", r"\boxed{2\sqrt{2}}", 1.0)]
    random.Random(0).shuffle(cases)
    with Verifier(num_workers=3, deadline_s=DEADLINE_S, memory_mb=1024) as pool:
        verdicts = pool.verify([math_problem(ref, i) for i, (ref, _, _) in enumerate(cases)], [t for _, t, _ in cases])
    assert [verdict.reward for verdict in verdicts] == [reward for _, _, reward in cases]
    assert [verdict.answer for verdict in verdicts] == [extract_answer(text) for _, text, _ in cases]


def test_no_worker_outlives_a_killed_parent_even_in_the_middle_of_a_computation():
    program = f"""
from dasd_jax.data.sources import Problem
from dasd_jax.verify.verifier import Verifier
pool = Verifier(1, 3.0, 1024)
print(pool._workers[0].process.pid, flush=True)
pool.verify([Problem(question="q", answer="1", source="test", index=0, scorer="math")], [{TOWER!r}])
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    worker = int(parent.stdout.readline())
    time.sleep(2.5)  # past the imports, into the tower
    assert is_running(worker)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    gives_up = time.monotonic() + 10
    while is_running(worker) and time.monotonic() < gives_up:
        time.sleep(0.1)
    assert not is_running(worker)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_too_small_a_memory_cap_is_one_clear_line():
    with (
        Verifier(num_workers=1, deadline_s=1.0, memory_mb=32) as pool,
        pytest.raises(UserError, match=r"^rollout.verifier_memory_mb: 32: .*expected room"),
    ):
        pool.verify([math_problem("1")], ["Answer: 1"])


def test_the_parent_imports_no_scorer_and_no_jax():
    heavy = {"jax", "sympy", "math_verify", "reasoning_gym", "tensorflow_datasets"}
    program = f"import sys, dasd_jax.verify.verifier; print({heavy} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", program]).strip() == b"set()"
