"""Bench of the packer: all groups of trits in all bytes of a plane, random planes, all stalls."""

from __future__ import annotations

import cocotb
import numpy as np
import torch
from cocotb.handle import HierarchyObject

from golden.packer import pack
from golden.unpacker import unpack
from kvtq_hw.contract.packing import DIGITS_PER_BYTE, plane_bytes
from sim.bench.bench import STALL_MIXES, Bench
from sim.bench.stimulus import random_trits, trit_payloads


async def run(bench: Bench, trits: np.ndarray, source: str = "none", sink: str = "none") -> None:
    """Pack planes, trits [N, D]; compare bytes with the golden packer's, and unpacked trits."""
    packing = bench.config.packing
    expected = pack(packing, torch.from_numpy(trits))
    restored = unpack(packing, expected, bench.config.head_dim)
    bench.check(restored.tolist(), trits.tolist(), "unpack(pack(trits))")
    planes = [{"trits": plane} for plane in trit_payloads(bench.rng, trits)]
    bench.drive("i", planes, source)
    bench.expect("o", [{"bytes": row} for row in expected.tolist()], sink)
    await bench.finish()


def all_groups(bench: Bench) -> np.ndarray:
    """Return planes [3**n, D] with each group of n trits that a byte holds, once in each byte."""
    group = DIGITS_PER_BYTE[bench.config.packing]
    count = plane_bytes(bench.config.packing, bench.config.head_dim)
    groups = np.array(np.meshgrid(*[[-1, 0, 1]] * group)).reshape(group, -1).T
    planes = np.concatenate([np.roll(groups, j, axis=0) for j in range(count)], axis=1)
    return planes[:, : bench.config.head_dim].astype(np.int8)


@cocotb.test()
async def every_group(dut: HierarchyObject) -> None:
    """Check all groups of trits exhaustively, at one plane per cycle and the stated latency."""
    bench = await Bench.start(dut, "packer")
    await run(bench, all_groups(bench))
    taken = bench.drivers["i"].cycles
    bench.check(taken, list(range(taken[0], taken[0] + len(taken))), "cycles of the planes")
    expected = [cycle + bench.component.LATENCY for cycle in taken]
    bench.check(bench.sinks["o"].cycles, expected, "cycles of the bytes")


@cocotb.test()
@cocotb.parametrize(source=STALL_MIXES, sink=STALL_MIXES)
async def random_data(dut: HierarchyObject, source: str, sink: str) -> None:
    """Check random planes under gaps and back-pressure."""
    bench = await Bench.start(dut, "packer")
    await run(bench, random_trits(bench.rng, (30, bench.config.head_dim)), source, sink)
