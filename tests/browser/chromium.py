"""The system's Chromium without a window, driven by playwright; what a page says and asks for is kept."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Page, sync_playwright


@dataclasses.dataclass(frozen=True)
class Opened:
    """A page that was opened, and what it did that a report must not do.

    Attributes:
        asked: addresses that it requested, but its own file.
        said: errors and warnings of its console, dialogs, and exceptions.
    """

    page: Page
    asked: list[str]
    said: list[str]


@contextlib.contextmanager
def browser() -> Iterator:
    """A browser to be used with `opened`.

    Raises:
        FileNotFoundError: there is no chromium.
    """
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        raise FileNotFoundError("no chromium: expected the system's, which `make test-browser` installs")
    with sync_playwright() as play:
        # A container's root has no sandbox of its own.
        started = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@contextlib.contextmanager
def opened(started, file: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Opened]:
    """Opens a file in a window of its own."""
    context = started.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
    )
    page = context.new_page()
    found = Opened(page, [], [])
    address = file.resolve().as_uri()
    page.on("request", lambda request: request.url != address and found.asked.append(request.url))
    page.on("console", lambda message: message.type in ("error", "warning") and found.said.append(message.text))
    page.on("pageerror", lambda error: found.said.append(str(error)))
    page.on("dialog", lambda dialog: (found.said.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.goto(address)
    yield found
    context.close()
