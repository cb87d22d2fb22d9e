"""The accelerator in cocotb with its host and its memory, on buses of cocotbext-axi.

The memory, the register manager and the streams are cocotbext-axi's, and `sim.bench.axi_checker`
watches every bus. `sim.bench.heads` plans the jobs and checks their results.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.handle import HierarchyObject
from cocotb.triggers import ClockCycles
from cocotb.utils import get_sim_time
from cocotbext.axi import (
    AxiBus,
    AxiLiteBus,
    AxiLiteMaster,
    AxiSlave,
    AxiStreamBus,
    AxiStreamFrame,
    AxiStreamSink,
    AxiStreamSource,
)
from numpy.typing import NDArray

from kvtq_hw.contract.registers import JobStatus, register_map
from rtl.blocks import create_block
from sim.bench.axi_checker import watch_buses
from sim.bench.axi_memory import RESPONSES
from sim.bench.axi_rules import Rule
from sim.bench.bench import bench_config
from sim.bench.heads import Heads, Output, Planned
from sim.bench.scoreboard import Mismatch
from sim.bench.streams import PERIOD_NS
from sim.host.driver import Driver

__all__ = ["CHANNELS", "FAULTS", "Machine", "Memory"]

_LIMIT = 60_000  # cycles after which a wait counts as a hang
_IDLE = 200  # cycles watched at the end, in which nothing may come

#: Channels of the memory, and streams of the host.
CHANNELS = ("ar", "r", "aw", "w", "b", "key_value", "query", "output")
#: Faults of the memory's answers, each with the final status of the jobs in flight.
FAULTS = {
    "r_slverr": JobStatus.READ_ERROR,
    "r_decerr": JobStatus.READ_ERROR,
    "r_early": JobStatus.READ_TRUNCATED,
    "r_late": JobStatus.READ_TRUNCATED,
    "b_slverr": JobStatus.WRITE_ERROR,
    "b_decerr": JobStatus.WRITE_ERROR,
}


class Memory:
    """A memory from a base address on: the target of cocotbext-axi's AXI slave.

    Attributes
    ----------
    written : accesses that changed a byte
    """

    def __init__(self, base: int, data: NDArray[np.uint8]) -> None:
        self._base, self._data = base, data
        self.written = 0

    async def read(self, address: int, length: int) -> bytes:
        return self._data[self._place(address, length)].tobytes()

    async def write(self, address: int, data: bytes, **_: Any) -> None:
        self.written += 1
        self._data[self._place(address, len(data))] = np.frombuffer(bytes(data), np.uint8)

    def _place(self, address: int, length: int) -> slice:
        start = address - self._base
        if not 0 <= start <= len(self._data) - length:
            raise OSError(f"no memory at {address:#x}")
        return slice(start, start + length)


def pauses(rng: np.random.Generator) -> Iterator[bool]:
    """Yield for ever whether to pause in a cycle: single pauses, bursts of pauses, or none."""
    while True:
        yield from (bool(x) for x in rng.integers(0, 2, int(rng.integers(1, 20))))
        yield from [True] * int(rng.integers(0, 12))
        yield from [False] * int(rng.integers(0, 40))


class Machine:
    """The accelerator with its host and memory.

    Parameters
    ----------
    code : code of all heads
    options : options of `sim.bench.heads.Heads`

    Attributes
    ----------
    heads : Heads
    planned : jobs started since the last `settle`
    fired : whether the fault of the last `fail` has happened
    bursts : (address, bytes) of every burst, by "ar" and "aw"
    """

    def __init__(self, dut: HierarchyObject, code: str, **options: Any) -> None:
        self.dut = dut
        self.config = bench_config()
        self.rng = np.random.default_rng(cocotb.RANDOM_SEED)
        self.heads = Heads(self.config, code, self.rng, **options)
        self.memory = Memory(self.heads.layout.base, self.heads.memory)
        self.planned: list[Planned] = []
        self.errors: list[dict[str, int]] = []
        self.fired = False
        self.bursts: dict[str, list[tuple[int, int]]] = {"ar": [], "aw": []}
        self._driver = Driver(self.config)
        self._completed = 0
        self._restore: Callable[[], None] = lambda: None
        logging.getLogger(f"cocotb.{dut._name}").setLevel(logging.WARNING)  # the buses' agents

    async def start(self, *, pausing: Iterable[str] = ()) -> None:
        """Start the clock, reset, attach to the buses and load the tables.

        Parameters
        ----------
        pausing : channels of `CHANNELS` that pause at random
        """
        dut = self.dut
        dut.rst.value = 1
        beats = {"m_axis_output": self.config.head_dim}
        self.buses = watch_buses(dut, create_block("accelerator", self.config), beats)
        self.slave = AxiSlave(AxiBus.from_prefix(dut, "m_axi"), dut.clk, dut.rst, self.memory)
        self.registers = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil"), dut.clk, dut.rst)
        self.pairs, self.queries, self.tables = (
            AxiStreamSource(AxiStreamBus.from_prefix(dut, f"s_axis_{name}"), dut.clk, dut.rst)
            for name in ("key_value", "query", "table")
        )
        self.output = AxiStreamSink(
            AxiStreamBus.from_prefix(dut, "m_axis_output"), dut.clk, dut.rst
        )
        read, write = self.slave.read_if, self.slave.write_if
        agents = (
            *(read.ar_channel, read.r_channel),
            *(write.aw_channel, write.w_channel, write.b_channel),
            *(self.pairs, self.queries, self.output),
        )
        self.channels: dict[str, Any] = dict(zip(CHANNELS, agents, strict=True))
        for name, seen in self.bursts.items():
            self._note_bursts(name, seen)
        for name in pausing:
            self.channels[name].set_pause_generator(pauses(self.rng.spawn(1)[0]))
        Clock(dut.clk, PERIOD_NS, "ns").start(start_high=False)
        await self.reset()

    def _note_bursts(self, name: str, seen: list[tuple[int, int]]) -> None:
        """Append the bursts that the memory receives on an address channel to `seen`."""
        channel = self.channels[name]
        receive, word = channel.recv, self.config.memory_bits // 8

        async def noted() -> Any:
            burst = await receive()
            address, length = (int(getattr(burst, f"{name}{part}")) for part in ("addr", "len"))
            seen.append((address // word * word, word * (length + 1)))
            return burst

        channel.recv = noted

    async def reset(self) -> None:
        """Reset the accelerator and reload its tables."""
        self.heal()
        self.dut.rst.value = 1
        await ClockCycles(self.dut.clk, 3)
        for channel in (self.pairs, self.queries, self.output):
            channel.clear()
        self.dut.rst.value = 0
        await ClockCycles(self.dut.clk, 2)
        self._driver.forget()
        self._completed = 0
        self.planned.clear()
        self.errors.clear()
        for packet in self.heads.tables():
            await self._load(packet)

    async def _load(self, packet: list[int]) -> None:
        """Send a packet of words for the tables or the anchors."""
        data = b"".join(word.to_bytes(4, "little") for word in packet)
        await self.tables.send(AxiStreamFrame(data))
        await self.tables.wait()

    # --- jobs -------------------------------------------------------------------------------------

    async def step(self, head: int, **options: Any) -> None:
        """Start the next job of a head, planned by `Heads.plan`, and send its vectors."""
        if head in self.heads.unknown and self.heads.code.tiers.anchors:
            await self._load(self.heads.anchors(head))
        planned = self.heads.plan(head, **options)
        self.planned.append(planned)
        await self.until("status", "free", lambda free: free > 0)
        for address, word in self._driver.start(planned.descriptor):
            await self.registers.write_dword(address, word)
        for source, elements in (
            (self.pairs, planned.vectors),
            (self.queries, planned.queries),
        ):
            if elements is not None:
                data = np.ascontiguousarray(elements.T.astype("<i2")).tobytes()
                await source.send(AxiStreamFrame(data))

    async def read(self, register: str) -> dict[str, int]:
        """Read a register's fields."""
        entry = register_map()[register]
        return entry.unpack(await self.registers.read_dword(entry.address))

    async def until(self, register: str, field: str, holds: Callable[[int], bool]) -> None:
        """Poll a field until `holds`, noting and clearing errors; raise `Mismatch` on a timeout."""
        start = get_sim_time("ns")
        while not holds((await self.read(register))[field]):
            await self._note_error()
            if get_sim_time("ns") - start > _LIMIT * PERIOD_NS:
                raise Mismatch(f"{register}.{field} hangs")

    async def _note_error(self) -> None:
        interrupt = register_map()["interrupt"]
        if (await self.read("interrupt"))["error"]:
            error = await self.read("first_error")
            await self.registers.write_dword(interrupt.address, interrupt.pack(error=1))
            self.errors.append(error | {"job": error["job"] - self._completed})

    async def settle(self, fault: JobStatus = JobStatus.OK) -> int:
        """Wait for all jobs, check that nothing more comes, and let the heads compare all results.

        Return the number of valid jobs that failed.
        """
        end = self._completed + len(self.planned)
        await self.until("completed", "jobs", lambda done: done == end)
        await self._note_error()
        self._completed = end
        written = self.memory.written
        await ClockCycles(self.dut.clk, _IDLE)
        if self.memory.written != written:
            raise Mismatch("the memory was written after the jobs' ends")
        outputs = [self._output(self.output.recv_nowait()) for _ in range(self.output.count())]
        failed = self.heads.settle(self.planned, outputs, self.errors, fault)
        self.planned.clear()
        self.errors.clear()
        return failed

    def _output(self, frame: AxiStreamFrame) -> Output:
        """Unpack a job's outputs from its packet."""
        shape = self.config.head_dim, self.config.query_group
        values = np.frombuffer(bytes(frame.tdata), "<i4").reshape(shape).T.astype(np.int64)
        users = {frame.tuser} if isinstance(frame.tuser, int) else set(frame.tuser)
        if len(users) != 1:
            raise Mismatch(f"the exponent changes within a job's outputs: {users}")
        (exponent,) = users
        return Output(values, (exponent ^ 0x80) - 0x80)

    # --- faults of the memory ---------------------------------------------------------------------

    def fail(self, fault: str, after: int, when: Callable[[], bool] = lambda: True) -> None:
        """Let the memory fail once, with a fault of `FAULTS`.

        Parameters
        ----------
        after : answers without a fault before
        when : the fault waits for the first answer at which `when` returns true
        """
        kind, _, name = fault.partition("_")
        channel = self.channels[kind]
        send, left = channel.send, after
        self.fired = False

        def restore() -> None:
            channel.send = send

        async def send_wrongly(beat: Any) -> None:
            nonlocal left
            left -= 1
            unfit = (name == "early" and beat.rlast) or (name == "late" and not beat.rlast)
            if left >= 0 or unfit or not when():
                await send(beat)
                return
            self.fired = True
            restore()
            if name == "early":
                self.buses["m_axi"].tolerated = {Rule.RLAST}
                beat.rlast = 1
                channel.send = swallow
            elif name == "late":
                self.buses["m_axi"].tolerated = {Rule.RLAST}
                beat.rlast = 0
                await send(beat)
                beat = channel._transaction_obj(rid=beat.rid, rdata=0, rresp=0, rlast=1)
            elif kind == "r":
                beat.rresp = RESPONSES[name]
            else:
                beat.bresp = RESPONSES[name]
            await send(beat)

        async def swallow(beat: Any) -> None:
            """Drop the rest of a burst that has been cut."""
            if beat.rlast:
                restore()

        channel.send = send_wrongly
        self._restore = restore

    def heal(self) -> None:
        """Cancel a pending fault."""
        self._restore()

    async def stall(self, channel: str, cycles: int) -> None:
        """Pause a channel for `cycles` cycles."""
        self.channels[channel].pause = True
        await ClockCycles(self.dut.clk, cycles)
        self.channels[channel].pause = False

    def broken_rules(self) -> set[Rule]:
        """Return the rules of the memory's bus that were broken, all on purpose."""
        return {violation.rule for violation in self.buses["m_axi"].found}
