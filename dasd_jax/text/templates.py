"""Chat templates are programs from files of strangers: rendered in a process of their own, with bounds on all it takes.

Jinja's sandbox keeps a template from Python's objects, and neither from working without end nor from writing without
end. The process is `python -m dasd_jax.text.templates`; it has no environment variables, opens no file, and speaks one
JSON line a request and a reply.
"""

import contextlib
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DEADLINE_S = 10.0  # a prompt; real templates take less than a millisecond
MAX_CHARS = 4_000_000  # of a prompt
_MEMORY_BYTES = 1 << 30
_START_S = 60.0


class TemplateError(Exception):
    """Why a template could not be rendered, in a few words."""


def render(template: str, variables: Mapping[str, Any]) -> str:
    """The text of a template.

    Args:
        template: Jinja, as transformers compiles it: same whitespace rules, loop controls, sandbox and helpers.
        variables: of JSON's types.

    Raises:
        TemplateError: it is damaged, refuses its variables, or takes more time, memory or text than a prompt needs.
    """
    with _lock:
        process = _process()
        try:
            process.stdin.write(json.dumps([template, variables]).encode() + b"\n")
            reply = _line(process, DEADLINE_S)
            if not reply:
                raise TemplateError(
                    "it ended its process, as one does that needs too much memory"
                    if reply is not None
                    else f"it was not finished after {DEADLINE_S:.0f} s"
                )
        except BaseException:  # an interrupted request leaves a reply that would answer the next one
            _end(process)
            raise
    rendered, text = json.loads(reply)
    if not rendered:
        raise TemplateError(text)
    return text


_lock = threading.Lock()


@functools.cache
def _process() -> subprocess.Popen:
    """The one process of this one, started when the first prompt asks for it; it ends with its input."""
    package_root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-m", "dasd_jax.text.templates"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env={"PYTHONPATH": os.pathsep.join([package_root, *filter(None, sys.path)])},
        start_new_session=True,  # Ctrl-C is for the program, which ends this one
    )
    if not _line(process, _START_S):
        _end(process)
        raise TemplateError("the process that renders templates did not start")
    return process


def _end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    _process.cache_clear()


def _line(process: subprocess.Popen, deadline_s: float) -> bytes | None:
    """Its next line; b"" when it has ended, None when it is late."""
    late, parts = time.monotonic() + deadline_s, []
    while not parts or not parts[-1].endswith(b"\n"):
        if not select.select([process.stdout], [], [], max(0.0, late - time.monotonic()))[0]:
            return None
        parts.append(os.read(process.stdout.fileno(), 1 << 20))
        if not parts[-1]:
            return b""
    return b"".join(parts)


# From here on: what runs inside the process.


def _refuse_side_effects(event: str, args: tuple) -> None:
    """Audit hook: what gets out of the sandbox finds no way to a file, a process or a network."""
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    # Jinja and the codecs import modules when a template first asks for them.
    reads = event == "open" and not str(args[0]).endswith((".py", ".pyc", ".so"))
    outside = event.startswith(("os.", "subprocess.", "socket.", "shutil.", "ctypes.")) and event != "os.listdir"
    if writes or reads or outside:
        raise PermissionError(f"a template may not {event}")


def _serve() -> None:
    """Answers requests until stdin ends: [template, variables] → [True, text] or [False, reason]."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str):
        raise jinja2.TemplateError(message)

    @functools.lru_cache(maxsize=8)
    def compiled(template: str) -> jinja2.Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = raise_exception
        # Jinja's own filter escapes <, > and & for HTML, which would change the prompt.
        environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
        return environment.from_string(template)

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    sys.dont_write_bytecode = True
    sys.addaudithook(_refuse_side_effects)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        template, variables = json.loads(line)
        # SIGALRM's default action ends the process inside any computation: it never outlives its parent for long.
        signal.alarm(int(DEADLINE_S) + 1)
        try:
            text = compiled(template).render(**variables)
            text.encode()  # half a surrogate pair is no text
            reply = [True, text] if len(text) <= MAX_CHARS else [False, f"{len(text)} characters of text"]
        except Exception as error:  # a program can fail in any way
            reply = [False, " ".join(str(error).split())[:300] or type(error).__name__]
        signal.alarm(0)
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.write(json.dumps(reply) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    _serve()
