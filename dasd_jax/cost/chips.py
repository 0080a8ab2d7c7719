"""Known TPU chips: peak rates from Google's pages, and the memory that a program may use."""

import dataclasses


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
