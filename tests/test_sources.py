"""Digests of sources: they follow imports, see what files do, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvtq_hw.host import sources
from kvtq_hw.host.sources import dependencies, source_digest

FILES = {
    "golden/__init__.py": "",
    "golden/a.py": '"""Text."""\nfrom golden.b import f\ndef g():\n  import rtl.c\n  return f(1)\n',
    "golden/b.py": "import math\n\ndef f(x):\n    return x + 1\n",
    "golden/lonely.py": "x = 1\n",
    "golden/typed.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import rtl.c\n",
    "rtl/__init__.py": "",
    "rtl/c.py": 'from . import d\nMAP = "map.rdl"\n',
    "rtl/d.py": "y = 2\n",
    "rtl/map.rdl": "register\n",
    "sim/__init__.py": "",
    "sim/all.py": 'import importlib\n\ndef f(n):\n    return importlib.import_module(f"rtl.{n}")\n',
}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of a few modules; digests are computed afresh each time."""
    monkeypatch.setattr(sources, "_ROOT", tmp_path)
    for cached in (source_digest, sources._imported, sources._content):
        monkeypatch.setattr(sources, cached.__name__, cached.__wrapped__)
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return tmp_path


def test_imports_are_followed_through_functions_packages_and_names(tree: Path) -> None:
    assert dependencies("golden.a") == {"golden.a", "golden.b", "rtl.c", "rtl", "rtl.d"}
    assert dependencies("golden.typed") == {"golden.typed"}
    assert dependencies("sim.all") == {"sim.all", "rtl.c", "rtl", "rtl.d"}
    assert dependencies("golden.lonely", "golden.b") == {"golden.lonely", "golden.b"}


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        ("golden/a.py", "Text.", "Other text.", False),
        ("golden/a.py", "return f(1)", "return f(1)  # why", False),
        ("golden/a.py", "f(1)", "f(2)", True),
        ("golden/b.py", "x + 1", "x + 2", True),  # imported
        ("rtl/d.py", "2", "3", True),  # imported by what is imported
        ("rtl/map.rdl", "register", "field", True),  # read by a module
        ("golden/lonely.py", "1", "2", False),
    ],
)
def test_a_digest_changes_with_what_sources_do(
    tree: Path, file: str, old: str, new: str, changed: bool
) -> None:
    before = sources.source_digest("golden.a")
    path = tree / file
    path.write_text(path.read_text().replace(old, new))
    assert (sources.source_digest("golden.a") != before) is changed


@pytest.mark.parametrize("name", ["golden.nothing", "torch", "golden.b.f", ""])
def test_a_name_that_is_no_module_is_an_error(tree: Path, name: str) -> None:
    message = f"{name!r} is no module of golden, kvtq_hw, rtl, sim"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        sources.source_digest(name)


def test_a_digest_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^source_digest needs at least one module$"):
        source_digest()


def test_results_depend_on_what_computes_them_and_on_no_command() -> None:
    """Two lists kept by hand were wrong: one lacked a file, one had the command line's."""
    integers = dependencies("golden.study.baselines.integers", "golden.study.quality")
    assert {
        "golden.cache.layer",
        "golden.attend.single_precision",
        "golden.study.baselines.layer",
    } <= integers
    measured = dependencies(
        "golden.attend.attention", "golden.cache.ternary_cache", "golden.study.quality"
    )
    assert {
        "golden.cache.ternary_cache",
        "golden.engine",
        "kvtq_hw.contract.codes",
        "kvtq_hw.contract.packing",
    } <= measured
    for names in (integers, measured, dependencies("rtl.engine")):
        assert not {name for name in names if re.match(r"kvtq_hw\.commands", name)}
    assert {"rtl.key_lanes", "rtl.elements", "rtl.layouts"} <= dependencies("rtl.engine")


def test_how_files_are_read_decides_no_result() -> None:
    """An edit of the reader of files once made every measured result stale."""
    for names in (
        dependencies("rtl.engine"),
        dependencies("golden.cache.ternary_cache", "golden.study.quality"),
    ):
        assert "kvtq_hw.contract.config" in names
        assert not names & {
            "kvtq_hw.contract.files",
            "kvtq_hw.contract.errors",
            "kvtq_hw.host.sources",
        }


def test_names_of_the_python_api_and_the_version_decide_no_hardware() -> None:
    """Else each of them would make every recorded result one of earlier sources."""
    assert "kvtq_hw" not in dependencies("rtl.verilog", "rtl.accelerator")
