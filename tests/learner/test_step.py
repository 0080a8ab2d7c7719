"""The score and train steps on a tiny model: where model and objective meet."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from dasd_jax.batch import PromptBatch, RolloutBatch, TeacherBatch
from dasd_jax.config import ObjectiveGroup
from dasd_jax.learner.checkpoint import new_state
from dasd_jax.learner.step import StepConfig, minibatch_loss, score_step, supervised_experience, train_step
from dasd_jax.mesh import put_rows
from dasd_jax.model import param_table, transformer
from dasd_jax.model.presets import preset

MODEL = dataclasses.replace(preset("qwen3_tiny"), remat="none")
B, G, P, Q, R = 4, 2, 6, 9, 5
# The longer response of each of 16 problems. Of every four in turn, the share of one of four devices, there are one or
# two short ones in either of two minibatches.
SKEWED = np.array([8, 2, 1, 5, 2, 6, 6, 2, 1, 5, 3, 2, 2, 2, 4, 1])


ADAM = optax.adam(1e-3)  # one for all cases, so that they share their programs


def config(**objective):
    microbatches = objective.pop("microbatches", 1)
    minibatches = objective.pop("minibatches", 1)
    return StepConfig(MODEL, ObjectiveGroup(token_chunk=16, **objective), 1.0, G, minibatches, microbatches, 1)


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
    zeros = np.zeros(mask.shape, np.float32)
    rollouts = RolloutBatch(response, mask, zeros, zeros, rows // G, rows % G, np.ones(rows.size, bool), rows * 0)
    reward = np.resize(np.array([1, 0, 0, 1, 1, 1, 0, 0], np.float32), rows.size)
    prompts = PromptBatch(*student, np.arange(problems, dtype=np.int32))
    shown = np.ones(problems, bool)
    teacher = TeacherBatch(*teacher, shown, shown.astype(np.float32))
    return prompts, teacher, rollouts, reward, np.ones(rows.size, bool)


def skewed_batch():
    """Very different lengths in no order, a teacher prompt for every rollout, the longest response not in the loss."""
    pairs = np.stack([SKEWED, SKEWED // 3], axis=1)
    pairs[::3] = pairs[::3, ::-1]
    lengths = pairs.reshape(-1)
    prompts, teacher, rollouts, reward, in_loss = batch(lengths=lengths)
    teacher = jax.tree.map(lambda x: np.repeat(x[:, None, None], G, axis=1), teacher)
    teacher.teacher_prompt[:, 1] += 1
    return prompts, teacher, rollouts, reward, in_loss & (lengths < SKEWED.max())


def score(mesh, steps, parts=None, params=None, teacher_weight=1.0):
    params = param_table.init(MODEL, mesh, 0) if params is None else params
    prompts, teacher, rollouts, reward, in_loss = put_rows(mesh, batch() if parts is None else parts)
    return score_step(steps, params, prompts, teacher, rollouts, reward, in_loss, np.float32(teacher_weight))


def wide_params(mesh):
    """Weights at which student and teacher differ by tenths of a nat."""
    return jax.jit(lambda p: jax.tree.map(lambda x: x * 3, p))(param_table.init(MODEL, mesh, 0))


def test_the_views_are_the_model_on_each_prompt_alone(mesh):
    """Log-probabilities of both views equal those of whole unpadded sequences, read at prompt_len - 1 + t of each."""
    params = wide_params(mesh)
    parts = batch()
    _, stats, _ = score(mesh, config(), parts, params)

    @jax.jit
    def alone(params, tokens, valid):
        hidden, _ = transformer.forward(MODEL, params, tokens, transformer.prompt_positions(valid), valid)
        return jax.nn.log_softmax(transformer.unembed(MODEL, params, hidden))

    prompts, teacher, rollouts, *_ = parts
    for row in range(B * G):
        answer = rollouts.response[row][rollouts.response_mask[row]]
        for tokens, mask, got in (
            (prompts.student_prompt, prompts.student_prompt_mask, stats.student_logp),
            (teacher.teacher_prompt, teacher.teacher_prompt_mask, stats.teacher_logp),
        ):
            prompt = tokens[row // G][mask[row // G]]
            whole = np.concatenate([prompt, answer])[None].astype(np.int32)
            valid = np.ones(whole.shape, bool)
            logp = np.asarray(alone(params, whole, valid))[0]
            expected = [logp[len(prompt) - 1 + t, token] for t, token in enumerate(answer)]
            np.testing.assert_allclose(got[row, : len(answer)], expected, atol=2e-5)


def test_without_privileged_context_the_gap_is_zero_and_dasd_is_grpo(mesh):
    """The prompt of the teacher is the student's, in an array of another width."""
    parts = batch(teacher_equals_student=True)
    experience, stats, metrics = score(mesh, config(), parts)
    keep = parts[2].response_mask
    np.testing.assert_allclose(np.asarray(stats.teacher_logp - stats.student_logp)[keep], 0, atol=2e-6)
    grpo, _, _ = score(mesh, config(method="grpo"), parts)
    np.testing.assert_allclose(experience.advantage, grpo.advantage, atol=1e-5)
    assert float(metrics["gap/mean_abs"]) < 1e-6


def test_splitting_the_score_pass_changes_nothing(mesh):
    params = wide_params(mesh)
    whole, _, _ = score(mesh, config(), params=params)
    parted, _, _ = score(mesh, config(minibatches=2, microbatches=2), params=params)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parted), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5)


@pytest.mark.parametrize("form", ["sampled", "full"])
def test_gradients_of_microbatches_add_up_to_the_minibatch(form, mesh):
    """Sums divided once by the global count: four parts of different lengths give the same update."""
    params = wide_params(mesh)
    results = []
    for microbatches in (1, 4):
        steps = config(form=form, microbatches=microbatches)
        experience, _, _ = score(mesh, steps, params=params)
        optimizer = optax.sgd(1.0)
        state = new_state(jax.tree.map(jnp.copy, params), optimizer)
        state, metrics = train_step(steps, optimizer, state, experience)
        results.append((state.params, metrics["loss/total"], metrics["optim/grad_norm"]))
    assert float(results[0][2]) > 1e-3
    for a, b in zip(jax.tree.leaves(results[1]), jax.tree.leaves(results[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("form", ["sampled", "full"])
def test_the_teacher_receives_no_gradient(form, mesh):
    """Differentiated with respect to a teacher tree of its own: exactly 0; and the student's is not."""
    steps = config(form=form)
    params = wide_params(mesh)
    experience, _, _ = score(mesh, steps, params=params)

    def loss(student, teacher):
        return minibatch_loss(steps, student, teacher, experience, 20.0)[0]

    student, teacher = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, jax.tree.map(jnp.copy, params))
    assert all(not np.asarray(x).any() for x in jax.tree.leaves(teacher))
    assert float(optax.global_norm(student)) > 1e-3


def test_at_the_old_policy_the_gradient_is_the_policy_gradient(mesh):
    """Before any update every ratio is 1: the gradient is -Σ A_t ∇ log p_t / tokens, by finite differences of that."""
    steps = config(beta=0.5)
    params = wide_params(mesh)
    experience, stats, _ = score(mesh, steps, params=params)
    keep = np.asarray(experience.keep).reshape(B * G, R)
    advantage = np.asarray(experience.advantage, np.float64).reshape(B * G, R)
    count = keep.sum()
    grads = jax.jit(jax.grad(lambda p: minibatch_loss(steps, p, p, experience, jnp.float32(count))[0]))(params)

    def weighted_logp(params):
        logp = np.asarray(score(mesh, steps, params=params)[1].student_logp, np.float64)
        return -(advantage * logp)[keep].sum() / count

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
    optimizer = optax.sgd(0.1)
    both = config(minibatches=2)
    experience, _, _ = score(mesh, both, params=params)
    state, _ = train_step(both, optimizer, new_state(jax.tree.map(jnp.copy, params), optimizer), experience)
    one = config()
    expected = new_state(jax.tree.map(jnp.copy, params), optimizer)
    for first in (0, 1):
        part = jax.tree.map(lambda x, first=first: x[first::2], experience)
        expected, _ = train_step(one, optimizer, expected, part)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert int(state.step) == 1 and int(expected.step) == 2


def test_rollouts_left_out_of_the_loss_still_count_in_their_group(mesh):
    prompts, teacher, rollouts, reward, _ = batch()
    in_loss = np.array([False, *[True] * 7])
    experience, _, _ = score(mesh, config(), (prompts, teacher, rollouts, reward, in_loss))
    whole, _, _ = score(mesh, config())
    assert not np.asarray(experience.keep)[0, 0].any()
    np.testing.assert_array_equal(experience.advantage, whole.advantage)


@pytest.mark.parametrize("form", ["sampled", "full"])
def test_half_of_the_teachers_weight_is_half_of_beta(form, mesh):
    """At weight 0 DASD is GRPO."""
    params = wide_params(mesh)
    found = {}
    for name, beta, weight in (("half", 0.4, 0.5), ("plain", 0.2, 1.0), ("none", 0.4, 0.0), ("grpo", 0.0, 1.0)):
        steps = config(form=form, beta=beta)
        experience, _, _ = score(mesh, steps, params=params, teacher_weight=weight)
        loss, _ = minibatch_loss(steps, params, params, experience, jnp.float32(20.0))
        found[name] = float(loss), np.asarray(experience.advantage)
    for a, b in (("half", "plain"), ("none", "grpo")):
        np.testing.assert_allclose(found[a][0], found[b][0], rtol=1e-5)
        np.testing.assert_allclose(found[a][1], found[b][1], rtol=1e-5, atol=1e-7)
    assert abs(found["half"][0] - found["none"][0]) > 1e-4


@pytest.mark.parametrize(("field", "value"), [("old_logp", np.nan), ("advantage", -1e30)])
@pytest.mark.parametrize("bad", [0, 1])
def test_a_minibatch_that_is_not_finite_changes_nothing(bad, field, value, mesh):
    """Parameters, moments and counts are those of the other one alone; of the second fault the loss is finite."""
    params, optimizer = wide_params(mesh), ADAM
    steps = config(minibatches=2)
    experience, _, _ = score(mesh, steps, params=params)
    array = np.array(getattr(experience, field))
    array[bad, 0, 0] = value
    broken = experience.replace(**{field: put_rows(mesh, array)})
    state, metrics = train_step(steps, optimizer, new_state(jax.tree.map(jnp.copy, params), optimizer), broken)
    assert float(metrics["optim/skipped_frac"]) == 0.5
    assert np.isfinite(float(metrics["loss/total"])) == np.isfinite(value)
    assert not np.isfinite(float(metrics["optim/grad_norm"]))
    other = jax.tree.map(lambda x: x[1 - bad :: 2], experience)
    expected, one = train_step(config(), optimizer, new_state(jax.tree.map(jnp.copy, params), optimizer), other)
    assert float(one["optim/skipped_frac"]) == 0.0
    assert not np.array_equal(expected.params["embed"], params["embed"])
    results = [(done.params, done.opt_state) for done in (state, expected)]
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("form", ["sampled", "full"])
def test_eight_devices_equal_one(form, mesh, mesh8):
    """Statistics within 1e-4, and the parameters after an update with clipping and Adam."""
    results = []
    for where in (mesh, mesh8):
        with jax.set_mesh(where):
            steps = dataclasses.replace(config(form=form), row_shards=where.shape["data"] * where.shape["fsdp"])
            params = wide_params(where)
            experience, stats, metrics = score(where, steps, params=params)
            optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
            state = jax.jit(lambda p, o=optimizer: new_state(p, o))(params)
            state, learned = train_step(steps, optimizer, state, experience)
            results.append(jax.device_get((stats, metrics, learned, state.params)))
    keep = batch()[2].response_mask
    for a, b in zip(jax.tree.leaves(results[1][0]), jax.tree.leaves(results[0][0]), strict=True):
        np.testing.assert_allclose(a[keep], b[keep], atol=1e-4)
    for a, b in zip(jax.tree.leaves(results[1][1:]), jax.tree.leaves(results[0][1:]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_widths_are_quarters_of_the_longest_in_whole_tiles():
    steps = config()
    assert steps.widths(8192) == (2048, 4096, 6144, 8192)
    assert steps.widths(600) == (256, 512, 600)
    assert steps.widths(511) == (511,)


@pytest.mark.parametrize(("form", "devices"), [("sampled", "mesh"), ("full", "mesh8")])
def test_narrow_parts_change_no_result_and_compute_less(form, devices, request):
    """Parts by length at their own widths beside whole minibatches at R: statistics, credit, updated parameters."""
    where = request.getfixturevalue(devices)
    shards = where.shape["data"] * where.shape["fsdp"]
    parts = skewed_batch()
    mask = parts[2].response_mask
    results = []
    with jax.set_mesh(where):
        params = wide_params(where)
        for microbatches, tile in ((1, 128), (2, 2)):
            steps = config(form=form, minibatches=2, microbatches=microbatches)
            steps = dataclasses.replace(steps, row_shards=shards, width_tile=tile)
            experience, stats, scored = score(where, steps, parts, params)
            optimizer = optax.sgd(0.1)
            state = jax.jit(lambda p, o=optimizer: new_state(p, o))(params)
            state, learned = train_step(steps, optimizer, state, experience)
            results.append(jax.device_get((state.params, stats, experience.advantage, scored, learned)))
    for a, b in zip(jax.tree.leaves(results[1][0]), jax.tree.leaves(results[0][0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    for a, b in zip(jax.tree.leaves(results[1][1]), jax.tree.leaves(results[0][1]), strict=True):
        np.testing.assert_allclose(a[mask], b[mask], atol=2e-5)
    np.testing.assert_allclose(results[1][2], results[0][2], atol=1e-4)
    padding = [
        (scored.pop("tokens/score_padding_frac"), learned.pop("tokens/update_padding_frac"))
        for *_, scored, learned in results
    ]
    for a, b in zip(jax.tree.leaves(results[1][3:]), jax.tree.leaves(results[0][3:]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    # Where nothing was computed stands exactly 0.
    assert [np.mean(result[1].student_entropy != 0) for result in results] == [1, 4.5 / 8]
    # Scored in four parts at widths 2, 2, 6 and 8; learned from in two parts at 2 and 6 in both minibatches, the only
    # longer response not being in the loss.
    keep = mask & parts[-1][:, None]
    np.testing.assert_allclose(padding[0], (1 - mask.mean(), 1 - keep.mean()), atol=1e-6)
    np.testing.assert_allclose(padding[1], (1 - mask.mean() * 8 / 4.5, 1 - keep.mean() * 8 / 4), atol=1e-6)


def test_what_stands_in_padding_changes_no_update(mesh):
    """Other ids in the padding of prompts and responses: same loss, same gradient."""
    prompts, teacher, rollouts, reward, in_loss = batch()
    noisy = (
        prompts.replace(student_prompt=np.where(prompts.student_prompt_mask, prompts.student_prompt, 99)),
        teacher.replace(teacher_prompt=np.where(teacher.teacher_prompt_mask, teacher.teacher_prompt, 98)),
        rollouts.replace(response=np.where(rollouts.response_mask, rollouts.response, 97)),
        reward,
        in_loss,
    )
    params = wide_params(mesh)
    for form in ("sampled", "full"):
        steps = config(form=form)
        loss = jax.jit(jax.value_and_grad(lambda p, e, steps=steps: minibatch_loss(steps, p, p, e, 20.0)[0]))
        results = [loss(params, score(mesh, steps, parts, params)[0]) for parts in (batch(), noisy)]
        for a, b in zip(jax.tree.leaves(results[1]), jax.tree.leaves(results[0]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_supervised_fine_tuning_lowers_the_loss_of_its_references(mesh):
    prompts, _, rollouts, *_ = batch()
    target, mask = rollouts.response[::2], rollouts.response_mask[::2]
    mask[3] = [True, True, False, False, False]
    experience = supervised_experience(*put_rows(mesh, (prompts, target, mask)))
    steps, optimizer = config(method="sft"), optax.adam(3e-3)
    state = jax.jit(lambda p: new_state(p, optimizer))(param_table.init(MODEL, mesh, 0))
    losses = []
    for _ in range(40):
        state, metrics = train_step(steps, optimizer, state, experience)
        losses.append(float(metrics["loss/total"]))
    assert losses[0] == pytest.approx(np.log(MODEL.vocab_size), abs=0.1)  # nats a token of a uniform model
    assert losses[-1] < 0.5


def test_narrow_parts_change_no_supervised_step(mesh):
    prompts, _, rollouts, *_ = batch(lengths=np.repeat(SKEWED, G))
    target, mask = rollouts.response[::G], rollouts.response_mask[::G]
    experience = supervised_experience(*put_rows(mesh, (prompts, target, mask)))
    params, optimizer = wide_params(mesh), optax.sgd(0.1)
    results = []
    for microbatches, tile in ((1, 128), (4, 2)):
        steps = dataclasses.replace(config(method="sft", microbatches=microbatches), width_tile=tile)
        state = new_state(jax.tree.map(jnp.copy, params), optimizer)
        state, metrics = train_step(steps, optimizer, state, experience)
        results.append((state.params, metrics["loss/total"], metrics["tokens/update_padding_frac"]))
    for a, b in zip(jax.tree.leaves(results[1][:2]), jax.tree.leaves(results[0][:2]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert results[1][2] == pytest.approx(1 - mask.mean() * 8 / 4.5)


def test_the_state_is_given_up(mesh):
    steps, optimizer = config(), optax.sgd(1.0)
    experience, _, _ = score(mesh, steps)
    state = jax.jit(lambda p: new_state(p, optimizer))(param_table.init(MODEL, mesh, 0))
    train_step(steps, optimizer, state, experience)
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))
