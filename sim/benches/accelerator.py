"""Bench of the accelerator: KV heads live through decode steps, on buses that others wrote.

The memory, the register master and the streams are cocotbext-axi's, with random pauses on every
channel. What must come out is what the golden accelerator says, and what must be in memory is its
image.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cocotb
import numpy as np
import torch
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

from golden.accelerator import KvHead
from golden.conditioning import Conditioning
from golden.engine import Attention
from golden.feedback import Feedback
from golden.memory_image import MemoryImage
from golden.tables import load_words
from kvtq_hw.codes import CacheCode
from kvtq_hw.config import VECTOR_MAX
from kvtq_hw.layout import MemoryLayout
from kvtq_hw.registers import JobStatus, register_map
from rtl.blocks import create_block
from sim.axi_checker import watch_buses
from sim.axi_rules import Rule
from sim.bench import bench_config
from sim.descriptors import HeadDescriptors
from sim.driver import Driver
from sim.scoreboard import Mismatch
from sim.streams import PERIOD_NS

_LIMIT = 60_000  # cycles after which a wait is a hang
_IDLE = 200  # cycles watched at the end: nothing more may come
_BASE = 0x4000
_TOKENS = 24


class Memory:
    """Bytes with faults: the target of cocotbext-axi's AXI slave.

    Attributes
    ----------
    data : uint8, the first byte at address `base`
    reads_left, writes_left : accesses that go well before one fails; None: all do
    written : accesses that changed a byte
    """

    def __init__(self, base: int, size: int) -> None:
        self.base = base
        self.data = np.zeros(size, np.uint8)
        self.reads_left: int | None = None
        self.writes_left: int | None = None
        self.written = 0

    async def read(self, address: int, length: int) -> bytes:
        if self.reads_left is not None:
            self.reads_left -= 1
            if self.reads_left == -1:
                raise OSError("a read that is asked to fail")
        return self.data[self._place(address, length)].tobytes()

    async def write(self, address: int, data: bytes, **_: Any) -> None:
        if self.writes_left is not None:
            self.writes_left -= 1
            if self.writes_left == -1:
                raise OSError("a write that is asked to fail")
        self.written += 1
        self.data[self._place(address, len(data))] = np.frombuffer(bytes(data), np.uint8)

    def _place(self, address: int, length: int) -> slice:
        start = address - self.base
        if not 0 <= start <= len(self.data) - length:
            raise OSError(f"no memory at {address:#x}")
        return slice(start, start + length)


def pauses(rng: np.random.Generator) -> Iterator[bool]:
    """Endless: whether to pause in a cycle; single pauses, bursts of them, and none for a while."""
    while True:
        yield from (bool(x) for x in rng.integers(0, 2, int(rng.integers(1, 20))))
        yield from [True] * int(rng.integers(0, 12))
        yield from [False] * int(rng.integers(0, 40))


@dataclass(frozen=True)
class Sent:
    """A job that the host has started: what must come out, None where it does not attend."""

    result: Attention | None


class Machine:
    """The accelerator with its host and memory, and beside it the golden heads.

    Parameters
    ----------
    code : of all heads
    heads : KV heads
    rotate : keys, values and queries are rotated
    """

    def __init__(
        self, dut: HierarchyObject, code: str, *, heads: int = 2, rotate: bool = True
    ) -> None:
        self.dut = dut
        self.config = config = bench_config()
        self.rng = np.random.default_rng(cocotb.RANDOM_SEED)
        self.code = CacheCode.parse(code)
        self.layout = MemoryLayout(config, [self.code], heads, _TOKENS, base=_BASE)
        self.memory = Memory(_BASE, self.layout.bytes)
        dim = config.head_dim
        self.centres = torch.from_numpy(self.rng.integers(-9000, 9000, (heads, dim)))
        self.feedback = [self._random_feedback(heads) for _ in range(2)]
        self.rotate = rotate
        self.descriptors = [
            HeadDescriptors(self.layout, 0, head, table=head, rotate=rotate, centre=True)
            for head in range(heads)
        ]
        self.heads = [self.golden_head(head) for head in range(heads)]
        self.tokens = [0] * heads
        self.unknown = set(range(heads))  # heads whose value exponent the hardware does not know
        self.sent: list[Sent] = []
        self._driver = Driver(config)
        self._completed = 0
        logging.getLogger(f"cocotb.{dut._name}").setLevel(logging.WARNING)  # the buses' agents

    def golden_head(self, head: int) -> KvHead:
        """A new golden twin of a head."""
        one = slice(head, head + 1)
        key, value = (Feedback(f.factors[one], f.shift[one]) for f in self.feedback)
        conditioning = Conditioning(self.rotate, self.centres[one], 0, 0, key, value)
        return KvHead(self.config, self.code, conditioning)

    def _random_feedback(self, heads: int) -> Feedback:
        dim = self.config.head_dim
        factors = torch.from_numpy(self.rng.integers(-4, 5, (heads, dim, dim)).astype(np.int8))
        shift = torch.from_numpy(self.rng.integers(0, 8, (heads, dim)))
        return Feedback(factors.triu(1), shift)

    async def start(self, *, pausing: bool = False) -> None:
        """Start the clock, reset, take hold of the buses, load the tables."""
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
        if pausing:
            channels = (
                *(self.slave.read_if.ar_channel, self.slave.read_if.r_channel),
                *(self.slave.write_if.aw_channel, self.slave.write_if.w_channel),
                *(self.slave.write_if.b_channel, self.pairs, self.queries, self.output),
            )
            for channel in channels:
                channel.set_pause_generator(pauses(self.rng.spawn(1)[0]))
        if not getattr(self, "_clock", None):
            self._clock = Clock(dut.clk, PERIOD_NS, "ns").start(start_high=False)
        await self.reset()

    async def reset(self) -> None:
        """Reset the accelerator, and load its tables again."""
        self.dut.rst.value = 1
        await ClockCycles(self.dut.clk, 3)
        self.dut.rst.value = 0
        await ClockCycles(self.dut.clk, 2)
        self._driver.forget()
        self._completed = 0
        packets = load_words(self.config, self.centres, self.feedback[0], self.feedback[1])
        for packet in packets:
            data = b"".join(word.to_bytes(4, "little") for word in packet)
            await self.tables.send(AxiStreamFrame(data))
        await self.tables.wait()

    # --- jobs -------------------------------------------------------------------------------------

    def random_vectors(self, count: int) -> NDArray[np.int64]:
        """Vectors of 16-bit elements [count, D]: Gaussian, with extremes, small, or zero."""
        dim = self.config.head_dim
        kind = self.rng.integers(0, 8)
        x = np.rint(self.rng.normal(0, 6000, (count, dim)))
        if kind == 0:
            x = self.rng.choice([-VECTOR_MAX - 1, VECTOR_MAX, 0], (count, dim))
        elif kind == 1:
            x = self.rng.integers(-3, 4, (count, dim))
        elif kind == 2:
            x = np.zeros((count, dim))
        return x.clip(-VECTOR_MAX - 1, VECTOR_MAX).astype(np.int64)

    def random_exponents(self) -> list[int]:
        """Exponents under which scores spread over some octaves."""
        config = self.config
        middle = config.head_dim.bit_length() + 27 - config.score_fraction_bits
        return self.rng.integers(middle - 3, middle + 4, config.query_group).tolist()

    async def step(
        self,
        head: int,
        *,
        append: bool = True,
        attend: bool = True,
        good: bool = True,
        **changes: Any,
    ) -> None:
        """Start one job of a head, and send its vectors.

        Parameters
        ----------
        good : the job will end well: the golden head does it too
        changes : of the descriptor
        """
        exponents = self.random_exponents()
        tokens = self.tokens[head] + append
        job = self.descriptors[head].job(
            max(tokens, 1),
            append=append,
            query_exponent=exponents if attend else None,
            first=head in self.unknown,
            value_exponent=self.heads[head].value_exponent if head in self.unknown else 0,
        )
        vectors = self.random_vectors(2) if append else None
        queries = self.random_vectors(self.config.query_group) if attend else None
        await self.send(job | changes, vectors, queries)
        if not good:
            return
        self.unknown.discard(head)
        self.tokens[head] = tokens
        if vectors is not None:
            self.heads[head].append(*torch.from_numpy(vectors))
        result = None
        if queries is not None:
            result = self.heads[head].attend(torch.from_numpy(queries), torch.tensor(exponents))
        self.sent.append(Sent(result))

    async def send(
        self,
        job: dict[str, Any],
        vectors: NDArray[np.int64] | None,
        queries: NDArray[np.int64] | None,
    ) -> None:
        """Write a descriptor when the queue has room, start it, and send its vectors [n, D]."""
        await self.until("status", "free", lambda free: free > 0)
        for address, word in self._driver.start(job):
            await self.registers.write_dword(address, word)
        for source, elements in ((self.pairs, vectors), (self.queries, queries)):
            if elements is not None:
                data = np.ascontiguousarray(elements.T.astype("<i2")).tobytes()
                await source.send(AxiStreamFrame(data))

    async def read(self, register: str) -> dict[str, int]:
        """Fields of a register."""
        entry = register_map()[register]
        return entry.unpack(await self.registers.read_dword(entry.address))

    async def until(self, register: str, field: str, holds: Callable[[int], bool]) -> None:
        """Poll a field; raises `Mismatch` where it takes too long."""
        start = get_sim_time("ns")
        while not holds((await self.read(register))[field]):
            if get_sim_time("ns") - start > _LIMIT * PERIOD_NS:
                raise Mismatch(f"{register}.{field} hangs")

    async def ended(self, jobs: int) -> dict[str, int]:
        """Wait for the end of so many more jobs; the fields of `first_error`, then cleared."""
        self._completed += jobs
        await self.until("completed", "jobs", lambda done: done == self._completed)
        error = await self.read("first_error") if (await self.read("interrupt"))["error"] else {}
        interrupt = register_map()["interrupt"]
        await self.registers.write_dword(interrupt.address, interrupt.pack(done=1, error=1))
        return error

    def fail(self, fault: str, after: int) -> JobStatus:
        """Let the memory fail once, after so many accesses that go well; the status that it gives.

        "read" and "write" are answered with SLVERR, "early" and "late" bursts end at another beat.
        """
        if fault == "read":
            self.memory.reads_left = after
            return JobStatus.READ_ERROR
        if fault == "write":
            self.memory.writes_left = after
            return JobStatus.WRITE_ERROR
        self.buses["m_axi"].tolerated = {Rule.RLAST}
        channel = self.slave.read_if.r_channel
        send = channel.send
        left = after

        async def send_wrongly(beat: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0 and fault == "early" and not beat.rlast:
                channel.send = self._whole(channel, send)
                beat.rlast = 1
            elif left < 0 and fault == "late" and beat.rlast:
                channel.send = send
                beat.rlast = 0
                await send(beat)
                beat = channel._transaction_obj(rid=beat.rid, rdata=0, rresp=0, rlast=1)
            await send(beat)

        channel.send = send_wrongly
        return JobStatus.READ_TRUNCATED

    @staticmethod
    def _whole(channel: Any, send: Any) -> Any:
        """Swallow beats to the end of a burst that has been cut, then send as ever."""

        async def swallow(beat: Any) -> None:
            if beat.rlast:
                channel.send = send

        return swallow

    async def finish(self, *, ended: bool = False) -> None:
        """Wait for all good jobs, compare outputs and memory, and see that nothing more comes."""
        error = {} if ended else await self.ended(len(self.sent))
        if error:
            raise Mismatch(f"job {error['job']}: {JobStatus(error['status']).name}")
        expected = [sent.result for sent in self.sent if sent.result is not None]
        self.sent.clear()
        await ClockCycles(self.dut.clk, _IDLE)
        if self.output.count() != len(expected):
            raise Mismatch(f"{self.output.count()} outputs, expected {len(expected)}")
        for number, attention in enumerate(expected):
            frame = await self.output.recv()
            shape = self.config.head_dim, self.config.query_group
            found = np.frombuffer(bytes(frame.tdata), "<i4").reshape(shape).T
            if not np.array_equal(found, attention.values[:, 0].numpy()):
                raise Mismatch(f"outputs of job {number}: {found}, expected {attention.values}")
            users = {frame.tuser} if isinstance(frame.tuser, int) else set(frame.tuser)
            exponent = int(attention.exponent[0])
            if users != {exponent & 0xFF}:
                raise Mismatch(f"exponents of job {number}: {users}, expected {exponent}")
        self.check_memory()

    def check_memory(self) -> None:
        """The memory is the image of the golden heads, to the byte."""
        image = MemoryImage(self.layout)
        for index, head in enumerate(self.heads):
            if self.tokens[index]:
                head.store(image, 0, index)
        wrong = np.flatnonzero(image.data.numpy() != self.memory.data)
        if len(wrong):
            raise Mismatch(f"{len(wrong)} bytes of the memory are wrong, the first at {wrong[0]}")


CODES = (
    "balanced:2/1,sinks=2,window=3,feedback",
    "balanced:3/2",
    "balanced:1/2,window=1",
    "residual:2/3,sinks=1,window=4",
    "residual:2/2,scale=absmean,sinks=3",
    "balanced:2/2,sinks=2,window=2,tier=3,feedback",
)


@cocotb.test()
@cocotb.parametrize(code=CODES, pausing=(False, True))
async def life(dut: HierarchyObject, code: str, pausing: bool) -> None:
    """Two heads from their first token on, a step after the other, jobs back to back."""
    machine = Machine(dut, code)
    await machine.start(pausing=pausing)
    for _ in range(10):
        for head in range(2):
            await machine.step(head)
    await machine.finish()


@cocotb.test()
async def not_rotated(dut: HierarchyObject) -> None:
    """A model whose vectors stay as they are."""
    machine = Machine(dut, CODES[0], rotate=False)
    await machine.start()
    for _ in range(8):
        await machine.step(0)
    await machine.finish()


@cocotb.test()
async def append_and_attend_apart(dut: HierarchyObject) -> None:
    """Jobs that only append, jobs that only attend, of one head back to back."""
    machine = Machine(dut, CODES[0], heads=1)
    await machine.start()
    kinds = ("append", "append", "attend", "both", "append", "append", "attend", "append", "both")
    for what in kinds * 2:
        await machine.step(0, append=what != "attend", attend=what != "append")
    await machine.finish()


REFUSED: dict[str, tuple[dict[str, Any], JobStatus]] = {
    "no_tokens": ({"tokens": 0}, JobStatus.NO_TOKENS),
    "over_max_context": ({"tokens": 1 << 30}, JobStatus.TOO_MANY_TOKENS),
    "no_digits": ({"key_digits": 0}, JobStatus.BAD_CODE),
    "too_many_digits": ({"value_digits": 7}, JobStatus.BAD_CODE),
    "no_tier_digits": ({"tier_digits": 0}, JobStatus.BAD_CODE),
    "tiers_do_not_add_up": ({"body_tokens": 9}, JobStatus.BAD_CODE),
    "no_such_table": ({"table": 999}, JobStatus.BAD_CODE),
    "slot_outside_window": ({"window_start": 50}, JobStatus.BAD_CODE),
    "nobody_can_leave": ({"leaving": True, "window_tokens": 0}, JobStatus.BAD_CODE),
}


@cocotb.test()
@cocotb.parametrize(case=tuple(REFUSED))
async def refused(dut: HierarchyObject, case: str) -> None:
    """A descriptor that cannot be right, between good ones: its status, and nothing else."""
    changes, status = REFUSED[case]
    machine = Machine(dut, CODES[0])
    await machine.start()
    for _ in range(6):
        await machine.step(0)
    await machine.step(0, good=False, **changes)
    for _ in range(2):
        await machine.step(0)
    error = await machine.ended(9)
    if error != {"status": status, "job": 6}:
        raise Mismatch(f"first error: {error}, expected {status} of job 6")
    await machine.finish(ended=True)


@cocotb.test()
@cocotb.parametrize(fault=("read", "write", "early", "late"), after=(0, 3))
async def bus_error(dut: HierarchyObject, fault: str, after: int) -> None:
    """An error of the memory ends the jobs in flight with its status; the next ones are right."""
    machine = Machine(dut, CODES[0])
    await machine.start()
    for _ in range(8):
        await machine.step(0)
    await machine.finish()
    state = machine.memory.data.copy()
    expected = machine.fail(fault, after)
    await machine.step(0, good=False)
    error = await machine.ended(1)
    if error.get("status") != expected:
        raise Mismatch(f"status of the job: {error}, expected {expected}")
    written = machine.memory.written
    await ClockCycles(dut.clk, _IDLE)
    if machine.memory.written != written:
        raise Mismatch("the memory was written after the job's end")
    # what the host does: it loads what it knows of the head, and says which exponent that has
    machine.memory.data[:] = state
    machine.unknown.add(0)
    machine.output.clear()
    for _ in range(3):
        await machine.step(0)
        await machine.step(1)
    await machine.finish()
    rules = [violation.rule for violation in machine.buses["m_axi"].found]
    if set(rules) != machine.buses["m_axi"].tolerated:
        raise Mismatch(f"rules that the memory broke: {rules}")


@cocotb.test()
async def reset_in_the_middle(dut: HierarchyObject) -> None:
    """Reset while a job runs, at several moments; what follows is as after the first reset."""
    machine = Machine(dut, CODES[0])
    await machine.start()
    for delay in (40, 150, 400, 700):
        await machine.step(0, good=False)
        await ClockCycles(dut.clk, delay)
        await machine.reset()
    machine.memory.data[:] = 0
    machine.output.clear()
    for _ in range(6):
        await machine.step(0)
    await machine.finish()
