"""Bench of the record reader: all jobs from cocotbext-axi's memory, fences, bus errors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cocotb
import numpy as np
from cocotb.handle import HierarchyObject
from cocotb.task import Task
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import AxiReadBus, AxiSlaveRead
from numpy.typing import NDArray

from kvtq_hw.layout import VectorKind
from rtl.layouts import key_input_layout, value_input_layout
from rtl.memory_layouts import APPEND_BITS, read_job_layout
from sim.axi_memory import RESPONSES, Fault, ReadMemory
from sim.axi_rules import Rule
from sim.bench import Bench
from sim.records import Records, random_records
from sim.scoreboard import Mismatch, Scoreboard
from sim.streams import STALLS, pack, stall_pattern

KINDS: tuple[VectorKind, VectorKind] = ("key", "value")
TIERS = ("sinks", "body", "window")
PAGE = 4096
#: By fault, the rule of AXI that the memory breaks.
BROKEN_RULES = {
    "exokay": {Rule.EXOKAY},
    "early": {Rule.RLAST},
    "late": {Rule.RLAST},
    "never": {Rule.RLAST},
}


class Memory:
    """Bytes of a memory, and what is placed in it."""

    def __init__(self, bench: Bench, size: int = 1 << 19) -> None:
        self._bench = bench
        self.word = bench.config.memory_bits // 8
        self.data = bench.rng.integers(0, 256, size).astype(np.uint8)
        self._end = 0

    def place(self, records: NDArray[np.uint8]) -> int:
        """Write records from a word on, often just before the end of a page; returns the base."""
        base = self._end + self.word * int(self._bench.rng.integers(0, 3))
        if self._bench.rng.integers(3) == 0:
            to_page_end = -base % PAGE
            base += max(0, to_page_end - self.word * int(self._bench.rng.integers(1, 5)))
        self.data[base : base + records.size] = records.ravel()
        self._end = -(-(base + records.size) // self.word) * self.word
        if self._end > len(self.data):
            raise ValueError("the memory of the bench is full")
        return base


@dataclass(frozen=True)
class Job:
    """One job: its description, what is where, and what comes of it."""

    payload: dict[str, Any]
    records: dict[VectorKind, list[Records]]  # chronological
    tokens: int

    def slices(self, bench: Bench, kind: VectorKind) -> list[dict[str, Any]]:
        return [s for records in self.records[kind] for s in records.slices(bench.config)]


def random_job(
    bench: Bench,
    memory: Memory,
    counts: tuple[int, int, int] | None = None,
    planes: tuple[int, int, int] | None = None,
    residual: bool | None = None,
    appends: int = 0,
) -> Job:
    """A job whose records are placed in memory.

    Parameters
    ----------
    counts : tokens in sinks, body and window
    planes : digits of tiers, and of keys and values in the body
    """
    rng, config = bench.rng, bench.config
    if counts is None:
        most = config.block + 6
        numbers = [int(rng.choice([0, 1, int(rng.integers(most))])) for _ in TIERS]
        counts = (numbers[0], numbers[1], max(numbers[2], int(not any(numbers))))
    tier, key, value = planes or rng.integers(1, config.max_planes + 1, 3).tolist()
    residual = bool(rng.integers(2)) if residual is None else residual
    full = counts[2] > 0 and rng.integers(2)
    start = int(rng.integers(counts[2])) if full else 0

    bases: dict[str, dict[str, int]] = {}
    records: dict[VectorKind, list[Records]] = {}
    for kind, digits in zip(KINDS, (key, value), strict=True):
        bases[kind], records[kind] = {}, []
        for name, count in zip(TIERS, counts, strict=True):
            in_body = name == "body"
            some = random_records(
                rng, config, kind, count, digits if in_body else tier, in_body and residual
            )
            stored = np.roll(some.data, start, axis=0) if name == "window" else some.data
            bases[kind][name] = memory.place(stored)
            records[kind].append(some)
    payload = {
        "key": bases["key"],
        "value": bases["value"],
        "tier_digits": tier,
        "key_digits": key,
        "value_digits": value,
        "residual": int(residual),
        "sink_tokens": counts[0],
        "body_tokens": counts[1],
        "window_tokens": counts[2],
        "window_start": start,
        "appends": appends,
    }
    return Job(payload, records, sum(counts))


@dataclass(frozen=True)
class Fetch:
    """One token that leaves a window: its description and its records."""

    payload: dict[str, int]
    records: dict[VectorKind, Records]


def random_fetch(bench: Bench, memory: Memory, appends: int = 0) -> Fetch:
    """A fetch from windows that are placed in memory."""
    rng, config = bench.rng, bench.config
    count = int(rng.integers(1, 2 * config.block))
    slot, planes = int(rng.integers(count)), int(rng.integers(1, config.max_planes + 1))
    payload = {"slot": slot, "digits": planes, "appends": appends}
    records: dict[VectorKind, Records] = {}
    for kind in KINDS:
        window = random_records(rng, config, kind, count, planes, False)
        payload[f"{kind}_window"] = memory.place(window.data)
        records[kind] = window.part(slot, slot + 1)
    return Fetch(payload, records)


def order(bench: Bench, jobs: list[Job]) -> list[str]:
    """Kind of each slice: K block 0, then K block i+1 before V block i."""
    kinds: list[str] = []
    for job in jobs:
        slices: dict[str, list[int]] = {}
        for kind in KINDS:
            each = [
                count
                for records in job.records[kind]
                for count in records.slice_counts(bench.config)
            ]
            step = bench.config.block
            slices[kind] = [sum(each[i : i + step]) for i in range(0, job.tokens, step)]
        turns = [("key", 0)]
        for block in range(len(slices["key"])):
            turns += [("key", block + 1)] * (block + 1 < len(slices["key"]))
            turns.append(("value", block))
        kinds += [kind for kind, block in turns for _ in range(slices[kind][block])]
    return kinds


async def run(
    bench: Bench, jobs: list[Job], fetches: list[Fetch], mixes: tuple[str, str] = ("none", "none")
) -> None:
    """Run jobs and fetches beside each other, compare what comes, and the order of slices."""
    source, sink = mixes
    bench.drive("jobs", [job.payload for job in jobs], source)
    bench.drive("fetches", [fetch.payload for fetch in fetches], source)
    for kind in KINDS:
        bench.expect(f"{kind}s", [s for job in jobs for s in job.slices(bench, kind)], sink)
        planes = [p for f in fetches for p in f.records[kind].coded_planes()]
        bench.expect(f"leaving_{kind}s", planes, sink)
    pulses = {name: Pulses(bench, name) for name in ("job_read", "fetch_read")}
    await bench.finish(cycles_per_transfer=200)
    cycles = [(cycle, kind) for kind in KINDS for cycle in bench.sinks[f"{kind}s"].cycles]
    bench.check([kind for _, kind in sorted(cycles)], order(bench, jobs), "order of slices")
    bench.check(pulses["job_read"].count, len(jobs), "jobs read")
    bench.check(pulses["fetch_read"].count, len(fetches), "fetches read")
    bench.check(int(bench.dut.error.value), 0, "error")


class Pulses:
    """Counts the cycles in which an output is high."""

    def __init__(self, bench: Bench, port: str) -> None:
        self.count = 0
        cocotb.start_soon(self._watch(bench, port))

    async def _watch(self, bench: Bench, port: str) -> None:
        while True:
            await RisingEdge(bench.dut.clk)
            self.count += int(bench.dut[port].value)


class Target:
    """What cocotbext-axi's subordinate reads from: an address above the limit is an error."""

    def __init__(self, data: NDArray[np.uint8], limit: int | None = None) -> None:
        self._data = data
        self.limit = len(data) if limit is None else limit

    async def read(self, address: int, length: int) -> bytes:
        if address + length > self.limit:
            raise ValueError(f"nothing at {address:#x}")
        return self._data[address : address + length].tobytes()


def attach(bench: Bench, memory: Memory, mix: str = "none") -> Target:
    """cocotbext-axi's memory at the port, with pauses on both channels."""
    target = Target(memory.data)
    bus = AxiReadBus.from_prefix(bench.dut, "m_axi")
    slave = AxiSlaveRead(bus, bench.dut.clk, target=target)
    for channel in (slave.ar_channel, slave.r_channel):
        if mix != "none":
            pattern = stall_pattern(bench.stalls(mix), bench.rng.spawn(1)[0])
            channel.set_pause_generator(not go for go in pattern)
    return target


def some_fetches(bench: Bench, memory: Memory) -> list[Fetch]:
    return [random_fetch(bench, memory) for _ in range(3)]


@cocotb.test()
async def tiers(dut: HierarchyObject) -> None:
    """Each tier alone, together, a full ring at every start, blocks that end anywhere."""
    bench = await Bench.start(dut, "record_reader")
    block = bench.config.block
    memory = Memory(bench)
    attach(bench, memory)
    counts = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (0, 0, block + 1), (block, block, block)]
    counts += [(1, block - 1, 2), (0, 2 * block, 0), (block + 1, 0, 3), (2, 3 * block - 1, 5)]
    await run(
        bench, [random_job(bench, memory, count) for count in counts], some_fetches(bench, memory)
    )


@cocotb.test()
@cocotb.parametrize(memory_mix=STALLS, mix=("none", "mixed"))
async def random_jobs(dut: HierarchyObject, memory_mix: str, mix: str) -> None:
    """Random jobs and fetches, cocotbext-axi's memory pausing, gaps and back-pressure."""
    bench = await Bench.start(dut, "record_reader")
    memory = Memory(bench)
    attach(bench, memory, memory_mix)
    jobs = [random_job(bench, memory) for _ in range(3)]
    await run(bench, jobs, some_fetches(bench, memory), (mix, mix))


@cocotb.test()
async def pace(dut: HierarchyObject) -> None:
    """Blocks from a memory with latency: one slice a cycle or one word a cycle, without a gap."""
    bench = await Bench.start(dut, "record_reader")
    config = bench.config
    memory = Memory(bench)
    # what is read ahead is worth this many cycles, from address to the word's way out
    latency = min(100, config.read_ahead // 2 - 4)
    port = ReadMemory(dut, "m_axi", memory.data, latency)
    cocotb.start_soon(port.serve(itertools.repeat(True), itertools.repeat(True)))
    planes = (config.max_planes,) * 3
    jobs = [random_job(bench, memory, (0, 6 * config.block, 0), planes, False) for _ in range(2)]
    await run(bench, jobs, some_fetches(bench, memory))
    slices = sorted(bench.sinks["keys"].cycles + bench.sinks["values"].cycles)
    cycles = slices if len(slices) > len(port.beat_cycles) else port.beat_cycles
    taken = cycles[-1] - cycles[0] + 1
    # blocks of four tokens pass faster than pieces are asked for
    allowed = len(cycles) * (1 if config.block > 4 else 2)
    if not len(cycles) <= taken <= allowed:
        raise Mismatch(f"{taken} cycles for {len(slices)} slices, {len(port.beat_cycles)} words")


@cocotb.test()
async def fences(dut: HierarchyObject) -> None:
    """What an append writes is read after it, everything else before; counters wrap."""
    bench = await Bench.start(dut, "record_reader")
    config = bench.config
    memory = Memory(bench)
    attach(bench, memory)
    half = 1 << APPEND_BITS - 1
    appends = int(bench.rng.integers(1 << APPEND_BITS))
    behind = (appends - 1) % (1 << APPEND_BITS)
    for kind in KINDS:
        bench.set(f"{kind}s_appended", behind)
    job = random_job(bench, memory, (2, 2 * config.block, 3), appends=appends)
    fetch = random_fetch(bench, memory, appends=appends)
    # the newest records of body and window, and what leaves, are not what they will be
    places: list[slice] = []
    for kind in KINDS:
        _, body, window = job.records[kind]
        newest = (job.payload["window_start"] - 1) % 3
        for base, records, slot in (
            (job.payload[kind]["body"], body, 2 * config.block - 1),
            (job.payload[kind]["window"], window, newest),
            (fetch.payload[f"{kind}_window"], fetch.records[kind], fetch.payload["slot"]),
        ):
            size = records.data.shape[1]
            places.append(slice(base + slot * size, base + (slot + 1) * size))
    contents = [memory.data[place].copy() for place in places]
    for place in places:
        memory.data[place] ^= 255

    async def append() -> None:
        await ClockCycles(dut.clk, 40 * config.block * config.max_planes)
        bench.check(int(dut.fenced.value), 1, "a piece waits")
        # K 0, K 1 and V 0 have passed: with two sinks the body ends in block 2
        for kind, tokens in (("key", 2 * config.block), ("value", config.block)):
            sinks, body, _ = job.records[kind]  # type: ignore[index]
            counts = sinks.slice_counts(config) + body.slice_counts(config)
            came = len(bench.sinks[f"{kind}s"].payloads)
            bench.check(came, sum(counts[:tokens]), f"{kind} slices before the append")
            bench.check(len(bench.sinks[f"leaving_{kind}s"].payloads), 0, "leaving planes")
        for place, data in zip(places, contents, strict=True):
            memory.data[place] = data
        for kind in KINDS:
            ahead = int(bench.rng.integers(half))
            bench.set(f"{kind}s_appended", (appends + ahead) % (1 << APPEND_BITS))

    appending = cocotb.start_soon(append())
    await run(bench, [job], [fetch])
    await appending


def drain_slices(bench: Bench) -> None:
    """Take every slice that comes."""
    for kind in KINDS:
        cocotb.start_soon(bench.sinks[f"{kind}s"].drain(stalls(bench, "none")))


def take_slices(bench: Bench, job: Job) -> None:
    """See that the slices which came are the first ones of the job, and forget them."""
    layouts = (key_input_layout(bench.config), value_input_layout(bench.config))
    for kind, shape in zip(KINDS, layouts, strict=True):
        sink = bench.sinks[f"{kind}s"]
        Scoreboard(f"{kind}s", shape, job.slices(bench, kind)).compare(sink.payloads)
        sink.payloads.clear()
        sink.cycles.clear()


def offer(bench: Bench, job: Job) -> Task[None]:
    """Send one job."""
    bits = pack(read_job_layout(bench.config), job.payload)
    return cocotb.start_soon(bench.drivers["jobs"].send([bits], stalls(bench, "none")))


async def cancel(bench: Bench, offered: Task[None], patience: int) -> None:
    """Withdraw what is at the port, and cancel."""
    dut = bench.dut
    offered.cancel()
    dut.jobs__valid.value = 0
    dut.cancel.value = 1
    for _ in range(patience):
        await RisingEdge(dut.clk)
        if dut.idle.value == 1:
            break
    else:
        raise Mismatch(f"not idle within {patience} cycles of cancel")
    dut.cancel.value = 0
    await ClockCycles(dut.clk, 2)
    bench.check(int(dut.error.value), 0, "error after cancel")


async def failing_job(bench: Bench, job: Job, expected: int, patience: int = 3000) -> None:
    """Run a job that ends in an error, cancel it, and see that what came was right so far."""
    dut = bench.dut
    offered = offer(bench, job)
    edge = RisingEdge(dut.clk)
    for _ in range(20000):
        await edge
        if int(dut.error.value):
            break
    bench.check(int(dut.error.value), expected, "error")
    asked = 0
    for _ in range(150):
        await edge
        asked += int(dut.m_axi_arvalid.value) & int(dut.m_axi_arready.value)
    bench.check(asked <= 1, True, "only the address that was offered before the error")
    await cancel(bench, offered, patience)
    take_slices(bench, job)


async def recover(bench: Bench, memory: Memory) -> None:
    """After an error: jobs and fetches as if nothing had been."""
    await run(bench, [random_job(bench, memory) for _ in range(2)], some_fetches(bench, memory))


def stalls(bench: Bench, pattern: str) -> Iterator[bool]:
    return stall_pattern(pattern, bench.rng.spawn(1)[0])


@cocotb.test()
@cocotb.parametrize(kind=("slverr", "decerr", "exokay", "early", "late", "never"))
async def bus_errors(dut: HierarchyObject, kind: str) -> None:
    """Each fault in a burst of a job: an error, silence, and a next job that is right."""
    bench = await Bench.start(dut, "record_reader")
    memory = Memory(bench)
    planes = (bench.config.max_planes,) * 3
    job = random_job(bench, memory, (1, 3 * bench.config.block, 2), planes)
    code = RESPONSES.get(kind, RESPONSES["exokay"])
    fault = Fault(kind, int(bench.rng.integers(3)))  # type: ignore[arg-type]
    rules = bench.buses["m_axi"]
    rules.tolerated = BROKEN_RULES.get(kind, set())
    port = ReadMemory(dut, "m_axi", memory.data, 10, fault)
    cocotb.start_soon(port.serve(stalls(bench, "random"), stalls(bench, "random")))
    drain_slices(bench)
    await failing_job(bench, job, code, 70000 if kind == "never" else 3000)
    bench.check({v.rule for v in rules.found}, rules.tolerated, "rules that the memory broke")
    rules.tolerated = set()
    if kind == "never":
        rules.forget()
    await recover(bench, memory)


@cocotb.test()
async def error_of_the_memory(dut: HierarchyObject) -> None:
    """cocotbext-axi's memory says SLVERR above an address, again and again."""
    bench = await Bench.start(dut, "record_reader")
    memory = Memory(bench)
    target = attach(bench, memory, "random")
    drain_slices(bench)
    for _ in range(3):
        job = random_job(bench, memory, (1, 2 * bench.config.block, 2))
        target.limit = int(
            bench.rng.integers(job.payload["key"]["body"], job.payload["value"]["window"])
        )
        await failing_job(bench, job, RESPONSES["slverr"])
        target.limit = len(memory.data)
    await recover(bench, memory)


@cocotb.test()
async def cancel_in_mid_job(dut: HierarchyObject) -> None:
    """Cancel without an error, at any time."""
    bench = await Bench.start(dut, "record_reader")
    memory = Memory(bench)
    attach(bench, memory, "random")
    drain_slices(bench)
    for _ in range(4):
        job = random_job(bench, memory, (1, bench.config.block, 2))
        offered = offer(bench, job)
        await ClockCycles(dut.clk, int(bench.rng.integers(1, 100)))
        await cancel(bench, offered, 3000)
        take_slices(bench, job)
    await recover(bench, memory)
