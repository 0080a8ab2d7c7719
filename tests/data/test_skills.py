"""The bank: what a file may hold, which texts are nearest to a problem, and what its teacher is shown of them."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import tiny

from dasd_jax.config import FILES
from dasd_jax.data import skills
from dasd_jax.data.pipeline import PromptSet, PromptText
from dasd_jax.data.sources import Problem
from dasd_jax.errors import UserError
from dasd_jax.run import setup, user_files
from dasd_jax.text.tokenizer_files import load_tokenizer

BYTES = load_tokenizer("byte")
TEXT = PromptText(
    instruction="answer_line", sources=("gym:chain_sum",), privileged="answer", enable_thinking=None, shots=()
)
LINES = [
    {"skill": "add the tens of 4 + 8"},
    {"mistake": "4 * 8 read as 4 + 8"},
    {"skill": "multiply 4 * 8 by doubling", "question": "What is 4 * 8?"},
    {"mistake": "forgetting the carry"},
    {"skill": "check the last digit"},
    {"mistake": "dropping a minus sign", "question": "What is 9 - 3?"},
]


def bank(folder, lines=LINES):
    path = folder / "bank.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def problems(*questions):
    return [Problem(question=q, answer="1", source="s", index=i, scorer="math") for i, q in enumerate(questions)]


def prompt_set(questions, width=500):
    return PromptSet(problems(*questions), BYTES, TEXT, student_width=200, teacher_width=width)


# ------------------------------------------------------------------------------------------------ retrieval


def tf_idf(texts, question):
    """Cosines of a question with each text, from the formula: tf · (ln((1 + n) / (1 + df)) + 1), as unit vectors."""

    def terms(text):
        return Counter(
            "".join(char if char.isalnum() or char.isspace() else f" {char} " for char in text.lower()).split()
        )

    frequency = Counter(term for text in texts for term in terms(text))
    frequency = {term: sum(term in terms(text) for text in texts) for term in frequency}
    idf = {term: math.log((1 + len(texts)) / (1 + df)) + 1 for term, df in frequency.items()}

    def vector(text):
        found = {term: count * idf[term] for term, count in terms(text).items() if term in idf}
        length = math.sqrt(sum(value**2 for value in found.values()))
        return {term: value / length for term, value in found.items()}

    asked = vector(question)
    return [sum(value * asked.get(term, 0.0) for term, value in vector(text).items()) for text in texts]


def test_the_nearest_texts_are_those_of_the_formula(tmp_path):
    found = skills.read(bank(tmp_path))
    texts = [item.text for item in found.items]
    for question in ("4 + 8 = ?", "drop the minus, multiply 4 by 8", "a carry of digit 4"):
        cosines = np.array(tf_idf(texts, question))
        assert len(set(cosines.round(6))) > 2
        [pairs] = skills.nearest(found, [question], 3)
        ranked = [sorted(range(kind, 6, 2), key=lambda i: -cosines[i]) for kind in (0, 1)]
        assert [pair.skill for pair in pairs] == [texts[i] for i in ranked[0]]
        assert [pair.mistake for pair in pairs] == [texts[i] for i in ranked[1]]
        means = [(cosines[skill] + cosines[mistake]) / 2 for skill, mistake in zip(*ranked, strict=True)]
        np.testing.assert_allclose([pair.similarity for pair in pairs], means, atol=1e-12)
        assert skills.nearest(found, [question, "other", question], 2)[2] == pairs[:2]


def test_a_sign_tells_two_problems_apart(tmp_path):
    lines = [{"skill": "use it for 4 * 8"}, {"skill": "use it for 4 - 8"}, {"mistake": "a"}, {"mistake": "b"}]
    found = skills.read(bank(tmp_path, lines))
    chosen = [pairs[0].skill for pairs in skills.nearest(found, ["What is 4 - 8?", "What is 4 * 8?"], 1)]
    assert chosen == ["use it for 4 - 8", "use it for 4 * 8"]


def test_what_was_learnt_from_a_problem_is_not_shown_to_its_teacher(tmp_path):
    found = skills.read(bank(tmp_path))
    own, turned, other = skills.nearest(found, ["what is  4 * 8 ?", "What is 8 * 4?", "What is 4 * 8, and 1?"], 3)
    assert len(own) == 2 and all("doubling" not in pair.skill for pair in own)
    assert turned == own  # the same problem with its numbers in another order
    assert len(other) == 3 and "doubling" in other[0].skill


def test_embeddings_are_compared_where_the_file_brings_them(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(6, 5))
    asked = np.random.default_rng(1).normal(size=(2, 5))
    lines = [{**line, "embedding": vector.tolist()} for line, vector in zip(LINES, vectors, strict=True)]
    lines += [{"question": f"{i} + 1?", "embedding": (3 * vector).tolist()} for i, vector in enumerate(asked)]
    found = skills.nearest(skills.read(bank(tmp_path, lines)), ["1 + 1?", "0 + 1?"], 3)
    for pairs, vector in zip(found, asked[::-1], strict=True):
        cosines = vectors @ vector / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vector)
        ranked = [sorted(range(kind, 6, 2), key=lambda i: -cosines[i]) for kind in (0, 1)]
        assert [pair.skill for pair in pairs] == [LINES[i]["skill"] for i in ranked[0]]
        means = [(cosines[skill] + cosines[mistake]) / 2 for skill, mistake in zip(*ranked, strict=True)]
        np.testing.assert_allclose([pair.similarity for pair in pairs], means, atol=1e-12)
    with pytest.raises(UserError, match="^data.skills: .*: no embedding of the training problem '7 . 7.'"):
        skills.nearest(skills.read(bank(tmp_path, lines)), ["1 + 1?", "7 + 7?"], 3)


# ------------------------------------------------------------------------------------------------ what is refused

VECTOR = {"embedding": [1, 2]}


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], r"bank.jsonl: it holds no skill and no mistake: expected one in each line"),
        ([{"question": "1?", **VECTOR}], "it holds no skill and no mistake"),
        ([{"skill": "a"}, "{"], r"bank.jsonl:2: not JSON"),
        ([{"skill": "a"}, "[1]"], r"bank.jsonl:2: a JSON list, expected an object"),
        ([{"skill": "a", "mistake": "b"}], ":1: expected a text as skill or as mistake, and not both"),
        ([{"skill": " "}], ":1: expected a text as skill or as mistake"),
        ([{"question": "1?"}], ":1: expected a text as skill or as mistake"),
        ([{"skill": 3}], ":1: field 'skill' is a int, expected a string"),
        ([{"skill": "\ud800"}], ":1: field 'skill' is .* expected valid UTF-8"),
        (
            [{"skill": "a", **VECTOR}, {"mistake": "b"}],
            ":2: an embedding of 0 numbers: expected 2 in each line, as in .*:1",
        ),
        ([{"skill": "a", **VECTOR}, {"mistake": "b", "embedding": [1]}], ":2: an embedding of 1 numbers: expected 2"),
        *(
            ([{"skill": "a", "embedding": value}], ":1: embedding is .*: expected a list of finite numbers")
            for value in (3, [], [0, 0], ["1"], [True], [math.nan], [math.inf], [10**400], [1e300, 1e300], [[1]])
        ),
    ],
)
def test_a_bank_that_is_none_is_refused_in_one_line(lines, says, tmp_path):
    with pytest.raises(UserError, match=says) as refused:
        skills.read(bank(tmp_path, lines))
    assert str(refused.value).startswith("data.skills: ") and "\n" not in str(refused.value)


def test_a_missing_bank_and_none_at_all_are_refused(tmp_path):
    with pytest.raises(UserError, match="^data.skills: no such file"):
        skills.read(str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="^data.skills: '': expected a bank of skills and mistakes"):
        skills.read("")
    with pytest.raises(UserError, match="^data.skills: no such file"):
        skills.sha256(str(tmp_path / "none.jsonl"))


# ------------------------------------------------------------------------------------------------ prompts


def test_each_problem_has_as_many_prompts_as_a_teacher_is_shown_pairs(tmp_path):
    kept = prompt_set(["4 * 8 is what?", "What is 4 * 8?"], width=400)
    assert kept.retrieve(skills.read(bank(tmp_path)), 3) == 0
    batch = kept.teacher_batch(np.array([1, 0, 1]), "skills", 3, group=4)
    assert batch.teacher_prompt.shape == (3, 1, 3, 400) and batch.weight.dtype == np.float32
    # Of three skills one was learnt from the second problem.
    np.testing.assert_array_equal(batch.shown[:, 0], [[True, True, False], [True] * 3, [True, True, False]])
    pairs = skills.nearest(skills.read(bank(tmp_path)), ["4 * 8 is what?"], 3)[0]
    np.testing.assert_allclose(batch.weight[1, 0], [pair.similarity for pair in pairs], rtol=1e-6)
    assert (np.diff(batch.weight[1, 0]) <= 0).all()
    read = [
        "".join(map(BYTES.piece, batch.teacher_prompt[1, 0, k][batch.teacher_prompt_mask[1, 0, k]])) for k in range(3)
    ]
    for text, pair in zip(read, pairs, strict=True):
        assert text.index("4 * 8 is what?") < text.index(pair.skill) < text.index(pair.mistake) < text.index("Reply")
    student = kept[1]["student_prompt"][kept[1]["student_prompt_mask"]]
    np.testing.assert_array_equal(batch.teacher_prompt[0, 0, 2][batch.teacher_prompt_mask[0, 0, 2]], student)
    blank = kept.blank_teacher_batch(np.array([1, 0, 1]), "skills", 3, group=4)
    assert blank.teacher_prompt.shape == batch.teacher_prompt.shape and not blank.shown.any()


def test_texts_that_fit_no_prompt_are_left_out_and_counted_and_too_few_are_refused(tmp_path):
    long = [{"skill": "long " * 100}, {"mistake": "long " * 100}]
    found = skills.read(bank(tmp_path, [*long, *LINES]))
    kept = prompt_set(["4 * 8 is what?"], width=460)
    assert kept.retrieve(found, 3) == 2
    batch = kept.teacher_batch(np.array([0]), "skills", 3, group=2)
    assert batch.shown.all()
    says = (
        "^data.skills: .*: 3 skills and 3 mistakes fit rollout.teacher_prompt_length = 460: expected at least 4 of each"
    )
    with pytest.raises(UserError, match=says + ", as many as a teacher is shown"):
        kept.retrieve(found, 4)
    with pytest.raises(
        UserError, match=": 4 skills and 4 mistakes without those of problems to evaluate: expected at least 5 "
    ):
        kept.retrieve(found, 5)
    with pytest.raises(UserError, match=": 0 skills and 0 mistakes .*_length = 260: "):
        prompt_set(["4 * 8 is what?"], width=260).retrieve(found, 1)


def test_a_pair_that_is_too_long_for_its_own_problem_is_not_shown(tmp_path):
    kept = prompt_set(["4 * 8?", "4 * 8, " + "in words, " * 7 + "please?"], width=400)
    kept.retrieve(skills.read(bank(tmp_path)), 2)
    batch = kept.teacher_batch(np.array([0, 1]), "skills", 2, group=2)
    np.testing.assert_array_equal(batch.shown[:, 0], [[True, True], [False, False]])


# ------------------------------------------------------------------------------------------------ a run


def test_a_run_counts_what_it_leaves_out_and_records_the_file(tmp_path):
    """What was learnt from a problem to evaluate would be read off to the policy by its teacher."""
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"question": f"{i} + 1?", "answer": str(i + 1)}) + "\n" for i in range(12)))
    settings = ["objective.method=sgsd", "objective.contexts=2", f"data.sources=('jsonl:{path}',)", "data.heldout=8"]
    learnt = [{"skill": f"count on from {i}", "question": f"1 + {i}?"} for i in range(12)]  # in another order
    named = bank(tmp_path, [*learnt, *LINES])
    config = tiny.config(*settings, f"data.skills={named}", "rollout.teacher_prompt_length=480")
    train, heldout, counts = setup.open_prompts(config, BYTES)
    assert counts["texts of data.skills learnt from problems to evaluate"] == len(heldout) == 8
    assert counts["texts of data.skills that fit no prompt"] == 0
    asked = [problem.question for problem in heldout.problems]
    for index in range(len(train)):
        batch = train.teacher_batch(np.array([index]), "skills", 2, group=1)
        shown = BYTES.decode(batch.teacher_prompt[batch.teacher_prompt_mask].tolist())
        assert not any(f"from {question.partition(' ')[0]}\n" in shown for question in asked)

    mine = user_files.of(config)
    assert mine == {named: skills.sha256(named)} and user_files.as_written(config, mine)[FILES] == mine
    user_files.check_same(config, user_files.as_written(config, mine), tmp_path)
    theirs = user_files.as_written(config, mine)
    bank(tmp_path, LINES)
    with pytest.raises(UserError, match="^--workdir: .*bank.jsonl has changed since the run in .* began"):
        user_files.check_same(config, theirs, tmp_path)
    assert user_files.of(tiny.config(f"data.skills={named}")) == {}  # a method that is shown none of it
