"""The system's hardware in LiteX: a VexRiscv processor, the accelerator, a main memory behind AXI.

Main bus (AXI4-Lite, 32 bits): the processor's two ports and the accelerator's four DMAs reach the
main memory, the accelerator's registers and LiteX's own registers (DMAs, console, timer).
Memory bus (AXI4, as wide as the accelerator's port): the main bus and the accelerator reach the
main memory. The program, its vectors and the KV cache all lie in this memory.

`sim.soc.system` runs this module as a program, which writes what it generates into a folder.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from litex.build.generic_platform import GenericPlatform, Pins, Subsignal
from litex.gen import LiteXModule
from litex.soc.integration import export
from litex.soc.integration.soc import SoCRegion
from litex.soc.integration.soc_core import SoCCore
from litex.soc.interconnect import axi
from litex.soc.interconnect.csr import CSRStorage
from migen import ClockDomain, If

from kvtq_hw.contract.config import EngineConfig
from sim.soc.accelerator import Accelerator

__all__ = ["LitexSystem"]

#: Address of the accelerator's registers.
_REGISTERS = 0x9000_0000
#: Cycles after which an access that nobody answers ends with an error.
_TIMEOUT = 10_000

_CONSOLE = [("source_valid", 1), ("source_ready", 1), ("source_data", 8)]
_CONSOLE += [("sink_valid", 1), ("sink_ready", 1), ("sink_data", 8)]
_PORTS = [
    ("clk", 0, Pins(1)),
    ("rst", 0, Pins(1)),
    ("serial", 0, *(Subsignal(name, Pins(width)) for name, width in _CONSOLE)),
    ("exit", 0, Subsignal("valid", Pins(1)), Subsignal("code", Pins(8))),
]


class LitexSystem(SoCCore):
    """VexRiscv without a data cache, so that it sees what the accelerator writes.

    Parameters
    ----------
    config : the accelerator's configuration
    top : name of its Verilog module
    memory_bytes : size of the main memory, which begins at address 0
    """

    def __init__(self, config: EngineConfig, top: str, memory_bytes: int) -> None:
        platform = GenericPlatform("simulation", _PORTS)
        super().__init__(
            platform,
            clk_freq=100_000_000,
            bus_standard="axi-lite",
            bus_timeout=_TIMEOUT,
            cpu_type="vexriscv",
            cpu_variant="standard",
            cpu_reset_address=0,
            integrated_sram_size=0,
            uart_name="sim",
            timer_uptime=True,
        )
        self.clock = _Clock(platform)
        self.exit = _Exit(platform.request("exit"))
        self.accelerator = accelerator = Accelerator(config, top)
        region = SoCRegion(origin=_REGISTERS, size=0x400, mode="rw", cached=False)
        self.bus.add_slave("accelerator", accelerator.registers, region)
        for name in ("table", "key_value", "query", "output"):
            dma = getattr(accelerator, name)
            self.bus.add_master(name, dma.bus)
        self.irq.add("accelerator")
        self._add_memory(memory_bytes, accelerator.memory)

    def _add_memory(self, size: int, manager: axi.AXIInterface) -> None:
        """Add the main memory, which the main bus and a second manager reach over AXI4."""
        width = manager.data_width
        region = SoCRegion(origin=0, size=size, mode="rwx")
        main, wide = (
            axi.AXILiteInterface(data_width=bits, address_width=32) for bits in (32, width)
        )
        self.bus.add_slave("main_ram", main, region)
        bus, memory = (axi.AXIInterface(data_width=width, address_width=32) for _ in range(2))
        words = axi.AXILiteInterface(data_width=width, address_width=32)
        self.submodules += [
            axi.AXILiteConverter(main, wide),
            axi.AXILite2AXI(wide, bus),
            axi.AXIInterconnectShared(
                [bus, manager], [(region.decoder(memory), memory)], timeout_cycles=_TIMEOUT
            ),
            axi.AXI2AXILite(memory, words),
        ]
        self.main_ram = axi.AXILiteSRAM(size, bus=words, init=[0], name="main_ram")


class _Clock(LiteXModule):
    """Clock and reset, which are ports."""

    def __init__(self, platform: GenericPlatform) -> None:
        self.cd_sys = ClockDomain()
        self.comb += [
            self.cd_sys.clk.eq(platform.request("clk")),
            self.cd_sys.rst.eq(platform.request("rst")),
        ]


class _Exit(LiteXModule):
    """A register whose writing ends the simulation, with an exit status."""

    def __init__(self, pads: Any) -> None:
        self.status = CSRStorage(8, description="Exit status of the program.")
        self.sync += If(self.status.re, pads.valid.eq(1))
        self.comb += pads.code.eq(self.status.storage)


def _generate(name: str, accelerator: str, memory_bytes: int, folder: Path) -> None:
    """Write the system of the configuration that stands in standard input."""
    config = EngineConfig.model_validate_json(sys.stdin.read())
    system = LitexSystem(config, accelerator, memory_bytes)
    system.finalize()
    # as LiteX writes Verilog for its own simulations
    verilog = system.platform.get_verilog(system, name=name, regular_comb=False).main_source
    headers = (
        export.get_csr_header(system.csr_regions, system.constants, with_access_functions=False),
        export.get_mem_header(system.mem_regions),
        export.get_soc_header(system.constants, with_access_functions=False),
    )
    ((processor, *_),) = system.platform.sources
    texts = {
        # its comments have the date
        f"{name}.v": re.sub(r"^//.*\n", "", verilog, flags=re.MULTILINE),
        "processor": str(processor),
        # without what LiteX's own software needs
        "soc.h": "".join(re.findall(r"^#define .*\n", "".join(headers), re.MULTILINE)),
        "regions.ld": export.get_linker_regions(system.mem_regions),
    }
    for file, text in texts.items():
        (folder / file).write_text(text, "utf-8")


if __name__ == "__main__":
    _generate(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
