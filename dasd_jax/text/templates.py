"""Renders chat templates, which are untrusted programs, in a subprocess with limits on time, memory and output.

Jinja's sandbox protects Python's objects, but does not bound computation or output. The subprocess is
`python -m dasd_jax.text.templates`; it has no environment variables, opens no file, and exchanges one JSON line per
request and reply.
"""

import contextlib
import datetime
import functools
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

DEADLINE_S = 10.0  # per prompt; real templates take less than a millisecond
MAX_CHARS = 4_000_000  # per prompt
_MEMORY_BYTES = 1 << 30
_START_DEADLINE_S = 60.0


# The special tokens that a template may name; transformers defines those that the tokenizer declares.
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TemplateError(Exception):
    """Why a template could not be rendered, in a few words."""


def render_turns(
    tokenizer: Any,
    messages: Sequence[Mapping[str, str]],
    *,
    add_generation_prompt: bool,
    enable_thinking: bool | None = None,
    now: datetime.datetime | None = None,
) -> str:
    """The text of a conversation in a tokenizer's chat template, given the variables that transformers gives it.

    Args:
        tokenizer: its `chat_template`, and its attributes of `NAMED_TOKENS` that are there and not empty, are read.
        messages: {"role": …, "content": …} each.
        add_generation_prompt: whether the text ends with the start of an assistant turn.
        enable_thinking: defined unless None.
        now: what `strftime_now` tells; None: the present.

    Raises:
        TemplateError: as `render`.
    """
    variables = {name: text for name in NAMED_TOKENS if (text := getattr(tokenizer, name, ""))}
    variables |= {"messages": list(messages), "tools": None, "documents": None}
    variables["add_generation_prompt"] = add_generation_prompt
    if enable_thinking is not None:
        variables["enable_thinking"] = enable_thinking
    return render(tokenizer.chat_template, variables, now)


def render(template: str, variables: Mapping[str, Any], now: datetime.datetime | None = None) -> str:
    """Renders a template.

    Args:
        template: Jinja, as transformers compiles it: same whitespace rules, loop controls, sandbox and helpers.
        variables: JSON values.
        now: what `strftime_now` tells; None: the present.

    Raises:
        TemplateError: it is damaged, rejects its variables, or exceeds the limits on time, memory or text.
    """
    request = [template, variables, (now or datetime.datetime.now()).isoformat()]
    with _lock:
        process = _process()
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            reply = _line(process, DEADLINE_S)
            if not reply:
                raise TemplateError(
                    "its process died, possibly out of memory"
                    if reply is not None
                    else f"it did not finish within {DEADLINE_S:.0f} s"
                )
        except BaseException:  # after an interrupted request, its reply would be read by the next one
            _end(process)
            raise
    rendered, text = json.loads(reply)
    if not rendered:
        raise TemplateError(text)
    return text


_lock = threading.Lock()


@functools.cache
def _process() -> subprocess.Popen:
    """The rendering subprocess, started at the first request; it exits when its stdin closes."""
    package_root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-m", "dasd_jax.text.templates"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env={"PYTHONPATH": os.pathsep.join([package_root, *filter(None, sys.path)])},
        start_new_session=True,  # Ctrl-C goes to the parent, which ends this process
    )
    if not _line(process, _START_DEADLINE_S):
        _end(process)
        raise TemplateError("the process that renders templates failed to start")
    return process


def _end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    _process.cache_clear()


def _line(process: subprocess.Popen, deadline_s: float) -> bytes | None:
    """The next line of its stdout; b"" if it has exited, None after the deadline."""
    deadline, parts = time.monotonic() + deadline_s, []
    while not parts or not parts[-1].endswith(b"\n"):
        if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return None
        parts.append(os.read(process.stdout.fileno(), 1 << 20))
        if not parts[-1]:
            return b""
    return b"".join(parts)


# Everything below runs inside the subprocess.


def _refuse_side_effects(event: str, args: tuple) -> None:
    """Audit hook: code that escapes the sandbox cannot use files, processes or the network."""
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    # Jinja and the codecs import modules lazily.
    reads = event == "open" and not str(args[0]).endswith((".py", ".pyc", ".so"))
    outside = event.startswith(("os.", "subprocess.", "socket.", "shutil.", "ctypes.")) and event != "os.listdir"
    if writes or reads or outside:
        raise PermissionError(f"a template may not {event}")


def _environment(now: Callable[[], datetime.datetime]):
    """The Jinja environment in which transformers compiles chat templates, with the helpers that it gives them."""
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """{% generation %} … {% endgeneration %}: marks what the assistant says and prints it as it stands."""

        tags = frozenset(["generation"])

        def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
            line = next(parser.stream).lineno
            said = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            # A call block and no plain scope: variables that are set inside have to end with it, as in transformers.
            return jinja2.nodes.CallBlock(self.call_method("_printed"), [], [], said, lineno=line)

        def _printed(self, caller: Callable[[], str]) -> str:
            return caller()

    def raise_exception(message: str):
        raise jinja2.TemplateError(message)

    # Jinja's own filter escapes <, > and & for HTML, which would change the prompt.
    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: now().strftime(format)
    return environment


def _serve() -> None:
    """Answers requests until stdin ends: [template, variables, now] → [True, text] or [False, reason]."""
    environment = _environment(lambda: datetime.datetime.fromisoformat(now))
    compiled = functools.lru_cache(maxsize=8)(environment.from_string)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    sys.dont_write_bytecode = True
    sys.addaudithook(_refuse_side_effects)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        template, variables, now = json.loads(line)
        # SIGALRM's default action kills the process in any computation, so it cannot outlive its parent for long.
        signal.alarm(int(DEADLINE_S) + 1)
        try:
            text = compiled(template).render(**variables)
            text.encode()  # rejects lone surrogates
            reply = [True, text] if len(text) <= MAX_CHARS else [False, f"{len(text)} characters of text"]
        except Exception as error:  # a template can fail in any way
            reply = [False, " ".join(str(error).split())[:300] or type(error).__name__]
        signal.alarm(0)
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.write(json.dumps(reply) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    _serve()
