"""Small, structured damage to bytes, JSON values and text: what disks, downloads and strangers do to files."""

import copy
import gzip
import io
import json
import math
import pickle
import random
import struct
import zipfile
from typing import Any

# Values at the edges of what a field may hold, and beyond them.
NASTY = (
    None, True, False, 0, -1, 1, 2, 7, 255, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**40, 0.0, -0.0, 0.5,
    1e308, 5e-324, math.nan, math.inf, -math.inf, "", " ", "0", "-1", "nan", "true", "\0", "a\nb", "\x1b[2J", "\ud800",
    "\u202e", "é\u0301", "{}", "../../etc/passwd", "%s%n{0}", "x" * 5000, [], [[]], {}, {"": None}, [None], [0, -1],
)  # fmt: skip


class _Escape:
    """Unpickled, it makes a file called `escaped` where the process stands."""

    def __reduce__(self):
        return open, ("escaped", "w")


def _archive() -> bytes:
    """A zip archive of 64 MiB in 64 KiB, one member of it outside of the folder it is unpacked in."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../escaped", b"\0" * (64 << 20))
        archive.writestr("archive/data.pkl", pickle.dumps(_Escape()))
    return packed.getvalue()


# Files of other formats under the name of an expected one.
FOREIGN = {
    "a pickle": pickle.dumps(_Escape()),
    "an archive": _archive(),
    "gzip": gzip.compress(b"\0" * (64 << 20)),
    "nothing": b"",
    "a module": b"open('escaped', 'w')\n",
}
_KINDS = ("flip", "flip", "byte", "cut", "length", "length", "length4", "drop", "repeat", "zero", "garbage", "foreign")
_LENGTHS = (0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**60, 2**63 - 1, 2**63, 2**64 - 1)


def nested(depth: int, kind: str = "[") -> str:
    """JSON text that nests `depth` deep."""
    return "[" * depth + "]" * depth if kind == "[" else '{"a":' * depth + "1" + "}" * depth


def damaged(rng: random.Random, content: bytes, head: int | None = None) -> tuple[str, bytes]:
    """(what was done, the bytes after it): one or two kinds of damage, most of them within the first `head` bytes."""
    done = []
    for _ in range(rng.choice((1, 1, 2))):
        what, content = _damage(rng, content, head if head and rng.random() < 0.8 else None)
        done.append(what)
    return ", ".join(done), content


def _damage(rng: random.Random, content: bytes, head: int | None) -> tuple[str, bytes]:
    size = min(len(content), head or len(content))
    at = rng.randrange(size) if size else 0
    kind = rng.choice(_KINDS)
    if kind == "cut" and rng.random() < 0.1:
        at = 0
    if kind == "foreign":
        name = rng.choice(list(FOREIGN))
        return name, FOREIGN[name]
    what = f"{kind} at {at}"
    before, after = content[:at], content[at:]
    if kind == "flip":
        return what, before + bytes([(after[:1] or b"\0")[0] ^ 1 << rng.randrange(8)]) + after[1:]
    if kind == "byte":
        return what, before + bytes([rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))]) + after[1:]
    if kind == "cut":
        return what, before
    if kind in ("length", "length4"):
        length = rng.choice(_LENGTHS)
        written = struct.pack("<Q", length) if kind == "length" else struct.pack("<I", length % 2**32)
        return f"{what}: {length}", before + written + after[len(written) :]
    if kind == "drop":
        return what, before + after[rng.randrange(1, 64) :]
    if kind == "repeat":
        return what, before + after[: rng.randrange(1, 256)] + after
    if kind == "zero":
        count = rng.randrange(1, 64)
        return what, before + b"\0" * count + after[count:]
    return what, before + rng.randbytes(rng.randrange(1, 64)) + after


def altered(rng: random.Random, value: Any) -> tuple[str, str]:
    """(what was done, JSON text): a value of a JSON tree exchanged, removed, or written twice; or the text damaged."""
    value = copy.deepcopy(value)
    kind = rng.choice(("exchange",) * 6 + ("remove", "twice", "deep", "root", "text", "none"))
    if kind == "root":
        new = rng.choice(NASTY)
        return f"root is {new!r:.40}", json.dumps(new)
    if kind == "none":
        return "nothing", json.dumps(value)
    if kind == "text":
        what, text = damaged(rng, json.dumps(value).encode())
        return what, text.decode("utf-8", errors="surrogateescape")
    parent, key = rng.choice(list(_places(value)) or [({"": value}, "")])
    where = f"{key!r:.40}"
    if kind == "remove":
        del parent[key]
        return f"{where} removed", json.dumps(value)
    if kind == "exchange":
        parent[key] = rng.choice(NASTY)
        return f"{where} is {parent[key]!r:.40}", json.dumps(value)
    mark, old = "\u0001mark", parent[key]
    parent[key] = mark
    depth = rng.choice((50, 900, 5000, 200_000))
    text = nested(depth, rng.choice("[{")) if kind == "deep" else json.dumps(old)
    if kind == "twice":
        text += (
            f", {json.dumps(str(key))}: {json.dumps(rng.choice(NASTY))}" if isinstance(parent, dict) else f", {text}"
        )
    what = f"{where} {depth} deep" if kind == "deep" else f"{where} twice"
    return what, json.dumps(value).replace(json.dumps(mark), text)


def _places(value: Any):
    """Every (container, key) below a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(items):
        yield value, key
        yield from _places(child)
