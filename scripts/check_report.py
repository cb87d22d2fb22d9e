"""Open a report in headless Chromium and fail unless it is complete.

Usage: python scripts/check_report.py build/report/report.html

A complete report logs no message on the console, loads all its files, draws every picture and is no
wider than the window. A screenshot is written beside the page. The script uses the system's
Chromium: apt install chromium.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTH = 1200


def main(page_file: Path) -> int:
    """Check one page and return the exit status."""
    browser_file = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser_file is None:
        print("chromium: not on PATH; get it with: sudo apt install chromium", file=sys.stderr)
        return 1
    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_file, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        page.on("console", lambda message: problems.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("requestfailed", lambda request: problems.append(f"not loaded: {request.url}"))
        page.goto(page_file.resolve().as_uri(), wait_until="load")
        figures = page.locator("figure.plot").count()
        boxes = [picture.bounding_box() for picture in page.locator("figure.plot svg").all()]
        if not figures:
            problems.append("the page has no picture")
        if len(boxes) != figures:
            problems.append(f"{figures} places for pictures, {len(boxes)} pictures")
        for number, box in enumerate(boxes, 1):
            if box is None or box["width"] < 100 or box["height"] < 100:
                problems.append(f"picture {number} is not drawn: {box}")
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > WIDTH:
            problems.append(f"the page is {width} pixels wide in a window of {WIDTH}")
        page.screenshot(path=page_file.with_suffix(".png"), full_page=True)
        browser.close()
    for problem in problems:
        print(f"{page_file}: {problem}", file=sys.stderr)
    print(f"{page_file}: {len(boxes)} pictures, {len(problems)} problems")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
