"""The lines at the end of a run."""

import resource
import sys

import pytest
from rich.cells import cell_len

from dasd_jax.run.summary import as_text, peak_memory_gib

MEANS = {
    "router/rows_off_frac": 0.000651, "router/attract_mass": 0.1364, "credit/verifier_abs_mean": 0.5448,
    "entropy/mean": 0.4026, "reward/mean": 0.4167,
}  # fmt: skip


def done(samples=128, **changes):
    """A done.json as `summarise` makes it, of many samples and problems."""
    held = {
        f"avg@{samples}": [0.15, 0.48], f"pass@{samples}": [0.406, 0.648], "standard_error": [0.019, 0.038],
        "rise": 0.33, "rise_standard_error": 0.035, "problems": 12345,
    }  # fmt: skip
    return {
        "workdir": "runs/smollm2_math", "heldout": held, "mean_over_steps": MEANS,
        "seconds_this_session": 123_456.0, "peak_memory_gib": 123.4, **changes,
    }  # fmt: skip


def test_the_end_of_a_run_fits_80_columns_and_has_all_figures():
    text = as_text(done())
    assert max(map(cell_len, text.split("\n"))) <= 80
    for figure in (
        "0.150 ± 0.019",
        "0.480 ± 0.038",
        "12345 problems",
        "+0.330 ± 0.035",
        "9.4 standard errors",
        "0.648",
    ):
        assert figure in text
    for name, value in MEANS.items():
        [line] = [line for line in text.split("\n") if name in line]
        assert float(line.split()[-1]) == pytest.approx(value, rel=1e-3)
    assert text.endswith("\nthe run is in runs/smollm2_math")


def of(held, **figures):
    """The same done.json with other figures of the held-out problems."""
    return held | {"heldout": held["heldout"] | figures}


def test_of_one_problem_no_error_is_said():
    text = as_text(of(done(), standard_error=[None, None], rise_standard_error=None, problems=1))
    assert "0.150 ± – before, 0.480 ± – after, 1 problems\nrise: +0.330 ± –, of one problem\n" in text


def test_a_rise_that_is_the_same_of_every_problem_is_said_to_be():
    """Its error is 0, and no number of errors says how large it is."""
    lines = as_text(of(done(compared_with_step=24), rise_standard_error=0.0)).split("\n")
    assert "rise since step 24: +0.330 ± 0.000, every problem changed by the same amount" in lines
    assert max(map(cell_len, lines)) <= 80


def test_means_are_said_to_be_over_the_steps_that_have_the_number():
    assert "mean over the steps that logged it" in [line.strip() for line in as_text(done()).split("\n")]


def test_minutes_and_memory_are_said_to_be_of_this_session():
    """A run that was resumed has spent more, and memory of the devices is not counted."""
    assert "\nthis session: 2057.6 min, host memory at most 123.4 GiB\n" in as_text(done())


@pytest.mark.parametrize(("platform", "unit"), [("linux", 2**10), ("darwin", 1)])
def test_the_peak_of_memory_is_read_in_the_units_of_the_system(platform, unit, monkeypatch):
    usage = resource.struct_rusage([0.0, 0.0, 3 * 2**30 // unit, *[0] * 13])
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    monkeypatch.setattr(sys, "platform", platform)
    assert peak_memory_gib() == 3.0


def test_a_run_without_means_says_nothing_of_them():
    assert "mean over" not in as_text(done(mean_over_steps={}))


def test_a_rise_since_a_later_evaluation_says_so():
    text = as_text(done(compared_with_step=24))
    assert "\nrise since step 24: +0.330 ± 0.035" in text and max(map(cell_len, text.split("\n"))) <= 80
    assert "\nrise: +0.330" in as_text(done(compared_with_step=0))
