"""What the host does between device programs: python -m benchmarks.host_work [--rows=1024] [--tokens=8192]

Runs three steps of `dasd_jax.train` whose device programs are replaced by ones that return made-up results at once,
the update after the time of its bound: responses of half the tokens to all of them, worked solutions in a row with an
answer at the end. Everything between the programs is real: detokenising, verification, teachers' prompts, the log.
Prints the seconds from each program's end to the next one's beginning, of the second step, and their share of the bound
of a step on the slice of docs/tpu.md where steps are shortest. Needs the tokenizer and the problems that
configs/gsm8k.py names.
"""

import argparse
import contextlib
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from unittest import mock

import jax
import numpy as np

from benchmarks.timing import hardware
from dasd_jax import train
from dasd_jax.batch import RolloutBatch
from dasd_jax.config import Config
from dasd_jax.run import collect, models
from dasd_jax.text.tokenizer_files import load_tokenizer

GROUP = 8
STEP_S, UPDATE_S = 155, 7.87  # bounds of configs/qwen_math.py:8b,v6e-64, docs/tpu.md
PER_TOKEN = ("logp", "entropy", "gap", "route", "gate", "dense", "credit")  # what DASD logs


class Clock:
    """When each program of a step began and ended."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.calls: list[tuple[str, float, float]] = []

    def around(self, name: str, program: Callable) -> Callable:
        """The same, noted."""

        def noted(*args, **named):
            began = time.perf_counter()
            result = program(*args, **named)
            # An update is still on its way when it returns.
            later = UPDATE_S if name == "train_step" else 0
            self.calls.append((name, began, time.perf_counter() + later))
            return result

        return noted

    def between(self) -> dict[str, float]:
        """'PROGRAM → NEXT' → seconds of the last whole step."""
        starts = [place for place, (name, _, _) in enumerate(self.calls) if name == "rollout"]
        step = self.calls[starts[-2] : starts[-1] + 1]
        return {f"{one[0]} → {two[0]}": two[1] - one[2] for one, two in itertools.pairwise(step)}


def main() -> None:
    """Replaces, runs, prints."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--rows", type=int, default=1024, help="responses of a step, a multiple of 8")
    flags.add_argument("--tokens", type=int, default=8192, help="of the longest response")
    flags.add_argument("--workers", type=int, default=2, help="processes that verify")
    asked = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder, replaced(asked.rows, asked.tokens) as clock:
        train.main(
            [
                "--config=configs/gsm8k.py:cpu",
                f"--workdir={folder}/run",
                "--config.model.weights=random",
                "--config.model.preset=lab",
                f"--config.model.tokenizer={tokenizer_path()}",
                f"--config.rollout.problems={asked.rows // GROUP}",
                f"--config.rollout.rollouts={GROUP}",
                f"--config.rollout.max_new_tokens={asked.tokens}",
                f"--config.rollout.verifier_workers={asked.workers}",
                "--config.rollout.slots=8",
                "--config.run.steps=3",
                "--config.run.samples_mb=1024",
            ]
        )
    seconds = clock.between()
    print(f"{asked.rows} responses of up to {asked.tokens} tokens, {asked.workers} verifying processes; {hardware()}")
    for name, value in seconds.items():
        print(f"{name:24} {value:7.2f} s")
    total = sum(seconds.values())
    print(f"{'together':24} {total:7.2f} s, {total / STEP_S:.1%} of {STEP_S} s")


def tokenizer_path() -> str:
    """Of configs/gsm8k.py."""
    sys.path.append("configs")
    from gsm8k import WEIGHTS

    return WEIGHTS


@contextlib.contextmanager
def replaced(rows: int, tokens: int) -> Iterator[Clock]:
    """Device programs that return at once, and when they were called."""
    clock, made = Clock(), Made(rows, tokens)
    with contextlib.ExitStack() as stack:
        for owner, name, program in (
            (collect, "relayout", lambda model, params, weights: params),
            (collect, "rollout", made.rollout),
            (train, "score_step", made.score_step),
            (train, "rounding_noise", lambda *args: 0.0),
            (train, "inspect", made.inspect),
            (train, "train_step", made.train_step),
        ):
            noted = program if name in ("relayout", "rounding_noise") else clock.around(name, program)
            stack.enter_context(mock.patch.object(owner, name, noted))
        # Nobody asks the model anything: it is too small for these responses and this tokenizer.
        for owner, name, result in (
            (Config, "check_context", None),
            (models, "check_vocabulary", None),
            (train, "evaluate_heldout", {"eval/macro/avg@4": 0.0}),
            (train, "finish", None),
        ):
            stack.enter_context(mock.patch.object(owner, name, return_value=result))
        yield clock


class Made:
    """Results of the programs, made before they are asked for."""

    def __init__(self, rows: int, tokens: int) -> None:
        """Responses are solutions in a row, the last of them with the answer of another problem or of the same."""
        self._tokenizer = load_tokenizer(tokenizer_path())
        self._rows, self._tokens = rows, tokens
        self._zeros = np.zeros((rows, tokens), np.float32)
        self._text = np.asarray(self._tokenizer.encode(_REASONING * (tokens // 60 + 1)), np.int32)

    def rollout(self, model, sampling, params, prompts, seed, split, step):
        """(RolloutBatch, steps of decoding)."""
        rng = np.random.default_rng(int(step))
        lengths = rng.integers(self._tokens // 2, self._tokens + 1, self._rows)
        response = np.zeros((self._rows, self._tokens), np.int32)
        for row, length in zip(response, lengths, strict=True):
            end = self._tokenizer.encode(f"\n#### {rng.integers(0, 100)}")
            body = np.roll(self._text, -int(rng.integers(len(self._text))))[: length - len(end)]
            row[:length] = [*body, *end]
        mask = np.arange(self._tokens) < lengths[:, None]
        batch = RolloutBatch(response, mask, self._zeros, self._zeros, finished=lengths < self._tokens)
        return batch, np.full(1, self._tokens)

    def score_step(self, steps, params, copies, prompts, shown, rollouts, outcomes, knobs, chosen, tables, rescore):
        """(experience, what is logged, scalars, states)."""
        experience = mock.Mock(old_logp=self._zeros)
        return experience, dict.fromkeys(PER_TOKEN, self._zeros), {"policy/logp_gap_max": np.float32(0)}, {}

    def inspect(self, steps, params, copies, prompts, response, mask, states, logged, rows):
        """(numbers per token, places, likeliest tokens)."""
        numbers = {name: np.random.default_rng(0).normal(size=response.shape) for name in PER_TOKEN}
        places = np.tile(np.arange(12), (len(response), 1))
        likeliest = (np.ones((len(response), 12, 5), np.int32), np.full((len(response), 12, 5), 0.2))
        return numbers, places, {"student": likeliest, "teacher": likeliest}

    def train_step(self, steps, optimizer, state, experience, batches):
        """(state, scalars)."""
        state = state.replace(step=state.step + 1, batches_drawn=state.batches_drawn + batches)
        return state, {"optim/skipped_frac": Later(0.0, UPDATE_S), "loss/total": np.float32(0)}


class Later:
    """A number that a device is still calculating."""

    def __init__(self, value: float, seconds: float) -> None:
        """It is known after some seconds."""
        self._value, self._known = value, time.perf_counter() + seconds

    def __float__(self) -> float:
        time.sleep(max(self._known - time.perf_counter(), 0))
        return self._value


_REASONING = (
    "First we count what she has: 12 boxes of 8 pencils are 12 * 8 = 96 pencils. Wait, the problem says that "
    "a quarter of them is sold, so $\\frac{96}{4} = 24$ are gone and 96 - 24 = 72 are left.\n\n"
)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
