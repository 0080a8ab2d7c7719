"""ATESD's controller: its gradient, its rewards and its fold over the log beside versions written from the formulas."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats

from dasd_jax.data import contexts
from dasd_jax.errors import UserError
from dasd_jax.methods import METHODS, exposure
from dasd_jax.methods.atesd import AtesdParams
from dasd_jax.objective.contract import ANSWER_LOGP

METHOD = METHODS["atesd"]
QUICK = AtesdParams(hold=3, look_ahead=4, discount=0.8, controller_batch=2, controller_rate=0.05, entropy_weight=0.5)
POINTS = [(1.2, 3.0), (2.0, 2.0), (9.0, 1.1)]


def a_log(steps, hp, seed=0):
    """Lines as a run writes them: an alpha drawn as a run draws it, and numbers that wander."""
    rng, lines = np.random.default_rng(seed), [{"step": 0, "eval/avg@4": 0.5}]
    for step in range(1, steps + 1):
        knobs = METHOD.memory(lines, hp) | {"step": float(step), "seed": float(seed)}
        line = {
            "step": step,
            exposure.ALPHA: METHOD.context(knobs, hp)["alpha"],
            "atesd/a": float(np.float32(knobs["atesd_a"])),
            "atesd/b": float(np.float32(knobs["atesd_b"])),
            exposure.LOSS: rng.uniform(0.1, 2),
            exposure.MISMATCH: rng.uniform(0, 1),
            exposure.CONFIDENCE: rng.uniform(0, 1),
            ANSWER_LOGP: -rng.exponential(),
            "optim/empty_frac": 0.0,
        }
        lines.append(json.loads(json.dumps(line)))
    return lines


def after(lines, hp):
    """(a, b) of a controller that has seen all of these lines, with nothing kept from before."""
    controller = exposure.Controller(hp)
    for line in lines[1:]:
        controller.see(line)
    return controller.beta(len(lines))


# ------------------------------------------------------------------------------------------------ the policy


def test_the_density_integrates_to_1_and_its_entropy_is_the_integral():
    grid = (np.arange(200_000) + 0.5) / 200_000
    for a, b in POINTS:
        logp = exposure.log_density(grid, a, b)
        assert np.mean(np.exp(logp)) == pytest.approx(1, abs=1e-5)
        assert exposure.entropy(np.array(a), np.array(b)) == pytest.approx(-np.mean(np.exp(logp) * logp), abs=1e-5)
        np.testing.assert_allclose(logp, stats.beta.logpdf(grid, a, b), atol=1e-9)


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_the_gradient_is_that_of_finite_differences(weight):
    rng = np.random.default_rng(1)
    parameters = exposure.first_parameters()
    parameters += 0.5 * rng.normal(size=parameters.size)
    states, alphas, advantages = rng.normal(size=(5, 6)), rng.uniform(size=5), rng.normal(size=5)

    def value(at):
        return exposure.objective(at, states, alphas, advantages, -0.4, weight)[0]

    gradient = exposure.objective(parameters, states, alphas, advantages, -0.4, weight)[1]
    steps = 1e-6 * np.eye(parameters.size)
    expected = [(value(parameters + step) - value(parameters - step)) / 2e-6 for step in steps]
    np.testing.assert_allclose(gradient, expected, atol=1e-8)
    assert np.abs(gradient).max() > 0.1


def test_an_alpha_of_0_or_1_has_a_finite_gradient():
    ends = np.array([0.0, 1.0])
    value, gradient = exposure.objective(exposure.first_parameters(), np.ones((2, 6)), ends, np.ones(2), -0.5, 0.1)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))


# ------------------------------------------------------------------------------------------------ the fold


def by_formula(lines, hp):
    """(a, b) for the step after the last line: rewards by index over the whole log, gradients by finite differences."""
    steps = lines[1:]
    loss, mismatch, confidence, answer = (
        [line[name] for line in steps]
        for name in (exposure.LOSS, exposure.MISMATCH, exposure.CONFIDENCE, ANSWER_LOGP)
    )  # fmt: skip

    def state(t):
        """Before step t, from 1."""
        average = 0.5
        for line in steps[: t - 1]:
            average = 0.9 * average + 0.1 * line[exposure.ALPHA]
        last = (loss[t - 2], mismatch[t - 2], -answer[t - 2]) if t > 1 else (0, 0, 0)
        sure = confidence[t - 2] if t > 1 else 0
        return np.array([min((t - 1) / hp.progress_steps, 1), average, *map(math.log1p, last), sure])

    def shape(theta, s):
        into, bias, out, last = np.split(theta, [96, 112, 144])
        output = np.tanh(s @ into.reshape(6, 16) + bias) @ out.reshape(16, 2) + last
        return 1 + np.log(1 + np.exp(output))

    def cost(theta, batch, advantages):
        total = 0.0
        for (t, _), advantage in zip(batch, advantages, strict=True):
            a, b = shape(theta, state(t))
            total -= advantage * stats.beta.logpdf(steps[t - 1][exposure.ALPHA], a, b)
            total += hp.entropy_weight * max(0, stats.beta.entropy(a, b) - hp.entropy_target) ** 2
        return total / len(batch)

    theta = exposure.first_parameters()
    m, v, known = np.zeros_like(theta), np.zeros_like(theta), []
    for t in range(1, len(steps) - hp.look_ahead + 1, hp.hold):
        i = np.arange(1, hp.look_ahead + 1)
        discounts = hp.discount ** (i - 1)
        falls = [max(0.0, loss[t + k - 2] - loss[t + k - 1]) for k in i]
        probe = sum(d * answer[t + k - 1] for d, k in zip(discounts, i, strict=True)) / discounts.sum()
        known.append((t, discounts @ falls + hp.probe_weight * probe))
    for n in range(len(known) // hp.controller_batch):
        batch = known[n * hp.controller_batch : (n + 1) * hp.controller_batch]
        rewards = np.array([reward for _, reward in batch])
        advantages = (rewards - rewards.mean()) / rewards.std()
        eye = 1e-5 * np.eye(theta.size)
        g = np.array([(cost(theta + e, batch, advantages) - cost(theta - e, batch, advantages)) / 2e-5 for e in eye])
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        theta = theta - hp.controller_rate * (m / (1 - 0.9 ** (n + 1))) / (np.sqrt(v / (1 - 0.999 ** (n + 1))) + 1e-8)
    return shape(theta, state(len(lines)))


@pytest.mark.parametrize("steps", [0, 4, 12, 24])
def test_what_is_remembered_is_what_the_formulas_make_of_the_log(steps):
    """Also with blocks whose look-ahead has not ended: the third reward, and with it the first update, is step 11's."""
    hp = dataclasses.replace(QUICK, controller_batch=3, probe_weight=0.4)
    lines = a_log(steps, hp)
    np.testing.assert_allclose(after(lines, hp), by_formula(lines, hp), rtol=1e-5)
    assert (steps < 11) == (np.allclose(after(lines, hp), 1 + math.log(2)))


def test_the_log_in_parts_is_the_log_as_a_whole():
    """Whatever was asked before: a longer log, a shorter one, that of another run, or of other constants."""
    lines, other = a_log(30, QUICK), a_log(30, QUICK, seed=1)
    expected = {count: after(lines[: count + 1], QUICK) for count in range(0, 31, 3)}
    assert len(set(expected.values())) == len(expected) - 2  # the first update follows step 8
    for count in (30, 9, 12, 30, 0, 27, 27, 30):
        assert METHOD.memory(lines[: count + 1], QUICK) == dict(
            zip(("atesd_a", "atesd_b", "atesd_alpha"), (*expected[count], -1.0), strict=True)
        )
        METHOD.memory(other[: 31 - count % 4], QUICK)
        METHOD.memory([*other[:10], *lines[10:13]], QUICK)
    slower = dataclasses.replace(QUICK, controller_rate=0.01)
    assert METHOD.memory(lines, slower)["atesd_a"] == after(lines, slower)[0] != expected[30][0]


def test_a_run_that_goes_on_has_the_alphas_of_one_that_never_stopped():
    whole = a_log(20, QUICK)
    for stopped in range(1, 20):
        exposure._latest.cache_clear()
        kept = [json.loads(json.dumps(line)) for line in whole[: stopped + 1]]
        knobs = METHOD.memory(kept, QUICK) | {"step": float(stopped + 1), "seed": 0.0}
        assert METHOD.context(knobs, QUICK)["alpha"] == whole[stopped + 1][exposure.ALPHA]


def test_an_alpha_is_held_for_its_steps_and_drawn_from_seed_and_step():
    alphas = [line[exposure.ALPHA] for line in a_log(12, QUICK)[1:]]
    blocks = np.reshape(alphas, (4, 3))
    assert np.all(blocks == blocks[:, :1]) and len(set(blocks[:, 0])) == 4
    assert alphas[0] != a_log(1, QUICK, seed=1)[1][exposure.ALPHA]
    assert all(QUICK.alpha_min <= alpha <= QUICK.alpha_max for alpha in alphas)


def test_one_alpha_alone_is_held_whatever_is_learned():
    hp = AtesdParams(hold=1, look_ahead=1, controller_batch=2, controller_rate=1.0, alpha_min=1.0, alpha_max=1.0)
    lines = a_log(9, hp)
    assert {line[exposure.ALPHA] for line in lines[1:]} == {1.0} and np.all(np.isfinite(after(lines, hp)))


def test_a_step_that_says_nothing_leaves_everything_as_it_was():
    """No token in the loss, or numbers that were not finite: its loss is no fall, and its zeros are no state."""
    lines = a_log(24, QUICK)
    names = exposure.LOSS, exposure.MISMATCH, exposure.CONFIDENCE, ANSWER_LOGP
    filled = [*lines[:8], lines[8] | {name: lines[7][name] for name in names}, *lines[9:]]
    empty = [*lines[:8], lines[8] | dict.fromkeys(names, 0.0) | {"optim/empty_frac": 1.0}, *lines[9:]]
    lacking = [*lines[:8], {k: v for k, v in lines[8].items() if k not in names}, *lines[9:]]
    assert after(filled, QUICK) == after(empty, QUICK) == after(lacking, QUICK) != after(lines, QUICK)


def test_a_log_that_begins_late_or_has_no_alphas_draws_anew():
    lines = a_log(24, QUICK)
    assert METHOD.memory(lines[9:], QUICK)["atesd_alpha"] == -1.0
    bare = [{"step": step} for step in range(9)]
    a, b = (METHOD.memory(bare, QUICK)[f"atesd_{name}"] for name in "ab")
    assert a == b == 1 + math.log(2) and METHOD.memory(bare, QUICK)["atesd_alpha"] == -1.0


@pytest.mark.parametrize("best", [0.3, 0.7])
def test_the_controller_finds_the_best_exposure(best):
    """In 200 updates at the defaults: the loss falls at each step by as much as alpha is near to the best one."""
    hp = AtesdParams()
    for seed in range(5):
        controller, loss, step = exposure.Controller(hp), 100.0, 1
        while step < 200 * hp.controller_batch * hp.hold + hp.look_ahead:
            if exposure.begins_block(step, hp):
                a, b = controller.beta(step)
                knobs = {"atesd_alpha": -1.0, "atesd_a": a, "atesd_b": b, "seed": seed, "step": step}
                alpha = METHOD.context(knobs, hp)["alpha"]
            line = {exposure.LOSS: loss, exposure.MISMATCH: 0.3, exposure.CONFIDENCE: 0.6, ANSWER_LOGP: -1.0}
            controller.see({"step": step, exposure.ALPHA: alpha, **line})
            loss -= 0.02 * (1 - abs(alpha - best))
            step += 1
        assert a / (a + b) == pytest.approx(best, abs=0.1)


# ------------------------------------------------------------------------------------------------ what is given


def test_a_solution_of_one_segment_is_shown_whole_or_not_at_all():
    for solution in ("7", "Only this sentence.", "no end\n\n"):
        assert contexts.beginning(solution, 0.95) == "" and contexts.beginning(solution, 1.0) == solution.strip()


def test_bounds_of_alpha_the_wrong_way_round_are_refused():
    with pytest.raises(UserError, match=r"^objective.alpha_min: 0.8: expected at most objective.alpha_max = 0.2$"):
        AtesdParams(alpha_min=0.8, alpha_max=0.2)
