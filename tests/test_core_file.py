"""Core files of generated Verilog: FuseSoC runs every target."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from bench_matrix import TINY

from kvtq_hw import __version__
from kvtq_hw.commands.generate import generate
from kvtq_hw.host.toolchain import find_simulator
from rtl.core_file import core_file

#: Program that takes the place of `yosys`: pip's Yosys is a library and knows no Tcl, so Python's
#: interpreter of Tcl runs Edalize's script and gives the commands to the library.
YOSYS = """#!{python}
import sys, tkinter
from pyosys import libyosys

design, tcl = libyosys.Design(), tkinter.Tcl()

def command(*words):
    if words[0] != "yosys":  # `yosys -import`, which every Yosys has done here
        libyosys.run_pass(" ".join(words), design)

tcl.createcommand("unknown", command)
tcl.eval("source " + sys.argv[-1].removeprefix("tcl "))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is generated for the preset tiny, with a testbench."""
    folder = tmp_path_factory.mktemp("cores")
    generate(TINY, folder, testbench=1)
    return folder


def fusesoc(
    folder: Path, target: str, top: str, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a target of a core; settings and build stay in the folder."""
    command = [sys.executable, "-m", "fusesoc.main", "--cores-root", ".", "run"]
    homes = {f"XDG_{kind}_HOME": str(folder / kind) for kind in ("CONFIG", "DATA", "CACHE")}
    return subprocess.run(
        [*command, f"--target={target}", top],
        cwd=folder,
        env=environment | homes,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("simulator", ["verilator"], indirect=True)
def test_lint(folder: Path, simulator: str) -> None:
    environment = find_simulator(simulator).environment()
    for top in ("kvtq_tiny_accelerator", "kvtq_tiny_engine"):
        done = fusesoc(folder, "lint", top, environment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "%Warning" not in done.stdout + done.stderr
    file = folder / "kvtq_tiny_engine.v"
    text = file.read_text("utf-8")
    file.write_text(text.replace("endmodule", "  wire [3:0] n = 5'd9;\nendmodule", 1), "utf-8")
    done = fusesoc(folder, "lint", "kvtq_tiny_engine", environment)
    file.write_text(text, "utf-8")
    assert done.returncode != 0 and "%Warning-WIDTHTRUNC" in done.stdout + done.stderr


@pytest.mark.parametrize("simulator", ["icarus"], indirect=True)
def test_simulation_tells_a_fault(folder: Path, simulator: str) -> None:
    environment = find_simulator(simulator).environment()
    done = fusesoc(folder, "sim", "kvtq_tiny_accelerator", environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^PASS: 41 jobs", done.stdout, re.MULTILINE)
    file = folder / "kvtq_tiny_accelerator_vectors" / "output.hex"
    text = file.read_text("utf-8")
    file.write_text(text.replace(text[0], "1" if text[0] == "0" else "0", 1), "utf-8")
    done = fusesoc(folder, "sim", "kvtq_tiny_accelerator", environment)
    file.write_text(text, "utf-8")
    assert done.returncode != 0
    assert re.search(r"^FAIL: element 0 of attention 0", done.stdout, re.MULTILINE)


def test_synthesis(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tkinter")
    program = tmp_path / "yosys"
    program.write_text(YOSYS.format(python=sys.executable), "utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    done = fusesoc(folder, "synth", "kvtq_tiny_engine", dict(os.environ) | {"PATH": path})
    assert done.returncode == 0, done.stdout + done.stderr
    (netlist,) = (folder / "build").glob("*/synth/*.json")
    modules = json.loads(netlist.read_text("utf-8"))["modules"]
    cells = modules["kvtq_tiny_engine"]["cells"].values()
    assert {"LUT4", "TRELLIS_FF"} <= {cell["type"] for cell in cells}


def test_a_core_without_a_testbench_has_no_simulation() -> None:
    text = core_file("core_a_engine", TINY)
    assert text.startswith("CAPI=2:\n")
    assert f'name: "::core_a_engine:{__version__}"' in text
    assert re.findall(r"^  (\w+):$", text.partition("\ntargets:\n")[2], re.MULTILINE) == [
        "default",
        "lint",
        "synth",
    ]
    assert "testbench" not in text
