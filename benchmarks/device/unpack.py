"""Joins pieces of `benchmarks.device.pack` on the machine: python -m benchmarks.device.unpack FOLDER [--into=DIR]

FOLDER holds manifest.json and any pieces. They may come one at a time: what is whole is written, the rest waits for its
pieces. The wheels are installed into DIR/site, for `python -m benchmarks.device` alone. Needs nothing but Python.
"""

import subprocess
import sys
from pathlib import Path

from benchmarks.device import pieces
from dasd_jax import terminal
from dasd_jax.errors import UserError

GIVEN = Path("~/.cache/dasd_jax")


def main(argv: list[str]) -> None:
    """The command."""
    flags = terminal.Parser(description=__doc__, formatter_class=terminal.HelpFormatter, allow_abbrev=False)
    flags.add_argument("folder", type=Path, metavar="FOLDER", help="manifest.json and pieces")
    flags.add_argument("--into", type=Path, default=GIVEN, metavar="DIR", help=f"default {GIVEN}")
    asked = flags.parse_args(argv)
    into = asked.into.expanduser()
    there, missing = pieces.join(asked.folder, into)
    wheels = [name for name in there if name.endswith(".whl")]
    if wheels and not any(name.endswith(".whl") for name in missing) and not (into / "site").exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        targets = ["--target", str(into / "site.tmp"), *(str(into / name) for name in wheels)]
        subprocess.run([*command, *targets], check=True)
        (into / "site.tmp").rename(into / "site")
    print(f"{into}: {len(there)} files are whole; missing: {', '.join(missing) or 'nothing'}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
