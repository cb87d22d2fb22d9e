"""Bench of the record reader: all jobs from cocotbext-axi's memory, fences, bus errors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import cocotb
import numpy as np
from cocotb.handle import HierarchyObject
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import AxiReadBus, AxiSlaveRead
from numpy.typing import NDArray

from kvtq_hw.contract.layout import SIDES, Side
from rtl.layouts import coded_plane_layout, key_input_layout, value_input_layout
from rtl.memory_layouts import APPEND_BITS
from sim.bench.axi_memory import RESPONSES, Fault, ReadMemory
from sim.bench.axi_rules import Rule
from sim.bench.bench import Bench
from sim.bench.coverage import Coverage, Cross, Point
from sim.bench.episodes import Episode, cancel, check_silence, pause_channels
from sim.bench.read_jobs import (
    TIERS,
    Fetch,
    Job,
    Memory,
    order,
    random_fetch,
    random_job,
)
from sim.bench.scoreboard import Mismatch, Scoreboard
from sim.bench.streams import changing_stalls, stall_pattern

#: AXI rule that the memory breaks, by fault.
BROKEN_RULES = {
    "exokay": {Rule.EXOKAY},
    "early": {Rule.RLAST},
    "late": {Rule.RLAST},
}


async def run(
    bench: Bench, jobs: list[Job], fetches: list[Fetch], mixes: tuple[str, str] = ("none", "none")
) -> None:
    """Run jobs and fetches concurrently, and compare outputs and the order of slices."""
    source, sink = mixes
    bench.drive("jobs", [job.payload for job in jobs], source)
    bench.drive("fetches", [fetch.payload for fetch in fetches], source)
    for side in SIDES:
        bench.expect(f"{side}__slices", [s for job in jobs for s in job.slices(bench, side)], sink)
        planes = [p for f in fetches for p in f.records[side].coded_planes()]
        bench.expect(f"{side}__leaving", planes, sink)
    pulses = {name: Pulses(bench, name) for name in ("job_read", "fetch_read")}
    await bench.finish(cycles_per_transfer=200)
    cycles = [(cycle, side) for side in SIDES for cycle in bench.sinks[f"{side}__slices"].cycles]
    bench.check([side for _, side in sorted(cycles)], order(bench, jobs), "order of slices")
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
    """Target of cocotbext-axi's subordinate; reads above the address limit are errors."""

    def __init__(self, data: NDArray[np.uint8], limit: int | None = None) -> None:
        self._data = data
        self.limit = len(data) if limit is None else limit

    async def read(self, address: int, length: int) -> bytes:
        if address + length > self.limit:
            raise ValueError(f"nothing at {address:#x}")
        return self._data[address : address + length].tobytes()


def attach(bench: Bench, memory: Memory, mix: str = "none") -> Target:
    """Attach cocotbext-axi's memory to the port, with pauses on both channels."""
    target = Target(memory.data)
    bus = AxiReadBus.from_prefix(bench.dut, "m_axi")
    slave = AxiSlaveRead(bus, bench.dut.clk, target=target)
    pause_channels(bench, (slave.ar_channel, slave.r_channel), mix)
    return target


def some_fetches(bench: Bench, memory: Memory) -> list[Fetch]:
    return [random_fetch(bench, memory) for _ in range(3)]


@cocotb.test()
async def tiers(dut: HierarchyObject) -> None:
    """Check each tier alone, all tiers, a full ring at every start, and all block ends."""
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
@cocotb.parametrize(memory_mix=("none", "slow"), mix=("none", "mixed"))
async def random_jobs(dut: HierarchyObject, memory_mix: str, mix: str) -> None:
    """Check random jobs and fetches, under memory pauses, gaps and back-pressure."""
    bench = await Bench.start(dut, "record_reader")
    memory = Memory(bench)
    attach(bench, memory, memory_mix)
    jobs = [random_job(bench, memory) for _ in range(3)]
    await run(bench, jobs, some_fetches(bench, memory), (mix, mix))


@cocotb.test()
async def pace(dut: HierarchyObject) -> None:
    """Check blocks from a memory with latency: one slice or one word per cycle, without gaps."""
    bench = await Bench.start(dut, "record_reader")
    config = bench.config
    memory = Memory(bench)
    # reading ahead covers this many cycles, from the address to the word's output
    latency = min(100, config.read_ahead // 2 - 4)
    port = ReadMemory(dut, "m_axi", memory.data, latency)
    cocotb.start_soon(port.serve(itertools.repeat(True), itertools.repeat(True)))
    planes = (config.max_planes,) * 3
    jobs = [random_job(bench, memory, (0, 6 * config.block, 0), planes, False) for _ in range(2)]
    await run(bench, jobs, some_fetches(bench, memory))
    slices = sorted(bench.sinks["key__slices"].cycles + bench.sinks["value__slices"].cycles)
    cycles = slices if len(slices) > len(port.beat_cycles) else port.beat_cycles
    taken = cycles[-1] - cycles[0] + 1
    # blocks of four tokens pass faster than pieces are requested
    allowed = len(cycles) * (1 if config.block > 4 else 2)
    if not len(cycles) <= taken <= allowed:
        raise Mismatch(f"{taken} cycles for {len(slices)} slices, {len(port.beat_cycles)} words")


@cocotb.test()
@cocotb.parametrize(where=("body", "ring", "anchor"))
async def fences(dut: HierarchyObject, where: str) -> None:
    """Check that only an append's records wait for the append; counters wrap.

    The append writes the body's last record, or one in the middle of a ring, or a new anchor.
    """
    bench = await Bench.start(dut, "record_reader")
    config = bench.config
    memory = Memory(bench)
    attach(bench, memory)
    half = 1 << APPEND_BITS - 1
    appends = int(bench.rng.integers(1 << APPEND_BITS))
    behind = (appends - 1) % (1 << APPEND_BITS)
    for side in SIDES:
        bench.set(f"{side}__appended", behind)
    # with two sinks the body ends in block 2; the slot of the ring and the anchor are in block 1
    body_slot = config.block + 1 if where == "ring" else 2 * config.block - 1
    anchor = where == "anchor"
    tokens = (2 + anchor * config.block, 2 * config.block, 3)
    job = random_job(bench, memory, tokens, appends=appends, body_slot=body_slot, new_anchor=anchor)
    fetch = random_fetch(bench, memory, appends=appends)
    # the newest records of body and window, and of leaving tokens, are wrong until appended
    places = [p for side in SIDES for p in (*job.newest(side), fetch.place(side))]
    contents = [memory.data[place].copy() for place in places]
    for place in places:
        memory.data[place] ^= 255

    async def append() -> None:
        await ClockCycles(dut.clk, 40 * config.block * config.max_planes)
        bench.check(int(dut.fenced.value), 1, "a piece waits")
        # K 0 has passed, and where the newest record is in block 2, K 1 and V 0
        early = where != "body"
        passed = {"key": config.block, "value": 0} if early else {"key": 2 * config.block}
        for side, count in ({"value": config.block} | passed).items():
            sinks, body, _ = job.records[side]  # type: ignore[index]
            counts = sinks.slice_counts(config) + body.slice_counts(config)
            came = len(bench.sinks[f"{side}__slices"].payloads)
            bench.check(came, sum(counts[:count]), f"{side} slices before the append")
            bench.check(len(bench.sinks[f"{side}__leaving"].payloads), 0, "leaving planes")
        for place, data in zip(places, contents, strict=True):
            memory.data[place] = data
        for side in SIDES:
            ahead = int(bench.rng.integers(half))
            bench.set(f"{side}__appended", (appends + ahead) % (1 << APPEND_BITS))

    appending = cocotb.start_soon(append())
    await run(bench, [job], [fetch])
    await appending


def drain_slices(bench: Bench) -> None:
    """Take every slice."""
    for side in SIDES:
        cocotb.start_soon(bench.sinks[f"{side}__slices"].drain(stalls(bench, "none")))


def take_slices(bench: Bench, job: Job) -> None:
    """Check that the received slices are the first slices of the job, and drop them."""
    layouts = (key_input_layout(bench.config), value_input_layout(bench.config))
    for side, shape in zip(SIDES, layouts, strict=True):
        sink = bench.sinks[f"{side}__slices"]
        Scoreboard(f"{side}__slices", shape, job.slices(bench, side)).compare(sink.payloads)
        sink.payloads.clear()
        sink.cycles.clear()


async def failing_job(bench: Bench, job: Job, expected: int) -> None:
    """Run a job that ends in an error, cancel it, and check the slices received so far."""
    dut = bench.dut
    bench.drive("jobs", [job.payload])
    edge = RisingEdge(dut.clk)
    for _ in range(20000):
        await edge
        if int(dut.error.value):
            break
    bench.check(int(dut.error.value), expected, "error")
    await check_silence(bench, "ar", 150)
    await cancel(bench, "ar")
    take_slices(bench, job)


async def recover(bench: Bench, memory: Memory) -> None:
    """Check that jobs and fetches work after an error."""
    await run(bench, [random_job(bench, memory) for _ in range(2)], some_fetches(bench, memory))


def stalls(bench: Bench, pattern: str) -> Iterator[bool]:
    return stall_pattern(pattern, bench.rng.spawn(1)[0])


@cocotb.test()
@cocotb.parametrize(kind=("slverr", "decerr", "exokay", "early", "late"))
async def bus_errors(dut: HierarchyObject, kind: str) -> None:
    """Check each fault in a burst of a job: an error, silence, and a correct next job."""
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
    await failing_job(bench, job, code)
    bench.check({v.rule for v in rules.found}, rules.tolerated, "rules that the memory broke")
    rules.tolerated = set()
    await recover(bench, memory)


@cocotb.test()
async def error_of_the_memory(dut: HierarchyObject) -> None:
    """Check repeated SLVERR of cocotbext-axi's memory above an address limit."""
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
async def memory_falls_silent(dut: HierarchyObject) -> None:
    """Check `cancel` of a silent burst: it ends 65536 cycles after the last address was taken."""
    bench = await Bench.start(dut, "record_reader")
    memory = Memory(bench)
    planes = (bench.config.max_planes,) * 3
    job = random_job(bench, memory, (1, 3 * bench.config.block, 2), planes)
    port = ReadMemory(dut, "m_axi", memory.data, 10, Fault("silent", 1, 1))
    takes = True
    addresses = (takes for _ in itertools.count())
    cocotb.start_soon(port.serve(stalls(bench, "random"), addresses))
    drain_slices(bench)
    bench.drive("jobs", [job.payload])
    while len(port.bursts) < 2:
        await RisingEdge(dut.clk)
    takes = False
    await ClockCycles(dut.clk, 3000)
    bench.check(int(dut.error.value), 0, "error: the port waits as long as nobody cancels")
    bench.check(int(dut.m_axi_arvalid.value), 1, "an address waits")
    bench.withdraw()
    dut.cancel.value = 1
    await ClockCycles(dut.clk, 2000)
    takes = True
    await ClockCycles(dut.clk, 65_000)
    bench.check(int(dut.idle.value), 0, "idle 65000 cycles after the last address")
    await cancel(bench, "ar")
    take_slices(bench, job)
    port.restart()
    bench.buses["m_axi"].forget()
    await recover(bench, memory)


# --- random events at any time --------------------------------------------------------------------

#: Value of `error` after each fault of the memory.
_STRUCK = RESPONSES | dict.fromkeys(("early", "late"), RESPONSES["exokay"])
_NO_FAULT: dict[tuple[str | None, ...], str] = {
    (ending, None): "Nothing of the memory goes wrong." for ending in ("well", "cancel", "reset")
}
COVERAGE = Coverage(
    "record_reader",
    [
        Point(
            "ending",
            "How an episode ends.",
            {
                "well": "All has come.",
                "cancel": "Cancelled, at any cycle.",
                "reset": "Reset, at any cycle.",
                "slverr": "A beat says SLVERR.",
                "decerr": "A beat says DECERR.",
                "exokay": "A beat says EXOKAY.",
                "early": "RLAST before the last beat.",
                "late": "RLAST three beats behind it.",
            },
        ),
        Point(
            "owner",
            "Whose burst it is that goes wrong.",
            {"job": "A job's.", "fetch": "That of a token which leaves."},
        ),
        Point(
            "beat",
            "Which of the beats of more than one goes wrong.",
            {"first": "The first.", "middle": "One between.", "last": "The last."},
        ),
        Point(
            "under_way",
            "What a cancel or reset meets.",
            {
                "nothing": "No burst is under way, nothing waits.",
                "bursts": "Bursts are under way.",
                "slices": "A slice waits for its taker.",
                "planes": "A leaving plane waits for its taker.",
                "fence": "A piece waits for an append.",
            },
        ),
        Point(
            "waits_for",
            "The append that a piece waits for.",
            {
                "keys": "The key's alone.",
                "values": "The value's alone.",
                "both": "Both.",
            },
        ),
        Point(
            "tiers",
            "Tiers that a job has tokens in.",
            {
                "sinks": "Sinks alone.",
                "body": "Body alone.",
                "window": "Window alone.",
                "sinks+body": "No window.",
                "sinks+window": "No body.",
                "body+window": "No sinks.",
                "sinks+body+window": "All.",
            },
        ),
        Point(
            "tokens",
            "Tokens of a job, in blocks.",
            {
                "one": "One token.",
                "block - 1": "One less than a block.",
                "block": "A block.",
                "block + 1": "One more.",
                "blocks": "Several whole blocks.",
                "most": "As many as there may be.",
                "other": "Another number.",
            },
        ),
        Point("ring", "Where the window starts.", {"0": "Slot 0.", "other": "Another slot."}),
        Point(
            "digits",
            "Digits of a record.",
            {"one": "One.", "between": "More.", "most": "As many as there may be."},
        ),
        Point("residual", "The body's code.", {"0": "One run.", "1": "A run a plane."}),
        Point(
            "bus",
            "What was seen on the bus.",
            {
                "ar stalls": "An address waits.",
                "ar ends a page": "A burst ends exactly at a page.",
                "one beat": "The shortest burst.",
                "longest": "The longest burst.",
            },
        ),
    ],
    [Cross("struck", "Every fault in bursts of both.", ("ending", "owner"), _NO_FAULT)],
)


class ReadEpisode(Episode):
    """An episode of jobs and fetches that wait for appends, with an end at any time.

    A record is wrong in memory until its append.

    Parameters
    ----------
    owner : the job or fetch whose burst fails, if a burst fails and such a burst exists
    """

    STEPS = 2  # appends per episode

    def __init__(self, bench: Bench, port: ReadMemory, ending: str, owner: str) -> None:
        super().__init__(bench, "ar", COVERAGE, _STRUCK, ending)
        self.port, self._owner = port, owner
        rng = bench.rng
        self.memory = Memory(bench, 1 << 17)
        port.data = self.memory.data
        self.base = int(rng.integers(1 << APPEND_BITS))
        fetches = int(rng.integers(owner == "fetch", 3))
        jobs = int(rng.integers(owner == "job" or not fetches, 4))
        needs, leaving_needs = (
            np.sort(rng.integers(0, self.STEPS + 1, n)).tolist() for n in (jobs, fetches)
        )
        self.jobs = [self._job(need) for need in needs]
        self.fetches = [
            random_fetch(bench, self.memory, self._after(need)) for need in leaving_needs
        ]
        self.appended = dict.fromkeys(SIDES, 0)
        self._late: list[tuple[Side, int, slice]] = []
        for job, need in zip(self.jobs, needs, strict=True):
            self._late += [(side, need, place) for side in SIDES for place in job.newest(side)]
        for fetch, need in zip(self.fetches, leaving_needs, strict=True):
            self._late += [(side, need, fetch.place(side)) for side in SIDES]
        for _, need, place in self._late:
            if need:
                self.memory.data[place] ^= 255
        for side in SIDES:
            self._count(side)
        self._pulses = dict.fromkeys(("job_read", "fetch_read"), 0)
        self._boards = self._expected()

    def _after(self, appends: int) -> int:
        return (self.base + appends) % (1 << APPEND_BITS)

    def _job(self, need: int) -> Job:
        """Draw a job with sizes often at a limit."""
        rng, config = self.bench.rng, self.bench.config
        block = config.block
        limits = [1, block - 1, block, block + 1, 2 * block, 3 * block]
        total = int(rng.choice([*limits, int(rng.integers(1, 4 * block))]))
        if rng.random() < 0.04 and config.max_context <= 64:
            total = config.max_context
        tiers = rng.permutation(3)[: rng.integers(1, 4)]
        cuts = np.sort(rng.integers(0, total + 1, len(tiers) - 1))
        counts = [0, 0, 0]
        for tier, count in zip(tiers, np.diff([0, *cuts, total]), strict=True):
            counts[tier] = int(count)
        most = config.max_planes
        planes = rng.choice([1, most, int(rng.integers(1, most + 1))], 3).tolist()
        sinks, body, window = counts
        tier, key, value = planes
        job = random_job(
            self.bench,
            self.memory,
            (sinks, body, window),
            (tier, key, value),
            appends=self._after(need),
        )
        self._sample_job(job, counts, planes, total)
        return job

    def _sample_job(self, job: Job, counts: list[int], planes: list[int], total: int) -> None:
        block, most = self.bench.config.block, self.bench.config.max_planes
        sizes = {1: "one", block - 1: "block - 1", block: "block", block + 1: "block + 1"}
        sizes |= {self.bench.config.max_context: "most"}
        size = sizes.get(total, "other" if total % block else "blocks")
        present = [name for name, count in zip(TIERS, counts, strict=True) if count]
        ring = str(job.payload["window_start"]) if job.payload["window_start"] == 0 else "other"
        COVERAGE.sample(tokens=size, tiers="+".join(present), ring=ring)
        COVERAGE.sample(residual=str(job.payload["residual"]))
        for digits in planes:
            COVERAGE.sample(digits={1: "one", most: "most"}.get(digits, "between"))

    def _count(self, side: Side) -> None:
        self.bench.set(f"{side}__appended", self._after(self.appended[side]))

    async def _append(self, side: Side) -> None:
        """Put records into memory and count them, at random times."""
        for step in range(1, self.STEPS + 1):
            await ClockCycles(self.dut.clk, int(self.bench.rng.choice([1, 20, 200])))
            for of_side, need, place in self._late:
                if (of_side, need) == (side, step):
                    self.memory.data[place] ^= 255
            self.appended[side] = step
            self._count(side)

    def _expected(self) -> dict[str, Scoreboard]:
        config = self.bench.config
        boards = {}
        for side, shape in zip(
            SIDES, (key_input_layout(config), value_input_layout(config)), strict=True
        ):
            slices = [s for job in self.jobs for s in job.slices(self.bench, side)]
            planes = [p for f in self.fetches for p in f.records[side].coded_planes()]
            boards[f"{side}__slices"] = Scoreboard(f"{side}__slices", shape, slices)
            leaving = f"{side}__leaving"
            boards[leaving] = Scoreboard(leaving, coded_plane_layout(config), planes)
        return boards

    async def run(self) -> None:
        """Run the episode and compare all outputs that came."""
        bench, rng, boards = self.bench, self.bench.rng, self._boards
        moment = int(rng.integers(1, 60 * len(self.jobs) + 120))
        meets = str(rng.choice(["anything", "slices", "planes", "fence"]))
        if self.ending in _STRUCK:
            self._plan()
        bench.drive("jobs", [job.payload for job in self.jobs], "mixed")
        bench.drive("fetches", [fetch.payload for fetch in self.fetches], "mixed")
        appending = [cocotb.start_soon(self._append(side)) for side in SIDES]
        await self.play(moment, meets)
        for task in appending:
            task.cancel()
        if self.ending == "well":
            self._finish()
        else:
            await self.abort(30)
            self.port.restart()
            for name, board in boards.items():
                board.compare(bench.sinks[name].payloads)
        self._sample_end()
        for sink in bench.sinks.values():
            sink.payloads.clear()

    def look(self) -> bool:
        for name in self._pulses:
            self._pulses[name] += int(self.dut[name].value)
        if int(self.dut.fenced.value):
            self._sample_fence()
        if self.ending in _STRUCK and self.port.fault is None:
            return False  # the error has yet to come
        sinks = self.bench.sinks
        return all(len(sinks[name].payloads) >= len(b) for name, b in self._boards.items())

    def _finish(self) -> None:
        """Check that all outputs came, and nothing more."""
        for name, board in self._boards.items():
            received = self.bench.sinks[name].payloads
            if len(board):
                board.finish(received)
            else:
                self.bench.check(received, [], name)
        taken = {"job_read": len(self.jobs), "fetch_read": len(self.fetches)}
        self.bench.check(self._pulses, taken, "jobs and fetches read")
        self.bench.withdraw()
        self.port.fault = None

    def _plan(self) -> None:
        """Let the memory fail in the first burst that has the failing beat."""
        rng, within, beats = self.bench.rng, None, 3
        if self._owner == "fetch":
            place = self.fetches[0].place("key" if rng.integers(2) else "value")
            word = self.memory.word
            within = range(place.start // word * word, place.stop)
            beats = -(-len(within) // word)
        beat = int(rng.choice([0, beats - 1, int(rng.integers(beats))]))
        beat = max(beat - (self.ending == "early"), 0)
        burst = len(self.port.bursts) + int(rng.choice([0, 0, 1, 3])) * (within is None)
        self.port.fault = Fault(self.ending, burst, beat, within)  # type: ignore[arg-type]
        self.port.aftermath = int(rng.choice([0, RESPONSES["slverr"], RESPONSES["decerr"]]))
        self.rules.tolerated = BROKEN_RULES.get(self.ending, set())

    async def cancel(self) -> None:
        sinks = self.bench.sinks.values()
        for sink in sinks:
            sink.in_reset = True  # a waiting slice is withdrawn
        await cancel(self.bench, "ar")
        for sink in sinks:
            sink.in_reset = False

    # --- coverage ---------------------------------------------------------------------------------

    def _sample_fence(self) -> None:
        behind = [f"{side}s" for side in SIDES if self.appended[side] < self.STEPS]
        if behind:
            COVERAGE.sample(waits_for=behind[0] if len(behind) == 1 else "both")

    def met(self) -> dict[str, bool]:
        dut = self.dut

        def waits(port: str) -> bool:
            return int(dut[f"{port}__valid"].value) == 1 and int(dut[f"{port}__ready"].value) == 0

        return {
            "anything": False,
            "bursts": self.rules.reads_under_way > 0,
            "slices": any(waits(f"{side}__slices") for side in SIDES),
            "planes": any(waits(f"{side}__leaving") for side in SIDES),
            "fence": bool(int(dut.fenced.value)),
        }

    def _sample_end(self) -> None:
        if self.ending not in _STRUCK:
            COVERAGE.sample(ending=self.ending)
            return
        assert self.port.struck is not None
        address, beats, beat = self.port.struck
        windows = [fetch.place(side) for fetch in self.fetches for side in SIDES]
        word = self.memory.word
        of_fetch = any(place.start // word * word <= address < place.stop for place in windows)
        COVERAGE.sample(ending=self.ending, owner="fetch" if of_fetch else "job")
        if beats > 1:
            place = "first" if beat == 0 else "last" if beat == beats - 1 else "middle"
            COVERAGE.sample(beat=place)


@cocotb.test()
async def anything_at_any_time(dut: HierarchyObject) -> None:
    """Run random episodes with random latencies one after the other; some of them fail."""
    bench = await Bench.start(dut, "record_reader")
    rng, config = bench.rng, bench.config
    latencies = iter(lambda: int(rng.choice([1, 1, 5, 60])), None)
    port = ReadMemory(dut, "m_axi", np.zeros(0, np.uint8), lambda: next(latencies))
    cocotb.start_soon(port.serve(changing_stalls(bench.rng), changing_stalls(bench.rng)))
    for sink in bench.sinks.values():
        cocotb.start_soon(sink.drain(changing_stalls(bench.rng)))
    thorough = config.name == "tiny"
    faults = [(kind, owner) for kind in _STRUCK for owner in ("job", "fetch")]
    endings = [*faults, *[("cancel", ""), ("reset", "")] * 6, *[("well", "")] * 2]
    for _ in range(5 if thorough else 1):
        for number in rng.permutation(len(endings))[: None if thorough else 10]:
            await ReadEpisode(bench, port, *endings[number]).run()
    longest = min(config.read_ahead // 2, 256)
    for name, number in (("one beat", 1), ("longest", longest)):
        if any(beats == number for _, beats in port.bursts):
            COVERAGE.sample(bus=name)
    for name in ("ar stalls", "ar ends a page"):
        if bench.buses["m_axi"].events.get(name):
            COVERAGE.sample(bus=name)
    if thorough:
        COVERAGE.finish(Path())
