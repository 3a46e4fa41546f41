"""The picture of a report that README and documentation show.

python -m tests.browser.screenshot artifacts/combined/report.html docs/report.png
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from playwright import sync_api

WIDTH, HEIGHT = 1200, 1500


def screenshot(page: Path, picture: Path) -> None:
    """Draw the top of a page as a desk shows it."""
    chromium = os.environ.get("POCKETNEST_CHROMIUM") or shutil.which("chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        tab.goto(page.resolve().as_uri())
        tab.wait_for_load_state("networkidle")
        tab.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    screenshot(Path(sys.argv[1]), Path(sys.argv[2]))
