"""The driver in C: its descriptors beside Python's, its jobs on the verilated accelerator."""

from __future__ import annotations

import ctypes
import subprocess
from ctypes import byref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from bench_matrix import CONFIGS, TINY
from c_driver import (
    FLAGS,
    FUNCTIONS,
    Device,
    Failure,
    Head,
    Job,
    Memory,
    Result,
    Step,
    attach,
    code_of,
    compilers,
    device_of,
    format_of,
    load,
    words_of,
    write_sources,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from golden.quantizer import (
    BALANCED_RATIOS,
    FEEDBACK_RATIOS,
    RESIDUAL_RATIOS,
    absmean_constant,
)
from golden.tables import anchor_words
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.cycle_model import code_bound
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.layout import MemoryLayout
from kvtq_hw.contract.registers import JobStatus, register_map
from kvtq_hw.contract.tiers import Tiers
from sim.bench.heads import Heads, Output
from sim.bench.job_cases import WRONG
from sim.host.descriptors import HeadDescriptors
from sim.host.driver import descriptor_words
from sim.verilated.accelerator import AcceleratorJob, VerilatedAccelerator
from sim.verilated.interface import AccessKind

REGISTERS = register_map()
ADDRESS = {name: register.address for name, register in REGISTERS.items()}
DONE, ERROR, OVERRUN = (field.mask for field in REGISTERS["interrupt"].fields)


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> ctypes.CDLL:
    return load(tmp_path_factory.mktemp("driver"))


# --- what is compiled -----------------------------------------------------------------------------


def undefined_symbols(command: list[str], folder: Path) -> list[str]:
    """Compile the driver, look at its symbols, and return those that it takes from elsewhere."""
    subprocess.run([*command, "-c", "kvtq_driver.c", "-o", "driver.o"], cwd=folder, check=True)
    symbols = subprocess.run(
        ["nm", "-P", "driver.o"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout
    kinds = [line.split()[:2] for line in symbols.splitlines()]
    assert not [name for name, kind in kinds if kind in "CBDbd"]
    functions = [name for name, kind in kinds if kind == "T"]
    assert set(functions) == set(FUNCTIONS)
    return [name for name, kind in kinds if kind == "U"]


LEVELS = ["-O0", "-Os", "-O2", "-O3"]


@pytest.mark.parametrize("level", LEVELS)
def test_the_object_needs_no_library(level, tmp_path):
    """Every warning is an error, and nothing is undefined: no memcpy, no memset, no division."""
    write_sources(tmp_path)
    for compiler in compilers():
        assert undefined_symbols([compiler, *FLAGS, level], tmp_path) == []


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("machine", ["rv32im/ilp32", "rv64imac/lp64"])
def test_firmware_needs_no_library(machine, level, tmp_path, riscv):
    """Nor where the compiler would rather call memcpy: it counts bytes of code there."""
    write_sources(tmp_path)
    isa, abi = machine.split("/")
    command = [str(riscv.executable), f"-march={isa}", f"-mabi={abi}", *FLAGS, level]
    assert undefined_symbols(command, tmp_path) == []


def test_registers_in_memory(tmp_path):
    """The inline accesses of a firmware, and a device that is initialized at compile time."""
    write_sources(tmp_path)
    (tmp_path / "firmware.c").write_text(
        '#include "kvtq_driver.h"\n'
        "struct kvtq_device fixed = {.bus = KVTQ_MMIO(0x40000000u), .polls = 7u};\n"
        "enum kvtq_result opened(void *base, struct kvtq_device *device);\n"
        "enum kvtq_result opened(void *base, struct kvtq_device *device) {\n"
        "    const struct kvtq_bus bus = KVTQ_MMIO(base);\n"
        "    device->bus = bus;\n"
        "    kvtq_interrupt_enable(device, KVTQ_INTERRUPT_ERROR_MASK);\n"
        "    return kvtq_open(device);\n"
        "}\n"
    )
    command = [compilers()[0], *FLAGS, "-shared", "-fPIC", "firmware.c", "kvtq_driver.c"]
    subprocess.run([*command, "-o", "firmware.so"], cwd=tmp_path, check=True)
    library = ctypes.CDLL(str(tmp_path / "firmware.so"))
    fixed = Device.in_dll(library, "fixed")
    assert (fixed.bus.context, fixed.polls) == (0x40000000, 7)
    words, device = (ctypes.c_uint32 * 256)(), Device()
    for address, word in fresh_words().items():
        words[address // 4] = word
    assert library.opened(words, byref(device)) == Result.OK
    assert (device.head_dim, device.max_context) == (TINY.head_dim, TINY.max_context)
    assert words[ADDRESS["interrupt_enable"] // 4] == ERROR


def test_headers_of_tables_are_those_of_golden(tmp_path):
    write_sources(tmp_path)
    (tmp_path / "tables.c").write_text(
        '#include "kvtq_driver.h"\n'
        "uint32_t header(uint32_t table);\n"
        "uint32_t header(uint32_t table) {\n"
        "    return kvtq_table_header(KVTQ_ANCHORS_STATE, table);\n"
        "}\n"
    )
    command = [compilers()[0], *FLAGS, "-shared", "-fPIC", "tables.c", "-o", "tables.so"]
    subprocess.run(command, cwd=tmp_path, check=True)
    header = ctypes.CDLL(str(tmp_path / "tables.so")).header
    assert [header(table) for table in (0, 3, 999)] == [
        anchor_words(table, 0, [])[0] for table in (0, 3, 999)
    ]


# --- descriptors and addresses --------------------------------------------------------------------


@st.composite
def codes(draw) -> CacheCode:
    """Codes that the hardware computes, all options together."""
    digits, few = st.integers(1, 3), st.integers(0, 9)
    kind = draw(st.sampled_from(["balanced", "residual"]))
    tiers = Tiers(
        draw(few), draw(few), draw(st.none() | st.integers(1, 20)), draw(st.integers(0, 5))
    )
    return CacheCode(
        kind,
        draw(digits),
        draw(digits),
        tiers,
        draw(st.integers(1, 5)),
        kind == "balanced" and draw(st.booleans()),
        draw(st.sampled_from([None, "absmean"] + ["max"] * (kind == "residual"))),
    )


def placed(driver, config, code, layout, **fields) -> list[Head]:
    """Heads of a layout as C places them."""
    device, format_ = device_of(config), format_of(config)
    memory = Memory(layout.base, 1 << config.address_bits)
    heads = []
    for _ in layout.heads[0]:
        head = Head(code=code_of(code), table=len(heads), **fields)
        result = driver.kvtq_place_head(
            byref(device), byref(format_), layout.tokens, byref(memory), byref(head)
        )
        assert result == Result.OK
        heads.append(head)
    assert memory.next == layout.end
    return heads


def step_of(job) -> Step:
    """A step with the numbers that a job's host chooses; what follows from the code is left out."""
    step = Step(job["tokens"], job["append"], job["attend"], job["first"], job["value_exponent"])
    for name in ("query_exponent", "sink_maximum", "sink_weight"):
        getattr(step, name)[: len(job[name])] = job[name]
    return step


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_descriptors_are_those_of_python(driver, data):
    """All words of a descriptor, over codes, contexts and steps; and so the regions' addresses."""
    config = data.draw(st.sampled_from([TINY, CONFIGS["odd"], CONFIGS["smollm2"]]))
    code = data.draw(codes())
    word = config.memory_bits // 8
    layout = MemoryLayout(
        config,
        [code],
        2,
        data.draw(st.integers(1, config.max_context)),
        base=word * data.draw(st.integers(0, 50)),
    )
    threshold = data.draw(st.integers(0, 4095))
    rotate, centre = data.draw(st.booleans()), data.draw(st.booleans())
    try:
        descriptors = HeadDescriptors(
            layout, 0, 1, table=1, rotate=rotate, centre=centre, anchor_threshold=threshold
        )
    except UserError:  # anchors behind a long window, which the hardware refuses
        return
    heads = placed(
        driver, config, code, layout, rotate=rotate, centre=centre, anchor_threshold=threshold
    )
    append, attend = data.draw(st.sampled_from([(True, True), (True, False), (False, True)]))
    of_heads = {"min_size": config.query_group, "max_size": config.query_group}
    tokens = data.draw(st.integers(1, 20) | st.integers(1, 3 * config.max_context))
    job = descriptors.job(
        tokens,
        append=append,
        query_exponent=data.draw(st.lists(st.integers(-128, 127), **of_heads)) if attend else None,
        first=data.draw(st.booleans()),
        value_exponent=data.draw(st.integers(0, (1 << config.scale_exponent_bits) - 1)),
    )
    if attend:
        job["sink_maximum"] = data.draw(
            st.lists(st.integers(-(1 << 21), (1 << 21) - 1), **of_heads)
        )
        job["sink_weight"] = data.draw(st.lists(st.integers(0, (1 << 17) - 1), **of_heads))
    stored, found = job["tokens"], Job()
    step = step_of(job | {"tokens": tokens})
    result = driver.kvtq_describe(
        byref(device_of(config)), byref(heads[1]), byref(step), byref(found)
    )
    if stored > config.max_context:
        assert result == Result.TOKENS
        return
    assert result == Result.OK
    expected = dict.fromkeys(words_of(found), 0) | descriptor_words(config, job)
    assert words_of(found) == expected


@pytest.mark.parametrize("digits", range(1, 6))
def test_constants_at_every_head_dimension(driver, digits):
    """Ratios in thousandths give the constants of golden's ratios, for D = 4..256."""
    kinds = {
        "balanced": lambda side: [BALANCED_RATIOS[digits - 1]],
        "feedback": lambda side: [FEEDBACK_RATIOS[side][digits - 1]],
        "residual": lambda side: RESIDUAL_RATIOS[:digits],
    }
    for kind, ratios in kinds.items():
        head = Head()
        code = head.code
        code.key_digits = code.value_digits = code.tier_digits = digits
        code.absmean, code.residual, code.feedback = True, kind == "residual", kind == "feedback"
        for dim in range(4, 257):
            config, job = SimpleNamespace(head_dim=dim), Job()
            expected = {
                side: [absmean_constant(config, ratio) for ratio in ratios(side)]
                for side in ("key", "value")
            }
            device = Device(head_dim=dim, max_planes=5, max_context=9)
            result = driver.kvtq_describe(device, head, Step(tokens=1), job)
            if max(map(max, expected.values())) > 4095:  # more than the register has bits for
                assert (result, kind, digits > 3) == (Result.RANGE, "residual", True)
                code.absmean = False
                assert driver.kvtq_describe(device, head, Step(tokens=1), job) == Result.OK
                assert words_of(job)[ADDRESS["key_constant"] + 4 * 3] == 0
                code.absmean = True
                continue
            assert result == Result.OK
            words = words_of(job)
            for side, constants in expected.items():
                at = ADDRESS[f"{side}_constant"]
                runs = [words[at + 4 * run] for run in range(5)]
                assert runs == constants + [0] * (5 - len(constants))
            tier = absmean_constant(config, BALANCED_RATIOS[digits - 1])
            assert words[ADDRESS["tier_constant"]] == tier


def test_wrong_heads_are_refused_and_left_alone(driver):
    device, format_ = device_of(TINY), format_of(TINY)
    good = code_of(CacheCode.parse("balanced:2/1,sinks=2,window=3,feedback"))

    def result(tokens=20, memory=(0x100, 0x1000), **changes) -> Result:
        place, head = Memory(*memory), Head(code=good)
        for name, value in changes.items():
            setattr(head.code, name, value)
        before = bytes(head), bytes(place)
        found = driver.kvtq_place_head(device, format_, tokens, place, head)
        assert (found == Result.OK) == ((bytes(head), bytes(place)) != before)
        return found

    assert result() == Result.OK
    assert result(tokens=TINY.max_context) == Result.OK
    for tokens in (0, TINY.max_context + 1):
        assert result(tokens=tokens) == Result.TOKENS
    wrong = [
        {"key_digits": 0},
        {"value_digits": 6},
        {"tier_digits": 0},
        {"absmean": False},
        {"residual": True},
    ]
    for changes in wrong:
        assert result(**changes) == Result.CODE
    assert result(residual=True, feedback=False) == Result.OK
    assert result(anchors=1 << 16) == Result.RANGE
    assert result(memory=(0x102, 0x1000)) == Result.ALIGNMENT
    size = MemoryLayout(
        TINY, [CacheCode.parse("balanced:2/1,sinks=2,window=3,feedback")], 1, 20
    ).end
    assert result(memory=(0x100, 0x100 + size)) == Result.OK
    assert result(memory=(0x100, 0x100 + size - 1)) == Result.MEMORY
    assert result(memory=(0x100, 0xFC)) == Result.MEMORY


def test_wrong_steps_are_refused(driver):
    device, job = device_of(TINY), Job()
    head = Head(code=code_of(CacheCode.parse("balanced:2/1")))

    def result(tokens=5, place=1, **changes) -> Result:
        step = Step(tokens=tokens, attend=True)
        for name, value in changes.items():
            if name.startswith("sink_"):
                getattr(step, name)[place] = value
            else:
                setattr(step, name, value)
        return driver.kvtq_describe(device, head, step, job)

    assert [result(tokens=n) for n in (0, 1, 64, 65)] == [
        Result.TOKENS,
        Result.OK,
        Result.OK,
        Result.TOKENS,
    ]
    limits = {"sink_maximum": (1 << 21) - 1, "sink_weight": (1 << 17) - 1, "value_exponent": 31}
    for name, most in limits.items():
        assert result(**{name: most}) == Result.OK
        assert result(**{name: most + 1}) == Result.RANGE
    assert result(sink_maximum=-(1 << 21)) == Result.OK
    assert result(sink_maximum=-(1 << 21) - 1) == Result.RANGE
    # the hardware has two query heads, and a job that does not attend needs none
    assert result(sink_weight=1 << 17, place=2) == Result.OK
    assert result(sink_weight=1 << 17, attend=False) == Result.OK
    for name, most in {"table": 0xFFFF, "anchor_threshold": 4095}.items():
        setattr(head, name, most)
        assert result() == Result.OK
        setattr(head, name, most + 1)
        assert result() == Result.RANGE
        setattr(head, name, 0)


# --- registers without hardware -------------------------------------------------------------------


def fresh_words() -> dict[int, int]:
    """What every register reads after reset."""
    words = {}
    for register in REGISTERS.values():
        constants = {field.name: field.reset for field in register.fields}
        if register.name == "shape":
            constants = {name: getattr(TINY, name) for name in constants}
        elif register.name == "max_context":
            constants = {"tokens": TINY.max_context}
        elif register.name == "status":
            constants = {"free": 2}
        word = sum(constants[f.name] << f.low for f in register.fields if f.name in constants)
        words |= {register.address + 4 * index: word for index in range(register.count)}
    return words


class Words:
    """Registers that hold what is written; an address without a register is an error."""

    def __init__(self, **changed: int) -> None:
        self.words = fresh_words() | {ADDRESS[name]: word for name, word in changed.items()}
        self.reads: list[int] = []

    def read(self, address: int) -> int:
        self.reads.append(address)
        return self.words[address]

    def write(self, address: int, word: int) -> None:
        assert address in self.words
        self.words[address] = word


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, Result.OK),
        ({"identity": 0xFFFFFFFF}, Result.IDENTITY),
        ({"identity": 0x5154564A}, Result.IDENTITY),
        ({"version": 0x0202}, Result.VERSION),
        ({"version": 0x0103}, Result.VERSION),  # newer than this driver
        ({"version": 0x0100}, Result.OK),  # older: its map is part of the driver's
        ({"status": 1 << 4}, Result.TIMEOUT),
    ],
)
def test_open(driver, changed, expected):
    bus = Words(**changed)
    device = attach(Device(polls=5), bus)
    assert driver.kvtq_open(device) == expected
    if expected == Result.OK:
        shape = device.head_dim, device.query_group, device.max_planes, device.max_context
        assert shape == (TINY.head_dim, TINY.query_group, TINY.max_planes, TINY.max_context)
    if expected == Result.TIMEOUT:
        assert bus.reads.count(ADDRESS["status"]) == 5


def test_waits_are_bounded(driver):
    bus = Words()
    device = attach(Device(polls=0), bus)
    assert driver.kvtq_open(device) == Result.OK
    for polls in (0, 1, 9):
        device.polls = polls
        bus.words[ADDRESS["status"]], bus.reads = 0, []
        assert driver.kvtq_start(device, Job()) == Result.QUEUE_FULL
        assert bus.reads == [ADDRESS["status"]] * max(polls, 1)
        assert bus.words[ADDRESS["control"]] == 0
        bus.reads = []
        device.started = 1
        assert driver.kvtq_wait(device) == Result.TIMEOUT
        assert bus.reads == [ADDRESS["completed"]] * max(polls, 1)


def test_counts_of_jobs_wrap(driver):
    bus = Words(completed=0xFFFFFFFF)
    device = attach(Device(polls=1), bus)
    assert driver.kvtq_open(device) == Result.OK
    assert driver.kvtq_start(device, Job()) == Result.OK
    assert driver.kvtq_wait(device) == Result.TIMEOUT
    bus.words[ADDRESS["completed"]] = 0
    assert driver.kvtq_wait(device) == Result.OK


# --- on the verilated accelerator -----------------------------------------------------------------


class Board:
    """The accelerator of `tiny` with its memory, and the driver on it; golden heads beside them."""

    def __init__(self, driver, code: str, *, count: int = 2, threshold: int = 0) -> None:
        self.driver = driver
        self.heads = Heads(TINY, code, np.random.default_rng(3), count=count, threshold=threshold)
        self.writes: list[tuple[int, int]] = []
        self.device = attach(Device(polls=200), self)
        self.reset()
        assert driver.kvtq_open(self.device) == Result.OK
        options = {"rotate": True, "centre": True, "anchor_threshold": threshold}
        self.placed = placed(driver, TINY, self.heads.code, self.heads.layout, **options)

    def reset(self) -> None:
        """Begin with registers as after reset; the memory stays."""
        layout = self.heads.layout
        self.accelerator = VerilatedAccelerator(TINY, self.heads.memory, base=layout.base)
        packets = self.heads.tables()
        self.accelerator.load_tables([np.array(packet, np.uint32) for packet in packets])

    def read(self, address: int) -> int:
        return self.accelerator.access(AccessKind.READ, address)

    def write(self, address: int, word: int) -> None:
        self.writes.append((address, word))
        self.accelerator.access(AccessKind.WRITE, address, word)

    def described(self, plan) -> Job:
        """The descriptor of a planned job, by C."""
        job = Job()
        # the context's tokens: a descriptor has those that are stored
        step = step_of(plan.descriptor | {"tokens": self.heads.tokens(plan.head)})
        result = self.driver.kvtq_describe(self.device, self.placed[plan.head], step, job)
        assert result == Result.OK
        return job

    def arm(self, plans) -> None:
        self.accelerator.arm([AcceleratorJob({}, p.vectors, p.queries) for p in plans])

    def run(self, count: int, **what: bool) -> list:
        """Plan, start and await jobs of all heads in turn; compare with golden."""
        plans, jobs = [], []
        for number in range(count):
            plans.append(self.heads.plan(number % len(self.placed), **what))
            jobs.append(self.described(plans[-1]))
        self.arm(plans)
        for job in jobs:
            assert self.driver.kvtq_start(self.device, job) == Result.OK
        self.finish(plans)
        return plans

    def finish(self, plans) -> None:
        """Await the started jobs, and compare outputs and memory with golden."""
        assert self.driver.kvtq_wait(self.device) == Result.OK
        assert self.driver.kvtq_status(self.device, Failure()) == Result.OK
        outputs, exponents = self.accelerator.collect()
        found = [Output(*pair) for pair in zip(outputs, exponents.tolist(), strict=True)]
        assert self.heads.settle(plans, found) == 0

    def failure(self) -> tuple[int, int]:
        """Number and status of the first job that failed."""
        failure = Failure()
        assert self.driver.kvtq_status(self.device, failure) == Result.JOB
        return failure.job, failure.status

    def counter(self, name: str) -> int:
        return self.driver.kvtq_counter(self.device, ADDRESS[name])


CODES = {
    "sinks and window": ("balanced:2/1,sinks=2,window=3,feedback", 0),
    "residual": ("residual:2/2,scale=absmean,sinks=3,window=1", 0),
    "largest magnitudes": ("residual:3/1", 0),
    "sliding window": ("balanced:2/1,sinks=2,window=3,sliding=9,feedback", 0),
    "sliding window in the tier": ("balanced:1/2,window=6,sliding=5,tier=3", 0),
    "anchors": ("balanced:2/1,sinks=2,window=4,anchors=3,feedback", 3),
}


@pytest.mark.parametrize(("code", "threshold"), CODES.values(), ids=CODES)
def test_decode_steps(driver, code, threshold):
    """Appends and attention of heads, one by one and back to back, to the bit of golden."""
    sliding = (
        "sliding" in code
    )  # golden's image has no sinks that left: one head, as in the benches
    board = Board(driver, code, count=1 if sliding else 2, threshold=threshold)
    heads = len(board.placed)
    for jobs in (1, heads, 5 * heads, 7 * heads):
        board.run(jobs)
    if board.heads.code.tiers.anchors:
        assert board.counter("new_anchors") > 0
    if heads == 2:
        board.run(2, append=False)
        board.run(2, attend=False)
        board.run(4)


def test_counters_and_interrupts(driver):
    board = Board(driver, CODES["sinks and window"][0], count=1)
    assert driver.kvtq_interrupts(board.device) == 0
    assert driver.kvtq_idle(board.device)
    board.run(6)
    assert driver.kvtq_idle(board.device)
    slices = board.counter("key_slices") + board.counter("value_slices")
    assert slices == sum(code_bound(TINY, board.heads.code, tokens) for tokens in range(1, 7))
    assert board.counter("busy_cycles") >= slices
    assert driver.kvtq_interrupts(board.device) == DONE
    driver.kvtq_interrupt_clear(board.device, ERROR)
    assert driver.kvtq_interrupts(board.device) == DONE
    driver.kvtq_interrupt_clear(board.device, DONE)
    assert driver.kvtq_interrupts(board.device) == 0
    driver.kvtq_interrupt_enable(board.device, DONE | OVERRUN)
    assert board.read(ADDRESS["interrupt_enable"]) == DONE | OVERRUN


def test_only_changed_words_are_written(driver):
    """By a device that opens running hardware too: it reads what the registers hold."""
    board = Board(driver, CODES["sinks and window"][0], count=1)
    held = dict.fromkeys(words_of(Job()), 0)
    start = ADDRESS["control"], 1
    for opened_again in [False] * 4 + [True] * 2:
        if opened_again:
            board.device = attach(Device(polls=200), board)
            assert driver.kvtq_open(board.device) == Result.OK
        plan = board.heads.plan(0)
        job = board.described(plan)
        board.arm([plan])
        board.writes.clear()
        assert driver.kvtq_start(board.device, job) == Result.OK
        *changed, last = board.writes
        assert last == start
        assert changed == [pair for pair in words_of(job).items() if held[pair[0]] != pair[1]]
        assert changed
        held = words_of(job)
        board.finish([plan])


def test_a_reset_is_forgotten(driver):
    """After a reset the descriptor is written anew, and jobs are counted anew."""
    board = Board(driver, CODES["sinks and window"][0])
    board.run(6)
    board.reset()
    board.heads.restore_all()
    assert driver.kvtq_wait(board.device) == Result.TIMEOUT
    assert driver.kvtq_forget(board.device) == Result.OK
    board.run(6)


def test_a_job_without_vectors_times_out_and_fills_the_queue(driver):
    board = Board(driver, CODES["sinks and window"][0])
    board.device.polls = 20
    plans, job = [], None
    while True:
        plans.append(board.heads.plan(0))
        job = board.described(plans[-1])
        result = driver.kvtq_start(board.device, job)
        if result != Result.OK:
            break
    assert result == Result.QUEUE_FULL
    started = len(plans) - 1
    assert REGISTERS["status"].unpack(board.read(ADDRESS["status"])) == {
        "free": 0,
        "pending": started,
    }
    assert driver.kvtq_wait(board.device) == Result.TIMEOUT
    assert driver.kvtq_status(board.device, Failure()) == Result.OK
    # software that does not look starts a job, and it is lost
    board.write(ADDRESS["control"], 1)
    assert driver.kvtq_status(board.device, Failure()) == Result.OVERRUN
    driver.kvtq_interrupt_clear(board.device, OVERRUN)
    # the vectors come late, and everything goes on
    assert not driver.kvtq_idle(board.device)
    board.device.polls = 200
    board.arm(plans)
    assert driver.kvtq_start(board.device, job) == Result.OK
    board.finish(plans)


@pytest.mark.parametrize("wrong", ["no_tokens", "max_context+1", "key_digits_0"])
def test_jobs_that_the_hardware_refuses_are_named(driver, wrong):
    """The first of them, between jobs that end well."""
    board = Board(driver, CODES["sinks and window"][0])
    board.run(3)
    plans, jobs = [], []
    for head, kind in [(0, None), (1, wrong), (1, wrong), (0, None)]:
        plans.append(board.heads.plan(head, attend=kind is None, wrong=kind))
        jobs.append(Job() if kind else board.described(plans[-1]))
        if kind:
            for address, word in descriptor_words(TINY, plans[-1].descriptor).items():
                jobs[-1].words[(address - ADDRESS["job_flags"]) // 4] = word
    board.arm(plans)
    for job in jobs:
        assert driver.kvtq_start(board.device, job) == Result.OK
    status = WRONG[wrong].status
    assert driver.kvtq_wait(board.device) == Result.OK
    assert board.failure() == (4, status)
    outputs = [Output(*pair) for pair in zip(*board.accelerator.collect(), strict=True)]
    board.heads.settle(plans, outputs, [{"job": 1, "status": status}])
    driver.kvtq_interrupt_clear(board.device, ERROR)
    assert driver.kvtq_status(board.device, Failure()) == Result.OK
    board.run(4)


@pytest.mark.parametrize("region", ["key_sinks", "value_body", "value_window"])
def test_a_memory_that_does_not_answer_is_named(driver, region):
    """A job whose region is outside the memory; the next job ends well."""
    board = Board(driver, CODES["sinks and window"][0], count=1)
    board.run(7)
    plan = board.heads.plan(0, append=False)
    job = board.described(plan)
    job.words[(ADDRESS[region] - ADDRESS["job_flags"]) // 4] = board.heads.layout.end + 0x100
    board.arm([plan])
    assert driver.kvtq_start(board.device, job) == Result.OK
    assert driver.kvtq_wait(board.device) == Result.OK
    assert board.failure() == (7, JobStatus.READ_ERROR)
    driver.kvtq_interrupt_clear(board.device, ERROR)
    board.heads.restore_all()
    board.run(3)
