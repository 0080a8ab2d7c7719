"""The score and train steps on a tiny model: where model and objective meet."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from dasd_jax.batch import Outcomes, PromptBatch, RolloutBatch, TeacherBatch
from dasd_jax.learner.checkpoint import new_state
from dasd_jax.learner.inspection import inspect
from dasd_jax.learner.step import minibatch_loss, rounding_noise, score_step, train_step
from dasd_jax.learner.step_config import StepConfig
from dasd_jax.mesh import MeshConfig, make_mesh, merge_rows, put_rows, replicate, split_rows
from dasd_jax.methods import METHODS
from dasd_jax.model import param_table, transformer
from dasd_jax.model.presets import preset
from dasd_jax.objective import normalise
from dasd_jax.objective.contract import Shape, View
from dasd_jax.objective.correction import Correction
from dasd_jax.objective.surrogate import ClipRange

MODEL = dataclasses.replace(preset("qwen3_tiny"), remat="none")
B, G, P, Q, R = 4, 2, 6, 9, 5
# The longer response of each of 16 problems. Of every four in turn, the share of one of four devices, there are one or
# two short ones in either of two minibatches.
SKEWED = np.array([8, 2, 1, 5, 2, 6, 6, 2, 1, 5, 3, 2, 2, 2, 4, 1])


# One of each for all cases, so that they share their programs.
SGD, SMALL_SGD, ADAM = optax.sgd(1.0), optax.sgd(0.1), optax.adam(1e-3)
KEEPS_THE_GRADIENT = optax.trace(0.0)


def config(method="dasd", *, minibatches=1, microbatches=1, width_tile=128, row_shards=1, **fields):
    made = METHODS[method]
    return StepConfig(
        model=MODEL,
        method=made,
        hp=made.fields(**fields),
        shape=Shape(G if made.rollouts else 1, minibatches, R),
        clip=ClipRange(0.2, 0.2),
        temperature=1.0,
        microbatches=microbatches,
        token_chunk=16,
        row_shards=row_shards,
        width_tile=width_tile,
    )


def fresh(params, optimizer, steps=None):
    """A training state that may be given up, with the copies that the method's views need."""
    views = steps.views if steps else {}
    return jax.jit(lambda p: new_state(jax.tree.map(jnp.copy, p), optimizer, views))(params)


def batch(seed=0, *, lengths=(5, 4, 1, 5, 5, 3, 0, 5), teacher_equals_student=False):
    """Ragged prompts, responses of these lengths (0: a row of padding), and rewards that differ in some groups."""
    rng = np.random.default_rng(seed)
    problems, longest = len(lengths) // G, max(lengths)

    def left(width):
        lengths = rng.integers(1, width + 1, (problems, 1))
        return rng.integers(0, 256, (problems, width)).astype(np.int32), np.arange(width) >= width - lengths

    student, teacher = left(P), left(Q)
    if teacher_equals_student:
        pad = ((0, 0), (Q - P, 0))
        teacher = tuple(np.pad(x, pad) for x in student)
    rows = np.arange(problems * G, dtype=np.int32)
    response = rng.integers(0, 256, (rows.size, longest)).astype(np.int32)
    mask = np.arange(longest) < np.array(lengths)[:, None]
    rollouts = RolloutBatch(response, mask, *np.zeros((2, *mask.shape), np.float32), np.ones(rows.size, bool))
    reward = np.resize(np.array([1, 0, 0, 1, 1, 1, 0, 0], np.float32), rows.size)
    prompts = PromptBatch(*student, np.arange(problems, dtype=np.int32))
    shown = np.ones(problems, bool)
    teacher = TeacherBatch(*teacher, shown, shown.astype(np.float32))
    return prompts, {"teacher": teacher}, rollouts, Outcomes(reward, reward, np.ones(rows.size, bool))


def skewed_batch():
    """Very different lengths in no order, a teacher prompt for every rollout, the longest response not in the loss."""
    pairs = np.stack([SKEWED, SKEWED // 3], axis=1)
    pairs[::3] = pairs[::3, ::-1]
    lengths = pairs.reshape(-1)
    prompts, shown, rollouts, outcomes = batch(lengths=lengths)
    teacher = jax.tree.map(lambda x: np.repeat(x[:, None, None], G, axis=1), shown["teacher"])
    teacher.teacher_prompt[:, 1] += 1
    return prompts, {"teacher": teacher}, rollouts, outcomes.replace(in_loss=lengths < SKEWED.max())


def score(mesh, steps, parts=None, params=None, teacher_weight=1.0):
    params = param_table.init(MODEL, mesh, 0) if params is None else params
    knobs = {"step": np.float32(1), "teacher_weight": np.float32(teacher_weight), "noise": np.float32(0)}
    return score_step(steps, params, {}, *put_rows(mesh, batch() if parts is None else parts), knobs)[:3]


def in_dtype(steps, dtype):
    """The same with the model's products in this dtype."""
    return dataclasses.replace(steps, model=dataclasses.replace(MODEL, compute_dtype=dtype))


def frozen(steps):
    """The same method with a frozen teacher, whose weights are a tree of their own."""
    method = dataclasses.replace(steps.method, views=lambda hp: {"teacher": View(weights="frozen")})
    return dataclasses.replace(steps, method=method)


def score_with_copy(mesh, steps, params):
    knobs = {"step": np.float32(1), "teacher_weight": np.float32(1), "noise": np.float32(0)}
    return score_step(steps, params, {"frozen": params}, *put_rows(mesh, batch()), knobs)[:3]


@partial(jax.jit, static_argnames="steps")
def loss_and_gradient(steps, params, experience):
    """Compiled once for all cases of a form."""
    return jax.value_and_grad(lambda p: minibatch_loss(steps, p, {}, experience)[0])(params)


def wide_params(mesh):
    """Weights at which student and teacher differ by tenths of a nat."""
    return jax.jit(lambda p: jax.tree.map(lambda x: x * 3, p))(param_table.init(MODEL, mesh, 0))


def keep_of(experience):
    """bool[rows, R], as NumPy."""
    return np.asarray(merge_rows(experience.keep))


def assert_trees_close(got, expected, **tolerances):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **tolerances)


def test_weights_and_rows_are_corrected_by_what_the_sampler_recorded(mesh):
    """Beside the same score step without: the ratio of each token's probabilities, and two rows of eight left out."""
    parts = prompts, shown, rollouts, outcomes = batch()
    plain, _, without = score(mesh, config(), parts)
    logp = np.asarray(merge_rows(plain.old_logp))
    noise = np.random.default_rng(1).normal(scale=0.4, size=logp.shape)
    noise -= (noise * rollouts.response_mask).sum(1, keepdims=True) / np.maximum(
        rollouts.response_mask.sum(1, keepdims=True), 1
    )
    noise[[0, 5]] += np.array([[0.3], [-0.3]])
    sampled = rollouts.replace(sampled_logp=np.where(rollouts.response_mask, logp - noise, 0).astype(np.float32))
    steps = dataclasses.replace(config(), correction=Correction(cap=1.5, row_max=1.2))
    found, _, metrics = score(mesh, steps, (prompts, shown, sampled, outcomes))
    kept = ~np.isin(np.arange(8), [0, 5])[:, None]
    expected = np.asarray(merge_rows(plain.signal.weight)) * np.minimum(np.exp(noise), 1.5) * kept
    assert (expected > 0).sum() > 10
    np.testing.assert_allclose(merge_rows(found.signal.weight), expected, rtol=1e-4)
    np.testing.assert_array_equal(found.signal.advantage, plain.signal.advantage)
    assert metrics["policy/row_ratio_dropped_frac"] == pytest.approx(2 / 7)  # a row has no tokens
    assert set(metrics) - set(without) == {
        "policy/tis_mean", "policy/tis_capped_frac", "policy/row_ratio_dropped_frac",
    }  # fmt: skip


def test_the_views_are_the_model_on_each_prompt_alone(mesh):
    """Log-probabilities of both views equal those of whole unpadded sequences, read at prompt_len - 1 + t of each."""
    params = wide_params(mesh)
    parts = batch()
    experience, logged, _ = score(mesh, config(), parts, params)
    student_logp = np.asarray(merge_rows(experience.old_logp))
    teacher_logp = student_logp + np.asarray(logged["gap"])

    @jax.jit
    def alone(params, tokens, valid):
        hidden, _ = transformer.forward(MODEL, params, tokens, transformer.prompt_positions(valid), valid)
        return jax.nn.log_softmax(transformer.unembed(MODEL, params, hidden))

    prompts, shown, rollouts, _ = parts
    teacher = shown["teacher"]
    for row in range(B * G):
        answer = rollouts.response[row][rollouts.response_mask[row]]
        for tokens, mask, got in (
            (prompts.student_prompt, prompts.student_prompt_mask, student_logp),
            (teacher.teacher_prompt, teacher.teacher_prompt_mask, teacher_logp),
        ):
            prompt = tokens[row // G][mask[row // G]]
            whole = np.concatenate([prompt, answer])[None].astype(np.int32)
            valid = np.ones(whole.shape, bool)
            logp = np.asarray(alone(params, whole, valid))[0]
            expected = [logp[len(prompt) - 1 + t, token] for t, token in enumerate(answer)]
            np.testing.assert_allclose(got[row, : len(answer)], expected, atol=2e-5)


def looked_at(mesh, steps, rows, params, parts):
    """`inspect` of these rows, and all that the score pass logs, as NumPy."""
    prompts, shown, rollouts, outcomes = parts
    knobs, chosen = {name: np.float32(1) for name in ("step", "teacher_weight", "noise")}, replicate(mesh, rows)
    _, logged, _, states = score_step(steps, params, {}, *put_rows(mesh, parts), knobs, chosen)
    teacher = shown["teacher"]
    unread = {} if steps.scored else {"teacher": (teacher.teacher_prompt, teacher.teacher_prompt_mask)}
    of_rows = jax.tree.map(lambda x: x[rows // G], unread), rollouts.response[rows], rollouts.response_mask[rows]
    return jax.device_get((*inspect(steps, params, {}, *put_rows(mesh, of_rows), states, logged, chosen), logged))


@pytest.mark.parametrize("method", ["dasd", "grpo"])
def test_the_samplers_own_numbers_stand_for_the_students(method, mesh):
    """The same signal where they are those of the score pass; what needs the student's distribution is left out."""
    steps, params = config(method=method), wide_params(mesh)
    prompts, shown, rollouts, outcomes = batch()
    views = shown if steps.views else {}
    parts = prompts, views, rollouts, outcomes
    experience, logged, metrics = score(mesh, steps, parts, params)
    own = {"sampled_logp": merge_rows(experience.old_logp), "sampled_entropy": logged["entropy"]}
    parts = put_rows(mesh, (prompts, views, rollouts.replace(**jax.device_get(own)), outcomes))
    knobs = {"step": np.float32(1), "teacher_weight": np.float32(1), "noise": np.float32(0)}
    chosen = replicate(mesh, np.array([0, 3], np.int32))
    again, logged_again, metrics_again, states = score_step(steps, params, {}, *parts, knobs, chosen, rescore=False)
    assert_trees_close(again, experience, rtol=1e-5, atol=1e-6)
    assert_trees_close(logged_again, logged, rtol=1e-5, atol=1e-6)
    assert states.keys() == set(steps.scored)
    left_out = {"policy/logp_gap_mean", "policy/logp_gap_p999", "policy/logp_gap_max"}
    left_out |= {"gap/forward_kl", "gap/reverse_kl", "gap/repel_kl"} if steps.scored else {"tokens/score_padding_frac"}
    assert metrics.keys() - metrics_again.keys() == left_out
    for name, value in metrics_again.items():
        np.testing.assert_allclose(value, metrics[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("where", [pytest.param("mesh", marks=pytest.mark.slow), "mesh8"])
def test_the_alternatives_of_logged_rollouts_are_each_views_likeliest_tokens(where, request):
    """At the tokens where the teacher's share is largest: ids and probabilities by the unsharded model alone."""
    mesh, parts = request.getfixturevalue(where), batch()
    params = wide_params(mesh)
    rows = np.array([0, 1, 4, 7], np.int32)
    # On one device in two parts of different lengths: the chosen rows are of both.
    steps = config(microbatches=2, width_tile=1) if where == "mesh" else config()
    chosen, places, likeliest, logged = looked_at(mesh, steps, rows, params, parts)
    for name, values in logged.items():
        np.testing.assert_allclose(chosen[name], values[rows], rtol=1e-6)
    prompts, shown, rollouts, _ = parts
    for n, row in enumerate(rows):
        length = int(rollouts.response_mask[row].sum())
        real = places[n][places[n] < length]
        np.testing.assert_array_equal(real, np.arange(length))  # fewer tokens than places: all of them
        for view, prompt, mask in (
            ("student", prompts.student_prompt, prompts.student_prompt_mask),
            ("teacher", shown["teacher"].teacher_prompt, shown["teacher"].teacher_prompt_mask),
        ):
            before = prompt[row // G][mask[row // G]]
            tokens = np.concatenate([before, rollouts.response[row][:length]])[None].astype(np.int32)
            p = probabilities(tokens)[len(before) - 1 :]
            for at, place in enumerate(places[n]):
                if place < length:
                    ids, found = likeliest[view][0][n, at], likeliest[view][1][n, at]
                    np.testing.assert_allclose(found, np.sort(p[place])[::-1][:5], rtol=1e-4)
                    np.testing.assert_allclose(found, p[place][ids], rtol=1e-4)


def probabilities(tokens):
    """[S, V] after each token, with `wide_params` on one device."""
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(one):
        params, valid = wide_params(one), np.ones(tokens.shape, bool)
        return np.asarray(_probabilities(params, tokens, valid))[0]


@jax.jit
def _probabilities(params, tokens, valid):
    hidden, _ = transformer.forward(MODEL, params, tokens, transformer.prompt_positions(valid), valid)
    return jax.nn.softmax(transformer.unembed(MODEL, params, hidden))


def test_the_gap_of_a_teacher_that_is_not_scored_is_logged_for_the_chosen_rollouts(mesh):
    """SDPO's score pass reads no teacher; the gap of DASD's, which is the same teacher here, is the right value."""
    params, parts, rows = wide_params(mesh), batch(), np.array([1, 3], np.int32)
    live = dataclasses.replace(METHODS["sdpo"], views=lambda hp: {"teacher": View()})
    steps = dataclasses.replace(config("sdpo"), method=live)
    chosen, *_ = looked_at(mesh, steps, rows, params, parts)
    _, logged, _ = score(mesh, config(), parts, params)
    mask = parts[2].response_mask[rows]
    np.testing.assert_allclose(chosen["gap"][mask], np.asarray(logged["gap"])[rows][mask], atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_privileged_context_the_gap_is_zero_and_dasd_is_grpo(dtype, mesh):
    """The prompt of the teacher is the student's, in an array of another width: to the last bit."""
    parts = batch(teacher_equals_student=True)
    experience, logged, metrics = score(mesh, in_dtype(config(), dtype), parts, wide_params(mesh))
    assert not np.asarray(logged["gap"]).any() and float(metrics["gap/mean_abs"]) == 0
    grpo, _, _ = score(mesh, in_dtype(config("grpo"), dtype), parts, wide_params(mesh))
    np.testing.assert_array_equal(experience.signal.advantage, grpo.signal.advantage)


def test_the_rounding_is_measured_under_another_padding(mesh):
    """Next to nothing in float32; and a difference that is put in is found, at response tokens alone."""
    params, (prompts, _, rollouts, _) = wide_params(mesh), batch()
    experience, *_ = score(mesh, config(), params=params)
    measured = partial(rounding_noise, config(), params, *put_rows(mesh, (prompts, rollouts)))
    assert 0 < float(measured(experience.old_logp)) < 1e-5
    mask = split_rows(put_rows(mesh, rollouts.response_mask), G)
    assert float(measured(experience.old_logp + jnp.where(mask, 0.25, 9.0))) == pytest.approx(0.25, abs=1e-5)


def test_a_teacher_that_is_shown_nothing_has_a_gap_of_exactly_zero(mesh):
    """Whatever its prompt: the rows of two of the problems, and the others are as they were."""
    prompts, shown, rollouts, outcomes = batch()
    hidden = {"teacher": shown["teacher"].replace(shown=np.array([True, False, True, False]))}
    params = wide_params(mesh)
    _, some, of_some = score(mesh, config(), (prompts, hidden, rollouts, outcomes), params)
    _, whole, of_whole = score(mesh, config(), params=params)
    # Means are over what has a context: rows without one would hide how far away the teacher is.
    others = {"teacher": shown["teacher"].replace(shown=~hidden["teacher"].shown)}
    _, _, of_others = score(mesh, config(), (prompts, others, rollouts, outcomes), params)
    told = np.repeat(hidden["teacher"].shown, G)[:, None] & rollouts.response_mask
    for name in ("gap/forward_kl", "gap/reverse_kl", "entropy/teacher_mean", "gap/mean_abs"):
        parts = float(of_some[name]) * told.sum() + float(of_others[name]) * (rollouts.response_mask & ~told).sum()
        assert parts == pytest.approx(float(of_whole[name]) * rollouts.response_mask.sum(), rel=1e-5)
    some, whole = (np.asarray(split_rows(each["gap"], G)) for each in (some, whole))
    assert not some[1::2].any() and whole[1::2].any()
    np.testing.assert_array_equal(some[::2], whole[::2])


def test_splitting_the_score_pass_changes_nothing(mesh):
    """But for the divisors, which are those of each minibatch."""
    params = wide_params(mesh)
    whole, *_ = score(mesh, config(), params=params)
    parted, *_ = score(mesh, config(minibatches=2, microbatches=2), params=params)
    np.testing.assert_allclose(parted.signal.weight.sum(), 2, rtol=1e-6)
    parted = parted.replace(signal=parted.signal.replace(weight=whole.signal.weight))
    assert_trees_close(parted, whole, atol=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["sampled", "full"])
def test_any_number_of_microbatches_gives_the_same_update_for_every_divisor(form, mesh):
    """1, 2, 4 and 8 parts of different lengths: loss, and gradient relative to its largest entry, within 1e-6."""
    params = param_table.init(MODEL, mesh, 0)
    experience, *_ = score(
        mesh, config(form=form), batch(lengths=(5, 4, 1, 5, 5, 3, 0, 5, 2, 2, 4, 1, 5, 1, 3, 3)), params
    )
    found = {}
    for microbatches in (1, 2, 4, 8):
        steps = config(form=form, microbatches=microbatches)
        for divisor in (normalise.token_mean, normalise.sequence_mean, normalise.constant):
            weight = split_rows(divisor(merge_rows(experience.keep), steps.shape), G)
            signal = experience.signal.replace(weight=weight)
            if signal.kl is not None:
                signal = signal.replace(kl=weight * jnp.sign(signal.kl))
            state = fresh(params, KEEPS_THE_GRADIENT)
            state, metrics = train_step(steps, KEEPS_THE_GRADIENT, state, experience.replace(signal=signal))
            found[divisor, microbatches] = jax.device_get(state.opt_state.trace), float(metrics["loss/total"])
    for (divisor, microbatches), (gradient, loss) in found.items():
        whole, whole_loss = found[divisor, 1]
        assert loss == pytest.approx(whole_loss, abs=1e-6), (divisor, microbatches)
        largest = max(np.abs(x).max() for x in jax.tree.leaves(whole))
        assert_trees_close(gradient, whole, rtol=0, atol=1e-6 * largest)
    assert found[normalise.token_mean, 1][1] != pytest.approx(found[normalise.sequence_mean, 1][1], rel=1e-3)


@pytest.mark.parametrize("form", [pytest.param("sampled", marks=pytest.mark.slow), "full"])
def test_the_teacher_receives_no_gradient(form, mesh):
    """Differentiated with respect to a teacher tree of its own: exactly 0; and the student's is not."""
    steps = frozen(config(form=form))
    params = wide_params(mesh)
    experience, *_ = score_with_copy(mesh, steps, params)

    def loss(student, teacher):
        return minibatch_loss(steps, student, {"frozen": teacher}, experience)[0]

    student, teacher = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, jax.tree.map(jnp.copy, params))
    assert all(not np.asarray(x).any() for x in jax.tree.leaves(teacher))
    assert float(optax.global_norm(student)) > 1e-3


def test_at_the_old_policy_the_gradient_is_the_policy_gradient(mesh):
    """Before any update every ratio is 1: the gradient is -Σ A_t ∇ log p_t / tokens, by finite differences of that."""
    steps = config(beta=0.5)
    params = wide_params(mesh)
    experience, *_ = score(mesh, steps, params=params)
    keep = np.asarray(experience.keep)
    advantage = np.asarray(experience.signal.advantage, np.float64)
    grads = jax.jit(jax.grad(lambda p: minibatch_loss(steps, p, {}, experience)[0]))(params)

    def weighted_logp(params):
        logp = np.asarray(score(mesh, steps, params=params)[0].old_logp, np.float64)
        return -(advantage * logp)[keep].sum() / keep.sum()

    # Along the gradient itself, of all parameters and of parts of them: a random direction would hardly be felt.
    for part in ("", "layers/q", "layers/down", "embed"):
        flat = traverse_util.flatten_dict(grads, sep="/")
        flat = {path: x if path.startswith(part) else jnp.zeros_like(x) for path, x in flat.items()}
        norm = float(optax.global_norm(flat))
        direction = traverse_util.unflatten_dict({path: x / norm for path, x in flat.items()}, sep="/")
        # Small enough for the curvature, large enough for float32.
        size = 3e-4
        shifted = [jax.tree.map(lambda x, d, s=s: x + s * d, params, direction) for s in (size, -size)]
        ends = [weighted_logp(shifted_params) for shifted_params in shifted]
        assert (ends[0] - ends[1]) / (2 * size) == pytest.approx(norm, rel=0.02)


def test_minibatches_are_disjoint_sets_of_whole_problems(mesh):
    """Two optimiser steps on problems (0, 2) and then (1, 3) equal two calls with one of them each."""
    params = wide_params(mesh)
    both = config(minibatches=2)
    experience, *_ = score(mesh, both, params=params)
    state, _ = train_step(both, SMALL_SGD, fresh(params, SMALL_SGD), experience)
    expected = fresh(params, SMALL_SGD)
    for first in (0, 1):
        part = jax.tree.map(lambda x, first=first: x[first::2], experience)
        expected, _ = train_step(config(), SMALL_SGD, expected, part)
    assert_trees_close(state.params, expected.params, rtol=1e-4, atol=1e-5)
    assert int(state.step) == 1 and int(expected.step) == 2


def test_rollouts_left_out_of_the_loss_still_count_in_their_group(mesh):
    prompts, shown, rollouts, outcomes = batch()
    left_out = outcomes.replace(in_loss=np.array([False, *[True] * 7]))
    experience, *_ = score(mesh, config(), (prompts, shown, rollouts, left_out))
    whole, *_ = score(mesh, config())
    assert not keep_of(experience)[0].any() and keep_of(experience)[1:].any()
    rest = np.asarray(merge_rows(experience.signal.advantage))[1:]
    np.testing.assert_array_equal(rest, np.asarray(merge_rows(whole.signal.advantage))[1:])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["sampled", "full"])
def test_half_of_the_teachers_weight_is_half_of_beta(form, mesh):
    """At weight 0 DASD is GRPO."""
    params = wide_params(mesh)
    found = {}
    for name, beta, weight in (("half", 0.4, 0.5), ("plain", 0.2, 1.0), ("none", 0.4, 0.0), ("grpo", 0.0, 1.0)):
        steps = config(form=form, beta=beta)
        experience, *_ = score(mesh, steps, params=params, teacher_weight=weight)
        # The constants enter the loss through the signal alone, so that one program serves all of them.
        loss, _ = loss_and_gradient(config(form=form), params, experience)
        found[name] = float(loss), np.asarray(experience.signal.advantage)
    for a, b in (("half", "plain"), ("none", "grpo")):
        np.testing.assert_allclose(found[a][0], found[b][0], rtol=1e-5)
        np.testing.assert_allclose(found[a][1], found[b][1], rtol=1e-5, atol=1e-7)
    assert abs(found["half"][0] - found["none"][0]) > 1e-4


@pytest.mark.parametrize(("name", "value"), [("old_logp", np.nan), ("advantage", -1e30), ("weight", 0.0)])
@pytest.mark.parametrize("bad", [0, 1])
def test_a_minibatch_not_finite_or_with_nothing_in_the_loss_changes_nothing(bad, name, value, mesh):
    """Parameters, moments and counts are those of the other one alone; of the second fault the loss is finite."""
    params, steps = wide_params(mesh), config(minibatches=2)
    experience, *_ = score(mesh, steps, params=params)
    array = np.array(experience.old_logp if name == "old_logp" else getattr(experience.signal, name))
    if name == "weight":
        array[bad::2] = value
    else:
        array[bad, 0, 0] = value
    changed = put_rows(mesh, array)
    signal = experience.signal if name == "old_logp" else experience.signal.replace(**{name: changed})
    broken = experience.replace(signal=signal, old_logp=changed if name == "old_logp" else experience.old_logp)
    state, metrics = train_step(steps, ADAM, fresh(params, ADAM), broken)
    empty = name == "weight"
    assert (float(metrics["optim/skipped_frac"]), float(metrics["optim/empty_frac"])) == (
        0.5 * (not empty),
        0.5 * empty,
    )
    assert np.isfinite(float(metrics["loss/total"])) == np.isfinite(value)
    assert np.isfinite(float(metrics["optim/grad_norm"])) == empty
    other = jax.tree.map(lambda x: x[1 - bad :: 2], experience)
    expected, one = train_step(config(), ADAM, fresh(params, ADAM), other)
    assert float(one["optim/skipped_frac"]) == float(one["optim/empty_frac"]) == 0.0
    assert not np.array_equal(expected.params["embed"], params["embed"])
    # Adam's step is 1e-3 a parameter, and its sign is rounding's where a gradient is nearly 0.
    assert_trees_close(state.params, expected.params, rtol=0, atol=1e-5)
    assert_trees_close(state.opt_state, expected.opt_state, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["sampled", "full"])
def test_eight_devices_equal_one(form, mesh, mesh8):
    """Statistics within 1e-4, and the parameters after an update with clipping."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    results = []
    for where in (mesh, mesh8):
        with jax.set_mesh(where):
            steps = config(form=form, row_shards=where.shape["data"] * where.shape["fsdp"])
            params = wide_params(where)
            experience, logged, metrics = score(where, steps, params=params)
            state, learned = train_step(steps, optimizer, fresh(params, optimizer), experience)
            results.append(jax.device_get((logged, metrics, learned, state.params)))
    keep = batch()[2].response_mask
    for a, b in zip(jax.tree.leaves(results[1][0]), jax.tree.leaves(results[0][0]), strict=True):
        np.testing.assert_allclose(a[keep], b[keep], atol=1e-4)
    assert_trees_close(results[1][1:], results[0][1:], rtol=1e-3, atol=1e-4)


def test_widths_are_quarters_of_the_longest_in_whole_tiles():
    steps = config()
    assert steps.widths(8192) == (2048, 4096, 6144, 8192)
    assert steps.widths(600) == (256, 512, 600)
    assert steps.widths(511) == (511,)


@pytest.mark.slow
@pytest.mark.parametrize(("minibatches", "microbatches"), [(2, 4), (8, 1)])
def test_split_groups_change_no_result(minibatches, microbatches, mesh, mesh8):
    """16 problems in 8 parts on 4 devices beside whole problems on one, prompts of problems and of rollouts.

    With 8 minibatches each has fewer problems than there are devices.
    """
    # So small that eight steps in a row do not multiply what they differ by.
    parts, optimizer = skewed_batch(), optax.sgd(1e-4)
    mask = parts[2].response_mask
    results = []
    for where, shards, parts_each in ((mesh, 1, 1), (mesh8, 4, microbatches)):
        with jax.set_mesh(where):
            split = {"minibatches": minibatches, "microbatches": parts_each, "row_shards": shards, "width_tile": 2}
            steps = config(form="full", **split)
            assert steps.splits(16) == (1 if shards == 1 else 2)
            params = wide_params(where)
            experience, logged, scored = score(where, steps, parts, params)
            state, learned = train_step(steps, optimizer, fresh(params, optimizer), experience)
            for padding in scored, learned:
                [padding.pop(name) for name in list(padding) if name.endswith("padding_frac")]
            moved = jax.tree.map(jnp.subtract, state.params, params)
            results.append(jax.device_get((moved, logged, experience, scored, learned)))
    one, split = results
    largest = max(np.abs(x).max() for x in jax.tree.leaves(one[0]))
    assert_trees_close(split[0], one[0], rtol=0, atol=1e-4 * largest)
    for a, b in zip(jax.tree.leaves(split[1]), jax.tree.leaves(one[1]), strict=True):
        np.testing.assert_allclose(a[mask], b[mask], atol=1e-4)
    keep = one[2].keep
    np.testing.assert_array_equal(split[2].keep, keep)
    np.testing.assert_allclose(split[2].old_logp[keep], one[2].old_logp[keep], atol=1e-4)
    np.testing.assert_allclose(split[2].signal.weight, one[2].signal.weight, rtol=1e-6)
    assert_trees_close(split[3:], one[3:], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "devices"), [("grpo", "mesh"), ("dasd", "mesh8")])
def test_narrow_parts_change_no_result_and_compute_less(method, devices, request):
    """Parts by length at their own widths beside whole minibatches at R: statistics, credit, updated parameters."""
    where = request.getfixturevalue(devices)
    shards = where.shape["data"] * where.shape["fsdp"]
    parts = skewed_batch()
    mask = parts[2].response_mask
    results = []
    with jax.set_mesh(where):
        params = wide_params(where)
        for microbatches, tile in ((1, 128), (2, 2)):
            own = {"form": "full"} if method == "dasd" else {}
            split = {"minibatches": 2, "microbatches": microbatches, "row_shards": shards, "width_tile": tile}
            steps = config(method, **split, **own)
            experience, logged, scored = score(where, steps, parts, params)
            state, learned = train_step(steps, SMALL_SGD, fresh(params, SMALL_SGD), experience)
            results.append(jax.device_get((state.params, logged, experience.signal.advantage, scored, learned)))
    assert_trees_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-5)
    for a, b in zip(jax.tree.leaves(results[1][1]), jax.tree.leaves(results[0][1]), strict=True):
        np.testing.assert_allclose(a[mask], b[mask], atol=1e-4)
    np.testing.assert_allclose(results[1][2], results[0][2], atol=1e-4)
    padding = [
        (scored.pop("tokens/score_padding_frac"), learned.pop("tokens/update_padding_frac"))
        for *_, scored, learned in results
    ]
    assert_trees_close(results[1][3:], results[0][3:], rtol=1e-4, atol=1e-5)
    # Where nothing was computed stands exactly 0.
    assert [np.mean(result[1]["entropy"] != 0) for result in results] == [1, 4.5 / 8]
    # Scored in four parts at widths 2, 2, 6 and 8; learned from in two parts at 2 and 6 in both minibatches, the only
    # longer response not being in the loss.
    keep = mask & parts[-1].in_loss[:, None]
    np.testing.assert_allclose(padding[0], (1 - mask.mean(), 1 - keep.mean()), atol=1e-6)
    np.testing.assert_allclose(padding[1], (1 - mask.mean() * 8 / 4.5, 1 - keep.mean() * 8 / 4), atol=1e-6)


def test_what_stands_in_padding_changes_no_update(mesh):
    """Other ids in the padding of prompts and responses: same loss, same gradient."""
    prompts, shown, rollouts, outcomes = batch()
    teacher = shown["teacher"]
    noisy = (
        prompts.replace(student_prompt=np.where(prompts.student_prompt_mask, prompts.student_prompt, 99)),
        {"teacher": teacher.replace(teacher_prompt=np.where(teacher.teacher_prompt_mask, teacher.teacher_prompt, 98))},
        rollouts.replace(response=np.where(rollouts.response_mask, rollouts.response, 97)),
        outcomes,
    )
    params = wide_params(mesh)
    for form in ("sampled", "full"):
        steps = config(form=form)
        results = [loss_and_gradient(steps, params, score(mesh, steps, parts, params)[0]) for parts in (batch(), noisy)]
        assert_trees_close(results[1], results[0], rtol=1e-5, atol=1e-7)


def test_nothing_outside_the_loss_reaches_loss_or_gradient_not_even_nan(mesh):
    """NaN and infinities in all that the signal holds where no weight is, and one more row left out of the loss."""
    params = wide_params(mesh)
    for form in ("sampled", "full"):
        steps = config(form=form)
        experience, *_ = score(mesh, steps, params=params)
        keep = np.array(experience.keep)
        keep[0, 0] = False

        def junk(x, fill, keep=keep):
            return None if x is None else put_rows(mesh, np.where(keep, x, np.float32(fill)))

        signal = experience.signal
        signal = signal.replace(weight=junk(signal.weight, 0), kl=junk(signal.kl, 0))
        expected = loss_and_gradient(steps, params, experience.replace(signal=signal))
        for bad in (np.nan, np.inf):
            dirty = signal.replace(advantage=junk(signal.advantage, bad))
            dirty = experience.replace(signal=dirty, old_logp=junk(experience.old_logp, -bad))
            got = loss_and_gradient(steps, params, dirty)
            assert_trees_close(got, expected, rtol=0, atol=0)


def test_the_share_that_the_clip_holds_is_one_of_the_weight_whatever_that_adds_up_to(mesh):
    params = wide_params(mesh)
    experience, *_ = score(mesh, config(), params=params)
    places = np.arange(experience.old_logp.size).reshape(experience.old_logp.shape)
    moved = experience.replace(old_logp=experience.old_logp + np.where(places % 3, 0.0, 1.0))  # ratios 1 and e^-1
    signal, keep = experience.signal, np.asarray(experience.keep)
    held = np.sum(np.asarray(signal.weight)[keep & (places % 3 == 0) & (np.asarray(signal.advantage) < 0)])
    for factor in (1.0, 0.1):
        lighter = moved.replace(signal=signal.replace(weight=signal.weight * factor))
        _, metrics = train_step(config(), SMALL_SGD, fresh(params, SMALL_SGD), lighter)
        assert float(metrics["policy/clip_frac"]) == pytest.approx(held / np.sum(np.asarray(signal.weight)), rel=1e-4)
    assert 0 < held < np.sum(np.asarray(signal.weight))


def references(**options):
    """The first response of each problem as its reference, as `Collector` gives them to a method without rollouts."""
    prompts, _, rollouts, outcomes = batch(**options)
    first = jax.tree.map(lambda x: x[::G], (rollouts, outcomes))
    return prompts, {}, first[0].replace(sampled_logp=None), first[1]


def test_supervised_fine_tuning_lowers_the_loss_of_its_references(mesh):
    parts = references(lengths=(5, 4, 1, 5, 5, 3, 2, 5))
    steps, optimizer = config("sft"), optax.adam(3e-3)
    experience, *_ = score(mesh, steps, parts)
    state = fresh(param_table.init(MODEL, mesh, 0), optimizer)
    losses = []
    for _ in range(40):
        state, metrics = train_step(steps, optimizer, state, experience)
        losses.append(float(metrics["loss/total"]))
    assert losses[0] == pytest.approx(np.log(MODEL.vocab_size), abs=0.1)  # nats a token of a uniform model
    assert losses[-1] < 0.5


@pytest.mark.slow
def test_narrow_parts_change_no_supervised_step(mesh):
    parts = references(lengths=np.repeat(SKEWED, G))
    params = wide_params(mesh)
    results = []
    for microbatches, tile in ((1, 128), (4, 2)):
        steps = config("sft", microbatches=microbatches, width_tile=tile)
        experience, *_ = score(mesh, steps, parts)
        state, metrics = train_step(steps, SMALL_SGD, fresh(params, SMALL_SGD), experience)
        results.append((state.params, metrics["loss/total"], metrics["tokens/update_padding_frac"]))
    assert_trees_close(results[1][:2], results[0][:2], rtol=1e-5, atol=1e-5)
    assert results[1][2] == pytest.approx(1 - parts[2].response_mask.mean() * 8 / 4.5)


def test_the_state_is_given_up(mesh):
    steps = frozen(config())
    params = param_table.init(MODEL, mesh, 0)
    experience, *_ = score_with_copy(mesh, steps, params)
    state = fresh(params, SGD, steps)
    train_step(steps, SGD, state, experience)
    assert all(x.is_deleted() for x in jax.tree.leaves((state.params, state.teachers)))
