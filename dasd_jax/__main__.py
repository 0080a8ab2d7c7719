"""The command `dasd`, also python -m dasd_jax: `dasd NAME …` is python -m dasd_jax.NAME …

A command is a file of the package's folder that runs as a program; what it is for is read from its first line, so that
only the chosen one is imported.
"""

import ast
import difflib
import runpy
import sys
from pathlib import Path

_GUARD = '\nif __name__ == "__main__":\n'
_NOT_FOR_USERS = {"__main__", "field_help"}  # itself, and what writes docs/fields.md


def commands() -> dict[str, str]:
    """Name → what it does, in a sentence, from the first line of the docstring, which goes on with its usage."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))}
    return {
        name: ast.get_docstring(ast.parse(text)).splitlines()[0].partition(": python -m")[0]
        for name, text in texts.items()
        if _GUARD in text and name not in _NOT_FOR_USERS
    }


def usage() -> str:
    """What --help prints."""
    known = commands()
    width = max(map(len, known))
    lines = [f"  {name:{width}}  {does}" for name, does in known.items()]
    return "\n".join(["usage: dasd COMMAND [--help] …", "", *lines, "", "dasd COMMAND --help explains its flags."])


def main() -> None:
    """Runs the command that is named first, in this process, or lists them all; exit code 2 for an unknown one."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print(usage())
        return
    known = commands()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        meant = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
        print(f"error: dasd {name!r:.100}: no such command; {meant} (dasd --help lists them)", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"dasd {name}", *rest]
    runpy.run_module(f"dasd_jax.{name}", run_name="__main__")


if __name__ == "__main__":
    main()
