"""Bench of the record packer: records of every code, in both orders of planes."""

from __future__ import annotations

from typing import Any

import cocotb
import numpy as np
from cocotb.handle import HierarchyObject

from golden.record_packer import pack_record
from kvtq_hw.contract.packing import DIGITS_PER_BYTE, plane_bytes, scale_bytes
from sim.bench.bench import STALL_MIXES, Bench
from sim.bench.stimulus import Vectors, plain_trit_payloads, random_vectors


def elements(vectors: Vectors, vector: int, unit_first: bool) -> list[dict[str, Any]]:
    """Return a vector of one run, or of runs of one plane, as the quantizer sends it."""
    count = int(vectors.planes[vector])
    trits = vectors.digits[vector, :count]
    residual = bool(vectors.unit[vector, :count].all()) and count > 1
    return [
        {
            "trits": digits,
            "fraction": int(vectors.fraction[vector, run]),
            "exponent": int(vectors.exponent[vector, run]),
            "planes": count,
            "residual": residual,
            "unit_first": unit_first,
        }
        for run, digits_of_run in enumerate(trits[:, None] if residual else trits[None])
        for digits in plain_trit_payloads(digits_of_run.T)
    ]


def record(bench: Bench, vectors: Vectors, vector: int, unit_first: bool) -> list[dict[str, int]]:
    """Return a vector's record, packed by the golden packer."""
    count = int(vectors.planes[vector])
    planes = vectors.golden().map_tokens(
        lambda x, axis: x.narrow(axis, vector, 1).narrow(axis + 1, 0, count)
    )
    data = pack_record(bench.config, planes, unit_first)[0].tolist()
    return [{"data": byte, "last": n == len(data) - 1} for n, byte in enumerate(data)]


async def run(
    bench: Bench, counts: list[int], code: str, source: str = "none", sink: str = "none"
) -> None:
    """Pack vectors with these numbers of planes, in a balanced, a residual or a mixed code."""
    inputs, outputs = [], []
    for count in counts:
        kind = str(bench.rng.choice(["balanced", "residual"])) if code == "mixed" else code
        vectors = random_vectors(bench.rng, bench.config, [count], code=kind)
        unit_first = bool(bench.rng.integers(2))
        inputs += elements(vectors, 0, unit_first)
        outputs += record(bench, vectors, 0, unit_first)
    bench.drive("i", inputs, source)
    bench.expect("o", outputs, sink)
    await bench.finish()


@cocotb.test()
@cocotb.parametrize(code=("balanced", "residual"))
async def every_number_of_planes(dut: HierarchyObject, code: str) -> None:
    """Check records of every length, each more than once."""
    bench = await Bench.start(dut, "record_packer")
    counts = [*range(1, bench.config.max_planes + 1)] * 3
    await run(bench, counts, code)


@cocotb.test()
@cocotb.parametrize(source=STALL_MIXES, sink=STALL_MIXES)
async def random_data(dut: HierarchyObject, source: str, sink: str) -> None:
    """Check random records under gaps and back-pressure."""
    bench = await Bench.start(dut, "record_packer")
    counts = bench.rng.integers(1, bench.config.max_planes + 1, 8).tolist()
    await run(bench, counts, "mixed", source, sink)


@cocotb.test()
@cocotb.parametrize(planes=(1, 2, 3, 4, 5))
async def cycles_of_a_record(dut: HierarchyObject, planes: int) -> None:
    """Check elements at the encoder's rate, the first byte after `latency`, then one per cycle."""
    bench = await Bench.start(dut, "record_packer")
    config = bench.config
    planes = min(planes, config.max_planes)
    await run(bench, [planes], "balanced")
    taken, sent = bench.drivers["i"].cycles, bench.sinks["o"].cycles
    length = planes * plane_bytes(config.packing, config.head_dim) + scale_bytes(config)
    first = taken[-1] + bench.component.latency(planes)
    bench.check(sent, list(range(first, first + length)), "cycles of the bytes")
    group = DIGITS_PER_BYTE[config.packing]
    groups = [min(group, config.head_dim - start) for start in range(0, config.head_dim, group)]
    waits = sum(max(0, planes - size) for size in groups[1:])
    bench.check(taken[-1] - taken[0], config.head_dim - 1 + waits, "cycles of the elements")
    bench.check(bool(np.all(np.diff(taken) >= 1)), True, "one element per cycle")
