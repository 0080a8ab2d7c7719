"""Rollouts with refill beside tunix's sampler: python -m benchmarks.rollout_vs_tunix TUNIX_PYTHON

TUNIX_PYTHON is the python of an environment of its own: python3 -m venv ENV && ENV/bin/pip install google-tunix==0.1.7

Both answer the same ROWS prompts with the same float32 weights at temperature 1, up to the same stop tokens or LIMIT
tokens, with SLOTS rows side by side. Ours gives the slot of a row that has ended to the next row; tunix does not
refill: it takes the prompts in batches of SLOTS and computes all rows of a batch until the last one has stopped. What
counts is the tokens of the responses, each with its stop token, over wall-clock time from prompts to responses on the
host, prefill included and compilation not. Ours records the log-probability and entropy of every token along the way,
tunix is not asked to. Before that the logits of both are compared on one text, without which speed means nothing.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.timing import default_model, hardware, verdict
from configs.smollm2_math import WEIGHTS
from dasd_jax.batch import PromptBatch
from dasd_jax.mesh import MeshConfig, make_mesh, put_rows, replicate
from dasd_jax.model import hf, transformer
from dasd_jax.rollout.sampler import Sampling, relayout, rollout
from dasd_jax.text.prompts import left_pad

ROWS, SLOTS, LIMIT, REPEATS = 256, 32, 48, 2
PROMPT = "The number {} is"
STOPS = (".", ",", "\n")  # ends of clauses and lines: lengths are skewed, with a mean of about a quarter of LIMIT
CHECK = "The sampler writes one token after the other, and a row that has ended makes room for the next one."
PAD = "<gh_stars>"  # tunix finds padding by its id, so it is one that no response holds
TARGET = 2.0
WORKER = Path(__file__).with_name("tunix_worker.py")


class Ours:
    """Our sampler, compiled."""

    def __init__(self, mesh, model, params, prompts: list[list[int]], sampling: Sampling):
        tokens, mask = left_pad(prompts, max(map(len, prompts)), sampling.pad_id)
        self.mesh, self.params = mesh, relayout(model, params)
        self.prompts = put_rows(mesh, PromptBatch(tokens, mask, np.arange(len(prompts), dtype=np.int32)))
        seed, step = self.seed(0)
        self.program = rollout.lower(model, sampling, self.params, self.prompts, seed, "train", step).compile()

    def seed(self, number: int):
        return replicate(self.mesh, (np.int32(number), np.int32(0)))

    def run(self, number: int) -> tuple[float, list[int]]:
        """Seconds, and the length of each response."""
        seed, step = self.seed(number)
        start = time.perf_counter()
        batch, _ = jax.device_get(self.program(self.params, self.prompts, seed, step))
        return time.perf_counter() - start, batch.response_mask.sum(axis=1).tolist()


class Tunix:
    """tunix's sampler in a process of its own, compiled."""

    def __init__(self, python: str, folder: str):
        command = [python, WORKER, folder]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.versions = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{WORKER.name} ended with exit code {self.process.wait()}")
        return json.loads(line)

    def run(self, number: int) -> tuple[float, list[int]]:
        """Seconds, and the length of each response."""
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        answer = self.answer()
        return answer["seconds"], answer["lengths"]

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    """Loads both, compares their logits, measures in turn and prints."""
    if len(sys.argv) != 2:
        sys.exit(__doc__.splitlines()[0])
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        model, params, tokenizer = default_model(mesh)
    prompts = [tokenizer.encode(PROMPT.format(number)) for number in range(ROWS)]
    stop_ids = tuple(tokenizer.encode(text)[0] for text in STOPS)
    (pad_id,) = tokenizer.encode(PAD)
    check = tokenizer.encode(CHECK)
    job = {"prompts": prompts, "stop_ids": stop_ids, "pad_id": pad_id, "limit": LIMIT, "slots": SLOTS, "check": check}
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
        hf.save(Path(folder), model, params, "float32")
        (Path(folder) / "job.json").write_text(json.dumps(job))
        tunix = Tunix(sys.argv[1], folder)
        sampling = Sampling(rollouts=1, max_new_tokens=LIMIT, stop_ids=stop_ids, pad_id=pad_id, slots=SLOTS)
        print_setting(tunix.versions)
        print_logits(logits(model, params, check), np.load(Path(folder) / "logits.npy"))
        sides = {"ours": Ours(mesh, model, params, prompts, sampling), "tunix": tunix}
        runs = {name: [] for name in sides}
        print("| repeat | | tokens | seconds | tokens/s |\n|---|---|---|---|---|")
        for number in range(1, REPEATS + 1):
            for name, side in sides.items():
                seconds, lengths = side.run(number)
                runs[name].append((seconds, lengths))
                tokens = sum(lengths)
                print(f"| {number} | {name} | {tokens} | {seconds:.1f} | {tokens / seconds:.1f} |", flush=True)
        tunix.close()
    print_summary(runs)


def logits(model, params, ids: list[int]) -> np.ndarray:
    """Ours, [tokens, V]."""

    def program(params, ids, mask):
        hidden, _ = transformer.forward(model, params, ids, transformer.prompt_positions(mask), mask)
        return transformer.unembed(model, params, hidden)

    return np.asarray(jax.jit(program)(params, np.array([ids]), np.ones((1, len(ids)), bool))[0])


def print_setting(versions: dict[str, str]) -> None:
    """What the figures depend on."""
    print(f"ours: {hardware()}; " + ", ".join(map(" ".join, versions.items())))
    print(f"{Path(WEIGHTS).stem} in float32, {ROWS} rollouts, {SLOTS} slots, at most {LIMIT} new tokens, stops {STOPS}")


def print_logits(ours: np.ndarray, theirs: np.ndarray) -> None:
    """How far the two models agree."""
    equal = (ours.argmax(axis=1) == theirs.argmax(axis=1)).sum()
    print(
        f"logits of {len(ours)} tokens: max |difference| {np.abs(ours - theirs).max():.2e} at scale "
        f"{np.abs(ours).max():.1f}, arg-max equal in {equal}\n",
        flush=True,
    )


def print_summary(runs: dict[str, list[tuple[float, list[int]]]]) -> None:
    """One row a side, and whether the target is met."""
    print(f"\n| | tokens/s, median of {REPEATS} | length: mean | quartiles | max | at the limit |")
    print("|---|---|---|---|---|---|")
    medians = {}
    for name, of_side in runs.items():
        medians[name] = statistics.median(sum(lengths) / seconds for seconds, lengths in of_side)
        lengths = np.concatenate([lengths for _, lengths in of_side])
        quartiles = "/".join(f"{value:.0f}" for value in np.percentile(lengths, (25, 50, 75)))
        spread = f"{lengths.mean():.1f} | {quartiles} | {lengths.max()} | {(lengths == LIMIT).mean():.1%}"
        print(f"| {name} | {medians[name]:.1f} | {spread} |")
    ratio = medians["ours"] / medians["tunix"]
    print(f"\nours / tunix: {ratio:.2f}, to reach {TARGET:.1f}: {verdict(ratio >= TARGET)}")


if __name__ == "__main__":
    main()
