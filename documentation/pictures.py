"""Takes the pictures of the dashboard: ``python -m documentation.pictures docs/pictures``.

They are of a real run: the demo tells its story, and headless Chromium takes the monitor's page while the fad's alert fires,
light and dark. PNGs of few colours, as the page has few.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from PIL import Image
from playwright.sync_api import Error, sync_playwright

from documentation.browser import chromium, sandbox

ROOT: Final = Path(__file__).resolve().parent.parent
WIDTH: Final = 1240
HEIGHT: Final = 930  # of the window; the picture has the whole page
SCALE: Final = 1.5
PORT: Final = 8177
COLOURS: Final = 128
# The page draws each second; the alert that fires first is the picture's, and what follows it joins.
_SETTLED_SECONDS: Final = 5.0
_PATIENCE_SECONDS: Final = 480.0


def save(picture: bytes, path: Path) -> None:
    """A screenshot with as few colours as it needs."""
    image = Image.open(BytesIO(picture)).convert("RGB")
    image.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {image.width} × {image.height}, {path.stat().st_size / 1000:.0f} kB")


def wait_for_alert(page: Any, demo: subprocess.Popen[bytes]) -> None:
    """Opens the dashboard as soon as the demo's monitor serves it, and waits until an alert fires."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline and demo.poll() is None:
        try:
            page.goto(f"http://127.0.0.1:{PORT}/", timeout=5_000)
            page.wait_for_function(
                "document.getElementById('severities').innerText.includes('critical')", timeout=10_000
            )
        except Error:  # not there yet, or nothing has happened yet
            time.sleep(0.5)
        else:
            return
    sys.exit("the demo ended, or nothing fired in eight minutes: there is nothing to take a picture of")


def main() -> None:
    parser = argparse.ArgumentParser(description="Take pictures of the dashboard during a demo.")
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args().directory
    program = chromium()
    if program is None:
        sys.exit("no Chromium on this machine: install chromium to take pictures")
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as ground, sync_playwright() as playwright:
        demo = subprocess.Popen(
            [sys.executable, "-m", "sidstream", "demo"],
            env={**os.environ, "SIDSTREAM_MONITOR__WEB_PORT": str(PORT), "PYTHONPATH": str(ROOT)},
            cwd=ground,  # a place that the page names is then that of any demo
        )
        try:
            browser = playwright.chromium.launch(executable_path=program, args=sandbox())
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=SCALE)
            wait_for_alert(page, demo)
            time.sleep(_SETTLED_SECONDS)
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                save(page.screenshot(full_page=True), directory / f"dashboard-{scheme}.png")
            browser.close()
        finally:
            demo.send_signal(signal.SIGINT)
            demo.wait(60)


if __name__ == "__main__":
    main()
