"""Problems: specs of sources, and rows of the files that they name."""

import contextlib
import json
import random
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet

from benchmarks.fuzz import mutate
from benchmarks.fuzz.commands import command, text_of
from benchmarks.fuzz.samples import ROWS
from dasd_jax import prepare
from dasd_jax.data.heldout import split_heldout
from dasd_jax.data.pipeline import PromptSet, PromptText
from dasd_jax.data.sources import labels, load_problems
from dasd_jax.text.tokenizer_files import load_tokenizer


def _read_problems(*specs: str) -> None:
    """As a run does: read, hold out, tokenise."""
    problems, _ = load_problems(specs)
    kept, _ = split_heldout(problems, min(1, len(problems) - 1))
    labels(specs)
    text = PromptText("boxed", sources=(), privileged="answer", enable_thinking=None, shots=())
    PromptSet(kept, load_tokenizer("byte"), text, student_width=4096, teacher_width=4096, target_width=4096)


def rows_jsonl(rng: random.Random, samples: Path, folder: Path):
    """Lines of a JSONL file."""
    file = folder / "rows.jsonl"
    if rng.random() < 0.5:
        what, line = mutate.altered(rng, rng.choice(ROWS))
        lines = [json.dumps(row) for row in ROWS[:2]] + [line]
        file.write_bytes("\n".join(rng.sample(lines, 3)).encode(errors="surrogateescape"))
    else:
        what, content = mutate.damaged(rng, (samples / "rows.jsonl").read_bytes())
        file.write_bytes(content)
    return what, lambda: _read_problems(f"jsonl:{file}")


_COLUMNS = (
    pyarrow.array([b"\xff\xfe", b"a"], pyarrow.binary()),
    pyarrow.array([1, None], pyarrow.int64()),
    pyarrow.array([float("nan"), float("inf")], pyarrow.float64()),
    pyarrow.array([2**62, -(2**63)], pyarrow.timestamp("ns")),
    pyarrow.array([2**62, -(2**63)], pyarrow.timestamp("s")),
    pyarrow.array([2**31 - 1, -(2**31)], pyarrow.date32()),
    pyarrow.array([2**62, 1], pyarrow.duration("s")),
    pyarrow.array([[], None], pyarrow.list_(pyarrow.string())),
    pyarrow.array([{"a": 1}, None]),
    pyarrow.array([[("a", 1), ("a", 2)], None], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
    pyarrow.array([True, None], pyarrow.bool_()),
    pyarrow.array([None, None], pyarrow.null()),
    pyarrow.array(["", "x" * 100_000], pyarrow.large_string()),
    pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 0]), pyarrow.array(["same"])),
)


def rows_parquet(rng: random.Random, samples: Path, folder: Path):
    """Bytes and column types of a Parquet file."""
    file = folder / "rows.parquet"
    if rng.random() < 0.35:
        columns = {name: rng.choice(_COLUMNS) for name in ("question", "answer", "solution", "question")}
        what = ", ".join(f"{name} {column.type}" for name, column in columns.items())
        with contextlib.suppress(pyarrow.ArrowException):  # not every type can be written
            pyarrow.parquet.write_table(pyarrow.table(columns), file)
    else:
        content = (samples / "rows.parquet").read_bytes()
        if rng.random() < 0.5:  # the footer is where the lengths are
            body, footer = content[:-800], content[-800:]
            what, footer = mutate.damaged(rng, footer)
            file.write_bytes(body + footer)
        else:
            what, content = mutate.damaged(rng, content)
            file.write_bytes(content)
    return what, lambda: _read_problems(f"parquet:{file}")


def specs(rng: random.Random, samples: Path, folder: Path):
    """Source specs, and data sets of TFDS with damaged files."""
    if rng.random() < 0.2:
        folder = _prepared(samples, folder)
        name = rng.choice(sorted(path.name for path in folder.iterdir()))
        what, content = mutate.damaged(rng, (folder / name).read_bytes())
        (folder / name).write_bytes(content)
        return f"tfds {name}: {what}", lambda: _read_problems(f"tfds:{folder}")
    known = (
        "gym:chain_sum?min_terms=2&max_terms=2&size=5&seed=1",
        "gym:lcm?size=3",
        f"jsonl:{samples}/rows.jsonl?question=question&answer=answer",
        f"parquet:{samples}/rows.parquet?privileged=solution",
        f"tfds:{samples}/hf?split=train",
    )
    spec = rng.choice(known)
    if rng.random() < 0.7:
        head, _, query = spec.partition("?")
        pairs = [pair.partition("=") for pair in query.split("&") if pair] or [("size", "=", "3")]
        place = rng.randrange(len(pairs))
        name = rng.choice((pairs[place][0],) * 4 + ("privileged", "question", "seed", "size", "operators", "__class__"))
        pairs[place] = (name, "=", str(rng.choice(mutate.NASTY)) if rng.random() < 0.7 else text_of(rng))
        spec = head + "?" + "&".join("".join(pair) for pair in pairs)
    else:
        spec = mutate.damaged(rng, spec.encode())[1].decode(errors="surrogateescape")
    return spec, lambda: _read_problems(spec)


def _prepared(samples: Path, folder: Path) -> Path:
    """A copy of a data set that `prepare` made."""
    made = samples / "prepared"
    if not made.exists():
        command(prepare.main, f"--input={samples}/rows.jsonl", f"--output={made}")
    return Path(shutil.copytree(made, folder / "set"))


def prepared(rng: random.Random, _samples: Path, folder: Path):
    """Rows of the published layouts, through the command that makes data sets of them."""
    rows = rng.choice(
        (
            [{"prompt": [{"role": "user", "content": "1+1?"}], "reward_model": {"ground_truth": "2", "style": "rule"}}],
            [{"prompt": '[{"role": "user", "content": "1+1?"}]', "reward_model": '{"ground_truth": "[\\"2\\"]"}'}],
            [{"prompt": "1+1?", "messages": "[]", "ground_truth": "2", "difficulty": "1", "case_type": ""}],
            [{"prompt": "1+1?", "answer": "2", "kind": "math"}],
            [{"question": "1+1?", "answer": "1+1 = <<1+1=2>>2.\n#### 2"}],
            [{"problem": "1+1?", "answer": "2", "question_type": "MCQ", "problem_is_valid": "Yes"}],
            [{"problem": "What is 2?", "solution": "It is \\boxed{2}."}],
            [{"problem": "What is 2?", "answer": "2", "solution": "2."}],
            [{"prompt": "What is 2?", "solution": "2", "source_prompt": [{"role": "user", "content": "?"}]}],
            [{"question": "1?", "final_answer": ["1"], "modality": "Text-only", "language": "English", "error": None}],
            ROWS[:2],
        )
    )
    what, line = mutate.altered(rng, rows[0])
    file = folder / "rows.jsonl"
    file.write_bytes((line + "\n" + json.dumps(rows[0])).encode(errors="surrogateescape"))
    extra = []
    if rng.random() < 0.3:
        extra = [
            rng.choice(("--layout=", "--columns="))
            + rng.choice(("problem_boxed", "question=a", "=", ",", "\ud800", "verl"))
        ]
    return what, lambda: command(prepare.main, f"--input={file}", f"--output={folder / 'set'}", *extra)
