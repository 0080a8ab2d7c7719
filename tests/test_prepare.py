"""The command that makes data sets: what it writes, what it counts, and the road from published files to a score."""

import dataclasses
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from etils import epath
from etils.epath import backend as epath_backends
from fsspec.implementations.memory import MemoryFileSystem

from dasd_jax import cli, prepare
from dasd_jax.data.sources import load_source
from dasd_jax.errors import UserError

ROOT = Path(__file__).parents[1]

DAPO_WORDS = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
    '{}\n\nRemember to put your answer on its own line after "Answer:".'
)


def dapo_file(path, questions):
    rows = [
        {
            "data_source": "math_dapo",
            "prompt": [{"role": "user", "content": DAPO_WORDS.format(question)}],
            "ability": "MATH",
            "reward_model": {"ground_truth": str(number), "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": str(number)},
        }
        for number, question in enumerate(questions)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=7)


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_repeated_problems_are_kept_once_in_their_order_and_read_back(tmp_path, capsys, monkeypatch):
    """Rows in several groups and batches, as in the published file that repeats each problem a hundred times."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    dapo_file(tmp_path / "dapo.parquet", [f"What is ${i}+0$?" for i in range(500)] * 5 + ["what  is $3+0$? ", " "])
    output = tmp_path / "data" / "dapo_math_17k"
    prepare.main([f"--input={tmp_path}/dapo.parquet", f"--output={output}"])
    assert capsys.readouterr().out.splitlines() == [
        f"{output}: 2502 rows read, 500 problems kept",
        "  2001 dropped: duplicate question (" + ", ".join(f"dapo.parquet[{i}]" for i in range(500, 510)) + ", …)",
        "  1 dropped: empty question (dapo.parquet[2501])",
    ]
    record = json.loads((output / "prepared.json").read_text())
    assert (record["read"], record["kept"]) == (2502, 500)
    assert record["dropped"] == {"duplicate question": 2001, "empty question": 1}
    assert sorted(path.name.partition("-")[0] for path in output.rglob("*")) == [
        "dapo_math_17k", "dataset_info.json", "features.json", "prepared.json"
    ]  # fmt: skip
    problems = load_source(f"tfds:{output}")
    assert [(p.question, p.answer) for p in problems] == [(f"What is ${i}+0$?", str(i)) for i in range(500)]
    assert len(load_source(f"tfds:{output}?split=train[:10]")) == 10
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["dapo_math_17k"]
    assert not list((tmp_path / "tmp").iterdir())


def test_all_four_texts_survive_and_two_files_are_one_data_set(tmp_path):
    first = lines(tmp_path / "1.jsonl", {"task": "π + 1?", "result": 2.5, "solution": "Add\nthem.", "tip": "count"})
    second = lines(
        tmp_path / "2.jsonl", {"task": "Π + 1?", "result": 3, "tip": ""}, {"task": "2?", "result": 3, "tip": ""}
    )
    output = tmp_path / "1-Mine"
    columns = "--columns=question=task,answer=result,hint=tip"
    prepare.main([f"--input={first},{second}", f"--output={output}", columns])
    one, two = load_source(f"tfds:{output}")
    assert (one.question, one.answer, one.solution, one.hint) == ("π + 1?", "2.5", "Add\nthem.", "count")
    assert (two.question, two.answer, two.solution, two.hint) == ("2?", "3", "", "")


def test_an_existing_folder_is_left_alone(tmp_path, capsys, refused):
    source = lines(tmp_path / "p.jsonl", {"question": "1+1?", "answer": "2"})
    output = tmp_path / "p"
    prepare.main([f"--input={source}", f"--output={output}"])
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    prepare.main([f"--input={source}", f"--output={output}"])
    assert "already exists, made from the same files" in capsys.readouterr().out
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before
    lines(source, {"question": "1+1?", "answer": "3"})
    for folder in (output, tmp_path):
        error = refused(f"--input={source}", f"--output={folder}")
        assert (
            error
            == f"error: --output: {folder} exists and holds something else: expected a folder that does not exist yet\n"
        )
    assert load_source(f"tfds:{output}")[0].answer == "2"


@pytest.fixture
def refused(monkeypatch, capsys):
    """What `prepare` says to arguments that it has to refuse, through the door of every command."""

    def error_of(*argv) -> str:
        monkeypatch.setattr(sys, "argv", ["prepare", *argv])
        with pytest.raises(SystemExit) as stopped:
            cli.run(prepare.main)
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.count("\n") == 1, error
        return error

    return error_of


def test_a_mistake_is_one_line_and_leaves_nothing_behind(tmp_path, refused, monkeypatch):
    good = {"question": "1+1?", "answer": "2"}
    known = lines(tmp_path / "known.jsonl", good)
    late = lines(tmp_path / "late.jsonl", *({"question": f"{i}?", "answer": "1"} for i in range(9)), {"question": "q"})
    other = lines(tmp_path / "other.jsonl", {"task": "1+1?", "result": "2"})
    worked = lines(tmp_path / "worked.jsonl", {"question": "1+1?", "answer": "one more\nA: 2"})
    empty = lines(tmp_path / "empty.jsonl")
    table = tmp_path / "table.csv"
    table.write_text("question,answer\n1+1?,2\n")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1" + b"\0" * 100)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    before = sorted(tmp_path.iterdir())
    output = tmp_path / "new" / "data"
    layouts = "dapo_processed, verl, sdpo, roll, olympiadbench, deepmath, problem_answer, opsd, "
    for argv, expected in (
        ([f"--input={tmp_path}/no.jsonl"], f"--input: no such file '{tmp_path}/no.jsonl'"),
        (["--input=,"], "--input: ',': expected at least one file"),
        ([f"--input={table}"], f"--input: {table}: expected a file name that ends in .parquet or .jsonl"),
        ([f"--input={broken}"], f"--input: {broken}: cannot be read as Parquet ("),
        (["--input=gs://bucket/a.jsonl"], "--input: gs://bucket/a.jsonl: cannot be reached (ImportError: "),
        ([f"--input={late}"], f"--input: {late}:10: no field 'answer', the row has question"),
        ([f"--input={empty}"], f"--input: {empty}: no problems left: no rows"),
        ([f"--input={worked}"], f"--input: {worked}: no problems left: 1 no unique verifiable answer"),
        (
            [f"--input={other}"],
            f"--input: {other}: no known layout has the columns result, task: "
            "expected --columns=question=COLUMN,answer=COLUMN",
        ),
        (
            [f"--input={other}", "--columns=question=task,answer=final"],
            f"--input: {other}:1: no field 'final', the row has result, task",
        ),
        ([f"--input={known}", "--columns=question"], "--columns: 'question': expected FIELD=COLUMN,FIELD=COLUMN"),
        ([f"--input={known}", "--columns=text=a"], "--columns: 'text=a': unknown field 'text', expected one of"),
        ([f"--input={known}", "--layout=gsm"], f"--layout: 'gsm': expected auto or one of {layouts}"),
        ([f"--input={known}", "--layout=verl"], f"--input: {known}:1: no field 'prompt', the row has answer"),
        ([f"--input={known}", "--layout=verl", "--columns=question=a"], "--layout: 'verl': expected it or --columns"),
        ([f"--input={known}", "--overwrite"], "unrecognized arguments: --overwrite"),
        ([], "the following arguments are required: --input"),
    ):
        error = refused(*argv, f"--output={output}")
        assert error.startswith(f"error: {expected}"), error
        assert sorted(tmp_path.iterdir()) == before
    error = refused(f"--input={known}", "--output=gs://bucket/data")
    assert error.startswith("error: --output: gs://bucket/data: cannot be reached (ImportError: Please install gcsfs")
    error = refused(f"--input={known}", f"--output={known}/data")
    assert error == f"error: --output: {known}/data: {known} is not a writable folder\n"


class Bucket(MemoryFileSystem):
    """gs:// in memory, in the place of gcsfs; `full` is the name of a file that there is no room for."""

    protocol = ("gs", "gcs")
    store: dict = {}
    pseudo_dirs: list = [""]
    full = ""

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("gs:/"))

    def open(self, path, mode="rb", **kwargs):
        if self.full and "w" in mode and path.endswith(self.full):
            raise ConnectionError("no room")
        return super().open(path, mode, **kwargs)


@pytest.fixture
def bucket(monkeypatch):
    """An empty bucket behind every gs:// path."""
    epath_backends.fsspec_backend._get_filesystem.cache_clear()
    fsspec.register_implementation("gcs", Bucket, clobber=True)
    Bucket.store.clear()
    yield Bucket
    Bucket.store.clear()
    epath_backends.fsspec_backend._get_filesystem.cache_clear()
    fsspec.register_implementation("gcs", "gcsfs.GCSFileSystem", clobber=True)


def test_a_bucket_holds_the_same_data_set_as_a_folder(tmp_path, bucket, capsys, refused):
    """Read from a bucket, written to one and read back; the record is the last file, and a second time nothing is."""
    rows = [{"question": f"{i}?", "answer": str(i), "hint": "π"} for i in range(300)]
    local = lines(tmp_path / "p.jsonl", *rows)
    prepare.main([f"--input={local}", f"--output={tmp_path}/data"])
    epath.Path("gs://b/in/p.jsonl").write_bytes(local.read_bytes())
    prepare.main(["--input=gs://b/in/p.jsonl", "--output=gs://b/sets/data"])
    assert capsys.readouterr().out.splitlines()[-1] == "gs://b/sets/data: 300 rows read, 300 problems kept"
    files = [name for name in bucket.store if name.startswith("/b/sets")]
    assert files[-1] == "/b/sets/data/prepared.json"
    assert sorted(Path(name).name for name in files) == sorted(path.name for path in (tmp_path / "data").iterdir())
    assert bucket.store[files[-1]].getvalue() == (tmp_path / "data" / "prepared.json").read_bytes()

    here, there = (
        load_source(f"tfds:{tmp_path}/data?split=train[:99]"),
        load_source("tfds:gs://b/sets/data?split=train[:99]"),
    )
    assert len(there) == 99
    assert [dataclasses.replace(p, source="") for p in there] == [dataclasses.replace(p, source="") for p in here]

    before = {name: file.modified for name, file in bucket.store.items()}
    prepare.main(["--input=gs://b/in/p.jsonl", "--output=gs://b/sets/data"])
    assert "already exists, made from the same files" in capsys.readouterr().out
    lines(local, *rows[1:])
    assert "exists and holds something else" in refused(f"--input={local}", "--output=gs://b/sets/data")
    assert {name: file.modified for name, file in bucket.store.items()} == before


def test_a_bucket_that_fails_is_one_line_and_holds_nothing_of_the_data_set(tmp_path, bucket, refused, monkeypatch):
    local = lines(tmp_path / "p.jsonl", {"question": "1?", "answer": "1"})
    monkeypatch.setattr(Bucket, "full", "prepared.json")
    error = refused(f"--input={local}", "--output=gs://b/data")
    assert error == "error: --output: gs://b/data: cannot be reached (ConnectionError: no room)\n"
    assert not bucket.store
    assert (
        refused("--input=gs://b/no.jsonl", "--output=gs://b/data") == "error: --input: no such file 'gs://b/no.jsonl'\n"
    )
    with pytest.raises(UserError, match="data.sources: 'tfds:gs://b/data': no such directory 'gs://b/data'"):
        load_source("tfds:gs://b/data")


@pytest.mark.slow
def test_from_published_files_to_a_score_without_tensorflow(tmp_path):
    """One process; an evaluation that is broken off in its second batch ends like a whole one."""
    dapo_file(tmp_path / "dapo.parquet", [f"What is ${i}+0$?" for i in range(24)] * 3)
    lines(tmp_path / "aime25.jsonl", *({"problem": f"What is ${i}+0$?", "answer": i, "id": str(i)} for i in range(4)))
    columns = {"solution": "s", "subject": "Algebra", "level": 1, "unique_id": "t"}
    lines(tmp_path / "math500.jsonl", *({"problem": f"Half of {i}?", "answer": str(i), **columns} for i in range(7)))
    program = textwrap.dedent("""
        import pathlib, sys
        from dasd_jax import evaluate, prepare, train
        from dasd_jax.verify.verifier import Verifier

        folder = sys.argv[1]
        for name in ("dapo.parquet", "aime25.jsonl", "math500.jsonl"):
            prepare.main([f"--input={folder}/{name}", f"--output={folder}/data/{name.split('.')[0]}"])
        args = [
            "--config=configs/qwen_math.py:tiny", f"--workdir={folder}/run", "--config.run.steps=2",
            f"--config.data.sources=('tfds:{folder}/data/dapo',)", "--config.data.heldout=0",
            f"--config.data.benchmarks=('tfds:{folder}/data/aime25', 'tfds:{folder}/data/math500?split=train')",
            "--config.run.eval_problems=0",
        ]
        train.main(args)
        verify, calls = Verifier.verify, []
        def interrupted(self, *batch):
            calls.append(len(batch[0]))
            if len(calls) == 2:
                raise KeyboardInterrupt
            return verify(self, *batch)
        Verifier.verify = interrupted
        try:
            evaluate.main(args)
        except KeyboardInterrupt:
            pass
        written = pathlib.Path(folder, "run", "eval")
        assert [path.name for path in written.iterdir()] == ["2.partial.jsonl"]
        evaluate.main(args)
        assert sorted(path.name for path in written.iterdir()) == ["2.json", "2.jsonl"]
        print("calls:", calls)
        assert "tensorflow" not in sys.modules
    """)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # 24 training problems, 4 of them in a benchmark; 11 to evaluate, 8 of them at a time with 4 samples each.
    assert "24 read, 24 kept, 4 in a benchmark; training: 20; to evaluate: 11" in done.stdout
    assert "8 of 11 problems are already answered" in done.stdout and "calls: [32, 12, 12]" in done.stdout
    rows = [line.split()[:2] for line in done.stdout.splitlines() if "±" in line and "held out" not in line]
    named = [row for row in rows if row[0] in ("aime25", "math500", "macro")]
    assert named == [["aime25", "4"], ["math500", "7"], ["macro", "11"]]
    result, trained = (json.loads((tmp_path / "run" / name / "2.json").read_text()) for name in ("eval", "heldout"))
    assert result.pop("settings") and result == trained  # which was evaluated in one go
    assert {name: figures["problems"] for name, figures in result["benchmarks"].items()} == {"aime25": 4, "math500": 7}
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"eval/aime25/avg@4", "eval/math500/avg@4", "eval/macro/avg@4"} <= last.keys()


def test_a_question_is_kept_once_for_each_of_its_responses(tmp_path):
    rows = [
        {"question": question, "answer": "2", **({"response": response} if response else {})}
        for question, response in (
            ("1 + 1?", "so 2"),
            ("1+1 ?", "so 2"),
            ("1 + 1?", "2, then"),
            ("1 + 1?", ""),
            ("1 + 1?", ""),
        )
    ]
    prepare.main([f"--input={lines(tmp_path / 'a.jsonl', *rows)}", f"--output={tmp_path / 'out'}"])
    assert json.loads((tmp_path / "out" / "prepared.json").read_text())["dropped"] == {"duplicate question": 2}
    kept = load_source(f"tfds:{tmp_path / 'out'}")
    assert sorted(problem.response for problem in kept) == ["", "2, then", "so 2"]
