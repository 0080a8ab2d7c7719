"""Decoding beside transformers and beside the memory: python -m benchmarks.decode      (pip install torch transformers)

SmolLM2-135M in float32 with the same weights on both sides, sampled at temperature 1 from the whole vocabulary, no row
ever stopping. Prefill is taken out: what 65 new tokens take longer than one. At batch 1 a token needs every weight
once; the limit is the fastest of several ways of reading as much memory once.
"""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from benchmarks.timing import default_model, hardware, in_turns, per_token, prompts, verdict
from dasd_jax.mesh import MeshConfig, make_mesh, replicate
from dasd_jax.model import hf, param_table
from dasd_jax.rollout.sampler import Sampling, relayout, rollout

PROMPT, SHORT, LONG, RUNS = 64, 1, 65, 3
RATIO, SHARE = 1.3, 0.7  # to be reached


def theirs(model, batch, tokens: int):
    """transformers' `generate` of exactly so many tokens a row."""
    ids, mask = (torch.from_numpy(np.array(x)) for x in (batch.student_prompt, batch.student_prompt_mask))
    with torch.no_grad():
        return model.generate(
            ids.long(), attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=None,
            min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0,
        ).numpy()  # fmt: skip


def read_probes(size: int) -> dict:
    """Ways of reading `size` bytes once with all cores."""
    array = np.ones(size // 4, np.float32)
    halves = np.array_split(array, 2 * torch.get_num_threads())
    pool = ThreadPoolExecutor(len(halves))
    tensor, device = torch.from_numpy(array), jnp.asarray(array)
    total, top = jax.jit(jnp.sum), jax.jit(jnp.max)
    return {
        "numpy dot": lambda: sum(pool.map(lambda x: x @ x, halves)),
        "torch sum": tensor.sum,
        "torch max": tensor.max,
        "jax sum": lambda: total(device),
        "jax max": lambda: top(device),
    }


def main() -> None:
    """Runs and prints."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    print(f"{hardware()}, torch {torch.__version__}, transformers {transformers.__version__}, "
          f"{torch.get_num_threads()} threads\n")  # fmt: skip
    with jax.set_mesh(mesh):
        model, params, tokenizer = default_model(mesh)
        with tempfile.TemporaryDirectory() as folder:
            hf.save(Path(folder), model, params, "float32")
            peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        decoding = relayout(model, params)
        seed, step = replicate(mesh, (np.int32(0), np.int32(0)))
        print("| batch | transformers, tokens/s | dasd_jax, tokens/s | ratio | to reach |\n|---|---|---|---|---|")
        for count in (32, 1):
            batch = prompts(mesh, tokenizer, count, PROMPT)

            def ours(tokens: int, batch=batch):
                sampling = Sampling(1, tokens, stop_ids=(-1,), pad_id=tokenizer.pad_id)
                return rollout(model, sampling, decoding, batch, seed, "train", step)

            took = per_token({"theirs": partial(theirs, peer, batch), "ours": ours}, SHORT, LONG, RUNS)
            ratio = took["theirs"] / took["ours"]
            reach = f"{RATIO} {verdict(ratio >= RATIO)}" if count == 32 else "–"
            speeds = " | ".join(f"{count / took[who]:.1f}" for who in ("theirs", "ours"))
            print(f"| {count} | {speeds} | {ratio:.2f} | {reach} |", flush=True)
        size = 4 * param_table.num_params(model)
        probes = {name: size / times.median / 1e9 for name, times in in_turns(read_probes(size), 5).items()}
    print("\nreading once, GB/s: " + ", ".join(f"{name} {speed:.1f}" for name, speed in probes.items()))
    speed = size / took["ours"] / 1e9
    share = speed / max(probes.values())
    print(f"batch 1 reads its {size / 1e6:.0f} MB of weights at {speed:.1f} GB/s: {share:.0%} of the fastest, "
          f"to reach {SHARE:.0%}: {verdict(share >= SHARE)}")  # fmt: skip


if __name__ == "__main__":
    main()
