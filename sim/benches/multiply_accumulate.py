"""Bench of multiply-accumulate: jobs of every operation against the golden accumulators."""

from __future__ import annotations

import cocotb
import numpy as np
from cocotb.handle import HierarchyObject

from sim.bench.bench import STALL_MIXES, Bench
from sim.benches.select_accumulate import check_cycles, job, random_job, run


@cocotb.test()
@cocotb.parametrize(source=STALL_MIXES, sink=STALL_MIXES)
async def random_data(dut: HierarchyObject, source: str, sink: str) -> None:
    """Jobs of one to three blocks, with gaps and back-pressure."""
    bench = await Bench.start(dut, "multiply_accumulate")
    jobs = [random_job(bench, blocks, 3) for blocks in (1, 3, 2)]
    await run(bench, jobs, source, sink)


@cocotb.test()
@cocotb.parametrize(end=("smallest", "largest"))
async def long_sum_of_one_sign(dut: HierarchyObject, end: str) -> None:
    """The largest weights with integers at one end: as many as the denominator holds."""
    bench = await Bench.start(dut, "multiply_accumulate")
    config = bench.config
    tokens = config.sum_of_weights_max >> config.weight_bits
    weights = np.full((1, tokens, config.query_group), config.scaled_weight_max)
    integer = -config.code_max if end == "smallest" else config.code_max - 1
    integers = np.full((1, tokens, config.head_dim), integer, np.int8)
    shifts = np.zeros((1, config.query_group), np.int64)
    await run(bench, [job(bench, integers, weights, shifts)], "none", "none")


@cocotb.test()
async def exact_cycles(dut: HierarchyObject) -> None:
    """The same cycles as select-accumulate has: the products' register adds none."""
    bench = await Bench.start(dut, "multiply_accumulate")
    await check_cycles(bench, [random_job(bench, 3, 2), random_job(bench, 1, 1)])
