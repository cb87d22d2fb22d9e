"""Bench of multiply-add: sums of random and extreme integers, under every mix of stalls."""

from __future__ import annotations

import cocotb
import numpy as np
from cocotb.handle import HierarchyObject

from sim.bench.bench import STALL_MIXES, Bench
from sim.benches.select_add import beats, random_slices


@cocotb.test()
@cocotb.parametrize(source=STALL_MIXES, sink=STALL_MIXES)
async def random_data(dut: HierarchyObject, source: str, sink: str) -> None:
    """Random slices, with gaps at the source and back-pressure at the sink."""
    bench = await Bench.start(dut, "multiply_add")
    inputs, outputs = beats(bench, *random_slices(bench, 40))
    bench.drive("i", inputs, source)
    bench.expect("o", outputs, sink)
    await bench.finish()


@cocotb.test()
async def extreme_data(dut: HierarchyObject) -> None:
    """Every pair of all integers at one end and all queries at one end, or one element alone."""
    bench = await Bench.start(dut, "multiply_add")
    config = bench.config
    ends = (-config.code_max, -1, 0, 1, config.code_max - 1)
    tops = (-config.query_max, 0, 1, config.query_max)
    alone = np.arange(config.lanes) == config.lanes - 1
    pairs = [
        (end * chosen, top)
        for chosen in (np.ones(config.lanes, int), alone.astype(int))
        for end in ends
        for top in tops
    ]
    integers = np.stack([row for row, _ in pairs]).astype(np.int8)
    shape = (config.query_group, config.lanes)
    queries = np.stack([np.full(shape, top) for _, top in pairs])
    inputs, outputs = beats(bench, integers, queries)
    bench.drive("i", inputs)
    bench.expect("o", outputs)
    await bench.finish()


@cocotb.test()
async def full_throughput(dut: HierarchyObject) -> None:
    """One slice a cycle, exactly `latency` cycles later."""
    bench = await Bench.start(dut, "multiply_add")
    inputs, outputs = beats(bench, *random_slices(bench, 30))
    bench.drive("i", inputs)
    bench.expect("o", outputs)
    await bench.finish()
    taken = bench.drivers["i"].cycles
    bench.check(taken, list(range(taken[0], taken[0] + len(inputs))), "cycles of the slices")
    expected = [cycle + bench.component.latency for cycle in taken]
    bench.check(bench.sinks["o"].cycles, expected, "cycles of the sums")
