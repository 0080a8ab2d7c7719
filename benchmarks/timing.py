"""What the benchmarks of speed share: the machine in a line, the default model, and runs that take turns."""

import dataclasses
import os
import re
import statistics
import time
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path

import jax
import numpy as np

from dasd_jax import cli
from dasd_jax.batch import Params, PromptBatch
from dasd_jax.config import Config, from_dict
from dasd_jax.mesh import put_rows
from dasd_jax.model.config import ModelConfig
from dasd_jax.run import models
from dasd_jax.text.prompts import encode_prompt, left_pad
from dasd_jax.text.tokenizer import Tokenizer
from dasd_jax.text.turns import Message


def hardware() -> str:
    """Processor, cores, device and version."""
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    return f"{processor}, {os.cpu_count()} cores, device {jax.devices()[0].device_kind}, jax {jax.__version__}"


def default_config() -> Config:
    """The configuration of `make train`."""
    return from_dict(cli.load_config("configs/smollm2_math.py").to_dict())


def default_model(mesh, config: Config | None = None) -> tuple[ModelConfig, Params, Tokenizer]:
    """The model of a configuration: SmolLM2-135M-Instruct in float32, as `make train` has it, where none is given."""
    config = config or default_config()
    model, params = models.open_model(config, mesh)
    return model, params, models.open_tokenizer(config.model)


def chats(count: int) -> list[list[Message]]:
    """`count` different questions, each a conversation of one turn."""
    return [
        [{"role": "user", "content": f"Tell me something about the number {number}."}] for number in range(1, count + 1)
    ]


def prompts(mesh, tokenizer: Tokenizer, count: int, width: int) -> PromptBatch:
    """The first `count` questions, left-padded to `width` tokens."""
    ids = [encode_prompt(tokenizer, chat) for chat in chats(count)]
    tokens, mask = left_pad(ids, width, tokenizer.pad_id)
    return put_rows(mesh, PromptBatch(tokens, mask, np.arange(count, dtype=np.int32)))


@dataclasses.dataclass(frozen=True)
class Times:
    """Wall-clock seconds of several runs of one thing, and what the last of them returned."""

    runs: tuple[float, ...]
    result: object

    @property
    def median(self) -> float:
        """Their median."""
        return statistics.median(self.runs)

    def __str__(self) -> str:
        """Median and range."""
        return f"{self.median:.2f} ({min(self.runs):.2f}–{max(self.runs):.2f})"


def in_turns(functions: dict[Hashable, Callable[[], object]], runs: int) -> dict[Hashable, Times]:
    """Times of each function; they take turns, so that a machine that slows down slows all of them.

    A turn that is not measured goes before, for whatever is compiled or read once.
    """
    times, results = {name: [] for name in functions}, {}
    for turn in range(runs + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            results[name] = jax.block_until_ready(function())
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: Times(tuple(spent), results[name]) for name, spent in times.items()}


def per_token(samplers: dict[str, Callable[[int], object]], short: int, long: int, runs: int) -> dict[str, float]:
    """Seconds of a token of each sampler, prefill left out: what `long` tokens take more than `short` ones."""
    turns = {(name, n): partial(sample, n) for n in (short, long) for name, sample in samplers.items()}
    times = in_turns(turns, runs)
    return {name: (times[name, long].median - times[name, short].median) / (long - short) for name in samplers}


def verdict(reached: bool) -> str:
    """A word for a table."""
    return "met" if reached else "NOT met"
