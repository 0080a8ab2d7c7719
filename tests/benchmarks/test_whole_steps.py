"""The command lines and the tables of the comparisons of whole steps; the other libraries are not needed for them."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import trl_step, tunix_step, whole_steps
from benchmarks.step_ratio import GROUP

PEERS = [trl_step.PEER, tunix_step.PEER]
HERE = sys.executable  # any python: what it has is not looked at here


@pytest.fixture(params=PEERS, ids=lambda peer: peer.name)
def peer(request):
    return request.param


def steps(rollout, score, update):
    """The phases of a step, each a second of the processors for half a second on the clock."""
    phases = {"rollout": rollout, "score": score, "update": update}
    phases = {name: [value, 2 * value] for name, value in phases.items() if value}
    return phases | {"whole": [sum(part) for part in zip(*phases.values(), strict=True)]}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "the following arguments are required: PYTHON"),
        (["no/such/python"], "PYTHON: no/such/python: expected the python of an environment that has"),
        ([HERE, "--sizes=8x8x13,8x8x12"], "--sizes: 8x8x13: expected some of 8x8x12, 8x8x64, 2x8x256, 1x8x1024"),
        ([HERE, "--steps=0"], "--steps: 0: expected at least 1"),
        ([HERE, "--steps=two"], "argument --steps: invalid int value: 'two'"),
        ([HERE, "--sizes=8x8x12", "--rows=48"], "--rows: 48: expected a multiple of"),
        ([HERE, "--rows=-1"], "--rows: -1: expected a multiple of"),
    ],
)
def test_a_wrong_command_line_ends_with_exit_code_2_before_anything_is_computed(peer, args, message, capsys):
    with pytest.raises(SystemExit) as ended:
        whole_steps.run(peer, "", args)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert not printed.out


def test_parts_of_whole_groups_are_asked_of_tunix_alone():
    args = [HERE, "--sizes=2x8x256", "--rows=4"]
    assert whole_steps.arguments(trl_step.PEER, "", args).rows == 4
    with pytest.raises(SystemExit):
        whole_steps.arguments(tunix_step.PEER, "", args)


def test_sizes_may_be_taken_alone_and_are_all_there_by_default(peer):
    assert whole_steps.arguments(peer, "", [HERE]).sizes == [*peer.cases]
    assert whole_steps.arguments(peer, "", [HERE, "--sizes=2x8x256,8x8x12"]).sizes == ["2x8x256", "8x8x12"]


def test_every_size_is_named_by_what_it_computes_and_cut_into_equal_parts(peer):
    for name, case in peer.cases.items():
        assert name.split("-")[-1] == f"{case.problems}x{GROUP}x{case.tokens}"
        assert case.problems * GROUP % case.rows == 0


def test_the_other_side_needs_nothing_of_this_repository(peer):
    code = f"import ast; print(ast.dump(ast.parse(open({str(peer.worker)!r}).read())))"
    dumped = subprocess.run([HERE, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "dasd_jax'" not in dumped
    assert "module='benchmarks" not in dumped


def test_the_table_has_medians_and_ranges_of_every_phase():
    times = {"ours": [steps(1, 2, 3), steps(1, 2, 5), steps(2, 2, 4)], "TRL": [steps(4, 0, 5)] * 3}
    lines = whole_steps.table(times, {"ours": 4.44, "TRL": 5.0})
    assert lines == [
        "| | | rollout | score | update | whole | peak memory, GiB |",
        "|---|---|---|---|---|---|---|",
        "| ours | s | 1.00 (1.00–2.00) | 2.00 (2.00–2.00) | 4.00 (3.00–5.00) | 8.00 (6.00–8.00) | 4.4 |",
        "| ours | CPU-s | 2.00 (2.00–4.00) | 4.00 (4.00–4.00) | 8.00 (6.00–10.00) | 16.00 (12.00–16.00) |  |",
        "| TRL | s | 4.00 (4.00–4.00) | in the update | 5.00 (5.00–5.00) | 9.00 (9.00–9.00) | 5.0 |",
        "| TRL | CPU-s | 8.00 (8.00–8.00) | in the update | 10.00 (10.00–10.00) | 18.00 (18.00–18.00) |  |",
    ]


def test_the_ratio_is_of_steps_that_ran_one_after_the_other():
    # The median of all its steps over that of all ours would be 5.
    ours = [steps(1, 1, 2), steps(3, 3, 6), steps(1, 1, 2)]
    times = {"ours": ours, "TRL": [steps(4, 0, 4), steps(12, 0, 12), steps(10, 0, 10)]}
    expected = "TRL / ours: 2.00 (2.00–5.00) in seconds, 2.00 (2.00–5.00) in CPU-seconds; "
    assert whole_steps.summary(times, "TRL", 1.7) == expected + "to reach 1.7: met"
    assert whole_steps.summary(times, "TRL", 2.1) == expected + "to reach 2.1: NOT met"
    assert whole_steps.summary(times, "TRL", None) == expected + "no target"


def test_gradient_norms_are_compared_only_of_the_same_loss():
    ours, theirs = {"grad_norm": 1.25}, {"grad_norm": 1.5}
    cases = trl_step.PEER.cases
    assert whole_steps.norms(cases["8x8x64"], ours, theirs) == "; gradient norm 1.250000 here, 1.500000 there"
    assert whole_steps.norms(cases["dasd-8x8x64"], ours, theirs) == ""


def test_log_probabilities_differ_by_their_largest_and_mean_distance():
    ours, theirs = {"logp": [[-1.0, -2.0], [-3.0, 0.0]]}, {"logp": [[-1.0, -2.5], [-2.75, 0.0]]}
    line = "log-probabilities differ by at most 5.0e-01 nats, 1.9e-01 on average"
    assert whole_steps.difference(ours, theirs) == line


def test_responses_of_another_length_end_the_comparison():
    case = whole_steps.Case(problems=1, tokens=3, rows=8, target=None)
    whole_steps.check_lengths([[5, 6, 7]] * GROUP, case)
    for tokens in ([[5, 6, 7]] * (GROUP - 1) + [[5, 6]], [[5, 6, 7]] * (GROUP - 1)):
        with pytest.raises(SystemExit, match="expected 8 responses of 3 tokens"):
            whole_steps.check_lengths(tokens, case)


def test_a_side_that_fails_ends_the_command(tmp_path):
    failing = tmp_path / "failing.py"
    failing.write_text("import sys; sys.stdin.readline(); sys.exit(3)")
    with pytest.raises(SystemExit, match="ended with exit code 3"):
        whole_steps.Side([HERE, str(Path(failing))], {})


def test_a_side_answers_lines_and_reports_its_memory(tmp_path):
    echo = tmp_path / "echo.py"
    echo.write_text("import sys\nfor line in sys.stdin: print(line, end='', flush=True)")
    side = whole_steps.Side([HERE, str(echo)], {"problems": 2})
    assert side.started == {"problems": 2}
    assert side.ask({"tokens": [[1]]}) == {"tokens": [[1]]}
    assert 0 < side.peak() < 1
    side.close()
