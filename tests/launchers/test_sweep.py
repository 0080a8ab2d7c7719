"""How sweeps are expanded, run and gathered; the runs are stand-ins of milliseconds."""

import dataclasses
import json
import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from configs.sweeps.common import each, grid, seeds, zipped
from dasd_jax import cli, recorded
from dasd_jax.config import FILES, PROBLEMS
from dasd_jax.errors import UserError
from dasd_jax.run import user_files
from launchers import steps, sweep, tpu_vm

ROOT = Path(__file__).parents[2]
TINY = "configs/qwen_math.py:tiny"
BETA = "configs/sweeps/beta.py"


def points_of(*overrides, shared=(), workdir="runs/s", config=TINY):
    return sweep.expand(overrides, config, shared, Path(workdir))


# ------------------------------------------------------------------------------------------------ putting together


def test_a_point_that_holds_a_secret_is_no_point_of_a_dry_run(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "planted-by-the-test")
    with pytest.raises(UserError, match="a secret is in point 2") as refusal:
        points_of({"run.seed": 0}, {"model.weights": "planted-by-the-test"})
    assert "planted" not in str(refusal.value)


def test_a_grid_has_every_combination_once_and_the_last_part_changes_fastest():
    found = grid(each("objective.beta", (0.0, 0.1)), seeds(3))
    assert [(point["objective.beta"], point["run.seed"]) for point in found] == [
        (0.0, 0), (0.0, 1), (0.0, 2), (0.1, 0), (0.1, 1), (0.1, 2)
    ]  # fmt: skip


def test_zipped_parts_go_together_and_nest_in_grids():
    pairs = zipped(each("rollout.problems", (8, 16)), each("optim.minibatches", (2, 4)))
    assert pairs == [
        {"rollout.problems": 8, "optim.minibatches": 2}, {"rollout.problems": 16, "optim.minibatches": 4}
    ]  # fmt: skip
    assert grid(pairs, seeds(2)) == [{**pair, "run.seed": seed} for pair in pairs for seed in (0, 1)]


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="run.seed is set by two parts"):
        grid(seeds(2), each("run.seed", (3,)))
    with pytest.raises(ValueError, match="longer"):
        zipped(seeds(2), each("objective.beta", (0.0, 0.1, 0.2)))


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweeps").glob("[!c]*.py")), ids=lambda path: path.stem)
def test_every_sweep_of_ours_holds_valid_runs(path):
    smollm2 = "configs/smollm2_math.py"
    found = sweep.expand(cli.call_file("--sweep", str(path), "get_sweep"), smollm2, (), Path("runs/s"))
    assert len({point.workdir for point in found}) == len(found) > 3


# ------------------------------------------------------------------------------------------------ expanding


def test_the_command_of_a_point_gives_its_config_and_its_workdir():
    overrides = {
        "objective.route": "hard",
        "objective.dense_on_zero_adv": False,
        "objective.beta": 0.05,
        "run.seed": 3,
        "data.sources": ("gym:chain_sum?min_terms=2&size=200", "jsonl:it's.jsonl"),
    }
    (point,) = points_of(overrides, shared=["--config.run.steps=9"])
    typed = shlex.split(shlex.join(point.command))
    assert typed[:3] == ["python", "-m", "dasd_jax.train"]
    read = cli.parse(cli.parser(""), typed[3:])
    for field, value in {**overrides, "run.steps": 9}.items():
        group, name = field.split(".")
        assert read.config.to_dict()[group][name] == value
    assert read.workdir == point.workdir


def test_workdirs_are_named_by_the_overrides_in_plain_letters():
    (point,) = points_of({"objective.beta": 0.05, "data.sources": ("gym:lcm?size=200", "jsonl:a/b c.jsonl")})
    assert point.workdir == Path("runs/s/objective.beta=0.05,data.sources=_gym_lcm_size=200_,_jsonl_a_b_c.jsonl_")
    assert points_of({})[0].workdir == Path("runs/s/base")


SWEEPS = {
    "no list": ("return 3", "returned [3]: expected dictionaries of GROUP.FIELD → value"),
    "no points": ("return []", "expected dictionaries of GROUP.FIELD → value, at least one"),
    "no dictionaries": ("yield 'run.seed'", "returned ['run.seed']: expected dictionaries"),
    "a failure": ("return 1 / 0", "sweep.py failed: ZeroDivisionError: division by zero"),
    "an unknown field": ("yield {'run.sed': 1}", "point 1: --config.run.sed: no such field; did you mean run.seed?"),
    "a bad value": ("yield {}; yield {'objective.rho': 2.0}", "point 2: objective.rho: 2.0: expected"),
    "a bad type": ("yield {'run.seed': 'x'}", "point 1: --config.run.seed: 'x' is not a value of its type"),
    "twice the same": ("yield {'run.seed': 1}; yield {'run.seed': 1}", "point 2: run.seed=1: an earlier point has"),
    "too long": ("yield {'data.sources': ('jsonl:' + 'x' * 300,)}", "too long for a folder name"),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_a_mistake_in_a_sweep_is_one_line_that_names_file_and_point(name, tmp_path):
    body, expected = SWEEPS[name]
    (tmp_path / "sweep.py").write_text(f"def get_sweep():\n    {body}\n")
    with pytest.raises(UserError) as refused:
        sweep.main([f"--sweep={tmp_path}/sweep.py", f"--config={TINY}", f"--workdir={tmp_path}/runs"])
    assert str(refused.value).startswith(f"--sweep: {tmp_path}/sweep.py") and expected in str(refused.value)
    assert "\n" not in str(refused.value) and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "--workdir: missing: expected the folder"),
        (["--workdir=x", "--jobs=0"], "--jobs: 0: expected at least 1"),
        (["--workdir=x", "--config.run.seed=1"], "point 1: run.seed is also set on the command line"),
        (["--workdir=x", "--config.run.sed=1"], "--config.run.sed: no such field"),
        (["--workdir=x", "--slices=none.flags"], "--slices: none.flags: "),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(argv, expected):
    with pytest.raises(UserError) as refused:
        sweep.main(["--sweep=configs/sweeps/beta.py", f"--config={TINY}", *argv])
    assert expected in str(refused.value)


# ------------------------------------------------------------------------------------------------ running


def stand_in(point, script):
    """The same point, whose run is a few lines of shell with its workdir as $1."""
    code = f"import subprocess, sys; sys.exit(subprocess.call(['bash', '-c', {script!r}, 'x', {str(point.workdir)!r}]))"
    return dataclasses.replace(point, command=("python", "-S", "-c", code))


def done(average, **means):
    held = {
        "avg@4": [0.25, average], "pass@4": [0.4, 0.75], "rise": average - 0.25, "rise_standard_error": 0.02,
        "standard_error": [0.01, 0.01], "macro_avg@4": [0.25, average], "problems": 8,
    }  # fmt: skip
    return {"heldout": held, "mean_over_steps": means}


def finish(point, average, **means):
    """Leaves in a point's workdir what its run would."""
    point.workdir.mkdir(parents=True, exist_ok=True)
    (point.workdir / "config.json").write_text(json.dumps(point.config.to_dict()))
    (point.workdir / "done.json").write_text(json.dumps(done(average, **means)))


def beta_points(workdir, *shared):
    return sweep.expand(cli.call_file("--sweep", BETA, "get_sweep"), TINY, shared, workdir)


def test_a_run_that_fails_stops_no_other_and_its_last_line_is_shown(tmp_path, capsys):
    good, bad, last = points_of(*seeds(3), workdir=tmp_path)
    codes = sweep.run(
        [
            stand_in(good, 'echo fine; mkdir "$1"; touch "$1/done.json"'),
            stand_in(bad, "echo working; echo 'error: no' >&2; exit 2"),
            stand_in(last, ":"),
        ],
        1,
        tmp_path,
    )
    assert codes == {good.workdir: 0, bad.workdir: 2, last.workdir: 0}
    out = capsys.readouterr().out
    assert f"run.seed=1: exit code 2: error: no ({tmp_path}/run.seed=1.log)" in out
    assert "run.seed=0: done\n" in out and "run.seed=2: stopped before its end\n" in out
    assert (tmp_path / "run.seed=0.log").read_text() == "fine\n"


def test_a_sweep_that_is_terminated_ends_its_points_and_starts_no_more(tmp_path):
    """Both running points save when they hear it; the third has not begun."""
    script = 'trap "echo saved > $1.saved; exit 0" TERM; echo ran > "$1.ran"; while :; do sleep 0.05; done'
    found = [
        dataclasses.replace(point, command=("python", "-S", "-c", EXEC, script, str(point.workdir)))
        for point in points_of(*seeds(3), workdir=tmp_path)
    ]

    def terminate():
        for _ in range(400):
            if len(list(tmp_path.glob("*.ran"))) == 2:
                break
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda *_: None)  # what is not handled must not end the tests
    threading.Thread(target=terminate).start()
    try:
        with pytest.raises(SystemExit, match="stopped by a signal; the same command goes on"):
            sweep.run(found, 2, tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert sorted(path.name for path in tmp_path.glob("*.saved")) == ["run.seed=0.saved", "run.seed=1.saved"]
    assert len(list(tmp_path.glob("*.ran"))) == 2


EXEC = "import os, sys; os.execvp('bash', ['bash', '-c', sys.argv[1], 'x', sys.argv[2]])"  # the process itself


def test_no_more_than_the_given_number_run_at_a_time(tmp_path, monkeypatch):
    lock, now, most = threading.Lock(), 0, 0
    gate = threading.Barrier(2, timeout=5)  # passed only by two at a time

    def one(point, log, children):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        gate.wait()
        with lock:
            now -= 1
        return 0, "done"

    monkeypatch.setattr(sweep, "_run_one", one)
    assert len(sweep.run(points_of(*seeds(6), workdir=tmp_path), 2, tmp_path)) == 6
    assert most == 2


def main_with_stand_ins(monkeypatch, script, *argv):
    """sweep.main with every run replaced; the exit line or ""."""
    real = sweep.expand
    monkeypatch.setattr(sweep, "expand", lambda *args: [stand_in(point, script) for point in real(*args)])
    try:
        sweep.main(["--sweep=configs/sweeps/beta.py", f"--config={TINY}", *argv])
    except SystemExit as error:
        return str(error)
    return ""


def test_finished_points_are_skipped_and_a_failure_makes_the_exit_code_1(tmp_path, monkeypatch, capsys):
    finish(beta_points(tmp_path)[0], 0.5)
    (tmp_path / "result").write_text(json.dumps(done(0.5)))
    script = f'''
        echo ran >> "$1.ran"
        [[ $1 != *beta=0.1,run.seed=1 ]] || exit 0
        [[ $1 != *beta=0.2,run.seed=2 ]] || exit 1
        mkdir -p "$1" && cp "{tmp_path}/result" "$1/done.json"
    '''
    end = main_with_stand_ins(monkeypatch, script, f"--workdir={tmp_path}", "--jobs=2")
    assert end == "error: 1 of 12 points failed, 1 of 12 points stopped before their end"
    ran = {path.name.removesuffix(".ran") for path in tmp_path.glob("*.ran")}
    assert len(ran) == 11 and "objective.beta=0.0,run.seed=0" not in ran
    out = capsys.readouterr().out
    assert "| 0.2 | 2 | exit code 1 |" in out and "| 0.1 | 1 | not finished |" in out
    assert "| 0.0 | 0 | done | 0.250 | 0.500 |" in out


def test_a_sweep_that_is_finished_prints_its_table_and_runs_nothing(tmp_path, monkeypatch, capsys):
    for point in beta_points(tmp_path):
        finish(point, 0.5)
    assert main_with_stand_ins(monkeypatch, "exit 1", f"--workdir={tmp_path}") == ""
    assert capsys.readouterr().out.count("| done |") == 12


@pytest.mark.parametrize("flags", [[], ["--table"]])
@pytest.mark.parametrize(
    ("changed", "said"), [("run.steps=9", "run.steps = 6, not 9"), ("model.preset=x", "model.preset = 'qwen3_tiny', ")]
)
def test_the_result_of_another_config_is_refused_before_anything_runs(flags, changed, said, tmp_path, monkeypatch):
    finish(beta_points(tmp_path)[4], 0.5)
    argv = [f"--workdir={tmp_path}", *flags]
    with pytest.raises(UserError, match=f"--workdir: {tmp_path}/.*run.seed=1 belongs to a run with {said}"):
        main_with_stand_ins(monkeypatch, 'echo ran >> "$1.ran"', *argv, f"--config.{changed}")
    assert not list(tmp_path.glob("*.ran"))


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("f.py", {"data.verifier": "FILE:f"}),
        ("skills.jsonl", {"data.skills": "FILE", "objective.method": "sgsd", "objective.contexts": 1}),
    ],
)
def test_the_result_of_other_files_is_refused_and_of_files_on_a_slice_it_is_said(
    name, overrides, tmp_path, monkeypatch, capsys
):
    path = tmp_path / name
    path.write_text("1")
    overrides = {field: str(value).replace("FILE", str(path)) for field, value in overrides.items()}
    (point,) = points_of({}, shared=[f"--config.{field}={value}" for field, value in overrides.items()])
    point = dataclasses.replace(point, workdir=tmp_path / "point")
    finish(point, 0.5)
    theirs = recorded.as_json(point.config) | {FILES: user_files.of(point.config)}
    (point.workdir / "config.json").write_text(json.dumps(theirs))
    monkeypatch.setattr(steps, "config", lambda job: theirs)
    on_slice = dataclasses.replace(point, job=object())
    sweep.check_config(point)
    path.write_text("2")
    for place in (point, on_slice):
        with pytest.raises(UserError, match=f"^--workdir: {path} has changed since the run in {point.workdir} began,"):
            sweep.check_config(place)
    path.unlink()
    with pytest.raises(UserError, match="^data"):
        sweep.check_config(point)
    sweep.check_config(on_slice)
    assert capsys.readouterr().out.startswith("note: point: not compared: data.")


def test_points_that_were_evaluated_on_other_problems_are_named(tmp_path, monkeypatch, capsys):
    """The second point saw another file, the third has kept nothing, and the fourth agrees with the first."""
    points = beta_points(tmp_path)
    for point, digest in zip(points[:4], ("a", "b", None, "a"), strict=True):
        finish(point, 0.5)
        theirs = recorded.as_json(point.config) | ({PROBLEMS: {user_files.EVALUATED_ON: digest}} if digest else {})
        (point.workdir / "config.json").write_text(json.dumps(theirs))
    assert main_with_stand_ins(monkeypatch, "exit 1", f"--workdir={tmp_path}", "--table") == ""
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert notes[0].startswith(
        f"note: {points[1].workdir.name} was evaluated on other problems than {points[0].workdir.name}:"
    )


def test_where_a_point_was_computed_and_its_date_do_not_matter(tmp_path, monkeypatch, capsys):
    point = beta_points(tmp_path, "--config.data.now=2026-03-09", "--config.mesh.tensor=2")[0]
    finish(point, 0.5)
    assert main_with_stand_ins(monkeypatch, "exit 1", f"--workdir={tmp_path}", "--table") == ""
    assert capsys.readouterr().out.count("| done |") == 1


def test_a_result_without_its_config_is_refused(tmp_path, monkeypatch):
    point = beta_points(tmp_path)[0]
    finish(point, 0.5)
    (point.workdir / "config.json").unlink()
    with pytest.raises(UserError, match=r"holds done.json and no config.json: expected both, or another --workdir"):
        main_with_stand_ins(monkeypatch, "exit 1", f"--workdir={tmp_path}", "--table")


def test_table_alone_runs_nothing(tmp_path, monkeypatch, capsys):
    assert main_with_stand_ins(monkeypatch, "exit 1", f"--workdir={tmp_path}", "--table") == ""
    assert capsys.readouterr().out.count("| not finished |") == 12


def test_a_dry_run_prints_every_command_and_runs_none(tmp_path, capsys):
    argv = ["--sweep=configs/sweeps/beta.py", f"--config={TINY}", f"--workdir={tmp_path / 's'}", "--dry-run"]
    sweep.main([*argv, "--config.run.steps=2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        f"python -m dasd_jax.train --config={TINY} --workdir={tmp_path}/s/objective.beta=0.0,run.seed=0 "
        "--config.run.steps=2 --config.objective.beta=0.0 --config.run.seed=0"
    )
    assert len(lines) == 12 and not (tmp_path / "s").exists()


# ------------------------------------------------------------------------------------------------ the table


def test_the_table_shows_each_point_and_the_means_over_seeds():
    found = points_of(*grid(each("objective.beta", (0.0, 0.1)), seeds(2)))
    results = [done(0.5, **{"reward/mean": 0.3}), done(0.7, **{"reward/mean": 0.5}), done(0.6), None]
    text = sweep.table(found, results, {found[3].workdir: 2})
    figures = "avg@4 before | avg@4 after | rise | ± by problem | pass@4 after | reward/mean"
    assert text.splitlines() == [
        f"| objective.beta | run.seed |  | {figures} |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| 0.0 | 0 | done | 0.250 | 0.500 | 0.250 | 0.020 | 0.750 | 0.300 |",
        "| 0.0 | 1 | done | 0.250 | 0.700 | 0.450 | 0.020 | 0.750 | 0.500 |",
        "| 0.1 | 0 | done | 0.250 | 0.600 | 0.350 | 0.020 | 0.750 |  |",
        "| 0.1 | 1 | exit code 2 |  |  |  |  |  |  |",
        "",
        f"| objective.beta | seeds | {figures} |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        # The standard error over two seeds is half their distance.
        "| 0.0 | 2 | 0.250 ± 0.000 | 0.600 ± 0.100 | 0.350 ± 0.100 | 0.020 ± 0.000 | 0.750 ± 0.000 | 0.400 ± 0.100 |",
        "| 0.1 | 1 | 0.250 | 0.600 | 0.350 | 0.020 | 0.750 |  |",
    ]


def test_the_table_leaves_an_error_out_that_is_unknown():
    """Of runs that were evaluated on one problem."""
    found, results = points_of(*seeds(2)), [done(0.5), done(0.6)]
    results[1]["heldout"]["rise_standard_error"] = None
    rows = sweep.table(found, results, {}).splitlines()[2:4]
    assert [row.split(" | ")[5] for row in rows] == ["0.020", ""]


def test_without_several_seeds_there_is_one_table():
    found = points_of(*each("objective.beta", (0.0, 0.1)))
    assert len(sweep.table(found, [done(0.5), done(0.6)], {}).splitlines()) == 4


@pytest.mark.parametrize("width", [60, 80, 120])
def test_on_a_terminal_the_tables_fold_and_name_each_point_in_every_block(width):
    found = points_of(*grid(each("objective.beta", (0.0, 0.1)), seeds(2)))
    text = sweep.table(found, [done(0.5), done(0.7), done(0.6), None], {}, width)
    assert max(map(len, text.split("\n"))) <= width
    blocks = [block.split("\n") for block in text.split("\n\n")]
    points, means = ([block for block in blocks if name in block[0]] for name in ("run.seed", "seeds"))
    assert len(points) + len(means) == len(blocks)
    for block in points:
        assert [line.split()[:2] for line in block[2:]] == [["0.0", "0"], ["0.0", "1"], ["0.1", "0"], ["0.1", "1"]]
    for block in means:
        assert [line.split()[:2] for line in block[2:]] == [["0.0", "2"], ["0.1", "1"]]


# ------------------------------------------------------------------------------------------------ on slices


def test_on_slices_each_point_gets_a_slice_of_its_own_name(tmp_path, capsys):
    flags = tmp_path / "slice.flags"
    flags.write_text("--name=beta --project=my-project-123 --zone=us-west4-a --slice=v6e-8 --spot --bucket=b-1\n")
    argv = ["--sweep=configs/sweeps/beta.py", f"--config={TINY}", "--workdir=/bucket/beta", f"--slices={flags}"]
    sweep.main([*argv, "--dry-run"])
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    jobs = [tpu_vm.parse(line[3:])[1] for line in lines]
    assert all(line[:4] == ["python", "-m", "launchers.tpu_vm", "run"] for line in lines)
    assert [job.name for job in jobs] == [f"beta-{number}" for number in range(1, 13)]
    assert jobs[0].workdir == "/bucket/beta/objective.beta=0.0,run.seed=0"
    assert jobs[0].slice.name == "v6e-8" and jobs[0].bucket == "b-1"
    with pytest.raises(UserError, match="is deleted with the slice"):
        sweep.main([*argv, "--dry-run", "--workdir=/data/beta"])


def test_results_on_slices_come_from_the_bucket(tmp_path, monkeypatch):
    flags = tmp_path / "slice.flags"
    flags.write_text("--name=s --project=my-project-123 --zone=us-west4-a --slice=v6e-8 --bucket=b-1\n")
    asked = tmp_path / "asked"
    (tmp_path / "gcloud").write_text(
        f'#!{sys.executable} -S\nprint(\'{{"a": 1}}\'); import sys; open("{asked}", "w").write(sys.argv[3])'
    )
    (tmp_path / "gcloud").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (point,) = sweep.on_slices(points_of({"run.seed": 1}, workdir="/bucket/s"), str(flags))
    assert sweep.result(point) == {"a": 1}
    assert asked.read_text() == "gs://b-1/s/run.seed=1/done.json"
    with pytest.raises(UserError, match="was written by another version"):
        sweep.check_config(point)
    assert asked.read_text() == "gs://b-1/s/run.seed=1/config.json"
