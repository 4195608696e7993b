"""The README's picture of a report, from the committed runs on CIFAR-10: python docs/img/report.py.

Needs the extra dev (playwright) and a chromium on the path.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from demilune.report import build

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent / "results" / "cifar10-w8" / "runs"
WIDTH, MOST = 1200, 300_000  # pixels; bytes


def picture(index: Path) -> bytes:
    """Return the page from its head to the end of the accuracies, with the values of one point shown."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("no chromium on the path: install one")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = launched.new_page(viewport={"width": WIDTH, "height": 2000}, color_scheme="light")
        page.goto(index.as_uri())
        plot, cell = page.locator("#figure-tradeoff .plot"), page.locator("#figure-tradeoff td[data-at]").last
        left, top = (float(share) / 100 for share in (cell.get_attribute("data-at") or "").split())
        box = plot.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + left * box["width"], box["y"] + top * box["height"])
        end = page.locator("#table-1").bounding_box()
        assert end is not None
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": end["y"] + end["height"] + 6}
        taken = page.screenshot(clip=clip)
        launched.close()
    with Image.open(io.BytesIO(taken)) as image:
        out = io.BytesIO()
        image.convert("RGB").save(out, "PNG", optimize=True)
    return out.getvalue()


def main() -> None:
    """Write report.png beside this file."""
    with tempfile.TemporaryDirectory() as folder:
        content = picture(build([RUNS / name for name in ("sat", "rat", "trades", "avm")], Path(folder) / "report"))
    if len(content) > MOST:
        sys.exit(f"the picture has {len(content):,} bytes, more than {MOST:,}: take less of the page")
    (HERE / "report.png").write_bytes(content)


if __name__ == "__main__":
    main()
