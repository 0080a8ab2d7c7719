"""The logs of runs as one CSV file."""

import csv
import json
import math

import fake_run
import pytest

from dasd_jax import export, files
from dasd_jax.errors import UserError


def table(path):
    """Heading and rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        heading, *rows = csv.reader(file)
    return heading, [dict(zip(heading, row, strict=True)) for row in rows]


def log(run, *lines, end="\n"):
    """A folder whose metrics.jsonl holds these lines."""
    run.mkdir()
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + end)
    return str(run)


def test_every_number_of_every_step_stands_in_its_row_and_column(tmp_path, capsys):
    runs = [fake_run.write(tmp_path / name, steps=steps, seed=steps) for name, steps in (("a", 3), ("b", 5))]
    output = tmp_path / "new" / "metrics.csv"
    export.main([*map(str, runs), f"--output={output}"])
    heading, rows = table(output)
    written = [
        (str(run), json.loads(line)) for run in runs for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    names = sorted({name for _, line in written for name in line} - {"step"})
    assert heading == ["run", "step", *names]
    assert len(rows) == len(written) == 4 + 6
    for row, (run, line) in zip(rows, written, strict=True):
        found = {name: float(value) for name, value in row.items() if name != "run" and value}
        assert row["run"] == run and found == line
    assert "10 steps of 2 runs" in capsys.readouterr().out


def test_what_a_run_lacks_is_empty_and_no_digit_is_lost(tmp_path):
    one = log(tmp_path / "one", {"step": 0, "a": math.pi, "b, c": 1e-300})
    two = log(tmp_path / "two", {"step": 7, "a/ü": 2})
    export.main([one, two, f"--output={tmp_path}/x.csv"])
    assert (tmp_path / "x.csv").read_text() == (
        f'run,step,a,a/ü,"b, c"\n{one},0,3.141592653589793,,1e-300\n{two},7,,2,\n'
    )


def test_a_run_that_is_being_written_gives_its_whole_lines(tmp_path):
    run = log(tmp_path / "run", {"step": 0, "a": 1.5}, {"step": 1, "a": 2.5}, end='\n{"step": 2, "a')
    export.main([run, f"--output={tmp_path}/x.csv"])
    assert [row["step"] for row in table(tmp_path / "x.csv")[1]] == ["0", "1"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["RUN"], "--output"),
        (["--output=x.csv"], "RUN"),
        (["RUN", "--output=FOLDER"], "--output: .*: expected a file that ends in .csv"),
        (["RUN", "--output=FOLDER/x.json"], "--output: .*x.json: expected a file that ends in .csv"),
        (["RUN", "--output=RUN/metrics.jsonl/x.csv"], "--output: .* is not a writable folder"),
        (["RUN", "RUN", "--output=FOLDER/x.csv"], "RUN: .*run is given twice"),
        (["RUN", "FOLDER", "--output=FOLDER/x.csv"], "RUN: .* holds no metrics.jsonl"),
        (["RUN", "DAMAGED", "--output=FOLDER/x.csv"], "RUN: .*line 1 holds 'a', which is no number"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(argv, said, tmp_path):
    places = {
        "RUN": log(tmp_path / "run", {"step": 0}),
        "DAMAGED": log(tmp_path / "damaged", {"step": 0, "a": "b"}, {"step": 1}),
        "FOLDER": str(tmp_path / "out"),
    }
    (tmp_path / "out").mkdir()
    for name, place in places.items():
        argv = [word.replace(name, place) for word in argv]
    with pytest.raises(UserError, match=said):
        export.main(argv)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_that_cannot_be_finished_leaves_the_older_one(tmp_path):
    (tmp_path / "x.csv").write_text("older")

    def fail():
        with files.replacing(tmp_path / "x.csv", "--output") as draft:
            draft.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="--output: .*x.csv: No space left on device"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"] and (tmp_path / "x.csv").read_text() == "older"
