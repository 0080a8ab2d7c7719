"""The methods by the name that `objective.method` takes; one file each."""

from dasd_jax.methods import dasd, grpo, sft
from dasd_jax.objective.contract import Method

METHODS: dict[str, Method] = {
    "dasd": dasd.METHOD,
    "grpo": grpo.METHOD,
    "sft": sft.METHOD,
}
