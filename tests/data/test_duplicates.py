"""Equal questions and twins: what the two keys ignore, and what they keep."""

import json
import random

import pytest

from dasd_jax.data.duplicates import normalise, twins


def talk(*contents, roles=("user", "assistant", "user")):
    """The question that stands for a conversation with these turns."""
    return json.dumps([{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)])


@pytest.mark.parametrize(
    "other",
    [
        "FIND  $x+1$ for $x = 2$.",
        "Find \\(x+1\\) for\n\\( x=2 \\).",
        "Find \\[x + 1\\] for $$x = 2$$.",
        "find \\$x+1\\$ for x\u00a0= 2 .",
    ],
)
def test_case_space_and_marks_of_mathematics_do_not_tell_questions_apart(other):
    assert normalise(other) == normalise("Find $x + 1$ for $x = 2$.")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2 + 3", "2 - 3"),
        ("-2", "2"),
        ("1 2 13", "12 1 3"),
        ("1  2", "12"),
        ("2.5", "25"),
        ("x_1", "x^1"),
        ("(1,2]", "[1,2]"),
        ("x'", "x"),
        ("a \\leftarrow b", "a \\rightarrow b"),
        ("1 \\\\[2pt] 3", "1 \\\\ 2pt] 3"),
        ("4 + 9", "9 + 4"),
        ("\\le", "\\ge"),
    ],
)
def test_signs_digits_and_every_other_character_do(one, other):
    assert normalise(one) != normalise(other)


def test_left_and_right_before_a_bracket_do_not_count():
    assert normalise("\\left( \\frac{1}{2} \\right]") == normalise("(\\frac{1}{2}]")


@pytest.mark.parametrize(
    "words",
    [
        "Find the LCM of these numbers: {}, {}",
        "Which is larger, {} or {}?",
        "{} + {} =",
        "Solve ${}x + {} = 0$ in $[{},{}]$",
        "Sort {} {} {}",
        "{}-{}",
    ],
)
def test_questions_that_differ_in_the_order_of_their_numbers_alone_are_twins(words):
    rng = random.Random(0)
    for kind in (lambda: rng.randrange(20), lambda: -rng.randrange(1, 20), lambda: rng.randrange(999) / 10):
        for _ in range(20):
            numbers = [kind() for _ in range(words.count("{}"))]
            shuffled = rng.sample(numbers, len(numbers))
            assert twins(words.format(*numbers)) == twins(words.format(*shuffled))
            changed = [number + 1000 for number in numbers]
            assert twins(words.format(*numbers)) != twins(words.format(*changed))


def test_thousands_keep_their_commas_in_twins():
    assert twins("1,000 and 5") == twins("5 and 1,000")
    assert twins("2.5 and 3") == twins("3 and 2.5")


def test_other_words_or_operations_are_no_twins():
    assert len({twins(text) for text in ("4 + 9", "4 * 9", "sum 4 + 9", "4 + 9 + 9")}) == 4


def test_a_conversation_of_one_turn_is_the_same_question_as_its_text():
    text = "Find $x + 1$ for\n$x = 2$ or $10$."
    assert normalise(talk(text)) == normalise(text)
    assert twins(talk(text)) == twins("Find $x + 1$ for $x = 10$ or $2$.")


def test_turns_are_compared_as_questions_are():
    one = talk("Find $\\frac{1}{2} + x$.", "$x$ is what?", "2, or 10")
    other = talk("FIND  \\(\\frac{1}{2}+x\\).", "\\[x\\] is what?", "2,\nor 10")
    assert normalise(one) == normalise(other)
    assert twins(one) == twins(talk("Find $\\frac{10}{2} + x$.", "$x$ is what?", "1, or 2"))


def test_other_turns_or_roles_are_another_question():
    several = [
        talk("1 + 1?", "2", "and 3?"),
        talk("1 + 1?", "3", "and 3?"),
        talk("1 + 1?", "and 3?", roles=("system", "user")),
        talk("1 + 1?", "and 3?", roles=("assistant", "user")),
        talk("1 + 1?\n\nand 3?"),
        "user\n1 + 1?\nassistant\n2\nuser\nand 3?",
    ]
    assert len(set(map(normalise, several))) == len(several)
