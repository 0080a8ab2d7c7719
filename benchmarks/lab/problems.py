"""Files of the laboratory: its tokenizer, the problems of each split, and the traces that a base model learns from."""

import functools
import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import tokenizers

from benchmarks.lab import task
from benchmarks.lab.task import Puzzle

CHARACTERS = "0123456789+-*=,~:?!x> @|"
END, PAD = "<end>", "<pad>"
WIDTH = 95  # characters of a trace; with the token that ends it, 96
SHOWN = 0.35  # of the traces that a base model learns from: by a writer who is shown a way
EASY_ABOVE = 0.13  # share of the ways that lead to the target
SIZES = {"easy": 128, "hard": 128, "validation": 64, "train": 3000, "train_hard": 3000}
SKILLS = 600  # ways to the target of a problem in the bank of skills, and as many that miss it

# A teacher reads PROBLEM@TEXT. The sentences that the software puts around a part of a way or around a skill have no
# signs here: they become nothing, and with them what the base models have not learned to read, a mistake and the target
# a second time.
_UNREAD = (r"What helps:\n", r"\n\nWhat goes wrong:\n[^|]*", r"\n\nFinal answer: [^|]*", r"\n")

# The user's turn as it stands, then the mark after which the response begins.
_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}|{% endif %}"
)


def write_tokenizer(folder: Path) -> None:
    """One token a character, as tokenizer.json with its configuration."""
    vocab = {PAD: 0, END: 1} | {char: 2 + place for place, char in enumerate(CHARACTERS)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    unread = [tokenizers.normalizers.Replace(tokenizers.Regex(text), "") for text in _UNREAD]
    backend.normalizer = tokenizers.normalizers.Sequence(unread)
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens([PAD, END])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "chat_template": _TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


@functools.cache
def splits() -> dict[str, list[Puzzle]]:
    """The problems of each split, in a fixed order.

    Problems whose digits differ in their order alone fall on one side: either all are held out, or none. In `easy`,
    `validation` and `train` enough of the ways lead to the target; `hard` and `train_hard` are the others. A base model
    has `learned` from all that are not held out.
    """
    held, free = {"easy": [], "hard": [], "validation": []}, []
    for puzzle in sorted(task.puzzles(), key=_digest):
        part = _digest(puzzle._replace(digits=tuple(sorted(puzzle.digits))))[0] % 16
        if part == 0:
            held["easy" if _is_easy(puzzle) else "hard"].append(puzzle)
        elif part == 1 and _is_easy(puzzle):
            held["validation"].append(puzzle)
        elif part > 1:
            free.append(puzzle)
    easy = [puzzle for puzzle in free if _is_easy(puzzle)]
    hard = [puzzle for puzzle in free if not _is_easy(puzzle)]
    cut = {**held, "train": easy, "train_hard": hard}
    return {name: found[: SIZES[name]] for name, found in cut.items()} | {"learned": free}


def _is_easy(puzzle: Puzzle) -> bool:
    return len(puzzle.solutions) > EASY_ABOVE * len(task.ways(puzzle.digits))


def _digest(puzzle: Puzzle) -> bytes:
    return hashlib.sha256(puzzle.question.encode()).digest()


def write_problems(folder: Path) -> None:
    """A file of problems for each split, and three made from them.

    The teacher is shown the first way.

        shown        the easy problems as the teacher reads them
        train_parts  those of training, a line for each part of the way, so that a teacher may be shown some of them
        skills       a bank of skills and mistakes: ways through the digits of training problems
    """
    for name, puzzles in splits().items():
        if name in SIZES:
            rows = [{"question": p.question, "answer": str(p.target), "solution": str(p.solutions[0])} for p in puzzles]
            _write_lines(folder / f"{name}.jsonl", rows)
            if name == "easy":
                shown = [{**row, "question": f"{row['question']}@{row['solution']}"} for row in rows]
                _write_lines(folder / "shown.jsonl", shown)
            elif name == "train":
                parts = [
                    {**row, "solution": "\n".join(p.solutions[0].parts)} for row, p in zip(rows, puzzles, strict=True)
                ]
                _write_lines(folder / "train_parts.jsonl", parts)
                _write_lines(folder / "skills.jsonl", _bank(puzzles[:SKILLS]))


def _bank(puzzles: Iterable[Puzzle]) -> Iterator[dict]:
    """A way to the target of each problem, and one that misses it."""
    for puzzle in puzzles:
        yield {"skill": str(puzzle.solutions[0]), "question": puzzle.question}
        missed = next(way for way, value in task.ways(puzzle.digits).items() if value != puzzle.target)
        yield {"mistake": str(missed), "question": puzzle.question}


def write_traces(path: Path, seed: int) -> None:
    """What the base model of a seed learns from: searches, and responses of a writer who is shown a way."""
    rng, puzzles = random.Random(seed), splits()["learned"]
    shown = [(puzzle, way) for puzzle in puzzles for way in puzzle.solutions]
    asked = [(p, p.question, task.searched(rng, p, WIDTH)) for p in puzzles]
    more = rng.sample(shown, round(len(puzzles) * SHOWN / (1 - SHOWN)))
    asked += [(p, f"{p.question}@{way}", task.informed(rng, p, way)) for p, way in more]
    _write_lines(path, ({"question": q, "answer": str(p.target), "response": text} for p, q, text in asked))


def _write_lines(path: Path, rows: Iterable[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
