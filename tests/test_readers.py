"""Other readers of the emitted Verilog: slang, Verible, Icarus and Yosys, for every preset.

Verilator's lint is in `test_verilog`. What a reader complains of without a reason here is an error.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from bench_matrix import FOLDER
from pyslang.driver import Driver

from kvtq_hw.contract.config import load_config, preset_names
from kvtq_hw.host.toolchain import find_simulator
from rtl.yosys import run_yosys
from sim.verilated.verilog_cache import cached_verilog

#: Operands of arithmetic are extended by Verilog's own rules, and results lose bits or the sign
#: that the configuration proves to be copies: Verilator's waivers say the same. A signed number is
#: compared with the pattern of its bits.
SLANG = {"SignConversion", "ArithOpMismatch", "BitwiseOpMismatch", "SignCompare"}

#: Rules of style that a generated text does not follow: lines are as long as names make them, and
#: memories count their words as Yosys writes them, in either direction.
VERIBLE = {"line-length", "unpacked-dimensions-range-ordering"}


@pytest.fixture(
    scope="module",
    params=[(block, preset) for preset in preset_names() for block in ("engine", "accelerator")],
    ids="-".join,
)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the Verilog of a preset's engine or accelerator."""
    block, preset = request.param
    path = tmp_path_factory.mktemp(preset) / f"kvtq_{block}.v"
    path.write_text(cached_verilog(block, load_config(preset), FOLDER / "verilog"), "utf-8")
    return path


def slang(path: Path) -> set[str]:
    """Return the kinds of warnings and errors that slang has of a file, with all warnings on."""
    driver = Driver()
    driver.addStandardArgs()
    assert driver.parseCommandLine(f"slang -Weverything --top {path.stem} {path}")
    assert driver.processOptions()
    assert driver.parseAllSources()
    found = driver.createCompilation().getAllDiagnostics()
    return {re.sub(r"DiagCode\((\w+)\)", r"\1", str(diagnostic.code)) for diagnostic in found}


def verible(path: Path) -> str:
    """Return what Verible's parser and linter say about a file."""
    rules = "--rules=" + ",".join(f"-{rule}" for rule in sorted(VERIBLE))
    said = ""
    for command in (["verible-verilog-syntax"], ["verible-verilog-lint", rules]):
        tool = Path(sys.executable).with_name(command[0])
        done = subprocess.run(
            [tool, *command[1:], path], capture_output=True, text=True, check=False
        )
        said += done.stdout + done.stderr
    return said


def test_slang(source: Path) -> None:
    assert slang(source) <= SLANG


def test_verible(source: Path) -> None:
    assert verible(source) == ""


@pytest.mark.parametrize("simulator", ["icarus"], indirect=True)
@pytest.mark.parametrize("language", ["2001", "2005", "2005-sv", "2009", "2012"])
def test_icarus(source: Path, language: str, simulator: str) -> None:
    done = subprocess.run(
        ["iverilog", "-Wall", f"-g{language}", "-t", "null", source],
        env=find_simulator(simulator).environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_yosys(source: Path) -> None:
    reading = f"read_verilog {source.name}"
    log = run_yosys(
        [reading, f"hierarchy -check -top {source.stem}", "proc", "check"], source.parent
    )
    # a queue of one place has a memory of one word
    said = [line for line in log.splitlines() if line.startswith("Warning")]
    assert all("Replacing memory \\storage with list of registers" in line for line in said)
    assert "Found and reported 0 problems." in log


def test_complaints_are_found(tmp_path: Path) -> None:
    """Each reader complains of a text with a fault of its kind."""
    path = tmp_path / "kvtq_engine.v"
    path.write_text("module kvtq_engine(input a, output [1:0] b);\n  assign b = c;\nendmodule\n")
    assert slang(path) - SLANG
    path.write_text("module other;\nendmodule\n")
    assert "module-filename" in verible(path)
    path.write_text("module kvtq_engine(input a, output b);\n  assign b = ;\nendmodule\n")
    assert "syntax error" in verible(path)
