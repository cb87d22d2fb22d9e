"""Bench of the plane scaler: keys of all codes and magnitudes, scales from tiny to saturating."""

from __future__ import annotations

from typing import Any

import cocotb
import numpy as np
import torch
from cocotb.handle import HierarchyObject

from golden.plane_scaler import plane_scaler
from sim.bench.bench import STALL_MIXES, Bench
from sim.bench.stimulus import Vectors, random_planes, random_vectors

Payloads = list[dict[str, Any]]


def slice_sums(bench: Bench, keys: Vectors) -> np.ndarray:
    """Draw sums of planes over slices, int64 [T, P, S, G], of all magnitudes; 0 where absent."""
    config = bench.config
    shape = (*keys.unit.shape, config.slices, config.query_group)
    limit = config.lanes * config.query_max
    sums = bench.rng.integers(-limit, limit + 1, shape)
    sums >>= bench.rng.integers(0, limit.bit_length() + 1, (shape[0], 1, 1, 1))
    return sums * keys.present[..., None, None]


def payloads(
    bench: Bench, keys: Vectors, sums: np.ndarray, exponents: np.ndarray
) -> tuple[Payloads, Payloads]:
    """Return the key slices of the input stream, and the golden model's scores."""
    config, rng = bench.config, bench.rng
    plane_sums = torch.from_numpy(sums.sum(2)).movedim(-1, 0)[:, None]  # [G, 1, T, P]
    scores, saturated = plane_scaler(
        config, plane_sums, keys.golden(), torch.from_numpy(exponents)[:, None]
    )
    together = keys.together(config.key_planes_per_cycle)
    flags = rng.integers(0, 2, (len(sums), 2)).tolist()
    inputs, outputs = [], []
    for token, (block_end, job_end) in enumerate(flags):
        ends = [*together.first[token, 1 : together.counts[token]], keys.planes[token]]
        for plane in reversed(range(together.counts[token])):
            planes = sums[token, together.first[token, plane] : ends[plane]]
            weighted = np.tensordot(3 ** np.arange(len(planes)), planes, 1)
            for index in range(config.slices):
                tag = {
                    "fraction": int(together.fraction[token, plane]),
                    "exponent": int(together.exponent[token, plane]),
                    "unit": int(together.unit[token, plane]),
                    "last": int(plane == 0),
                    "slice": index,
                    "block_end": block_end,
                    "job_end": job_end,
                }
                inputs.append({"sums": weighted[index].tolist(), "tag": tag})
        clipped = sum(int(saturated[g, 0, token]) << g for g in range(config.query_group))
        outputs.append(
            {
                "scores": scores[:, 0, token].tolist(),
                "saturated": clipped,
                "block_end": block_end,
                "job_end": job_end,
            }
        )
    return inputs, outputs


def random_exponents(bench: Bench) -> np.ndarray:
    """Draw query exponents, int64 [G], that give scores of all magnitudes."""
    config = bench.config
    top = config.product_bits - config.score_bits // 2 + (1 << config.scale_exponent_bits)
    return bench.rng.integers(0, min(top, 127) + 1, config.query_group)


async def run(bench: Bench, keys: Vectors, exponents: np.ndarray, source: str, sink: str) -> None:
    """Drive one job's keys and compare the scores."""
    inputs, outputs = payloads(bench, keys, slice_sums(bench, keys), exponents)
    bench.set("query_exponent", exponents.tolist())
    bench.drive("i", inputs, source)
    bench.expect("o", outputs, sink)
    await bench.finish()


@cocotb.test()
@cocotb.parametrize(source=STALL_MIXES, sink=STALL_MIXES)
async def random_data(dut: HierarchyObject, source: str, sink: str) -> None:
    """Check mixed numbers of planes and any runs, with gaps and back-pressure."""
    bench = await Bench.start(dut, "plane_scaler")
    keys = random_vectors(bench.rng, bench.config, random_planes(bench.rng, bench.config, 24))
    await run(bench, keys, random_exponents(bench), source, sink)


@cocotb.test()
@cocotb.parametrize(code=("balanced", "residual", "any"), planes=("fewest", "most", "mixed"))
async def codes(dut: HierarchyObject, code: str, planes: str) -> None:
    """Check each code with the fewest planes, the most, and both in one sequence."""
    bench = await Bench.start(dut, "plane_scaler")
    counts = random_planes(bench.rng, bench.config, 24, planes)
    keys = random_vectors(bench.rng, bench.config, counts, code=code)
    await run(bench, keys, random_exponents(bench), "none", "none")


@cocotb.test()
@cocotb.parametrize(exponent=(-128, -64, -20, -1, 0, 1, 40, 64, 80, 127))
async def extreme_exponents(dut: HierarchyObject, exponent: int) -> None:
    """Check shifts far to the left, under which all but zero saturates, and far to the right."""
    bench = await Bench.start(dut, "plane_scaler")
    keys = random_vectors(bench.rng, bench.config, random_planes(bench.rng, bench.config, 24))
    exponents = np.full(bench.config.query_group, exponent)
    await run(bench, keys, exponents, "none", "none")


@cocotb.test()
@cocotb.parametrize(sign=(1, -1))
async def largest_sums(dut: HierarchyObject, sign: int) -> None:
    """Check the widest products: all planes of all keys with the largest sum of one sign."""
    bench = await Bench.start(dut, "plane_scaler")
    config = bench.config
    counts = random_planes(bench.rng, config, 12, "most")
    keys = random_vectors(bench.rng, config, counts, code="balanced")
    shape = (*keys.unit.shape, config.slices, config.query_group)
    sums = np.full(shape, sign * config.lanes * config.query_max * -config.element_min)
    exponents = np.resize([config.product_bits - config.score_bits + 8, 0], config.query_group)
    inputs, outputs = payloads(bench, keys, sums, exponents)
    bench.set("query_exponent", exponents.tolist())
    bench.drive("i", inputs)
    bench.expect("o", outputs)
    await bench.finish()


@cocotb.test()
async def full_throughput(dut: HierarchyObject) -> None:
    """Check one slice per cycle, and scores `latency` cycles after the token's last slice."""
    bench = await Bench.start(dut, "plane_scaler")
    config = bench.config
    keys = random_vectors(bench.rng, config, random_planes(bench.rng, config, 20))
    await run(bench, keys, random_exponents(bench), "none", "none")
    taken = bench.drivers["i"].cycles
    bench.check(taken, list(range(taken[0], taken[0] + len(taken))), "cycles of the slices")
    last = np.cumsum(keys.together(config.key_planes_per_cycle).counts) * config.slices - 1
    expected = [taken[index] + bench.component.LATENCY for index in last]
    bench.check(bench.sinks["o"].cycles, expected, "cycles of the scores")
