"""Known TPU chips: peak rates from Google's pages, and the memory that a program may use."""

import dataclasses
import difflib
import math

from dasd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One TPU chip.

    Sources, read on 2026-11-25: the pages docs.cloud.google.com/tpu/docs/v5e, /v5p-training and /v6e, tables of key
    specifications.

    Attributes:
        flops: peak bfloat16 FLOP/s.
        hbm: bytes that a program may use, as the compiler counts them; the pages say 16, 95 and 32 GB.
        hbm_rate: bytes/s.
        ici_rate: outgoing bytes/s of a chip with all links busy, half of the pages' bidirectional figure.
        shapes: slice topologies, in chips.
    """

    flops: float
    hbm: int
    hbm_rate: float
    ici_rate: float
    shapes: tuple[str, ...]


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
CHIPS = {
    "v5e": Chip(197e12, int(15.75 * 2**30), 819e9, 200e9, _FLAT),
    "v5p": Chip(459e12, int(95.73 * 2**30), 2765e9, 600e9, _CUBES),
    "v6e": Chip(918e12, int(31.24 * 2**30), 1638e9, 400e9, _FLAT),
}


def slice_of(topology: str) -> tuple[Chip, int]:
    """The chip of a slice such as v5e:4x4, and how many there are of it.

    Raises:
        UserError: there is no such slice.
    """
    generation, _, shape = topology.partition(":")
    if generation not in CHIPS:
        raise UserError(f"--topology: {topology!r}: expected GENERATION:SHAPE with a generation of {', '.join(CHIPS)}")
    chip = CHIPS[generation]
    if shape not in chip.shapes:
        near = difflib.get_close_matches(shape, chip.shapes, n=3, cutoff=0.0)
        nearest = ", ".join(f"{generation}:{each}" for each in near)
        raise UserError(f"--topology: {topology!r}: expected a known slice, nearest are {nearest}")
    return chip, _count(shape)


def topology_of(generation: str, chips: int) -> str:
    """The topology of a slice of so many chips, as in v5e:4x4; "" where none is known."""
    shape = next((shape for shape in CHIPS[generation].shapes if _count(shape) == chips), "")
    return shape and f"{generation}:{shape}"


def _count(shape: str) -> int:
    return math.prod(map(int, shape.split("x")))
