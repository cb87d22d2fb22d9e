"""Bench of the record writer: records of all kinds into cocotbext-axi's memory, bus errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cocotb
import numpy as np
from cocotb.handle import HierarchyObject
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import AxiSlaveWrite, AxiWriteBus
from numpy.typing import NDArray

from kvtq_hw.layout import VectorKind
from kvtq_hw.packing import vector_bytes
from sim.axi_memory import RESPONSES
from sim.axi_rules import Rule
from sim.bench import STALL_MIXES, Bench
from sim.scoreboard import Mismatch
from sim.streams import current_cycle, stall_pattern

KINDS: tuple[VectorKind, VectorKind] = ("key", "value")


@dataclass(frozen=True)
class Record:
    """One record: where it goes, and its bytes."""

    kind: VectorKind
    payload: dict[str, int]
    address: int
    data: NDArray[np.uint8]


class Target:
    """What cocotbext-axi's subordinate writes into, and the responses that it gives.

    Parameters
    ----------
    failing : number of the burst that fails
    response : how; "slverr" by cocotbext-axi itself, which then writes nothing of the burst;
        "never": neither it nor those after it are answered
    """

    def __init__(
        self,
        bench: Bench,
        size: int = 1 << 14,
        mix: str = "none",
        failing: int | None = None,
        response: str = "slverr",
    ) -> None:
        self.data = bench.rng.integers(0, 256, size).astype(np.uint8)
        self.before = self.data.copy()
        self.writes = 0
        self._bursts = 0
        self._failing = failing
        bus = AxiWriteBus.from_prefix(bench.dut, "m_axi")
        self._slave = AxiSlaveWrite(bus, bench.dut.clk, target=self)
        self._send = self._slave.b_channel.send
        self._response = response
        self._slave.b_channel.send = self._respond
        for channel in (self._slave.aw_channel, self._slave.w_channel, self._slave.b_channel):
            if mix != "none":
                pattern = stall_pattern(bench.stalls(mix), bench.rng.spawn(1)[0])
                channel.set_pause_generator(not go for go in pattern)

    async def write(self, address: int, data: bytes) -> None:
        if self._bursts == self._failing and self._response != "never":
            raise ValueError(f"burst {self._bursts} fails")
        self.writes += 1
        self.data[address : address + len(data)] = np.frombuffer(data, np.uint8)

    def heal(self) -> None:
        """No burst fails any more."""
        self._failing = None

    async def _respond(self, transaction: Any) -> None:
        self._bursts += 1
        if self._failing is not None and self._bursts > self._failing:
            if self._response == "never":
                return
            if self._bursts == self._failing + 1:
                transaction.bresp = RESPONSES[self._response]
        await self._send(transaction)


class Written:
    """Cycles in which records were reported as written, by kind."""

    def __init__(self, bench: Bench) -> None:
        self.cycles: dict[str, list[int]] = {kind: [] for kind in KINDS}
        cocotb.start_soon(self._watch(bench))

    async def _watch(self, bench: Bench) -> None:
        while True:
            await RisingEdge(bench.dut.clk)
            for kind, cycles in self.cycles.items():
                if bench.dut[f"{kind}s_written"].value == 1:
                    cycles.append(current_cycle())

    @property
    def count(self) -> int:
        return sum(map(len, self.cycles.values()))


def random_records(bench: Bench, count: int, size: int = 1 << 14) -> list[Record]:
    """Records that do not overlap, a third of them over the end of a page."""
    rng, config = bench.rng, bench.config
    word = config.memory_bits // 8
    taken = np.zeros(size, bool)
    records: list[Record] = []
    while len(records) < count:
        planes, residual = int(rng.integers(1, config.max_planes + 1)), bool(rng.integers(2))
        length = vector_bytes(config, planes, planes if residual else 1)
        slot = int(rng.integers(0, min(config.max_context, 40)))
        skipped = slot * length
        if rng.integers(3) == 0:
            near = 4096 * int(rng.integers(1, size // 4096)) - int(rng.integers(1, length + 1))
            base = (near - skipped) // word * word
        else:
            base = int(rng.integers(size // word)) * word
        address = base + skipped
        place = slice(address, address + length)
        if base < 0 or address + length > size or taken[place].any():
            continue
        taken[place] = True
        payload = {"base": base, "slot": slot, "planes": planes, "residual": int(residual)}
        data = rng.integers(0, 256, length).astype(np.uint8)
        records.append(Record(KINDS[rng.integers(2)], payload, address, data))
    return records


def drive(bench: Bench, records: list[Record], mix: str = "none") -> None:
    """Send places and bytes of records, each kind's beside the other's."""
    for kind in KINDS:
        own = [record for record in records if record.kind == kind]
        record_bytes = [
            {"data": byte, "last": int(place == len(record.data) - 1)}
            for record in own
            for place, byte in enumerate(record.data.tolist())
        ]
        bench.drive(f"{kind}_places", [record.payload for record in own], mix)
        bench.drive(f"{kind}_bytes", record_bytes, mix)


async def wait_for(bench: Bench, written: Written, count: int, patience: int) -> None:
    """Wait until this many records are written, and see that there are no more of them."""
    for _ in range(patience):
        await RisingEdge(bench.dut.clk)
        if written.count >= count:
            break
    await ClockCycles(bench.dut.clk, 80)
    bench.check(written.count, count, "records written")


async def run(bench: Bench, target: Target, records: list[Record], mix: str = "none") -> Written:
    """Write records; memory must hold them, and what was there before around them."""
    written = Written(bench)
    drive(bench, records, mix)
    total = sum(len(record.data) for record in records)
    await wait_for(bench, written, len(records), 2000 + 100 * (total + len(records)))
    await bench.finish()
    for kind in KINDS:
        count = sum(record.kind == kind for record in records)
        bench.check(len(written.cycles[kind]), count, f"{kind}s written")
    expected = target.before.copy()
    for record in records:
        expected[record.address : record.address + len(record.data)] = record.data
    wrong = np.flatnonzero(expected != target.data).tolist()
    bench.check(wrong, [], "addresses of wrong bytes")
    bench.check(int(bench.dut.error.value), 0, "error")
    return written


@cocotb.test()
@cocotb.parametrize(memory_mix=STALL_MIXES, mix=("none", "mixed"))
async def random_places(dut: HierarchyObject, memory_mix: str, mix: str) -> None:
    """Records of all formats, anywhere, with pauses on all channels."""
    bench = await Bench.start(dut, "record_writer")
    target = Target(bench, mix=memory_mix)
    await run(bench, target, random_records(bench, 16), mix)


@cocotb.test()
async def neighbours(dut: HierarchyObject) -> None:
    """Slots of one region in random order: words are shared, bytes are not."""
    bench = await Bench.start(dut, "record_writer")
    rng, config = bench.rng, bench.config
    length = vector_bytes(config, config.max_planes, 1)
    base = 4096 - config.memory_bits // 8
    records = []
    for slot in rng.permutation(24).tolist():
        payload = {"base": base, "slot": slot, "planes": config.max_planes, "residual": 0}
        data = rng.integers(0, 256, length).astype(np.uint8)
        records.append(Record(KINDS[rng.integers(2)], payload, base + slot * length, data))
    await run(bench, Target(bench), records)


@cocotb.test()
async def pace(dut: HierarchyObject) -> None:
    """One byte a cycle, and 6 cycles a record plus the bits of its slot."""
    bench = await Bench.start(dut, "record_writer")
    config = bench.config
    slot = min(config.max_context - 1, 37)
    payload = {"base": 0, "slot": slot, "planes": config.max_planes, "residual": 0}
    length = vector_bytes(config, config.max_planes, 1)
    target = Target(bench)
    records = []
    for number in range(6):
        data = bench.rng.integers(0, 256, length).astype(np.uint8)
        shifted = payload | {"base": 1024 * number}
        records.append(Record("key", shifted, shifted["base"] + slot * length, data))
    value = payload | {"base": 1024 * 7}
    data = bench.rng.integers(0, 256, length).astype(np.uint8)
    records.append(Record("value", value, value["base"] + slot * length, data))
    await run(bench, target, records)
    cycles = bench.drivers["key_bytes"].cycles
    starts = cycles[2 * length :: length]  # the value's turn comes after the first key's
    expected = [starts[0] + (length + 6 + slot.bit_length()) * i for i in range(len(starts))]
    bench.check(starts, expected, "first bytes of records")
    for start, end in zip(cycles[::length], cycles[length - 1 :: length], strict=True):
        bench.check(end - start, length - 1, "cycles of a record's bytes")


@cocotb.test()
async def place_without_bytes(dut: HierarchyObject) -> None:
    """A key's place alone does not keep a value from being written."""
    bench = await Bench.start(dut, "record_writer")
    target = Target(bench)
    records = random_records(bench, 2)
    first, second = (
        Record(k, r.payload, r.address, r.data) for k, r in zip(KINDS, records, strict=True)
    )
    bench.drive("key_places", [first.payload])
    written = Written(bench)
    await ClockCycles(dut.clk, 40)
    bench.drive("value_places", [second.payload])
    value_bytes = [{"data": byte, "last": 0} for byte in second.data.tolist()]
    value_bytes[-1]["last"] = 1
    bench.drive("value_bytes", value_bytes)
    await wait_for(bench, written, 1, 1000)
    bench.check(len(written.cycles["value"]), 1, "values written")
    key_bytes = [{"data": byte, "last": 0} for byte in first.data.tolist()]
    key_bytes[-1]["last"] = 1
    bench.drive("key_bytes", key_bytes)
    await wait_for(bench, written, 2, 1000)
    for record in (first, second):
        found = target.data[record.address : record.address + len(record.data)]
        bench.check(found.tolist(), record.data.tolist(), record.kind)


async def cancel(bench: Bench) -> None:
    """Withdraw everything, and cancel."""
    dut = bench.dut
    bench.withdraw()
    dut.cancel.value = 1
    written = 0
    for _ in range(3000):
        await RisingEdge(dut.clk)
        if dut.m_axi_wvalid.value == 1 and dut.m_axi_wready.value == 1:
            written += int(dut.m_axi_wstrb.value) != 0
        if dut.idle.value == 1:
            break
    else:
        raise Mismatch("not idle within 3000 cycles of cancel")
    bench.check(written <= 1, True, "only the word that was offered before cancel has strobes")
    dut.cancel.value = 0
    await ClockCycles(dut.clk, 2)
    bench.check(int(dut.error.value), 0, "error after cancel")


async def recover(bench: Bench, target: Target, records: list[Record]) -> None:
    """After `cancel`: each record is there or not, nothing else changed, and all can be written."""
    writes = target.writes
    await ClockCycles(bench.dut.clk, 300)
    bench.check(target.writes, writes, "writes after cancel")
    around = np.ones(len(target.data), bool)
    for record in records:
        around[record.address : record.address + len(record.data)] = False
        place = slice(record.address, record.address + len(record.data))
        changed = target.data[place] != target.before[place]
        wrong = changed & (target.data[place] != record.data)
        bench.check(np.flatnonzero(wrong).tolist(), [], f"bytes of no record at {record.address}")
    changed = around & (target.data != target.before)
    bench.check(np.flatnonzero(changed).tolist(), [], "bytes changed around the records")
    target.before = target.data.copy()
    await run(bench, target, records)


@cocotb.test()
@cocotb.parametrize(response=("slverr", "decerr", "exokay"), mix=("none", "mixed"))
async def bus_errors(dut: HierarchyObject, response: str, mix: str) -> None:
    """A burst that fails: an error, no burst after it, and the same records again."""
    bench = await Bench.start(dut, "record_writer")
    number = int(bench.rng.integers(8))
    rules = bench.buses["m_axi"]
    rules.tolerated = {Rule.EXOKAY} if response == "exokay" else set()
    target = Target(bench, mix=mix, failing=number, response=response)
    records = random_records(bench, 16)
    written = Written(bench)
    drive(bench, records, mix)
    for _ in range(50000):
        await RisingEdge(dut.clk)
        if int(dut.error.value):
            break
    bench.check(int(dut.error.value), RESPONSES[response], "error")
    bench.check(written.count <= number, True, "records written before the burst that failed")
    begun = 0
    for _ in range(300):
        await RisingEdge(dut.clk)
        begun += int(dut.m_axi_awvalid.value) & int(dut.m_axi_awready.value)
    bench.check(begun <= 1, True, "only the address that was offered before the error")
    count = written.count
    await cancel(bench)
    bench.check(written.count, count, "records written after the error")
    bench.check({v.rule for v in rules.found}, rules.tolerated, "rules that the memory broke")
    rules.tolerated = set()
    await recover(bench, target, records)


@cocotb.test()
@cocotb.parametrize(mix=("none", "slow"))
async def cancel_at_any_time(dut: HierarchyObject, mix: str) -> None:
    """Cancel while bytes come, and while words leave: bursts end, their rest has no strobes."""
    bench = await Bench.start(dut, "record_writer")
    target = Target(bench, mix=mix)
    for _ in range(8):
        target.before = target.data.copy()
        records = random_records(bench, 6)
        drive(bench, records)
        await ClockCycles(dut.clk, int(bench.rng.integers(1, 400)))
        await cancel(bench)
        await recover(bench, target, records)


@cocotb.test()
async def response_never_comes(dut: HierarchyObject) -> None:
    """Without an answer nothing counts as written; `cancel` gives up after 65536 quiet cycles."""
    bench = await Bench.start(dut, "record_writer")
    target = Target(bench, failing=3, response="never")
    records = random_records(bench, 16)
    written = Written(bench)
    drive(bench, records)
    await ClockCycles(dut.clk, 5000)
    bench.check(written.count <= 3, True, "records written before the memory fell silent")
    bench.check(int(dut.error.value), 0, "error: the port waits as long as nobody cancels")
    count = written.count
    bench.withdraw()
    dut.cancel.value = 1
    await ClockCycles(dut.clk, 65_000)
    bench.check(int(dut.idle.value), 0, "idle after 65000 cycles")
    await cancel(bench)
    bench.check(written.count, count, "records written after cancel")
    target.heal()
    bench.buses["m_axi"].forget()
    await recover(bench, target, records)
