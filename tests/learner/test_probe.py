"""The probe of reference answers: the teacher alone on each prompt, whatever mesh and parts it is computed in."""

import dataclasses
import functools
from functools import partial

import jax
import numpy as np
import pytest
from test_step import MODEL, Q, config, wide_params

from dasd_jax.batch import TeacherBatch
from dasd_jax.learner.probe import answer_logp
from dasd_jax.mesh import MeshConfig, make_mesh, put_rows
from dasd_jax.model import transformer

PROBLEMS, WIDTH = 8, 5
LENGTHS = np.array([3, 5, 1, 2, 5, 4, 0, 2])  # of the answers; one is empty


def given(shown):
    """Prompts of different lengths, and answers."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, 256, (PROBLEMS, Q)).astype(np.int32)
    valid = np.arange(Q) >= Q - rng.integers(1, Q + 1, (PROBLEMS, 1))
    answer = rng.integers(0, 256, (PROBLEMS, WIDTH)).astype(np.int32)
    teacher = TeacherBatch(prompt, valid, shown, shown.astype(np.float32))
    return teacher, answer, np.arange(WIDTH) < LENGTHS[:, None]


@functools.cache
def by_the_model_alone():
    """The mean of each answer, from whole unpadded sequences on one device."""
    teacher, answer, mask = given(np.ones(PROBLEMS, bool))
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    means = []
    with jax.set_mesh(one):
        params = wide_params(one)
        for row in range(PROBLEMS):
            before, after = teacher.teacher_prompt[row][teacher.teacher_prompt_mask[row]], answer[row][mask[row]]
            whole = np.concatenate([before, after])[None].astype(np.int32)
            valid = np.ones(whole.shape, bool)
            hidden, _ = transformer.forward(MODEL, params, whole, transformer.prompt_positions(valid), valid)
            logp = np.asarray(jax.nn.log_softmax(transformer.unembed(MODEL, params, hidden)))[0]
            means.append(
                np.mean([logp[len(before) - 1 + t, token] for t, token in enumerate(after)]) if len(after) else 0
            )
    return np.array(means)


@pytest.mark.parametrize(("where", "parts"), [("mesh", 1), ("mesh", 4), ("mesh8", 2)])
def test_it_is_the_mean_over_the_answers_whose_teacher_is_shown_something(where, parts, request):
    mesh = request.getfixturevalue(where)
    shown = np.array([True, False, True, True, True, False, True, True])
    batches = given(shown)
    steps = dataclasses.replace(config("atesd"), microbatches=parts)
    measured = partial(answer_logp, steps, wide_params(mesh), {})
    means, counts = by_the_model_alone(), shown & (LENGTHS > 0)
    assert means[counts].max() - means[counts].min() > 1
    assert float(measured(*put_rows(mesh, batches))) == pytest.approx(means[counts].mean(), abs=2e-5)
    assert np.isnan(measured(*put_rows(mesh, given(np.zeros(PROBLEMS, bool)))))
