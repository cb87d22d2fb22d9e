"""Bench of the value exponents: each head's running maximum, and the cycles of its outputs."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import cocotb
import numpy as np
from cocotb.handle import HierarchyObject

from golden.value_exponents import ValueExponents
from sim.bench.bench import STALL_MIXES, Bench

Payloads = list[dict[str, Any]]


def random_tasks(bench: Bench, count: int) -> Payloads:
    """Draw tasks of all kinds; the first task of a head sets `first`."""
    config, rng = bench.config, bench.rng
    known: set[int] = set()
    tasks = []
    for _ in range(count):
        table = int(rng.integers(config.table_heads))
        first = table not in known or rng.random() < 0.1
        known.add(table)
        tasks.append(
            {
                "table": table,
                "first": int(first),
                # mostly zero, so that written exponents decide
                "floor": int(rng.integers(1 << config.scale_exponent_bits) * (rng.random() < 0.2)),
                "records": int(rng.integers(3)),
                "attend": int(rng.integers(2)),
                "rotate": int(rng.integers(2)),
            }
        )
    return tasks


def random_written(bench: Bench, tasks: Payloads) -> list[int]:
    """Draw exponents of all value records: half small, so that maxima rise in steps, half any."""
    rng, limit = bench.rng, 1 << bench.config.scale_exponent_bits
    count = sum(task["records"] for task in tasks)
    return [int(rng.integers(4 if rng.random() < 0.5 else limit)) for _ in range(count)]


def expected(tasks: Payloads, written: list[int]) -> list[tuple[int, int]]:
    """Return value exponent and rotation of each task that attends."""
    heads: dict[int, ValueExponents] = {}
    answers, left = [], iter(written)
    for task in tasks:
        if task["first"]:
            heads[task["table"]] = ValueExponents(1, 1)
        head = heads[task["table"]]
        numbers = [task["floor"], *(next(left) for _ in range(task["records"]))]
        running = head.write(np.array([[numbers]], np.uint8), len(numbers))
        if task["attend"]:
            answers.append((int(running[0, 0, -1]), task["rotate"]))
    return answers


def set_up(
    bench: Bench, tasks: Payloads, written: list[int], source: str = "none", sink: str = "none"
) -> None:
    """Send tasks and exponents, and expect the golden results."""
    answers = expected(tasks, written)
    bench.drive("tasks", tasks, source)
    bench.drive("written", [{"value_exponent": exponent} for exponent in written], source)
    bench.expect("core", [{"value_exponent": exponent} for exponent, _ in answers], sink)
    outputs = [{"value_exponent": exponent, "rotate": rotate} for exponent, rotate in answers]
    bench.expect("outputs", outputs, sink)


@cocotb.test()
@cocotb.parametrize(source=STALL_MIXES, sink=STALL_MIXES)
async def heads_in_any_order(dut: HierarchyObject, source: str, sink: str) -> None:
    """Check tasks of random heads, under gaps and back-pressure."""
    bench = await Bench.start(dut, "value_exponents")
    tasks = random_tasks(bench, 150)
    set_up(bench, tasks, random_written(bench, tasks), source, sink)
    await bench.finish()


@cocotb.test()
async def largest_of_all(dut: HierarchyObject) -> None:
    """Check that a head keeps its largest exponent, even the limit, until a `first` task."""
    bench = await Bench.start(dut, "value_exponents")
    largest = (1 << bench.config.scale_exponent_bits) - 1
    append = {"table": 0, "first": 0, "floor": 0, "records": 1, "attend": 1, "rotate": 1}
    look = append | {"records": 0}
    tasks = [append | {"first": 1}, append, append, look, append | {"first": 1, "floor": 2}, look]
    written = [3, largest, 1, 0]
    bench.check(
        [exponent for exponent, _ in expected(tasks, written)],
        [3, largest, largest, largest, 2, 2],
        "golden by hand",
    )
    set_up(bench, tasks, written)
    await bench.finish()


@cocotb.test()
async def three_cycles_to_the_core(dut: HierarchyObject) -> None:
    """Check that a task without records is answered after three cycles, then the next is taken."""
    bench = await Bench.start(dut, "value_exponents")
    look = {"table": 0, "first": 1, "floor": 5, "records": 0, "attend": 1, "rotate": 0}
    set_up(bench, [look] * 4, [])
    await bench.finish()
    taken, told = bench.drivers["tasks"].cycles, bench.sinks["core"].cycles
    bench.check([b - a for a, b in zip(taken, told, strict=True)], [3] * 4, "cycles to the core")
    bench.check([b - a for a, b in pairwise(taken)], [4] * 3, "between tasks")
