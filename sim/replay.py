"""Replay: a cocotb test that runs one captured attention on the engine in a simulator."""

from __future__ import annotations

import os
from pathlib import Path

import cocotb
import numpy as np
from cocotb.handle import HierarchyObject
from torch import Tensor

from golden.llm.capture import Captured, load_captured
from golden.planes import Planes
from kvtq_hw.contract.cycle_model import job_cycles
from rtl.blocks import create_block
from sim.bench.bench import Bench, bench_config
from sim.bench.recording import RECORD_VARIABLE, record
from sim.bench.stimulus import Vectors
from sim.benches.engine import Job, run

__all__ = ["FILE_VARIABLE", "replayed_cycles"]

# Cycles in reset before the job: more than the stages of any path from the sequencer to a port.
# Pipeline registers have no reset. They take their values from the blocks in reset, and after that
# a netlist that started from other values equals the RTL in payloads without `valid` as well.
_SETTLING_CYCLES = 32

#: Environment variable with the path of the captured file.
FILE_VARIABLE = "KVTQ_REPLAY_FILE"


def replayed_cycles(captured: Captured) -> int:
    """Return the cycles of a captured job according to the cycle model."""
    config, slices = captured.config, []
    for planes, depths, together in (
        (captured.keys, captured.key_depths, config.key_planes_per_cycle),
        (captured.values, captured.value_depths, config.value_planes_per_cycle),
    ):
        counts = _vectors(planes, depths).together(together).counts
        starts = np.arange(0, len(counts), config.block)
        slices.append((config.slices * np.add.reduceat(counts, starts)).tolist())
    return job_cycles(config, *slices)


@cocotb.test()
async def captured(dut: HierarchyObject) -> None:
    """Check outputs, counters and cycles of the captured job on streams without stalls."""
    if file := os.environ.get(RECORD_VARIABLE):
        cocotb.start_soon(record(dut, create_block("engine", bench_config()), Path(file)))
    bench = await Bench.start(dut, "engine")
    await bench.reset(_SETTLING_CYCLES)
    job = load_captured(Path(os.environ[FILE_VARIABLE]))
    counters = await run(
        bench,
        [
            Job(
                job.queries.values[:, 0].numpy(),
                job.queries.exponent[:, 0].numpy(),
                _vectors(job.keys, job.key_depths),
                _vectors(job.values, job.value_depths),
                job.value_exponent,
                written_zeros=True,
                learned_sinks=job.learned_sinks.array(),
            )
        ],
    )
    bench.check(counters["busy_cycles"], replayed_cycles(job), "busy cycles")


def _vectors(planes: Planes, depths: Tensor) -> Vectors:
    return Vectors(
        planes.digits.numpy(),
        planes.unit.numpy(),
        planes.fraction.numpy(),
        planes.exponent.numpy(),
        depths.numpy(),
    )
