"""`kvtq-hw decode` of a tiny model, as several test files call it."""

from __future__ import annotations

import json
from pathlib import Path

from tiny_model import prompt

from kvtq_hw.commands.frame.cli import run

PROMPT = prompt(9, seed=2)


def arguments(folder: Path, *more: str) -> list[str]:
    """Words of a command line: the model of a folder, the `tiny` preset and a balanced code."""
    words = ["--preset", "tiny", "--model", str(folder), "--prompt", PROMPT]
    return ["decode", *words, "--code", "balanced:3/2", *more]


def report_of(*words: str, backend: str = "engine") -> dict[str, object]:
    """Run a command that writes report.json; what it wrote."""
    assert run([*words, "--backend", backend, "--json", "report.json"]) == 0
    return json.loads(Path("report.json").read_text())
