"""The report of made-up runs in headless Chromium: python -m benchmarks.report_page [--rollouts=16]

Makes 3 runs × 200 steps × 16 rollouts of 64 tokens, two of them with settings that differ in the seed alone, and prints
how long the report takes, how large it is, when it first paints, and how long it takes to answer the pointer: from the
event to the end of the next frame. `--screenshots=DIR RUN [RUN …]` instead writes pictures of the report of real runs,
two widths, light and dark. Needs what `make test-browser` installs.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from dasd_jax import cli

ROOT = Path(__file__).parents[1]
STEPS, TOKENS, PROBLEMS = 200, 64, 4
# The milliseconds from each event of a kind to the end of the frame after it, in window.spent.
WATCH = """kind => { window.spent = [];
  document.addEventListener(kind, () => { const start = performance.now();
    requestAnimationFrame(() => setTimeout(() => window.spent.push(performance.now() - start))); }, true); }"""
# Picture → what is at its top in a wide and in a narrow window, and its height in pixels.
PARTS = {
    "report": ("body", "body", 1500),
    "plane": ("#plane", "#plane", 700),
    "tokens": ("#tokens", "#token-problem-text", 960),
}


def main() -> None:
    """Makes, measures, prints."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--rollouts", type=int, default=16, help=f"of a step, a multiple of {PROBLEMS}")
    flags.add_argument("--screenshots", type=Path, metavar="DIR", help="write pictures instead of measuring")
    flags.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="whose report is pictured")
    given = flags.parse_args()
    if bool(given.screenshots) != bool(given.runs):
        flags.error("pictures are taken of real runs: expected both --screenshots=DIR and RUN, or neither")
    sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "browser")]
    from chromium import browser

    with tempfile.TemporaryDirectory() as folder:
        runs, page = given.runs or _runs(Path(folder), given.rollouts), Path(folder) / "report.html"
        start = time.perf_counter()
        command = [sys.executable, "-m", "dasd_jax.report", *map(str, runs), f"--output={page}"]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        with browser() as started:
            if given.screenshots:
                _screenshots(started, page, given.screenshots)
                return
            print(f"{platform.machine()}, {os.cpu_count()} cores, Chromium {started.version}")
            print(f"{len(runs)} runs × {STEPS} steps × {given.rollouts} rollouts × {TOKENS} tokens")
            print(f"made in {seconds:.1f} s, {used.ru_utime + used.ru_stime:.1f} s of processor time")
            print(f"{page.stat().st_size / 1e6:.1f} MB")
            for note in done.stdout.splitlines()[1:]:
                print(note)
            for name, found in _measured(started, page).items():
                print(f"{name}: {statistics.median(found):.0f} ms, at most {max(found):.0f}")


def _runs(folder: Path, rollouts: int) -> list[Path]:
    """Three made-up runs, two of which differ in their seed alone."""
    import fake_run

    runs = []
    for name, beta, seed in (("dasd-seed0", 0.1, 0), ("dasd-seed1", 0.1, 1), ("beta0", 0.0, 0)):
        run = fake_run.write(
            folder / name, steps=STEPS, problems=PROBLEMS, rollouts=rollouts // PROBLEMS, tokens=TOKENS, seed=seed
        )
        config = cli.load_config(str(ROOT / "configs" / "smollm2_math.py")).to_dict()
        config["objective"]["beta"] = beta
        config["run"] |= {"seed": seed, "steps": STEPS}
        (run / "config.json").write_text(json.dumps(config))
        runs.append(run)
    return runs


def _measured(started, page: Path) -> dict[str, list[float]]:
    """By what is measured, milliseconds."""
    from chromium import opened

    found = {"first paint": [], "a step is opened": [], "a token answers": [], "the curves answer": []}
    for _ in range(3):
        with opened(started, page) as shown:
            shown.page.wait_for_selector("#token-text .t")
            paints = shown.page.evaluate("performance.getEntriesByType('paint').map(each => each.startTime)")
            found["first paint"].append(max(paints))
    with opened(started, page) as shown:
        inside = shown.page
        inside.wait_for_selector("#token-text .t")
        for share in (0.2, 0.4, 0.6, 0.8, 1.0):
            found["a step is opened"].append(
                inside.evaluate(
                    "async share => { const start = performance.now();"
                    "await showRollout(Math.floor(share * (now.items.length - 1)));"
                    "return performance.now() - start }",
                    share,
                )
            )
        inside.locator("#token-text").scroll_into_view_if_needed()
        found["a token answers"] = _spent(inside, "pointerover", [f"#t{i}" for i in range(0, 60, 3)])
        inside.locator(".plot").first.scroll_into_view_if_needed()
        found["the curves answer"] = _spent(inside, "pointermove", [".plot >> nth=0", ".plot >> nth=1"] * 8)
    return found


def _spent(page, kind: str, places: list[str]) -> list[float]:
    page.evaluate(WATCH, kind)
    for i, place in enumerate(places):
        box = page.locator(place).bounding_box()
        page.mouse.move(box["x"] + box["width"] * (0.3 + 0.02 * i), box["y"] + box["height"] / 2)
        page.wait_for_timeout(60)
    return page.evaluate("window.spent")


def _screenshots(started, page: Path, folder: Path) -> None:
    """Pictures of the parts, two widths, light and dark."""
    from chromium import opened

    folder.mkdir(parents=True, exist_ok=True)
    for width in (1280, 390):
        for scheme in ("light", "dark"):
            with opened(started, page, width=width, height=900, dark=scheme == "dark") as shown:
                inside = shown.page
                inside.wait_for_selector("#token-text .t")
                inside.wait_for_function("document.getElementById('plane-words').textContent")
                inside.evaluate("showToken(+Object.keys(now.rollout.alternatives)[1])")
                for part, (wide, narrow, height) in PARTS.items():
                    path = folder / f"{part}_{width}_{scheme}.png"
                    inside.set_viewport_size({"width": width, "height": height})
                    inside.locator(wide if width > 600 else narrow).first.evaluate("each => each.scrollIntoView()")
                    inside.screenshot(path=path)
                    # A palette of 256 colours: a third of the bytes.
                    Image.open(path).convert("RGB").quantize(dither=Image.Dither.NONE).save(path, optimize=True)
                    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
