"""A run's folder with made-up content of the right form, for what reads it; nothing is computed by a model."""

import json
from pathlib import Path

import numpy as np

_WORDS = (" the", " so", " wait", " 12", "+", " 30", " =", " 42", " maybe", ".\n", " check", " final", " answer", " is")
_VIEWS = ("student", "teacher")


def write(
    folder: Path, *, steps: int = 4, problems: int = 2, rollouts: int = 2, tokens: int = 12, seed: int = 0
) -> Path:
    """Writes config.json, metrics.jsonl, samples.jsonl, heldout/ and done.json of a run of `steps` steps.

    Args:
        problems, rollouts: logged in each step.
        tokens: of each response, the stop token among them.
    """
    draw = np.random.default_rng(seed)
    (folder / "heldout").mkdir(parents=True, exist_ok=True)
    config = {
        "model": {"preset": "tiny", "weights": ""},
        "objective": {"method": "dasd", "beta": 0.1, "rho": 0.2},
        "optim": {"learning_rate": 1e-6},
        "run": {"seed": seed, "steps": steps, "eval_samples": 4},
    }
    (folder / "config.json").write_text(json.dumps(config))
    _lines(folder / "metrics.jsonl", [_metrics(step, steps, draw) for step in range(steps + 1)])
    logged = [_problem(step, i, rollouts, tokens, draw) for step in range(1, steps + 1) for i in range(problems)]
    _lines(folder / "samples.jsonl", logged)
    for step in (0, steps):
        average = float(draw.uniform(0.2, 0.8))
        figures = {
            "problems": 4, "avg@4": average, "standard_error": 0.1, "pass@1": average, "pass@2": average + 0.1,
            "pass@4": average + 0.2, "length_mean": 10.0, "truncated_frac": 0.1, "parse_failure_frac": 0.1,
        }  # fmt: skip
        result = {
            **figures, "samples": 4, "macro": figures, "benchmarks": {"math": figures}, "per_problem": [average] * 4,
        }  # fmt: skip
        (folder / "heldout" / f"{step}.json").write_text(json.dumps(result))
        _lines(folder / "heldout" / f"{step}.jsonl", [_answers(i, step, draw) for i in range(4)])
    (folder / "done.json").write_text(json.dumps({"workdir": str(folder), "steps": steps}))
    return folder


def _lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def _metrics(step: int, steps: int, draw) -> dict:
    line = {"step": step}
    if step in (0, steps):
        line |= {"eval/avg@4": draw.uniform(0.2, 0.8), "eval/standard_error": 0.1, "eval/pass@4": 0.8}
        line |= {"time/eval_s": 3.0}
    if step == 0:
        return line
    return line | {
        "reward/mean": draw.uniform(0, 1), "entropy/mean": draw.uniform(0.5, 1.5), "loss/total": draw.normal(),
        "gap/mean_abs": draw.uniform(0.1, 0.3), "gap/noise_mean_abs": 0.002, "rollout/length_mean": 10.0,
        "rollout/length_p95": 12.0, "router/attract_mass": draw.uniform(0, 0.2), "router/repel_mass": 0.1,
        "health/epistemic_per_1k": draw.uniform(0, 10), "time/step_s": 2.0, "time/checkpoint_s": 0.1,
    }  # fmt: skip


def _problem(step: int, i: int, rollouts: int, tokens: int, draw) -> dict:
    return {
        "step": step, "example_id": 10 * step + i, "source": "jsonl:math.jsonl",
        "question": f"What is {step} + {i}?", "answer": str(step + i),
        "prompt": f"<|im_start|>user\nWhat is {step} + {i}?<|im_end|>\n<|im_start|>assistant\n",
        "teacher_prompts": {
            "teacher": f"<|im_start|>user\nWhat is {step} + {i}? The answer is {step + i}.<|im_end|>\n"
            "<|im_start|>assistant\n"
        },
        "rollouts": [_rollout(i * rollouts + g, g % 2, tokens, draw) for g in range(rollouts)],
    }  # fmt: skip


def _rollout(row: int, right: int, tokens: int, draw) -> dict:
    pieces = [_WORDS[i] for i in draw.integers(len(_WORDS), size=tokens - 1)]
    text = "".join(pieces)
    gap, entropy = draw.normal(0, 0.3, tokens), draw.gamma(0.5, 1.0, tokens)
    route = np.tanh((np.quantile(entropy, 0.8) - entropy) / 0.5)
    gate = 1 / (1 + np.exp(1 - np.abs(gap) / 0.2))
    dense = 0.1 * route * gate * np.clip(gap / 0.2, -3, 3)
    advantage = 0.7 if right else -0.7
    arrays = {"entropy": entropy, "gap": gap, "route": route, "gate": gate, "dense": dense, "credit": advantage + dense}
    return {
        "row": row, "text": text, "reward": float(right), "score": float(right), "extracted": "42" if right else None,
        "error": "" if right else "parse", "finished": True, "advantage": advantage, "teacher_prompts": {},
        "tokens": [*pieces, "<|im_end|>"],
        "offsets": [0, *np.cumsum([len(piece) for piece in pieces]).tolist(), len(text)],
        **{name: [round(float(v), 5) for v in values] for name, values in arrays.items()},
        "alternatives": [
            {"token": int(t), **{view: [[_WORDS[k], k, round(0.5 / 2**k, 5)] for k in range(5)] for view in _VIEWS}}
            for t in np.sort(np.argsort(-np.abs(dense))[:4])
        ],
    }  # fmt: skip


def _answers(i: int, step: int, draw) -> dict:
    right = draw.integers(2, size=4).tolist()
    return {
        "example_id": i, "source": "jsonl:math.jsonl", "question": f"What is 2 + {i}?", "answer": str(2 + i),
        "text": [f"Wait, 2 + {i} = {2 + i}. The answer is {2 + i if r else 'unknown'}" for r in right],
        "reward": [float(r) for r in right], "extracted": [str(2 + i) if r else None for r in right],
        "length": [12 + step] * 4, "finished": [True] * 4, "error": ["" if r else "parse" for r in right],
    }  # fmt: skip
