"""Names of verifiers in the config and in specs, and what those that are shipped beside `math` call right."""

import json

import pytest

from dasd_jax.data.sources import Problem, load_source
from dasd_jax.errors import UserError
from dasd_jax.run import setup
from dasd_jax.verify import shipped
from dasd_jax.verify.extract import extract_answer


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The spec of one problem in a file."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text(json.dumps({"task": "2+2?", "answer": 4}) + "\n")
    return f"jsonl:{path}?question=task"


@pytest.mark.parametrize(
    ("query", "default", "scorer"),
    [("", "", "math"), ("", "choice", "choice"), ("&verifier=numeric?rel=1e-3", "choice", "numeric?rel=1e-3")],
)
def test_a_spec_names_its_verifier_or_has_that_of_the_config(query, default, scorer, rows):
    [row] = load_source(rows + query, verifier=default)
    assert row.scorer == scorer
    specs = ["gym:chain_sum?size=1", "gym:chain_sum?size=1&verifier=math"]
    task, mathematics = (load_source(spec)[0] for spec in specs)
    assert (task.scorer, mathematics.scorer, task.question) == ("task", "math", mathematics.question)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("maths", "unknown verifier, expected one of math, task, choice"),
        ("task", "only problems of a gym: source have a task"),
        ("numeric?abs=1", "as in numeric?rel=1e-3"),
        ("numeric?rel=-1", "as in numeric?rel=1e-3"),
        ("missing.py:f", "no Python file 'missing.py'"),
        ("a/b:f", "no Python file 'a/b'"),
        ("no_such_package.rewards:f", "no module 'no_such_package.rewards' that Python finds"),
        ("json..decoder:f", "no module 'json..decoder'"),
        ("json:", "'' is no name of a function"),
        ("sys:exit", "no module 'sys' that Python finds"),
    ],
)
def test_a_name_that_is_no_verifier_is_refused_where_it_stands(name, why, rows):
    for spec, field in ((f"{rows}&verifier={name}", "data.sources: "), (rows, "data.verifier: ")):
        with pytest.raises(UserError) as refused:
            load_source(spec, verifier=name)
        assert str(refused.value).startswith(field) and why in str(refused.value)


@pytest.mark.parametrize(
    ("name", "reference", "right", "wrong"),
    [
        ("choice", "B", ["B", "(B)", "b", "B.", r"\text{B}", "(B) 12", "B: the second"], ["A", "A or B", "12", "no B"]),
        ("choice", "(b)", ["B", "b"], ["A", "(A)"]),
        ("regex", r"\d{3}-?\d{4}", ["555-1234", "5551234"], ["a 555-1234", "555-12345", ""]),
        (
            "numeric",
            "3.14159265",
            ["3.1415927", "x = 3.14159265", r"x \approx 3.1415926"],
            ["3.1416", "3 = 3.14159265"],
        ),
        ("numeric", "1/3", ["0.3333333", r"\frac{1}{3}", "2/6"], ["0.333", "-1/3", "1/3 or 2"]),
        ("numeric", r"9.81\text{ m/s}^2", ["9.81", r"9.81000001\text{ m/s}^2"], [r"9.81\text{ m}", "9.82"]),
        ("numeric", "0", ["0", "0.0"], ["1e-9"]),
        ("numeric", "5%", ["5%", "0.05"], ["0.0500001", "5.1%"]),
        ("numeric?rel=0.01", "6.02e23", [r"6 \times 10^{23}", "6.07e23"], ["6.1e23", "6.02e22"]),
        ("numeric?rel=0", "2", ["2", r"\sqrt{4}"], ["2.0000000001"]),
    ],
)
def test_what_the_shipped_verifiers_call_right(name, reference, right, wrong):
    assert shipped.unfit(name, reference) == ""
    assert [answer for answer in right if shipped.judge(name, reference, answer)[0] != 1] == []
    assert [answer for answer in wrong if shipped.judge(name, reference, answer)[0] != 0] == []


@pytest.mark.parametrize(("response", "reward"), [(r"\boxed{B}", 1), ("Answer: (B)", 1), (r"So \boxed{A}", 0)])
def test_a_choice_is_read_from_a_response(response, reward):
    assert shipped.judge("choice", "B", extract_answer(response))[0] == reward


@pytest.mark.parametrize(
    ("name", "reference", "expected"),
    [("choice", "Beta", "one letter"), ("numeric", "twelve", "a number"), ("regex", "(", "a regular expression")],
)
def test_a_reference_that_its_verifier_cannot_use_is_refused(name, reference, expected):
    with pytest.raises(UserError, match=f"^data.verifier: '{name}': the answer '.*': expected {expected}"):
        setup.check_references(
            [
                Problem(question="2+2?", answer=answer, source="s", index=0, scorer=scorer)
                for scorer, answer in (("math", "Beta"), (name, reference))
            ]
        )
