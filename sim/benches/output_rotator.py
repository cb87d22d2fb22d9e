"""Bench of the output rotator: random and extreme outputs, rotated or not, job after job."""

from __future__ import annotations

from dataclasses import dataclass

import cocotb
import numpy as np
import torch
from cocotb.handle import HierarchyObject

from golden.output_rotator import output_rotator
from sim.bench.bench import STALL_MIXES, Bench


@dataclass(frozen=True)
class Task:
    """Outputs [G, D] and value exponent of one job."""

    rotate: bool
    value_exponent: int
    outputs: np.ndarray


def random_task(bench: Bench, rotate: bool | None = None) -> Task:
    """Draw a task with random outputs and a random exponent."""
    rng, config = bench.rng, bench.config
    limit = 1 << (config.output_bits - 1)
    outputs = rng.integers(-limit, limit, (config.query_group, config.head_dim))
    turned = bool(rng.integers(2)) if rotate is None else rotate
    return Task(turned, int(rng.integers(1 << config.scale_exponent_bits)), outputs)


def corner_tasks(bench: Bench) -> list[Task]:
    """Return outputs of one sign, of alternating signs and one-hots, with extreme exponents."""
    config = bench.config
    shape, limit = (config.query_group, config.head_dim), 1 << (config.output_bits - 1)
    one_hot = np.zeros(shape, dtype=np.int64)
    one_hot[:, -1] = -limit
    corners = [np.full(shape, -limit), np.full(shape, limit - 1), one_hot, 0 * one_hot]
    corners.append(np.resize([-limit, limit - 1], shape))
    largest = (1 << config.scale_exponent_bits) - 1
    return [
        Task(rotate, exponent, outputs)
        for outputs in corners
        for rotate, exponent in ((True, 0), (False, largest), (True, largest))
    ]


async def run(bench: Bench, tasks: list[Task], source: str = "none", sink: str = "none") -> None:
    """Run tasks and compare the rotated outputs."""
    config, expected = bench.config, []
    last = config.head_dim - 1
    for task in tasks:
        point = config.scale_fraction_bits - config.output_fraction_bits
        exponent = torch.tensor(task.value_exponent + point)
        outputs = torch.from_numpy(task.outputs)
        values, lowered = output_rotator(config, outputs, exponent, task.rotate)
        expected += [
            {"values": row, "exponent": int(lowered), "last": int(d == last)}
            for d, row in enumerate(values.T.tolist())
        ]
    elements = [
        {"values": row, "last": int(d == last)}
        for task in tasks
        for d, row in enumerate(task.outputs.T.tolist())
    ]
    entries = [{"rotate": task.rotate, "value_exponent": task.value_exponent} for task in tasks]
    bench.drive("task", entries, source)
    bench.drive("i", elements, source)
    bench.expect("o", expected, sink)
    await bench.finish()


@cocotb.test()
async def corner_data(dut: HierarchyObject) -> None:
    """Check the largest possible sums, and the smallest and largest exponents."""
    bench = await Bench.start(dut, "output_rotator")
    await run(bench, corner_tasks(bench))


@cocotb.test()
@cocotb.parametrize(source=STALL_MIXES, sink=STALL_MIXES)
async def random_data(dut: HierarchyObject, source: str, sink: str) -> None:
    """Check random outputs under gaps and back-pressure."""
    bench = await Bench.start(dut, "output_rotator")
    await run(bench, [random_task(bench) for _ in range(6)], source, sink)


@cocotb.test()
@cocotb.parametrize(rotate=(False, True))
async def cycles_of_a_job(dut: HierarchyObject, rotate: bool) -> None:
    """Check one element per cycle after `latency`; the next job follows the last output."""
    bench = await Bench.start(dut, "output_rotator")
    dim, latency = bench.config.head_dim, bench.component.latency(rotate)
    await run(bench, [random_task(bench, rotate) for _ in range(4)])
    taken, sent = bench.drivers["i"].cycles, bench.sinks["o"].cycles
    starts = [taken[0] + job * (dim + latency - 1) for job in range(4)]
    bench.check(taken, [start + d for start in starts for d in range(dim)], "cycles taken")
    bench.check(sent, [cycle + latency for cycle in taken], "cycles sent")
