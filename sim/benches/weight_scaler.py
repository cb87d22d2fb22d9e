"""Bench of the weight scaler: operations for values of all codes, magnitudes and scales."""

from __future__ import annotations

from typing import Any

import cocotb
import numpy as np
import torch
from cocotb.handle import HierarchyObject

from golden.weight_scaler import weight_scaler
from rtl.layouts import Operation
from sim.bench.bench import STALL_MIXES, Bench
from sim.bench.stimulus import Vectors, element_payloads, random_planes, random_vectors

Payloads = list[dict[str, Any]]


def payloads(
    bench: Bench, values: Vectors, weights: np.ndarray, value_exponent: int, jobs: list[int]
) -> tuple[Payloads, Payloads, Payloads]:
    """Return payloads of weights [T, G] and value slices, and the expected operations.

    `jobs` lists the tokens per job; blocks follow the contract.
    """
    config = bench.config
    scaled = weight_scaler(
        config,
        torch.from_numpy(weights.T.copy())[:, None],
        values.golden(),
        torch.tensor([value_exponent]),
    )[:, 0].numpy()  # [G, T, P]
    together = values.together(config.value_planes_per_cycle)
    digits = element_payloads(bench.rng, config, together.elements(config))
    tokens, slices, operations = [], [], []
    place = [(index, size) for size in jobs for index in range(size)]
    for token, (index, size) in enumerate(place):
        opens, ends = index % config.block == 0, index == size - 1
        shifts = bench.rng.integers(0, config.accumulator_bits + 1, config.query_group).tolist()
        tokens.append(
            {
                "weights": weights[token].tolist(),
                "shifts": shifts,
                "block_start": int(opens),
                "job_start": int(index == 0),
                "job_end": int(ends),
            }
        )
        if index == 0:
            operations.append({"operation": Operation.CLEAR})
        elif opens:
            operations.append({"operation": Operation.SHIFT, "shifts": shifts})
        for plane in range(together.counts[token]):
            weight = scaled[:, token, together.first[token, plane]].tolist()
            for number in range(config.slices):
                common = {"elements": digits[token][plane][number], "slice": number}
                slices.append(
                    {
                        **common,
                        "fraction": int(together.fraction[token, plane]),
                        "exponent": int(together.exponent[token, plane]),
                        "unit": int(together.unit[token, plane]),
                        "last": int(plane == together.counts[token] - 1),
                    }
                )
                added = (
                    {**common, "weights": weight, "weighty": 1} if any(weight) else {"weighty": 0}
                )
                operations.append({"operation": Operation.ADD, **added})
        if ends:
            operations.append({"operation": Operation.DRAIN})
    return tokens, slices, operations


def random_weights(bench: Bench, count: int) -> np.ndarray:
    """Draw weights [T, G] from zero to one, of all magnitudes."""
    config = bench.config
    shape = (count, config.query_group)
    weights = bench.rng.integers(0, (1 << config.weight_bits) + 1, shape)
    weights >>= bench.rng.integers(0, config.weight_bits + 1, shape)
    return np.where(bench.rng.random(shape) < 0.1, 1 << config.weight_bits, weights)


async def run(
    bench: Bench,
    values: Vectors,
    weights: np.ndarray,
    jobs: list[int],
    mixes: tuple[str, str, str] = ("none", "none", "none"),
) -> Payloads:
    """Drive jobs that share one value exponent and compare the operations; return them."""
    room = (1 << bench.config.scale_exponent_bits) - 1 - values.largest_exponent
    exponent = values.largest_exponent + int(bench.rng.integers(0, min(room, 2) + 1))
    tokens, slices, operations = payloads(bench, values, weights, exponent, jobs)
    bench.set("value_exponent", exponent)
    bench.drive("weights", tokens, mixes[0])
    bench.drive("slices", slices, mixes[1])
    bench.expect("o", operations, mixes[2])
    await bench.finish()
    return operations


@cocotb.test()
@cocotb.parametrize(source=STALL_MIXES, sink=STALL_MIXES)
async def random_data(dut: HierarchyObject, source: str, sink: str) -> None:
    """Check mixed planes, any runs, jobs around a block's length, and stalls everywhere."""
    bench = await Bench.start(dut, "weight_scaler")
    block = bench.config.block
    jobs = [1, block + 1, int(bench.rng.integers(2, 9))]
    counts = random_planes(bench.rng, bench.config, sum(jobs))
    values = random_vectors(bench.rng, bench.config, counts)
    scaled = random_weights(bench, sum(jobs))
    await run(bench, values, scaled, jobs, (source, source, sink))


@cocotb.test()
@cocotb.parametrize(code=("balanced", "residual", "any"), planes=("fewest", "most", "mixed"))
async def codes(dut: HierarchyObject, code: str, planes: str) -> None:
    """Check each code with the fewest planes, the most, and both in one sequence."""
    bench = await Bench.start(dut, "weight_scaler")
    counts = random_planes(bench.rng, bench.config, bench.config.block + 3, planes)
    values = random_vectors(bench.rng, bench.config, counts, code=code)
    await run(bench, values, random_weights(bench, len(counts)), [len(counts)])


@cocotb.test()
async def largest_weights(dut: HierarchyObject) -> None:
    """Check weights of one under the largest scale, and under scales far below the largest."""
    bench = await Bench.start(dut, "weight_scaler")
    config = bench.config
    counts = random_planes(bench.rng, config, config.block, "most")
    values = random_vectors(bench.rng, config, counts, code="balanced")
    values.fraction[values.unit] = (1 << config.scale_fraction_bits) - 1
    values.exponent[::2][values.unit[::2]] = (1 << config.scale_exponent_bits) - 1
    weights = np.full((len(counts), config.query_group), 1 << config.weight_bits)
    await run(bench, values, weights, [len(counts)])


@cocotb.test()
@cocotb.parametrize(source=STALL_MIXES, sink=STALL_MIXES)
async def weights_of_zero(dut: HierarchyObject, source: str, sink: str) -> None:
    """Check which slices have a weight that is not zero for some head, in any order.

    Weights are zero before scaling, or small and vanish under their scale.
    """
    bench = await Bench.start(dut, "weight_scaler")
    config = bench.config
    counts = random_planes(bench.rng, config, 64)
    values = random_vectors(bench.rng, config, counts)
    shape = (len(counts), config.query_group)
    weights = bench.rng.integers(1, 4, shape) << bench.rng.integers(
        0, config.weight_bits - 2, shape
    )
    weights[bench.rng.random(shape) < 0.5] = 0
    weights[bench.rng.random(len(counts)) < 0.5] = 0
    operations = await run(bench, values, weights, [len(counts)], (source, source, sink))
    weighty = [operation["weighty"] for operation in operations if "weighty" in operation]
    bench.check(set(weighty), {0, 1}, "slices of both kinds")


@cocotb.test()
async def full_throughput(dut: HierarchyObject) -> None:
    """Check one operation per cycle, and each ADD exactly `LATENCY` cycles after its slice."""
    bench = await Bench.start(dut, "weight_scaler")
    config = bench.config
    jobs = [config.block * 2 + 1, 3]
    counts = random_planes(bench.rng, config, sum(jobs))
    values = random_vectors(bench.rng, config, counts)
    await run(bench, values, random_weights(bench, sum(jobs)), jobs)
    out = bench.sinks["o"].cycles
    bench.check(out, list(range(out[0], out[0] + len(out))), "cycles of the operations")
    # operations between ADDs delay slices, so compare with the cycles of the slices
    adds = set(cycle + bench.component.LATENCY for cycle in bench.drivers["slices"].cycles)
    others = len(out) - len(adds)
    bench.check(len(set(out) - adds), others, "operations that are no ADD")
    bench.check(adds <= set(out), True, "every slice makes an operation LATENCY cycles later")
