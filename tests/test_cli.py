"""The command line: which configuration it resolves to, what it explains, and what each mistake is answered with."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from dasd_jax import cli, field_help
from dasd_jax.config import declared
from dasd_jax.fields import Fields, at_least, field
from dasd_jax.methods import METHODS
from launchers import sweep

ROOT = Path(__file__).parents[1]
TINY = f"--config={ROOT}/configs/qwen_math.py:tiny"


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs a command that only parses, through the entry point of all commands: (exit code, stdout, stderr)."""

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, argv)])
        with pytest.raises(SystemExit) as ended:
            cli.run(lambda words: sys.exit(cli.parse(cli.parser(""), words) is None))
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(command):
    """The one line that refuses a command line."""

    def line(*argv):
        code, out, error = command(*argv)
        assert code == 2 and out == "" and error.count("\n") == 1 and error.startswith("error: "), (code, out, error)
        return error.removeprefix("error: ").rstrip("\n")

    return line


def parsed(*argv):
    return cli.parse(cli.parser(""), list(argv)).config


def config_file(folder, *lines, start="base()"):
    """A config file that changes the defaults by some lines."""
    path = folder / "mine.py"
    body = "".join(f"    {line}\n" for line in [f"config = {start}", "config.data.sources = ('jsonl:x',)", *lines])
    path.write_text(f"from dasd_jax.config_files import base\n\n\ndef get_config(arg):\n{body}    return config\n")
    return path


@dataclasses.dataclass(frozen=True)
class Twist(Fields):
    group: ClassVar[str] = "objective"
    beta: float = field(0.7, at_least(0), "weight of the twist")
    twist: int = field(3, at_least(1), "turns")


@pytest.fixture
def twisted(monkeypatch):
    """Method sft with fields of its own, one of them named as one of dasd's, and with other shared defaults."""
    shared = {"objective.clip_high": 0.28, "rollout.resample": 3}
    monkeypatch.setitem(METHODS, "sft", dataclasses.replace(METHODS["sft"], fields=Twist, shared=shared))


# ------------------------------------------------------------------------------------------------ methods


def test_the_method_applies_first_wherever_it_stands():
    for words in (["method=sft", "clip_high=0.3"], ["clip_high=0.3", "method=sft"]):
        config = parsed(TINY, *(f"--config.objective.{word}" for word in words))
        assert config.objective.method == "sft" and config.objective.clip_high == 0.3
        assert not dataclasses.fields(config.hp)


def test_a_method_brings_its_own_fields_and_shared_defaults(twisted):
    config = parsed(TINY, "--config.objective.twist=5", "--config.objective.method=sft")
    assert config.hp == Twist(beta=0.7, twist=5)
    assert (config.objective.clip_high, config.rollout.resample) == (0.28, 3)
    assert config.rollout.problems == 8  # of the file


def test_what_file_or_command_line_set_stays_with_another_method(twisted, tmp_path):
    path = config_file(tmp_path, "config.objective.clip_high = 0.25")
    config = parsed(f"--config={path}", "--config.objective.method=sft", "--config.rollout.resample=0")
    assert (config.objective.clip_high, config.rollout.resample) == (0.25, 0)


def test_a_method_left_behind_takes_its_shared_defaults_with_it(twisted, tmp_path):
    path = config_file(tmp_path, start="base('sft')")
    assert parsed(f"--config={path}").rollout.resample == 3
    config = parsed(f"--config={path}", "--config.objective.method=grpo")
    assert (config.objective.clip_high, config.rollout.resample) == (0.2, 0)


def test_what_a_file_sets_for_another_method_is_dropped_with_one_line(command, tmp_path):
    path = config_file(tmp_path, "config.objective.rho = 0.1", "config.objective.form = 'full'")
    code, out, error = command(f"--config={path}", "--config.objective.method=grpo")
    assert (code, out) == (0, "") and error.count("\n") == 1
    assert error.startswith(f"note: {path} sets ") and error.endswith(": dropped, method grpo has no such field\n")
    assert "objective.rho = 0.1" in error and "objective.form = 'full'" in error and "beta" not in error


def test_a_same_named_field_of_another_method_is_not_carried_over(twisted, command, tmp_path):
    path = config_file(tmp_path, "config.objective.beta = 0.4")
    assert parsed(f"--config={path}", "--config.objective.method=sft").hp.beta == 0.7
    assert "objective.beta = 0.4" in command(f"--config={path}", "--config.objective.method=sft")[2]


def test_a_file_may_choose_a_method_on_the_default_base(twisted, command, tmp_path):
    path = config_file(tmp_path, "config.objective.method = 'sft'", "config.objective.beta = 0.4")
    config = parsed(f"--config={path}")
    assert config.hp == Twist(beta=0.4) and config.objective.clip_high == 0.28
    assert command(f"--config={path}") == (0, "", "")
    path = config_file(tmp_path, "config.objective.method = 'grpo'", "config.objective.rho = 0.4")
    assert "sets objective.rho = 0.4: dropped" in command(f"--config={path}")[2]


def test_a_sweep_point_with_a_field_of_another_method_is_refused():
    points = [{"run.seed": 1}, {"objective.rho": 0.1, "objective.method": "grpo"}]
    with pytest.raises(Exception, match="point 2: --config.objective.rho=0.1: method grpo has no such field; it be"):
        sweep.expand(points, TINY.removeprefix("--config="), (), Path("runs/s"))


# ------------------------------------------------------------------------------------------------ values


def test_a_space_does_for_the_sign_of_an_override():
    config = parsed(TINY, "--config.mesh.fsdp", "-1", "--config.run.steps", "3", "--workdir", "w")
    assert (config.mesh.fsdp, config.run.steps) == (-1, 3)
    assert cli.joined(["--config.run.steps", "0", "--x", "1"]) == ["--config.run.steps=0", "--x", "1"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("jsonl:a (1).jsonl", ("jsonl:a (1).jsonl",)),
        ("('jsonl:a', 'jsonl:b')", ("jsonl:a", "jsonl:b")),
        ("['jsonl:a']", ("jsonl:a",)),
        ("'jsonl:a'", ("jsonl:a",)),
    ],
)
def test_a_tuple_field_takes_a_tuple_or_one_text(text, value):
    assert parsed(TINY, f"--config.data.sources={text}").data.sources == value


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("True", True), ("1", True), ("FALSE", False), ("0", False)]
)
def test_a_switch_takes_true_false_1_and_0(text, value):
    assert parsed(TINY, f"--config.objective.dense_on_zero_adv={text}").hp.dense_on_zero_adv is value


# ------------------------------------------------------------------------------------------------ mistakes

MISTAKES = {
    "--config.run.steps=0": "run.steps: 0: expected 1 or more",
    "--config.run.steps 0": "run.steps: 0: expected 1 or more",
    "--config.run.steps": "--config.run.steps: no value: expected --config.run.steps=VALUE",
    "--config.run.steps=many": "--config.run.steps: 'many' is not a value of its type: expected a whole number, as 200",
    "--config.objective.dense_on_zero_adv=maybe": "--config.objective.dense_on_zero_adv: 'maybe' is not a value of ",
    "--config.data.sources=(((": "--config.data.sources: '(((' is not a value of its type: expected tuple of texts",
    "--config.data.sources=": "data.sources: (): expected at least one source",
    "--config.objective.method=ppo": "objective.method: 'ppo': expected one of dasd, grpo, dapo, ",
    "--config.objective.method=grpo --config.objective.rho=0.1": (
        "--config.objective.rho=0.1: method grpo has no such field; it belongs to dasd"
    ),
    "--config.run.entropy_warn=1": "--config.run.entropy_warn: moved to guards.entropy_warn",
    "--config.run.guard_window=1": "--config.run.guard_window: moved to guards.window",
    "--config.rollout.logp_gap_mean_max=1": "--config.rollout.logp_gap_mean_max: moved to guards.logp_gap_mean_max",
    "--config.optim.lr=1": "--config.optim.lr: no such field; did you mean optim.learning_rate?",
    "--config.lr=1": "--config.lr: no such field; did you mean optim.learning_rate?",
    "--config.run.zzzzz=1": "--config.run.zzzzz: no such field; --help-config=run lists those of the group",
    "--config.zzzzz.z=1": "--config.zzzzz.z: no such field; expected GROUP.FIELD with a group of model, data, rollout",
    "--lr=1e-4": "--lr=1e-4: unknown flag; did you mean --config.optim.learning_rate=1e-4?",
    "--optim.lr 1": "--optim.lr: unknown flag; did you mean --config.optim.learning_rate?",
    "--steps=3": "--steps=3: unknown flag; did you mean --config.run.steps=3?",
    "--workdri=x": "--workdri=x: unknown flag; did you mean --workdir?",
    "run.steps=3": "run.steps=3: unknown flag; did you mean --config.run.steps=3?",
    "-x": "-x: unknown flag: expected --config.GROUP.FIELD=VALUE or a flag that --help lists",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_on_the_command_line_is_one_line_and_exit_code_2(words, refused):
    assert refused(TINY, *words.split()).startswith(MISTAKES[words])


# Each: a line of a config file, and what is said behind its name and the line's number.
WRONG_LINES = {
    "config.run.stpes = 3": "run.stpes: no such field; did you mean run.steps?",
    "config.run.update({'stpes': 3})": "run.stpes: no such field; did you mean run.steps?",
    "config.update_from_flattened_dict({'run.stpes': 3})": "run.stpes: no such field; did you mean run.steps?",
    "config.run.steps = config.run.stpes": "run.stpes: no such field; did you mean run.steps?",
    "config.run.entropy_warn = 0.1": "run.entropy_warn: moved to guards.entropy_warn",
    "config.lr = 0.1": "lr: no such field; did you mean optim.learning_rate?",
    "config.run.steps = 'x'": "run.steps: 'x': expected a whole number",
    "config.data.sources = 'jsonl:x'": "data.sources: 'jsonl:x': expected tuple of texts",
}


@pytest.mark.parametrize("line", WRONG_LINES)
def test_a_wrong_line_of_a_config_file_is_named_with_its_field(line, refused, tmp_path):
    path = config_file(tmp_path, line)
    assert refused(f"--config={path}") == f"--config: {path}:7: {WRONG_LINES[line]}"


def test_a_config_file_is_told_which_method_has_a_field(refused, tmp_path):
    path = config_file(tmp_path, "config.objective.rho = 0.1", start="base('grpo')")
    said = "objective.rho: method grpo has no such field; it belongs to dasd"
    assert refused(f"--config={path}") == f"--config: {path}:7: {said}"


def test_other_failures_of_a_config_file_are_one_line_too(refused, tmp_path):
    path = config_file(tmp_path, "1 / 0")
    assert refused(f"--config={path}") == f"--config: {path} failed: ZeroDivisionError: division by zero"
    assert refused(f"--config={tmp_path}/none.py").startswith(f"--config: {tmp_path}/none.py is not a Python file")
    for text in ("", "[]", "{", "[" * 100_000, '{"run": 3}', "{}"):
        (tmp_path / "config.json").write_text(text)
        refused(f"--config={tmp_path}/config.json")


def test_train_refuses_a_value_with_one_line_and_leaves_nothing(tmp_path):
    words = [TINY, f"--workdir={tmp_path}/w", "--config.run.steps", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "dasd_jax.train", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: run.steps: 0: expected 1 or more\n")
    assert not (tmp_path / "w").exists()


# ------------------------------------------------------------------------------------------------ explaining


def test_print_config_prints_what_can_be_read_back(command, tmp_path):
    code, out, _ = command(TINY, "--config.run.steps=9", "--config.objective.method=grpo", "--print-config")
    assert code == 0 and json.loads(out)["run"]["steps"] == 9 and "rho" not in json.loads(out)["objective"]
    (tmp_path / "config.json").write_text(out)
    assert command(f"--config={tmp_path}/config.json", "--print-config")[1] == out
    assert parsed(f"--config={tmp_path}/config.json", "--config.run.steps=8").run.steps == 8


def test_an_old_config_json_is_told_where_its_guards_have_moved(refused, command, tmp_path):
    raw = json.loads(command(TINY, "--print-config")[1])
    raw["run"]["entropy_warn"] = raw.pop("guards")["entropy_warn"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(raw))
    assert refused(f"--config={path}") == f"--config: {path}: run.entropy_warn: moved to guards.entropy_warn"


@pytest.mark.parametrize("group", declared("dasd"))
def test_help_config_explains_every_field_of_a_group_in_80_columns(group, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, error = command("--help-config", group)
    assert code == 0 and error == "" and max(map(len, out.splitlines())) <= 80
    shown = [line.split()[0] for line in out.splitlines() if line.startswith(" ") and line[1:2].isalpha()]
    assert shown[1:] == list(declared("dasd")[group])


def test_help_config_shows_the_values_of_the_command_line(command):
    out = command("--help-config=run", TINY, "--config.run.steps=77")[1]
    assert " 77 " in out and "rollout batches" in out
    assert " 200 " in command("--help-config=run")[1]


def test_help_config_shows_the_fields_of_the_chosen_method(command):
    assert "rho" in command("--help-config", "objective")[1]
    out = command("--help-config", "objective", "--config.objective.method=grpo")[1]
    assert "clip_low" in out and "rho" not in out


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("lr", ["learning_rate"]),
        ("sigterm", ["grace_s"]),
        ("run.steps", ["steps"]),
        ("--config.rollout.problems", ["problems"]),
        ("zzzzzz", []),
    ],
)
def test_help_config_finds_fields_by_name_meaning_and_other_names(word, found):
    assert [name for fields in field_help.matching(word, declared("dasd")).values() for name in fields] == found


def test_help_config_names_the_nearest_where_nothing_is_found(command):
    code, out, _ = command("--help-config", "rollout.probelms")
    assert code == 0 and "near it: rollout.problems" in out
    assert "model, data, rollout" in command("--help-config", "zzzzzz")[1]


def test_help_config_needs_no_other_flag_of_a_command(capsys):
    flags = cli.parser("")
    flags.add_argument("--prompt", required=True)
    with pytest.raises(SystemExit) as ended:
        cli.parse(flags, ["--help-config", "mesh"])
    assert ended.value.code == 0 and "fsdp" in capsys.readouterr().out


def test_nothing_that_explains_shows_a_secret(refused, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "planted-by-the-test")
    path = config_file(tmp_path, "config.model.weights = 'planted-' + 'by-the-test'")
    for word in ("--help-config", "--print-config"):
        assert refused(f"--config={path}", word).startswith("a secret is in the configuration")
