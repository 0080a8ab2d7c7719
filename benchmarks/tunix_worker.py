"""The other side of rollout_vs_tunix.py, run by the python of an environment that has google-tunix: needs no dasd_jax.

Takes a folder with the exported model and job.json, writes logits.npy there, and then answers every seed on its
standard input with one line of JSON: seconds, and the length of each response with its stop token.
"""

import json
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.llama3 import model as llama
from tunix.models.llama3.params import create_model_from_safe_tensors


class Ids:
    """A tokenizer whose text is the ids themselves, so that no time goes into text."""

    def __init__(self, pad_id: int):
        self.pad = pad_id

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return ""

    def pad_id(self) -> int:
        return self.pad

    def bos_id(self) -> int:
        return 0  # tunix then puts nothing in front

    def eos_id(self) -> int:
        return 0  # not used: the stop ids are given


def main() -> None:
    """Loads, warms up, and samples for every seed."""
    folder = Path(sys.argv[1])
    job, raw = (json.loads((folder / name).read_text()) for name in ("job.json", "config.json"))
    model = load(folder, raw)
    ids = jnp.array([job["check"]])
    causal = jnp.tril(jnp.ones((1, ids.shape[1], ids.shape[1]), bool))
    np.save(folder / "logits.npy", model(ids, jnp.arange(ids.shape[1])[None], None, causal)[0][0])

    width, limit, slots = max(map(len, job["prompts"])), job["limit"], job["slots"]
    cache = CacheConfig(width + limit, raw["num_hidden_layers"], raw["num_key_value_heads"], raw["head_dim"])
    sampler = Sampler(model, Ids(job["pad_id"]), cache)
    texts = [" ".join(map(str, prompt)) for prompt in job["prompts"]]
    batches = [texts[start : start + slots] for start in range(0, len(texts), slots)]
    sample = partial(
        sampler,
        max_generation_steps=limit,
        max_prompt_length=width,
        eos_tokens=job["stop_ids"],
        temperature=1.0,
        top_p=1.0,
    )
    sample(batches[0], seed=0)
    print(json.dumps({name: version(name) for name in ("google-tunix", "jax", "flax")}), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        outputs = [sample(batch, seed=int(line) * len(batches) + turn) for turn, batch in enumerate(batches)]
        seconds = time.perf_counter() - start
        # What tunix returns leaves the stop token out.
        lengths = [min(len(tokens) + 1, limit) for output in outputs for tokens in output.tokens]
        print(json.dumps({"seconds": seconds, "lengths": lengths}), flush=True)


def load(folder: Path, raw: dict, remat: llama.RematConfig = llama.RematConfig.NONE) -> llama.Llama3:
    """The exported model in float32."""
    base = raw["rope_parameters"]["rope_theta"]
    # tunix 0.1.7 reads rope_theta into its configuration and then rotates by the default of this function.
    llama.apply_rope = partial(llama.apply_rope, rope_theta=base)
    config = llama.ModelConfig(
        num_layers=raw["num_hidden_layers"],
        vocab_size=raw["vocab_size"],
        embed_dim=raw["hidden_size"],
        hidden_dim=raw["intermediate_size"],
        num_heads=raw["num_attention_heads"],
        head_dim=raw["head_dim"],
        num_kv_heads=raw["num_key_value_heads"],
        rope_theta=base,
        norm_eps=raw["rms_norm_eps"],
        weight_tying=raw["tie_word_embeddings"],
        remat_config=remat,
    )
    return create_model_from_safe_tensors(str(folder), config, dtype=jnp.float32)


if __name__ == "__main__":
    main()
