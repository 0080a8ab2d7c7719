"""Published lists of words, each a text file beside this one: a word a line, and its source after `#`."""

from pathlib import Path


def _read(name: str) -> tuple[str, ...]:
    lines = (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))


EPISTEMIC = _read("epistemic.txt")
EXPLORE = _read("explore.txt")
VERDICT = _read("verdict.txt")
