"""Open every page of the documentation site in headless Chromium, and fail unless all are right.

Usage: python scripts/check_site.py build/site

A right page logs no message on the console, loads all its files and nothing from elsewhere, and is
no wider than the window of a phone. Screenshots of the start page, start.png and start-phone.png,
are written into build/site-pictures beside the site. The script uses the system's Chromium: apt
install chromium.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, Request, sync_playwright

DESKTOP, PHONE = 1280, 390


def main(site: Path) -> int:
    """Check all pages and return the exit status."""
    browser_file = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser_file is None:
        print("chromium: not on PATH; get it with: sudo apt install chromium", file=sys.stderr)
        return 1
    # 404.html is for a server: its links begin at the server's root
    files = sorted(file for file in site.rglob("*.html") if file.name != "404.html")
    problems = [] if files else [f"{site}: no page"]
    pictures = site.with_name(f"{site.name}-pictures")
    pictures.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_file, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": PHONE, "height": 844})
        listen(page, problems)
        for file in files:
            page.goto(file.resolve().as_uri(), wait_until="networkidle")
            wide = page.evaluate("document.documentElement.scrollWidth")
            if wide > PHONE:
                problems.append(f"{file}: {wide} pixels wide in a window of {PHONE}")
        for width, name in ((DESKTOP, "start"), (PHONE, "start-phone")):
            page.set_viewport_size({"width": width, "height": 900})
            page.goto((site / "index.html").resolve().as_uri(), wait_until="load")
            page.screenshot(path=pictures / f"{name}.png")
        browser.close()
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{site}: {len(files)} pages, {len(problems)} problems")
    return int(bool(problems))


def listen(page: Page, problems: list[str]) -> None:
    """Record whatever a page complains about or asks the network for."""

    def complain(text: str) -> None:
        problems.append(f"{page.url}: {text}")

    def check(request: Request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            complain(f"asks for {request.url}")

    page.on("console", lambda message: complain(f"console: {message.text}"))
    page.on("pageerror", lambda error: complain(f"error: {error}"))
    page.on("requestfailed", lambda request: complain(f"lacks {request.url}"))
    page.on("request", check)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
