"""The programs of a run from shapes alone: which there are, and the figures beside them, by hand."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import pytest
from tiny import config

from benchmarks.tpu_tables import SLICES
from dasd_jax import cli
from dasd_jax.cost.work import Batch, forward_flops
from dasd_jax.errors import UserError
from dasd_jax.mesh import MeshConfig, make_mesh
from dasd_jax.methods import METHODS
from dasd_jax.model.presets import preset
from dasd_jax.objective.contract import View
from dasd_jax.run import models, setup
from dasd_jax.run.programs import _scored, programs, teacher_bytes

PLENTY = 2**34
# qwen3_tiny: its products 98,304, its embedding 320 · 64, both split over heads or words; its norms 4 · 64 + 2 · 32.
PRODUCTS, EMBEDDING, NORMS = 98_304, 20_480, 384


def found(*overrides, memory=PLENTY):
    """Name → program of the tiny run of 16 problems, on four shards of the rows with heads split in two."""
    settings = config("rollout.problems=16", *overrides)
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    with jax.set_mesh(mesh):
        model = models.configured(settings, preset("qwen3_tiny"), "tpu")
        return {program.name: program for program in programs(settings, model, mesh, memory)}


def test_a_run_has_the_programs_of_its_method():
    assert list(found()) == ["re-layout", "rollout", "evaluation", "score", "noise", "samples", "update"]
    assert list(found("objective.method=grpo")) == ["re-layout", "rollout", "evaluation", "score", "samples", "update"]
    assert list(found("objective.method=atesd"))[3:] == ["score", "noise", "probe", "samples", "update"]
    assert "samples" not in found("run.logged_rollouts=0")
    assert list(found("objective.method=sft")) == ["re-layout", "evaluation", "update"]


def test_decoding_turns_once_a_token_for_each_filling_of_the_slots():
    # 16 problems of 4 rollouts on four shards: 16 rows each, of 16 tokens.
    assert (found()["rollout"].slots, found()["rollout"].steps) == (16, 16)
    few = found("rollout.slots=3")["rollout"]
    assert (few.slots, few.steps) == (3, 6 * 16)


def test_slots_follow_from_the_memory_that_is_given():
    # With prompts of 16 tokens the caches of responses are what decides.
    sizes = (680_000, 720_000, 740_000, 780_000)
    # Between them a slot more for each 19.6 kB, and at last all: then rows share the prompts of their problems.
    slots = [found("rollout.prompt_length=16", memory=size)["rollout"].slots for size in sizes]
    assert slots == [5, 7, 8, 16]
    with pytest.raises(UserError, match="rollout.slots: not one row fits"):
        found(memory=2**19)


@pytest.mark.parametrize(
    ("default", "query", "axes"),
    [("answer", "", (16,)), ("answer", "&privileged=sibling", (16, 4, 1)), ("sibling", "", (16, 4, 1))],
)
def test_the_teachers_prompts_are_one_a_rollout_where_any_source_shows_siblings(default, query, axes):
    sources = (*config().data.sources, f"gym:lcm?size=2{query}")
    settings = config("rollout.problems=16", f"data.privileged={default}", f"data.sources={sources}")
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    with jax.set_mesh(mesh):
        steps = setup.step_config(settings, models.configured(settings, preset("qwen3_tiny"), "tpu"), mesh)
        teacher = _scored(settings, mesh, steps)[1]["teacher"]
    assert teacher.shown.shape == teacher.weight.shape == axes
    assert teacher.teacher_prompt.shape == teacher.teacher_prompt_mask.shape == (*axes, 320)


def test_rollouts_in_int8_move_a_byte_a_number_and_scales_and_evaluations_do_not():
    """By hand, with every weight read once a token and 16 rows of a shard that see 192 + 16 / 2 tokens on average."""
    plain, narrow = found(), found("rollout.weights=int8", "rollout.cache=int8")
    outputs = 2 * (128 + 2 * 64 + 2 * 128) // 2 + 2 * (64 + 64) + 320 // 2  # of a device, o and down whole
    weights = (PRODUCTS + EMBEDDING) // 2 + NORMS + 4 * outputs
    assert narrow["rollout"].traffic == 16 * weights + 16 * 16 * (192 + 8) * 2 * 2 * 4 * (16 + 4) // 2
    assert narrow["evaluation"].traffic == plain["evaluation"].traffic
    assert narrow["re-layout"].traffic < plain["re-layout"].traffic
    assert narrow["rollout"].least < plain["rollout"].least


def test_flops_count_both_views_and_the_backward_pass_twice():
    model, made = preset("qwen3_tiny"), found()
    student, teacher = (forward_flops(model, Batch(16, prompt, 4, 16)) for prompt in (192, 320))
    assert made["rollout"].flops == student
    assert made["score"].flops == student + teacher
    assert made["noise"].flops == student
    assert found("objective.method=atesd")["probe"].flops == forward_flops(model, Batch(16, 320, 1, 64))
    assert made["update"].flops == 3 * student
    assert found("objective.form=full")["update"].flops == 3 * student + teacher
    assert found("objective.method=grpo")["score"].flops == student


def test_what_has_to_be_sent_is_each_part_once_a_gather_or_scatter():
    of_layers, table = 4 * (PRODUCTS // 2 + NORMS), 4 * EMBEDDING // 2
    made = found()
    # Two gathers and a scatter of the layers, one of each of the embedding, of which a device lacks three quarters.
    assert made["update"].fsdp_minimum == (3 * of_layers + 2 * table) * 3 / 4
    assert made["score"].fsdp_minimum == (2 * of_layers + table) * 3 / 4
    assert made["update"].parts == made["score"].parts == 4


def test_optimiser_and_parameters_stay_taken_beside_a_program():
    of_device = 4 * ((PRODUCTS + EMBEDDING) // 8 + NORMS)
    made = found()
    scalars = made["score"].beside - 2 * of_device
    assert 0 < scalars < 64  # Adam's count, the step, the position in the data
    assert made["re-layout"].beside == made["score"].beside
    assert made["rollout"].beside == made["evaluation"].beside == made["score"].beside + of_device
    assert made["update"].beside == 0


@pytest.mark.parametrize(("argument", "topology"), SLICES.items())
def test_the_parts_of_every_flagships_batch_split_over_its_slice(argument, topology):
    flags = [f"--config=configs/qwen_math.py:{argument}"]
    settings = cli.parse(cli.parser(""), flags).config
    chips = math.prod(map(int, topology.partition(":")[2].split("x")))
    shards = {"data": settings.mesh.data, "fsdp": chips // settings.mesh.data // settings.mesh.tensor}
    setup.check_rows(settings, SimpleNamespace(shape=shards))


def test_a_batch_that_the_shards_cannot_split_is_refused():
    with pytest.raises(UserError, match="rollout.problems: 6: expected a multiple of the 4 devices"):
        found("rollout.problems=6", "optim.microbatches=1")
    with pytest.raises(UserError, match=r"optim.microbatches: 8 part\(s\) of 8 × 4 / 2 responses: expected each"):
        found("rollout.problems=8", "optim.microbatches=8")


@pytest.mark.parametrize("name", ["re-layout", "rollout", "score", "update"])
def test_every_program_is_lowered_for_the_devices_of_the_mesh(name):
    """Rows come in over the four shards, parameters over all eight devices, and the update gives them back so."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    program = found()[name]
    with jax.set_mesh(mesh):
        lowered = program.lower()
    text = lowered.as_text()
    assert "mhlo.num_partitions = 8" in text
    if name == "update":
        before, after = lowered.args_info[0][0].params, lowered.out_info[0].params
        assert jax.tree.map(lambda x: x.shape, before) == jax.tree.map(lambda x: x.shape, after)


def test_every_copy_that_a_teacher_reads_is_counted_and_stays_resident(monkeypatch):
    """An average and a snapshot: each as large as the parameters, beside a rollout and among a score's arguments."""
    views = {"slow": View(weights="ema", rate=0.05), "old": View(weights="snapshot", every=4), "teacher": View()}
    of_device, plain = 4 * ((PRODUCTS + EMBEDDING) // 8 + NORMS), found()
    method = dataclasses.replace(METHODS["dasd"], views=lambda hp: views)
    monkeypatch.setitem(METHODS, "dasd", method)
    copied = found()
    assert copied["rollout"].beside == plain["rollout"].beside + 2 * of_device
    assert copied["score"].beside == plain["score"].beside
    settings = config("rollout.problems=16")
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    with jax.set_mesh(mesh):
        sizes = teacher_bytes(settings, preset("qwen3_tiny"), mesh)
    assert sizes == {"ema_0.05": of_device, "snapshot_4": of_device}
