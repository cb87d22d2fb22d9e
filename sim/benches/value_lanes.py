"""Bench of the value lanes: jobs of every operation against the golden accumulators."""

from __future__ import annotations

from typing import Any

import cocotb
import numpy as np
import torch
from cocotb.handle import HierarchyObject

from golden.value_lanes import value_lanes
from kvtq_hw.contract.config import EngineConfig
from rtl.layouts import Operation
from sim.bench.bench import STALL_MIXES, Bench
from sim.bench.stimulus import element_payloads, random_elements

Payloads = list[dict[str, Any]]


def job(
    bench: Bench, elements: np.ndarray, weights: np.ndarray, shifts: np.ndarray
) -> tuple[Payloads, Payloads]:
    """Return the operations of one job, and the golden model's accumulators.

    Each of N blocks has A additions of P planes. The arrays are elements [N, A, P * D], the plane
    of the weight itself first; weights [N, A, G]; and shifts [N, G], the first of which is unused.
    """
    config = bench.config
    shifts = np.concatenate([np.zeros_like(shifts[:1]), shifts[1:]])
    planes = elements.reshape(*elements.shape[:2], -1, config.head_dim)
    powers = 3 ** torch.arange(planes.shape[2])
    accumulators = value_lanes(
        torch.from_numpy(planes),
        torch.from_numpy(weights).movedim(-1, 0)[:, None, :, :, None] * powers,
        torch.from_numpy(shifts.T.copy())[:, None],
    )[:, 0]  # [G, D]
    sliced = planes.reshape(*planes.shape[:3], config.slices, config.lanes).swapaxes(2, 3)
    digits = element_payloads(bench.rng, config, sliced.reshape(*sliced.shape[:3], -1))
    operations: Payloads = []
    for block in range(len(elements)):
        if block == 0:
            operations.append({"operation": Operation.CLEAR})
        else:
            operations.append({"operation": Operation.SHIFT, "shifts": shifts[block].tolist()})
        for plane in range(elements.shape[1]):
            for number in range(config.slices):
                weight = weights[block, plane]
                if not weight.any():  # an ADD that says so reads nothing else
                    weight = bench.rng.integers(0, 1 << config.tripled_weight_bits, len(weight))
                operations.append(
                    {
                        "operation": Operation.ADD,
                        "weighty": int(weights[block, plane].any()),
                        "elements": digits[block][plane][number],
                        "slice": number,
                        "weights": weight.tolist(),
                    }
                )
    operations.append({"operation": Operation.DRAIN})
    return operations, drained(accumulators.numpy())


def drained(accumulators: np.ndarray) -> Payloads:
    """Return the output payloads of accumulators [G, D]."""
    dim = accumulators.shape[1]
    return [{"values": accumulators[:, d].tolist(), "last": int(d == dim - 1)} for d in range(dim)]


def slice_powers(config: EngineConfig) -> np.ndarray:
    """Return the power of three of each slice's first plane, for a run of most planes."""
    return 3 ** np.arange(0, config.max_planes, config.value_planes_per_cycle)


def random_job(bench: Bench, blocks: int, additions: int) -> tuple[Payloads, Payloads]:
    """Draw a job of random elements, weights and shifts, of all magnitudes."""
    config, rng = bench.config, bench.rng
    top = config.scaled_weight_max * slice_powers(config)[-1]
    weights = rng.integers(0, top + 1, (blocks, additions, config.query_group))
    weights >>= rng.integers(0, config.tripled_weight_bits + 1, weights.shape)
    weights[rng.random(weights.shape[:2]) < 0.3] = 0
    shifts = rng.integers(0, config.accumulator_bits + 1, (blocks, config.query_group))
    shifts >>= rng.integers(0, config.rescale_bits + 1, shifts.shape)
    width = config.value_planes_per_cycle * config.head_dim
    elements = random_elements(rng, config, (blocks, additions, width))
    return job(bench, elements, weights, shifts)


async def run(bench: Bench, jobs: list[tuple[Payloads, Payloads]], source: str, sink: str) -> None:
    """Drive the jobs one after the other and compare the drained accumulators."""
    bench.drive("i", [payload for inputs, _ in jobs for payload in inputs], source)
    bench.expect("o", [payload for _, outputs in jobs for payload in outputs], sink)
    await bench.finish(cycles_per_transfer=100)


async def check_cycles(bench: Bench, jobs: list[tuple[Payloads, Payloads]]) -> None:
    """Check that ADD, CLEAR take 1 cycle, SHIFT ``1 + slices * rescale_steps``, DRAIN 1 + D."""
    config = bench.config
    await run(bench, jobs, "none", "none")
    operations = [payload["operation"] for inputs, _ in jobs for payload in inputs]
    duration = {
        Operation.ADD: 1,
        Operation.CLEAR: 1,
        Operation.SHIFT: 1 + config.slices * config.rescale_steps,
        Operation.DRAIN: config.head_dim + 1,
    }
    taken = bench.drivers["i"].cycles
    expected = np.cumsum([taken[0], *[duration[o] for o in operations[:-1]]]).tolist()
    bench.check(taken, expected, "cycles of the operations")
    drains = [c for c, o in zip(taken, operations, strict=True) if o is Operation.DRAIN]
    expected = [drain + 3 + d for drain in drains for d in range(config.head_dim)]
    bench.check(bench.sinks["o"].cycles, expected, "cycles of the outputs")


@cocotb.test()
@cocotb.parametrize(source=STALL_MIXES, sink=STALL_MIXES)
async def random_data(dut: HierarchyObject, source: str, sink: str) -> None:
    """Check jobs of one to three blocks, with gaps and back-pressure."""
    bench = await Bench.start(dut, "value_lanes")
    jobs = [random_job(bench, blocks, 3) for blocks in (1, 3, 2)]
    await run(bench, jobs, source, sink)


@cocotb.test()
async def every_shift(dut: HierarchyObject) -> None:
    """Check every shift from 0 to the whole width, of accumulators of both signs."""
    bench = await Bench.start(dut, "value_lanes")
    config, rng = bench.config, bench.rng
    top = config.scaled_weight_max * slice_powers(config)[-1]
    width = config.value_planes_per_cycle * config.head_dim
    ends = (config.element_min, config.element_max)
    jobs = []
    for shift in range(config.accumulator_bits + 1):
        elements = rng.choice(ends, size=(2, 1, width)).astype(np.int8)
        weights = np.full((2, 1, config.query_group), top)
        weights[1] = 1
        shifts = (shift + np.arange(config.query_group)) % (config.accumulator_bits + 1)
        jobs.append(job(bench, elements, weights, np.stack([shifts, shifts])))
    await run(bench, jobs[:: max(1, config.head_dim // 16)], "none", "none")


@cocotb.test()
@cocotb.parametrize(end=("smallest", "largest"))
async def long_sum_of_one_sign(dut: HierarchyObject, end: str) -> None:
    """Check elements at one limit under the largest weights, up to the largest denominator."""
    bench = await Bench.start(dut, "value_lanes")
    config = bench.config
    tokens = config.sum_of_weights_max >> config.weight_bits
    powers, together = slice_powers(config), config.value_planes_per_cycle
    weights = np.tile(config.scaled_weight_max * powers, tokens)[None, :, None]
    weights = np.repeat(weights, config.query_group, axis=2)
    element = config.element_min if end == "smallest" else config.element_max
    planes = np.full((len(powers) * together, config.head_dim), element, np.int8)
    planes[config.max_planes :] = 0
    elements = np.tile(planes.reshape(len(powers), -1), (tokens, 1))[None]
    shifts = np.zeros((1, config.query_group), np.int64)
    await run(bench, [job(bench, elements, weights, shifts)], "none", "none")


@cocotb.test()
async def exact_cycles(dut: HierarchyObject) -> None:
    """Check the cycles of two jobs with every operation."""
    bench = await Bench.start(dut, "value_lanes")
    await check_cycles(bench, [random_job(bench, 3, 2), random_job(bench, 1, 1)])
