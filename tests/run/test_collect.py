"""What a step learns from: rewards, groups that teach something, and teachers that are shown it."""

import dataclasses

import numpy as np
import pytest
from tiny import config

from dasd_jax.batch import Outcomes, PromptBatch, RolloutBatch
from dasd_jax.data.pipeline import PromptSet
from dasd_jax.data.sources import Problem
from dasd_jax.objective.contract import View
from dasd_jax.run import collect, setup
from dasd_jax.run.display import Clock, Display
from dasd_jax.run.samples import samples
from dasd_jax.text.tokenizer_files import load_tokenizer
from dasd_jax.verify.verifier import Verdict

RIGHT, WRONG = Verdict(1.0, 1.0, "1"), Verdict(0.0, 0.2, "2")


def test_a_reward_is_the_verdict_less_what_the_length_costs():
    """The budget is 16 tokens, the last 8 of them cost 1 / 16 each; what is truncated is worth 0 before that."""
    verdicts = [RIGHT, RIGHT, WRONG, RIGHT, RIGHT]
    finished, length = np.array([True, True, True, True, False]), np.array([3, 8, 12, 14, 16])
    for changes, expected_correct, expected_reward in (
        ([], [1, 1, 0, 1, 0], [1, 1, 0, 1, 0]),
        (["objective.truncated=score"], [1, 1, 0, 1, 1], [1, 1, 0, 1, 1]),
        (["objective.overlong_tokens=8"], [1, 1, 0, 1, 0], [1, 1, -0.25, 0.625, -0.5]),
    ):
        found = collect.outcomes(config(*changes), verdicts, finished, length)
        np.testing.assert_array_equal(found.correct, expected_correct)
        np.testing.assert_allclose(found.reward, expected_reward)
        assert found.in_loss.all()


@pytest.mark.parametrize("truncated", ["zero", "score", "drop_from_loss"])
@pytest.mark.parametrize("tokens", [1, 5, 16])
def test_a_right_answer_of_any_length_is_worth_more_than_any_wrong_one(tokens, truncated):
    length = np.arange(17)
    for finished in (length >= 0, length < 16):
        right, wrong = (
            collect.outcomes(
                config(f"objective.overlong_tokens={tokens}", f"objective.truncated={truncated}"),
                [verdict] * 17,
                finished,
                length,
            )
            for verdict in (RIGHT, WRONG)
        )
        assert right.reward[right.correct == 1].min() >= 0.5 and wrong.reward.max() <= 0
        assert right.reward[0] == 1 and (np.diff(right.reward) <= 0).all()


def test_a_response_without_an_end_may_count_in_its_group_alone():
    dropping = config("objective.truncated=drop_from_loss")
    found = collect.outcomes(dropping, [RIGHT, RIGHT], np.array([True, False]), np.array([3, 16]))
    np.testing.assert_array_equal(found.reward, [1, 0])
    np.testing.assert_array_equal(found.in_loss, [True, False])


class Shower(collect.Collector):
    """Makes teachers' prompts of two problems with two rollouts each."""

    def __init__(self, privileged="answer", **fields):
        problems = [Problem(question=f"{i}?", answer="1", source="s", index=i, scorer="math", **fields) for i in (0, 1)]
        self._config = config(
            f"data.privileged={privileged}", "rollout.rollouts=2", "rollout.teacher_prompt_length=400"
        )
        self._prompts = PromptSet(
            problems,
            load_tokenizer("byte"),
            setup.prompt_text(self._config, problems),
            student_width=300,
            teacher_width=400,
        )


def test_each_teacher_reads_its_own_context_and_the_log_says_what_is_missing():
    """Rows 0 and 1 are right and wrong: each is the other's sibling of one kind; rows 2 and 3 are both wrong."""
    collected = drawn([0, 1], [1, 0, 0, 0])
    collected = dataclasses.replace(collected, texts=["a", "b", "c", "d"])
    views = {
        "right": View("sibling"),
        "wrong": View("wrong_siblings", count=2),
        "bare": View("none"),
        "teacher": View(),
    }
    batches, metrics = Shower().teacher_batches(collected, views, {})
    assert {name: batch.shown.shape for name, batch in batches.items()} == {
        "right": (2, 2, 1),
        "wrong": (2, 2, 2),
        "bare": (2,),
        "teacher": (2,),
    }
    assert metrics == {"right/blank_frac": 0.75, "wrong/blank_frac": 0.25}
    assert Shower("sibling").teacher_batches(collected, {"teacher": View()}, {})[1] == {"teacher/blank_frac": 0.75}


def test_no_teacher_is_told_that_a_response_is_wrong_which_was_never_judged():
    """The second group has one wrong response, and one on which the verifier came to no verdict."""
    for error in ("timeout", "memory", "crash"):
        collected = dataclasses.replace(drawn([0, 1], [0, 0, 0, 0]), texts=["a", "b", "c", "d"])
        collected.verdicts[2] = Verdict(0.0, 0.0, "5", error)
        batches, metrics = Shower().teacher_batches(collected, {"wrong": View("wrong_siblings", count=1)}, {})
        np.testing.assert_array_equal(batches["wrong"].shown[..., 0], [[True, True], [True, False]])
        assert metrics == {"wrong/blank_frac": 0.25}
    for error in ("", "parse", "unreadable"):
        assert Verdict(0.0, 0.0, None, error).judged


def test_an_argument_of_the_method_reaches_the_context():
    shower, collected = Shower(solution="Half.\nWhole."), drawn([0, 1], [1, 0, 0, 0])
    lengths = []
    for alpha in (0.0, 0.5, 1.0):
        batches, metrics = shower.teacher_batches(collected, {"teacher": View("partial_solution")}, {"alpha": alpha})
        lengths.append(batches["teacher"].teacher_prompt_mask.sum())
        assert metrics == {"teacher/blank_frac": 0.0}
    assert lengths[0] < lengths[1] < lengths[2]


def drawn(example_ids, rewards):
    """A batch of problems with two rollouts each, told apart by their ids."""
    ids = np.array(example_ids, np.int32)
    rows = np.repeat(ids, 2)
    zeros = np.zeros((len(rows), 1), np.float32)
    verdicts = [RIGHT if reward else WRONG for reward in rewards]
    rollouts = RolloutBatch(rows[:, None], zeros > -1, sampled_logp=zeros, sampled_entropy=zeros, finished=rows > -1)
    prompts = PromptBatch(ids[:, None], ids[:, None] > -1, ids)
    texts = [str(row) for row in rows]
    correct = np.array(rewards, np.float32)
    # The penalty for length tells the members of every group apart, and no group is mixed for it.
    reward = correct - np.tile([0, 0.5], len(ids)).astype(np.float32)
    outcomes = Outcomes(correct, reward, in_loss=correct > -1)
    work = {"batches": 1, "generated": len(rows), "steps": np.array([3, 1]), "drawn_reward": float(reward.mean())}
    return collect.Collected(prompts, rollouts, outcomes, texts, texts, verdicts, **work)


class Drawer(collect.Collector):
    """Draws prepared batches in the place of sampled ones."""

    def __init__(self, resample, rounds):
        self._config = config(
            f"rollout.resample={resample}", "rollout.problems=3", "rollout.rollouts=2", "optim.minibatches=1",
            "optim.microbatches=1",
        )  # fmt: skip
        self._model, self.rounds, self.asked = None, rounds, []

    def _round(self, params, batches_drawn, clock):
        self.asked.append(batches_drawn)
        return self.rounds[len(self.asked) - 1]


ROUNDS = [
    drawn([1, 2, 3], [1, 1, 0, 1, 0, 0]),
    drawn([4, 5, 6], [0, 0, 0, 0, 1, 0]),
    drawn([7, 8, 9], [1, 0, 0, 1, 1, 0]),
]


@pytest.mark.parametrize(("resample", "groups"), [(0, [1, 2, 3]), (1, [1, 2, 6]), (2, [2, 6, 7]), (9, [2, 6, 7])])
def test_groups_that_all_scored_the_same_are_replaced_by_mixed_ones(resample, groups, monkeypatch):
    """In the order of the draw; as many further batches as are allowed, and no more than are needed."""
    monkeypatch.setattr(collect, "relayout", lambda model, params, weights: params)
    drawer = Drawer(resample, ROUNDS)
    got = drawer.collect(None, 10, Clock(Display(1, 0)))
    assert got.batches == len(drawer.asked) == min(resample, 2) + 1
    assert drawer.asked == list(range(10, 10 + got.batches))
    np.testing.assert_array_equal(got.prompts.example_id, groups)
    rows = np.repeat(groups, 2)
    np.testing.assert_array_equal(got.rollouts.response[:, 0], rows)
    assert got.texts == [str(row) for row in rows]
    for name in ("correct", "reward", "in_loss"):
        of = {
            i: getattr(d.outcomes, name)[2 * n : 2 * n + 2]
            for d in ROUNDS
            for n, i in enumerate(d.prompts.example_id.tolist())
        }
        np.testing.assert_array_equal(getattr(got.outcomes, name), np.concatenate([of[i] for i in groups]))
    assert got.generated == 6 * got.batches
    # Two shards, the slower one takes 3 of every 4 steps; 1.5 tokens a step, in 2 slots.
    metrics = got.metrics(2, slots=2, seconds={"time/rollout_s": 2.0})
    rewards = [d.outcomes.reward for d in ROUNDS]
    assert metrics["reward/drawn_mean"] == pytest.approx(np.mean(rewards[: got.batches]))
    assert metrics["reward/mean"] == pytest.approx(got.outcomes.reward.mean())
    assert metrics["rollout/shard_imbalance"] == 1.5 and metrics["rollout/slots_used_frac"] == 0.75
    assert metrics["tokens/generated_per_s"] == got.generated / 2


def test_the_reward_that_was_learned_from_is_kept_where_it_is_not_the_verifiers():
    """The second rollout of each problem is too long, and worth 1/2 less."""
    collected = drawn([1, 2], [1, 1, 0, 0])
    nothing = {}, np.zeros((4, 0), np.int32), {}
    problem = Problem(question="?", answer="1", source="here", index=0, scorer="math")
    collected = dataclasses.replace(collected, problems=[problem] * 4)
    lines = samples(collected, {}, np.arange(4), load_tokenizer("byte"), nothing)
    rollouts = [rollout for line in lines for rollout in line["rollouts"]]
    assert [rollout["reward"] for rollout in rollouts] == [1, 1, 0, 0]
    assert [rollout.get("learned_reward") for rollout in rollouts] == [None, 0.5, None, -0.5]
