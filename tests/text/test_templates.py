"""Templates run in a process of their own: it is bounded in time, memory and text, and a new one takes its place."""

import datetime
import time
import types
from pathlib import Path

import pytest

from dasd_jax.text import templates

NOW = datetime.datetime(2026, 3, 9, 14, 5)
TURNS = [{"role": role, "content": text} for role, text in (("user", "Q"), ("assistant", "A"), ("user", "<é>"))]
NAMED = {"eos_token": "</s>", "unk_token": "<unk>"}  # what the tokenizer declares

# Template → its text for TURNS. tests/text/test_qwen_parity.py asks transformers for the same.
GIVEN = {
    "{{ tools is none }} {{ tools is defined }} {{ documents is none }}": "True True True",
    "{% if tools is not none %}You have tools.{% endif %}{{ messages[0].content }}": "Q",
    "{% if documents %}# Documents{% endif %}{{ messages | length }}": "3",
    "{{ strftime_now('%Y-%m-%d') }}": "2026-03-09",
    "{{ strftime_now('%d %B %Y, %H:%M') if strftime_now is defined else '26 Jul 2024' }}": "09 March 2026, 14:05",
    "{% macro today() %}{{ strftime_now('%j') }}{% endmacro %}{{ today() }}": "068",
    "{% for m in messages %}{% if loop.index0 % 2 %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}": "QA</s><é>",
    "{% for m in messages %}\n  {% generation %}\n{{ loop.index }}\n  {%- endgeneration -%}\n .\n{% endfor %}": (
        "1.\n2.\n3.\n"
    ),
    "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}": "21",
    "{{ bos_token is defined }}{{ bos_token }} {{ eos_token }} {{ unk_token }} {{ pad_token is defined }}": (
        "False </s> <unk> False"
    ),
    "{{ messages[2] | tojson }}": '{"role": "user", "content": "<é>"}',
    "{{ messages[2] | tojson(indent=1, sort_keys=true) }}": '{\n "content": "<é>",\n "role": "user"\n}',
    "{{ [1, 'é'] | tojson(true, none, [',', ':']) }}": '[1,"\\u00e9"]',
    "{{ add_generation_prompt }}{{ enable_thinking is defined }}{{ date_string is defined }}": "TrueFalseFalse",
    "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.content }}{% endfor %}": "QA",
}


@pytest.mark.parametrize("source", GIVEN)
def test_a_template_is_given_what_transformers_gives_it(source):
    tokenizer = types.SimpleNamespace(chat_template=source, bos_token="", **NAMED)
    assert templates.render_turns(tokenizer, TURNS, add_generation_prompt=True, now=NOW) == GIVEN[source]


def test_the_moment_of_a_request_is_its_own():
    """Between two others of one template."""
    source = "{{ strftime_now('%H') }}"
    hours = [templates.render(source, {}, NOW.replace(hour=hour)) for hour in (3, 23)]
    assert hours == ["03", "23"]
    before = datetime.datetime.now()
    assert before.isoformat()[:19] <= templates.render("{{ strftime_now('%Y-%m-%dT%H:%M:%S') }}", {})
    assert templates.render(source, {}, NOW) == "14"


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
