"""The parts of one training run, opened or resumed; mistakes of the user are found here, before the first step."""

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import optax

from dasd_jax import files, hosts, recorded
from dasd_jax.batch import Array, TrainState
from dasd_jax.config import Config
from dasd_jax.data.pipeline import PromptSet
from dasd_jax.data.verifiers import is_own
from dasd_jax.errors import UserError
from dasd_jax.learner import checkpoint, kept
from dasd_jax.learner.optim import make_optimizer, make_schedule, updates_done
from dasd_jax.learner.step_config import StepConfig
from dasd_jax.mesh import replicate, row_shards
from dasd_jax.model.config import ModelConfig
from dasd_jax.model.param_table import num_params
from dasd_jax.objective.surrogate import plain
from dasd_jax.recorded import Change
from dasd_jax.rollout.sampler import Sampling
from dasd_jax.run import (
    changes,
    compiled,
    counts,
    guards,
    models,
    origin,
    records,
    seen,
    setup,
    trackers,
    user_files,
    workdir,
)
from dasd_jax.run.collect import Collector
from dasd_jax.run.display import Compilations, Display
from dasd_jax.run.failures import Failures
from dasd_jax.run.origin import Origin
from dasd_jax.run.runlog import RunLog
from dasd_jax.run.stopping import StopRequest
from dasd_jax.text.tokenizer import Tokenizer
from dasd_jax.verify.journal import Journal
from dasd_jax.verify.verifier import Verifier


@dataclasses.dataclass
class Run:
    """The parts; the loop in train.py moves them."""

    config: Config
    workdir: Path
    mesh: jax.sharding.Mesh
    verifier: Verifier
    stop: StopRequest
    tokenizer: Tokenizer
    prompts: PromptSet
    heldout: PromptSet
    model: ModelConfig
    state: TrainState
    steps: StepConfig
    tables: dict[str, Array]  # of Method.tables
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    collector: Collector
    checkpoints: checkpoint.Writer
    log: RunLog
    display: Display
    compilations: Compilations
    failures: Failures
    slots: int  # rows that a device decodes at a time
    saved: int  # the step that the newest checkpoint is of
    teacher_weight: float  # the share of the teacher's part in the next step
    evaluated_since: int  # the step since whose end held-out problems have been answered as now
    views_checked: bool = False
    started: float = dataclasses.field(default_factory=time.monotonic)  # of this process
    saved_at: float = dataclasses.field(default_factory=time.monotonic)  # when the newest checkpoint was, or the start
    checkpoint_s: float = 0.0  # that the loop has waited for checkpoints since the last line of the log

    @property
    def step(self) -> int:
        """The last finished one."""
        return int(self.state.step)

    def with_slots(self, sampling: Sampling, problems: int) -> Sampling:
        """The same with as many slots as fit beside the training state."""
        return setup.with_free_slots(self.config, sampling, self.model, self.mesh, problems, self.state)

    def knobs(self, step: int) -> dict[str, float]:
        """The scalars that the method is handed in a step."""
        return setup.knobs(self.config, self.log.lines, step, self.teacher_weight)

    def on_devices(self, knobs: dict[str, float]) -> dict[str, Array]:
        """The same as arrays: they may change from step to step without another compilation."""
        return replicate(self.mesh, {name: np.float32(value) for name, value in knobs.items()})


def start(
    config: Config,
    folder: Path,
    mesh: jax.sharding.Mesh,
    verifier: Verifier,
    stop: StopRequest,
    asked: Sequence[Change] = (),
    started_from: Origin | None = None,
) -> Run:
    """Opens data and model, then the workdir, and says what the run is.

    Args:
        asked: what the config changes in the run that the workdir holds.
        started_from: another run's checkpoint that this run starts from.

    Raises:
        UserError: anything in the config, the data, the weights or the workdir that the user has to correct.
    """
    setup.check_rows(config, mesh)
    tokenizer = models.open_tokenizer(config.model)
    prompts, heldout, read = setup.open_prompts(config, tokenizer)
    mine = user_files.of(config)
    problems = user_files.of_problems(prompts, heldout)
    hosts.check_same(lambda: {"data.sources": problems, "data.verifier": mine})
    theirs = hosts.from_main(lambda: recorded.read(folder)) or {}
    user_files.check_problems(problems, theirs, folder)
    verifier.probe([*prompts.problems, *heldout.problems])
    compilations = Compilations()
    planned = config.run.steps * config.optim.minibatches
    optimizer = make_optimizer(config.optim, planned)
    views = config.method.views(config.hp)

    found = hosts.from_main(lambda: str(kept.latest(folder, set_aside=True) or ""))
    resumed, said = Path(found) if found else None, ""
    pinned = config if resumed else models.pinned(config, folder)
    begun = models.begun(folder) if resumed else models.as_begun(config, pinned, None)
    if resumed:
        workdir.check_shared(resumed / "manifest.json")
        workdir.check_steps(folder, config.run.steps, int(resumed.name))
        if not kept.goes_on(resumed):
            raise UserError(
                f"--workdir: {folder} holds a run whose optimiser was not kept (run.keep_optimizer) and cannot go on: "
                f"a new run starts from its weights: the same command with --workdir={folder}-2 --from={folder}"
            )
        models.check_tokenizer(tokenizer, resumed, "--workdir")
        model, state = checkpoint.restore(resumed, mesh, optimizer, views)
        model = models.configured(config, model)
    elif started_from:
        model, state, said = origin.load(started_from, config, mesh, optimizer, problems)
        models.check_tokenizer(tokenizer, started_from.folder, "--from")
    else:
        model, params = models.open_model(pinned, mesh)
        begun = models.as_begun(config, pinned, params)
        state = jax.jit(lambda p: checkpoint.new_state(p, optimizer, views), donate_argnums=0)(params)
    models.check_vocabulary(tokenizer, model)
    sampling = setup.training_sampling(config, tokenizer)
    sampling = setup.with_free_slots(config, sampling, model, mesh, config.rollout.problems, state)
    memory = {"rollout.verifier_memory_mb": str(config.rollout.verifier_memory_mb)}
    journal = Journal(folder / "verdicts.jsonl", verifier, mine | memory)
    rows = config.rollout.problems * config.rollout.rollouts // row_shards(mesh)

    if not resumed and hosts.from_main(lambda: (folder / "done.json").exists()):
        raise UserError(f"--workdir: {folder} holds a finished run without checkpoints: expected another --workdir")
    changed = _changed(config, folder, state, asked) if resumed else []
    last = int(state.step) if resumed else -1
    if hosts.is_main():
        # First: a run with this file is finished.
        (folder / "done.json").unlink(missing_ok=True)
        if started_from:
            origin.write(folder, started_from)
        changes.write(folder, changed)
        files.write_json(folder / "config.json", user_files.as_written(config, mine, problems, begun))
        workdir.forget_evaluations(folder, last)
    hosts.barrier()
    workdir.check_shared(folder / "config.json")
    begins_again = not resumed and (folder / "metrics.jsonl").exists()
    room = config.run.samples_mb * 2**20 / config.run.steps if config.run.samples_mb else math.inf
    display = Display(config.run.steps, int(state.step), config.run.eval_every)
    differently = any(line["step"] > last for line in changed) if resumed else bool(asked)
    tracker = trackers.start(config, folder, display.say, last, differently)
    log = RunLog(folder, last, samples_a_step=room, tracker=tracker)
    run = Run(
        config=config,
        workdir=folder,
        mesh=mesh,
        verifier=verifier,
        stop=stop,
        tokenizer=tokenizer,
        prompts=prompts,
        heldout=heldout,
        model=model,
        state=state,
        steps=setup.step_config(config, model, mesh),
        tables=replicate(mesh, setup.token_tables(config.method, tokenizer, model)),
        optimizer=optimizer,
        schedule=make_schedule(config.optim, planned),
        collector=Collector(config, mesh, model, tokenizer, sampling, prompts, journal),
        checkpoints=checkpoint.Writer(
            folder,
            model,
            keep=config.run.keep_checkpoints,
            keep_every=config.run.keep_every,
            finished=int(state.step),
            beside=models.tokenizer_files(config.model),
        ),
        log=log,
        display=display,
        compilations=compilations,
        failures=Failures(display.say),
        slots=sampling.slots_of(rows),
        saved=int(state.step),
        teacher_weight=guards.judge(log.lines, config).teacher_weight,
        evaluated_since=records.evaluated_alike_from(changed),
    )
    _introduce(run, read, rows)
    if resumed:
        run.display.say(f"resumed from {resumed}")
        for note in _notes(run, changed):
            run.display.say(note)
    elif begins_again:
        run.display.say("no checkpoint is complete: the run starts over")
    if said:
        run.display.say(said)
    return run


def _changed(config: Config, folder: Path, state: TrainState, asked: Sequence[Change]) -> list[dict]:
    """The lines of changes.jsonl of a run that goes on from `state`."""
    lines, step = hosts.from_main(lambda: changes.read(folder)), int(state.step)
    found = changes.after(lines, step, asked, config, updates_done(state.opt_state))
    return changes.until(lines, step) + changes.as_lines(found, step)


def _notes(run: Run, changed: list[dict]) -> Iterator[str]:
    """What is said of the changes that count from the next step on."""
    new = {line["field"]: line for line in changed if line["step"] > run.step}
    for line in new.values():
        yield changes.as_text(line)
    if "run.steps" in new and changes.RATE not in new:
        yield f"the learning rate stays {changes.rate(run.config, updates_done(run.state.opt_state)):.4g}"
    if new.keys() & recorded.EVALUATION:
        yield "held-out problems are evaluated again: earlier evaluations are not compared with those from here on"


def _introduce(run: Run, read: dict[str, int], rows: int) -> None:
    config, say = run.config, run.display.say
    say(
        f"{num_params(run.model) / 1e6:.1f} M parameters on {run.mesh.size} {jax.devices()[0].platform} device(s), "
        f"method {config.objective.method}, workdir {run.workdir}"
    )
    for line in counts.lines(config, run.heldout, run.prompts, read):
        say(line)
    if hosts.is_main():
        for line in seen.lines(config, run.heldout, run.workdir, itself=False):
            say(line)
    if kept := compiled.kept_in():
        say(f"compiled programs: {kept}")
    if config.method.rollouts:
        derived = not config.rollout.slots and setup.device_memory() is not None
        say(f"slots: {run.slots} of {rows} rows a device" + (", derived from the free memory" if derived else ""))
        if config.rollout.in_int8 and not config.objective.tis:
            say(
                "warning: rollouts are in int8 and objective.tis is 0: tokens are trained on as if the policy itself "
                "had drawn them; objective.tis=2 corrects this by truncated importance sampling"
            )
    if (every := max((view.every for view in run.steps.views.values()), default=0)) > config.run.steps:
        say(
            f"warning: the teacher's weights are copied every {every} steps, and run.steps is {config.run.steps}: "
            "they stay those of the start"
        )
    if config.guards.on_collapse == "anneal" and not config.method.anneals:
        say(
            f"warning: guards.on_collapse = anneal is the same as stop for method {config.objective.method}: it has no "
            "term of a teacher beside a verifier's whose weight could fall"
        )
    if config.method.surrogate is plain and not config.method.divergence(config.hp) and config.optim.minibatches > 1:
        say(
            f"warning: optim.minibatches = {config.optim.minibatches}: without a ratio the gradient of method "
            f"{config.objective.method} is exact only in the first minibatch"
        )
    graded = bool(config.objective.overlong_tokens) or any(is_own(problem.scorer) for problem in run.prompts.problems)
    if notice := config.method.notice(config.hp, config.rollout.rollouts, graded):
        say(notice)
