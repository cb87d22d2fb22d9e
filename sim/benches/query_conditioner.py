"""Bench of the query conditioner: queries of every magnitude, rotated or not, job after job."""

from __future__ import annotations

from dataclasses import dataclass

import cocotb
import numpy as np
import torch
from cocotb.handle import HierarchyObject

from golden.queries import Queries
from golden.query_conditioner import query_conditioner
from kvtq_hw.contract.config import VECTOR_MAX
from sim.bench.bench import STALL_MIXES, Bench


@dataclass(frozen=True)
class Task:
    """Queries of one job: values [G, D], as on the bus, and their exponents [G]."""

    rotate: bool
    exponents: list[int]
    values: np.ndarray


def random_task(bench: Bench) -> Task:
    """Draw Gaussian queries of any magnitude per head, and any exponents."""
    rng, config = bench.rng, bench.config
    sizes = 2.0 ** rng.uniform(0, 15, (config.query_group, 1))
    values = rng.normal(0, 0.5, (config.query_group, config.head_dim)) * sizes
    values = np.clip(np.round(values), -VECTOR_MAX - 1, VECTOR_MAX).astype(np.int64)
    exponents = rng.integers(-128, 128, config.query_group).tolist()
    return Task(bool(rng.integers(2)), exponents, values)


def corner_tasks(bench: Bench) -> list[Task]:
    """Return zeros, one-hots, largest elements of one and of alternating signs, shift edges."""
    config = bench.config
    group, dim = config.query_group, config.head_dim
    constants = (0, 1, -1, VECTOR_MAX, -VECTOR_MAX - 1, config.query_max, config.query_max + 1)
    corners = [np.full((group, dim), constant) for constant in constants]
    corners += [-corners[-1], np.resize([-VECTOR_MAX - 1, VECTOR_MAX], (group, dim))]
    one_hot = np.zeros((group, dim), dtype=np.int64)
    one_hot[:, -1] = np.resize([VECTOR_MAX, -1, config.query_max + 1], group)
    edges = np.arange(group * dim).reshape(group, dim) % 9 - 4
    corners += [one_hot, edges * (config.query_max + 1) // 2, edges]
    return [
        Task(rotate, [(-128, 127, -125)[(index + g) % 3] for g in range(group)], values)
        for index, values in enumerate(corners)
        for rotate in (False, True)
    ]


async def run(bench: Bench, tasks: list[Task], source: str = "none", sink: str = "none") -> None:
    """Run tasks and compare the conditioned queries."""
    exponents, outputs = [], []
    for task in tasks:
        symmetric = torch.from_numpy(task.values).clamp(min=-VECTOR_MAX)
        queries = Queries(symmetric[:, None], torch.tensor(task.exponents)[:, None])
        expected = query_conditioner(bench.config, queries, task.rotate)
        exponents.append({"query_exponent": expected.exponent[:, 0].tolist()})
        outputs += [{"values": row} for row in expected.values[:, 0].T.tolist()]
    elements = [{"values": row} for task in tasks for row in task.values.T.tolist()]
    entries = [{"rotate": task.rotate, "query_exponent": task.exponents} for task in tasks]
    bench.drive("task", entries, source)
    bench.drive("i", elements, source)
    bench.expect("exponents", exponents, sink)
    bench.expect("o", outputs, sink)
    await bench.finish()


@cocotb.test()
async def corner_data(dut: HierarchyObject) -> None:
    """Check zeros, saturation, every edge between two shifts, and extreme exponents."""
    bench = await Bench.start(dut, "query_conditioner")
    await run(bench, corner_tasks(bench))


@cocotb.test()
@cocotb.parametrize(source=STALL_MIXES, sink=STALL_MIXES)
async def random_data(dut: HierarchyObject, source: str, sink: str) -> None:
    """Check random queries under gaps and back-pressure."""
    bench = await Bench.start(dut, "query_conditioner")
    await run(bench, [random_task(bench) for _ in range(6)], source, sink)


@cocotb.test()
async def cycles_of_a_job(dut: HierarchyObject) -> None:
    """Check one element per cycle in, exponents after `measure_latency`, a query per cycle out."""
    bench = await Bench.start(dut, "query_conditioner")
    dim, component = bench.config.head_dim, bench.component
    tasks = [random_task(bench) for _ in range(8)]
    await run(bench, tasks)
    taken, sent = bench.drivers["i"].cycles, bench.sinks["o"].cycles
    for index, task in enumerate(tasks):
        inputs, outputs = (cycles[index * dim :][:dim] for cycles in (taken, sent))
        first = inputs[0]
        bench.check(inputs, list(range(first, first + dim)), "cycles of the elements")
        measured = bench.sinks["exponents"].cycles[index]
        bench.check(measured - first, component.measure_latency(task.rotate), "cycles to measure")
        first = measured + component.LATENCY
        bench.check(outputs, list(range(first, first + dim)), "cycles of the queries")
