"""Pictures of a trait's page for the documents: `python tools/screens.py FOLDER`.

Writes docs/report.png (1200 pixels wide) and docs/report-400.png, both light, of the folder's
report.html. Needs chromium, as the tests of pages do.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
SHOTS = {"report.png": (1200, 1700), "report-400.png": (400, 1700)}


def main(folder: Path) -> None:
    """Shoot the top of the page in each width."""
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        for name, (width, height) in SHOTS.items():
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto((folder / "report.html").resolve().as_uri())
            page.screenshot(path=DOCS / name)
            page.close()
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
