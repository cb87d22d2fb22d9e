"""The wheel: every file of the packages is in it, its metadata are valid, it works by itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata

from kvtq_hw import __version__

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("golden", "kvtq_hw", "rtl", "sim")
#: What `pip wheel` needs besides the packages.
OTHERS = ("pyproject.toml", "README.md", "LICENSE")
#: Most bytes of the wheel: it is downloaded by everybody.
MOST_BYTES = 1_500_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy, so that nothing is left in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in OTHERS:
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", "out", "."]
    subprocess.run(command, cwd=source, check=True)
    [built] = (source / "out").iterdir()
    return built


def test_every_file_of_the_packages_is_in_it(wheel):
    expected = {
        file.relative_to(ROOT).as_posix()
        for name in PACKAGES
        for file in (ROOT / name).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == expected
    assert wheel.stat().st_size < MOST_BYTES


def test_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Metadata.from_email(archive.read(name), validate=True)
    assert (metadata.name, str(metadata.version)) == ("kvtq-hw", __version__)
    assert metadata.license_expression == "Apache-2.0"
    assert metadata.description == (ROOT / "README.md").read_text("utf-8")
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"\n## [{__version__}] - " in changes


def test_it_generates_without_the_checkout(wheel, tmp_path):
    """Unpacked at another place, with the libraries of this environment."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    program = (
        "import sys, kvtq_hw; assert kvtq_hw.__file__.startswith(sys.argv[1]), kvtq_hw.__file__;"
        "from kvtq_hw.commands.frame.cli import cli; cli(sys.argv[2:])"
    )
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path / "site")}
    arguments = ["generate", "--preset", "tiny", "-o", "out"]
    command = [sys.executable, "-c", program, str(tmp_path), *arguments]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert {file.suffix for file in (tmp_path / "out").iterdir()} >= {".v", ".json", ".h", ".core"}
