"""What a run leaves in its folder, for the commands that show it; imports no JAX, so that they start at once.

samples.jsonl holds one line per problem and step:

    step, example_id, source, question, answer
    prompt             the student's prompt as text, special tokens included
    teacher_prompts    view → the teacher's prompt, for views with one prompt per problem
    rollouts           the logged responses to it, each with
        row                its place in the batch, problem-major
        text               without special tokens
        reward, score, extracted, error, finished    as the verifier judged it
        learned_reward     what advantages were made of, where a long response was worth less than `reward`
        advantage          the verifier's share of the credit, one number for all tokens
        teacher_prompts    view → K prompts, for views with prompts of their own for each rollout
        tokens             a readable piece per token, special tokens included
        offsets            tokens + 1 places in `text`, in code points: token i is text[offsets[i]:offsets[i + 1]]
        entropy, gap, route, gate, dense, credit, …    a number per token; which of them depends on the method
        alternatives       where the teacher acts most: token (its place), and student and each teacher with their five
                           likeliest tokens as [piece, id, probability]

`dense` is the teacher's share of a token's credit. heldout/STEP.jsonl and eval/NAME.jsonl hold one line per problem:
example_id, source, question, answer, and lists with an entry per sample: text, reward, extracted, length, finished,
error.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from dasd_jax import files, formats
from dasd_jax.errors import UserError
from dasd_jax.field_names import EVALUATION

# The verifier's REWARD_THRESHOLD and UNJUDGED, without loading the verifier.
_RIGHT = 0.99
_UNJUDGED = frozenset(["timeout", "memory", "crash"])
_FORK_SHARE = 0.2  # of a response's tokens, by entropy: forks. Source: arXiv 2506.01939, and rho of DASD


def check(run: Path) -> None:
    """Refuses a folder that is not of a run.

    Raises:
        UserError: it is not there, or holds no metrics.jsonl.
    """
    if not (run / "metrics.jsonl").is_file():
        raise UserError(f"RUN: {run} holds no metrics.jsonl: expected the --workdir of python -m dasd_jax.train")


def config(run: Path) -> dict:
    """The content of config.json, group → field → value."""
    with files.reading(run / "config.json", "RUN"):
        return formats.read_object(run / "config.json")


def metrics(run: Path) -> list[dict]:
    """The objects of metrics.jsonl in order, each with "step"."""
    return [line for _, line in whole_lines(run / "metrics.jsonl", "RUN", numbers=True)]


def changes(run: Path, flag: str = "RUN") -> list[dict]:
    """The lines of changes.jsonl (run/changes.py), {"step", "field", "before", "after"}; none if there is no file.

    Raises:
        UserError: it is damaged.
    """
    path = run / "changes.jsonl"
    lines = [line for _, line in whole_lines(path, flag)]
    with files.reading(path, flag):
        if odd := [line["field"] for line in lines if type(line["field"]) is not str]:
            raise ValueError(f"{odd[0]!r:.50} is no field")
        return [{name: line[name] for name in ("step", "field", "before", "after")} for line in lines]


def change_as_text(line: dict) -> str:
    """Field and values of a line of `changes`, without its step."""
    shown = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in (line["before"], line["after"])]
    return f"{line['field']} {shown[0]} → {shown[1]}"


def origin(run: Path) -> dict | None:
    """What from.json says of the checkpoint that the run started from (run/origin.py); None if there is no file.

    Raises:
        UserError: it is damaged.
    """
    path = run / "from.json"
    if not path.exists():
        return None
    with files.reading(path, "RUN"):
        found = formats.read_object(path)
        return {name: found[name] for name in ("run", "step", "weights", "optimizer")}


def evaluated_alike_from(lines: Sequence[dict]) -> int:
    """The step since whose end held-out problems have been answered as now; 0 where that never changed.

    Args:
        lines: of `changes`.
    """
    return max((line["step"] - 1 for line in lines if line["field"] in EVALUATION), default=0)


def samples(run: Path) -> Iterator[dict]:
    """The problems of samples.jsonl in order, each with its rollouts; of an older run one rollout each."""
    for _, line in whole_lines(run / "samples.jsonl", "RUN"):
        yield line if "rollouts" in line else of_older(line)


def of_older(line: dict) -> dict:
    """A line of the time when each rollout had one, without prompts, offsets and alternatives."""
    problem = {name: line[name] for name in ("step", "source", "question", "answer") if name in line}
    rollout = {name: value for name, value in line.items() if name not in problem}
    return {**problem, "example_id": None, "prompt": "", "teacher_prompts": {}, "rollouts": [{"row": None, **rollout}]}


def answers(path: Path) -> Iterator[dict]:
    """The problems of a heldout/STEP.jsonl or eval/NAME.jsonl; none where an older run kept no answers."""
    for _, line in whole_lines(path, "RUN", stepped=False):
        if "example_id" in line:
            yield line


def whole_lines(path: Path, flag: str, *, stepped: bool = True, numbers: bool = False) -> Iterator[tuple[bytes, dict]]:
    """Each line of a log as it stands and as an object; a half-written last one is left out, as is a missing file.

    Args:
        flag: names the folder in the message.
        stepped: each object needs an integer "step".
        numbers: each may hold numbers alone.

    Raises:
        UserError: another line is something else.
    """
    if not path.exists():
        return
    # In bytes: text would be cut at U+2028, too, which a model may write.
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            try:
                line = formats.parse_object(text, f"line {number}")
                if stepped and type(line.get("step")) is not int:
                    raise ValueError(f"line {number} has no step")
                if numbers and (odd := [name for name, value in line.items() if type(value) not in (int, float)]):
                    raise ValueError(f"line {number} holds {odd[0]!r:.50}, which is no number")
            except ValueError as error:
                if not text.endswith(b"\n"):
                    return
                raise UserError(f"{flag}: {path}: {error}: expected the file as it was written, or removed") from error
            yield text.rstrip(b"\n"), line


# --------------------------------------------------------------------------------------------- of one rollout


def is_right(rollout: dict) -> bool:
    """Whether the verifier took the response for right: rewards may be graded."""
    return rollout["reward"] >= _RIGHT


def is_judged(rollout: dict) -> bool:
    """Whether the verifier came to a verdict: without one the reward is 0, whatever the response says."""
    return rollout["error"] not in _UNJUDGED


def pieces(rollout: dict) -> list[str]:
    """The text of each token; of tokens that have none in the response, such as the stop token, the readable piece."""
    if "offsets" not in rollout:
        return list(rollout["tokens"])
    text, places = rollout["text"], rollout["offsets"]
    spans = zip(places, places[1:], rollout["tokens"], strict=False)
    return [text[start:end] or piece for start, end, piece in spans]


def directions(rollout: dict) -> list[int]:
    """Of each token 1 where the method pulls toward the teacher, -1 where it pushes away, 0 where it does not act.

    By the method's route where it has one; otherwise the term attracts where it has the sign of the gap. A method
    without a dense term, whose loss is a divergence from the teacher, attracts wherever there is a gap.
    """
    count = len(rollout["tokens"])
    gap = rollout.get("gap", [0.0] * count)
    pushed = rollout.get("dense")
    if "route" in rollout:
        return [_sign(route) if d else 0 for route, d in zip(rollout["route"], pushed or gap, strict=True)]
    return [_sign(d * g) for d, g in zip(pushed or gap, gap, strict=True)]


def strengths(rollout: dict) -> list[float]:
    """How strongly the teacher acts on each token, at least 0: |dense|, or |gap| of a method without one."""
    return [abs(value) for value in rollout.get("dense") or rollout.get("gap") or [0.0] * len(rollout["tokens"])]


def forks(rollout: dict) -> list[bool]:
    """The tokens above the 0.8 quantile of the response's entropies, which DASD takes for forks."""
    entropy: Sequence[float] = rollout.get("entropy", [])
    if not entropy:
        return [False] * len(rollout["tokens"])
    place = (1 - _FORK_SHARE) * (len(entropy) - 1)
    ordered, low = sorted(entropy), int(place)
    high = min(low + 1, len(entropy) - 1)
    threshold = ordered[low] + (place - low) * (ordered[high] - ordered[low])
    return [value > threshold for value in entropy]


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
