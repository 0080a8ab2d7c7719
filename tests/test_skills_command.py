"""The command that makes a bank of skills and mistakes, from made-up runs."""

import json

import fake_run
import pytest

from dasd_jax import skills
from dasd_jax.data.skills import KINDS, read
from dasd_jax.errors import UserError


def test_a_bank_of_a_run_is_one_that_a_run_reads(tmp_path, capsys):
    run, path = fake_run.write(tmp_path / "run", steps=3, rollouts=4), tmp_path / "bank.jsonl"
    skills.main([str(run), f"--output={path}"])
    assert capsys.readouterr().out == f"{path}: skills: 6, mistakes: 6, made of 24 finished responses of 24\n"
    bank, responses = read(str(path)), {}
    for line in (run / "samples.jsonl").read_text().splitlines():
        problem = json.loads(line)
        responses[problem["question"]] = problem["rollouts"]
    assert [item.kind for item in bank.items] == [*KINDS] * 6
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        rollouts = [each for each in responses[line["question"]] if (each["reward"] == 1) == ("skill" in line)]
        shortest = min((each["text"].strip() for each in rollouts), key=len)
        [text] = [line[kind] for kind in KINDS if kind in line]
        assert text.endswith(f"\n\n{line['question']}\n\n{shortest}")
        assert ("right response" in text) == ("skill" in line) == ("no answer was found" not in text)
    before = path.read_bytes()
    path.unlink()
    skills.main([str(run), f"--output={path}"])
    assert path.read_bytes() == before


def test_answers_of_an_evaluation_are_taken_where_they_are_named(tmp_path, capsys):
    run, path = fake_run.write(tmp_path / "run"), tmp_path / "bank.jsonl"
    (run / "metrics.jsonl").unlink()  # an evaluation without a training
    skills.main([str(run), f"--output={path}", "--answers=heldout/4.jsonl"])
    answers = [json.loads(line) for line in (run / "heldout" / "4.jsonl").read_text().splitlines()]
    expected = [sum(kind in each["reward"] for each in answers) for kind in (1.0, 0.0)]
    assert capsys.readouterr().out.endswith(
        f"skills: {expected[0]}, mistakes: {expected[1]}, made of 16 finished responses of 16\n"
    )


def test_the_commonest_wrong_answer_is_the_mistake_and_the_shortest_response_stands_for_it():
    responses = [
        ("1 + 1?", "<think>hm</think> It is certainly 3.", False, "whose answer 3 is wrong"),
        ("1 + 1?", "4", False, "whose answer 4 is wrong"),
        ("1 + 1?", "It is 3.", False, "whose answer 3 is wrong"),
        ("1 + 1?", "One and one make 2.", True, ""),
        ("1 +  1?", "So 2.", True, ""),
        ("2 + 2?", "it is " + "very " * 50 + "4", True, ""),
        ("2 + 2?", "<think>5</think>", False, "in which no answer was found"),
    ]
    skill, mistake = skills.made(responses, max_chars=100)
    assert skill == {"skill": "A problem and a right response to it.\n\n1 + 1?\n\nSo 2.", "question": "1 + 1?"}
    assert mistake == {
        "mistake": "A problem and a response to it whose answer 3 is wrong.\n\n1 + 1?\n\nIt is 3.",
        "question": "1 + 1?",
    }
    assert len(skills.made(responses, max_chars=1000)) == 3


@pytest.mark.parametrize(
    ("error", "extracted", "told"),
    [
        ("parse", None, "in which no answer was found"),
        ("", "7", "whose answer 7 is wrong"),
        ("", None, "that is wrong"),
    ],
)
def test_what_is_said_of_a_mistake_is_what_the_verifier_found(error, extracted, told, tmp_path):
    """A reward function of the user's own reads no answer; that is none that was not found."""
    run, path = fake_run.write(tmp_path / "run", steps=1, problems=1, rollouts=2), tmp_path / "bank.jsonl"
    problem = json.loads((run / "samples.jsonl").read_text())
    for rollout in problem["rollouts"]:
        rollout |= {"reward": 0.95, "error": error, "extracted": extracted}
    (run / "samples.jsonl").write_text(json.dumps(problem) + "\n")
    skills.main([str(run), f"--output={path}"])
    [line] = [json.loads(line) for line in path.read_text().splitlines()]
    assert line["mistake"].startswith(f"A problem and a response to it {told}.\n\n")


def test_responses_that_were_never_judged_are_no_mistakes_and_are_counted(tmp_path, capsys):
    """Three of eight ended without a verdict, one of them unfinished."""
    run, path = fake_run.write(tmp_path / "run", steps=1, problems=2, rollouts=4), tmp_path / "bank.jsonl"
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    for problem, errors in zip(lines, (("", "crash", "", "parse"), ("timeout", "memory", "", "")), strict=True):
        for i, (rollout, error) in enumerate(zip(problem["rollouts"], errors, strict=True)):
            said = "none" if error in ("crash", "timeout", "memory") else f"judged {i}"
            rollout |= {"reward": 0.0, "error": error, "text": said}
    lines[0]["rollouts"][1]["finished"] = False
    (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    skills.main([str(run), f"--output={path}"])
    assert capsys.readouterr().out.endswith(
        ": skills: 0, mistakes: 2, made of 5 finished responses of 8; 2 left out: the verifier came to no verdict\n"
    )
    assert "none" not in path.read_text()


def test_unfinished_responses_and_conversations(tmp_path, capsys):
    run, path = fake_run.write(tmp_path / "run", steps=1, problems=1, rollouts=2), tmp_path / "bank.jsonl"
    problem = json.loads((run / "samples.jsonl").read_text())
    problem["rollouts"][0]["finished"] = False
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 0?"}]
    (run / "samples.jsonl").write_text(json.dumps(problem | {"question": json.dumps(turns)}) + "\n")
    skills.main([str(run), f"--output={path}"])
    assert capsys.readouterr().out.endswith(": skills: 1, mistakes: 0, made of 1 finished responses of 2\n")
    [line] = [json.loads(line) for line in path.read_text().splitlines()]
    assert "\n\nBe brief.\n\n1 + 0?\n\n" in line["skill"] and line["question"] == json.dumps(turns)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--output={}/bank.txt"], "--output: .*: expected a file that ends in .jsonl and does not exist"),
        (["--output={}/run/metrics.jsonl"], "--output: .*: expected a file that ends in .jsonl and does not exist"),
        (["--output={}/none/bank.jsonl"], "--output: .*: there is no folder"),
        (["--output={}/bank.jsonl", "--max_chars=0"], "--max_chars: 0: expected a whole number"),
        (
            ["--output={}/bank.jsonl", "--max_chars=1"],
            "RUN: .*: 16 of 16 responses are finished and judged, and none of those has at most --max_chars = 1 ",
        ),
        (
            ["--output={}/bank.jsonl", "--answers=eval/7.jsonl"],
            "--answers: .*eval/7.jsonl: no such file: expected held",
        ),
        (["--nonsense"], "the following arguments are required: --output|unrecognized"),
    ],
)
def test_a_wrong_flag_is_one_line_and_nothing_is_written(flags, says, tmp_path):
    run = fake_run.write(tmp_path / "run")
    with pytest.raises(UserError, match=f"^({says})"):
        skills.main([str(run), *(flag.format(tmp_path) for flag in flags)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(("before", "after"), [('"text": "', '"text": 3, "was": "'), ('"reward"', '"other"')])
def test_a_damaged_run_is_one_line(before, after, tmp_path):
    run = fake_run.write(tmp_path / "run")
    samples = run / "samples.jsonl"
    samples.write_text(samples.read_text().replace(before, after))
    with pytest.raises(UserError, match="^RUN: .*samples.jsonl is damaged"):
        skills.main([str(run), f"--output={tmp_path}/bank.jsonl"])
    with pytest.raises(UserError, match="^RUN: .* holds no metrics.jsonl"):
        skills.main([str(tmp_path), f"--output={tmp_path}/bank.jsonl"])
