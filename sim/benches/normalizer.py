"""Bench of the normalizer: denominators and accumulators over their whole ranges."""

from __future__ import annotations

from typing import Any

import cocotb
import numpy as np
import torch
from cocotb.handle import HierarchyObject

from golden.normalizer import normalizer
from sim.bench.bench import STALL_MIXES, Bench

Payloads = list[dict[str, Any]]


def rows(values: np.ndarray) -> Payloads:
    """Return the element payloads of jobs [J, G, D]."""
    return [
        {"values": job[:, d].tolist(), "last": int(d == values.shape[2] - 1)}
        for job in values
        for d in range(values.shape[2])
    ]


async def run(
    bench: Bench,
    accumulators: np.ndarray,
    sums: np.ndarray,
    mixes: tuple[str, str, str] = ("none", "none", "none"),
) -> None:
    """Drive jobs with accumulators [J, G, D] and denominators [J, G] and compare the outputs."""
    outputs = normalizer(bench.config, torch.from_numpy(accumulators), torch.from_numpy(sums))
    bench.drive("sums", [{"sums": row} for row in sums.tolist()], mixes[0])
    bench.drive("i", rows(accumulators), mixes[1])
    bench.expect("o", rows(outputs.numpy()), mixes[2])
    await bench.finish()


def random_sums(bench: Bench, jobs: int) -> np.ndarray:
    """Draw denominators [J, G] of all magnitudes from the smallest to the largest."""
    config = bench.config
    shape = (jobs, config.query_group)
    smallest, largest = 1 << (config.weight_bits - 1), config.sum_of_weights_max
    sums = bench.rng.integers(0, largest + 1, shape)
    sums >>= bench.rng.integers(0, config.sum_of_weights_bits, shape)
    return np.clip(sums, smallest, largest)


def random_accumulators(bench: Bench, jobs: int) -> np.ndarray:
    """Draw accumulators [J, G, D] of all magnitudes: small, usual, and saturating."""
    config = bench.config
    limit = 1 << (config.accumulator_bits - 1)
    shape = (jobs, config.query_group, config.head_dim)
    values = bench.rng.integers(-limit, limit, shape)
    return values >> bench.rng.integers(0, config.accumulator_bits, shape)


@cocotb.test()
@cocotb.parametrize(source=STALL_MIXES, sink=STALL_MIXES)
async def random_data(dut: HierarchyObject, source: str, sink: str) -> None:
    """Check random jobs, with gaps and back-pressure."""
    bench = await Bench.start(dut, "normalizer")
    jobs = max(2, 64 // bench.config.head_dim)
    data = random_accumulators(bench, jobs), random_sums(bench, jobs)
    await run(bench, *data, (source, source, sink))


@cocotb.test()
async def corner_sums(dut: HierarchyObject) -> None:
    """Check powers of two and their neighbours, the smallest and the largest denominator."""
    bench = await Bench.start(dut, "normalizer")
    config = bench.config
    smallest, largest = 1 << (config.weight_bits - 1), config.sum_of_weights_max
    powers = 1 << np.arange(config.weight_bits - 1, config.sum_of_weights_bits)
    corners = np.concatenate([powers - 1, powers, powers + 1, [smallest, largest]])
    corners = np.unique(np.clip(corners, smallest, largest))
    jobs = -(-len(corners) // config.query_group)
    sums = np.resize(corners, (jobs, config.query_group))
    await run(bench, random_accumulators(bench, jobs), sums)


@cocotb.test()
@cocotb.parametrize(value=("zero", "largest", "smallest"))
async def corner_accumulators(dut: HierarchyObject, value: str) -> None:
    """Check accumulators of zero and of the largest values: zero and saturated outputs."""
    bench = await Bench.start(dut, "normalizer")
    config = bench.config
    limit = 1 << (config.accumulator_bits - 1)
    number = {"zero": 0, "largest": limit - 1, "smallest": -limit}[value]
    sums = np.full((2, config.query_group), 1 << (config.weight_bits - 1))
    sums[1] = config.sum_of_weights_max
    accumulators = np.full((2, config.query_group, config.head_dim), number)
    await run(bench, accumulators, sums)


@cocotb.test()
async def exact_cycles(dut: HierarchyObject) -> None:
    """Check `reciprocal_latency` cycles from denominators to element 0, then each one's turns."""
    bench = await Bench.start(dut, "normalizer")
    config, block = bench.config, bench.component
    await run(bench, random_accumulators(bench, 3), random_sums(bench, 3))
    starts = bench.drivers["sums"].cycles
    turns = config.normalizer_turns
    job_cycles = block.reciprocal_latency + config.head_dim * turns
    bench.check(starts, [starts[0] + i * job_cycles for i in range(3)], "cycles of the sums")
    elements = [
        start + block.reciprocal_latency + (d + 1) * turns - 1
        for start in starts
        for d in range(config.head_dim)
    ]
    bench.check(bench.drivers["i"].cycles, elements, "cycles of the accumulators")
    expected = [cycle + block.LATENCY for cycle in elements]
    bench.check(bench.sinks["o"].cycles, expected, "cycles of the outputs")
