"""Bench of the registers: cocotbext-axi's AXI4-Lite manager, and random traffic with a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.handle import HierarchyObject
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiResp

from kvtq_hw.contract.registers import WORD_BYTES, JobStatus, Kind, Register, register_map
from rtl.control import control_counters_layout, descriptor_layout
from sim.bench.bench import Bench
from sim.bench.coverage import Coverage, Point
from sim.bench.register_model import Inputs, RegisterModel
from sim.bench.streams import layout_of, stall_pattern
from sim.host.driver import Driver

REGISTERS = register_map()

_CLEARED = {"set": "It was set.", "clear": "It was not."}
_RACED = {**_CLEARED, "while it happens": "In the cycle in which it happens again."}
COVERAGE = Coverage(
    "control",
    [
        Point("write", "A write, by its address.", {"known": "In the map.", "unknown": "Outside."}),
        Point("read", "A read, by its address.", {"known": "In the map.", "unknown": "Outside."}),
        Point(
            "order",
            "Which part of a write was taken first.",
            {
                "together": "Both in one cycle.",
                "address first": "The word came later.",
                "word first": "The address came later.",
            },
        ),
        Point(
            "strobes",
            "Bytes of a word that are written.",
            {"none": "None.", "some": "Some.", "all": "All four."},
        ),
        Point(
            "kept",
            "What is kept while an answer waits for its taker.",
            {"write": "A whole write.", "read": "A read."},
        ),
        Point(
            "stalls",
            "A channel that waits for READY.",
            {name: f"{name.upper()}VALID waits." for name in ("aw", "w", "b", "ar", "r")},
        ),
        Point(
            "start",
            "Jobs in the queue when one more is started.",
            {"0 wait": "None.", "1 wait": "One.", "2 wait": "No room: the job is lost."},
        ),
        Point(
            "lost",
            "A job is started without room.",
            {"alone": "None leaves.", "while one leaves": "One leaves in the same cycle."},
        ),
        Point(
            "ends",
            "A job ends, beside a start in the same cycle or not.",
            {"alone": "No start.", "with start": "A start."},
        ),
        Point(
            "first_error",
            "A job that ends badly.",
            {"set": "The first since the event was cleared.", "kept": "Another was before."},
        ),
        Point("clear_done", "Software clears `done`.", _RACED),
        Point("clear_error", "Software clears `error`.", _RACED),
        Point("clear_overrun", "Software clears `overrun`; a start is another write.", _CLEARED),
        Point(
            "reset",
            "What reset ends.",
            {
                "nothing": "All was idle.",
                "an answer": "An answer that waits.",
                "a kept part": "An address, a word or a read that waits.",
                "a job": "A job in the queue.",
            },
        ),
    ],
)


async def start(dut: HierarchyObject, mix: str = "none") -> tuple[Bench, AxiLiteMaster]:
    """Start a test with a manager that pauses each of its channels."""
    master = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "axi"), dut.clk, dut.rst)
    bench = await Bench.start(dut, "control")
    write, read = master.write_if, master.read_if
    for channel in (
        write.aw_channel,
        write.w_channel,
        write.b_channel,
        read.ar_channel,
        read.r_channel,
    ):
        goes = stall_pattern(bench.stalls(mix), bench.rng.spawn(1)[0])
        channel.set_pause_generator(not go for go in goes)
    return bench, master


async def read(master: AxiLiteMaster, name: str, index: int = 0) -> dict[str, int]:
    """Read the fields of a register."""
    word = await master.read_dword(REGISTERS[name].address + WORD_BYTES * index)
    return REGISTERS[name].unpack(word)


async def write(master: AxiLiteMaster, name: str, **fields: int) -> None:
    """Write fields of a register; the other fields become zero."""
    await master.write_dword(REGISTERS[name].address, REGISTERS[name].pack(**fields))


def random_job(bench: Bench, shape: Any = None) -> Any:
    """Draw random bits for every field of a descriptor, by name."""
    layout = layout_of(shape or descriptor_layout(bench.config))
    assert layout is not None
    fields = {}
    for name, field in layout:
        if layout_of(field.shape) is not None:
            fields[name] = random_job(bench, field.shape)
        else:
            bits = int.from_bytes(bench.rng.bytes(8), "little") & ((1 << field.width) - 1)
            signed = getattr(field.shape, "signed", False)
            fields[name] = bits - (bits >> (field.width - 1) << field.width) if signed else bits
    return fields if isinstance(next(iter(fields)), str) else [fields[i] for i in sorted(fields)]


def stored_mask(register: Register) -> int:
    """Return the mask of register bits that software writes and reads back."""
    return sum(field.mask for field in register.fields if field.kind is Kind.STORED)


@cocotb.test(timeout_time=5, timeout_unit="ms")  # a lost answer hangs the manager
async def identity_and_resets(dut: HierarchyObject) -> None:
    """Check the registers that a driver reads first, and that unwritten registers are zero."""
    bench, master = await start(dut)
    config = bench.config
    bench.check((await master.read(0, 4)).data, b"KVTQ", "identity")
    shape = {
        "head_dim": config.head_dim,
        "query_group": config.query_group,
        "max_planes": config.max_planes,
    }
    bench.check(await read(master, "shape"), shape, "shape")
    bench.check(await read(master, "max_context"), {"tokens": config.max_context}, "max_context")
    bench.check(await read(master, "version"), {"major": 1, "minor": 2}, "version")
    bench.check(await read(master, "status"), {"free": 2, "pending": 0}, "status")
    for register in list(REGISTERS.values())[6:]:
        for index in range(register.count):
            found = await read(master, register.name, index)
            bench.check(set(found.values()), {0}, f"{register.name}[{index}]")
    bench.check(int(dut.irq.value), 0, "irq")


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(mix=("none", "mixed"))
async def stored_fields(dut: HierarchyObject, mix: str) -> None:
    """Check writes of one byte to several words, anywhere, and reads with the bytes beside them.

    Fields that software cannot write keep their values.
    """
    bench, master = await start(dut, mix)
    end = max(r.address + WORD_BYTES * r.count for r in REGISTERS.values())
    writable = np.zeros(end, dtype=np.uint8)
    for register in REGISTERS.values():
        for index in range(register.count):
            mask = stored_mask(register).to_bytes(WORD_BYTES, "little")
            at = register.address + WORD_BYTES * index
            writable[at : at + WORD_BYTES] = list(mask)
    memory = np.frombuffer((await master.read(0, end)).data, dtype=np.uint8).copy()
    control = REGISTERS["control"].address
    for _ in range(12):
        at = int(bench.rng.integers(end - 1))
        data = np.frombuffer(bench.rng.bytes(int(bench.rng.integers(1, 40))), dtype=np.uint8)
        data = data[: end - at]
        if at <= control < at + len(data):
            continue  # would start a job
        part = slice(at, at + len(data))
        await master.write(at, data.tobytes())
        memory[part] = memory[part] & ~writable[part] | data & writable[part]
        around = slice(max(at - 8, 0), min(at + len(data) + 8, end))
        found = (await master.read(around.start, around.stop - around.start)).data
        bench.check(list(found), memory[around].tolist(), f"{len(data)} bytes at {at:#x}")
    bench.check(list((await master.read(0, end)).data), memory.tolist(), "the whole map")


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(mix=("none", "mixed"))
async def jobs(dut: HierarchyObject, mix: str) -> None:
    """Check that descriptors pass the queue with all fields, in order, each once."""
    bench, master = await start(dut, mix)
    driver = Driver(bench.config)
    descriptions = [random_job(bench)]
    for _ in range(4):
        other = random_job(bench)
        some = bench.rng.choice(sorted(other), 3, replace=False)
        descriptions.append(descriptions[-1] | {name: other[name] for name in some})
    descriptions.insert(3, descriptions[2])  # needs a single write
    bench.expect("jobs", descriptions, mix)
    for number, job in enumerate(descriptions):
        while not (await read(master, "status"))["free"]:
            pass
        writes = driver.start(job)
        bench.check(len(writes) == 1, number == 3, f"job {number} is started by one write")
        for address, word in writes:
            await master.write_dword(address, word)
    await bench.finish()
    bench.check(await read(master, "status"), {"free": 2, "pending": 6}, "status")


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def a_job_too_many(dut: HierarchyObject) -> None:
    """Check that a third job is lost and reported while two wait, and that the two are intact."""
    bench, master = await start(dut)
    driver = Driver(bench.config)
    descriptions = [random_job(bench) for _ in range(3)]
    for number, job in enumerate(descriptions):
        for address, word in driver.start(job):
            await master.write_dword(address, word)
        overrun = (await read(master, "interrupt"))["overrun"]
        bench.check(overrun, number // 2, f"overrun after {number + 1} jobs")
        status = {"free": max(1 - number, 0), "pending": min(number + 1, 2)}
        bench.check(await read(master, "status"), status, "status")
    bench.expect("jobs", descriptions[:2])
    await bench.finish()


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def ends_of_jobs(dut: HierarchyObject) -> None:
    """Check status, number, first error and events, and the interrupt line by enabled events."""
    bench, master = await start(dut)
    await write(master, "interrupt_enable", error=1)
    statuses = [JobStatus.OK, JobStatus.READ_ERROR, JobStatus.OK, JobStatus.BAD_CODE]
    first = {"status": 0, "job": 0}
    for number, status in enumerate(statuses):
        dut.done__payload.value = int(status)
        dut.done__valid.value = 1
        await RisingEdge(dut.clk)
        dut.done__valid.value = 0
        if number == 1:
            first = {"status": int(status), "job": 1}
        bench.check(await read(master, "completed"), {"jobs": number + 1}, "completed")
        bench.check(await read(master, "last_status"), {"status": int(status)}, "last status")
        bench.check(await read(master, "first_error"), first, "first error")
        events = {"done": 1, "error": int(number > 0), "overrun": 0}
        bench.check(await read(master, "interrupt"), events, "interrupt")
        bench.check(int(dut.irq.value), int(number > 0), "irq")
    await write(master, "interrupt", error=1)
    bench.check(await read(master, "interrupt"), {"done": 1, "error": 0, "overrun": 0}, "cleared")
    bench.check(int(dut.irq.value), 0, "irq")
    await write(master, "interrupt_enable", done=1)
    await ClockCycles(dut.clk, 2)
    bench.check(int(dut.irq.value), 1, "irq for done")


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def an_event_outlives_its_clearing(dut: HierarchyObject) -> None:
    """Check that an event bit stays set if a job ends in the cycle that clears the bit."""
    bench = await Bench.start(dut, "control")
    enable, event = REGISTERS["interrupt_enable"], REGISTERS["interrupt"]
    first_error = REGISTERS["first_error"]
    await RisingEdge(dut.clk)
    dut.axi_bready.value = dut.axi_rready.value = dut.axi_arvalid.value = 1
    dut.axi_araddr.value = first_error.address
    dut.axi_wstrb.value = 15
    dut.done__payload.value = int(JobStatus.WRITE_ERROR)

    async def cycle(register: Register | None, word: int, ends: bool) -> None:
        """Write a register or none, and end a job if `ends`, in one cycle."""
        dut.axi_awvalid.value = dut.axi_wvalid.value = int(register is not None)
        dut.axi_awaddr.value = register.address if register else 0
        dut.axi_wdata.value = word
        dut.done__valid.value = int(ends)
        await RisingEdge(dut.clk)

    clear = event.pack(done=1, error=1)
    found = []
    for register, word, ends in (
        (enable, enable.pack(error=1), False),
        (None, 0, True),  # job 0
        (event, clear, True),  # job 1
        (None, 0, False),
        (event, clear, False),
        (None, 0, False),
        (None, 0, False),
    ):
        await cycle(register, word, ends)
        found.append((int(dut.irq.value), first_error.unpack(int(dut.axi_rdata.value))["job"]))
    # an edge samples the results of the cycle before it, and the read register of one cycle earlier
    bench.check([irq for irq, _ in found], [0, 0, 1, 1, 1, 0, 0], "irq by cycle")
    bench.check([job for _, job in found], [0, 0, 0, 0, 1, 1, 1], "first error by cycle")


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def counters(dut: HierarchyObject) -> None:
    """Check that each counter is read at its own address."""
    bench, master = await start(dut)
    layout = control_counters_layout()
    for _ in range(3):
        values = {name: int(bench.rng.integers(1 << 32)) for name, _ in layout}
        bench.set("counters", values)
        for name, value in values.items():
            bench.check(await read(master, name), {"count": value}, name)


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def answers(dut: HierarchyObject) -> None:
    """Check SLVERR outside the map, and that a write without the start bit's byte has no effect."""
    bench, master = await start(dut)
    known = {r.address + WORD_BYTES * i for r in REGISTERS.values() for i in range(r.count)}
    for address in range(0, 1 << 10, WORD_BYTES):
        expected = AxiResp.OKAY if address in known else AxiResp.SLVERR
        bench.check((await master.read(address, 4)).resp, expected, f"read of {address:#x}")
        if address != REGISTERS["control"].address:
            answer = await master.write(address, bytes(4))
            bench.check(answer.resp, expected, f"write of {address:#x}")
    await master.write(REGISTERS["control"].address + 1, b"\xff\xff\xff")
    bench.check(await read(master, "status"), {"free": 2, "pending": 0}, "status")


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def a_write_and_a_read_a_cycle(dut: HierarchyObject) -> None:
    """Check that address and word are taken in every cycle and answered in the next cycle."""
    bench = await Bench.start(dut, "control")
    register = REGISTERS["query_exponent"]
    await RisingEdge(dut.clk)
    for name in ("awvalid", "wvalid", "bready", "arvalid", "rready"):
        dut[f"axi_{name}"].value = 1
    dut.axi_wstrb.value = 15
    found = []
    for cycle, index in enumerate((*range(register.count), *repeat(0, 2))):
        dut.axi_awaddr.value = dut.axi_araddr.value = register.address + WORD_BYTES * index
        dut.axi_wdata.value = index + 1
        await RisingEdge(dut.clk)
        found.append(int(dut.axi_rdata.value))
        handshakes = (int(dut[f"axi_{name}"].value) for name in ("awready", "wready", "arready"))
        bench.check(list(handshakes), [1, 1, 1], f"taken in cycle {cycle}")
        answers = [int(dut.axi_bvalid.value), int(dut.axi_rvalid.value)]
        bench.check(answers, [int(cycle > 0)] * 2, f"answers in cycle {cycle}")
    # a read in the cycle of a write still returns the old value
    bench.check(found, [0] * (register.count + 1) + [1], "words read, a cycle later")


# --- random traffic, beside a model of the registers ----------------------------------------------


class Traffic:
    """Drives random values on all inputs, by the rules of the bus, and returns them per cycle.

    The probability that a side goes on is redrawn every few cycles, from no waits to few transfers.
    """

    PORTS = ("aw", "w", "ar", "b", "r", "jobs", "done")
    RUNNING = 6  # more jobs than are ever in flight outside the queue

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._rng = bench.rng
        self.offered: dict[str, Any] = {}
        self.counters: dict[str, int] = {}
        self._pace = dict.fromkeys(self.PORTS, 1.0)

    def withdraw(self) -> None:
        """Withdraw all offers, as in reset."""
        self.offered.clear()
        self._show({})

    def next(self, waiting: int, pending: int) -> Inputs:
        """Drive the inputs of a cycle with `waiting` jobs queued and `pending` jobs not ended."""
        rng, offered = self._rng, self.offered
        if rng.random() < 0.03:
            paces = rng.choice([0.05, 0.4, 1.0], len(self.PORTS), p=[0.3, 0.4, 0.3])
            self._pace = dict(zip(self.PORTS, paces.tolist(), strict=True))
            if rng.random() < 0.2:  # few offers come, and all are taken
                self._pace |= {"aw": 0.02, "w": 0.02, "ar": 0.02, "b": 1.0, "r": 1.0, "jobs": 1.0}
            if rng.random() < 0.4:  # jobs pile up
                self._pace |= {"aw": 1.0, "w": 1.0, "b": 1.0, "jobs": 0.15, "done": 0.5}
        if rng.random() < 0.03:
            self.counters = {
                name: int(rng.integers(1 << 32)) for name, _ in control_counters_layout()
            }
            self._bench.set("counters", self.counters)
        for channel, make in (("aw", self._written), ("w", self._word), ("ar", self._read)):
            if channel not in offered and rng.random() < self._pace[channel]:
                offered[channel] = make()
        goes = {port: rng.random() < self._pace[port] for port in ("b", "r", "jobs", "done")}
        goes["jobs"] &= pending - waiting < self.RUNNING
        ended = None
        if pending and goes["done"]:
            ended = int(rng.choice([0, *(status.value for status in JobStatus)]))
        inputs = Inputs(
            offered.get("aw"),
            offered.get("w"),
            offered.get("ar"),
            goes["b"],
            goes["r"],
            goes["jobs"],
            ended,
            self.counters,
        )
        self._show(goes, ended)
        return inputs

    def _written(self) -> int:
        """Draw an address to write, mostly of registers that start jobs or clear events."""
        return self._address("control", "control", "interrupt", "interrupt_enable")

    def _read(self) -> int:
        """Draw an address to read, mostly of registers that jobs change at their end."""
        return self._address("status", "completed", "last_status", "first_error", "interrupt")

    def _address(self, *names: str) -> int:
        """Draw a byte address of one of these registers, of any register, or anywhere."""
        rng = self._rng
        name = str(rng.choice([*names, "any", "outside"]))
        if name == "outside":
            return int(rng.integers(1 << 10))
        register = REGISTERS[str(rng.choice(list(REGISTERS))) if name == "any" else name]
        word = int(rng.integers(register.count))
        return register.address + WORD_BYTES * word + int(rng.integers(WORD_BYTES))

    def _word(self) -> tuple[int, int]:
        rng = self._rng
        strobes = int(rng.choice([15, 15, 15, 0, int(rng.integers(16))]))
        bits = "some" if 0 < strobes < 15 else "all" if strobes else "none"
        COVERAGE.sample(strobes=bits)
        data = int(rng.integers(1 << 32))
        return data | int(rng.random() < 0.5), strobes

    def _show(self, goes: Mapping[str, bool], ended: int | None = None) -> None:
        dut, offered = self._bench.dut, self.offered
        for channel in ("aw", "w", "ar"):
            getattr(dut, f"axi_{channel}valid").value = int(channel in offered)
        dut.axi_awaddr.value = offered.get("aw", 0)
        dut.axi_araddr.value = offered.get("ar", 0)
        dut.axi_wdata.value, dut.axi_wstrb.value = offered.get("w", (0, 0))
        dut.axi_bready.value, dut.axi_rready.value = int(goes.get("b", 0)), int(goes.get("r", 0))
        dut.jobs__ready.value = int(goes.get("jobs", 0))
        dut.done__valid.value = int(ended is not None)
        dut.done__payload.value = ended or 0


@dataclass(frozen=True)
class Outputs:
    """Output ports in a cycle; answers and payloads are None if nothing is offered."""

    ready: tuple[int, int, int]
    write_answer: int | None
    read_answer: tuple[int, int] | None
    job: int | None
    irq: int

    @classmethod
    def seen(cls, dut: HierarchyObject) -> Outputs:
        """Return the outputs of the design."""

        def value(name: str) -> int:
            return int(dut[name].value)

        return cls(
            (value("axi_awready"), value("axi_wready"), value("axi_arready")),
            value("axi_bresp") if value("axi_bvalid") else None,
            (value("axi_rdata"), value("axi_rresp")) if value("axi_rvalid") else None,
            value("jobs__payload") if value("jobs__valid") else None,
            value("irq"),
        )

    @classmethod
    def of(cls, model: RegisterModel) -> Outputs:
        """Return the outputs of the model."""
        kept = (model.kept_address, model.kept_word, model.kept_read)
        ready = tuple(int(part is None) for part in kept)
        job = model.queue[0] if model.queue else None
        return cls(ready, model.write_answer, model.read_answer, job, model.irq)  # type: ignore[arg-type]


def sample_cycle(model: RegisterModel, inputs: Inputs) -> None:
    """Sample the coverage of a cycle."""
    for point, bin_ in model.happened:
        COVERAGE.sample(**{point: bin_})
    if inputs.ended is not None:
        started = any(point == "start" for point, _ in model.happened)
        COVERAGE.sample(ends="with start" if started else "alone")
    if model.kept_address is not None and model.kept_word is not None:
        COVERAGE.sample(kept="write")
    if model.kept_read is not None:
        COVERAGE.sample(kept="read")


def sample_reset(model: RegisterModel) -> None:
    """Sample the coverage of the accesses and jobs that a reset ended."""
    ended = {
        "an answer": (model.write_answer, model.read_answer) != (None, None),
        "a kept part": (model.kept_address, model.kept_word, model.kept_read) != (None, None, None),
        "a job": bool(model.queue),
    }
    found = [name for name, holds in ended.items() if holds] or ["nothing"]
    for name in found:
        COVERAGE.sample(reset=name)


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def random_traffic(dut: HierarchyObject) -> None:
    """Compare all outputs in all cycles, under right and wrong accesses, job ends and resets."""
    bench = await Bench.start(dut, "control")
    edge = RisingEdge(dut.clk)
    model, traffic = RegisterModel(bench.config), Traffic(bench)
    bench.set("counters", {})
    traffic.counters = dict.fromkeys(control_counters_layout().members, 0)
    await edge
    for cycle in range(10_000):
        if bench.rng.random() < 0.002:
            for _ in range(int(bench.rng.integers(1, 3))):  # a second reset comes while all is idle
                sample_reset(model)
                traffic.withdraw()
                await bench.reset(int(bench.rng.integers(1, 4)))
                model.reset()
        inputs = traffic.next(len(model.queue), model.pending)
        await edge
        bench.check(Outputs.seen(dut), Outputs.of(model), f"outputs in cycle {cycle}")
        for channel, kept in (
            ("aw", model.kept_address),
            ("w", model.kept_word),
            ("ar", model.kept_read),
        ):
            if kept is None:
                traffic.offered.pop(channel, None)
        model.step(inputs)
        sample_cycle(model, inputs)
    for channel in ("aw", "w", "b", "ar", "r"):
        if bench.buses["axi"].events.get(f"{channel} stalls"):
            COVERAGE.sample(stalls=channel)
    COVERAGE.finish(Path())
