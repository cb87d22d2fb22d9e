"""Generates the system around an accelerator, in a process of its own.

LiteX configures logging and the terminal of the process that imports it, and the order of its
Verilog depends on what the process made before.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.files import scratch_folder

__all__ = ["MEMORY_FILE", "TOP", "System", "make_system"]

TOP = "kvtq_soc"
#: What the memory's words are read from when a simulation starts.
MEMORY_FILE = f"{TOP}_main_ram.init"


@dataclass(frozen=True)
class System:
    """Generated sources of a system.

    verilog : the hardware but for the accelerator and the processor
    processor : path of the processor's Verilog
    headers : addresses for C, and the linker's map of the memory, by name
    """

    verilog: str
    processor: Path
    headers: dict[str, str]


def make_system(config: EngineConfig, accelerator: str, memory_bytes: int) -> System:
    """Generate a system.

    Parameters
    ----------
    config : the accelerator's configuration
    accelerator : name of the accelerator's Verilog module
    memory_bytes : size of the main memory, which begins at address 0

    Raises
    ------
    UserError
        When LiteX or the processor is not installed, or LiteX fails.
    """
    for package in ("litex", "pythondata_cpu_vexriscv"):
        if find_spec(package) is None:
            raise UserError(f"{package}: not installed; get it with: pip install 'kvtq-hw[soc]'")
    with scratch_folder() as folder:
        command = [sys.executable, "-m", "sim.soc.litex_system", TOP, accelerator]
        done = subprocess.run(
            [*command, str(memory_bytes), str(folder)],
            input=config.model_dump_json(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise UserError(f"litex: the system cannot be made: {reason[0]}")
        names = (f"{TOP}.v", "processor", "soc.h", "regions.ld")
        verilog, processor, *headers = ((folder / name).read_text("utf-8") for name in names)
    return System(verilog, Path(processor), dict(zip(names[2:], headers, strict=True)))
