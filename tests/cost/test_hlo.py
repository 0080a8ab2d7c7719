"""Bytes of collectives, counted by hand on small texts and on a program whose collectives are known."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from dasd_jax.cost import hlo
from dasd_jax.mesh import AXES, reshard, spec

# An all-gather of bf16[64, 8] over four devices: 1,024 bytes, of which each sends three quarters.
GATHER = 768
LOOPS = """
%body.inner (p.1: (s32[], bf16[16,8])) -> (s32[], bf16[16,8]) {
  %x.1 = bf16[16,8]{1,0:T(8,128)(2,1)} get-tuple-element(%p.1), index=1
  %gathered = bf16[64,8]{1,0:T(8,128)(2,1)} all-gather(%x.1), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
}

%cond.inner (p.2: (s32[], bf16[16,8])) -> pred[] {
  %p.2 = (s32[], bf16[16,8]) parameter(0)
  %i.2 = s32[] get-tuple-element(%p.2), index=0
  %end.2 = s32[] constant(7)
  ROOT %less.2 = pred[] compare(%i.2, %end.2), direction=LT
}

%body.outer (p.3: (s32[], bf16[16,8])) -> (s32[], bf16[16,8]) {
  %p.3 = (s32[], bf16[16,8]) parameter(0)
  %x.3 = bf16[16,8] get-tuple-element(%p.3), index=1
  %two = s32[] constant(2)
  %begin.3 = (s32[], bf16[16,8]) tuple(%two, %x.3)
  %inner = (s32[], bf16[16,8]) while(%begin.3), condition=%cond.inner, body=%body.inner
}

%cond.outer (p.4: (s32[], bf16[16,8])) -> pred[] {
  %p.4 = (s32[], bf16[16,8]) parameter(0)
  ROOT %going = pred[] custom-call(%p.4), custom_call_target="Unknowable"
}

ENTRY %main (x: bf16[16,8]) -> bf16[16,8] {
  %x = bf16[16,8] parameter(0)
  %zero = s32[] constant(0)
  %begin = (s32[], bf16[16,8]) tuple(%zero, %x)
  %outer = (s32[], bf16[16,8]) while(%begin), condition=%cond.outer, body=%body.outer TRIPS
}
"""


@pytest.mark.parametrize("known", [None, 3])
def test_loops_multiply_and_those_of_unknown_length_are_for_each_turn(known):
    trips = f', backend_config={{"known_trip_count":{{"n":"{known}"}}}}' if known else ""
    found = hlo.collectives(LOOPS.replace(" TRIPS", trips))
    # The inner loop counts from 2 up to 7.
    assert [(one.kind, one.bytes, one.times, one.steps) for one in found] == [
        ("all-gather", GATHER, 5 * (known or 1), known is None)
    ]
    assert hlo.totals(found, steps=10)["all-gather"] == GATHER * 5 * (known or 10)


def entry(*lines: str, before: str = "") -> str:
    return before + "\nENTRY %main (x: f32[8]) -> f32[8] {\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


@pytest.mark.parametrize(
    ("line", "kind", "sent"),
    [
        # In a ring of n a whole array of s bytes costs each device s (n - 1) / n, an all-reduce twice that.
        ("%a = f32[32] all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}", "all-gather", 96),
        ("%a = f32[8] reduce-scatter(%x), replica_groups={{0,1,2,3}}, to_apply=%add", "reduce-scatter", 96),
        ("%a = f32[8] all-reduce(%x), replica_groups={{0,1},{2,3}}, to_apply=%add", "all-reduce", 32),
        ("%a = (f32[8], bf16[16]) all-reduce(%x, %y), replica_groups={{0,1}}, to_apply=%add", "all-reduce", 64),
        ("%a = f32[8] all-to-all(%x), replica_groups=mesh['a'=2,'b'=4] {'b'}", "all-to-all", 24),
        ("%a = f32[8] collective-permute(%x), source_target_pairs={{0,1},{1,0}}", "collective-permute", 32),
        (
            "%a = f32[8] all-to-all(%x), replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}",
            "all-to-all",
            24,
        ),
        # A start's shape is of operand and result.
        ("%a = (f32[8], f32[32]) all-gather-start(%x), replica_groups=[2,4]<=[8]", "all-gather", 96),
    ],
)
def test_a_ring_sends_what_each_kind_needs(line, kind, sent):
    (one,) = hlo.collectives(entry(line, "%b = f32[8] all-gather-done(%a)", "%c = f32[8] add(%a, %a)"))
    assert (one.kind, one.bytes, one.times) == (kind, sent, 1)


def test_of_the_branches_the_dearest_is_counted():
    branches = "\n".join(
        f"%branch.{size} (p: f32[8]) -> f32[8] {{\n  %a = f32[{size}] all-gather(%p), replica_groups=[2,4]<=[8]\n}}\n"
        for size in (16, 64, 32)
    )
    line = "%c = f32[8] conditional(%i, %x, %x, %x), branch_computations={%branch.16, %branch.64, %branch.32}"
    (one,) = hlo.collectives(entry(line, before=branches))
    assert one.shape == "f32[64]"


def test_what_a_tpu_writes_as_fusions():
    """A reduce-scatter around an all-reduce, and an all-gather that is named again while it is under way."""
    text = entry(
        "%rs = f32[8] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1",
        "%s = f32[8] fusion(%x), kind=kCustom, calls=%fused.start",
        "%d = f32[8] fusion(%x), kind=kCustom, calls=%fused.under",
        before="""
%all-reduce-scatter.1 (p: f32[32]) -> f32[8] {
  %all = f32[32] all-reduce(%p), replica_groups=[2,4]<=[8], to_apply=%add
}

%fused.start (p: f32[8]) -> f32[8] {
  %g.1 = f32[32] all-gather(%p), replica_groups=[2,4]<=[8], frontend_attributes={chain_id="1"}, chain_id=1
  %t.1 = f32[8] custom-call(%p), custom_call_target="AsyncCollectiveStart"
}

%fused.under (p: f32[8]) -> f32[8] {
  %g.2 = f32[32] all-gather(%p), replica_groups=[2,4]<=[8], frontend_attributes={chain_id="1"}, chain_id=1
}
""",
    )
    assert hlo.totals(hlo.collectives(text), steps=1) == {
        "all-gather": 96, "reduce-scatter": 96, "all-reduce": 0, "all-to-all": 0, "collective-permute": 0
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "HloModule nothing",
        entry("%a = f4[8] all-gather(%x), replica_groups=[2,4]<=[8]"),
        entry("%a = f32[8] all-gather(%x)"),
    ],
    ids=["no entry", "unknown type", "no groups"],
)
def test_a_text_that_is_not_understood_is_refused(text):
    with pytest.raises(ValueError, match="no ENTRY|unknown element|no replica groups"):
        hlo.collectives(text)


def test_a_program_whose_collectives_are_known(mesh8):
    """Six layers, each gathered over fsdp from its half and summed over tensor; rows stay where they are."""
    rows, width, layers = 8, 64, 6

    def program(x, weights):
        def layer(x, weight):
            whole = reshard(weight, None, "ff")
            return jnp.einsum("rd,df->rf", x, whole, out_sharding=spec("rows", "ff")), None

        def pair(x, weight):
            x, _ = layer(x, weight)
            return jax.shard_map(
                partial(jax.lax.psum, axis_name=AXES[2]), in_specs=spec("rows", "ff"), out_specs=spec("rows", None)
            )(x).repeat(2, axis=1, out_sharding=spec("rows", None)), None

        return jax.lax.scan(pair, x, weights)[0]

    x = jax.ShapeDtypeStruct((rows, width), jnp.float32, sharding=jax.NamedSharding(mesh8, spec("rows", None)))
    weights = jax.ShapeDtypeStruct(
        (layers, width, width), jnp.float32, sharding=jax.NamedSharding(mesh8, spec(None, "embed", "ff"))
    )
    found = hlo.collectives(jax.jit(program).lower(x, weights).compile().as_text())
    sent = hlo.totals(found, steps=1)
    # Of a layer a device holds the columns of its tensor part; of these it sends half, and of its sums, twice half.
    assert sent["all-gather"] == layers * width * (width // 2) * 4 // 2
    assert sent["all-reduce"] == layers * 2 * (rows // 4) * (width // 2) * 4 // 2
    assert sent["reduce-scatter"] == sent["all-to-all"] == sent["collective-permute"] == 0


@pytest.mark.parametrize(
    ("groups", "first"),
    [
        ("{{0,2,4,6},{1,3,5,7}}", (0, 2, 4, 6)),
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3)),
        ("mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("mesh['a'=2,'b'=4] {'a','b'}", tuple(range(8))),
        ("mesh['a'=2,'b'=4] {'b':(1)2}", (0, 2)),
        ("mesh['a'=2,'b'=4] {'b':(2)2}", (0, 1)),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", (0, 2, 4, 6)),
    ],
)
def test_a_group_is_the_devices_among_which_it_happens(groups, first):
    (one,) = hlo.collectives(entry(f"%a = f32[8] all-reduce(%x), replica_groups={groups}, to_apply=%add"))
    assert one.group == first
