"""Scrolling in the viewer: `slicemill view` in a process, its page in Chromium without a window.

Each round scrolls through every axial slice of a scan with its mask outlined, three planes on screen, one slice a frame
as soon as the slice before it was drawn. Slices come from the server: the page keeps fewer than the scan has. Then the
3-D picture is turned by 15 degrees a frame. Command: `slicemill bench viewer`.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from slicemill.bench.harness.headline import Record
from slicemill.bench.harness.subject import phantom_subject
from slicemill.bench.schema.base import origin
from slicemill.bench.schema.data import ViewerRecord
from slicemill.common.errors import ConfigError
from slicemill.common.progress import progress

VIEWPORT = (1280, 800)
WAIT_MS = 120_000
TURNS = 24
"""Frames of the 3-D picture in each round: all around."""
READY = """() => {
  const reading = document.querySelector("#reading");
  const surface = document.querySelector(".surface .waiting");
  return !document.querySelector("#main").hidden && reading.hidden && surface.textContent === ""
    && !document.querySelector(".pane.is-waiting") && document.querySelector("#parts-text").textContent !== "";
}"""
MEASURE = """async ({ key, focus, steps, start }) => {
  const pane = document.querySelector("[data-plane=axial]");
  const target = document.querySelector(focus);
  const frame = () => new Promise(requestAnimationFrame);
  const press = (name) => target.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
  if (start) press(start);
  do await frame(); while (pane.classList.contains("is-waiting"));
  await frame();
  const frames = [];
  const begun = performance.now();
  let last = begun;
  for (let step = 0; step < steps; step++) {
    press(key);
    do {
      await frame();
      await new Promise((done) => setTimeout(done)); // after what this frame painted
      const now = performance.now();
      frames.push(now - last);
      last = now;
    } while (pane.classList.contains("is-waiting"));
  }
  return { frames, seconds: (last - begun) / 1000 };
}"""


def run(folder: Path, *, slices: int, side: int, rounds: int, browser: Path) -> Record:
    """Measure, and return the record.

    Raises
    ------
    ConfigError
        Playwright or the browser is not installed.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise ConfigError("bench viewer needs playwright: pip install playwright.") from error
    if not browser.exists():
        raise ConfigError(f"--browser {browser}: there is no such program; install Chromium, or name it.")
    load = os.getloadavg()[0]
    files = phantom_subject(slices, size=side).write(folder, ".nii.gz")
    scrolls, turns = [], []
    with _serve([files.image, files.mask]) as url, sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = launched.new_page(viewport={"width": VIEWPORT[0], "height": VIEWPORT[1]})
        page.goto(url)
        _wait(page)
        with progress("viewer", rounds, "rounds") as advance:
            for _ in range(rounds):
                scrolls.append(_measure(page, "ArrowUp", "[data-plane=axial]", slices - 1, "Home"))
                page.keyboard.press("r")
                turns.append(_measure(page, "ArrowRight", ".surface", TURNS, ""))
                page.keyboard.press("a")
                advance(1, "")
        version = launched.version
        launched.close()
    frames = [frame for one in scrolls for frame in one["frames"]]
    return ViewerRecord(
        **origin(),
        slices=slices,
        side=side,
        rounds=rounds,
        browser=version,
        load=(round(load, 2), round(os.getloadavg()[0], 2)),
        slices_per_second=round(median((slices - 1) / one["seconds"] for one in scrolls), 1),
        frame_ms=round(median(frames), 1),
        slow_frame_ms=round(sorted(frames)[int(0.95 * len(frames))], 1),
        turn_ms=round(median(frame for one in turns for frame in one["frames"]), 1),
    ).as_json()


def _measure(page: Any, key: str, focus: str, steps: int, start: str) -> dict[str, Any]:
    result: dict[str, Any] = page.evaluate(MEASURE, {"key": key, "focus": focus, "steps": steps, "start": start})
    return result


def _wait(page: Any) -> None:
    """Wait until all was read. The page's policy forbids conditions as strings, which Playwright would evaluate."""
    for _ in range(WAIT_MS // 100):
        if page.evaluate(READY):
            return
        page.wait_for_timeout(100)
    raise ConfigError(f"the viewer did not read the scan within {WAIT_MS // 1000} s.")


@contextmanager
def _serve(paths: list[Path]) -> Iterator[str]:
    """Run `slicemill view` in a process of its own, and yield the address that it prints."""
    command = [
        sys.executable,
        "-m",
        "slicemill",
        "view",
        *map(str, paths),
        "--labels",
        "liver=1,tumor=2",
        "--no-browser",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603 (code of this package)
        try:
            assert server.stdout is not None  # noqa: S101 (a pipe was asked for)
            url = next((line.strip() for line in server.stdout if line.startswith("http")), None)
            if url is None:
                raise ConfigError("`slicemill view` ended; its message is above.")
            yield url
        finally:
            server.send_signal(signal.SIGINT)  # as Ctrl-C, which ends it without a complaint
