"""The examples at the head of the main modules do what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

#: Modules that a newcomer opens first.
MAIN = {
    "golden.cache.ternary_cache",
    "golden.quantizer",
    "kvtq_hw.contract.codes",
    "kvtq_hw.contract.config",
    "rtl.engine",
    "sim.bench.runner",
}


def modules_with_examples() -> list[str]:
    files = [
        f for package in ("golden", "kvtq_hw", "rtl", "sim") for f in (ROOT / package).rglob("*.py")
    ]
    return sorted(
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in files
        if ">>> " in file.read_text("utf-8")
    )


def test_main_modules_have_an_example() -> None:
    assert set(modules_with_examples()) >= MAIN


@pytest.mark.parametrize("name", modules_with_examples())
def test_example(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testmod(importlib.import_module(name), report=True)
    assert tried > 0
    assert failed == 0
