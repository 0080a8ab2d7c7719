"""A slice of `python -m benchmarks.fuzz`, and the runner itself: it sees each kind of fault that it is to find."""

from benchmarks.fuzz.runner import run
from benchmarks.fuzz.targets import TARGETS


def test_the_runner_sees_every_kind_of_fault_and_goes_on():
    numbers = {
        "read": [0, 1], "refused": [0], "raises": [0], "panic": [0], "two_lines": [0], "left_behind": [0],
        "dies": [0], "hangs": [0], "after": [0],
    }  # fmt: skip
    outcomes = list(run(numbers, seed=3, deadline_s=2.0, module="tests.faulty_targets"))
    assert [(outcome.target, outcome.kind) for outcome in outcomes] == [
        ("read", "read"), ("read", "read"), ("refused", "refused"), ("raises", "exception"), ("panic", "exception"),
        ("two_lines", "exception"), ("left_behind", "left behind"), ("dies", "death"), ("hangs", "hang"),
        ("after", "read"),
    ]  # fmt: skip
    assert sum(outcome.find for outcome in outcomes) == 6
    assert "KeyError" in outcomes[3].text and "half" in outcomes[6].text


def test_an_input_depends_on_seed_target_and_number_alone():
    whole = [outcome.what for outcome in run({"read": [0, 1], "after": [1]}, seed=3, module="tests.faulty_targets")]
    (again,) = run({"read": [1]}, seed=3, module="tests.faulty_targets")
    (other,) = run({"read": [1]}, seed=4, module="tests.faulty_targets")
    assert whole[1] == again.what and len({*whole, other.what}) == 4


def test_hostile_inputs_are_read_or_refused_in_one_line():
    """Eight of each parser; the whole run has thousands."""
    outcomes = list(run({name: range(8) for name in TARGETS}, seed=1))
    assert [(o.target, o.number, o.kind, o.what, o.text) for o in outcomes if o.find] == []
    assert {"read", "refused"} == {outcome.kind for outcome in outcomes}
