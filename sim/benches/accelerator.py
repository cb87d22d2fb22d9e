"""Bench of the accelerator: decode steps of KV heads, with errors and resets.

`sim.bench.machine` provides buses, memory and host. Golden heads (`sim.bench.heads`) define the
expected outputs and memory. The required coverage is declared here: a bin without a hit fails the
bench.
"""

from __future__ import annotations

from pathlib import Path

import cocotb
import numpy as np
from cocotb.handle import HierarchyObject
from cocotb.triggers import ClockCycles, RisingEdge

from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.layout import MemoryLayout
from kvtq_hw.contract.tiers import Tiers
from sim.bench.bench import bench_config
from sim.bench.coverage import Coverage, Cross, Point
from sim.bench.heads import page_before
from sim.bench.job_cases import WRONG
from sim.bench.machine import CHANNELS, FAULTS, Machine
from sim.bench.scoreboard import Mismatch

CODES = (
    "balanced:2/1,sinks=2,window=3,feedback",
    "balanced:3/2",
    "balanced:1/2,window=1",
    "residual:2/3,sinks=1,window=4",
    "residual:2/2,scale=absmean,sinks=3",
    "balanced:2/2,sinks=2,window=2,tier=3,feedback",
)
#: Layers with a sliding window, over contexts of more than twice its tokens.
SLIDING = (
    "balanced:2/1,sinks=2,window=3,sliding=9,feedback",
    "balanced:2/3,sliding=3",  # shorter than a block, without a window in the tier
    "balanced:1/2,window=6,sliding=5",  # all tokens in the tier
    "residual:2/1,sinks=3,window=1,sliding=10",
    "balanced:3/2,window=2,sliding=14,tier=3",
)
#: Codes with anchors, each with the hits from which on a token becomes one.
ANCHORED = {
    "balanced:2/1,sinks=2,window=3,anchors=3,feedback": 20,
    "balanced:1/2,window=1,anchors=2": 0,  # no token gets a hit; the first two become anchors
    "residual:2/3,sinks=1,window=4,anchors=40,tier=4": 30,  # more places than there will be tokens
    "balanced:3/2,sinks=3,window=5,anchors=2,tier=3": 40,
    "balanced:2/2,window=6,anchors=9": 0,  # all tokens become anchors
}
_PAGE = 4096
_STALL = 200  # cycles
_TRIES = 24  # most streams of jobs until a fault meets its state

_STATES = {
    "outputs": "Outputs of a job are offered.",
    "owed": "The host has not given all elements of the jobs that it started.",
    "reading": "A read waits for its answer.",
    "writing": "A word is written, or a write waits for its answer.",
}

COVERAGE = Coverage(
    "accelerator",
    [
        Point("wrong", "In what a descriptor is wrong.", {k: w.meaning for k, w in WRONG.items()}),
        Point(
            "fault",
            "What ends the jobs in flight.",
            {
                **{name: f"The memory's answer; {FAULTS[name].name} follows." for name in FAULTS},
                "reset": "The accelerator is reset.",
            },
        ),
        Point("state", "What is going on in the cycle of that; each that applies.", _STATES),
        Point(
            "failed",
            "Jobs that end with an error of the memory.",
            {"1": "One.", "2": "Two or more."},
        ),
        Point(
            "stalled",
            f"A channel on which nothing moves for {_STALL} cycles.",
            {name: f"That of `{name}`." for name in CHANNELS},
        ),
        Point(
            "late",
            f"An answer to a burst that comes {_STALL} cycles after an error.",
            {"r": "Of a read.", "b": "Of a write."},
        ),
        Point(
            "page",
            "A 4 KiB page.",
            {
                "ar_ends": "A burst of reads ends with it.",
                "ar_begins": "The next one begins behind it.",
                "aw_ends": "A burst of writes ends with it.",
                "aw_begins": "The next one begins behind it.",
            },
        ),
        Point(
            "ring",
            "The body of a layer with a sliding window, where a job appends and attends.",
            {
                "grows": "It is not full.",
                "first": "The leaving token takes its first slot again.",
                "between": "The leaving token takes a slot that is neither the first nor the last.",
                "last": "The leaving token takes its last slot again.",
                "none": "All tokens of the sliding window are in the tier.",
            },
        ),
        Point(
            "anchor",
            "A token that comes to a window, in a head with anchors.",
            {
                "none_leaves": "The window is not full yet.",
                "few_hits": "The token that leaves has too few hits.",
                "first": "The token that leaves becomes the first anchor.",
                "next": "It becomes another anchor.",
                "full": "It has enough hits, and no place is free.",
                "empty": "All tokens that have left are anchors.",
            },
        ),
        Point(
            "context",
            "Tokens of a job.",
            {
                "1": "One.",
                "max_context": "As many as the accelerator takes.",
                "max_context+1": "One more: refused.",
            },
        ),
    ],
    [Cross("fault_in_state", "Each fault, and a reset, in each state.", ("fault", "state"))],
)


def states(machine: Machine) -> list[str]:
    """Return the names of `_STATES` that hold now."""
    dut = machine.dut
    found = {
        "outputs": dut.m_axis_output_tvalid.value == 1,
        "owed": not (machine.pairs.idle() and machine.queries.idle()),
        "reading": dut.m_axi_rvalid.value == 1 or not machine.channels["r"].empty(),
        "writing": dut.m_axi_wvalid.value == 1 or not machine.channels["b"].empty(),
    }
    return [name for name, holds in found.items() if holds]


async def fill(machine: Machine) -> None:
    """Append some tokens to each head."""
    for _ in range(5):
        for head in range(2):
            await machine.step(head, attend=False)
    await machine.settle()


async def random_steps(machine: Machine, count: int, wrong: float = 0.2) -> None:
    """Run jobs of both heads, some of them wrong; right jobs attend."""
    rng = machine.rng
    for _ in range(count):
        head = int(rng.integers(2))
        full = machine.heads.tokens(head) == machine.heads.layout.tokens
        append = machine.heads.tokens(head) == 0 or bool(not full and rng.random() < 0.7)
        kind = str(rng.choice(list(WRONG))) if rng.random() < wrong else None
        await machine.step(head, append=append, wrong=kind)
        if kind:
            COVERAGE.sample(wrong=kind)


@cocotb.test()
@cocotb.parametrize(code=CODES, pausing=(False, True))
async def life(dut: HierarchyObject, code: str, pausing: bool) -> None:
    """Run decode steps of two heads from the first token on, with jobs back to back."""
    machine = Machine(dut, code)
    await machine.start(pausing=CHANNELS if pausing else ())
    words = {"r": 0, "w": 0}
    for channel in words:
        cocotb.start_soon(count_words(dut, channel, words))
    runs = [0]
    cocotb.start_soon(count_runs(dut, runs))
    for _ in range(10):
        for head in range(2):
            await machine.step(head)
    await machine.settle()
    if not pausing and max(runs) < bench_config().head_dim:
        raise Mismatch(f"s_axis_key_value: {max(runs)} beats at most in cycles one after the other")
    for channel, register in (("r", "read_words"), ("w", "written_words")):
        counted = (await machine.read(register))["count"]
        if not 0 < counted == words[channel]:
            raise Mismatch(f"{register}: {counted}, the port had {words[channel]}")
    COVERAGE.sample(context="1")


async def count_words(dut: HierarchyObject, channel: str, words: dict[str, int]) -> None:
    """Count the words that a data channel of the memory port transfers."""
    valid, ready = dut[f"m_axi_{channel}valid"], dut[f"m_axi_{channel}ready"]
    while True:
        await RisingEdge(dut.clk)
        words[channel] += int(valid.value == 1 and ready.value == 1)


async def count_runs(dut: HierarchyObject, runs: list[int]) -> None:
    """Append to `runs` the length of each run of cycles that take a key and a value element."""
    while True:
        await RisingEdge(dut.clk)
        if dut.s_axis_key_value_tvalid.value == 1 and dut.s_axis_key_value_tready.value == 1:
            runs[-1] += 1
        elif runs[-1]:
            runs.append(0)


@cocotb.test()
@cocotb.parametrize(code=SLIDING)
async def sliding_window(dut: HierarchyObject, code: str) -> None:
    """Run decode steps until every slot of the rings has been written twice, jobs back to back.

    For every other code the buses and streams pause at random.
    """
    pausing = SLIDING.index(code) % 2 == 0
    tiers = CacheCode.parse(code).tiers
    steps = 2 * (tiers.sliding or 0) + 4
    machine = Machine(dut, code, tokens=steps, count=1)
    await machine.start(pausing=CHANNELS if pausing else ())
    for tokens in range(1, steps + 1):
        await machine.step(0)
        COVERAGE.sample(ring=ring_state(tiers, tokens))
    await machine.settle()


def ring_state(tiers: Tiers, tokens: int) -> str:
    """Return the bin of the point `ring` for a job that appends the last of `tokens` tokens."""
    spread = tiers.spread(tokens)
    if not tiers.body_slots:
        return "none"
    if not spread.body or spread.body > tiers.spread(tokens - 1).body:
        return "grows"
    return {0: "first", tiers.body_slots - 1: "last"}.get(spread.body_slot, "between")


@cocotb.test()
@cocotb.parametrize(code=tuple(ANCHORED), pausing=(False, True))
async def anchors(dut: HierarchyObject, code: str, pausing: bool) -> None:
    """Run jobs of two heads in any order, often of one head back to back, with anchors."""
    machine = Machine(dut, code, threshold=ANCHORED[code])
    await machine.start(pausing=CHANNELS if pausing else ())
    head = 0
    for _ in range(44):
        head = head ^ int(machine.rng.random() < 0.4)
        tokens = machine.heads.tokens(head)
        append = not tokens or (tokens < 24 and bool(machine.rng.random() < 0.85))
        attend = not append or bool(machine.rng.random() < 0.85)
        await machine.step(head, append=append, attend=attend)
    await machine.settle()
    found = sample_anchors(machine)
    counted = (await machine.read("new_anchors"))["count"]
    if counted != found:
        raise Mismatch(f"new_anchors: {counted}, the golden heads have {found}")


def sample_anchors(machine: Machine) -> int:
    """Count what became of the tokens of all heads so far; return the number of new anchors."""
    found = 0
    for job, decision in machine.heads.decisions:
        if not job["window_tokens"]:
            continue
        kind = "none_leaves"
        if job["leaving"]:
            kind = ("first", "next")[decision.before > 0] if decision.promoted else "few_hits"
            if decision.before == job["anchors"]:
                kind = "full"
            if decision.after == job["body_tokens"]:
                COVERAGE.sample(anchor="empty")
        COVERAGE.sample(anchor=kind)
        found += decision.promoted
    return found


@cocotb.test()
@cocotb.parametrize(fault=("r_slverr", "b_slverr", "reset"))
async def anchors_after_faults(dut: HierarchyObject, fault: str) -> None:
    """Cause faults and resets in jobs with anchors: other heads' hits and anchors stay."""
    code = next(iter(ANCHORED))
    machine = Machine(dut, code, threshold=ANCHORED[code], count=4)
    await machine.start()
    for _ in range(6):
        for head in range(4):
            await machine.step(head)
    await machine.settle()
    for number in range(12):
        after = int(machine.rng.integers(40 if fault.startswith("r_") else 6))
        if fault != "reset":
            machine.fail(fault, after)
        for head in machine.rng.permutation(4)[:3].tolist():
            await machine.step(head)
        if fault == "reset":
            await ClockCycles(dut.clk, 40 * after)
            await machine.reset()
            machine.heads.restore_all()
        else:
            await machine.settle(FAULTS[fault])
            machine.heal()
        for head in (3, number % 3):
            await machine.step(head, append=machine.heads.tokens(head) < 24)
        await machine.settle()
    sample_anchors(machine)


@cocotb.test()
async def window_of_the_longest_context(dut: HierarchyObject) -> None:
    """Run a sliding window of `max_context` tokens until it is full."""
    most = bench_config().max_context
    machine = Machine(dut, f"balanced:2/1,window=3,sliding={most}", tokens=most, count=1)
    await machine.start()
    for _ in range(most - 1):
        await machine.step(0, attend=False)
    await machine.step(0)
    await machine.step(0, append=False)
    await machine.settle()


@cocotb.test()
async def not_rotated(dut: HierarchyObject) -> None:
    """Run a model whose vectors are not rotated."""
    machine = Machine(dut, CODES[0], rotate=False)
    await machine.start()
    for _ in range(8):
        await machine.step(0)
    await machine.settle()


@cocotb.test()
async def append_and_attend_apart(dut: HierarchyObject) -> None:
    """Run jobs of one head back to back that only append or only attend."""
    machine = Machine(dut, CODES[0], count=1)
    await machine.start()
    kinds = ("append", "append", "attend", "both", "append", "append", "attend", "append", "both")
    for what in kinds * 2:
        await machine.step(0, append=what != "attend", attend=what != "append")
    await machine.settle()


@cocotb.test()
async def every_refusal(dut: HierarchyObject) -> None:
    """Check that each wrong descriptor between right ones has no effect but its status."""
    machine = Machine(dut, CODES[0])
    await machine.start()
    await fill(machine)
    for kind in WRONG:
        await machine.step(0, append=False)
        await machine.step(0, wrong=kind)
        await machine.step(1, append=False)
        await machine.settle()
        COVERAGE.sample(wrong=kind)


@cocotb.test()
async def as_many_tokens_as_there_may_be(dut: HierarchyObject) -> None:
    """Grow a head to `max_context`, attend to all tokens, and check the refusal of one more."""
    most = bench_config().max_context
    machine = Machine(dut, CODES[0], tokens=most, count=1)
    await machine.start()
    for _ in range(most - 1):
        await machine.step(0, attend=False)
    await machine.step(0)
    await machine.settle()
    COVERAGE.sample(context="max_context")
    await machine.step(0, wrong="max_context+1")
    await machine.step(0, append=False)
    await machine.settle()
    COVERAGE.sample(context="max_context+1", wrong="max_context+1")


@cocotb.test()
@cocotb.parametrize(part=(0, 1, 2))
async def bursts_at_the_end_of_a_page(dut: HierarchyObject, part: int) -> None:
    """Place the memory across a 4 KiB page end and check that no burst crosses the end."""
    config, rng = bench_config(), np.random.default_rng(cocotb.RANDOM_SEED)
    code = CODES[part]
    size = MemoryLayout(config, [CacheCode.parse(code)], 2, 12).bytes
    machine = Machine(dut, code, tokens=12, base=page_before(config, rng, size))
    await machine.start()
    for _ in range(12):
        for head in range(2):
            await machine.step(head)
    await machine.settle()
    for name, bursts in machine.bursts.items():
        for address, length in bursts:
            if (address + length) % _PAGE == 0:
                COVERAGE.sample(page=f"{name}_ends")
            if address % _PAGE == 0:
                COVERAGE.sample(page=f"{name}_begins")


@cocotb.test()
@cocotb.parametrize(channel=CHANNELS)
async def stalled_channel(dut: HierarchyObject, channel: str) -> None:
    """Stall one channel for long, repeatedly, and check that nothing is lost."""
    machine = Machine(dut, CODES[5])
    await machine.start()
    await fill(machine)
    for _ in range(3):
        stall = cocotb.start_soon(machine.stall(channel, _STALL))
        await random_steps(machine, 2)
        await stall
    await machine.settle()
    COVERAGE.sample(stalled=channel)


async def strike(machine: Machine, fault: str, after: int, state: str | None = None) -> None:
    """Cause a fault in a random stream of jobs, and let all jobs end.

    Parameters
    ----------
    after : answers of the memory without a fault before
    state : state in which the fault comes, at the first opportunity
    """
    seen: list[str] = []

    def fits() -> bool:
        seen[:] = states(machine)
        return state is None or state in seen

    machine.fail(fault, after, fits)
    await random_steps(machine, int(machine.rng.integers(3, 7)))
    failed = await machine.settle(FAULTS[fault])
    machine.heal()
    if machine.fired:
        for name in seen:
            COVERAGE.sample(fault=fault, state=name)
    if failed:
        COVERAGE.sample(failed=str(min(failed, 2)))


async def stall_when_fired(machine: Machine, channel: str) -> None:
    """Stall a channel for long from the fault on."""
    while not machine.fired:
        await ClockCycles(machine.dut.clk, 1)
    machine.channels[channel].clear_pause_generator()
    await machine.stall(channel, _STALL)
    COVERAGE.sample(late=channel)


@cocotb.test()
@cocotb.parametrize(fault=tuple(FAULTS))
async def fault_in_every_state(dut: HierarchyObject, fault: str) -> None:
    """Cause a fault while outputs leave, elements are owed or words move; check recovery."""
    machine = Machine(dut, CODES[0])
    # while answers of reads pause, the writes of the next append are answered
    await machine.start(pausing=["r"] if fault.startswith("b") else [])
    await fill(machine)
    for state in _STATES:
        for _ in range(_TRIES):
            hold = cocotb.start_soon(machine.stall("output", 4 * _STALL * (state == "outputs") + 1))
            await strike(machine, fault, int(machine.rng.integers(4)), state)
            await hold
            if machine.fired:
                break
        else:
            raise Mismatch(f"{fault} found no moment of {state!r}")


@cocotb.test()
async def counters_go_on_after_a_fault(dut: HierarchyObject) -> None:
    """Check that counters survive the core's restart and count slices of failed jobs too."""
    machine = Machine(dut, CODES[0])
    await machine.start()
    await fill(machine)
    names = ("key_slices", "value_slices", "zero_digits")
    before = dict.fromkeys(names, 0)
    for round_ in range(3):
        for head in range(2):
            await machine.step(head)
        await machine.settle()
        counted = {name: (await machine.read(name))["count"] for name in names}
        for name in names:
            # at least the slices of two attentions, and far fewer than a wrapped counter shows
            if not 2 < counted[name] - before[name] < 1 << 16:
                raise Mismatch(f"{name} in round {round_}: {before[name]}, then {counted[name]}")
        before = counted
        await strike(machine, "r_slverr", 1)


@cocotb.test()
@cocotb.parametrize(part=(0, 1))
async def faults_at_any_time(dut: HierarchyObject, part: int) -> None:
    """Cause faults in random streams of jobs, some wrong, with outputs stalled for long."""
    machine = Machine(dut, CODES[3 * part])
    await machine.start(pausing=CHANNELS[:-1] if part else ())
    await fill(machine)
    for number in range(8):
        fault = str(machine.rng.choice(list(FAULTS)))
        after = int(machine.rng.integers(60 if fault.startswith("r") else 8))
        hold = cocotb.start_soon(machine.stall("output", 3 * _STALL * (number % 2) + 1))
        await strike(machine, fault, after)
        await hold
    await random_steps(machine, 4)
    await machine.settle()


@cocotb.test()
@cocotb.parametrize(answer=("r", "b"))
async def late_answers_to_an_abort(dut: HierarchyObject, answer: str) -> None:
    """Answer outstanding bursts long after the memory has failed."""
    machine = Machine(dut, CODES[0])
    await machine.start(pausing=["r", "b"])
    await fill(machine)
    fault, state = ("b_slverr", "reading") if answer == "r" else ("r_slverr", "writing")
    machine.fired = False
    late = cocotb.start_soon(stall_when_fired(machine, answer))
    for _ in range(_TRIES):
        await strike(machine, fault, 0, state)
        if machine.fired:
            await late
            return
    raise Mismatch(f"{fault} found no moment of {state!r}")


@cocotb.test()
async def reset_in_every_state(dut: HierarchyObject) -> None:
    """Reset during jobs, and check that the accelerator works as after the first reset."""
    machine = Machine(dut, CODES[0])
    await machine.start()
    await fill(machine)
    for state in (*_STATES, *_STATES):
        await random_steps(machine, 2, wrong=0.0)
        for _ in range(3000):
            if state in (found := states(machine)):
                for name in found:
                    COVERAGE.sample(fault="reset", state=name)
                break
            await ClockCycles(dut.clk, 1)
        await machine.reset()
        machine.heads.restore_all()
        await random_steps(machine, 3)
        await machine.settle()


@cocotb.test()
async def every_bin_was_hit(dut: HierarchyObject) -> None:
    """Check that all tests before this one have hit every bin of the coverage."""
    await Machine(dut, CODES[0]).start()
    COVERAGE.finish(Path())
