"""The parts of `python -m benchmarks.device`: each prints its figures as JSON as soon as it has them."""

import gc
import json
import shutil
import signal
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import gap_noise, step_ratio
from benchmarks.device.unpack import GIVEN
from benchmarks.runs import read_lines
from benchmarks.timing import hardware, in_turns, per_token, prompts
from dasd_jax import cli, terminal
from dasd_jax.batch import RolloutBatch
from dasd_jax.config import Config, from_dict
from dasd_jax.config_files import shipped
from dasd_jax.cost import work
from dasd_jax.mesh import MeshConfig, make_mesh, named, put_rows, replicate
from dasd_jax.model import attention, param_table
from dasd_jax.rollout.sampler import Sampling, relayout, rollout
from dasd_jax.run import models, setup

BFLOAT16, GB = 2, 1e9  # bytes
DECODE_SHARE, UPDATE_SHARE = 0.6, 0.5  # of memory bandwidth and of matrix products, to be reached
PROMPT, TEACHER_PROMPT = 128, 160  # tokens; of bytes, which a prompt of random weights is made of
_AGREE = 0.01  # relative error that rounding to bfloat16 may leave in any case
_STOP_S = 30  # what a training is given to save and end


def say(**figures) -> None:
    """Prints figures; the end of a name is the unit."""
    print(json.dumps(figures), flush=True)


def shaped(tiny: bool) -> Config:
    """Qwen3-1.7B with random weights in bfloat16, or a tiny model of its architecture."""
    config = shipped("qwen_math:tiny" if tiny else "qwen_math:1p7b")
    config.model.update({"weights": "random", "tokenizer": "byte", "compute_dtype": "bfloat16"})
    return from_dict(config.to_dict())


# ------------------------------------------------------------------------------------------------ attention


def kernels(mesh, asked) -> None:
    """Errors relative to XLA in float32, root mean square over root mean square, and seconds of value and gradient."""
    fused, dtype = attention.choose("auto", jax.default_backend(), "bfloat16"), jnp.bfloat16
    if fused == "xla":  # no kernel for this platform: what is handed to cuDNN's, computed by XLA, which has no bfloat16
        fused, dtype = "cudnn", jnp.float32
        attention._cudnn = partial(attention._cudnn, implementation="xla")
    say(kernel=fused)
    rows, heads, kv_heads, width, prompt, new = (4, 4, 2, 16, 24, 39) if asked.tiny else (16, 16, 8, 128, 256, 1023)
    cases = {"behind_prompts": (prompt, 0), "alone": (0, 0), "window": (prompt, new // 2)}
    for case, (before, window) in cases.items():
        arrays, valid, shown = _attention_arrays(mesh, rows, heads, kv_heads, width, before, new)
        of = {
            kind: partial(_value_and_gradients, kind, window, valid=valid, shown=shown)
            for kind in (fused, "xla")
        }  # fmt: skip
        halves = jax.tree.map(lambda x: x.astype(dtype), arrays)
        # Of the rounded arrays, so that the error is that of the computation.
        exact = of["xla"](jax.tree.map(lambda x: x.astype(jnp.float32), halves))
        errors = {kind: jax.tree.map(_error, run(halves), exact) for kind, run in of.items()}
        times = in_turns({kind: partial(run, halves) for kind, run in of.items()}, 3)
        say(**{f"{case}_{kind}_s": times[kind].median for kind in of})
        worst = {kind: max(jax.tree.leaves(found)) for kind, found in errors.items()}
        say(**{f"{case}_{kind}_error": error for kind, error in worst.items()})
        say(**{f"{case}_agrees": worst[fused] <= max(_AGREE, 2 * worst["xla"])})


def _attention_arrays(mesh, rows: int, heads: int, kv_heads: int, width: int, before: int, new: int):
    """Queries, keys, values and, behind prompts of two rows each, the prompts' keys and values; what of them counts."""
    rng = np.random.default_rng(0)

    def normal(axes, *shape):
        return jax.device_put(rng.normal(size=shape).astype(np.float32), named(mesh, *axes))

    whole, cached = ("rows", None, "heads", None), ("rows", "heads", None, None)
    counts = {"q": heads, "k": kv_heads, "v": kv_heads}
    arrays = {name: normal(whole, rows, new, count, width) for name, count in counts.items()}
    lengths = rng.integers(1, new + 1, (rows, 1))
    if not before:  # the prompts themselves, padded on the left
        return arrays, jax.device_put(np.arange(new) >= new - lengths, named(mesh, "rows", None)), None
    arrays |= {name: normal(cached, rows // 2, kv_heads, before, width) for name in ("keys", "values")}
    shown = np.arange(before) >= before - rng.integers(1, before + 1, (rows // 2, 1))
    valid = np.arange(new) < lengths
    return arrays, *(jax.device_put(x, named(mesh, "rows", None)) for x in (valid, shown))


@partial(jax.jit, static_argnums=(0, 1))
def _value_and_gradients(kind: str, window: int, arrays: dict, valid, shown) -> dict:
    """The result where it is valid, and the gradients of the sum of its sines."""

    def loss(arrays):
        before = attention.Prompts(arrays["keys"], arrays["values"], shown) if shown is not None else None
        out = attention.attend(kind, *(arrays[name] for name in "qkv"), valid, before, window=window)
        out = jnp.where(valid[..., None, None], out.astype(jnp.float32), 0.0)
        return jnp.sum(jnp.sin(out)), out

    (_, out), gradients = jax.value_and_grad(loss, has_aux=True)(arrays)
    return gradients | {"out": out}


def _error(found, exact) -> float:
    found, exact = (np.asarray(x, np.float64) for x in (found, exact))
    return float(np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2)))


# ------------------------------------------------------------------------------------------------ the gap's noise


def noise(mesh, asked) -> None:
    """`benchmarks.gap_noise` in two arrangements, by the platform's kernel and by XLA."""
    config = shipped("methods:tiny,method=dasd" if asked.tiny else "smollm2_math")
    config.model.compute_dtype = "bfloat16"
    config.rollout.update({"problems": 8, "rollouts": 2, "max_new_tokens": 8 if asked.tiny else 64})
    if not asked.tiny:
        config.update_from_flattened_dict(_smollm2(asked.given) | _IN_WORDS)
    for kind in ("auto", "xla"):
        config.model.attention = kind
        frozen = from_dict(config.to_dict())
        tokenizer = models.open_tokenizer(frozen.model)
        drawn, _, _ = setup.open_prompts(frozen, tokenizer)
        model, params = models.open_model(frozen, mesh)
        scorer = gap_noise.Scorer(frozen, mesh, model, params, drawn, tokenizer)
        found = gap_noise.measure(scorer, frozen.hp, gap_noise.ARRANGEMENTS[1:3])
        units = {"tokens": "tokens", "seconds": "s", "wrong sign": "wrong_sign_share"}
        say(**{f"{model.attention}_{units.get(name, f'{name}_nats')}": value for name, value in found.items()})
        if model.attention == "xla":  # the platform has no other
            return


def _smollm2(given: Path) -> dict:
    """Where the default model and its problems are."""
    weights, problems = (given / name for name in ("SmolLM2-135M-Instruct.Q4_1.gguf", "sums.jsonl"))
    return {"model.weights": str(weights), "data.sources": (f"jsonl:{problems}",)}


# Answers step by step, of more than a few tokens.
_IN_WORDS = {"data.instruction": "boxed", "data.shots": 0, "data.heldout": 8, "run.eval_problems": 8}


# ------------------------------------------------------------------------------------------------ decoding


def decode(mesh, asked) -> None:
    """Time of a token with prefill taken out, beside that of reading the weights and the cache once."""
    config = shaped(asked.tiny)
    size = 1 << (24 if asked.tiny else 31)  # bytes
    array = jnp.ones(size // 4, jnp.float32)
    rate = 2 * size / min(in_turns({"copy": partial(jax.jit(lambda x: x + 1), array)}, 10)["copy"].runs)
    say(copy_gb_per_s=rate / GB)
    del array
    model, params = models.open_model(config, mesh)
    tokenizer = models.open_tokenizer(config.model)
    decoding = relayout(model, params)
    del params
    seed, step = replicate(mesh, (np.int32(0), np.int32(0)))
    short, long, runs = (1, 9, 1) if asked.tiny else (1, 257, 2)
    for rows in (8, 16) if asked.tiny else (64, 256):
        batch = prompts(mesh, tokenizer, rows // 8, PROMPT)

        def sample(tokens: int, batch=batch):
            return rollout(model, Sampling(8, tokens, (-1,), tokenizer.pad_id), decoding, batch, seed, "train", step)

        took = per_token({"ours": sample}, short, long, runs)["ours"]
        cached = int(batch.student_prompt_mask.sum()) + rows * (short + long) / 2
        read = BFLOAT16 * param_table.num_params(model) + cached * work.cache_bytes(model, BFLOAT16)
        say(**{
            f"batch_{rows}_tokens_per_s": rows / took, f"batch_{rows}_read_gb": read / GB,
            f"batch_{rows}_bandwidth_share": read / rate / took, "target_share": DECODE_SHARE,
        })  # fmt: skip


# ------------------------------------------------------------------------------------------------ learning


def update(mesh, asked) -> None:
    """Score pass of both views and update of DASD on made-up responses, beside matrix products."""
    config, product = shaped(asked.tiny), 256 if asked.tiny else 8192
    problems, response = (2, 32) if asked.tiny else (2, 4096 - PROMPT)
    step = step_ratio.Step(
        "dasd", mesh, config=config, problems=problems, prompt=PROMPT, teacher_prompt=TEACHER_PROMPT, response=response,
        microbatches=problems,
    )  # fmt: skip
    rows, model = problems * step_ratio.GROUP, step.config.model
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (rows, response), np.int32)
    kept = np.ones(tokens.shape, bool)
    step.written = put_rows(mesh, RolloutBatch(tokens, kept, *np.zeros((2, *tokens.shape), np.float32), kept[:, 0]))
    gc.collect()
    products = step_ratio.products(product, jnp.bfloat16)
    times = in_turns({"score": step.score, "update": step.update, "products": products}, 3)
    peak = step_ratio.REPEATS * 2 * product**3 / min(times["products"].runs)
    forward = {
        width: work.forward_flops(model, work.Batch(problems, width, step_ratio.GROUP, response))
        for width in (PROMPT, TEACHER_PROMPT)
    }
    flops = {"score": sum(forward.values()), "update": 3 * forward[PROMPT]}
    say(products_tflop_per_s=peak / 1e12, tokens=rows * response, remat=model.remat, target_share=UPDATE_SHARE)
    for name, count in flops.items():
        rate = count / times[name].median
        say(**{f"{name}_s": times[name].median, f"{name}_tflop_per_s": rate / 1e12, f"{name}_share": rate / peak})
    stats = jax.devices()[0].memory_stats() or {}
    say(peak_memory_gb=stats.get("peak_bytes_in_use", 0) / GB)


# ------------------------------------------------------------------------------------------------ trainings


def train(mesh, asked) -> None:
    """A training of its own, for as long as the part may take; the log says what came of it."""
    del mesh
    name, method = asked.part, asked.part.removeprefix("gsm8k-")
    if asked.tiny:
        config = f"methods:tiny,method={method if method != name else 'dasd'}"
        fields = {"run.steps": 2, "run.eval_problems": 1, "run.eval_samples": 1, "rollout.max_new_tokens": 8}
    elif method != name:
        config = f"gsm8k:method={method}"
        weights = Path(shipped("gsm8k").model.weights).name
        # An evaluation costs about what a batch of rollouts does; a checkpoint is written when the time is over.
        fields = {"model.weights": str(asked.given / weights), "run.checkpoint_every": 1000, "run.eval_every": 10}
        fields |= {"run.eval_problems": 128, "run.eval_samples": 2} | {
            f"data.{field}": (f"tfds:{asked.given / folder}",)
            for field, folder in (("sources", "gsm8k"), ("benchmarks", "gsm8k_test"))
        }
    else:
        config, fields = "smollm2_math", _smollm2(asked.given) | {"model.compute_dtype": "bfloat16"}
        if name == "step":
            fields |= _IN_WORDS | {
                "rollout.problems": 32, "rollout.max_new_tokens": 256, "rollout.verifier_workers": 4,
                "run.steps": 6, "run.eval_samples": 1, "run.checkpoint_every": 100,
            }  # fmt: skip
    workdir = asked.given / "runs" / (name + "-tiny" * asked.tiny)
    flags = [f"--config.{field}={value}" for field, value in fields.items()]
    command = [sys.executable, "-m", "dasd_jax.train", f"--config={config}", f"--workdir={workdir}", *flags]
    process = subprocess.Popen(command, stdout=sys.stderr)
    try:
        code = process.wait(asked.seconds - _STOP_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # it saves, and the same command goes on from there
        try:
            code = process.wait(_STOP_S - 5)
        except subprocess.TimeoutExpired:
            code = 1  # killed with this part; what it has logged is kept
    say(steps=0)
    if (log := workdir / "metrics.jsonl").exists():
        asked.output.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, asked.output / f"{name}-metrics.jsonl")
        say(**summary(read_lines(log)))
    sys.exit(code)


def summary(lines: list[dict]) -> dict:
    """Medians of the steps that compiled nothing new, means of the first and last five, and the evaluations."""
    steps = [line for line in lines if line["step"]]
    phases = [
        name for name in (steps[-1] if steps else {})
        if name.startswith("time/") or name in ("tokens/generated_per_s", "policy/logp_gap_mean", "gap/noise_mean_abs")
    ]  # fmt: skip
    found = {"steps": len(steps)}
    found |= {name: statistics.median(line.get(name, 0.0) for line in steps[1:] or steps) for name in phases}
    for name in ("reward/mean", "entropy/mean", "rollout/length_mean"):
        values = [line[name] for line in steps if name in line]
        if values:
            found |= {f"{name}, first 5": statistics.mean(values[:5]), f"{name}, last 5": statistics.mean(values[-5:])}
    evaluations = {
        line["step"]: {name: value for name, value in line.items() if name.startswith(("eval/avg@", "eval/pass@"))}
        for line in lines
    }
    return found | {"evaluations": {step: figures for step, figures in evaluations.items() if figures}}


MEASURED = {"kernels": kernels, "noise": noise, "decode": decode, "update": update}


def main(argv: list[str]) -> None:
    """Runs one part."""
    flags = terminal.Parser(description=__doc__, allow_abbrev=False)
    flags.add_argument("part")
    flags.add_argument("--output", type=Path, required=True)
    flags.add_argument("--given", type=Path, default=GIVEN.expanduser())
    flags.add_argument("--seconds", type=float, default=600.0)
    flags.add_argument("--tiny", action="store_true")
    asked = flags.parse_args(argv)
    if asked.part not in MEASURED:
        train(None, asked)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    say(device=hardware())
    with jax.set_mesh(mesh):
        MEASURED[asked.part](mesh, asked)


if __name__ == "__main__":
    cli.run(main)
