"""Tables that a benchmark writes into a page of docs, each between marks of its own."""

import re
import sys
from pathlib import Path


def put(page: Path, name: str, text: str) -> None:
    """Replaces what stands between <!-- NAME --> and <!-- end of NAME -->; ends this process if they are not there."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    whole = page.read_text(encoding="utf-8")
    written, count = re.subn(
        f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}{text}\n{end}", whole, flags=re.DOTALL
    )
    if not count:
        sys.exit(f"error: {page}: {begin.strip()} and {end.strip()} are not there: expected both")
    page.write_text(written, encoding="utf-8")
