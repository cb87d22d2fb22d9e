"""The pages in docs: files that they name exist, and the rooms are those that lint checks."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from kvtq_hw import __version__

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]


def paths(text: str) -> list[str]:
    """Files and folders in backticks; not patterns such as `tests/test_BLOCK.py`."""
    found = re.findall(r"`((?:\.\w+|\w+)/[\w./-]+)`", text)
    top = {entry.name for entry in ROOT.iterdir()} - {"build"}
    return [p for p in found if p.split("/")[0] in top and not re.search(r"BLOCK", p)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_paths_and_links_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    assert [path for path in paths(text) if not (ROOT / path).exists()] == []
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [path for path in linked if not (page.parent / path).exists()] == []


def test_paths_are_found() -> None:
    assert paths("`rtl/engine.py` `rtl/BLOCK.py` `true/false` `docs/` `golden/study`") == [
        "rtl/engine.py",
        "golden/study",
    ]


def test_architecture_draws_the_rooms_that_lint_checks() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    drawing = page.split("```")[1]
    drawn = re.findall(r"^ +((?:kvtq_hw\.)?\w+(?: \| [\w.]+)*) ", drawing, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    [rooms] = [c for c in project["tool"]["importlinter"]["contracts"] if c["id"] == "rooms"]
    assert drawn == rooms["layers"]


def test_citation_is_of_this_version() -> None:
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")


def test_glossary_says_each_word_once() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    words = [row.split("|")[1].strip() for row in text.splitlines() if row.startswith("| ")]
    words = [word for word in words if word != "word"]
    assert len(words) > 40
    assert sorted(set(words)) == sorted(words)
