"""Bench of the query buffer: every slice of every head after a load, under gaps of the source."""

from __future__ import annotations

import cocotb
import numpy as np
from cocotb.handle import HierarchyObject
from cocotb.triggers import RisingEdge, Timer

from sim.bench.bench import STALL_MIXES, Bench
from sim.bench.streams import pack


async def load(bench: Bench, queries: np.ndarray, mix: str) -> None:
    """Pulse `start` and send queries [D, G]; return when `full` is high."""
    bench.dut.start.value = 1
    await RisingEdge(bench.dut.clk)
    bench.dut.start.value = 0
    bench.drive("i", [{"values": row} for row in queries.tolist()], mix)
    for _ in range(100 + 20 * bench.config.head_dim):
        await RisingEdge(bench.dut.clk)
        if bench.dut.full.value == 1:
            return
    raise AssertionError("full did not rise")


async def read_all(bench: Bench, queries: np.ndarray) -> None:
    """Compare each slice with the queries [D, G], in which -2**(bits-1) is made symmetric."""
    config = bench.config
    symmetric = np.maximum(queries, -config.query_max)
    shape = bench.component.signature.members["queries"].shape
    for index in bench.rng.permutation(config.slices):
        if config.slices > 1:
            bench.set("slice", int(index))
        await Timer(1, "ns")
        elements = symmetric[index * config.lanes : (index + 1) * config.lanes].T
        found = bench.dut.queries.value.to_unsigned()
        bench.check(found, pack(shape, elements.tolist()), f"slice {index}")


@cocotb.test()
@cocotb.parametrize(source=STALL_MIXES)
async def random_data(dut: HierarchyObject, source: str) -> None:
    """Check successive loads, each of which replaces all elements of the previous load."""
    bench = await Bench.start(dut, "query_buffer")
    config = bench.config
    for _ in range(3):
        shape = (config.head_dim, config.query_group)
        queries = bench.rng.integers(-config.query_max - 1, config.query_max + 1, shape)
        await load(bench, queries, source)
        await read_all(bench, queries)
        await RisingEdge(dut.clk)
    await bench.finish()


@cocotb.test()
async def symmetric_range(dut: HierarchyObject) -> None:
    """Check that the most negative number is stored as the negative of the largest."""
    bench = await Bench.start(dut, "query_buffer")
    config = bench.config
    row = np.resize([-config.query_max - 1, config.query_max], config.query_group)
    queries = np.stack([np.roll(row, d) for d in range(config.head_dim)])
    await load(bench, queries, "none")
    await read_all(bench, queries)


@cocotb.test()
async def takes_only_one_load(dut: HierarchyObject) -> None:
    """Check that only D elements after `start` are taken, one per cycle."""
    bench = await Bench.start(dut, "query_buffer")
    config = bench.config
    shape = (2 * config.head_dim, config.query_group)
    queries = bench.rng.integers(-config.query_max, config.query_max + 1, shape)
    bench.drive("i", [{"values": row} for row in queries.tolist()])
    for _ in range(10):
        await RisingEdge(dut.clk)
    bench.check(bench.drivers["i"].cycles, [], "transfers before start")
    for part in range(2):
        dut.start.value = 1
        await RisingEdge(dut.clk)
        dut.start.value = 0
        for _ in range(config.head_dim + 10):
            await RisingEdge(dut.clk)
        taken = bench.drivers["i"].cycles[part * config.head_dim :]
        expected = list(range(taken[0], taken[0] + config.head_dim))
        bench.check(taken, expected, f"transfers of load {part}")
        bench.check(int(dut.full.value), 1, "full")
        await read_all(bench, queries[part * config.head_dim :][: config.head_dim])
        await RisingEdge(dut.clk)
    await bench.finish()
