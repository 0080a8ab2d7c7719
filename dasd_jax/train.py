"""Post-trains a model: python -m dasd_jax.train --config=configs/smollm2_math.py [--workdir=DIR]

Writes in the workdir: config.json, metrics.jsonl, tensorboard/, samples.jsonl, verdicts.jsonl, checkpoints/, heldout/,
and done.json last. The same command again goes on from the last checkpoint. On several hosts the same command runs on
each, with a workdir that all of them share.
"""

import contextlib
import dataclasses
import json
import resource
import time
from pathlib import Path

import jax
import numpy as np

from dasd_jax import cli, files, formats, hosts
from dasd_jax.batch import TeacherBatch, TokenStats
from dasd_jax.config import Config
from dasd_jax.errors import TrainingError, UserError
from dasd_jax.learner import checkpoint
from dasd_jax.learner.optim import make_optimizer, make_schedule, updates_done
from dasd_jax.learner.step import Experience, score_step, supervised_experience, train_step
from dasd_jax.mesh import fetch, make_mesh, put_rows, replicate, row_shards
from dasd_jax.objective.contract import View
from dasd_jax.objective.credit import NEEDS_TEACHER, dense_bound, smallest_advantage
from dasd_jax.rollout.sampler import Sampling
from dasd_jax.rollout.slots import bytes_a_device
from dasd_jax.run import guards, setup
from dasd_jax.run.collect import Collected, Collector
from dasd_jax.run.display import Clock, Compilations, Display
from dasd_jax.run.evaluation import evaluate, problems_at_a_time, rise
from dasd_jax.run.runlog import RunLog
from dasd_jax.run.stopping import StopRequest
from dasd_jax.verify.journal import Journal
from dasd_jax.verify.verifier import Verifier


def main(argv: list[str]) -> None:
    """The command."""
    flags = cli.parser(__doc__)
    hosts.add_flags(flags)
    command = cli.parse(flags, argv)
    hosts.start(command.flags, command.settings())
    train(command.config, command.workdir)


def train(config: Config, workdir: Path) -> None:
    """Runs or resumes the training that `config` describes in `workdir`.

    Raises:
        UserError: anything in the config, the data, the weights or the workdir that a person has to mend; nothing is
            written before all of it is checked.
        TrainingError: the sampler and the score pass disagree, or a guard stops the run (run/guards.py).
    """
    _check_workdir(config, workdir)
    if hosts.from_main(lambda: (workdir / "done.json").exists()):
        if hosts.is_main():
            with files.reading(workdir / "done.json", "--workdir"):
                summary = _summary(formats.read_object(workdir / "done.json"))
                summary.encode()  # half a surrogate pair would fail when it is printed
            print(f"{workdir} holds a finished run:")
            print(summary)
        return
    mesh = make_mesh(config.mesh)
    with (
        jax.set_mesh(mesh),
        _writing(workdir),
        StopRequest(config.run.grace_s) as stop,
        Verifier(
            config.rollout.verifier_workers, config.rollout.verifier_deadline_s, config.rollout.verifier_memory_mb
        ) as verifier,
    ):
        Trainer(config, workdir, mesh, verifier, stop).run()


class Trainer:
    """The parts of one run, and the loop that moves them."""

    def __init__(self, config: Config, workdir: Path, mesh: jax.sharding.Mesh, verifier: Verifier, stop: StopRequest):
        """Opens data and model, then the workdir."""
        self.config, self.workdir, self.mesh, self.verifier, self.stop = config, workdir, mesh, verifier, stop
        setup.check_rows(config, mesh)
        self.tokenizer = setup.open_tokenizer(config.model)
        self.prompts, self.heldout, counts = setup.open_prompts(config, self.tokenizer)
        hosts.check_same(lambda: {"data.sources": [self.prompts.digest(), self.heldout.digest()]})
        self.views_checked, self.compilations = False, Compilations()
        self.checkpoint_s = 0.0  # that the loop has waited for checkpoints since the last line of the log
        planned = config.run.steps * config.optim.minibatches
        self.schedule = make_schedule(config.optim, planned)
        self.optimizer = make_optimizer(config.optim, planned)

        found = hosts.from_main(lambda: str(checkpoint.latest(workdir, set_aside=True) or ""))
        folder = Path(found) if found else None
        if folder:
            _check_shared(folder / "manifest.json")
            model, self.state = checkpoint.restore(folder, mesh, self.optimizer)
            self.model = setup.configured(config, model)
        else:
            self.model, params = setup.open_model(config, mesh)
            self.state = jax.jit(lambda p: checkpoint.new_state(p, self.optimizer), donate_argnums=0)(params)
        setup.check_vocabulary(self.tokenizer, self.model)
        self.steps = setup.step_config(config, self.model, mesh)
        rows = config.rollout.problems * config.rollout.rollouts
        sampling = self._with_slots(setup.training_sampling(config, self.tokenizer), config.rollout.problems)
        self.slots = sampling.slots_of(rows // row_shards(mesh))
        journal = Journal(workdir / "verdicts.jsonl", verifier)
        self.collector = Collector(config, mesh, self.model, self.tokenizer, sampling, self.prompts, journal)

        if hosts.is_main():
            files.write_json(workdir / "config.json", dataclasses.asdict(config))
        hosts.barrier()
        _check_shared(workdir / "config.json")
        step = int(self.state.step)
        self.checkpoints = checkpoint.Writer(
            workdir, self.model, keep=config.run.keep_checkpoints, keep_every=config.run.keep_every
        )
        begins_again = not folder and (workdir / "metrics.jsonl").exists()
        self.log = RunLog(workdir, step if folder else -1)
        self.teacher_weight = guards.judge(self.log.lines, config).teacher_weight
        self.display = Display(config.run.steps, step)
        self.display.say(
            f"{self.model.num_params / 1e6:.1f} M parameters on {mesh.size} {jax.devices()[0].platform} device(s), "
            f"method {config.objective.method}, workdir {workdir}"
        )
        self.display.say("problems: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
        limited = not config.rollout.slots and setup.device_memory() is not None
        derived = ", derived from the memory that is free" if limited else ""
        self.display.say(f"slots: {self.slots} of {rows // row_shards(mesh)} rows a device{derived}")
        self.saved = step  # that the newest checkpoint is of
        if folder:
            self.display.say(f"resumed from {folder}")
        elif begins_again:
            self.display.say("no checkpoint was finished: the run begins again")
        self._warn_of_a_loud_teacher()

    def run(self) -> None:
        """The loop: from where the state stands to the last step, with an evaluation before and after."""
        config, started = self.config, time.monotonic()
        with self._closing():
            self.stop.save = self._save_between_steps
            if int(self.state.step) == 0:
                self.log.write(0, self._evaluate(0))
            for step in range(int(self.state.step) + 1, config.run.steps + 1):
                metrics, samples = self._step(step)
                last, best = step == config.run.steps, False
                if last or (config.run.eval_every and step % config.run.eval_every == 0):
                    metrics |= self._evaluate(step)
                    best = self._is_best(metrics)
                self.log.write(step, metrics, samples)
                self.display.step(step, metrics)
                self._heed_the_guards()
                # Read once, since a signal may come between two looks, and at the same step in every process.
                stopping = next(filter(None, hosts.gather(self.stop.reason)), "")
                if last or best or stopping or step % config.run.checkpoint_every == 0:
                    self._save(best)
                self.checkpoints.check()
                if stopping and not last:
                    stands = self._save_between_steps()
                    hosts.barrier()
                    self.display.say(f"stopped {stopping} {stands}")
                    return
                self.stop.release()
            self.checkpoints.wait()
        if hosts.is_main():
            with files.reading(self.workdir / "heldout", "--workdir"):
                done = self._done(time.monotonic() - started)
                summary = _summary(done)
            files.write_json(self.workdir / "done.json", done)
            print(summary)
        hosts.barrier()  # the others may end when the last checkpoint counts

    @contextlib.contextmanager
    def _closing(self):
        """Leaves terminal, logs and the last checkpoint in order."""
        try:
            yield
        finally:
            self.display.close()
            with contextlib.suppress(OSError, TrainingError):  # what could not be written has been said
                self.log.close()
                self.checkpoints.wait()

    # -------------------------------------------------------------------------------------------- one step

    def _step(self, step: int) -> tuple[dict[str, float], list[dict]]:
        started = time.monotonic()
        traced = step == self.config.run.profile_step
        with jax.profiler.trace(self.workdir / "profile") if traced else contextlib.nullcontext():
            if self.config.objective.method == "sft":
                metrics, samples = self._learn_references()
            else:
                metrics, samples = self._learn_rollouts(step)
        metrics |= self.compilations.take()
        metrics["optim/learning_rate"] = float(self.schedule(max(updates_done(self.state.opt_state) - 1, 0)))
        metrics |= {"time/step_s": time.monotonic() - started, "time/checkpoint_s": self.checkpoint_s}
        self.checkpoint_s = 0.0
        return metrics, samples

    def _learn_references(self) -> tuple[dict[str, float], list[dict]]:
        self.display.phase("update")
        batch = self.collector.batches[int(self.state.batches_drawn)]
        target, mask = self.prompts.target_batch(batch.example_id)
        experience = supervised_experience(*put_rows(self.mesh, (batch, target, mask)))
        self.stop.hold()
        self.state, metrics = train_step(self.steps, self.optimizer, self.state, experience)
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._keep_what_was_skipped(metrics, experience, example_id=batch.example_id)
        return metrics, []

    def _learn_rollouts(self, step: int) -> tuple[dict[str, float], list[dict]]:
        clock = Clock(self.display)
        collected = self.collector.collect(self.state.params, int(self.state.batches_drawn), clock)
        with clock.phase("score"):
            teachers, metrics = self.collector.teacher_batches(collected, {"teacher": View()}, {})
            experience, stats, scored = self._score(collected, teachers["teacher"])
            metrics |= {name: float(value) for name, value in jax.device_get(scored).items()}
        self._check_before_update(step, metrics, fetch(experience.keep))
        if not self.views_checked:
            self._check_views(step, collected)
        samples = self._samples(collected, experience, stats)
        self.stop.hold()
        with clock.phase("update"):
            self.state, learned = train_step(self.steps, self.optimizer, self.state, experience, collected.batches)
            metrics |= {name: float(value) for name, value in jax.device_get(learned).items()}
        reward = collected.reward.reshape(-1, self.config.rollout.rollouts)
        self._keep_what_was_skipped(metrics, experience, example_id=collected.prompts.example_id, reward=reward)
        per_s = collected.generated / clock.seconds["time/rollout_s"]
        metrics |= collected.metrics(self.config.rollout.rollouts, self.slots) | {"tokens/generated_per_s": per_s}
        if self.config.objective.method == "dasd":
            metrics[guards.TEACHER_WEIGHT] = self.teacher_weight
        return metrics | clock.seconds, samples

    def _score(self, collected: Collected, teacher: TeacherBatch):
        prompts, teacher, rollouts, reward, in_loss = put_rows(
            self.mesh, (collected.prompts, teacher, collected.rollouts, collected.reward, collected.in_loss)
        )
        weight = replicate(self.mesh, np.float32(self.teacher_weight))
        return score_step(self.steps, self.state.params, prompts, teacher, rollouts, reward, in_loss, weight)

    def _check_views(self, step: int, collected: Collected) -> None:
        """Scores the first rollouts of this process once without privileged context: the views then have to agree.

        A template or a position that differs between them would show at the first token of the response, and train.
        """
        self.views_checked = True
        if self.config.objective.method not in NEEDS_TEACHER:
            return
        group = self.config.rollout.rollouts
        blank = self.prompts.blank_teacher_batch(collected.prompts.example_id, group=group)
        _, stats, _ = self._score(collected, blank)
        gap = np.abs(np.subtract(*fetch((stats.teacher_logp, stats.student_logp)))[:, 0])
        gap = gap[collected.rollouts.response_mask[:, 0]].mean()
        if not gap <= self.config.rollout.logp_gap_mean_max:
            raise TrainingError(
                f"step {step}: without privileged context the teacher is {gap:.4g} nats from the student at the first "
                f"token > rollout.logp_gap_mean_max = {self.config.rollout.logp_gap_mean_max}: the two views differ in "
                "more than the context, nothing was updated. Set model.compute_dtype to float32 in a new --workdir"
            )

    def _check_before_update(self, step: int, metrics: dict[str, float], keep: np.ndarray) -> None:
        """Stops a run whose update would mean nothing.

        Never on the largest gap: one token in thousands may sit on a rounding edge.
        """
        for name, limit in (
            ("policy/logp_gap_mean", self.config.rollout.logp_gap_mean_max),
            ("policy/logp_gap_p999", self.config.rollout.logp_gap_p999_max),
        ):
            if not metrics[name] <= limit:
                raise TrainingError(
                    f"step {step}: {name} is {metrics[name]:.4g} nats > rollout.{name.split('/')[1]}_max = {limit}: "
                    "sampler and score pass disagree, nothing was updated. "
                    "Set model.compute_dtype to float32 in a new --workdir"
                )
        for part in range(self.config.optim.minibatches):
            if not keep[part :: self.config.optim.minibatches].any():
                raise TrainingError(
                    f"step {step}: minibatch {part} has no token in the loss, and nothing was updated. "
                    "Raise rollout.max_new_tokens, or set objective.truncated to zero, in a new --workdir"
                )

    def _warn_of_a_loud_teacher(self) -> None:
        """Says when the teacher's term can outweigh the verifier on a token of a mixed group."""
        objective, group = self.config.objective, self.config.rollout.rollouts
        loudest, smallest = dense_bound(objective), smallest_advantage(group)
        if objective.method == "dasd" and loudest > smallest:
            self.display.say(
                f"warning: the teacher's term reaches {loudest:.3f} and can turn the smallest advantage {smallest:.3f} "
                f"of a mixed group of {group} (rollout.rollouts); look at objective.beta and objective.clip"
            )

    def _keep_what_was_skipped(self, metrics: dict[str, float], experience: Experience, **more: np.ndarray) -> None:
        """Writes what an update that was not finite was made of to not_finite/; the newest stay, as many as count."""
        if not metrics["optim/skipped_frac"]:
            return
        batch = fetch({name: x for name, x in vars(experience).items() if x is not None})
        if not hosts.is_main():
            return
        folder = self.workdir / "not_finite"
        folder.mkdir(exist_ok=True)
        draft = folder / "draft.npz"
        np.savez(draft, **batch, **more)
        draft.rename(folder / f"{int(self.state.step):06d}.npz")
        for old in sorted(folder.glob("*.npz"))[: -self.config.run.skipped_steps_stop]:
            old.unlink()

    def _heed_the_guards(self) -> None:
        """Says what the numbers so far call for, and takes the teacher's weight from it.

        Raises:
            TrainingError: the run must not go on.
        """
        found = guards.judge(self.log.lines, self.config)
        for warning in found.warnings:
            self.display.say(warning)
        if found.stop:
            raise TrainingError(found.stop)
        self.teacher_weight = found.teacher_weight

    def _samples(self, collected: Collected, experience: Experience, stats: TokenStats) -> list[dict]:
        """The first rollouts of the batch, token by token, for samples.jsonl."""
        written, texts = collected.rollouts, collected.texts
        problems, verdicts = collected.problems, collected.verdicts
        arrays = {"entropy": stats.student_entropy, "credit": experience.advantage, "route": experience.route}
        if stats.teacher_logp is not None:
            arrays["gap"] = stats.teacher_logp - stats.student_logp
        count = min(self.config.run.logged_rollouts, len(texts))
        width = written.response.shape[1]
        arrays = {name: x.reshape(-1, width)[:count] for name, x in fetch(arrays).items()}
        samples = []
        for row in range(count):
            keep = written.response_mask[row]
            samples.append(
                {
                    "source": problems[row].source,
                    "question": problems[row].question,
                    "answer": problems[row].answer,
                    "text": texts[row],
                    "reward": verdicts[row].reward,
                    "score": verdicts[row].score,
                    "finished": bool(written.finished[row]),
                    "tokens": [self.tokenizer.piece(int(token)) for token in written.response[row][keep]],
                    **{name: [round(float(v), 5) for v in x[row][keep]] for name, x in arrays.items()},
                }
            )
        return samples

    # -------------------------------------------------------------------------------------------- before and after

    def _with_slots(self, sampling: Sampling, problems: int) -> Sampling:
        return setup.with_slots(
            self.config,
            sampling,
            self.model,
            self.mesh,
            problems=problems,
            resident=bytes_a_device(self.state),
            memory=setup.device_memory(),
        )

    def _save(self, best: bool) -> None:
        self.display.phase("checkpoint")
        started = time.monotonic()
        self.checkpoints.save(self.state, best=best)
        self.saved = int(self.state.step)
        self.checkpoint_s += time.monotonic() - started

    def _save_between_steps(self) -> str:
        """Makes the last step that the log has count; returns in words where the run stands.

        Raises:
            TrainingError: a checkpoint could not be written.
        """
        step = int(self.state.step)
        if step > self.saved:
            self._save(best=False)
        self.checkpoints.wait()
        return f"after step {step}; the same command goes on from here"

    def _evaluate(self, step: int) -> dict[str, float]:
        """Scores the held-out problems, writes heldout/<step>.json and returns the main figures for the log."""
        self.display.phase("evaluate")
        started = time.monotonic()
        config = self.config
        rows = config.rollout.problems * config.rollout.rollouts
        at_a_time = problems_at_a_time(rows, config.run.eval_samples, self.mesh)
        result = evaluate(
            model=self.model,
            params=self.state.params,
            mesh=self.mesh,
            tokenizer=self.tokenizer,
            prompts=self.heldout,
            verifier=self.verifier,
            sampling=self._with_slots(setup.eval_sampling(config, self.tokenizer), at_a_time),
            example_ids=setup.evaluated(config, self.heldout),
            rows=rows,
            seed=config.run.seed,
        )
        if hosts.is_main():
            files.write_json(self.workdir / "heldout" / f"{step}.json", result)
        k = result["samples"]
        self.display.say(
            f"held out after step {step}: avg@{k} {result[f'avg@{k}']:.3f} ± {result['standard_error']:.3f}, "
            f"pass@{k} {result[f'pass@{k}']:.3f}, {result['problems']} problems"
        )
        named = (f"avg@{k}", f"pass@{k}", "standard_error", "length_mean", "truncated_frac", "parse_failure_frac")
        metrics = {f"eval/{name}": result[name] for name in named}
        if config.data.benchmarks:
            parts = {**result["benchmarks"], "macro": result["macro"]}
            averages = {name: figures[f"avg@{k}"] for name, figures in parts.items()}
            self.display.say("    " + ", ".join(f"{name} {average:.3f}" for name, average in averages.items()))
            metrics |= {f"eval/{name}/avg@{k}": average for name, average in averages.items()}
        return metrics | {"time/eval_s": time.monotonic() - started}

    def _is_best(self, metrics: dict[str, float]) -> bool:
        """Whether no earlier evaluation of this run, after at least one step, had as high an average."""
        name = f"eval/{'macro/' if self.config.data.benchmarks else ''}avg@{self.config.run.eval_samples}"
        earlier = [line[name] for line in self.log.lines if line["step"] > 0 and name in line]
        return all(metrics[name] > value for value in earlier)

    def _done(self, seconds: float) -> dict:
        """What the run came to, from what lies in the workdir."""
        before, after = (
            formats.read_object(self.workdir / "heldout" / f"{step}.json") for step in (0, self.config.run.steps)
        )
        k = after["samples"]
        change, error = rise(before, after)
        lines = [line for line in self.log.lines if line["step"] > 0]
        watched = (
            "router/rows_off_frac", "router/attract_mass", "router/repel_mass", "credit/dense_abs_mean",
            "credit/verifier_abs_mean", "entropy/mean", "reward/mean",
        )  # fmt: skip
        return {
            "workdir": str(self.workdir),
            "steps": self.config.run.steps,
            "method": self.config.objective.method,
            "beta": self.config.objective.beta,
            "heldout": {
                f"avg@{k}": [before[f"avg@{k}"], after[f"avg@{k}"]],
                f"pass@{k}": [before[f"pass@{k}"], after[f"pass@{k}"]],
                f"macro_avg@{k}": [before["macro"][f"avg@{k}"], after["macro"][f"avg@{k}"]],
                "standard_error": [before["standard_error"], after["standard_error"]],
                "rise": change,
                "rise_standard_error": error,
                "problems": after["problems"],
            },
            "mean_over_steps": {
                name: float(np.mean([line[name] for line in lines if name in line]))
                for name in watched
                if any(name in line for line in lines)
            },
            "seconds_this_session": seconds,
            "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }


# ------------------------------------------------------------------------------------------------ small parts


@contextlib.contextmanager
def _writing(workdir: Path):
    """Says in one line which file could not be written.

    Raises:
        TrainingError: of the system's errors.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise TrainingError(
            f"{error.filename or workdir}: {error.strerror or error}: expected files that can be read, and room and "
            "permission to write. The same command goes on from the last checkpoint"
        ) from error


_SHARED_WITHIN_S = 30  # a mounted bucket shows new files late

# What may change between two starts of the same run: where and how it is computed, exact to the bit on the same mesh.
_OPERATIONAL = {
    "mesh.data", "mesh.fsdp", "mesh.tensor", "rollout.verifier_workers", "rollout.verifier_memory_mb",
    "run.checkpoint_every", "run.keep_checkpoints", "run.keep_every", "run.grace_s", "run.profile_step",
}.union(guards.LEVELS)  # fmt: skip


def _check_workdir(config: Config, workdir: Path) -> None:
    """Refuses a folder that cannot be written or belongs to another config.

    Raises:
        UserError: saying why, or naming the first field that differs.
    """
    files.check_writable(workdir, "--workdir")
    path = workdir / "config.json"
    if not path.exists():
        return
    with files.reading(path, "--workdir"):
        theirs = formats.read_object(path)
    for group, fields in json.loads(json.dumps(dataclasses.asdict(config))).items():
        for name, value in fields.items():
            with files.reading(path, "--workdir"):
                other = theirs.get(group, {}).get(name)
            if other != value and f"{group}.{name}" not in _OPERATIONAL:
                raise UserError(
                    f"--workdir: {workdir} belongs to a run with {group}.{name} = {other!r}, not {value!r}: "
                    "expected the same config, or another --workdir"
                )


def _check_shared(path: Path) -> None:
    """Refuses a workdir of which this process does not see what process 0 has written or found.

    Raises:
        UserError: it is not there.
    """
    until = time.monotonic() + _SHARED_WITHIN_S
    while not path.exists():
        if time.monotonic() > until:
            raise UserError(
                f"--workdir: process {jax.process_index()} does not see {path}, which process 0 does: "
                "expected a folder that all hosts share"
            )
        time.sleep(0.5)


def _summary(done: dict) -> str:
    held = done["heldout"]
    average = next(name for name in held if name.startswith("avg@"))
    passed = next(name for name in held if name.startswith("pass@"))
    error = held["rise_standard_error"]
    errors = f"{held['rise'] / error:.1f} standard errors" if error else "no spread"
    lines = [
        f"held-out {average}: {held[average][0]:.3f} ± {held['standard_error'][0]:.3f} before, "
        f"{held[average][1]:.3f} ± {held['standard_error'][1]:.3f} after, {held['problems']} problems",
        f"rise: {held['rise']:+.3f} ± {held['rise_standard_error']:.3f}, {errors} by problem",
        f"held-out {passed}: {held[passed][0]:.3f} before, {held[passed][1]:.3f} after",
        "means over the run: " + ", ".join(f"{name} {value:.4g}" for name, value in done["mean_over_steps"].items()),
        f"{done['seconds_this_session'] / 60:.1f} min, peak memory {done['peak_memory_gib']:.1f} GiB",
        f"the run lies in {done['workdir']}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
