"""The common base of cocotb benches: configuration, clock, reset, agents, the end of a test.

A bench runs inside the simulator's process. `sim.bench.runner` passes the configuration in an
environment variable. All randomness comes from cocotb's seed of the running test.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import cocotb
import numpy as np
from amaranth.hdl import Shape, ShapeLike
from amaranth.lib.wiring import Flow
from cocotb.clock import Clock
from cocotb.handle import HierarchyObject
from cocotb.task import Task
from cocotb.triggers import ClockCycles, RisingEdge
from cocotb.types import LogicArray

from kvtq_hw.contract.config import EngineConfig
from rtl.axi import BusSignature
from rtl.blocks import create_block
from rtl.verilog import interfaces
from sim.bench.axi_checker import watch_buses
from sim.bench.axi_rules import BusRules
from sim.bench.scoreboard import Mismatch, Scoreboard
from sim.bench.streams import (
    PERIOD_NS,
    STALLS,
    Payload,
    StreamDriver,
    StreamSink,
    pack,
    packer,
    stall_pattern,
)

__all__ = ["CONFIG_VARIABLE", "STALL_MIXES", "Bench", "bench_config"]

#: Environment variable with the configuration as JSON.
CONFIG_VARIABLE = "KVTQ_BENCH_CONFIG"

#: Stall patterns of a whole test: "mixed" draws one pattern per stream.
STALL_MIXES = (*STALLS, "mixed")

_IDLE_CYCLES = 80  # watched after the last expected output, in which no output may come


def bench_config() -> EngineConfig:
    """Return the configuration of the design under test."""
    return EngineConfig.model_validate_json(os.environ[CONFIG_VARIABLE])


class Bench:
    """One test of one block: `start`, then `drive` and `expect` on its stream ports, then `finish`.

    Attributes
    ----------
    config : EngineConfig
    rng : numpy.random.Generator
        Seeded by cocotb for this test: the same seed repeats the test.
    component : amaranth.lib.wiring.Component
        The block's component, which tells its latencies.
    drivers, sinks : dict
        Agents by port; `cycles` of an agent are the cycles of its transfers.
    buses : dict
        Rules checked on each AXI port.
    """

    def __init__(self, dut: HierarchyObject, block: str) -> None:
        self.dut = dut
        self.config = bench_config()
        self.rng = np.random.default_rng(cocotb.RANDOM_SEED)
        self.component = create_block(block, self.config)
        self.drivers: dict[str, StreamDriver] = {}
        self.sinks: dict[str, StreamSink] = {}
        self.buses: dict[str, BusRules] = {}
        self._shapes: dict[str, ShapeLike] = {}
        self._scoreboards: dict[str, Scoreboard] = {}
        self._sending: dict[str, Task[None]] = {}
        self._transfers = 0

    @classmethod
    async def start(cls, dut: HierarchyObject, block: str) -> Bench:
        """Start the clock, attach agents to every stream port and reset the design.

        All other inputs start at zero, including those of AXI ports, which agents drive later.
        """
        bench = cls(dut, block)
        for port, member in interfaces(bench.component).items():
            if member.is_port:
                bench._shapes[port] = member.shape
                if member.flow is Flow.In and Shape.cast(member.shape).width:
                    dut[port].value = 0
            elif isinstance(member.signature, BusSignature):
                for name, part in member.signature.members.items():
                    if part.flow is Flow.In:
                        dut[f"{port}_{name}"].value = 0
            else:
                bench._shapes[port] = member.signature.members["payload"].shape
                if member.flow is Flow.In:
                    bench.drivers[port] = StreamDriver(dut, port)
                else:
                    bench.sinks[port] = sink = StreamSink(dut, port)
                    bench._scoreboards[port] = Scoreboard(port, bench._shapes[port], [])
        dut.rst.value = 1
        bench.buses = watch_buses(dut, bench.component)
        Clock(dut.clk, PERIOD_NS, "ns").start(start_high=False)
        await ClockCycles(dut.clk, 2)
        dut.rst.value = 0
        for sink in bench.sinks.values():
            cocotb.start_soon(sink.watch())
        return bench

    def stalls(self, mix: str) -> str:
        """Return the stall pattern of one stream under a mix of `STALL_MIXES`."""
        return str(self.rng.choice(STALLS)) if mix == "mixed" else mix

    def drive(self, port: str, payloads: Sequence[Payload], mix: str = "none") -> None:
        """Send payloads into an input stream in the background; call once per stream and test."""
        pack_payload = packer(self._shapes[port])
        bits = [pack_payload(payload) for payload in payloads]
        stalls = stall_pattern(self.stalls(mix), self.rng.spawn(1)[0])
        self._transfers += len(bits)
        self._sending[port] = cocotb.start_soon(self.drivers[port].send(bits, stalls))

    def withdraw(self) -> None:
        """Stop driving input streams, even during an offer."""
        for port, sending in self._sending.items():
            sending.cancel()
            self.dut[f"{port}__valid"].value = 0
        self._sending.clear()

    async def reset(self, cycles: int = 1) -> None:
        """Withdraw all inputs, reset the design for `cycles` cycles, and restart one cycle later.

        Sinks forget their payloads. The caller resets the agents of AXI ports.
        """
        self.withdraw()
        for sink in self.sinks.values():
            sink.in_reset = True
        self.dut.rst.value = 1
        await ClockCycles(self.dut.clk, cycles)
        self.dut.rst.value = 0
        await RisingEdge(self.dut.clk)
        for sink in self.sinks.values():
            sink.in_reset = False
            sink.payloads.clear()
            sink.cycles.clear()

    def expect(self, port: str, payloads: Sequence[Payload], mix: str = "none") -> None:
        """Take payloads from an output stream under back-pressure; they must equal `payloads`."""
        self._scoreboards[port] = Scoreboard(port, self._shapes[port], payloads)
        self._transfers += len(payloads)
        pattern = self.stalls(mix)
        stalls = stall_pattern(pattern, self.rng.spawn(1)[0])
        cocotb.start_soon(self.sinks[port].drain(stalls, patient=pattern == "slow"))

    def set(self, port: str, value: Payload) -> None:
        """Drive an input outside streams."""
        self.dut[port].value = LogicArray(pack(self._shapes[port], value), len(self.dut[port]))

    def check(self, found: object, expected: object, what: str) -> None:
        """Raise `Mismatch` unless `found` equals `expected`."""
        if found != expected:
            raise Mismatch(f"{what}: {found}, expected {expected}")

    async def finish(self, cycles_per_transfer: int = 40) -> None:
        """Wait for all transfers, compare all payloads, and check that no further output comes.

        Raises
        ------
        sim.bench.scoreboard.Mismatch
            As soon as an output differs; at the end, when an output is missing or extra, when an
            input was not taken, or when there was nothing to compare.
        """
        limit = 1000 + cycles_per_transfer * self._transfers
        edge = RisingEdge(self.dut.clk)
        for _ in range(limit):
            await edge
            for port, board in self._scoreboards.items():
                board.compare(self.sinks[port].payloads)
            if all(sending.done() for sending in self._sending.values()) and all(
                board.complete for board in self._scoreboards.values()
            ):
                break
        await ClockCycles(self.dut.clk, _IDLE_CYCLES)
        for port, board in self._scoreboards.items():
            board.finish(self.sinks[port].payloads)
        for port, sending in self._sending.items():
            if not sending.done():
                taken = len(self.drivers[port].cycles)
                raise Mismatch(f"{port}: only {taken} payloads were taken in {limit} cycles")
