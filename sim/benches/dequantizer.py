"""Bench of the dequantizer: vectors of every magnitude and number of planes, both orders."""

from __future__ import annotations

from typing import Any

import cocotb
import numpy as np
import torch
from cocotb.handle import HierarchyObject

from golden.dequantizer import dequantize
from golden.planes import Planes
from golden.quantizer import quantize
from sim.bench.bench import STALL_MIXES, Bench
from sim.bench.stimulus import trit_payloads
from sim.benches.quantizer import corner_vectors, random_vectors


def coded_planes(bench: Bench, planes: Planes, unit_first: bool) -> list[dict[str, Any]]:
    """Return one vector's planes [1, N, D] as transfers, in the order of its record."""
    digits = planes.unit.shape[-1]
    trits = trit_payloads(bench.rng, planes.digits[0].numpy())
    order = list(range(digits)) if unit_first else list(reversed(range(digits)))
    config = bench.config
    other = bench.rng.integers([1 << config.scale_fraction_bits, 1 << config.scale_exponent_bits])
    return [
        {
            "trits": trits[digit],
            # meaningful only with the unit plane
            "fraction": int(planes.fraction[0, 0]) if digit == 0 else int(other[0]),
            "exponent": int(planes.exponent[0, 0]) if digit == 0 else int(other[1]),
            "unit": digit == 0,
            "last": place == digits - 1,
        }
        for place, digit in enumerate(order)
    ]


async def run(
    bench: Bench, vectors: np.ndarray, digits: list[int], source: str = "none", sink: str = "none"
) -> list[int]:
    """Restore vectors [N, D] that were quantized with `digits` digits each, in random plane order.

    Return the number of the transfer that ends each vector.
    """
    config = bench.config
    inputs, outputs, ends = [], [], []
    for vector, count in zip(vectors, digits, strict=True):
        planes = quantize(config, torch.from_numpy(vector)[None], "balanced", count, "absmean")
        inputs += coded_planes(bench, planes, bool(bench.rng.integers(2)))
        outputs += dequantize(config, planes)[0].tolist()
        ends.append(len(inputs) - 1)
    bench.drive("i", inputs, source)
    bench.expect("o", [{"value": value} for value in outputs], sink)
    await bench.finish(cycles_per_transfer=100)
    return ends


@cocotb.test()
@cocotb.parametrize(digits=(1, 2, 3, 4, 5))
async def corner_data(dut: HierarchyObject, digits: int) -> None:
    """Check zeros, one-hots and largest elements, at one element per cycle after `LATENCY`."""
    bench = await Bench.start(dut, "dequantizer")
    config, digits = bench.config, min(digits, bench.config.max_planes)
    # the quantizer's bench has elements twice as large, as requantized vectors may have
    vectors = np.concatenate([corner_vectors(bench), random_vectors(bench, 12)]) // 2
    ends = await run(bench, vectors, [digits] * len(vectors))
    taken, sent = bench.drivers["i"].cycles, bench.sinks["o"].cycles
    for vector, end in enumerate(ends):
        first = taken[end] + bench.component.LATENCY
        found = sent[vector * config.head_dim : (vector + 1) * config.head_dim]
        bench.check(found, list(range(first, first + config.head_dim)), "cycles of the elements")


@cocotb.test()
@cocotb.parametrize(source=STALL_MIXES, sink=STALL_MIXES)
async def random_data(dut: HierarchyObject, source: str, sink: str) -> None:
    """Check random vectors of any number of planes under gaps and back-pressure."""
    bench = await Bench.start(dut, "dequantizer")
    digits = bench.rng.integers(1, bench.config.max_planes + 1, 8).tolist()
    await run(bench, random_vectors(bench, 8) // 2, digits, source, sink)
