"""The pictures of a report that README and documentation show.

python -m tests.browser.screenshot artifacts/combined/report.html docs/report
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright import sync_api

HEIGHTS = {390: 1500, 820: 1300, 1400: 1300}
"""Of the pictures, by width, in pixels."""
SCHEMES = ("light", "dark")
_COLOURS = 96


def screenshots(page: Path, folder: Path) -> None:
    """Draw the top of a page at every width, light and dark, into a folder."""
    chromium = os.environ.get("POCKETNEST_CHROMIUM") or shutil.which("chromium")
    folder.mkdir(exist_ok=True)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width, height in HEIGHTS.items():
            for scheme in SCHEMES:
                size = {"width": width, "height": height}
                tab = browser.new_page(viewport=size, color_scheme=scheme)
                tab.goto(page.resolve().as_uri())
                tab.wait_for_load_state("networkidle")
                drawn = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
                small = drawn.quantize(_COLOURS, dither=Image.Dither.NONE)
                small.save(folder / f"{width}-{scheme}.png", optimize=True)
                tab.close()
        browser.close()


if __name__ == "__main__":
    screenshots(Path(sys.argv[1]), Path(sys.argv[2]))
