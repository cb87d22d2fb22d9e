"""The check of the report's page in Chromium: a check that cannot fail is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest
from needs import missing
from report_inputs import INPUTS, PLOT, TINY
from test_scripts import script

from kvtq_hw.report import plots
from kvtq_hw.report.content import Section
from kvtq_hw.report.page import html
from kvtq_hw.report.sections import what_if

PANEL = what_if.build(INPUTS)
assert PANEL is not None


@pytest.fixture
def check(tmp_path, capsys) -> Callable[[dict], tuple[int, str]]:
    """Check the page of a report; return the exit status and the problems."""
    if shutil.which("chromium") is None:
        missing("chromium", "chromium is not on PATH; get it with: sudo apt install chromium")

    def check(report: dict) -> tuple[int, str]:
        (tmp_path / "report.json").write_text(json.dumps(report))
        (tmp_path / "report.html").write_text(html(report))
        status = script("check_report").main(tmp_path / "report.html", INPUTS.results)
        return status, capsys.readouterr().err

    return check


def report() -> dict:
    sections = [Section("P", "p", (), (PLOT,)).as_dict(), PANEL.as_dict()]
    fields = {"title": "T", "subject": "S", "version": "1", "config": TINY.model_dump()}
    return fields | {"sections": json.loads(json.dumps(sections))}


def points(report: dict) -> dict:
    """Points of the state that the check sets by the controls."""
    return report["sections"][1]["panel"]["grid"]["points"]["Llama-3-8B"]["32768"]


def test_a_right_page_passes_and_leaves_its_pictures(check, tmp_path):
    assert check(report()) == (0, "")
    files = ("report.png", "report-phone.png", "panel.png", "panel-phone.png", "report.pdf")
    for name in files:
        assert (tmp_path / name).stat().st_size > 1000


def test_a_number_that_is_not_the_functions_fails(check):
    wrong = report()
    points(wrong)["INT8"]["1/1"]["engine"] *= 1.01
    status, problems = check(wrong)
    assert status == 1
    assert "panel by its controls: ['engine, uJ', " in problems
    assert "at first" not in problems and "by its address" not in problems


def test_a_missing_key_fails(check):
    wrong = report()
    del points(wrong)["INT8"]["1/1"]["cycles"]["64"]["128"]
    status, problems = check(wrong)
    assert status == 1 and 'error: the grid has no "128"' in problems


def test_a_picture_with_something_cut_fails(check, monkeypatch):
    """A legend in more columns than there is room for; with as many as fit it is whole."""
    series = tuple(replace(PLOT.series[0], name=letter * 40) for letter in "abc")
    wide = report()
    drawn = asdict(replace(PLOT, series=series))
    wide["sections"][0]["plots"] = [json.loads(json.dumps(drawn))]
    assert check(wide) == (0, "")
    monkeypatch.setattr(plots, "_LEGEND", 1000)
    status, problems = check(wide)
    assert status == 1 and "picture 1 is cut at its edge" in problems


def test_a_wide_page_without_pictures_or_panel_fails(check):
    wrong = report()
    wrong["sections"] = [wrong["sections"][0] | {"plots": [], "lead": "\N{NO-BREAK SPACE}x" * 999}]
    wrong["title"] = "\N{NO-BREAK SPACE}".join(["title"] * 99)
    status, problems = check(wrong)
    assert status == 1
    assert "the page has no picture" in problems and "the page has no panel" in problems
