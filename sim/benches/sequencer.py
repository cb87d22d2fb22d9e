"""Bench of the sequencer: the order of slices, their numbers and marks, for jobs of all lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cocotb
import numpy as np
from cocotb.handle import HierarchyObject
from cocotb.triggers import ClockCycles, RisingEdge

from sim.bench.bench import STALL_MIXES, Bench
from sim.bench.stimulus import Vectors, element_payloads, random_planes, random_vectors
from sim.bench.streams import current_cycle

Payloads = list[dict[str, Any]]


@dataclass(frozen=True)
class Stream:
    """A slice stream of a job: its inputs, its outputs, and the block of each slice."""

    inputs: Payloads
    outputs: Payloads
    blocks: list[int]


def slice_stream(bench: Bench, vectors: Vectors, kind: str) -> Stream:
    """Return the slices of one job's keys or values, and the outputs by docs/contract.md."""
    config = bench.config
    together = vectors.together(
        config.key_planes_per_cycle if kind == "key" else config.value_planes_per_cycle
    )
    digits = element_payloads(bench.rng, config, together.elements(config))
    inputs, outputs, blocks = [], [], []
    tokens = len(together.counts)
    for token, count in enumerate(together.counts.tolist()):
        order = range(count) if kind == "value" else reversed(range(count))
        for sent, plane in enumerate(order):
            for number in range(config.slices):
                scale = {
                    "fraction": int(together.fraction[token, plane]),
                    "exponent": int(together.exponent[token, plane]),
                    "unit": int(together.unit[token, plane]),
                    "last": int(sent == count - 1),
                }
                elements = digits[token][plane][number]
                job_end = token == tokens - 1
                inputs.append({"elements": elements, **scale})
                if kind == "value":
                    outputs.append({"elements": elements, **scale, "slice": number})
                else:
                    block_end = job_end or token % config.block == config.block - 1
                    marks = {"block_end": int(block_end), "job_end": int(job_end)}
                    outputs.append(
                        {"elements": elements, "tag": {**scale, "slice": number, **marks}}
                    )
                blocks.append(token // config.block)
    return Stream(inputs, outputs, blocks)


def expected_order(keys: list[int], values: list[int]) -> list[tuple[str, int]]:
    """Return kind and block of each slice of a job: K0, then K i+1 before V i, then the last V."""
    blocks = keys[-1] + 1
    turns = [("key", 0)]
    for block in range(blocks):
        if block + 1 < blocks:
            turns.append(("key", block + 1))
        turns.append(("value", block))
    counts = {"key": keys, "value": values}
    return [turn for turn in turns for _ in range(counts[turn[0]].count(turn[1]))]


async def load_queries(bench: Bench, seen: list[int]) -> None:
    """Model the query buffer, and note the job's exponents when its queries are loaded."""
    dut = bench.dut
    while True:
        await RisingEdge(dut.clk)
        if dut.query_start.value == 1:
            dut.query_full.value = 0
            for _ in range(int(bench.rng.integers(1, 12))):
                await RisingEdge(dut.clk)
            seen.append(dut.query_exponent.value.to_unsigned())
            dut.query_full.value = 1


async def watch_value_exponents(bench: Bench, seen: list[int]) -> None:
    """Note the value exponent with every value slice that passes."""
    dut = bench.dut
    while True:
        await RisingEdge(dut.clk)
        if dut.value_slices__valid.value == 1 and dut.value_slices__ready.value == 1:
            seen.append(dut.value_exponent.value.to_unsigned())


async def run(
    bench: Bench,
    lengths: list[int],
    source: str,
    sink: str,
    exponent_source: str | None = None,
    starts_after: int = 0,
) -> None:
    """Run jobs of these lengths and compare slices, their order over both streams, exponents.

    Parameters
    ----------
    starts_after : cycles in which no start is taken
    """
    config, rng = bench.config, bench.rng
    jobs: Payloads = []
    query_exponents: list[int] = []
    value_exponents: list[int] = []
    keys, values, order, starts = [], [], [], []
    width = config.query_exponent_bits
    for tokens in lengths:
        counts = random_planes(rng, config, tokens), random_planes(rng, config, tokens)
        keys.append(slice_stream(bench, random_vectors(rng, config, counts[0]), "key"))
        values.append(slice_stream(bench, random_vectors(rng, config, counts[1]), "value"))
        order += expected_order(keys[-1].blocks, values[-1].blocks)
        low, high = -(1 << (width - 1)), 1 << (width - 1)
        query_exponent = rng.integers(low, high, config.query_group)
        value_exponents.append(int(rng.integers(1 << config.scale_exponent_bits)))
        half, group = 1 << (config.maximum_bits - 1), config.query_group
        start = {
            "sink_maximum": rng.integers(-half, half, group).tolist(),
            "sink_weight": rng.integers(1 << config.weight_width, size=group).tolist(),
        }
        starts.append(start)
        jobs.append({"last_token": tokens - 1, "query_exponent": query_exponent.tolist(), **start})
        packed = sum(
            (int(x) & ((1 << width) - 1)) << (width * g) for g, x in enumerate(query_exponent)
        )
        query_exponents.append(packed)
    bench.set("query_full", 1)
    seen_query: list[int] = []
    seen_value: list[int] = []
    cocotb.start_soon(load_queries(bench, seen_query))
    cocotb.start_soon(watch_value_exponents(bench, seen_value))
    bench.drive("jobs", jobs, source)
    exponents = [{"value_exponent": exponent} for exponent in value_exponents]
    bench.drive("value_exponents", exponents, exponent_source or source)
    bench.drive("keys", [p for s in keys for p in s.inputs], source)
    bench.drive("values", [p for s in values for p in s.inputs], source)
    bench.expect("key_slices", [p for s in keys for p in s.outputs], sink)
    bench.expect("value_slices", [p for s in values for p in s.outputs], sink)
    await ClockCycles(bench.dut.clk, starts_after + 1)
    bench.expect("starts", starts, sink)
    await bench.finish()

    bench.check(seen_query, query_exponents, "query exponents of the jobs")
    beside = [e for e, s in zip(value_exponents, values, strict=True) for _ in s.outputs]
    bench.check(seen_value, beside, "value exponents beside the value slices")
    passed = [(cycle, "key") for cycle in bench.sinks["key_slices"].cycles]
    passed += [(cycle, "value") for cycle in bench.sinks["value_slices"].cycles]
    passed.sort()
    bench.check(len({cycle for cycle, _ in passed}), len(passed), "cycles with one slice")
    bench.check([kind for _, kind in passed], [kind for kind, _ in order], "order of the slices")


@cocotb.test()
@cocotb.parametrize(source=STALL_MIXES, sink=STALL_MIXES)
async def random_data(dut: HierarchyObject, source: str, sink: str) -> None:
    """Check jobs around the block's length, with gaps and back-pressure."""
    bench = await Bench.start(dut, "sequencer")
    block = min(bench.config.block, 8)
    lengths = [1, int(bench.rng.integers(1, 3 * block)), block]
    await run(bench, lengths, source, sink)


@cocotb.test()
async def every_length(dut: HierarchyObject) -> None:
    """Check jobs of one token, of whole blocks, and of one token less or more."""
    bench = await Bench.start(dut, "sequencer")
    block = bench.config.block
    await run(bench, [1, block - 1, block, block + 1, 2 * block, 2 * block + 1], "none", "none")


@cocotb.test()
async def late_value_exponent(dut: HierarchyObject) -> None:
    """Check that value slices, but not key slices, wait for their job's value exponent."""
    bench = await Bench.start(dut, "sequencer")
    lengths = [1, 2, 1, 1, bench.config.block + 1, 2, 1]
    await run(bench, lengths, "none", "none", exponent_source="slow")
    taken = bench.drivers["value_exponents"].cycles
    bench.check(
        bench.drivers["values"].cycles[0] > taken[0],
        True,
        "the first value waited for its exponent",
    )


@cocotb.test()
async def start_taken_late(dut: HierarchyObject) -> None:
    """Check that the next job waits until the start of the job before has been taken."""
    bench = await Bench.start(dut, "sequencer")
    await run(bench, [1] * 3, "none", "none", starts_after=100)
    jobs, values = bench.drivers["jobs"].cycles, bench.drivers["values"].cycles
    bench.check(jobs[1] > values[0] + 50, True, "the second job waited")


@cocotb.test()
async def full_throughput(dut: HierarchyObject) -> None:
    """Check that a slice passes every cycle from the load of the queries to the job's last."""
    bench = await Bench.start(dut, "sequencer")
    await run(bench, [3 * bench.config.block + 1], "none", "none")
    cycles = sorted(bench.sinks["key_slices"].cycles + bench.sinks["value_slices"].cycles)
    expected = np.arange(cycles[0], cycles[0] + len(cycles)).tolist()
    bench.check(cycles, expected, "cycles of the slices")


@cocotb.test()
@cocotb.parametrize(sink=("none", "random"))
async def starved(dut: HierarchyObject, sink: str) -> None:
    """Check that `starved` is high exactly in cycles in which a slice could pass but is missing."""
    bench = await Bench.start(dut, "sequencer")
    count = 0
    unjustified: list[int] = []

    async def watch() -> None:
        nonlocal count
        while True:
            await RisingEdge(dut.clk)
            if dut.starved.value == 1:
                count += 1
                waits = [
                    port.value == 1 and source.value == 0
                    for port, source in (
                        (dut.key_slices__ready, dut.keys__valid),
                        (dut.value_slices__ready, dut.values__valid),
                    )
                ]
                exponent_waits = dut.value_exponents__ready.value == 1
                waits.append(dut.value_slices__ready.value == 1 and exponent_waits)
                if not any(waits):
                    unjustified.append(current_cycle())

    cocotb.start_soon(watch())
    await run(bench, [2 * bench.config.block], "slow", sink)
    bench.check(unjustified, [], "starved cycles without an empty stream and a ready taker")
    if sink == "none":
        cycles = sorted(bench.sinks["key_slices"].cycles + bench.sinks["value_slices"].cycles)
        idle = cycles[-1] - cycles[0] + 1 - len(cycles)
        before = count - idle  # cycles between the end of the query load and the first slice
        bench.check(
            0 <= before <= 5, True, f"starved cycles, {count} of which {idle} after a slice"
        )
