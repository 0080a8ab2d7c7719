"""Reads a report as a browser would: elements, data blocks and packed numbers."""

import base64
import html.parser
import json
import struct
import zlib

import numpy as np


class Page(html.parser.HTMLParser):
    """The elements of a page.

    Attributes:
        elements: (tag, attributes) in order.
        texts: the content of each script and style, (tag, attributes, text).
    """

    def __init__(self, parts: list[str]):
        """Parses the page."""
        super().__init__(convert_charrefs=True)
        self.elements, self.texts = [], []
        self.feed("".join(parts))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, text):
        tag, attributes = self.elements[-1] if self.elements else ("", {})
        if tag in ("script", "style") and text.strip():
            self.texts.append((tag, attributes, text))

    def block(self, name: str):
        """The value in a data block."""
        return next(json.loads(text) for _, attributes, text in self.texts if attributes.get("id") == name)

    @property
    def blocks(self) -> list[str]:
        """The ids of all data blocks."""
        return [attributes["id"] for tag, attributes in self.elements if tag == "script" and "id" in attributes]

    @property
    def data(self) -> dict:
        """The block that the page reads first."""
        return self.block("data")


def unpacked(block: str) -> tuple[dict, np.ndarray]:
    """(head, f16[N]) of a packed block: the inverse of `page.pack.packed`, written apart from it."""
    content = zlib.decompress(base64.b64decode(block))
    (length,) = struct.unpack_from("<I", content)
    high, low = np.split(np.frombuffer(content[4 + length :], np.uint8), 2)
    return json.loads(content[4 : 4 + length]), np.stack([low, high], axis=1).reshape(-1).view("<f2")


def rollouts(block: str) -> list[list[dict]]:
    """The rollouts of each problem of a step, with their arrays by name."""
    head, numbers = unpacked(block)
    place, found = 0, []
    for problem in head["problems"]:
        found.append([])
        for rollout in problem["rollouts"]:
            arrays = {}
            for name in rollout["names"]:
                arrays[name] = numbers[place : place + rollout["count"]]
                place += rollout["count"]
            found[-1].append(rollout | {"arrays": arrays})
    assert place == len(numbers)
    return found
