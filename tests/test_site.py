"""The documentation site: every block and every command is on its pages."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import click
import griffe

from kvtq_hw.commands.frame.cli import cli
from rtl.blocks import BLOCKS

ROOT = Path(__file__).resolve().parent.parent


def script(name: str) -> ModuleType:
    """A module of scripts/site."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / "site" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_block_has_its_docstring_on_the_page() -> None:
    page = (ROOT / "docs" / "reference" / "blocks.md").read_text("utf-8")
    shown = re.findall(r"^::: rtl\.(\w+)\.(\w+)$", page, re.MULTILINE)
    assert shown == [(name, name.title().replace("_", "")) for name in BLOCKS]


def test_help_of_every_command_is_on_the_page() -> None:
    page = (ROOT / "docs" / "reference" / "options.md").read_text("utf-8")
    text = script("help_pages").on_page_markdown(page)
    names = cli.list_commands(click.Context(cli))
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == names
    assert text.count("Usage: kvtq-hw ") == len(names) + 1
    assert script("help_pages").on_page_markdown("# Another page") == "# Another page"


def test_descriptions_are_no_types() -> None:
    module = griffe.visit(
        "m",
        filepath=Path("m.py"),
        code='''
def f(x: int) -> int:
    """Double.

    Parameters
    ----------
    x : number that
        is doubled

    Returns
    -------
    the number, which
    is even
    """
''',
    )
    function = module["f"]
    script("descriptions").Descriptions().on_object(obj=function)
    _, parameters, returns = function.docstring.parsed
    assert parameters.value[0].description == "number that\nis doubled"
    assert [entry.description for entry in returns.value] == ["the number, which is even"]
    assert parameters.value[0].annotation is None


def test_the_navigation_has_every_page() -> None:
    named = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.M))
    docs = ROOT / "docs"
    assert named == {str(page.relative_to(docs)) for page in docs.rglob("*.md")}
