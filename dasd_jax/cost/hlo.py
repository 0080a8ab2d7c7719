"""Bytes sent by collectives, parsed from the HLO text of a compiled program.

A module is a set of computations that call one another. Collectives in a loop body are multiplied by its trip count; of
a conditional the most expensive branch is counted. On TPU a reduce-scatter may appear as a fusion `all-reduce-scatter`
around an all-reduce, and an asynchronous collective appears in every fusion from its start to its end: it is counted at
its start.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}
_BYTES |= {"u64": 8, "f64": 8, "c64": 8, "c128": 16, "s4": 1, "u4": 1, "f8e4m3fn": 1, "f8e5m2": 1}
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_OP = re.compile(r"^(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
        kind: one of KINDS.
        bytes: bytes that a chip sends per execution, in a ring.
        shape: of the result array or arrays, as in the text.
        group: the devices of the first replica group, by their position in the mesh.
        times: number of executions, with loops of known trip count multiplied out.
        steps: whether it is in a loop of unknown trip count; `times` is then per iteration.
    """

    kind: str
    bytes: float
    shape: str
    group: tuple[int, ...]
    times: int
    steps: bool


def collectives(text: str) -> list[Collective]:
    """Every collective of an optimised HLO module.

    Raises:
        ValueError: the text is not as expected; an incomplete sum would be worse than none.
    """
    computations = _computations(text)
    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)
    if entry is None:
        raise ValueError("no ENTRY computation")
    return list(_of(computations, entry[1], 1, False))


def totals(found: list[Collective], *, steps: int) -> dict[str, float]:
    """Bytes per chip by kind, with `steps` iterations for loops of unknown trip count."""
    sums = dict.fromkeys(KINDS, 0.0)
    for one in found:
        sums[one.kind] += one.bytes * one.times * (steps if one.steps else 1)
    return sums


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    op: str
    rest: str  # after the opening parenthesis of the operands


def _computations(text: str) -> dict[str, list[_Instruction]]:
    found: dict[str, list[_Instruction]] = {}
    body: list[_Instruction] = []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            body = found.setdefault(head[1], [])
        elif parts := _OP.match(line.strip()):
            body.append(_Instruction(*parts.groups()))
    return found


def _of(computations: dict, name: str, times: int, steps: bool) -> Iterator[Collective]:
    body = computations[name]
    starts = any("AsyncCollectiveStart" in one.rest for one in body)
    for one in body:
        kind = one.op.removesuffix("-start")
        if kind in KINDS:
            # The fusions between start and end of an asynchronous collective repeat it.
            if "chain_id=" not in one.rest or starts:
                yield _collective(one, kind, name, times, steps)
        elif one.op == "while":
            trips = _trip_count(computations, one, body)
            inside = _called(one, "body")
            yield from _of(computations, inside, times * (trips or 1), steps or trips is None)
        elif one.op == "conditional":
            branches = [list(_of(computations, branch, times, steps)) for branch in _branches(one)]
            yield from max(branches, key=lambda found: sum(c.bytes * c.times for c in found))
        elif one.op in ("fusion", "call", "async-start"):
            for attribute in ("calls", "to_apply"):
                if inside := _called(one, attribute):
                    yield from _of(computations, inside, times, steps)


def _called(one: _Instruction, attribute: str) -> str | None:
    found = re.search(rf"\b{attribute}=%?([\w.\-]+)", one.rest)
    return found and found[1]


def _branches(one: _Instruction) -> list[str]:
    if listed := re.search(r"branch_computations=\{([^}]*)\}", one.rest):
        return [name.strip().lstrip("%") for name in listed[1].split(",")]
    return [_called(one, "true_computation"), _called(one, "false_computation")]


def _trip_count(computations: dict, loop: _Instruction, around: list[_Instruction]) -> int | None:
    """Trip count of a loop that counts from one constant to another by 1; None for any other loop."""
    if known := re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    condition = {one.name: one for one in computations[_called(loop, "condition")]}
    compares = [one for one in condition.values() if one.op == "compare" and "direction=LT" in one.rest]
    if len(compares) != 1 or any(one.op in ("and", "or", "not", "fusion", "call") for one in condition.values()):
        return None
    counter, limit = (condition.get(operand) for operand in _operands(compares[0])[:2])
    end, index = _constant(limit), re.search(r"index=(\d+)", counter.rest) if counter else None
    if end is None or index is None:
        return None
    named = {one.name: one for one in around}
    begin = named.get(_operands(loop)[0])
    if begin is None or begin.op != "tuple":
        return None
    first = named.get(_operands(begin)[int(index[1])])
    while first is not None and first.op in ("copy", "bitcast"):
        first = named.get(_operands(first)[0])
    start = _constant(first)
    return None if start is None else max(end - start, 0)


def _operands(one: _Instruction) -> list[str]:
    inside = one.rest[: one.rest.index(")")] if ")" in one.rest else one.rest
    inside = re.sub(r"/\*.*?\*/", "", inside)
    return [part.strip().split(" ")[-1].lstrip("%") for part in inside.split(",")]


def _constant(one: _Instruction | None) -> int | None:
    if one is None or one.op != "constant":
        return None
    value = one.rest[: one.rest.index(")")]
    return int(value) if value.lstrip("-").isdigit() else None


def _collective(one: _Instruction, kind: str, computation: str, times: int, steps: bool) -> Collective:
    shape, group = one.shape, _group(one)
    size = len(group)
    if one.op.endswith("-start") and kind in ("all-gather", "collective-permute"):
        # The result of a start op is (operands, results, …).
        arrays = _split(shape)
        shape = arrays[1] if len(arrays) > 1 else shape
    whole = _shape_bytes(shape)
    if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
    elif kind == "reduce-scatter":
        whole *= size  # the text has the shape of a shard
    share = (size - 1) / size
    sent = {"all-reduce": 2 * whole * share, "collective-permute": whole}.get(kind, whole * share)
    return Collective(kind, sent, re.sub(r"\{[^}]*\}|/\*.*?\*/", "", shape), group, times, steps)


def _split(shape: str) -> list[str]:
    """The element shapes of a tuple's shape."""
    if not shape.startswith("("):
        return [shape]
    parts, depth, start = [], 0, 1
    for place, letter in enumerate(shape):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 1 and letter == "," or depth == 0:
            parts.append(shape[start:place].strip())
            start = place + 1
    return parts


def _shape_bytes(shape: str) -> int:
    total = 0
    for dtype, sizes in _ARRAY.findall(re.sub(r"\{[^}]*\}", "", shape)):
        if dtype not in _BYTES:
            raise ValueError(f"unknown element type in {shape}")
        total += _BYTES[dtype] * math.prod(int(size) for size in sizes.split(",") if size)
    return total


def _group(one: _Instruction) -> tuple[int, ...]:
    """The devices of the first replica group, by their position in the mesh; all groups have the same size."""
    if mesh := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]*)\](?:T\(([\d,]*)\))?\))? \{([^}]*)\}", one.rest
    ):
        axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        named = {
            name: (int(major or 1), int(size or axes[name]))
            for name, major, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", mesh[4])
        }
        ids = _iota(mesh[2] or str(math.prod(axes.values())), mesh[3]).reshape(*axes.values())
        # A sub-axis, written (major)size, has the stride of the axis divided by major and size.
        places = [[place * (axes[a] // math.prod(named[a])) for place in range(named[a][1])] if a in named else [0]
                  for a in axes]  # fmt: skip
        return tuple(ids[np.ix_(*places)].ravel().tolist())
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]*)\](?:T\(([\d,]*)\))?", one.rest):
        return tuple(_iota(iota[3], iota[4]).ravel()[: int(iota[2])].tolist())
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]*)\}", one.rest):
        return tuple(map(int, listed[1].split(",")))
    raise ValueError(f"no replica groups: {one.name}")


def _iota(sizes: str, order: str | None) -> np.ndarray:
    ids = np.arange(math.prod(map(int, sizes.split(",")))).reshape([int(size) for size in sizes.split(",")])
    return ids.transpose([int(axis) for axis in order.split(",")]) if order else ids
