"""Bench of the unpacker: all byte values in all bytes of a plane, random bytes, all stalls."""

from __future__ import annotations

import cocotb
import numpy as np
import torch
from cocotb.handle import HierarchyObject

from golden.unpacker import unpack
from kvtq_hw.contract.packing import plane_bytes
from sim.bench.bench import STALL_MIXES, Bench


async def run(bench: Bench, data: np.ndarray, source: str = "none", sink: str = "none") -> None:
    """Unpack planes of bytes [N, bytes] and compare the trits with the golden unpacker's."""
    config = bench.config
    expected = unpack(config.packing, torch.from_numpy(data), config.head_dim).tolist()
    flags = [[{"nonzero": abs(t), "negative": int(t < 0)} for t in plane] for plane in expected]
    bench.drive("i", [{"bytes": row} for row in data.tolist()], source)
    bench.expect("o", [{"trits": plane} for plane in flags], sink)
    await bench.finish()


@cocotb.test()
async def every_byte(dut: HierarchyObject) -> None:
    """Check all 256 values of each byte, at one plane per cycle and the stated latency."""
    bench = await Bench.start(dut, "unpacker")
    count = plane_bytes(bench.config.packing, bench.config.head_dim)
    columns = [np.roll(np.arange(256), j) for j in range(count)]
    await run(bench, np.stack(columns, axis=1).astype(np.uint8))
    taken = bench.drivers["i"].cycles
    bench.check(taken, list(range(taken[0], taken[0] + 256)), "cycles of the planes")
    expected = [cycle + bench.component.LATENCY for cycle in taken]
    bench.check(bench.sinks["o"].cycles, expected, "cycles of the trits")


@cocotb.test()
@cocotb.parametrize(source=STALL_MIXES, sink=STALL_MIXES)
async def random_data(dut: HierarchyObject, source: str, sink: str) -> None:
    """Check random bytes under gaps and back-pressure."""
    bench = await Bench.start(dut, "unpacker")
    count = plane_bytes(bench.config.packing, bench.config.head_dim)
    data = bench.rng.integers(0, 256, (30, count)).astype(np.uint8)
    await run(bench, data, source, sink)
