"""Files cut into pieces for channels that limit a transfer, with the sums that they are checked by when joined.

The files follow one another in one stream, which is cut every `size` bytes: a file is whole once its pieces are there,
so that what is wanted first arrives first.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from dasd_jax import files
from dasd_jax.errors import UserError

MANIFEST = "manifest.json"
_READ = 1 << 20  # bytes at a time


def cut(sources: Mapping[str, Path], folder: Path, size: int) -> dict:
    """Writes manifest.json and the pieces into a new folder.

    Args:
        sources: path at the other end → file, in the order in which they are wanted.
        size: bytes of a piece; the last may be smaller.

    Returns:
        The manifest: "files" with path, bytes and sha256, "pieces" with name, bytes and sha256, and "size".
    """
    found: dict = {"size": size, "files": [], "pieces": []}
    with files.new_folder(folder, "--output") as draft:
        left = 0
        for path, source in sources.items():
            for block in _blocks(source):
                while block:
                    if not left:
                        name, left = f"{len(found['pieces']) + 1:03d}.piece", size
                        found["pieces"].append({"name": name})
                    with (draft / name).open("ab") as out:
                        out.write(block[:left])
                    block, left = block[left:], left - len(block[:left])
            found["files"].append({"path": path, **_measured(source)})
        for piece in found["pieces"]:
            piece |= _measured(draft / piece["name"])
        files.write_json(draft / MANIFEST, found)
    return found


def join(folder: Path, into: Path) -> tuple[list[str], list[str]]:
    """Takes the manifest and pieces of a folder to `into`, and writes each file that is whole there.

    Pieces of earlier calls with the same manifest stay in `into`, so that each may come alone. What is there already is
    not written again.

    Returns:
        (paths of the files that are there, paths of those that pieces are missing of).

    Raises:
        UserError: a piece, or a file joined from pieces, has another sum than the manifest says.
    """
    with files.reading(folder / MANIFEST, "FOLDER"):
        manifest = json.loads((folder / MANIFEST).read_text())
        size, names = manifest["size"], [piece["name"] for piece in manifest["pieces"]]
    kept = into / "pieces" / hashlib.sha256(json.dumps(manifest).encode()).hexdigest()[:16]
    kept.mkdir(parents=True, exist_ok=True)
    for piece in manifest["pieces"]:
        source = folder / piece["name"]
        if source.exists() and not (kept / piece["name"]).exists():
            _check(source, piece["sha256"], source)
            draft = kept / f"{piece['name']}.tmp"
            shutil.copyfile(source, draft)
            draft.rename(kept / piece["name"])
    there, missing, start = [], [], 0
    for file in manifest["files"]:
        target, end = into / file["path"], start + file["bytes"]
        needed = [kept / name for name in names[start // size : -(-end // size)]]
        if not target.exists() and all(map(Path.exists, needed)):
            with files.replacing(target, "--into") as draft:
                with draft.open("wb") as out:
                    out.writelines(_between(needed, start % size, file["bytes"]))
                _check(draft, file["sha256"], target)
        (there if target.exists() else missing).append(file["path"])
        start = end
    return there, missing


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_READ):
            yield block


def _between(pieces: list[Path], skip: int, count: int) -> Iterator[bytes]:
    """`count` bytes of the pieces in a row, after the first `skip`."""
    for piece in pieces:
        for block in _blocks(piece):
            part = block[skip : skip + count]
            skip, count = max(0, skip - len(block)), count - len(part)
            yield part


def _measured(path: Path) -> dict:
    sha = hashlib.sha256()
    for block in _blocks(path):
        sha.update(block)
    return {"bytes": path.stat().st_size, "sha256": sha.hexdigest()}


def _check(path: Path, expected: str, name: Path) -> None:
    if (found := _measured(path)["sha256"]) != expected:
        raise UserError(f"{name}: sha256 {found}: expected {expected} of {MANIFEST}; send the piece again")
