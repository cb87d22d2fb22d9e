"""The accelerator as a module of LiteX: its Verilog's ports, and a DMA for each of its streams.

LiteX describes hardware in Migen, so this module names the ports of the generated Verilog; nothing
of `rtl` is imported.
"""

from __future__ import annotations

from typing import Any

from litex.gen import LiteXModule
from litex.soc.cores.dma import WishboneDMAReader, WishboneDMAWriter
from litex.soc.interconnect import axi, stream, wishbone
from migen import ClockSignal, Instance, ResetSignal, Signal

from kvtq_hw.contract.config import EngineConfig

__all__ = ["Accelerator", "query_words"]

_ADDRESS = ("id", "addr", "len", "size", "burst", "lock", "cache", "prot", "qos")
_LITE_ADDRESS = ("addr", "prot")


def query_words(config: EngineConfig) -> int:
    """Return the 32-bit words in memory of a beat of queries, 16 bits per query head."""
    return (16 * config.query_group + 31) // 32


class Accelerator(LiteXModule):
    """The accelerator, and what moves its vectors between its streams and the memory.

    Parameters
    ----------
    config : the accelerator's configuration
    top : name of its Verilog module

    Attributes
    ----------
    registers : AXI4-Lite, subordinate
    memory : AXI4, manager, `memory_bits` wide
    table, key_value, query, output : DMAs with control registers and a Wishbone port `bus`. A beat
        of queries takes `query_words` words of memory. A beat of outputs takes a word per query
        head, and behind them a word with the exponent.
    ev : `ev.irq` is the interrupt line, where LiteX looks for it
    """

    def __init__(self, config: EngineConfig, top: str) -> None:
        self.registers = axi.AXILiteInterface(data_width=32, address_width=32)
        self.memory = axi.AXIInterface(data_width=config.memory_bits, address_width=32, id_width=1)
        self.ev = _InterruptLine()
        self.table, self.key_value, self.query = (_reader() for _ in range(3))
        self.output = _writer()
        ports = {"i_clk": ClockSignal("sys"), "i_rst": ResetSignal("sys"), "o_irq": self.ev.irq}
        ports |= self._register_ports() | self._memory_ports(config.address_bits)
        ports |= _sink("s_axis_table", self.table.source)
        ports |= _sink("s_axis_key_value", self.key_value.source)
        ports |= self._query_ports(config.query_group, query_words(config))
        ports |= self._output_ports(config.query_group)
        self.specials += Instance(top, **ports)

    def _register_ports(self) -> dict[str, Any]:
        bus = self.registers
        address = {"o": (), "i": _LITE_ADDRESS}
        ports: dict[str, Any] = {}
        for name, channel in (("aw", bus.aw), ("ar", bus.ar)):
            ports |= _taken(f"s_axil_{name}", channel, address["i"])
        ports |= _taken("s_axil_w", bus.w, ("data", "strb"))
        ports |= _given("s_axil_b", bus.b, ("resp",)) | _given("s_axil_r", bus.r, ("data", "resp"))
        # the window has 10 address bits; above them the bus has decoded
        for name, channel in (("aw", bus.aw), ("ar", bus.ar)):
            ports[f"i_s_axil_{name}addr"] = channel.addr[:10]
        return ports

    def _memory_ports(self, address_bits: int) -> dict[str, Any]:
        bus = self.memory
        ports: dict[str, Any] = {}
        for name, channel in (("aw", bus.aw), ("ar", bus.ar)):
            ports |= _given(f"m_axi_{name}", channel, _ADDRESS)
            # the bus has 32 address bits, the port more or less
            address = ports[f"o_m_axi_{name}addr"] = Signal(address_bits)
            self.comb += channel.addr.eq(address)
        ports |= _given("m_axi_w", bus.w, ("data", "strb", "last"))
        ports |= _taken("m_axi_b", bus.b, ("id", "resp"))
        return ports | _taken("m_axi_r", bus.r, ("id", "data", "resp", "last"))

    def _query_ports(self, group: int, words: int) -> dict[str, Any]:
        self.query_beats = beats = stream.Converter(32, 32 * words)
        self.comb += self.query.source.connect(beats.sink)
        ports = _sink("s_axis_query", beats.source)
        ports["i_s_axis_query_tdata"] = beats.source.data[: 16 * group]
        return ports

    def _output_ports(self, group: int) -> dict[str, Any]:
        self.output_words = words = stream.Converter(32 * (group + 1), 32)
        self.comb += words.source.connect(self.output.sink, omit={"last", "first"})
        elements, exponent = Signal(32 * group), Signal((8, True))
        extended = Signal((32, True))
        self.comb += [
            extended.eq(exponent),
            words.sink.data[: 32 * group].eq(elements),
            words.sink.data[32 * group :].eq(extended),
        ]
        return {
            "o_m_axis_output_tvalid": words.sink.valid,
            "i_m_axis_output_tready": words.sink.ready,
            "o_m_axis_output_tdata": elements,
            "o_m_axis_output_tuser": exponent,
            "o_m_axis_output_tlast": Signal(),  # the DMA counts the beats
        }


class _InterruptLine(LiteXModule):
    """A level: the accelerator's own registers enable and clear it."""

    def __init__(self) -> None:
        self.irq = Signal()


def _reader() -> WishboneDMAReader:
    """Return a DMA from memory to a stream."""
    # LiteX calls the order "big" in which the lowest bits of a word stay the lowest
    bus = wishbone.Interface(data_width=32, address_width=32, addressing="word")
    return WishboneDMAReader(bus, endianness="big", with_csr=True)


def _writer() -> WishboneDMAWriter:
    """Return a DMA from a stream to memory, which takes nothing before it is enabled."""
    bus = wishbone.Interface(data_width=32, address_width=32, addressing="word")
    writer = WishboneDMAWriter(bus, endianness="big")
    writer.add_ctrl(ready_on_idle=0)
    writer.add_csr()
    return writer


def _taken(prefix: str, channel: Any, payload: tuple[str, ...]) -> dict[str, Any]:
    """Return the ports of a channel whose beats the accelerator takes."""
    fields = {f"i_{prefix}{name}": getattr(channel, name) for name in payload}
    return fields | {f"i_{prefix}valid": channel.valid, f"o_{prefix}ready": channel.ready}


def _given(prefix: str, channel: Any, payload: tuple[str, ...]) -> dict[str, Any]:
    """Return the ports of a channel whose beats the accelerator gives."""
    fields = {f"o_{prefix}{name}": getattr(channel, name) for name in payload}
    return fields | {f"o_{prefix}valid": channel.valid, f"i_{prefix}ready": channel.ready}


def _sink(prefix: str, source: Any) -> dict[str, Any]:
    """Return the ports of a stream that the accelerator takes."""
    return _taken(f"{prefix}_t", source, ("data", "last"))
