"""Instructions of other recipes: whole requests go, what a problem asks of its answer stays, the rest is noticed."""

import itertools
import time

import pytest

from dasd_jax.data.instructions import is_wrapped, without_instructions

QUESTIONS = (
    "A shop sells 2 pens a day. How many in 3 days?",
    "Find $x$ such that\n\\[x+1=2\\]",
    "Reduce it. Express your answer as a common fraction.",
    "Name the root, rounded, and give your answer in the form $a+b\\sqrt{c}$.",
    "Two numbers (list both, separated by commas)",
    "For any integer $x$, $\\boxed{x}$ is the sum of its factors. Find $\\fbox{12}$.",
    "What number must be placed in the box in $4x - 9 = 7 + \\boxed{\\phantom{2}}?$",
    "Solve the recurrence; what is the last answer?",
    "求 $n$ 的最小值为多少？",
)
STEPS = ("Let's think step by step", "Please reason step by step", "Think carefully, step-by-step")
PLACES = (
    "output the final answer within \\boxed{}",
    "put your final answer in \\boxed{answer}",
    'output the final answer after "####"',
    "write the answer inside <answer> </answer> tags",
    "present your final answer (and only that) as $\\boxed{}$",
)
AFTER = (
    *(f"{steps}{joint}{place}." for steps, joint, place in itertools.product(STEPS, (" and ", ", and ", ". "), PLACES)),
    *(f"{polite}{place}." for polite, place in itertools.product(("Please ", "You must ", "Remember to "), PLACES)),
    *STEPS,
    "The final answer must be put in \\boxed{}.",
    "First write your reasoning in <think> </think> tags and then write the final answer in <answer> </answer> tags.",
    "\\( \\boxed{} \\)",
)


@pytest.mark.parametrize("question", QUESTIONS)
def test_requests_around_a_question_are_removed_and_the_question_stays(question):
    assert without_instructions(question) == question and not is_wrapped(question)
    for request in AFTER:
        for wrapped in (f"{question} {request}", f"{question}\n{request}\n", f"{question}\n\n{request}"):
            assert without_instructions(wrapped) == question, request
    for request in ("Solve the following math problem step by step. Put your final answer in \\boxed{}.", AFTER[0]):
        assert without_instructions(f"{request}\n\nProblem: {question}") == question
        assert without_instructions(f"{request}\n{question}\n\n{AFTER[1]}") == question
    assert without_instructions(f"Question: {question}\n{AFTER[0]}\nAnswer:") == question
    assert without_instructions(f"Question: {question}") == f"Question: {question}"


def test_a_request_inside_a_sentence_leaves_the_rest_of_it():
    assert without_instructions("Compute 2+3 and put your final answer in \\boxed{}.") == "Compute 2+3"
    assert without_instructions("Compute 2+3 , and put your final answer in \\boxed{}.") == "Compute 2+3"


@pytest.mark.parametrize(
    "words",
    [
        "You FIRST think, then answer. The reasoning MUST BE enclosed within <think> </think> tags.",
        "Give your answer as an integer within \\boxed{}.",
        'Write it on the last line after "Answer:".',
        "Answer: $Answer (without quotes)",
        'Return JSON such as {"answer": 3}.',
        "#### is what the number follows.",
        "<|im_end|><|im_start|>assistant",
        "Only the final answer counts.",
        "Your response ends in a number.",
    ],
)
def test_unknown_words_about_the_format_are_noticed(words):
    assert is_wrapped(without_instructions(f"What is 1+1? {words}"))


@pytest.mark.parametrize(
    "text",
    [
        "please " * 50_000,
        "put your answer " * 20_000,
        "think " + "through " * 50_000,
        "Let's think step by step. " * 5_000 + "x",
        "x " + "Let's think step by step. " * 5_000,
        "\n" * 100_000 + "x" + " \n" * 100_000 + "x",
        "Solve the following math problem step by step. " + " " * 100_000 + "x",
        "\\boxed{" * 50_000,
        "\\boxed" + " " * 100_000 + "x",
        "\\boxed{" + " " * 100_000 + "x",
        "answer" + " " * 100_000 + "x",
    ],
)
def test_a_hostile_text_takes_time_that_grows_with_its_length_alone(text):
    start = time.process_time()
    is_wrapped(without_instructions(text))
    assert time.process_time() - start < 2
