"""The forward passes of student and teachers over one batch, and the statistics that are read of them."""

import jax
import jax.numpy as jnp

from dasd_jax import vocab
from dasd_jax.batch import Array, Params, PromptBatch, TeacherBatch
from dasd_jax.learner import teachers
from dasd_jax.learner.step_config import StepConfig
from dasd_jax.mesh import merge_rows, spec
from dasd_jax.model.transformer import response_hidden, unembedding, with_embedding
from dasd_jax.objective.contract import ViewStats
from dasd_jax.objective.fused_pass import Outputs
from dasd_jax.objective.token_stats import TokenStats, token_stats

STUDENT = "student"  # beside the names of views


def outputs(config: StepConfig, params: Params, prompt: Array, prompt_mask: Array, response, mask) -> Outputs:
    """The hidden states that predict the responses, and the matrix that makes logits of them.

    Args:
        prompt, prompt_mask: [B, P], shared by the G rows of each problem, or [rows, P].
    """
    params = with_embedding(config.model, params)
    hidden = response_hidden(config.model, params, prompt, prompt_mask, response, mask)
    return hidden, unembedding(config.model, params)


def teacher_outputs(
    config: StepConfig,
    params: Params,
    copies: dict[str, Params],
    name: str,
    shown: TeacherBatch,
    k: int,
    response,
    mask,
) -> Outputs:
    """A view on its k-th prompt; a constant."""
    params = teachers.weights(config.views[name], params, copies)
    return outputs(config, params, *_teacher_prompt(shown, k), response, mask)


def _teacher_prompt(shown: TeacherBatch, k: int) -> tuple[Array, Array]:
    """The k-th prompts of a view, [B, P] or [rows, P], and their mask."""
    both = shown.teacher_prompt, shown.teacher_prompt_mask
    return both if shown.teacher_prompt.ndim == 2 else tuple(merge_rows(x[:, :, k]) for x in both)


def statistics(
    config: StepConfig, params: Params, copies: dict[str, Params], rescore: bool, width: int, part
) -> tuple[TokenStats, dict[str, Array]]:
    """Student and scored teachers on a part of the batch; a view of K prompts is K teachers in a row.

    Args:
        rescore: False: the teachers alone, and their divergences from the student are None.
        part: prompts, the teachers' by view, responses, their masks, and bool[B, G, n]: which row, if any, is which of
            the n rows whose hidden states are wanted.

    Returns:
        (TokenStats; "student" and each scored view → hidden states f32[n, width, D] of the wanted rows, of K prompts on
        the first, and 0 for those of other parts).
    """
    prompts, shown, response, mask, wanted = part
    response, mask, wanted = merge_rows(response[..., :width]), merge_rows(mask[..., :width]), merge_rows(wanted)
    readers = [("", (prompts.student_prompt, prompts.student_prompt_mask))] if rescore else []
    readers += [
        (teachers.policy(config.views[name]), _teacher_prompt(shown[name], k))
        for name in config.scored
        for k in range(config.views[name].count)
    ]
    of_readers = _of_readers(config, {"": params, **copies}, readers, response, mask)
    student, of_views = (of_readers[0], of_readers[1:]) if rescore else (None, of_readers)
    chunk = config.chunk(response.shape[0])
    stats = token_stats(student, of_views, response, temperature=config.temperature, chunk=chunk)
    if not wanted.shape[1]:
        return stats, {}
    first, states = 0, {STUDENT: student[0]} if rescore else {}
    for name in config.scored:
        states[name] = of_views[first][0]
        first += config.views[name].count
    return stats, {name: _rows_of(wanted, hidden) for name, hidden in states.items()}


def _of_readers(
    config: StepConfig, weights: dict[str, Params], readers: list[tuple[str, tuple[Array, Array]]], response, mask
) -> list[Outputs]:
    """Outputs of each (key of its weights, (prompt, mask)).

    Those with the same weights and prompts of one shape take turns in a loop: a model is compiled once for them all.
    """
    alike: dict[tuple, list[int]] = {}
    for place, (key, (prompt, _)) in enumerate(readers):
        alike.setdefault((key, prompt.shape), []).append(place)
    found: dict[int, Outputs] = {}
    for (key, _), places in alike.items():
        params = with_embedding(config.model, weights[key])

        def hidden(prompt: tuple[Array, Array], params=params) -> Array:
            return response_hidden(config.model, params, *prompt, response, mask)

        prompts = [readers[place][1] for place in places]
        if len(places) == 1:
            states = [hidden(*prompts)]
        else:
            states = jax.lax.map(hidden, jax.tree.map(lambda *each: jnp.stack(each), *prompts))
        found |= {
            place: (state, unembedding(config.model, params)) for place, state in zip(places, states, strict=True)
        }
    return [found[place] for place in range(len(readers))]


def _rows_of(wanted: Array, hidden: Array) -> Array:
    """Some rows of hidden states, whatever devices they are on: bool[rows, n], f32[rows, S, D] → f32[n, S, D].

    Devices add up what each has of them, where any is wanted: few parts of a batch have one.
    """
    out, shape = spec("rows", None, None), (wanted.shape[1], *hidden.shape[1:])

    def some() -> Array:
        return vocab.product("rn,rsd->nsd", wanted.astype(hidden.dtype), hidden, out_sharding=out)

    return jax.lax.cond(jnp.any(wanted), some, lambda: jnp.zeros(shape, hidden.dtype, out_sharding=out))


def view_stats(config: StepConfig, stats: TokenStats, shown: dict[str, TeacherBatch]) -> dict[str, ViewStats]:
    """Statistics by view; of a teacher that is shown nothing, the student's own; none of a view that is not scored."""
    views = {}
    for name in config.views:
        has, weight = (_by_row(config.shape.rollouts, x) for x in (shown[name].shown, shown[name].weight))
        views[name] = ViewStats(None, None, None, None, shown=has, weight=weight)
    left = iter(stats.teachers)
    for name in config.scored:
        has = views[name].shown
        of_view = [next(left) for _ in range(config.views[name].count)]

        def stacked(field: str, otherwise: Array, has=has, of_view=of_view) -> Array | None:
            found = [getattr(each, field) for each in of_view]
            return None if found[0] is None else jnp.where(has[..., None], jnp.stack(found), otherwise)

        views[name] = views[name].replace(
            logp=stacked("logp", stats.logp),
            entropy=stacked("entropy", stats.entropy),
            forward_kl=stacked("forward_kl", jnp.zeros_like(stats.logp)),
            reverse_kl=stacked("reverse_kl", jnp.zeros_like(stats.logp)),
        )
    return views


def _by_row(rollouts: int, x: Array) -> Array:
    """One number a prompt of a teacher, [B], [B, 1, K] or [B, G, K] → [K, rows]."""
    x = x[:, None, None] if x.ndim == 1 else x
    return jnp.moveaxis(merge_rows(jnp.broadcast_to(x, (x.shape[0], rollouts, x.shape[2]))), 1, 0)


def of_one_width(prompts: PromptBatch, shown: dict[str, TeacherBatch]) -> tuple[PromptBatch, dict[str, TeacherBatch]]:
    """The same with all prompts at the widest one's width: equal prompts then give equal numbers, to the last bit."""
    width = max(x.shape[-1] for x in (prompts.student_prompt, *(batch.teacher_prompt for batch in shown.values())))
    shown = {
        name: batch.replace(
            teacher_prompt=_left_padded(batch.teacher_prompt, width),
            teacher_prompt_mask=_left_padded(batch.teacher_prompt_mask, width),
        )
        for name, batch in shown.items()
    }
    return wider(prompts, width), shown


def wider(prompts: PromptBatch, width: int) -> PromptBatch:
    """The same prompts in arrays of that width, at least their own."""
    return prompts.replace(
        student_prompt=_left_padded(prompts.student_prompt, width),
        student_prompt_mask=_left_padded(prompts.student_prompt_mask, width),
    )


def _left_padded(x: Array, width: int) -> Array:
    return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((width - x.shape[-1], 0),))
