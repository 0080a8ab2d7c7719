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
    """The mean of each answer, from prompt and answer as one sequence on one device."""
    teacher, answer, mask = given(np.ones(PROBLEMS, bool))
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    pairs = zip(teacher.teacher_prompt, teacher.teacher_prompt_mask, answer, mask, strict=True)
    whole = [np.concatenate([prompt[valid], ids[kept]]) for prompt, valid, ids, kept in pairs]
    tokens = np.stack([np.pad(ids, (Q + WIDTH - len(ids), 0)) for ids in whole])
    valid = np.arange(Q + WIDTH) >= Q + WIDTH - np.array([len(ids) for ids in whole])[:, None]

    @jax.jit
    def log_probs(params, tokens, valid):
        hidden, _ = transformer.forward(MODEL, params, tokens, transformer.prompt_positions(valid), valid)
        return jax.nn.log_softmax(transformer.unembed(MODEL, params, hidden))

    with jax.set_mesh(one):
        logp = np.asarray(log_probs(wide_params(one), *put_rows(one, (tokens, valid))))
    of_next = np.take_along_axis(logp[:, :-1], tokens[:, 1:, None], axis=2)[..., 0]
    return np.array([x[len(x) - n :].mean() if n else 0.0 for x, n in zip(of_next, LENGTHS, strict=True)])


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
