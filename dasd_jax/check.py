"""Looks at a run before it starts: python -m dasd_jax.check --config=… [--topology=v5e:4x4]

Loads the problems, the tokenizer and the headers of the weights, and prints what the model and its teachers will read,
which problems are left out and why, the memory that can be counted without compiling, and how much the run samples,
scores and trains at most. Reward functions of your own are called once. Exit code 2 with one line for the first problem
that has to be fixed. Nothing is written.

With --topology the run is meant for that slice of TPU chips: weights and problems that are not on this machine are
named and not checked.
"""

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from dasd_jax import cli
from dasd_jax.config import Config
from dasd_jax.cost.chips import slice_of
from dasd_jax.data import contexts, verifiers
from dasd_jax.data.pipeline import PromptSet
from dasd_jax.data.sources import Problem, absent
from dasd_jax.errors import UserError
from dasd_jax.mesh import abstract_mesh, make_mesh
from dasd_jax.model.config import ModelConfig
from dasd_jax.model.param_table import num_params
from dasd_jax.model.presets import preset
from dasd_jax.objective.contract import View
from dasd_jax.run import counts, models, seen, setup, user_files
from dasd_jax.run.estimate import estimate
from dasd_jax.run.programs import programs
from dasd_jax.text.shown import shown
from dasd_jax.text.spans import spelled
from dasd_jax.text.tokenizer import Tokenizer
from dasd_jax.verify.verifier import Verifier

_FIRST, _LAST = 200, 100  # tokens of a long prompt that are printed
_MISSING = "no context: it is missing or does not fit; the teacher reads the student's prompt"


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the run is meant for: this machine, or a slice of which only the size is known.

    Attributes:
        limit: bytes of a device from which slots are derived; None: it sets none.
        memory: bytes of a device that there are.
        away: it is not this machine.
    """

    words: str
    mesh: Mesh | AbstractMesh
    platform: str
    limit: int | None
    memory: int
    away: bool


def main(argv: list[str]) -> None:
    """The command."""
    flags = cli.parser(__doc__)
    flags.add_argument("--topology", default="", metavar="v5e:4x4", help="a slice of TPU chips that the run is for")
    command = cli.parse(flags, argv)
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal's encoding may lack what a problem holds
    machine = open_machine(command.config, command.flags.topology)
    print(f"{command.flags.config}, method {command.config.objective.method}, on {machine.words}")
    under = jax.sharding.use_abstract_mesh if machine.away else jax.set_mesh
    with under(machine.mesh):
        check(command.config, machine)


def open_machine(config: Config, topology: str) -> Machine:
    """The machine that a topology names, or else this one.

    Raises:
        UserError: there is no such slice, or the mesh does not fit its devices.
    """
    if topology:
        jax.config.update("jax_platforms", "cpu")  # nothing is computed, and no chip of this machine is needed
        chip, count = slice_of(topology)
        mesh = abstract_mesh(config.mesh, count)
        return Machine(f"{topology}, {count} chip(s)", mesh, "tpu", chip.hbm, chip.hbm, away=True)
    devices, limit = jax.devices(), setup.device_memory()
    # Without a limit of their own the devices share the memory of the machine.
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    words = f"this machine, {len(devices)} {devices[0].platform} device(s)"
    return Machine(words, make_mesh(config.mesh), devices[0].platform, limit, limit or whole, away=False)


def check(config: Config, machine: Machine) -> None:
    """Prints all of it, under the mesh of the machine.

    Raises:
        UserError: the first problem that has to be fixed.
    """
    setup.check_rows(config, machine.mesh)
    model = open_architecture(config, machine)
    tokenizer = open_tokenizer(config, machine)
    if model and tokenizer:
        models.check_vocabulary(tokenizer, model)
    evaluated = show_problems(config, machine, model, tokenizer)
    if model:
        show_memory(config, machine, model)
    show_amounts(config, evaluated)


def open_architecture(config: Config, machine: Machine) -> ModelConfig | None:
    """The architecture, of the headers of the weights or of the preset; None where neither is known.

    Raises:
        UserError: the weights are damaged, missing here or not what the config says, or its context is too short.
    """
    group = config.model
    if group.weights == "random":
        model, found = preset(group.preset), "random"
    elif _missing(group.weights, machine):
        model, found = preset(group.preset) if group.preset else None, ""
    else:
        model, found = models.read_architecture(config), group.weights
    if model:
        parameters = f"{num_params(model) / 1e6:,.1f} M parameters"
        print(f"weights: {found or 'those of ' + group.preset}, {parameters}, context {model.context:,} tokens")
    if not found:
        reason = f"{group.weights} is not on this machine" if group.weights else "model.weights is empty"
        print(f"not checked: the weights{'' if model else ', memory and context'}: {reason}")
    return models.configured(config, model, machine.platform) if model else None


def open_tokenizer(config: Config, machine: Machine) -> Tokenizer | None:
    """The tokenizer, or None where there is none to try.

    Raises:
        UserError: it is damaged or missing here.
    """
    group = config.model
    if group.tokenizer:
        group = dataclasses.replace(group, weights="random")  # which the tokenizer is not beside
    path = group.tokenizer or group.weights
    if path not in ("byte", "random") and _missing(path, machine):
        print(f"not checked: the tokenizer: {path + ' is not on this machine' if path else 'model.weights is empty'}")
        return None
    return models.open_tokenizer(group)


def _missing(path: str, machine: Machine) -> bool:
    """Whether a file is not here and need not be: none is named, or it may be where the run will be."""
    return not path or (machine.away and not os.path.exists(Path(path).expanduser()))


# ---------------------------------------------------------------------------------------------------- prompts


def show_problems(config: Config, machine: Machine, model: ModelConfig | None, tokenizer: Tokenizer | None) -> int:
    """Prints counts, lengths and a first prompt of each kind; returns how many problems an evaluation has, at most.

    That is 0 where it is all of them and they are not here to be counted.

    Raises:
        UserError: problems that cannot be read, or too few that fit.
    """
    data, elsewhere = config.data, []
    asked = config.run.eval_problems * max(1, len(data.benchmarks))
    if machine.away:
        elsewhere = absent(data.sources) + absent(data.benchmarks, "data.benchmarks")
        elsewhere += [path for path in user_files.banks(config) if _missing(path, machine)]
    if elsewhere:
        print(f"not checked: problems and prompts: not on this machine: {', '.join(elsewhere)}")
        return asked
    if tokenizer is None:
        problems, heldout, read = setup.open_problems(config)
        try_rewards(config, [*problems, *heldout])
        print(f"problems: {counts.listed(read)}; not checked: their prompts, without a tokenizer")
        return min(asked or len(heldout), len(heldout))
    train, heldout, read = setup.open_prompts(config, tokenizer)
    try_rewards(config, [*train.problems, *heldout.problems])
    learnt = seen.lines(config, heldout, seen.of_weights(config.model.weights), itself=True)
    print(*counts.lines(config, heldout, train, read), *learnt, sep="\n")
    limits = {
        "student prompt": ("rollout.prompt_length", config.rollout.prompt_length),
        "teacher prompt": ("rollout.teacher_prompt_length", config.rollout.teacher_prompt_length),
        "reference response": ("rollout.max_new_tokens", config.rollout.max_new_tokens),
    }
    for what, lengths in train.lengths().items():
        name, limit = limits[what]
        print(f"{what}: {min(lengths):,} to {max(lengths):,} tokens, of at most {name} = {limit:,}")
    if model:
        width, response = config.rollout.prompt_length, config.rollout.max_new_tokens
        longest = max(width, config.rollout.teacher_prompt_length) + response
        print(f"prompt and response: at most {longest:,} of the model's {model.context:,} tokens")
    show_prompts(config, train, tokenizer)
    return len(setup.evaluated(config, heldout))


def try_rewards(config: Config, problems: Sequence[Problem]) -> None:
    """Calls reward functions of the user's own, as a run does when it starts.

    Raises:
        UserError: one is missing, cannot be called or returns no reward.
    """
    if any(verifiers.is_own(problem.scorer) for problem in problems):
        group = config.rollout
        with Verifier(1, group.verifier_deadline_s, group.verifier_memory_mb) as verifier:
            verifier.probe(problems)


def show_prompts(config: Config, train: PromptSet, tokenizer: Tokenizer) -> None:
    """Prints what the policy and its teachers are given for the first problem of the run.

    Raises:
        UserError: fewer problems than a batch.
    """
    batch = train.batches(config.rollout.problems, config.run.seed)[0]
    _show_ids("student prompt", batch.student_prompt[0][batch.student_prompt_mask[0]], tokenizer)
    arguments = config.method.context(setup.knobs(config, [], step=1), config.hp)
    for name, view in config.method.views(config.hp).items():
        title = "teacher prompt" if name == "teacher" else f"teacher prompt of {name}"
        if contexts.per_rollout(contexts.kinds(config.data.sources, config.data.privileged, view.context)):
            print(f"\n{title}: with responses of the run, which do not exist yet")
            continue
        if view.context == contexts.PARTIAL:
            title = f"{title}, at alpha = {arguments['alpha']:.4g} (step 1),"
        may_be_missing = view.context not in ("", contexts.NONE)  # problems without their default context are dropped
        if may_be_missing:
            show_lengths(config, train, title, view, arguments)
        shown_to = train.teacher_batch(batch.example_id, view.context, view.count, group=1, **arguments)
        if may_be_missing and not shown_to.shown.flat[0]:
            print(f"\n{title} of the first problem: {_MISSING}")
            continue
        ids, mask = (x.reshape(-1, x.shape[-1])[0] for x in (shown_to.teacher_prompt, shown_to.teacher_prompt_mask))
        _show_ids(title, ids[mask], tokenizer)
    if not config.method.rollouts:
        target, mask = train.target_batch(batch.example_id[:1])
        _show_ids("reference response", target[0][mask[0]], tokenizer)


def show_lengths(config: Config, train: PromptSet, title: str, view: View, arguments: Mapping[str, Any]) -> None:
    """Prints how long a teacher's prompts with a context of its own are, and how many problems have none that fits.

    Args:
        arguments: of the makers of contexts.
    """
    lengths, missing = [], 0
    # Each part has the problems of a batch, of which other_problem shows another.
    for ids in np.array_split(np.arange(len(train)), max(1, len(train) // config.rollout.problems)):
        batch = train.teacher_batch(ids, view.context, view.count, group=1, **arguments)
        shown_to = batch.shown.reshape(len(ids), -1)
        lengths += batch.teacher_prompt_mask.sum(axis=-1).reshape(shown_to.shape)[shown_to].tolist()
        missing += int((~shown_to.any(axis=1)).sum())
    of_those = f"{min(lengths):,} to {max(lengths):,} tokens" if lengths else "none"
    print(
        f"\n{title} with context {view.context}: {of_those}, of at most rollout.teacher_prompt_length = "
        f"{config.rollout.teacher_prompt_length:,}; problems without one that fits: {missing:,} of {len(train):,}"
    )


def _show_ids(title: str, ids: np.ndarray, tokenizer: Tokenizer) -> None:
    """Prints a prompt as text and as tokens; neither can act on the terminal."""
    pieces = [shown(tokenizer.piece(int(id))).replace("\n", "↵") for id in ids]
    if len(pieces) > _FIRST + _LAST:
        left_out = f"… {len(pieces) - _FIRST - _LAST:,} more …"
        pieces = [*pieces[:_FIRST], left_out, *pieces[-_LAST:]]
    text = shown(spelled(tokenizer, ids)).replace("\n", "\n    ")
    print(f"\n{title} of the first problem, {len(ids):,} tokens:\n    {text}\n  as tokens:\n    {'│'.join(pieces)}")


# ---------------------------------------------------------------------------------------------------- memory, tokens


def show_memory(config: Config, machine: Machine, model: ModelConfig) -> None:
    """Prints slots and memory of each program, as far as they are known without compiling.

    Raises:
        UserError: more than a device has is needed in any case, or the mesh cannot split the model.
    """
    print(f"\nmemory: a device has {_size(machine.memory)}; needed at least, without activations")
    print("(python -m dasd_jax.compile counts those too, for TPU chips):")
    for program in programs(config, model, machine.mesh, machine.limit):
        slots = f", {program.slots:,} slots" if program.slots else ""
        print(f"    {program.name:12} {_size(program.least):>12}{slots}")
        if program.least > machine.memory:
            raise UserError(
                f"mesh: {program.name} needs {_size(program.least)} of each of {machine.mesh.size} device(s) at "
                f"least, which have {_size(machine.memory)}: expected more devices along mesh.fsdp or "
                "mesh.tensor, or a smaller model"
            )


def _size(count: int) -> str:
    """Bytes in words."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.2f} MiB"


def show_amounts(config: Config, evaluated: int) -> None:
    """Prints how often the run learns and is evaluated, and its tokens.

    Args:
        evaluated: problems of an evaluation; 0: not known.
    """
    run, group, all_of = config.run, config.rollout, estimate(config, evaluated)
    each = f"{group.problems} problems" + (f" × {group.rollouts} rollouts" if config.method.rollouts else "")
    print(f"\nsteps: {run.steps:,} of {each}, {run.steps * config.optim.minibatches:,} updates")
    many = f"{evaluated:,} problems" if evaluated else "all problems"
    print(f"evaluations: {len(all_of.evaluations):,}, each of {many} × {run.eval_samples} answers")
    print(f"tokens of responses, if each has the full {group.max_new_tokens:,}:")
    again = f", and up to {group.resample} times as many again (rollout.resample)" if group.resample else ""
    answered = f"{all_of.answered:,}" if evaluated else "not known"
    print(f"    generated {all_of.generated:,}{again}; in evaluations {answered}")
    print(f"    scored    {all_of.scored:,} (by the student, and by each teacher that the method reads)")
    print(f"    trained   {all_of.trained:,}")


if __name__ == "__main__":
    cli.run(main)
