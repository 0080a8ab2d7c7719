"""Templates run in a process of their own: it is bounded in time, memory and text, and a new one takes its place."""

import time
from pathlib import Path

import pytest

from dasd_jax.text import templates


def pid() -> int:
    return templates._process().pid


def test_a_template_without_end_is_stopped_and_the_next_one_rendered(monkeypatch):
    monkeypatch.setattr(templates, "DEADLINE_S", 1.0)
    before, started = pid(), time.monotonic()
    with pytest.raises(templates.TemplateError, match="did not finish within 1 s"):
        templates.render("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", {})
    assert time.monotonic() - started < 5
    assert templates.render("{{ a }}", {"a": "é <&>"}) == "é <&>"
    assert pid() != before


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10000000000 }}",
        "{% set x = namespace(v='xxxx') %}{% for i in range(60) %}{% set x.v = x.v ~ x.v %}{% endfor %}{{ x.v }}",
        "{{ 'x'.rjust(10000000000) }}",
        "{% for a in range(5000) %}{{ 'x' * 1000 }}{% endfor %}",
    ],
)
def test_text_without_end_is_refused(source):
    with pytest.raises(templates.TemplateError):
        templates.render(source, {})
    assert templates.render("{{ 1 + 1 }}", {}) == "2"


def test_an_interrupted_request_answers_no_later_one(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(templates, "_line", lambda process, deadline_s: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            templates.render("first", {})
    assert templates.render("second", {}) == "second"


def test_the_process_knows_no_variable_of_ours_and_reaches_no_file(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "planted-by-the-test")
    templates._end(templates._process())
    names = {pair.partition(b"=")[0] for pair in Path(f"/proc/{pid()}/environ").read_bytes().split(b"\0")}
    assert names - {b"", b"LC_CTYPE"} == {b"PYTHONPATH"}
    for event, args in (
        ("open", ("/etc/passwd", "r", 0)),
        ("open", ("a.py", "w", 1)),
        ("os.system", ("true",)),
        ("subprocess.Popen", ()),
        ("socket.connect", ()),
    ):
        with pytest.raises(PermissionError):
            templates._refuse_side_effects(event, args)
    templates._refuse_side_effects("open", ("encodings/ascii.py", "r", 0))
