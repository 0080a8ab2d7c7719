"""The methods by the name that `objective.method` takes; one file each."""

from dasd_jax.methods import (
    antisd,
    dapo,
    dasd,
    dr_grpo,
    grpo,
    hepo,
    opsd,
    rlcsd,
    rlrt,
    rlsd,
    sdpo,
    sft,
    sgsd,
    srpo,
)
from dasd_jax.objective.contract import Method

METHODS: dict[str, Method] = {
    "dasd": dasd.METHOD,
    "grpo": grpo.METHOD,
    "dapo": dapo.METHOD,
    "dr_grpo": dr_grpo.METHOD,
    "hepo": hepo.METHOD,
    "opsd": opsd.METHOD,
    "sdpo": sdpo.METHOD,
    "rlsd": rlsd.METHOD,
    "srpo": srpo.METHOD,
    "rlrt": rlrt.METHOD,
    "antisd": antisd.METHOD,
    "rlcsd": rlcsd.METHOD,
    "sgsd": sgsd.METHOD,
    "sft": sft.METHOD,
}
