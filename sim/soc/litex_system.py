"""The system's hardware in LiteX; `sim.soc.system` generates its Verilog.

LiteX configures logging when it is imported, so this module is imported by `sim.soc.system` only.
"""

from __future__ import annotations

from litex.build.generic_platform import GenericPlatform, Pins, Subsignal
from litex.gen import LiteXModule
from litex.soc.integration.soc import SoCRegion
from litex.soc.integration.soc_core import SoCCore
from litex.soc.interconnect import axi
from litex.soc.interconnect.csr import CSRStorage
from migen import ClockDomain, If

from kvtq_hw.contract.config import EngineConfig
from sim.soc.accelerator import Accelerator

__all__ = ["LitexSystem"]

_CONSOLE = [("source_valid", 1), ("source_ready", 1), ("source_data", 8)]
_CONSOLE += [("sink_valid", 1), ("sink_ready", 1), ("sink_data", 8)]
_PORTS = [
    ("clk", 0, Pins(1)),
    ("rst", 0, Pins(1)),
    ("serial", 0, *(Subsignal(name, Pins(width)) for name, width in _CONSOLE)),
    ("exit", 0, Subsignal("valid", Pins(1)), Subsignal("code", Pins(8))),
]


class LitexSystem(SoCCore):  # type: ignore[misc]  # LiteX has no types
    """VexRiscv without a data cache, so that it sees what the accelerator writes.

    Parameters
    ----------
    config : the accelerator's configuration
    top : name of its Verilog module
    memory_bytes : size of the main memory
    registers : address of the accelerator's registers
    timeout : cycles after which an access that nobody answers ends with an error
    """

    def __init__(
        self, config: EngineConfig, top: str, memory_bytes: int, registers: int, timeout: int
    ) -> None:
        platform = GenericPlatform("simulation", _PORTS)
        super().__init__(
            platform,
            clk_freq=100_000_000,
            bus_standard="axi-lite",
            bus_timeout=timeout,
            cpu_type="vexriscv",
            cpu_variant="lite",
            cpu_reset_address=0,
            integrated_sram_size=0,
            uart_name="sim",
            timer_uptime=True,
        )
        self.clock = _Clock(platform)
        self.exit = _Exit(platform.request("exit"))
        self.accelerator = accelerator = Accelerator(config, top)
        region = SoCRegion(origin=registers, size=0x400, mode="rw", cached=False)
        self.bus.add_slave("accelerator", accelerator.registers, region)
        for name in ("table", "key_value", "query", "output"):
            dma = getattr(accelerator, name)
            self.bus.add_master(name, dma.bus)
        self.irq.add("accelerator")
        self._add_memory(memory_bytes, accelerator.memory, timeout)

    def _add_memory(self, size: int, manager: axi.AXIInterface, timeout: int) -> None:
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
                [bus, manager], [(region.decoder(memory), memory)], timeout_cycles=timeout
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

    def __init__(self, pads: object) -> None:
        self.status = CSRStorage(8, description="Exit status of the program.")
        self.sync += If(self.status.re, pads.valid.eq(1))
        self.comb += pads.code.eq(self.status.storage)
