"""What the launcher plans, and what it does when Google takes slices away; Google is a script on the PATH."""

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dasd_jax.errors import UserError
from launchers import steps, tpu_vm
from launchers.plan import LOST, MAX_BACKOFF_S, MAX_MISSES, POLL_S, Step, dry_run, plan, slice_of

HERE = Path(__file__).parent
WHERE = ["--name=dasd", "--project=my-project-123", "--zone=us-west4-a"]
TRAIN = ["python", "-m", "dasd_jax.train", "--config=configs/qwen_math.py:tiny", "--workdir=/bucket/runs/tiny"]
RUN = ["run", *WHERE, "--slice=v5e-16", "--spot", "--bucket=my-bucket"]
SECRET = "hf_abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(autouse=True)
def google(tmp_path, monkeypatch):
    """The folder of the fake Google; the home of the person is beside it."""
    fake = tmp_path / "google"
    for folder in (fake, tmp_path / "bin", tmp_path / "home"):
        folder.mkdir()
    shutil.copy(HERE / "fake_gcloud.sh", tmp_path / "bin" / "gcloud")
    for name in ("ssh-add", "ssh-keygen"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FAKE", str(fake))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(steps, "RETRY_S", 0)
    return fake


def job_of(*argv):
    return tpu_vm.parse(list(argv))[1]


def refusal(*argv):
    with pytest.raises(UserError) as refused:
        tpu_vm.parse(list(argv))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def calls(google):
    """What gcloud was asked, one list of words a call."""
    return [shlex.split(line) for line in (google / "calls").read_text().splitlines()]


def verbs(google):
    """The same in one word a call."""
    known = ("create", "describe", "delete", "scp", "cat", "setup", "check", "start", "status", "tar")
    return [next(verb for verb in known if re.search(rf"\b{verb}\b", " ".join(call))) for call in calls(google)]


def follow(google, *world, argv=(*RUN, "--no-check", "--", *TRAIN)):
    """Runs the job in that world; the seconds that it slept, and how it ended ("" when the run was finished)."""
    (google / "world").write_text("\n".join(world) + "\n")
    slept, end = [], ""

    def sleep(seconds):
        slept.append(seconds)
        assert len(slept) < 200, "it waits for ever"

    try:
        tpu_vm.run(job_of(*argv), sleep=sleep)
    except SystemExit as error:
        end = str(error)
    return slept, end


# ------------------------------------------------------------------------------------------------ the plan


GOLDEN = {
    "v5e-16": [*RUN, "--secret=HF_TOKEN=secret-manager:hf-token", "--", *TRAIN],
    "v5p-64": ["run", *WHERE, "--slice=v5p-64", "--reserved", "--bucket=b-1", "--connect=iap", "--keep", "--", *TRAIN],
    "v6e-8": ["run", *WHERE, "--slice=v6e-8", "--direct", "--bucket=b-1", "--create-flag=--tags=a b", "--", *TRAIN],
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_dry_run_prints_the_commands_on_file(name, monkeypatch, capsys):
    """A diff is read by eye; to take it over: print(dry_run(…)) into the file."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("PATH", "")  # no gcloud here
    tpu_vm.main([GOLDEN[name][0], "--dry-run", *GOLDEN[name][1:]])
    assert capsys.readouterr().out == (HERE / "golden" / f"{name}.txt").read_text()


@pytest.mark.parametrize(
    ("name", "accelerator", "chips", "vms"),
    [
        ("v5e-1", "v5litepod-1", 1, 1),
        ("v5e-8", "v5litepod-8", 8, 1),
        ("v5e-16", "v5litepod-16", 16, 4),
        ("v5e-256", "v5litepod-256", 256, 64),
        ("v5p-8", "v5p-8", 4, 1),
        ("v5p-16", "v5p-16", 8, 2),
        ("v5p-64", "v5p-64", 32, 8),
        ("v6e-8", "v6e-8", 8, 1),
        ("v6e-64", "v6e-64", 64, 16),
    ],
)
def test_sizes_of_v5p_count_cores_and_the_others_chips(name, accelerator, chips, vms):
    found = slice_of(name)
    assert (found.accelerator, found.chips, found.vms) == (accelerator, chips, vms)


NASTY = [
    '--config.data.sources=("gym:chain_sum?min_terms=2",)',
    "--config.model.weights=/data/it's here",
    '"$HOME" `id` $(id) \\ ; & | > * ? ~ # !',
    "",
    "two\nlines",
    "ünï — 数",
]


@pytest.mark.parametrize("word", NASTY)
def test_a_word_reaches_the_command_as_it_was_given(word, tmp_path):
    command = ("show", word, "--workdir=/x/y", word)
    job = job_of("start", *WHERE, "--slice=v5e-16", "--", *command)
    step = plan(job, "start")[-1]
    # As a person pastes the line of the dry run, and as the VM's shell then reads what ssh sends it.
    assert shlex.join(step.argv) in dry_run(job, "start")
    (remote,) = (each.removeprefix("--command=") for each in shlex.split(shlex.join(step.argv)) if "--command=" in each)
    assert tuple(shlex.split(remote)[-len(command) :]) == command


@pytest.mark.parametrize("action", tpu_vm.ACTIONS)
def test_secrets_are_in_no_plan_and_no_output(action, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    secrets = ["--secret=HF_TOKEN", "--secret=WANDB_API_KEY=secret-manager:wandb"]
    job = job_of(action, *RUN[1:], *secrets, *(["--", *TRAIN] if action in ("start", "run") else []))
    assert SECRET not in dry_run(job, action) + repr(job) + repr(plan(job, action))
    created = [step.argv for step in plan(job, action) if "create" in step.argv]
    assert not any("HF_TOKEN" in word or "metadata" in word for argv in created for word in argv)


@pytest.mark.parametrize(
    "argv",
    [
        [*RUN, "--", "env", f"HF_TOKEN={SECRET}", *TRAIN],
        [*RUN, "--", "env", "WANDB_API_KEY=0123456789", *TRAIN],
        [*RUN, f"--secret=HF_TOKEN={SECRET}", "--", *TRAIN],
        [*RUN, "--secret=HF_TOKEN=0123456789", "--", *TRAIN],
        [*RUN, "--create-flag=--metadata=a=b,MY_TOKEN=0123456789", "--", *TRAIN],
        [*RUN, "--hf-token", SECRET, "--", *TRAIN],
        [*RUN, "--", *TRAIN, "--note=from-the-environment"],
    ],
)
def test_a_secret_on_the_command_line_is_refused_and_not_repeated(argv, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "from-the-environment")
    message = refusal(*argv)
    assert "--secret" in message
    assert not any(value in message for value in (SECRET, "0123456789", "from-the-environment"))


def test_a_secret_in_a_file_of_flags_is_refused_too(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "from-the-environment")
    file = tmp_path / "slice.flags"
    for line in ("--create-flag=--metadata=MY_TOKEN=0123456789", "--create-flag=--labels=a=from-the-environment"):
        file.write_text(line + "\n")
        message = refusal(*RUN, f"@{file}", "--", *TRAIN)
        assert "a secret is in --create-flag" in message
        assert not any(value in message for value in ("0123456789", "from-the-environment"))


def test_settings_that_only_sound_like_secrets_are_not_refused():
    command = ["env", "TOKENIZERS_PARALLELISM=false", *TRAIN, "--config.rollout.max_new_tokens=8"]
    assert job_of(*RUN, "--", *command).command == tuple(command)


def test_flags_may_stand_in_a_file_with_comments(tmp_path):
    file = tmp_path / "slice.flags"
    file.write_text("# ours\n--name=dasd --project=my-project-123\n\n--zone=us-west4-a  # near the bucket\n")
    assert job_of("delete", f"@{file}") == job_of("delete", *WHERE)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["fly", *WHERE], "argument ACTION: invalid choice: 'fly'"),
        (["delete", *WHERE[1:]], "--name: missing: expected 1 to 63 of a-z"),
        (["delete", WHERE[0], WHERE[2]], "--project: missing: expected the id"),
        (["delete", *WHERE[:2]], "--zone: missing: expected a zone, as in us-west4-a"),
        (["delete", *WHERE, "--zone=us-west4"], "--zone: 'us-west4': expected a zone"),
        (["delete", *WHERE, "--name=My_slice"], "--name: 'My_slice': expected 1 to 63 of a-z"),
        (["delete", *WHERE, "--bucket=gs://b-1"], "--bucket: 'gs://b-1': expected the name of a bucket, without gs://"),
        (["delete", *WHERE, "@none.flags"], "none.flags"),
        (["up", *WHERE], "--slice: missing: expected v5e-SIZE"),
        (["up", *WHERE, "--slice=v5litepod-8"], "--slice: 'v5litepod-8': expected v5e-SIZE (Google's v5litepod-SIZE)"),
        (["up", *WHERE, "--slice=v5e-12"], "--slice: 'v5e-12': expected v5e-SIZE with a size of 1, 4, 8, 16"),
        (["up", *WHERE, "--slice=v5p-4"], "--slice: 'v5p-4': expected v5p-SIZE with a size of 8, 16"),
        (["up", *RUN[1:], "--reserved"], "argument --reserved: not allowed with argument --spot"),
        (["up", *WHERE, "--slice=v5e-16", "--", "ls"], "--: 'ls': up takes no command"),
        (["start", *WHERE, "--slice=v5e-16"], "no command: expected it after --"),
        (["start", *WHERE, "--slice=v5e-16", "--", "ls"], "--workdir: missing: expected one --workdir=DIR"),
        (["start", *WHERE, "--slice=v5e-16", "--", "ls", "--workdir=runs/x"], "--workdir: runs/x: expected one"),
        (["start", *WHERE, "--slice=v5e-16", "--", *TRAIN], "--bucket: missing: expected the bucket to mount for"),
        (["run", *WHERE, "--slice=v5e-16", "--", "ls", "--workdir=/x/y"], "--workdir: /x/y: is deleted with the slice"),
        ([*RUN, "--", *TRAIN, "--config.objective.rout=hard"], "--config.objective.rout: no such field; did you mean"),
        ([*RUN, "--secret=HF_TOKEN", "--", *TRAIN], "--secret: HF_TOKEN is not set"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_says_what_was_expected(argv, expected):
    assert expected in refusal(*argv)


def test_without_gcloud_the_message_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="gcloud: not found: expected it on the PATH, or --dry-run"):
        tpu_vm.main(["status", *WHERE])


# ------------------------------------------------------------------------------------------------ what it decides


def test_what_is_done_about_a_slice_follows_from_its_state_and_its_words():
    assert tpu_vm.decide("", set(), 0) == "up"
    assert tpu_vm.decide(None, set(), MAX_MISSES) == "wait"  # our own network: no reason to delete anything
    for state in ("ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "CREATING", "SUSPENDING", "DELETING"):
        assert tpu_vm.decide(state, set(), 0) == "wait"
    for state in LOST:
        assert tpu_vm.decide(state, set(), 0) == "replace"
    for state in ("ACTIVE", "READY"):
        assert tpu_vm.decide(state, {"idle"}, 0) == "start"
        assert tpu_vm.decide(state, {"running"}, 0) == "wait"
        assert tpu_vm.decide(state, {"running", "idle"}, 0) == "wait"
        assert tpu_vm.decide(state, {"exited 1", "idle"}, 0) == "start"  # one VM was restarted, the others noticed
        assert tpu_vm.decide(state, {"exited 0"}, 0) == "stopped"
        assert tpu_vm.decide(state, {"exited 0", "exited 2"}, 0) == "failed"
        assert tpu_vm.decide(state, None, MAX_MISSES - 1) == "wait"
        assert tpu_vm.decide(state, None, MAX_MISSES) == "replace"


def test_a_run_goes_from_no_slice_to_a_finished_run_and_gives_the_slice_back(google):
    _, end = follow(google, "NOT_FOUND", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE idle", "ACTIVE finishing")
    assert end == ""
    once = [verb for verb in verbs(google) if verb not in ("cat", "describe", "status")]
    assert once == ["create", "scp", "tar", "setup", "check", "start", "delete"]
    assert verbs(google)[-1] == "delete"


def test_only_what_the_dry_run_prints_is_run(google):
    follow(
        google,
        "NOT_FOUND",
        "ACTIVE idle",
        "ACTIVE running",
        "SUSPENDED",
        "NOT_FOUND",
        "ACTIVE idle",
        "ACTIVE finishing",
    )
    printed = [shlex.split(line) for line in dry_run(job_of(*RUN, "--", *TRAIN), "run").splitlines() if line[:1] != "#"]
    assert len(calls(google)) > 20
    assert all(["gcloud", *call] in printed for call in calls(google))


def workdir_of(google, *overrides, done):
    """Leaves in the bucket what a run of that config has left: config.json, and done.json of so many steps."""
    config = job_of(*RUN, "--", *TRAIN, *overrides).config
    (google / "config.json").write_text(json.dumps(config.to_dict()))
    if done:
        (google / "done.json").write_text(json.dumps({"steps": done}))


def test_a_finished_run_asks_for_no_slice(google):
    workdir_of(google, done=6)
    _, end = follow(google, "NOT_FOUND")
    assert end == ""
    assert set(verbs(google)) == {"cat", "describe"}


def test_the_result_of_fewer_steps_is_not_that_of_the_command(google):
    workdir_of(google, "--config.run.steps=4", done=4)
    _, end = follow(google, "NOT_FOUND", "ACTIVE idle", "ACTIVE running", "ACTIVE finishing")
    assert end == "" and [verb for verb in verbs(google) if verb in ("create", "start", "delete")] == [
        "create", "start", "delete"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("theirs", "done", "says"),
    [
        ("model.preset=x", 6, "belongs to a run with model.preset = 'x', not 'qwen3_tiny', which would lose"),
        ("model.preset=x", 0, "belongs to a run with model.preset = 'x', not 'qwen3_tiny', which would lose"),
        ("optim.learning_rate=0.5", 6, "optim.learning_rate: 0.001: the run in /bucket/runs/tiny is finished with 0.5"),
        ("run.steps=9", 9, "run.steps: 6: the run in /bucket/runs/tiny has done 9: expected more"),
    ],
)
def test_the_run_of_another_config_is_refused_before_anything_is_requested_or_deleted(google, theirs, done, says):
    workdir_of(google, f"--config.{theirs}", done=done)
    with pytest.raises(UserError, match=re.escape(says)):
        follow(google, "ACTIVE idle")
    assert set(verbs(google)) == {"cat"}


def test_a_result_without_its_config_is_refused(google):
    (google / "done.json").write_text('{"steps": 6}')
    with pytest.raises(UserError, match=r"holds done.json and no config.json: expected both"):
        follow(google, "ACTIVE idle")


@pytest.mark.parametrize("world", ["ACTIVE running,other", "ACTIVE exited-0,other", "ACTIVE idle,running,other"])
@pytest.mark.parametrize("done", [0, 6])
def test_a_slice_that_was_given_another_command_is_left_alone(google, world, done):
    workdir_of(google, done=done)
    _, end = follow(google, world)
    assert end.startswith("error: dasd: this slice was given another command: expected another --name")
    assert set(verbs(google)) == {"cat", "describe", "status"}


def test_a_preempted_slice_is_deleted_and_requested_again_for_the_same_command(google):
    _, end = follow(
        google, "NOT_FOUND", "ACTIVE idle", "ACTIVE running", "SUSPENDING", "SUSPENDED", "NOT_FOUND", "ACTIVE idle",
        "ACTIVE running", "ACTIVE finishing",
    )  # fmt: skip
    assert end == ""
    kept = [verb for verb in verbs(google) if verb in ("create", "start", "delete")]
    assert kept == ["create", "start", "delete", "create", "start", "delete"]
    first, second = (call for call, verb in zip(calls(google), verbs(google), strict=True) if verb == "start")
    assert first == second


def test_a_slice_that_says_active_but_is_out_of_reach_is_replaced(google):
    gone = ["ACTIVE unreachable"] * MAX_MISSES
    _, end = follow(google, "NOT_FOUND", "ACTIVE idle", "ACTIVE running", *gone, "NOT_FOUND", "ACTIVE finishing")
    assert end == ""
    assert [verb for verb in verbs(google) if verb in ("create", "delete")] == ["create", "delete"] * 2


@pytest.mark.parametrize("verb", ["describe", "cat", "status", "scp", "setup", "start", "delete"])
def test_a_call_without_an_answer_is_one_that_failed(google, verb, monkeypatch):
    """The first of its kind never ends; the run goes on with the next."""
    run, asked, hung = subprocess.run, [], []

    def hang(argv, **kwargs):
        asked.append((argv, kwargs["timeout"]))
        if re.search(rf"\b{verb}\b", " ".join(argv)) and len(asked) > 5 and not hung:
            hung.append(argv)
            raise subprocess.TimeoutExpired(argv, kwargs["timeout"])
        return run(argv, **kwargs)

    monkeypatch.setattr(steps.subprocess, "run", hang)
    world = ["NOT_FOUND", "ACTIVE idle", "ACTIVE idle", "ACTIVE running", "SUSPENDED", "NOT_FOUND", "ACTIVE finishing"]
    _, end = follow(google, *world)
    assert end == "" and hung and (google / "done.json").exists()
    for argv, limit in asked:
        words = " ".join(argv)
        short = " describe " in words or " storage cat " in words or " status;" in words
        assert limit == (180 if short else 1800 if argv[0] == "gcloud" else None)


@pytest.mark.parametrize("capture", [True, False])
def test_a_step_beyond_its_limit_is_ended(capture):
    ended = steps.run_step(Step("wait", ("sleep", "600"), limit_s=0.05), capture=capture)
    assert (ended.returncode, ended.stderr) == (255, "no answer within 0.05 s: wait")


def test_a_moment_out_of_reach_or_offline_deletes_nothing(google):
    gone = ["ACTIVE unreachable"] * (MAX_MISSES - 1) + ["OFFLINE"] * 2 * MAX_MISSES
    _, end = follow(google, *gone, "ACTIVE running", "ACTIVE finishing")
    assert end == ""
    assert verbs(google).count("delete") == 1 and "create" not in verbs(google)


def test_files_that_cannot_be_packed_end_the_run_before_anything_is_requested(google, tmp_path):
    stub(tmp_path / "bin" / "git", "exit 1")
    for world in ("NOT_FOUND", "ACTIVE idle"):
        slept, end = follow(google, world)
        assert end == "error: dasd: no slice was requested: the files could not be packed (output above)"
        assert not slept and set(verbs(google)) == {"cat"}


def test_every_slice_of_a_run_gets_the_files_as_they_were_when_it_began(google, tmp_path, capsys):
    """The clone is edited while the run waits for its first slice, and again before its second."""
    stub(tmp_path / "bin" / "git", "echo >> $FAKE/packed; printf 'README.md\\0'")
    turn = ["NOT_FOUND", "ACTIVE idle", "ACTIVE running", "SUSPENDED"]
    _, end = follow(google, *turn, *turn, "NOT_FOUND", "ACTIVE idle", "ACTIVE finishing")
    assert end == "" and verbs(google).count("scp") == 3
    assert (google / "packed").read_text() == "\n"
    (archive,) = (tmp_path / "home").rglob("dasd.tar.gz")
    assert f"sha256 {hashlib.sha256(archive.read_bytes()).hexdigest()}\n" in capsys.readouterr().out


@pytest.mark.parametrize("code", ["1", "0"])
def test_a_slice_on_which_nothing_comes_to_run_is_replaced_too(google, code):
    """Whether a step to it fails every time, or none does and the command is still not there."""
    (google / "scp").write_text(code)
    _, end = follow(google, *["ACTIVE idle"] * (MAX_MISSES + 1), "NOT_FOUND", "ACTIVE finishing")
    assert end == ""
    assert verbs(google).count("delete") == 2 and verbs(google).count("create") == 1


def test_requests_that_fail_are_repeated_ever_more_slowly_and_not_for_ever(google):
    slept, end = follow(google, *["NOT_FOUND", "FAILED"] * 20)
    assert f"{tpu_vm.MAX_LOSSES + 1} slices in a row were lost before the command ran" in end
    rests = [seconds for seconds in slept if seconds != POLL_S]
    assert rests == sorted(rests) and rests[0] == 2 * POLL_S and rests[-1] == MAX_BACKOFF_S
    # Each failed one was given back: as long as it is there it counts against the quota.
    assert verbs(google).count("delete") == verbs(google).count("create")


def test_a_run_that_is_taken_away_often_is_not_given_up(google, monkeypatch):
    monkeypatch.setattr(tpu_vm, "MAX_LOSSES", 2)
    turn = ["NOT_FOUND", "ACTIVE idle", "ACTIVE running", "SUSPENDED"]
    slept, end = follow(google, *turn * (2 * tpu_vm.MAX_LOSSES), "NOT_FOUND", "ACTIVE finishing")
    assert end == ""
    assert set(slept) == {POLL_S}


def test_a_refused_first_request_ends_at_once_and_a_later_one_does_not(google):
    (google / "create").write_text("1")
    slept, end = follow(google, "NOT_FOUND")
    assert end == "error: dasd: the request was rejected (gcloud's output above)" and not slept
    (google / "calls").unlink()
    slept, end = follow(google, "SUSPENDED", "NOT_FOUND", "NOT_FOUND", "ACTIVE finishing")
    assert end == "" and verbs(google).count("create") == 2


@pytest.mark.parametrize("fails", [True, False])
def test_no_slice_is_requested_for_a_run_that_needs_mending(google, monkeypatch, fails):
    """The look at it runs in this environment's Python; a slice that is there already is not looked at again."""
    looked = []

    def run(argv, **kwargs):
        if "dasd_jax.check" not in argv:
            return real(argv, **kwargs)
        looked.append(argv)
        return subprocess.CompletedProcess(argv, 2 if fails else 0)

    real = subprocess.run
    monkeypatch.setattr(steps.subprocess, "run", run)
    argv = (*RUN, "--", *TRAIN)
    _, end = follow(google, "NOT_FOUND", "ACTIVE idle", "ACTIVE running", "ACTIVE finishing", argv=argv)
    assert looked == [(sys.executable, "-m", "dasd_jax.check", *TRAIN[3:], "--topology=v5e:4x4")]
    assert ("create" in verbs(google)) is not fails
    assert end == ("error: dasd: no slice was requested: the run needs mending (above); --no-check goes on" * fails)
    (google / "done.json").unlink(missing_ok=True)
    _, end = follow(google, "ACTIVE running", "ACTIVE finishing", argv=argv)
    assert end == "" and len(looked) == 1


@pytest.mark.parametrize("origin", [["--from=/bucket/runs/a:best", "--from-optimizer"], ["--from", "/bucket/runs/a"]])
def test_flags_of_train_alone_reach_it_and_not_the_look_from_here(origin):
    config = ["--config.run.steps", "9"]
    job = job_of(*RUN, "--", *TRAIN[:4], *origin, *config, *TRAIN[4:])
    assert job.command == (*TRAIN[:4], *origin, *config, *TRAIN[4:]) and job.config.run.steps == 9
    (step,) = plan(job, "check")
    assert sorted(step.argv[3:]) == sorted([*TRAIN[3:], "--config.run.steps=9", "--topology=v5e:4x4"])


@pytest.mark.parametrize(
    ("slice", "topology"),
    [
        ("v5e-1", "v5e:1x1"),
        ("v5e-8", "v5e:2x4"),
        ("v5p-8", "v5p:2x2x1"),
        ("v5p-64", "v5p:2x4x4"),
        ("v6e-64", "v6e:8x8"),
    ],
)
def test_a_run_is_looked_at_for_the_shape_of_its_slice(slice, topology):
    (step,) = plan(job_of(*RUN, f"--slice={slice}", "--", *TRAIN), "check")
    assert step.argv[-1] == f"--topology={topology}" and TRAIN[3] in step.argv
    assert plan(job_of(*RUN, f"--slice={slice}", "--no-check", "--", *TRAIN), "check") == []
    assert plan(job_of(*RUN, "--", "python", "mine.py", "--workdir=/bucket/x"), "check") == []
    assert plan(job_of(*RUN, "--slice=v5p-384", "--", *TRAIN), "check") == []  # of an unknown shape


@pytest.mark.parametrize(
    ("words", "says"), [("exited-2", "failed before its end (exited 2)"), ("exited-0", "was stopped before its end")]
)
def test_a_command_that_ended_before_its_run_did_is_reported_and_the_slice_left(google, words, says):
    _, end = follow(google, f"ACTIVE {words}")
    assert says in end and "delete" not in verbs(google)


def test_a_command_that_ends_because_its_slice_goes_is_continued(google):
    """SIGTERM comes some seconds before the VM is off: the command has ended, the slice still reads ACTIVE."""
    _, end = follow(
        google, "ACTIVE running", "ACTIVE exited-0", "SUSPENDED", "NOT_FOUND", "ACTIVE idle", "ACTIVE finishing"
    )
    assert end == "" and verbs(google).count("start") == 1


def test_a_setup_that_fails_on_a_vm_is_tried_three_times(google):
    _, end = follow(google, "ACTIVE broken")
    assert "setup failed on the slice" in end
    assert verbs(google).count("setup") == 3 and "delete" not in verbs(google)


@pytest.mark.parametrize("step", ["setup", "check"])
def test_a_step_that_fails_on_a_vm_for_a_moment_does_not_end_the_run(google, step):
    (google / f"fails_{step}").write_text("x" * 2)
    _, end = follow(google, "ACTIVE idle", "ACTIVE finishing")
    assert end == "" and [verbs(google).count(verb) for verb in (step, "start")] == [3, 1]


def test_a_command_that_a_vm_refuses_to_start_is_not_started_again(google):
    (google / "fails_start").write_text("x")
    _, end = follow(google, "ACTIVE idle")
    assert "start failed on the slice" in end and verbs(google).count("start") == 1


@pytest.mark.parametrize(
    ("after", "waited"),
    [
        (["ACTIVE exited-0"], 0),
        (["ACTIVE running", "ACTIVE running,exited-0", "ACTIVE exited-0,idle"], 2),
        (["ACTIVE unreachable", "OFFLINE", "SUSPENDED"], 2),
        (["ACTIVE running"], 10),
        (["OFFLINE"], 10),
    ],
)
def test_a_finished_command_has_five_minutes_to_end_before_its_slice_is_deleted(google, after, waited):
    slept, end = follow(google, "ACTIVE finishing", *after)
    assert end == "" and verbs(google)[-1] == "delete" and verbs(google).count("delete") == 1
    assert slept == [POLL_S] * (1 + waited)


def test_keep_leaves_the_slice(google):
    _, end = follow(google, "ACTIVE finishing", argv=(*RUN, "--keep", "--", *TRAIN))
    assert end == "" and "delete" not in verbs(google)


@pytest.mark.parametrize(
    ("world", "says"),
    [
        ("NOT_FOUND", "dasd: no slice"),
        ("FAILED", "dasd: FAILED (no quota)"),
        ("ACTIVE idle,running", "dasd: ACTIVE, idle, running"),
        ("ACTIVE unreachable", "dasd: ACTIVE, unreachable"),
    ],
)
def test_status_says_how_slice_and_command_are(google, world, says, capsys):
    (google / "world").write_text(world + "\n")
    tpu_vm.main(["status", *WHERE])
    assert capsys.readouterr().out.strip() == says


def test_without_an_answer_at_first_there_is_nothing_to_wait_for(google):
    expected = "error: dasd: no answer from Google (ERROR: there was a problem with the network)"
    assert follow(google, "OFFLINE") == ([], expected)
    with pytest.raises(SystemExit, match=re.escape(expected)):
        tpu_vm.main(["status", *WHERE])


# ------------------------------------------------------------------------------------------------ on the VM


@pytest.fixture
def vm(google, tmp_path, monkeypatch):
    """The home of a VM of one worker, with this repository's code and stand-ins for what needs a real one."""
    home = google / "vm"
    (home / "dasd_jax").mkdir(parents=True)
    shutil.copytree(HERE.parents[1] / "launchers", home / "dasd_jax" / "launchers")
    (home / "dasd_venv" / "bin").mkdir(parents=True)
    (home / "dasd_jax.tar.gz").write_bytes(b"packed")
    (google / "world").write_text("ACTIVE\n")
    stub(home / "dasd_venv" / "bin" / "python", 'echo "chips $*" >> $FAKE/vm/calls')
    yield home
    for group in home.glob(".dasd_jax/*/group"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(group.read_text()), signal.SIGKILL)


def stub(path, script):
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


def start(vm, *command, flags=()):
    tpu_vm.main(["start", *WHERE, "--slice=v6e-8", *flags, "--", *command, f"--workdir={vm}/run"])


def status(capsys):
    capsys.readouterr()
    tpu_vm.main(["status", *WHERE])
    return capsys.readouterr().out.strip()


def wait_for(condition):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen in five seconds")


def log_of(vm):
    return (vm / ".dasd_jax" / "log").read_text()


def test_a_started_command_outlives_the_connection_and_its_end_is_known(vm, capsys):
    assert status(capsys) == "dasd: ACTIVE, idle"
    start(vm, "bash", "-c", f'echo "got $1"; while [[ ! -e {vm}/go ]]; do sleep 0.01; done; exit 3', "x", NASTY[0])
    assert status(capsys) == "dasd: ACTIVE, running"
    (vm / "go").touch()
    wait_for(lambda: status(capsys) == "dasd: ACTIVE, exited 3")
    assert f"got {NASTY[0]}" in log_of(vm)
    assert f"files with sha256 {hashlib.sha256(b'packed').hexdigest()}: 'bash' '-c'" in log_of(vm)
    assert [path.read_text() for path in (vm / "run" / "logs").iterdir()] == [log_of(vm)]
    assert "chips - 8 1" in (vm / "calls").read_text()


def test_a_vm_tells_the_command_that_it_was_given_from_any_other(vm):
    """Words with spaces, quotes and line breaks are told apart from the same letters cut otherwise."""
    start(vm, "true", *NASTY)
    given = ["start", *WHERE, "--slice=v6e-8", "--", "true", *NASTY, f"--workdir={vm}/run"]
    wait_for(lambda: steps.vm_statuses(job_of(*given)) == {"exited 0"})
    for other in (given[:-2] + given[-1:], [*given[:-2], *NASTY[-1].split(), given[-1]]):
        with pytest.raises(SystemExit, match="this slice was given another command"):
            steps.vm_statuses(job_of(*other))


def test_the_same_start_again_changes_nothing_and_another_is_refused(vm, capsys, monkeypatch):
    sleeper = ["bash", "-c", "echo begun; sleep 60", "x"]
    monkeypatch.setenv("HF_TOKEN", SECRET)
    for _ in range(2):
        start(vm, *sleeper, flags=["--secret=HF_TOKEN"])
    assert not (vm / ".dasd_jax.secrets").exists()
    wait_for(lambda: "begun" in log_of(vm).splitlines())
    assert log_of(vm).splitlines().count("begun") == 1
    with pytest.raises(SystemExit, match="start failed on the slice"):
        start(vm, "bash", "-c", "echo other", "x")
    assert status(capsys) == "dasd: ACTIVE, running"


def test_stop_lets_the_command_save_while_its_workers_live(vm, capsys):
    saves = f"trap 'kill -0 $worker && echo saved > {vm}/saved; exit 0' TERM; sleep 60 & worker=$!; echo ready; wait"
    start(vm, "bash", "-c", saves, "x")
    wait_for(lambda: "ready" in log_of(vm).splitlines())
    tpu_vm.main(["stop", *WHERE])
    assert status(capsys) == "dasd: ACTIVE, exited 0"
    assert (vm / "saved").read_text() == "saved\n"


def test_stop_lets_a_command_that_handles_sigusr1_finish_its_step(vm, capsys):
    asked = f"trap 'echo finished > {vm}/saved; exit 0' USR1; trap 'echo hurried > {vm}/saved; exit 0' TERM"
    start(vm, "bash", "-c", f"{asked}; echo ready; while :; do sleep 0.05; done", "x")
    wait_for(lambda: "ready" in log_of(vm).splitlines())
    tpu_vm.main(["stop", *WHERE])
    assert status(capsys) == "dasd: ACTIVE, exited 0"
    assert (vm / "saved").read_text() == "finished\n"


def test_stop_hurries_a_command_that_goes_on_after_sigusr1(vm, tmp_path, capsys):
    stub(tmp_path / "bin" / "sleep", "exec /bin/sleep 0.001")  # for the 15 minutes
    asked = f"trap 'echo asked > {vm}/asked' USR1; trap 'echo hurried > {vm}/saved; exit 0' TERM"
    start(vm, "bash", "-c", f"{asked}; echo ready; while :; do /bin/sleep 0.05; done", "x")
    wait_for(lambda: "ready" in log_of(vm).splitlines())
    tpu_vm.main(["stop", *WHERE])
    assert status(capsys) == "dasd: ACTIVE, exited 0"
    assert (vm / "saved").read_text() == "hurried\n" and (vm / "asked").exists()


def test_a_command_that_made_room_for_maintenance_is_idle_when_that_is_over(vm, tmp_path, capsys):
    """Idle is what the launcher starts again; a command that ended otherwise stays known as ended."""
    stub(tmp_path / "bin" / "curl", 'grep -q instance/maintenance-event <<<"$*" && cat $FAKE/vm/notice')
    stub(tmp_path / "bin" / "sleep", "/usr/bin/env -i /bin/sleep 0.05")
    (vm / "notice").write_text("TERMINATE_ON_HOST_MAINTENANCE")
    start(vm, "bash", "-c", f"touch {vm}/ended", "x")
    wait_for((vm / "ended").exists)
    assert status(capsys) == "dasd: ACTIVE, running"
    (vm / "notice").write_text("NONE")
    wait_for(lambda: status(capsys) == "dasd: ACTIVE, idle")
    start(vm, "true")
    wait_for(lambda: status(capsys) == "dasd: ACTIVE, exited 0")
    (vm / "notice").write_text("TERMINATE_ON_HOST_MAINTENANCE")
    start(vm, "bash", "-c", "exit 1", "x")
    wait_for(lambda: status(capsys) == "dasd: ACTIVE, exited 1")


def test_what_an_earlier_command_left_behind_is_ended_before_the_next(vm, capsys):
    start(vm, "bash", "-c", f"sleep 60 & echo $! > {vm}/orphan", "x")
    wait_for(lambda: status(capsys) == "dasd: ACTIVE, exited 0")
    orphan = int((vm / "orphan").read_text())
    os.kill(orphan, 0)
    start(vm, "true")
    wait_for(lambda: not Path(f"/proc/{orphan}").exists() or "Z" in Path(f"/proc/{orphan}/stat").read_text().split()[2])


def test_secrets_reach_the_environment_and_leave_no_file(vm, google, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET + "'\" $x")
    flags = ["--secret=HF_TOKEN", "--secret=OTHER=secret-manager:name"]
    start(vm, "bash", "-c", f'printf "%s|%s" "$HF_TOKEN" "$OTHER" > {vm}/seen', "x", flags=flags)
    wait_for(lambda: (vm / "seen").exists() and (vm / "seen").read_text())
    assert (vm / "seen").read_text() == SECRET + "'\" $x|from-secret-manager"
    assert not (vm / ".dasd_jax.secrets").exists()
    assert not list((google.parent / "home").rglob("*.secrets"))
    assert SECRET not in (google / "calls").read_text() + capsys.readouterr().out + log_of(vm)


def test_the_file_of_secrets_is_for_its_owner_alone(vm, google, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    stub(vm / "dasd_jax" / "launchers" / "vm.sh", "")  # starts nothing, leaves the file
    start(vm, "true", flags=["--secret=HF_TOKEN"])
    assert stat.S_IMODE((vm / ".dasd_jax.secrets").stat().st_mode) == 0o600


def test_chips_that_are_missing_stop_the_start(vm, capsys):
    stub(vm / "dasd_venv" / "bin" / "python", "exit 1")
    with pytest.raises(SystemExit, match="start failed on the slice"):
        start(vm, "true")
    assert capsys.readouterr().out.count("failed; once more") == 2
    assert status(capsys) == "dasd: ACTIVE, idle"


def test_no_run_is_written_below_a_bucket_that_is_not_mounted(vm, tmp_path, capsys):
    stub(tmp_path / "bin" / "mountpoint", "exit 1")
    with pytest.raises(SystemExit, match="start failed on the slice"):
        tpu_vm.main(["start", *RUN[1:], "--", *TRAIN])
    assert status(capsys) == "dasd: ACTIVE, idle"


def test_copy_brings_the_tracked_files_and_takes_away_old_ones(vm):
    (vm / "dasd_jax" / "stale.py").touch()
    tpu_vm.main(["copy", *WHERE])
    names = {path.name for path in (vm / "dasd_jax").iterdir()}
    assert {"dasd_jax", "configs", "launchers", "requirements.txt"} <= names
    assert not names & {"stale.py", ".git", ".venv", "runs"}


def test_setup_installs_jax_with_its_tpu_part_and_mounts_the_bucket_once(vm, tmp_path):
    (vm / ".local" / "bin").mkdir(parents=True)
    stub(vm / ".local" / "bin" / "uv", 'echo "uv $*" >> $FAKE/vm/calls')
    stub(tmp_path / "bin" / "sudo", "exit 0")
    stub(tmp_path / "bin" / "mountpoint", "test -e $FAKE/vm/mounted")
    stub(tmp_path / "bin" / "gcsfuse", 'touch $FAKE/vm/mounted; echo "gcsfuse $*" >> $FAKE/vm/calls')
    for _ in range(2):
        tpu_vm.main(["setup", *RUN[1:]])
    lines = (vm / "calls").read_text().splitlines()
    assert lines.count("gcsfuse --implicit-dirs --rename-dir-limit=100000 my-bucket /bucket") == 1
    assert f"uv pip install --quiet --python {vm}/dasd_venv -r dasd_jax/requirements.txt jax[tpu]" in lines
