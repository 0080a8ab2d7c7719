"""The methods by the name that `objective.method` takes; one file each."""

from dasd_jax.methods import (
    ad_opsd,
    antisd,
    dapo,
    dasd,
    demopsd,
    dr_grpo,
    egrsd,
    grpo,
    hepo,
    opsd,
    purified_opsd,
    pw_opsd,
    rlcsd,
    rlrt,
    rlsd,
    sdpo,
    sft,
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
    "demopsd": demopsd.METHOD,
    "pw_opsd": pw_opsd.METHOD,
    "ad_opsd": ad_opsd.METHOD,
    "egrsd": egrsd.METHOD,
    "purified_opsd": purified_opsd.METHOD,
    "sft": sft.METHOD,
}
