"""The system: a VexRiscv processor, the accelerator and a main memory behind AXI, made by LiteX.

Main bus (AXI4-Lite, 32 bits): the processor's two ports and the accelerator's four DMAs reach the
main memory, the accelerator's registers and LiteX's own registers (DMAs, console, timer).
Memory bus (AXI4, as wide as the accelerator's port): the main bus and the accelerator reach the
main memory. The program, its vectors and the KV cache all lie in this memory.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kvtq_hw.contract.config import EngineConfig

__all__ = ["MEMORY_FILE", "TOP", "System", "make_system"]

TOP = "kvtq_soc"
#: What the memory's words are read from when a simulation starts.
MEMORY_FILE = f"{TOP}_main_ram.init"

_REGISTERS = 0x9000_0000
#: Cycles after which an access that nobody answers ends with an error.
_BUS_TIMEOUT = 10_000


@dataclass(frozen=True)
class System:
    """Generated sources of a system.

    verilog : the hardware but for the accelerator and the processor
    sources : paths of the processor's Verilog
    headers : C headers and the linker's map of the memory, by name
    """

    verilog: str
    sources: tuple[str, ...]
    headers: dict[str, str]


def make_system(config: EngineConfig, accelerator: str, memory_bytes: int) -> System:
    """Generate a system.

    Parameters
    ----------
    config : the accelerator's configuration
    accelerator : name of the accelerator's Verilog module
    memory_bytes : size of the main memory, which begins at address 0
    """
    with _quiet():
        from litex.soc.integration import export

        from sim.soc.litex_system import LitexSystem

        system = LitexSystem(config, accelerator, memory_bytes, _REGISTERS, _BUS_TIMEOUT)
        system.finalize()
        platform = system.platform
        # as LiteX writes Verilog for its own simulations
        text = platform.get_verilog(system, name=TOP, regular_comb=False).main_source
        parts = (
            export.get_csr_header(system.csr_regions, system.constants, with_access_functions=False),
            export.get_mem_header(system.mem_regions),
            export.get_soc_header(system.constants, with_access_functions=False),
        )
        headers = {
            "soc.h": "".join(map(_definitions, parts)),
            "regions.ld": export.get_linker_regions(system.mem_regions),
        }
    sources = tuple(str(source) for source, *_ in platform.sources)
    return System(_without_comments(text), sources, headers)


def _without_comments(verilog: str) -> str:
    """Remove what is another text in every minute: the date."""
    return re.sub(r"^//.*\n", "", verilog, flags=re.MULTILINE)


def _definitions(header: str) -> str:
    """Return the definitions of one of LiteX's headers, without what its own software needs."""
    return "".join(re.findall(r"^#define .*\n", header, re.MULTILINE))


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave logging as it was: LiteX configures the root logger, and reports all that it does."""
    root = logging.getLogger()
    handlers, level, disabled = root.handlers[:], root.level, logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(level)
