"""Bench of the Hadamard transform: random and extreme vectors back to back, under all stalls."""

from __future__ import annotations

import cocotb
import numpy as np
import torch
from cocotb.handle import HierarchyObject

from golden.hadamard import hadamard
from kvtq_hw.contract.config import VECTOR_MAX
from sim.bench.bench import STALL_MIXES, Bench

TOP = 2 * VECTOR_MAX


def corner_vectors(dim: int) -> np.ndarray:
    """Return largest elements with equal, alternating or the transform's signs, and one-hots."""
    rows = hadamard(torch.eye(dim, dtype=torch.int64)).numpy()
    alternating = np.where(np.arange(dim) % 2, -TOP, TOP)
    constant = np.full(dim, TOP)
    matched = TOP * rows[:: max(1, dim // 8)]  # each row sums its whole block in one element
    return np.stack([constant, -constant, alternating, *matched, *-matched, *(TOP * np.eye(dim))])


async def run(bench: Bench, vectors: np.ndarray, source: str = "none", sink: str = "none") -> None:
    """Transform vectors [N, D] and compare the outputs."""
    x = np.asarray(vectors).astype(np.int64)
    expected = hadamard(torch.from_numpy(x))
    bench.drive("i", [{"value": value} for value in x.flatten().tolist()], source)
    bench.expect("o", [{"value": value} for value in expected.flatten().tolist()], sink)
    await bench.finish()


@cocotb.test()
async def corner_data(dut: HierarchyObject) -> None:
    """Check the largest possible sums, at one element per cycle, exactly `latency` cycles later."""
    bench = await Bench.start(dut, "hadamard")
    await run(bench, corner_vectors(bench.config.head_dim))
    taken, sent = bench.drivers["i"].cycles, bench.sinks["o"].cycles
    bench.check(taken, list(range(taken[0], taken[0] + len(taken))), "cycles of the elements")
    expected = [cycle + bench.component.latency for cycle in taken]
    bench.check(sent, expected, "cycles of the results")


@cocotb.test()
@cocotb.parametrize(source=STALL_MIXES, sink=STALL_MIXES)
async def random_data(dut: HierarchyObject, source: str, sink: str) -> None:
    """Check random vectors under gaps and back-pressure."""
    bench = await Bench.start(dut, "hadamard")
    await run(bench, bench.rng.integers(-TOP, TOP + 1, (4, bench.config.head_dim)), source, sink)
