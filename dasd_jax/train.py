"""Post-trains a model: python -m dasd_jax.train --config=smollm2_math [--workdir=DIR]

Writes in the workdir: config.json, metrics.jsonl, tensorboard/, samples.jsonl, verdicts.jsonl, checkpoints/, heldout/,
and done.json last. The same command again goes on from the last checkpoint. On several hosts the same command runs on
each, with a workdir that all of them share. With a larger run.steps a finished run goes on; docs/reliability.md lists
what else may change, which changes.jsonl then records. --from=RUN[:STEP] starts a new run from a checkpoint of
another one.
"""

import contextlib
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np

from dasd_jax import cli, files, hosts, recorded
from dasd_jax.batch import TeacherBatch
from dasd_jax.config import Config
from dasd_jax.errors import TrainingError
from dasd_jax.learner import kept
from dasd_jax.learner.inspection import inspect
from dasd_jax.learner.optim import updates_done
from dasd_jax.learner.passes import STUDENT
from dasd_jax.learner.probe import ANSWER_TOKENS, answer_logp
from dasd_jax.learner.step import Experience, rounding_noise, score_step, train_step
from dasd_jax.mesh import fetch, make_mesh, put_rows, replicate, row_shards
from dasd_jax.objective.contract import ANSWER_LOGP, NOISE
from dasd_jax.run import checks, compiled, guards, origin, summary, trackers, workdir
from dasd_jax.run.collect import Collected
from dasd_jax.run.display import Clock
from dasd_jax.run.heldout import evaluate_heldout
from dasd_jax.run.runlog import LEFT_OUT
from dasd_jax.run.samples import choose, prompts_of, samples
from dasd_jax.run.start import Run, start
from dasd_jax.run.stopping import StopRequest, exit_code
from dasd_jax.verify.verifier import Verifier


def loop(run: Run) -> None:
    """From where the state stands to the last step, with an evaluation before and after."""
    config = run.config
    if run.step == 0:
        run.log.write(0, evaluate_heldout(run))
    elif run.step == run.evaluated_since:
        evaluate_heldout(run)  # as from now on, for what the later ones are compared with
    for step in range(run.step + 1, config.run.steps + 1):
        metrics, rollouts = learn(run, step)
        last, best = step == config.run.steps, False
        if last or (config.run.eval_every and step % config.run.eval_every == 0):
            metrics |= evaluate_heldout(run)
            best = is_best(run, metrics)
        if left_out := run.log.write(step, metrics, rollouts):
            say_left_out(run, left_out)
        run.display.step(step, metrics, run.log.lines)
        obey_guards(run)
        # Read once, since a signal may come between two reads, and at the same step in every process.
        told = hosts.gather([run.stop.reason, is_due(run)])
        stopping = next(filter(None, (reason for reason, _ in told)), "")
        if last or best or stopping or told[0][1] or step % config.run.checkpoint_every == 0:
            save(run, best)
        run.checkpoints.check()
        for warning in run.checkpoints.take_warnings():
            run.display.say(warning)
        if stopping and not last:
            stands = save_between_steps(run)
            hosts.barrier()
            run.display.say(f"stopped {stopping} {stands}")
            if code := exit_code(stopping):
                sys.exit(code)
            return
        run.stop.release()
    run.checkpoints.wait()
    finish(run)


def learn(run: Run, step: int) -> tuple[dict[str, float], list[dict]]:
    """One step: rollouts, verdicts, teachers' prompts, scores, update; numbers for the log and rollouts to look at."""
    started, config, clock = time.monotonic(), run.config, Clock(run.display)
    traced = (
        jax.profiler.trace(run.workdir / "profile") if step == config.run.profile_step else contextlib.nullcontext()
    )
    with traced:
        collected = run.collector.collect(run.state.params, int(run.state.batches_drawn), clock)
        run.failures.note(collected.problems, collected.verdicts, f"step {step}: ")
        knobs = run.knobs(step)
        with clock.phase("score"):
            arguments = config.method.context(knobs, config.hp)
            shown, metrics = run.collector.teacher_batches(collected, run.steps.views, arguments)
            metrics |= {f"context/{name}": value for name, value in arguments.items()}
            chosen = chosen_rows(run, step, collected)
            rescore = checks.rescored(config, step)
            experience, logged, scored, states = score(run, collected, shown, knobs, chosen, rescore=rescore)
            metrics |= as_floats(scored)
            if run.steps.scored:
                metrics[NOISE] = noise(run, step, collected, experience, knobs)
            if config.method.probe:
                metrics[ANSWER_LOGP] = answers(run, collected, shown[config.method.probe])
        checks.sampler_agrees(config, step, metrics)
        if not run.views_checked:
            run.views_checked = True
            mask = collected.rollouts.response_mask
            blank = partial(blank_gaps, run, collected, knobs, chosen)
            checks.views_agree(config, step, metrics.get(NOISE, 0.0), mask, blank)
            if config.objective.tis and "policy/tis_mean" not in metrics:
                run.display.say(
                    f"warning: objective.tis = {config.objective.tis:g} has no effect: the loss of method "
                    f"{config.objective.method} does not depend on which token was drawn"
                )
        looked_at = look_at(run, collected, shown, chosen, logged, states)
        del logged, states  # of all tokens, and hidden states: the update needs their memory
        run.stop.hold()
        with clock.phase("update"):
            run.state, learned = train_step(run.steps, run.optimizer, run.state, experience, collected.batches)
        with clock.phase("samples"):  # on the host, while the devices update
            rollouts = samples(collected, shown, chosen, run.tokenizer, fetch(looked_at)) if len(chosen) else []
            metrics |= collected.metrics(config.rollout.rollouts, run.slots, clock.seconds)
        with clock.phase("update"):
            metrics |= as_floats(learned)
    if metrics["optim/skipped_frac"]:
        reward = collected.outcomes.reward.reshape(len(collected.prompts.example_id), -1)
        more = {"example_id": collected.prompts.example_id, "reward": reward}
        workdir.keep_skipped(run.workdir, run.step, experience, config.guards.skipped_steps_stop, **more)
    metrics |= clock.seconds
    metrics |= run.compilations.take()
    if config.method.anneals:
        metrics[guards.TEACHER_WEIGHT] = run.teacher_weight
    metrics["optim/learning_rate"] = float(run.schedule(max(updates_done(run.state.opt_state) - 1, 0)))
    metrics |= {"time/step_s": time.monotonic() - started, "time/checkpoint_s": run.checkpoint_s}
    run.checkpoint_s = 0.0
    return metrics, rollouts


def chosen_rows(run: Run, step: int, collected: Collected) -> np.ndarray:
    """The rollouts of a step for samples.jsonl, repeated until the shards of the rows divide them."""
    config, shards = run.config, row_shards(run.mesh)
    if not collected.verdicts:
        return np.zeros(0, np.int32)
    count, seed = config.run.logged_rollouts, config.run.seed
    rows = choose(collected.outcomes.correct, config.rollout.rollouts, count, seed, step)
    return np.resize(rows, -(-len(rows) // shards) * shards)


def score(
    run: Run,
    collected: Collected,
    shown: dict[str, TeacherBatch],
    knobs: dict,
    chosen: np.ndarray,
    copies=None,
    rescore: bool = True,
):
    """`score_step` on the devices; `copies` in the place of the state's own."""
    batches = put_rows(run.mesh, (collected.prompts, shown, collected.rollouts, collected.outcomes))
    copies = run.state.teachers if copies is None else copies
    knobs, chosen = run.on_devices(knobs), replicate(run.mesh, chosen)
    return score_step(run.steps, run.state.params, copies, *batches, knobs, chosen, run.tables, rescore)


def look_at(
    run: Run,
    collected: Collected,
    shown: dict[str, TeacherBatch],
    chosen: np.ndarray,
    logged: dict[str, jax.Array],
    states: dict[str, jax.Array],
):
    """What `inspect` says of the chosen rollouts, before the update; None without any."""
    if not len(chosen):
        return None
    group, written = run.config.rollout.rollouts, collected.rollouts
    unread = prompts_of(collected, shown, {STUDENT, *shown} - states.keys(), chosen, group)
    batches = put_rows(run.mesh, (unread, written.response[chosen], written.response_mask[chosen]))
    rows = replicate(run.mesh, chosen)
    return inspect(run.steps, run.state.params, run.state.teachers, *batches, states, logged, rows)


def noise(run: Run, step: int, collected: Collected, experience: Experience, knobs: dict[str, float]) -> float:
    """Nats of a gap that are rounding: measured at the steps 1, 1 + N, …, N = run.noise_every, and as before between.

    By the number of the step, so that a resumed run measures at the same ones; at once where the log has none.
    """
    if (step - 1) % run.config.run.noise_every and any(NOISE in line for line in run.log.lines):
        return knobs["noise"]
    batches = put_rows(run.mesh, (collected.prompts, collected.rollouts))
    return float(rounding_noise(run.steps, run.state.params, *batches, experience.old_logp))


def answers(run: Run, collected: Collected, shown: TeacherBatch) -> float:
    """What the probed teacher thinks of the reference answers: nats a token; not finite where it is shown nothing."""
    answer, mask = run.prompts.answer_batch(collected.prompts.example_id, ANSWER_TOKENS)
    batches = put_rows(run.mesh, (shown, answer, mask))
    return float(answer_logp(run.steps, run.state.params, run.state.teachers, *batches))


def blank_gaps(run: Run, collected: Collected, knobs: dict[str, float], chosen: np.ndarray) -> dict:
    """By view, teacher minus student where the teachers read the students' prompts with the student's weights."""
    blank = run.collector.blank_teacher_batches(collected, run.steps.views)
    copies = dict.fromkeys(run.state.teachers, run.state.params)
    _, logged, _, _ = score(run, collected, blank, knobs, chosen, copies)
    gaps = {name.partition("/")[2] or "teacher": gap for name, gap in logged.items() if name.split("/")[0] == "gap"}
    return fetch(gaps)


def as_floats(scalars: dict[str, jax.Array]) -> dict[str, float]:
    """Scalars of the devices, for the log."""
    return {name: float(value) for name, value in jax.device_get(scalars).items()}


def obey_guards(run: Run) -> None:
    """Prints what the numbers so far call for, and takes the teacher's weight from it.

    Raises:
        TrainingError: the run must not go on.
    """
    found = guards.judge(run.log.lines, run.config)
    for warning in found.warnings:
        run.display.say(warning)
    if found.stop:
        raise TrainingError(found.stop)
    run.teacher_weight = found.teacher_weight


# -------------------------------------------------------------------------------------------- before and after


def main(argv: list[str]) -> None:
    """The command."""
    flags = cli.parser(__doc__)
    origin.add_flags(flags)
    hosts.add_flags(flags)
    command = cli.parse(flags, argv)
    asked, optimizer = command.flags.from_run, command.flags.from_optimizer
    hosts.start(command.flags, {"--from": asked, "--from-optimizer": optimizer, **command.settings()})
    compiled.keep_programs()
    train(command.config, command.workdir, origin.resolve(asked, optimizer, command.workdir))


def train(config: Config, folder: Path, started_from: origin.Origin | None = None) -> None:
    """Runs or resumes the training that `config` describes in `folder`.

    Args:
        started_from: the checkpoint of another run that this one starts, or has started, from.

    Raises:
        UserError: anything in the config, the data, the weights or the workdir that a person has to mend; nothing is
            written before all of it is checked.
        TrainingError: the sampler and the score pass disagree, or a guard stops the run (run/guards.py).
    """
    changes = workdir.check(config, folder)
    trackers.check(config)
    config = recorded.dated(config, folder)
    finished = hosts.from_main(lambda: (folder / "done.json").exists())
    if finished and not workdir.check_finished(folder, changes):
        if hosts.is_main():
            text = summary.read(folder)
            print(f"{folder} holds a finished run:\n{text}")
        return
    mesh = make_mesh(config.mesh)
    limits = config.rollout.verifier_workers, config.rollout.verifier_deadline_s, config.rollout.verifier_memory_mb
    with (
        jax.set_mesh(mesh),
        workdir.writing(folder),
        workdir.Lock(folder) as lock,
        StopRequest(config.run.grace_s) as stop,
        Verifier(*limits) as verifier,
    ):
        run = start(config, folder, mesh, verifier, stop, changes, started_from)
        lock.take()  # of a folder that was not there before
        try:
            stop.save, stop.say = lambda: save_at_the_end(run), run.display.say
            stop.stands = lambda: goes_on_after(run)
            loop(run)
        finally:
            run.display.close()
            with contextlib.suppress(OSError, TrainingError):  # what could not be written has been said
                run.log.close()
                run.checkpoints.wait()


def save(run: Run, best: bool) -> None:
    """Starts to write a checkpoint."""
    run.display.phase("checkpoint")
    started = time.monotonic()
    run.checkpoints.save(run.state, best=best)
    run.saved, run.saved_at = run.step, time.monotonic()
    run.checkpoint_s += run.saved_at - started


def is_due(run: Run) -> bool:
    """Whether the newest checkpoint is so old that the next one does not wait for its step."""
    minutes = run.config.run.checkpoint_minutes
    return bool(minutes) and time.monotonic() - run.saved_at >= 60 * minutes


def save_between_steps(run: Run) -> str:
    """Checkpoints the last step that is in the log; returns in words where the run has got to.

    Raises:
        TrainingError: a checkpoint could not be written.
    """
    if run.step > run.saved:
        save(run, best=False)
    run.checkpoints.wait()
    if not run.step:
        return "before the end of step 1; the same command starts again"
    return f"after step {run.step}; the same command goes on from here"


def goes_on_after(run: Run) -> str:
    """In words where the same command goes on from if the process ends in this moment."""
    finished = run.checkpoints.finished
    return f"at once; the same command {f'goes on after step {finished}' if finished else 'begins it again'}"


def save_at_the_end(run: Run) -> str:
    """The same for a process that a signal ends at once: it takes the live line away too."""
    try:
        return save_between_steps(run)
    finally:
        run.display.close()


def say_left_out(run: Run, count: int) -> None:
    """Says once in a run that samples.jsonl has reached its size, and afterwards leaves that to the log."""
    if sum(LEFT_OUT in line for line in run.log.lines) == 1:
        run.display.say(
            f"samples.jsonl: {count} rollouts of step {run.step} left out, like those of later steps that do not fit: "
            f"run.samples_mb = {run.config.run.samples_mb:g} is shared evenly by all steps; see {LEFT_OUT} in the log"
        )


def is_best(run: Run, metrics: dict[str, float]) -> bool:
    """Whether no earlier evaluation of this run, after at least one step and made like this one, was as high."""
    name = f"eval/{'macro/' if run.config.data.benchmarks else ''}avg@{run.config.run.eval_samples}"
    earlier = [line[name] for line in run.log.lines if line["step"] > run.evaluated_since and name in line]
    return all(metrics[name] > value for value in earlier)


def finish(run: Run) -> None:
    """Writes done.json, the one sign that a run is finished, and prints what it came to."""
    if hosts.is_main():
        with files.reading(run.workdir / "heldout", "--workdir"):
            seconds = time.monotonic() - run.started
            done = summary.summarise(run.config, run.workdir, run.log.lines, seconds, run.evaluated_since)
            text = summary.as_text(done)
        files.write_json(run.workdir / "done.json", done)
        if not run.config.run.keep_optimizer:  # not before: a run that is not finished needs it
            kept.keep_params_alone(run.workdir)
        run.display.say(text)
    hosts.barrier()  # the others may end when the last checkpoint counts


if __name__ == "__main__":
    cli.run(main)
