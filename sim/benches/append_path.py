"""Bench of the append path: new and leaving vectors in every code against golden records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cocotb
import numpy as np
import torch
from cocotb.handle import HierarchyObject

from golden.append_path import condition, records
from golden.dequantizer import dequantize
from golden.quantizer import BALANCED_RATIOS, quantize
from kvtq_hw.contract.config import VECTOR_MAX
from kvtq_hw.contract.packing import vector_bytes
from sim.bench.bench import STALL_MIXES, Bench
from sim.bench.streams import Payload
from sim.bench.tables import answer_factors, answer_reads
from sim.bench.vector_code import VectorCode, random_code, random_matrices
from sim.benches.dequantizer import coded_planes


class Tasks:
    """Tasks with their inputs and expected outputs, in order."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.matrices = random_matrices(bench.rng, bench.config)
        shape = (bench.config.table_heads, bench.config.head_dim)
        self.centres = torch.from_numpy(bench.rng.integers(-(1 << 15), 1 << 15, shape))
        self.task: list[dict[str, Any]] = []
        self.vectors: list[dict[str, int]] = []
        self.leaving: list[dict[str, Any]] = []
        self.records: list[dict[str, int]] = []
        self.written: list[dict[str, int]] = []

    def new_vector(self) -> torch.Tensor:
        """Draw a vector of 16-bit elements of any magnitude, [1, D]."""
        rng = self.bench.rng
        size = 2.0 ** rng.uniform(0, 16)
        vector = np.clip(
            np.round(rng.normal(0, size, (1, self.bench.config.head_dim))), -(1 << 15), VECTOR_MAX
        )
        return torch.from_numpy(vector.astype(np.int64))

    def add_new(self, code: VectorCode, centre: bool, rotate: bool) -> None:
        """Add a task that quantizes a new vector."""
        vector = self.new_vector()
        self.vectors += [{"value": value} for value in vector[0].tolist()]
        subtracted = self.centres[code.table] if centre else None
        self._expect(code, condition(vector, subtracted, rotate))
        self._add_task(code, leaving=False, centre=centre, rotate=rotate)

    def add_leaving(self, code: VectorCode, digits: int) -> None:
        """Add a task that requantizes a leaving vector of `digits` digits."""
        config = self.bench.config
        conditioned = condition(self.new_vector(), None, True)
        ratio = BALANCED_RATIOS[digits - 1]
        planes = quantize(config, conditioned, "balanced", digits, "absmean", ratio=ratio)
        self.leaving += coded_planes(self.bench, planes, code.unit_first)
        self._expect(code, dequantize(config, planes))
        # a leaving vector ignores these fields
        centre, rotate = (bool(bit) for bit in self.bench.rng.integers(2, size=2))
        self._add_task(code, leaving=True, centre=centre, rotate=rotate)

    def _add_task(self, code: VectorCode, **flags: bool) -> None:
        self.task.append({**flags, "code": code.payload(self.bench.config)})

    def _expect(self, code: VectorCode, vector: torch.Tensor) -> None:
        config = self.bench.config
        planes = code.quantize(config, vector.numpy(), self.matrices)
        data, exponents = records(config, planes, code.unit_first)
        last = data.shape[-1] - 1
        self.records += [{"data": b, "last": n == last} for n, b in enumerate(data[0].tolist())]
        self.written.append({"exponent": int(exponents[0])})

    async def run(self, source: str = "none", sink: str = "none") -> None:
        """Send all tasks and compare the outputs."""
        bench = self.bench
        answer_factors(bench, self.matrices)
        centres = self.centres.tolist()

        def centre(address: Mapping[str, int]) -> Mapping[str, Payload]:
            # between tasks the address has any value, and one address past the last word is read
            head = address["table"] % bench.config.table_heads
            return {"value": centres[head][address["element"] % bench.config.head_dim]}

        answer_reads(bench, "centres", centre)
        bench.drive("task", self.task, source)
        bench.drive("vectors", self.vectors, source)
        bench.drive("leaving", self.leaving, source)
        bench.expect("records", self.records, sink)
        bench.expect("written", self.written, sink)
        await bench.finish(cycles_per_transfer=100)


def add_random(tasks: Tasks, count: int) -> None:
    """Add tasks of every kind."""
    rng = tasks.bench.rng
    for _ in range(count):
        if rng.random() < 0.5:
            tasks.add_new(
                random_code(rng, tasks.bench.config),
                *(bool(bit) for bit in rng.integers(2, size=2)),
            )
        else:
            tasks.add_leaving(
                random_code(rng, tasks.bench.config),
                int(rng.integers(1, tasks.bench.config.max_planes + 1)),
            )


@cocotb.test()
@cocotb.parametrize(source=STALL_MIXES, sink=STALL_MIXES)
async def random_data(dut: HierarchyObject, source: str, sink: str) -> None:
    """Run tasks of every kind under gaps and back-pressure."""
    tasks = Tasks(await Bench.start(dut, "append_path"))
    add_random(tasks, 8)
    await tasks.run(source, sink)


def step_codes(bench: Bench, feedback: bool) -> tuple[VectorCode, VectorCode]:
    """Return the codes of a decode step: most digits for the new vector, two for the leaving."""
    most = bench.config.max_planes
    tier = VectorCode("balanced", "absmean", False, most, BALANCED_RATIOS[most - 1], 0, False)
    body = VectorCode("balanced", "absmean", feedback, 2, BALANCED_RATIOS[1], 0, False)
    return tier, body


@cocotb.test()
@cocotb.parametrize(feedback=(False, True))
async def cycles_of_a_step(dut: HierarchyObject, feedback: bool) -> None:
    """Check the cycles of steps with a new and a leaving vector: a step fits `step_cycles`."""
    bench = await Bench.start(dut, "append_path")
    config, steps = bench.config, 4
    tier, body = step_codes(bench, feedback)
    tasks = Tasks(bench)
    for _ in range(steps):
        tasks.add_new(tier, centre=True, rotate=True)
        tasks.add_leaving(body, tier.digits)
    await tasks.run()
    bytes_of_records = [vector_bytes(config, code.digits, 1) for code in (tier, body)] * steps
    ends = np.array(bench.sinks["records"].cycles)[np.cumsum(bytes_of_records) - 1]
    took = int(ends[1]) - bench.drivers["vectors"].cycles[0] + 1
    limit = bench.component.step_cycles(tier.digits, body.digits, feedback)
    if took > limit:
        raise AssertionError(f"{took} cycles for the first step, {limit} are documented")
    # the next step's vector comes in during the digits of this step's leaving vector
    if int(np.diff(ends[1::2]).max()) >= took:
        raise AssertionError("steps do not overlap")
