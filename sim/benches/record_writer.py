"""Bench of the record writer: records of all kinds into cocotbext-axi's memory, bus errors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.handle import HierarchyObject
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import AxiSlaveWrite, AxiWriteBus
from numpy.typing import NDArray

from kvtq_hw.contract.layout import SIDES, Side
from kvtq_hw.contract.packing import vector_bytes
from rtl.memory_layouts import largest_record_bytes
from sim.bench.axi_memory import RESPONSES, WriteMemory
from sim.bench.axi_rules import Rule
from sim.bench.bench import Bench
from sim.bench.coverage import Coverage, Point
from sim.bench.episodes import Episode, cancel, check_silence, pause_channels
from sim.bench.streams import changing_stalls, current_cycle

PAGE = 4096


@dataclass(frozen=True)
class Record:
    """A record: its place in memory and its bytes."""

    side: Side
    payload: dict[str, int]
    address: int
    data: NDArray[np.uint8]


class Target:
    """Target of cocotbext-axi's subordinate: the memory's bytes and the responses to bursts.

    Parameters
    ----------
    failing : number of the burst that fails
    response : response of the failing burst. "slverr": cocotbext-axi gives the response and writes
        nothing of the burst. "never": neither this burst nor later bursts are answered.

    Attributes
    ----------
    bursts : bursts that came whole; `writes` counts the accesses of these bursts
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
        self.bursts = 0
        self._failing = failing
        bus = AxiWriteBus.from_prefix(bench.dut, "m_axi")
        self._slave = AxiSlaveWrite(bus, bench.dut.clk, target=self)
        self._send = self._slave.b_channel.send
        self._response = response
        self._slave.b_channel.send = self._respond
        channels = (self._slave.aw_channel, self._slave.w_channel, self._slave.b_channel)
        pause_channels(bench, channels, mix)

    async def write(self, address: int, data: bytes) -> None:
        if self.bursts == self._failing and self._response != "never":
            raise ValueError(f"burst {self.bursts} fails")
        self.writes += 1
        self.data[address : address + len(data)] = np.frombuffer(data, np.uint8)

    def heal(self) -> None:
        """Let no further burst fail."""
        self._failing = None

    def pause(self, pausing: bool, words: bool = True) -> None:
        """Pause or resume addresses, and also words if `words`."""
        self._slave.aw_channel.pause = pausing
        self._slave.w_channel.pause = pausing and words

    async def _respond(self, transaction: Any) -> None:
        self.bursts += 1
        if self._failing is not None and self.bursts > self._failing:
            if self._response == "never":
                return
            if self.bursts == self._failing + 1:
                transaction.bresp = RESPONSES[self._response]
        await self._send(transaction)


class Written:
    """Notes the cycles in which records are reported as written, by side."""

    def __init__(self, bench: Bench) -> None:
        self.cycles: dict[str, list[int]] = {side: [] for side in SIDES}
        cocotb.start_soon(self._watch(bench))

    async def _watch(self, bench: Bench) -> None:
        while True:
            await RisingEdge(bench.dut.clk)
            for side, cycles in self.cycles.items():
                if bench.dut[f"{side}__written"].value == 1:
                    cycles.append(current_cycle())

    @property
    def count(self) -> int:
        return sum(map(len, self.cycles.values()))


def random_records(bench: Bench, count: int, size: int = 1 << 14) -> list[Record]:
    """Draw records that do not overlap, a third of them across a page end."""
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
        records.append(Record(SIDES[rng.integers(2)], payload, address, data))
    return records


def drive(bench: Bench, records: list[Record], mix: str = "none") -> None:
    """Send places and bytes of records, both sides concurrently."""
    for side in SIDES:
        own = [record for record in records if record.side == side]
        record_bytes = [
            {"data": byte, "last": int(place == len(record.data) - 1)}
            for record in own
            for place, byte in enumerate(record.data.tolist())
        ]
        bench.drive(f"{side}__places", [record.payload for record in own], mix)
        bench.drive(f"{side}__bytes", record_bytes, mix)


async def wait_for(bench: Bench, written: Written, count: int, patience: int) -> None:
    """Wait until `count` records are written, and check that no more follow."""
    for _ in range(patience):
        await RisingEdge(bench.dut.clk)
        if written.count >= count:
            break
    await ClockCycles(bench.dut.clk, 80)
    bench.check(written.count, count, "records written")


async def run(bench: Bench, target: Target, records: list[Record], mix: str = "none") -> Written:
    """Write records, and check that memory holds the records and is unchanged around them."""
    written = Written(bench)
    drive(bench, records, mix)
    total = sum(len(record.data) for record in records)
    await wait_for(bench, written, len(records), 2000 + 100 * (total + len(records)))
    await bench.finish()
    for side in SIDES:
        count = sum(record.side == side for record in records)
        bench.check(len(written.cycles[side]), count, f"{side}s written")
    expected = target.before.copy()
    for record in records:
        expected[record.address : record.address + len(record.data)] = record.data
    wrong = np.flatnonzero(expected != target.data).tolist()
    bench.check(wrong, [], "addresses of wrong bytes")
    bench.check(int(bench.dut.error.value), 0, "error")
    return written


@cocotb.test()
@cocotb.parametrize(memory_mix=("none", "mixed"), mix=("none", "mixed"))
async def random_places(dut: HierarchyObject, memory_mix: str, mix: str) -> None:
    """Check records of all formats, anywhere, with pauses on all channels."""
    bench = await Bench.start(dut, "record_writer")
    target = Target(bench, mix=memory_mix)
    await run(bench, target, random_records(bench, 16), mix)


@cocotb.test()
async def neighbours(dut: HierarchyObject) -> None:
    """Check slots of one region in random order, which share words but not bytes."""
    bench = await Bench.start(dut, "record_writer")
    rng, config = bench.rng, bench.config
    length = vector_bytes(config, config.max_planes, 1)
    base = 4096 - config.memory_bits // 8
    records = []
    for slot in rng.permutation(24).tolist():
        payload = {"base": base, "slot": slot, "planes": config.max_planes, "residual": 0}
        data = rng.integers(0, 256, length).astype(np.uint8)
        records.append(Record(SIDES[rng.integers(2)], payload, base + slot * length, data))
    await run(bench, Target(bench), records)


@cocotb.test()
async def pace(dut: HierarchyObject) -> None:
    """Check one byte per cycle, plus 6 cycles and the slot's bits per record, sides in turn."""
    bench = await Bench.start(dut, "record_writer")
    config = bench.config
    slot = min(config.max_context - 1, 37)
    payload = {"base": 0, "slot": slot, "planes": config.max_planes, "residual": 0}
    length = vector_bytes(config, config.max_planes, 1)
    target = Target(bench)
    records = []
    key, value = SIDES
    for number, side in enumerate((key, key, value, key, key, value, key, key)):
        data = bench.rng.integers(0, 256, length).astype(np.uint8)
        shifted = payload | {"base": 1024 * number}
        records.append(Record(side, shifted, shifted["base"] + slot * length, data))
    await run(bench, target, records)
    found = []
    for side in SIDES:
        cycles = bench.drivers[f"{side}__bytes"].cycles
        found += [(start, side) for start in cycles[::length]]
        for start, end in zip(cycles[::length], cycles[length - 1 :: length], strict=True):
            bench.check(end - start, length - 1, "cycles of a record's bytes")
    starts, sides = zip(*sorted(found), strict=True)
    turns = ("value", "key") * 2 + ("key",) * 4
    bench.check(sides, turns, "sides of records, both being there")
    expected = [starts[0] + (length + 6 + slot.bit_length()) * i for i in range(len(starts))]
    bench.check(list(starts), expected, "first bytes of records")


@cocotb.test()
async def place_without_bytes(dut: HierarchyObject) -> None:
    """Check that a key's place without bytes does not block a value's write."""
    bench = await Bench.start(dut, "record_writer")
    target = Target(bench)
    records = random_records(bench, 2)
    first, second = (
        Record(k, r.payload, r.address, r.data) for k, r in zip(SIDES, records, strict=True)
    )
    bench.drive("key__places", [first.payload])
    written = Written(bench)
    await ClockCycles(dut.clk, 40)
    bench.drive("value__places", [second.payload])
    value_bytes = [{"data": byte, "last": 0} for byte in second.data.tolist()]
    value_bytes[-1]["last"] = 1
    bench.drive("value__bytes", value_bytes)
    await wait_for(bench, written, 1, 1000)
    bench.check(len(written.cycles["value"]), 1, "values written")
    key_bytes = [{"data": byte, "last": 0} for byte in first.data.tolist()]
    key_bytes[-1]["last"] = 1
    bench.drive("key__bytes", key_bytes)
    await wait_for(bench, written, 2, 1000)
    for record in (first, second):
        found = target.data[record.address : record.address + len(record.data)]
        bench.check(found.tolist(), record.data.tolist(), record.side)


async def cancel_writes(bench: Bench) -> None:
    """Withdraw all inputs, and cancel."""
    dut, written = bench.dut, []

    def look() -> None:
        if dut.m_axi_wvalid.value == 1 and dut.m_axi_wready.value == 1:
            written.append(int(dut.m_axi_wstrb.value) != 0)

    await cancel(bench, "aw", look)
    bench.check(sum(written) <= 1, True, "only the word that was offered before cancel has strobes")


async def recover(bench: Bench, target: Target, records: list[Record]) -> None:
    """Check that `cancel` leaves only bytes of records changed, and write all records again."""
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
    """Check a failing burst: an error, no burst after it, and a rewrite of the same records."""
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
    await check_silence(bench, "aw", 300)
    count = written.count
    await cancel_writes(bench)
    bench.check(written.count, count, "records written after the error")
    bench.check({v.rule for v in rules.found}, rules.tolerated, "rules that the memory broke")
    rules.tolerated = set()
    await recover(bench, target, records)


@cocotb.test()
async def address_waits(dut: HierarchyObject) -> None:
    """Check that `cancel` keeps a burst whose address waits after all its words were taken."""
    bench = await Bench.start(dut, "record_writer")
    if bench.config.name != "tiny":  # all configurations take as long and show the same
        return
    target = Target(bench)
    drive(bench, random_records(bench, 16))
    while target.bursts < 4:
        await RisingEdge(dut.clk)
    target.pause(True, words=False)
    await ClockCycles(dut.clk, 3000)
    waiting = int(dut.m_axi_awvalid.value), int(dut.m_axi_wvalid.value)
    bench.check(waiting, (1, 0), "an address waits, its words do not")
    bench.withdraw()
    dut.cancel.value = 1
    for _ in range(66_000):
        await RisingEdge(dut.clk)
        bench.check(int(dut.idle.value), 0, "idle while an address waits")
    target.pause(False)
    await cancel_writes(bench)


@cocotb.test()
async def response_never_comes(dut: HierarchyObject) -> None:
    """Check that nothing counts as written without an answer.

    `cancel` gives up 65536 cycles after the last address and word were taken.
    """
    bench = await Bench.start(dut, "record_writer")
    target = Target(bench, failing=3, response="never")
    records = random_records(bench, 16)
    written = Written(bench)
    drive(bench, records)
    while target.bursts < 4:  # three of these were answered
        await RisingEdge(dut.clk)
    target.pause(True)
    await ClockCycles(dut.clk, 3000)
    bench.check(written.count <= 3, True, "records written before the memory fell silent")
    bench.check(int(dut.error.value), 0, "error: the port waits as long as nobody cancels")
    waiting = int(dut.m_axi_awvalid.value), int(dut.m_axi_wvalid.value)
    bench.check(waiting, (1, 1), "an address and a word wait")
    count = written.count
    bench.withdraw()
    dut.cancel.value = 1
    await ClockCycles(dut.clk, 2000)
    target.pause(False)
    await ClockCycles(dut.clk, 65_000)
    bench.check(int(dut.idle.value), 0, "idle 65000 cycles after the last word")
    await cancel_writes(bench)
    bench.check(written.count, count, "records written after cancel")
    target.heal()
    bench.buses["m_axi"].forget()
    await recover(bench, target, records)


# --- random events at any time --------------------------------------------------------------------

COVERAGE = Coverage(
    "record_writer",
    [
        Point(
            "ending",
            "How an episode ends.",
            {
                "well": "All is written.",
                "cancel": "Cancelled, at any cycle.",
                "reset": "Reset, at any cycle.",
                "slverr": "A burst is answered with SLVERR.",
                "decerr": "A burst is answered with DECERR.",
                "exokay": "A burst is answered with EXOKAY.",
            },
        ),
        Point(
            "fails",
            "Which burst of its record fails.",
            {
                "only": "The record is one burst.",
                "first": "The first of two.",
                "second": "The second of two.",
            },
        ),
        Point(
            "under_way",
            "What a cancel or reset meets.",
            {
                "nothing": "No record, and no burst that waits for its answer.",
                "bytes": "A record's bytes come.",
                "address": "An address waits to be taken.",
                "words": "A word waits to be taken.",
                "answers": "Bursts wait for their answers.",
            },
        ),
        Point("side", "Whose record it is.", {"key": "A key's.", "value": "A value's."}),
        Point(
            "digits",
            "Digits of a record.",
            {"one": "One.", "between": "More.", "most": "As many as there may be."},
        ),
        Point("residual", "Its code.", {"0": "One run.", "1": "A run a plane."}),
        Point(
            "slot",
            "Its slot.",
            {"first": "0.", "between": "Another.", "last": "The last that there may be."},
        ),
        Point("start", "Where it starts.", {"word": "At a word.", "inside": "Inside of a word."}),
        Point("end", "Where it ends.", {"word": "With a word.", "inside": "Inside of a word."}),
        Point(
            "page",
            "How it lies to the pages.",
            {
                "inside": "Inside of one.",
                "over": "Over an end.",
                "to the end": "Exactly up to an end.",
                "from the start": "Exactly from a start on.",
            },
        ),
        Point(
            "bus",
            "What was seen on the bus.",
            {
                "aw stalls": "An address waits.",
                "w stalls": "A word waits.",
                "aw full": "As many bursts are under way as may be.",
                "aw ends a page": "A burst ends exactly at a page.",
                "one beat": "The shortest burst.",
            },
        ),
    ],
)


def limit_record(bench: Bench, base: int, page: str) -> Record:
    """Draw a record with sizes often at a limit, somewhere in the 4 KiB from `base` on.

    Parameters
    ----------
    page : position relative to the page's end: a bin of the coverage
    """
    rng, config = bench.rng, bench.config
    word, most = config.memory_bits // 8, config.max_planes
    last_slot = config.max_context - 1
    while True:
        planes = int(rng.choice([1, most, int(rng.integers(1, most + 1))]))
        residual = int(rng.integers(2))
        slot = int(rng.choice([0, last_slot, int(rng.integers(config.max_context))]))
        length = vector_bytes(config, planes, planes if residual else 1)
        start = {
            "inside": base + int(rng.integers(PAGE - length)),
            "over": base + PAGE - int(rng.integers(1, length)),
            "to the end": base + PAGE - length,
            "from the start": base + PAGE,
        }[page]
        region = (start - slot * length) // word * word
        if page in ("to the end", "from the start") and (start - slot * length) % word:
            continue  # regions start at words, so this slot does not exist
        address = region + slot * length
        if region >= 0 and _page(address, length) == page:
            break
    side = SIDES[rng.integers(2)]
    payload = {"base": region, "slot": slot, "planes": planes, "residual": residual}
    digits = {1: "one", most: "most"}.get(planes, "between")
    place = {0: "first", last_slot: "last"}.get(slot, "between")
    COVERAGE.sample(side=side, digits=digits, residual=str(residual), slot=place, page=page)
    COVERAGE.sample(start="inside" if address % word else "word")
    COVERAGE.sample(end="inside" if (address + length) % word else "word")
    return Record(side, payload, address, rng.integers(0, 256, length).astype(np.uint8))


def _page(address: int, length: int) -> str:
    if address % PAGE == 0:
        return "from the start"
    if (address + length) % PAGE == 0:
        return "to the end"
    return "over" if address // PAGE != (address + length - 1) // PAGE else "inside"


class WriteEpisode(Episode):
    """An episode of record writes, with an end at any time."""

    def __init__(self, bench: Bench, memory: WriteMemory, ending: str) -> None:
        super().__init__(bench, "aw", COVERAGE, RESPONSES, ending)
        self.memory = memory
        self._written = dict.fromkeys(SIDES, 0)
        rng = bench.rng
        first = 4 + bench.config.max_context * largest_record_bytes(bench.config) // PAGE
        pages = [str(rng.choice(["inside", "over", "to the end", "from the start"]))]
        pages += [str(rng.choice(["inside", "over"])) for _ in range(int(rng.integers(0, 8)))]
        self.records = [
            limit_record(bench, (first + 3 * place) * PAGE, page)
            for place, page in enumerate(pages)
        ]
        self.before = rng.integers(0, 256, (first + 3 * len(pages) + 1) * PAGE).astype(np.uint8)
        memory.data = self.before.copy()

    async def run(self) -> None:
        """Run the episode; memory must hold all reported records and nothing but records."""
        bench, rng = self.bench, self.bench.rng
        bursts = sum(_bursts(record) for record in self.records)
        if self.ending in RESPONSES:
            self.memory.fails = len(self.memory.bursts) + int(rng.integers(bursts))
            self.memory.response = RESPONSES[self.ending]
            self.rules.tolerated = {Rule.EXOKAY} if self.ending == "exokay" else set()
        moment = int(rng.integers(1, 60 * len(self.records)))
        meets = str(rng.choice(["anything", "address", "words", "answers"]))
        drive(bench, self.records, "mixed")
        await self.play(moment, meets)
        if self.ending == "well":
            for side in SIDES:
                count = sum(record.side == side for record in self.records)
                bench.check(self._written[side], count, f"{side}s written")
            bench.check(self.rules.writes_under_way, 0, "bursts that wait for their answers")
            bench.withdraw()
        else:
            await self.abort(40)
            whole = len(self.memory.bursts)
            await ClockCycles(self.dut.clk, 30)
            bench.check(len(self.memory.bursts), whole, "bursts after the end")
        self._check_memory()
        if self.ending in RESPONSES:
            self._sample_failure()
        COVERAGE.sample(ending=self.ending)
        self.memory.fails = None

    def look(self) -> bool:
        for side in SIDES:
            self._written[side] += int(self.dut[f"{side}__written"].value)
        return sum(self._written.values()) == len(self.records)

    async def cancel(self) -> None:
        await cancel_writes(self.bench)

    def _check_memory(self) -> None:
        """Check that reported records are whole, others' bytes new or old, all else unchanged."""
        bench, data, written = self.bench, self.memory.data, self._written
        around = np.ones(len(data), bool)
        for side in SIDES:
            own = [record for record in self.records if record.side == side]
            for number, record in enumerate(own):
                place = slice(record.address, record.address + len(record.data))
                around[place] = False
                wrong = data[place] != record.data
                if number >= written[side]:
                    wrong &= data[place] != self.before[place]
                what = f"wrong bytes of {side} {number}, {written[side]} are written"
                bench.check(np.flatnonzero(wrong).tolist(), [], what)
        changed = np.flatnonzero(around & (data != self.before)).tolist()
        bench.check(changed, [], "bytes changed around the records")

    # --- coverage ---------------------------------------------------------------------------------

    def met(self) -> dict[str, bool]:
        dut = self.dut

        def waits(channel: str) -> bool:
            valid, ready = dut[f"m_axi_{channel}valid"].value, dut[f"m_axi_{channel}ready"].value
            return int(valid) == 1 and int(ready) == 0

        ports = [self.bench.drivers[f"{side}__bytes"] for side in SIDES]
        return {
            "anything": False,
            "bytes": any(port.cycles and current_cycle() - port.cycles[-1] < 4 for port in ports),
            "address": waits("aw"),
            "words": waits("w"),
            "answers": self.rules.writes_under_way > 0,
        }

    def _sample_failure(self) -> None:
        assert self.memory.fails is not None
        address, beats = self.memory.bursts[self.memory.fails]
        end = address + beats * self.bench.config.memory_bits // 8
        for record in self.records:
            if address < record.address + len(record.data) and record.address < end:
                which = "first" if address <= record.address else "second"
                COVERAGE.sample(fails=which if _bursts(record) == 2 else "only")


def _bursts(record: Record) -> int:
    """Return the number of bursts of a record."""
    return 1 + (_page(record.address, len(record.data)) == "over")


@cocotb.test()
async def anything_at_any_time(dut: HierarchyObject) -> None:
    """Run random episodes with random latencies one after the other; many are cut short."""
    bench = await Bench.start(dut, "record_writer")
    rng = bench.rng

    def latency() -> int:
        return int(rng.choice([1, 1, 5, 60, 300]))

    memory = WriteMemory(dut, "m_axi", np.zeros(0, np.uint8), latency)
    cocotb.start_soon(memory.serve(*(changing_stalls(bench.rng) for _ in range(3))))
    thorough = bench.config.name == "tiny"
    endings = ["well", *["cancel", "reset"] * 3, *RESPONSES]
    for _ in range(150 if thorough else 10):
        await WriteEpisode(bench, memory, str(rng.choice(endings))).run()
    if any(beats == 1 for _, beats in memory.bursts):
        COVERAGE.sample(bus="one beat")
    for name in ("aw stalls", "w stalls", "aw full", "aw ends a page"):
        if bench.buses["m_axi"].events.get(name):
            COVERAGE.sample(bus=name)
    if thorough:
        COVERAGE.finish(Path())
