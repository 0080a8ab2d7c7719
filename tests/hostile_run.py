"""A run whose texts try to leave the places where a page shows them."""

import json
from pathlib import Path

import fake_run

HOSTILE = (
    "</script><script>window.broken=1;alert(1)</script><img src=x onerror='window.broken=1'><!--<script>"
    "\u202e\u2028\u2029\ud800\x1b[31m\x00]]>&lt;\"'` javascript:alert(1)"
)
LONG = 1_000_000  # characters of one token


def write(folder: Path) -> Path:
    """A run with the same hostile text in every place that holds text, a very long token, and numbers that are none."""
    run = fake_run.write(folder / "<img src=x onerror=alert(1)>", steps=2)
    config = json.loads((run / "config.json").read_text())
    config["model"]["weights"] = config["objective"]["method"] = HOSTILE
    (run / "config.json").write_text(json.dumps(config))
    metrics = [json.loads(line) | {HOSTILE: 1.0, "health/<b>": float("nan")} for line in _lines(run / "metrics.jsonl")]
    _write(run / "metrics.jsonl", metrics)
    problems = [json.loads(line) for line in _lines(run / "samples.jsonl")]
    for problem in problems:
        problem |= {name: HOSTILE for name in ("question", "answer", "source", "prompt")}
        problem["teacher_prompts"] = {HOSTILE: HOSTILE}
        for rollout in problem["rollouts"]:
            _spoil(rollout)
    _write(run / "samples.jsonl", problems)
    for path in (run / "heldout").glob("*.jsonl"):
        answers = [json.loads(line) for line in _lines(path)]
        for each in answers:
            each |= {name: HOSTILE for name in ("question", "answer", "source")}
            each |= {name: [HOSTILE] * 4 for name in ("text", "extracted", "error")}
        _write(path, answers)
    return run


def _spoil(rollout: dict) -> None:
    count = len(rollout["tokens"])
    pieces = [HOSTILE] * (count - 1)
    pieces[1] = "z" * LONG
    places = [0]
    for piece in pieces:
        places.append(places[-1] + len(piece))
    rollout |= {"text": "".join(pieces), "tokens": [*pieces, "<|im_end|>"], "offsets": [*places, places[-1]]}
    rollout |= {"extracted": HOSTILE, "error": HOSTILE, "teacher_prompts": {HOSTILE: [HOSTILE]}}
    rollout["alternatives"] = [{"token": 0, HOSTILE: [[HOSTILE, 1, 0.5]]}]
    rollout["gap"][0], rollout["dense"][0], rollout[HOSTILE] = 1e9, float("nan"), [0.0] * count


def _lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().split(b"\n") if line]


def _write(path: Path, lines: list[dict]) -> None:
    path.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
