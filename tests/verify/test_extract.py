"""What counts as the answer of a response, and the time that it takes to find it."""

import time

import pytest

from dasd_jax.verify.extract import MAX_ANSWER_CHARS, MAX_RESPONSE_CHARS, extract_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{1} then \boxed{2} done", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\left\{1,2\right.}", r"\left\{1,2\right."),
        (r"\boxed {$ 7 $}", "7"),
        (r"\boxed{A sentence.}", "A sentence."),
        (r"\boxed{3} and \boxed{4", "3"),
        (r"Answer: \boxed{4", None),
        (r"put it in \boxed{}", None),
        ("Answer: 4", "4"),
        ("Answer: 3\nno,\n**Answer:** $-4$.\nBye", "-4"),
        ("**Final answer**: **12.5.**", "12.5"),
        ("The ANSWER IS -4", "-4"),
        ("The answer is: .5.", ".5"),
        ("Answer:\n\n  42", "42"),
        ("Answer: 1 \\boxed{2} Answer: 3", "2"),
        ("the answers vary; it is 4", None),
        ("Answer:", None),
        ("", None),
        (r"<think>\boxed{1}</think> Answer: 2", "2"),
        (r"<think>\boxed{1}</think> hm", None),
        (r"\boxed{1</think>} so \boxed{2}", "2"),
        ("Answer: " + "7" * MAX_ANSWER_CHARS, "7" * MAX_ANSWER_CHARS),
        ("Answer: " + "7" * (MAX_ANSWER_CHARS + 1), None),
    ],
)
def test_the_answer_is_the_last_closed_box_or_else_the_last_marked_line(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{" * 140_000, None),
        (r"\boxed{" * 70_000 + "5" + "}" * 70_000, "5"),
        (r"\boxed{}" * 120_000 + r"\boxed{5}", "5"),
        (r"\boxed{5}" + "{" * 400_000 + "}" * 400_000, "5"),
        ("Answer: 5" + "$ " * 400_000, "5"),
        ("$ " * 400_000 + "x", None),
        ("Answer: 6" + " " * 900_000 + "x", None),
        ("answer is " * 90_000 + "5", "5"),
        ("\\" * 900_001 + "boxed{5}", "5"),
        (r"\boxed" + " " * 900_000 + "{5}", "5"),
        ("<think>" + "</think>" * 100_000 + "Answer: 5", "5"),
        (r"\boxed{6}" + "x" * MAX_RESPONSE_CHARS, None),
        ("x" * 2**28 + r"\boxed{5}", "5"),
    ],
    ids=range(13),
)
def test_the_answer_is_found_in_a_few_passes_whatever_the_response_holds(text, answer):
    """A pass that begins again at every position would take hours."""
    began = time.process_time()
    assert extract_answer(text) == answer
    assert time.process_time() - began < 5
