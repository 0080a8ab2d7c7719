"""What a command needs before it can start, beside the model: the problems, the sampling, the compiled steps."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from dasd_jax import hosts
from dasd_jax.config import Config, DataGroup
from dasd_jax.data import contexts, skills
from dasd_jax.data.duplicates import normalise, twins
from dasd_jax.data.heldout import split_heldout
from dasd_jax.data.pipeline import PromptSet, PromptText
from dasd_jax.data.sources import Problem, load_benchmarks, load_problems, verifier_of
from dasd_jax.errors import UserError
from dasd_jax.learner.step_config import StepConfig
from dasd_jax.mesh import row_shards
from dasd_jax.model.config import ModelConfig
from dasd_jax.objective.contract import NOISE, Method, Shape
from dasd_jax.objective.correction import Correction
from dasd_jax.objective.surrogate import ClipRange
from dasd_jax.rollout.sampler import Sampling
from dasd_jax.rollout.slots import bytes_a_device, slots_that_fit
from dasd_jax.text.token_tables import TABLES
from dasd_jax.text.tokenizer import Tokenizer
from dasd_jax.verify import shipped

# Tokens of which shorter widths are multiples: a CPU gains from shorter ones than the lanes of a TPU allow.
_CPU_WIDTH_TILE = 32


def open_problems(config: Config) -> tuple[list[Problem], list[Problem], dict[str, int]]:
    """(training problems, problems to evaluate, counts of what was read and left out), shots among the former.

    The second are the benchmarks', or those held out of the sources: neither they nor their twins are among the first.

    Raises:
        UserError: sources or benchmarks that cannot be read, or too few problems in them.
    """
    return of_data(config.data)


def of_data(data: DataGroup) -> tuple[list[Problem], list[Problem], dict[str, int]]:
    """`open_problems` of what alone decides them, which may be another run's.

    Raises:
        UserError: as there.
    """
    problems, counts = load_problems(data.sources, data.verifier)
    benchmarks = load_benchmarks(data.benchmarks, data.verifier)
    check_references([*problems, *benchmarks])
    named = [verifier_of(spec) for spec in (*data.sources, *data.benchmarks)]
    if data.verifier and all(named):
        raise UserError(
            f"data.verifier: {data.verifier!r}: has no effect: every source sets verifier= itself "
            f"({', '.join(sorted(set(named)))}): expected a source that does not, or no data.verifier"
        )
    if benchmarks:
        same = {"in a benchmark": normalise, "in a benchmark but for the order of their numbers": twins}
        for what, key in same.items():
            asked = {key(problem.question) for problem in benchmarks}
            unasked = [problem for problem in problems if key(problem.question) not in asked]
            counts[what] = len(problems) - len(unasked)
            problems = unasked
        if not problems:
            raise UserError("data.sources: all of their problems are in data.benchmarks: expected others to train on")
    train, heldout = split_heldout(problems, data.heldout)
    if data.shots >= len(train):
        raise UserError(f"data.shots: {data.shots}: expected fewer than the {len(train)} training problems")
    if benchmarks and heldout:
        counts["held out and not evaluated"] = len(heldout)
    return train, benchmarks or heldout, counts


def check_references(problems: Iterable[Problem]) -> None:
    """Refuses references that their problems' verifiers cannot judge answers by.

    Raises:
        UserError: naming the first.
    """
    for problem in problems:
        if expected := shipped.unfit(problem.scorer, problem.answer):
            raise UserError(
                f"data.verifier: {problem.scorer!r}: the answer {problem.answer!r:.100} of problem {problem.index} of "
                f"{problem.source!r}: expected {expected}"
            )


def prompt_text(config: Config, train: list[Problem]) -> PromptText:
    """What stands around each problem; the first training problems are the shots."""
    return PromptText(
        instruction=config.data.instruction,
        sources=config.data.sources,
        privileged=config.data.privileged,
        enable_thinking=config.data.enable_thinking,
        shots=tuple(train[: config.data.shots]),
        now=config.data.moment,
        system=config.data.system,
        privileged_wording=config.data.privileged_wording,
        transition=config.data.transition,
    )


def open_prompts(config: Config, tokenizer: Tokenizer) -> tuple[PromptSet, PromptSet, dict[str, int]]:
    """Training problems and those to evaluate, tokenised.

    Returns:
        (training without the shots, to evaluate, counts of what was read and left out before tokenising).

    Raises:
        UserError: sources that cannot be read, or nothing that fits.
    """
    train, heldout, counts = open_problems(config)
    text = prompt_text(config, train)
    for context in ["", *(view.context for view in config.method.views(config.hp).values())]:
        text.check_worded(context)
    trained_on = train[config.data.shots :]
    if not config.method.rollouts:
        every = [each for problem in trained_on for each in problem.by_response()]
        if len(every) > len(trained_on):
            counts["further responses"] = len(every) - len(trained_on)
        trained_on = every
    train_set = PromptSet(
        trained_on,
        tokenizer,
        text,
        student_width=config.rollout.prompt_length,
        teacher_width=config.rollout.teacher_prompt_length,
        target_width=0 if config.method.rollouts else config.rollout.max_new_tokens,
    )
    for view in config.method.views(config.hp).values():
        train_set.check_context(view.context)
        if view.context == contexts.SKILLS:
            counts |= _retrieve(config, train_set, heldout, view.count)
        elif view.context == contexts.PARTIAL:
            segments = [len(contexts.segment_ends(problem.solution.strip())) for problem in train_set.problems]
            counts["with a solution of one segment, shown whole or not at all"] = segments.count(1)
    heldout_set = _evaluation_set(config, heldout, tokenizer, text)
    return train_set, heldout_set, counts


def _retrieve(config: Config, train_set: PromptSet, heldout: list[Problem], count: int) -> dict[str, int]:
    """Chooses what teachers are shown of data.skills, and counts what is left out of it."""
    bank, evaluated = skills.read(config.data.skills), {twins(problem.question) for problem in heldout}
    others = bank.only(lambda item: item.source not in evaluated)
    return {
        "texts of data.skills learnt from problems to evaluate": len(bank.items) - len(others.items),
        "texts of data.skills that fit no prompt": train_set.retrieve(others, count),
    }


def open_evaluation(config: Config, tokenizer: Tokenizer, own: Sequence[str] | None = None) -> PromptSet:
    """The problems to evaluate, tokenised.

    Benchmarks without shots need no training source: another machine may evaluate what this one trains.

    Args:
        own: data.benchmarks of the run whose model answers; None: those of the config.

    Raises:
        UserError: sources or benchmarks that cannot be read, or nothing that fits.
    """
    train, asked = problems_to_evaluate(config, own)
    return _evaluation_set(config, asked, tokenizer, prompt_text(config, train))


def problems_to_evaluate(config: Config, own: Sequence[str] | None = None) -> tuple[list[Problem], list[Problem]]:
    """The problems of which the first are the shots, as `problems_with_shots`, and those that an evaluation may ask.

    Raises:
        UserError: as `open_evaluation`.
    """
    if config.data.benchmarks:
        asked = load_benchmarks(config.data.benchmarks, config.data.verifier)
        check_references(asked)
        return problems_with_shots(config, own), asked
    train, asked, _ = open_problems(config)
    return problems_with_shots(config, own) if own else train, asked


def problems_with_shots(config: Config, own: Sequence[str] | None) -> list[Problem]:
    """The training problems of the run whose model answers, in whose prompts the first are shots; empty without shots.

    Other benchmarks than the run's would leave other problems for training, and others would be the first.

    Args:
        own: as for `open_evaluation`.

    Raises:
        UserError: sources or benchmarks that cannot be read.
    """
    if not config.data.shots:
        return []
    benchmarks = config.data.benchmarks if own is None else tuple(own)
    return of_data(dataclasses.replace(config.data, benchmarks=benchmarks))[0]


def _evaluation_set(config: Config, problems: list[Problem], tokenizer: Tokenizer, text: PromptText) -> PromptSet:
    # Every method is held to the same problems, whatever it shows its teacher.
    field = "data.benchmarks" if config.data.benchmarks else "data.sources"
    prompts = PromptSet(problems, tokenizer, text, student_width=config.rollout.prompt_length, field=field)
    shown = {twins(shot.question) for shot in text.shots}  # other benchmarks than the run's may hold one
    if same := sum(twins(problem.question) in shown for problem in prompts.problems if shown):
        prompts.counts["shown with their answers in every prompt (data.shots)"] = same
    left = {problem.source for problem in prompts.problems}
    for spec in config.data.benchmarks:
        if spec not in left:
            raise UserError(f"data.benchmarks: {spec!r}: no problem fits rollout.prompt_length: expected at least one")
    return prompts


def evaluated(config: Config, prompts: PromptSet) -> list[int]:
    """The example ids that an evaluation answers: the first `run.eval_problems` of each benchmark, or of all."""
    limit = config.run.eval_problems or len(prompts)
    taken: Counter[str] = Counter()
    chosen = []
    for example_id, problem in enumerate(prompts.problems):
        group = problem.source if config.data.benchmarks else ""
        if taken[group] < limit:
            taken[group] += 1
            chosen.append(example_id)
    return chosen


def check_rows(config: Config, mesh: Mesh) -> None:
    """Refuses batches whose parts the mesh cannot split evenly.

    Raises:
        UserError: naming the field.
    """
    problems, devices = config.rollout.problems, row_shards(mesh)
    if problems % devices:
        raise UserError(
            f"rollout.problems: {problems}: expected a multiple of the {devices} devices along mesh.data and mesh.fsdp"
        )
    rollouts, each, parts = config.rollouts, config.optim.minibatches, config.optim.microbatches
    if problems * rollouts % (each * parts * devices):
        raise UserError(
            f"optim.microbatches: {parts} part(s) of {problems} × {rollouts} / {each} responses: expected each to be a "
            f"multiple of the {devices} devices along mesh.data and mesh.fsdp"
        )


def knobs(config: Config, lines: Sequence[dict], step: int, teacher_weight: float = 1.0) -> dict[str, float]:
    """The scalars that the method is handed in a step.

    Args:
        lines: the objects of metrics.jsonl, of the steps before it.
        teacher_weight: the share of the teacher's part, as the guards have it.
    """
    noise = next((line[NOISE] for line in reversed(lines) if NOISE in line), 0.0)
    seed = float(config.run.seed % 2**24)  # larger ones may be the same in float32
    given = {"step": float(step), "seed": seed, "noise": noise, "teacher_weight": teacher_weight}
    return given | config.method.memory(lines, config.hp)


def token_tables(method: Method, tokenizer: Tokenizer, model: ModelConfig) -> dict[str, np.ndarray]:
    """What the method reads of the vocabulary, [V] by name; ids that the tokenizer does not have are 0 or False."""
    made = {name: TABLES[name](tokenizer) for name in method.tables}
    return {name: np.pad(table, (0, model.vocab_size - len(table))) for name, table in made.items()}


def training_sampling(config: Config, tokenizer: Tokenizer) -> Sampling:
    """How rollouts are sampled."""
    group = config.rollout
    return Sampling(
        rollouts=group.rollouts,
        max_new_tokens=group.max_new_tokens,
        stop_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_id,
        temperature=group.temperature,
        top_k=group.top_k,
        top_p=group.top_p,
        slots=group.slots,
        weights=group.weights,
        cache=group.cache,
    )


def eval_sampling(config: Config, tokenizer: Tokenizer) -> Sampling:
    """How held-out problems are answered: never in int8, so that figures are of the policy that is trained."""
    return dataclasses.replace(
        training_sampling(config, tokenizer),
        rollouts=config.run.eval_samples,
        temperature=config.run.eval_temperature,
        top_k=config.run.eval_top_k,
        top_p=config.run.eval_top_p,
        weights="compute",
        cache="compute",
    )


def with_slots(
    config: Config,
    sampling: Sampling,
    model: ModelConfig,
    mesh: Mesh,
    *,
    problems: int,
    resident: int,
    memory: int | None,
) -> Sampling:
    """The same with as many slots as fit beside what is resident, unless `rollout.slots` says how many.

    Args:
        problems: that are answered at a time.
        resident: bytes a device that parameters and optimiser state take.
        memory: bytes of a device; None where it has no limit of its own: a slot for every row.

    Raises:
        UserError: not one fits.
    """
    if sampling.slots or memory is None:
        return sampling
    slots = slots_that_fit(
        model,
        sampling,
        mesh,
        memory=memory,
        resident=resident,
        problems=problems,
        prompt_width=config.rollout.prompt_length,
    )
    return dataclasses.replace(sampling, slots=slots)


def with_free_slots(
    config: Config, sampling: Sampling, model: ModelConfig, mesh: Mesh, problems: int, beside
) -> Sampling:
    """`with_slots` on the devices of this process, beside a tree of arrays that is on them.

    Raises:
        UserError: as there.
    """
    resident, memory = bytes_a_device(beside), device_memory()
    return with_slots(config, sampling, model, mesh, problems=problems, resident=resident, memory=memory)


def device_memory() -> int | None:
    """Bytes of any device that its process may use, at least; None where the platform sets no limit, as on a CPU."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    limits = [each["bytes_limit"] for each in stats if "bytes_limit" in each]
    return min((limit for each in hosts.gather(limits) for limit in each), default=None)


def step_config(config: Config, model: ModelConfig, mesh: Mesh) -> StepConfig:
    """What the steps are compiled for."""
    group = config.rollout
    return StepConfig(
        model=model,
        method=config.method,
        hp=config.hp,
        shape=Shape(config.rollouts, config.optim.minibatches, group.max_new_tokens),
        clip=ClipRange(config.objective.clip_low, config.objective.clip_high, config.objective.clip_dual),
        correction=Correction(config.objective.tis, config.objective.row_ratio_max),
        temperature=group.temperature,
        microbatches=config.optim.microbatches,
        token_chunk=config.objective.token_chunk,
        row_shards=row_shards(mesh),
        width_tile=_CPU_WIDTH_TILE if _is_cpu(mesh) else StepConfig.width_tile,
    )


def _is_cpu(mesh: Mesh) -> bool:
    """False for the mesh of a slice that is described and not here, which has no devices."""
    return isinstance(mesh, Mesh) and mesh.devices.flat[0].platform == "cpu"
