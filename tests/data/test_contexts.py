"""What each context shows: never a row's own words, never another problem's but on purpose, and nothing cut short."""

import dataclasses
import json

import numpy as np
import pytest

from dasd_jax.data import contexts
from dasd_jax.data.contexts import Written
from dasd_jax.data.pipeline import PromptSet, PromptText
from dasd_jax.data.skills import KINDS, Bank, Item
from dasd_jax.data.sources import Problem, load_problems
from dasd_jax.errors import UserError
from dasd_jax.text.prompts import CONTEXTS
from dasd_jax.text.tokenizer_files import load_tokenizer

BYTES = load_tokenizer("byte")
GYM = ("gym:chain_sum?size=2",)
TEXT = PromptText(instruction="answer_line", sources=GYM, privileged="answer", enable_thinking=None, shots=())
SIBLINGS = dataclasses.replace(TEXT, privileged="sibling")
LINES = "First we add.\n\nThen we halve. Twice.\nSo it is 7."
B, G, WIDTH = 3, 4, 500


def problem(index, answer=None, **fields):
    answer = str(index + 1) if answer is None else answer
    return Problem(question=f"{index} + 1?", answer=answer, source="s", index=index, scorer="math", **fields)


def prompt_set(items=None, text=TEXT, **widths):
    items = [problem(i) for i in range(B)] if items is None else items
    return PromptSet(items, BYTES, text, **({"student_width": 200, "teacher_width": WIDTH} | widths))


def written(texts, correct, finished=None, judged=None):
    finished, judged = (np.ones(len(texts), bool) if x is None else np.array(x) for x in (finished, judged))
    return Written(texts, np.array(correct, np.float32), finished, judged)


def prompts(batch):
    """What is read, as text, in the layout of `shown`."""
    flat = zip(*(x.reshape(-1, x.shape[-1]) for x in (batch.teacher_prompt, batch.teacher_prompt_mask)), strict=True)
    texts = np.array(["".join(map(BYTES.piece, ids[mask].tolist())) for ids, mask in flat], object)
    return texts.reshape(batch.shown.shape)


def random_group(seed):
    """Two groups of six rollouts with few different texts, some of them equal, blank or behind a thinking part."""
    rng = np.random.default_rng(seed)
    answers = rng.choice(["it is 1", "it is 2", "it is 3", " "], 12)
    thoughts = rng.choice(["", "<think>hm</think>\n", "<think>so</think> "], 12)
    texts = [str(thought) + str(answer) for thought, answer in zip(thoughts, answers, strict=True)]
    return written(texts, rng.integers(0, 2, 12), rng.random(12) < 0.8)


# ------------------------------------------------------------------------------------------------ siblings


@pytest.mark.parametrize("kind", ["sibling", "wrong_siblings"])
def test_a_sibling_is_judged_finished_of_the_group_and_nobodys_own_text(kind):
    seen = 0
    for seed in range(20):
        rollouts = random_group(seed)
        said = [text.rpartition("</think>")[2].strip() for text in rollouts.texts]
        for count in (1, 2, 4):
            for row, shown in enumerate(contexts.siblings(rollouts, kind, 6, count)):
                group = range(row - row % 6, row - row % 6 + 6)
                fit = [o for o in group if rollouts.finished[o] and rollouts.correct[o] == (kind == "sibling")]
                allowed = {said[o] for o in fit} - {said[row], ""}
                assert len(shown) == min(count, len(allowed)) == len(set(shown)) and set(shown) <= allowed
                assert "think" not in "".join(shown)
                seen += len(shown)
    assert seen > 100


def test_the_first_right_response_of_the_group_is_the_sibling():
    texts = ["a", "<think>hm</think> b", "c", "d", "e", "f"]
    rollouts = written(texts, [0, 1, 1, 0, 1, 0])
    assert contexts.siblings(rollouts, "sibling", 3, 1) == [["b"], ["c"], ["b"], ["e"], [], ["e"]]
    assert contexts.siblings(rollouts, "wrong_siblings", 3, 2) == [[], ["a"], ["a"], ["f"], ["d", "f"], ["d"]]


def test_what_was_never_judged_is_nobodys_wrong_sibling():
    rollouts = written([*"abcdef"], [0, 0, 1, 0, 0, 0], judged=[True, False, True, False, True, True])
    assert contexts.siblings(rollouts, "wrong_siblings", 3, 3) == [[], ["a"], ["a"], ["e", "f"], ["f"], ["e"]]
    assert contexts.siblings(rollouts, "sibling", 3, 3) == [["c"], ["c"], [], [], [], []]


def test_missing_wrong_siblings_leave_the_students_prompt_unshown():
    texts = ["w1", "w2", "w3", "right", "w1", "w1", "w1", "w1", "r", "r", "r", "r"]
    rollouts = written(texts, [0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 1])
    kept = prompt_set()
    batch = kept.teacher_batch(np.array([2, 0, 1]), "wrong_siblings", 3, group=G, written=rollouts)
    assert batch.teacher_prompt.shape == (B, G, 3, WIDTH) and batch.weight.shape == (B, G, 3)
    np.testing.assert_array_equal(batch.shown.sum(axis=-1), [[2, 2, 2, 3], [0] * 4, [0] * 4])
    students = prompts(kept.blank_teacher_batch(np.array([2, 0, 1]), "wrong_siblings", 3, group=G))
    read = prompts(batch)
    assert (read[~batch.shown] == students[~batch.shown]).all() and (read[batch.shown] != students[batch.shown]).all()
    assert all("wrong answer:\nw" in text and "2 + 1?" in text for text in read[0][batch.shown[0]])


def test_a_sibling_too_long_for_the_teacher_is_not_shown():
    kept = prompt_set(text=SIBLINGS)
    texts = ["long " * WIDTH, "short", *["right"] * 6, *"abcd"]
    batch = kept.teacher_batch(np.arange(B), group=G, written=written(texts, [1, 0] + [1] * 10))
    np.testing.assert_array_equal(batch.shown[..., 0], [[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    read, students = prompts(batch), prompts(kept.blank_teacher_batch(np.arange(B), group=G))
    assert (read[~batch.shown] == students[~batch.shown]).all()
    assert "correct answer:\nright" in read[0, 0, 0] and "correct answer:\nb" in read[2, 0, 0]


def test_every_problem_has_a_prompt_a_rollout_where_one_shows_siblings():
    text = dataclasses.replace(TEXT, sources=("gym:chain_sum?privileged=sibling", *GYM))
    kept = prompt_set([problem(0, privileged="sibling"), problem(1)], text)
    batch = kept.teacher_batch(np.array([0, 1]), group=2, written=written(["a", "b", "c", "d"], [1, 0, 1, 1]))
    np.testing.assert_array_equal(batch.shown, [[[False], [True]], [[True], [True]]])
    read = prompts(batch)
    assert "correct answer:\na" in read[0, 1, 0] and read[1, 0, 0] == read[1, 1, 0]
    assert "The correct answer to this problem is: 2" in read[1, 0, 0]


# ------------------------------------------------------------------------------------------------ of the problem


def test_a_larger_alpha_shows_a_longer_beginning_up_to_the_whole_solution():
    for solution, segments in ((LINES, 3), ("  One. Two is 2.5! Three?  Four", 4), ("whole", 1)):
        shown = [contexts.beginning(solution, alpha) for alpha in np.linspace(0, 1, 101)]
        assert all(later.startswith(earlier) for earlier, later in zip(shown, shown[1:], strict=False))
        assert shown[0] == "" and shown[-1] == solution.strip() and len(set(shown)) == segments + 1
    assert contexts.beginning(LINES, 2 / 3) == "First we add.\n\nThen we halve. Twice."


def test_a_share_of_whole_segments_is_not_lost_to_rounding():
    for segments in (3, 7, 10, 100):
        solution = "\n".join(map(str, range(segments)))
        for shown in range(segments + 1):
            for alpha in (shown / segments, np.float32(shown / segments)):
                assert len(contexts.beginning(solution, alpha).split()) == shown


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_an_alpha_that_is_no_share_is_refused(alpha):
    with pytest.raises(ValueError, match=r"alpha .*: expected a fraction in \[0, 1\]"):
        contexts.beginning(LINES, alpha)


def test_a_partial_solution_always_shows_the_answer_and_at_alpha_0_it_alone():
    kept = prompt_set([problem(i, answer="7", solution=LINES) for i in range(2)])
    ids = np.array([1, 0])
    nothing, half, all_of_it = (
        prompts(kept.teacher_batch(ids, "partial_solution", group=G, alpha=alpha)) for alpha in (0, 0.5, 1)
    )
    assert (nothing == prompts(kept.teacher_batch(ids, "answer", group=G))).all()
    for row in range(2):
        assert "First we add.\n\nFinal answer: 7" in half[row] and "halve" not in half[row]
        assert f"{LINES}\n\nFinal answer: 7" in all_of_it[row]


def test_a_partial_solution_is_never_the_whole_one_by_default():
    kept = prompt_set([problem(0, solution=LINES)])
    with pytest.raises(ValueError, match="context partial_solution: expected an alpha, the fraction of the solution"):
        kept.teacher_batch(np.array([0]), "partial_solution", group=G)


def test_other_problem_never_shows_ones_own_context():
    answers = ["7", "7", "8", " 7", "9"]
    kept = prompt_set([problem(i, answer) for i, answer in enumerate(answers)])
    batch = kept.teacher_batch(np.arange(5), "other_problem", group=G)
    shown = [text.partition("this problem is: ")[2].partition("\n")[0] for text in prompts(batch)]
    assert shown == ["8", "8", "7", "9", "7"] and batch.shown.all()
    ids = np.array([0, 1, 3])
    alike = kept.teacher_batch(ids, "other_problem", group=G)
    assert not alike.shown.any() and (prompts(alike) == prompts(kept.blank_teacher_batch(ids, group=G))).all()
    # A problem that several batches of the data brought in twice is the problem itself.
    twice = kept.teacher_batch(np.array([2, 2]), "other_problem", group=G)
    assert not twice.shown.any()


def test_other_problem_shows_the_sibling_of_the_same_rollout_of_the_next():
    kept = prompt_set([problem(0), problem(1)], SIBLINGS)
    texts = written(["a", "b", "c", "d"], [1, 1, 1, 0])
    batch = kept.teacher_batch(np.array([0, 1]), "other_problem", group=2, written=texts)
    read = prompts(batch)[..., 0]
    # Row 0 would be shown what row 2 is, but row 2 has no right sibling.
    np.testing.assert_array_equal(batch.shown[..., 0], [[False, True], [True, True]])
    assert "answer:\nc" in read[0, 1] and "answer:\nb" in read[1, 0] and "answer:\na" in read[1, 1]


def test_without_problem_differs_from_the_default_in_the_question_alone():
    kept, ids = prompt_set(), np.array([2, 0])
    default, bare = (prompts(kept.teacher_batch(ids, context, group=G)) for context in ("", "without_problem"))
    for row, i in enumerate(ids):
        assert default[row].replace(f"{i} + 1?\n\n", "") == bare[row] != default[row]


def test_no_context_is_the_students_own_ids_and_is_not_shown():
    kept, ids = prompt_set(), np.array([2, 0])
    for batch in (kept.teacher_batch(ids, "none", group=G), kept.blank_teacher_batch(ids, group=G)):
        assert batch.teacher_prompt.shape == (2, WIDTH) and not batch.shown.any()
        for row, i in enumerate(ids):
            student = kept[i]["student_prompt"][kept[i]["student_prompt_mask"]]
            np.testing.assert_array_equal(batch.teacher_prompt[row][batch.teacher_prompt_mask[row]], student)


def test_a_context_that_a_problem_lacks_or_that_is_too_long_drops_no_problem():
    kept = prompt_set([problem(0), problem(1, solution="short"), problem(2, solution="long " * WIDTH)])
    batch = kept.teacher_batch(np.arange(3), "solution", group=G)
    assert len(kept) == 3 and batch.shown.tolist() == [False, True, False]
    assert kept.teacher_batch(np.arange(3), "partial_solution", group=G, alpha=0.0).shown.tolist() == [0, 1, 1]


# ------------------------------------------------------------------------------------------------ the config decides


@pytest.mark.parametrize("privileged", ["", "?privileged=sibling"])
@pytest.mark.parametrize("context", ["", *CONTEXTS])
def test_the_config_alone_decides_the_layout_that_the_data_have(privileged, context, tmp_path):
    path = tmp_path / "p.jsonl"
    lines = [{"question": f"{i} + 1?", "answer": str(i), "solution": "count", "hint": "no"} for i in range(3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    specs = (*GYM, f"jsonl:{path}{privileged}")
    of_default = context in ("", "other_problem", "without_problem")
    of_rollouts = "sibling" in context or (of_default and "sibling" in privileged)
    expected = (2, G, 1) if of_rollouts else (2, 1, 1) if context == "skills" else (2,)
    assert contexts.batch_shape(contexts.kinds(specs, "answer", context), 2, G, count=1) == expected
    kept = prompt_set(load_problems(specs)[0], dataclasses.replace(TEXT, sources=specs), teacher_width=WIDTH)
    if context == "skills":
        kept.retrieve(Bank("b", tuple(Item(kind, "count on", "", (), None) for kind in KINDS), {}), 1)
    for ids in (np.array([0, 1]), np.array([3, 4])):
        rollouts = written(["a", "b", "c", "d"] * 2, [1, 0, 1, 0] * 2)
        alpha = 0.5 if context == "partial_solution" else None
        batch = kept.teacher_batch(ids, context, group=G, written=rollouts, alpha=alpha)
        blank = kept.blank_teacher_batch(ids, context, group=G)
        for made in (batch, blank):
            assert made.shown.shape == made.weight.shape == made.teacher_prompt.shape[:-1] == expected
            assert (made.shown.dtype, made.weight.dtype) == (np.bool_, np.float32)
            assert (made.weight == 1).all() or (context == "skills" and (made.weight >= 0).all())


def test_a_mistaken_spec_is_named_without_loading_it():
    with pytest.raises(UserError, match="^data.sources: 'jsonl:/n.jsonl.privileged=oracle': privileged=oracle: exp"):
        contexts.kinds(["jsonl:/n.jsonl?privileged=oracle"], "answer", "")
    with pytest.raises(ValueError, match="context 'oracle': expected one of answer, solution"):
        contexts.kinds(GYM, "answer", "oracle")


def test_several_prompts_a_rollout_are_refused_where_a_problem_has_one():
    with pytest.raises(ValueError, match="count 2: expected 1 for context kinds solution"):
        prompt_set().teacher_batch(np.arange(2), "solution", 2, group=G)


def test_a_context_that_no_problem_has_is_refused_at_the_start():
    kept = prompt_set([problem(0), problem(1, hint="count")])
    for context in ("", *CONTEXTS):
        if context in ("solution", "partial_solution"):
            with pytest.raises(UserError, match="^data.sources: none of the 2 training problems has a solution: "):
                kept.check_context(context)
        else:
            kept.check_context(context)


def test_only_contexts_that_may_be_missing_are_said_to_be():
    def missing(context, privileged="answer"):
        return contexts.may_be_missing(contexts.kinds(GYM, privileged, context), context)

    assert [c for c in ("", *CONTEXTS) if not missing(c)] == ["", "none", "without_problem"]
    assert missing("", "sibling") and missing("without_problem", "sibling") and not missing("none", "sibling")
