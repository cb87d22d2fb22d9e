"""Open a report in headless Chromium, use its panel, and fail unless page and panel are right.

Usage: python scripts/check_report.py build/report/report.html [docs/results]

A right page logs no message on the console, loads all its files, draws every picture whole and is
no wider than the window, on a desktop, on a phone and on paper. A right panel shows, in several
states, what the functions of `kvtq_hw` give for the same choice from the recorded files in the
second argument; report.json lies beside the page. Written beside the page: screenshots of desktop
(report.png), phone (report-phone.png) and panel (panel.png, panel-phone.png), and the page as
printed with a chosen state (report.pdf). The script uses the system's Chromium: apt install
chromium.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import Browser, Page, sync_playwright

from kvtq_hw.contract.config import config_from_fields
from kvtq_hw.report.content import Inputs
from kvtq_hw.report.sections.what_if import Choice, Formats, formats_of, said, table_rows

#: Widths of windows in pixels; the last is A4 with the margins that browsers print with.
DESKTOP, PHONE, PAPER = 1200, 390, 718

#: Numbers of the pictures whose content is larger than they are.
_CUT = """pictures => pictures.flatMap((picture, index) => {
    const content = picture.getBBox(), frame = picture.viewBox.baseVal;
    const left = content.x < frame.x - 0.5 || content.y < frame.y - 0.5;
    const right = content.x + content.width > frame.x + frame.width + 0.5;
    const below = content.y + content.height > frame.y + frame.height + 0.5;
    return left || right || below ? [index + 1] : [];
})"""


def main(page_file: Path, results: Path) -> int:
    """Check one page and return the exit status."""
    browser_file = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser_file is None:
        print("chromium: not on PATH; get it with: sudo apt install chromium", file=sys.stderr)
        return 1
    report = json.loads(page_file.with_name("report.json").read_text("utf-8"))
    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_file, args=["--no-sandbox"])
        for width, name in ((DESKTOP, "report"), (PHONE, "report-phone")):
            with opened(browser, page_file, width, problems) as page:
                problems += check_layout(page, width)
                page.screenshot(path=page_file.with_name(f"{name}.png"), full_page=True)
        states = check_panel(browser, page_file, report, results, problems)
        browser.close()
    for problem in problems:
        print(f"{page_file}: {problem}", file=sys.stderr)
    print(f"{page_file}: {states} states of the panel, {len(problems)} problems")
    return int(bool(problems))


@contextmanager
def opened(
    browser: Browser,
    page_file: Path,
    width: int,
    problems: list[str],
    state: str = "",
    **options: bool,
) -> Iterator[Page]:
    """Open the page in a window of its own; whatever it complains about is a problem."""
    page = browser.new_page(viewport={"width": width, "height": 900}, **options)  # type: ignore[arg-type]
    page.on("console", lambda message: problems.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on("requestfailed", lambda request: problems.append(f"not loaded: {request.url}"))
    page.goto(page_file.resolve().as_uri() + state, wait_until="load")
    yield page
    page.close()


def check_layout(page: Page, width: int) -> Iterator[str]:
    """Yield what is wrong with the pictures and the width of an open page."""
    figures = page.locator("figure.plot").count()
    boxes = [picture.bounding_box() for picture in page.locator("figure.plot svg").all()]
    if not figures:
        yield "the page has no picture"
    if len(boxes) != figures:
        yield f"{figures} places for pictures, {len(boxes)} pictures"
    for number, box in enumerate(boxes, 1):
        if box is None or box["width"] < 100 or box["height"] < 100:
            yield f"picture {number} is not drawn: {box}"
    for number in page.locator("figure.plot svg").evaluate_all(_CUT):
        yield f"picture {number} is cut at its edge"
    wide = page.evaluate("document.documentElement.scrollWidth")
    if wide > width:
        yield f"the page is {wide} pixels wide in a window of {width}"


# --- the panel ------------------------------------------------------------------------------------


def check_panel(
    browser: Browser, page_file: Path, report: dict, results: Path, problems: list[str]
) -> int:
    """Compare the panel with the functions in several states, and return how many."""
    panel = next((s["panel"] for s in report["sections"] if s["panel"]), None)
    if panel is None:
        problems.append("the page has no panel")
        return 0
    first = first_choice(panel)
    inputs = Inputs(config_from_fields(report["config"]), (), "", results, first.pj)
    formats = formats_of(inputs)
    if formats is None:
        problems.append(f"{str(results)!r} has no files for the panel")
        return 0
    codes = formats.names
    chosen = Choice("Llama-3-8B", 32768, 128, 3.92, 64, "1/1", 250.5, codes[2])
    linked = Choice("SmolLM2-135M", 1024, 32, 20.3, 8, "3/2", 1000.0, codes[-1])
    moved = replace(linked, tokens=4096, lanes=16)

    with opened(browser, page_file, DESKTOP, problems, java_script_enabled=False) as page:
        problems += compare(page, formats, first, "without JavaScript")
        if page.locator(".panel form").is_visible():
            problems.append("without JavaScript: the panel has controls that do nothing")
    with opened(browser, page_file, DESKTOP, problems) as page:
        page.locator(".panel input").first.dispatch_event("input")
        problems += compare(page, formats, first, "at first")
        choose(page, chosen)
        problems += compare(page, formats, chosen, "by its controls")
        page.locator(".panel").screenshot(path=page_file.with_name("panel.png"))
        problems += check_refusal(page, formats, chosen)
        page.reload()
        problems += compare(page, formats, chosen, "after a reload")
        page.emulate_media(media="print")
        if page.locator(".panel form").is_visible():
            problems.append("print: the controls are printed")
        problems += compare(page, formats, chosen, "printed")
        page.set_viewport_size({"width": PAPER, "height": 1000})
        problems += check_layout(page, PAPER)
        page.pdf(path=page_file.with_suffix(".pdf"), format="A4", print_background=True)
    state = "#what-if?" + urlencode(asdict(linked))
    with opened(browser, page_file, PHONE, problems, state) as page:
        problems += compare(page, formats, linked, "by its address")
        press(page, moved)
        problems += compare(page, formats, moved, "by the keyboard")
        problems += check_layout(page, PHONE)
        page.locator(".panel").screenshot(path=page_file.with_name("panel-phone.png"))
    return 6


def first_choice(panel: dict) -> Choice:
    """Return the state that the controls of report.json have at first."""
    values = {control["name"]: control["value"] for control in panel["controls"]}
    numbers = {"tokens": int, "bits": int, "lanes": int, "pj": float, "clock": float}
    return Choice(**{name: numbers.get(name, str)(value) for name, value in values.items()})


def choose(page: Page, choice: Choice) -> None:
    """Set every control to a state."""
    for name, value in asdict(choice).items():
        control = page.locator(f".panel [name={name}]")
        if control.evaluate("control => control.tagName") == "SELECT":
            control.select_option(str(value))
        else:
            control.fill(f"{value:g}")


def press(page: Page, choice: Choice) -> None:
    """Set context and lanes to a state by the keyboard alone, from the control before them."""
    for before, name, value in (("model", "tokens", choice.tokens), ("pj", "lanes", choice.lanes)):
        page.locator(f".panel [name={before}]").focus()
        page.keyboard.press("Tab")
        control = page.locator(f".panel [name={name}]")
        for _ in range(control.locator("option").count()):
            if control.input_value() == str(value):
                break
            page.keyboard.press("ArrowDown")


def compare(page: Page, formats: Formats, choice: Choice, how: str) -> Iterator[str]:
    """Yield where the panel differs from what the functions give for a state."""
    columns, rows = table_rows(formats, choice)
    wanted = [list(columns), *map(list, rows)]
    shown = page.locator(".panel tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )
    for row, other in zip(wanted, shown, strict=False):
        if row != other:
            yield f"panel {how}: {other} instead of {row}"
    if len(shown) != len(wanted):
        yield f"panel {how}: {len(shown)} rows instead of {len(wanted)}"
    sentence = page.locator(".panel output").inner_text()
    if sentence != said(choice):
        yield f"panel {how}: says {sentence!r} instead of {said(choice)!r}"


def check_refusal(page: Page, formats: Formats, choice: Choice) -> Iterator[str]:
    """Yield where a clock of zero is not refused, or the state does not come back after it."""
    clock = page.locator(".panel [name=clock]")
    clock.fill("0")
    sentence = page.locator(".panel output").inner_text()
    if not sentence.startswith("Clock, MHz: "):
        yield f"panel with a clock of 0: says {sentence!r}"
    if any(text != "\N{EN DASH}" for text in page.locator(".panel td").all_inner_texts()):
        yield "panel with a clock of 0: still has numbers"
    clock.fill(f"{choice.clock:g}")
    yield from compare(page, formats, choice, "after a refusal")


if __name__ == "__main__":
    files = [Path(argument) for argument in sys.argv[1:]]
    sys.exit(main(files[0], files[1] if len(files) > 1 else Path("docs/results")))
