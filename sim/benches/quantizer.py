"""Bench of the quantizer: all codes, numbers of planes, and vectors of every magnitude and kind."""

from __future__ import annotations

from typing import Any

import cocotb
import numpy as np
from cocotb.handle import HierarchyObject
from cocotb.triggers import ClockCycles, RisingEdge

from golden.planes import Planes
from golden.quantizer import absmean_constant
from kvtq_hw.contract.config import EngineConfig
from sim.bench.bench import STALL_MIXES, Bench
from sim.bench.stimulus import plain_trit_payloads
from sim.bench.tables import answer_factors
from sim.bench.vector_code import RULES, Rule, VectorCode, random_code, random_matrices


def corner_vectors(bench: Bench) -> np.ndarray:
    """Return zero, small, largest, one-hot and tied vectors, [N, D]."""
    dim, top = bench.config.head_dim, 2 * bench.config.conditioned_max
    one_hot = np.eye(dim)[bench.rng.integers(dim)]
    corners = [np.zeros(dim), np.ones(dim), -np.ones(dim), one_hot, -one_hot]
    corners += [np.full(dim, top), np.full(dim, -top), top * one_hot, -top * one_hot]
    corners += [np.arange(dim) - dim // 2, 3 * (np.arange(dim) % 3 - 1), np.arange(dim) % 2 * top]
    return np.stack(corners).astype(np.int64)


def random_vectors(bench: Bench, count: int) -> np.ndarray:
    """Draw Gaussian vectors and vectors of few different elements, of any magnitude, [N, D]."""
    rng, dim, top = bench.rng, bench.config.head_dim, 2 * bench.config.conditioned_max
    sizes = 2.0 ** rng.uniform(0, np.log2(top), (count, 1))
    gaussian = rng.normal(0, 0.5, (count, dim))
    few = rng.integers(-3, 4, (count, dim)) / 3
    shapes = np.where(rng.random((count, 1)) < 0.6, gaussian, few)
    return np.clip(np.round(sizes * shapes), -top, top).astype(np.int64)


def coded_elements(
    config: EngineConfig, code: VectorCode, planes: Planes, vector: int
) -> list[dict[str, Any]]:
    """Return one vector of planes [N, P, D] as the block sends it."""
    trits = planes.digits[vector].numpy()  # [P, D]
    common = {
        "planes": code.digits,
        "residual": code.kind == "residual",
        "unit_first": code.unit_first,
    }
    runs = (
        [trits] if code.kind == "balanced" else [trits[run : run + 1] for run in range(len(trits))]
    )
    elements = []
    for run, digits in enumerate(runs):
        scale = {
            "fraction": int(planes.fraction[vector, run]),
            "exponent": int(planes.exponent[vector, run]),
        }
        elements += [{"trits": t, **scale, **common} for t in plain_trit_payloads(digits.T)]
    return elements


async def follow_codes(bench: Bench, codes: list[VectorCode]) -> None:
    """Hold the code of each vector on the port from the vector's first element to the last."""
    dim, shown = bench.config.head_dim, -1
    while True:
        vector = len(bench.drivers["i"].cycles) // dim
        if vector != shown and vector < len(codes):
            bench.set("code", codes[vector].payload(bench.config))
            shown = vector
        await RisingEdge(bench.dut.clk)


def begin(
    bench: Bench, vectors: np.ndarray, codes: list[VectorCode], source: str, sink: str
) -> list[dict[str, int]]:
    """Start quantizing vectors [N, D] one after the other, one code each; return the scales."""
    config = bench.config
    tables = random_matrices(bench.rng, bench.config)
    answer_factors(bench, tables)
    elements, scales = [], []
    for vector, code in zip(vectors, codes, strict=True):
        planes = code.quantize(config, vector[None], tables)
        elements += coded_elements(config, code, planes, 0)
        scales.append({"exponent": int(planes.exponent[planes.unit].max())})
    cocotb.start_soon(follow_codes(bench, codes))
    bench.drive("i", [{"value": value} for value in vectors.flatten().tolist()], source)
    bench.expect("o", elements, sink)
    return scales


async def run(
    bench: Bench,
    vectors: np.ndarray,
    codes: list[VectorCode],
    source: str = "none",
    sink: str = "none",
) -> None:
    """Quantize vectors [N, D] and compare digits and scales."""
    bench.expect("scale", begin(bench, vectors, codes, source, sink), sink)
    await bench.finish()


@cocotb.test()
@cocotb.parametrize(rule=RULES, digits=(1, 2, 3, 4, 5))
async def corner_data(dut: HierarchyObject, rule: Rule, digits: int) -> None:
    """Check zero vectors, saturating scales, ties and vectors of every magnitude in every code."""
    bench = await Bench.start(dut, "quantizer")
    vectors = np.concatenate([corner_vectors(bench), random_vectors(bench, 4)])
    digits = min(digits, bench.config.max_planes)
    await run(bench, vectors, [random_code(bench.rng, bench.config, digits, rule) for _ in vectors])


@cocotb.test()
@cocotb.parametrize(feedback=(False, True))
async def extreme_constants(dut: HierarchyObject, feedback: bool) -> None:
    """Check clamped scales and weights above every element, and the smallest ones."""
    bench = await Bench.start(dut, "quantizer")
    config = bench.config
    largest = 4095 / absmean_constant(config, 1000) * 1000
    vectors = np.repeat(corner_vectors(bench), 4, axis=0)
    codes = [
        VectorCode("balanced", "absmean", feedback, 1 + n % config.max_planes, ratio)
        for n, ratio in enumerate([largest, 0, 2, 3] * (len(vectors) // 4))
    ]
    await run(bench, vectors, codes)


@cocotb.test()
@cocotb.parametrize(source=STALL_MIXES, sink=STALL_MIXES)
async def random_data(dut: HierarchyObject, source: str, sink: str) -> None:
    """Check random vectors in random codes, under gaps and back-pressure."""
    bench = await Bench.start(dut, "quantizer")
    vectors = random_vectors(bench, 4)
    await run(bench, vectors, [random_code(bench.rng, bench.config) for _ in vectors], source, sink)


@cocotb.test()
@cocotb.parametrize(rule=RULES)
async def cycles_of_a_vector(dut: HierarchyObject, rule: Rule) -> None:
    """Check that a vector comes in during the last run's digits, and the latency of scales."""
    bench = await Bench.start(dut, "quantizer")
    dim = bench.config.head_dim
    vectors = random_vectors(bench, 10)
    code = random_code(bench.rng, bench.config, bench.config.max_planes, rule)
    digits = code.digits
    await run(bench, vectors, [code] * 10)
    taken = np.reshape(bench.drivers["i"].cycles, (10, dim))
    runs = digits if code.kind == "residual" else 1
    planes = digits if code.kind == "balanced" else 1
    sent = np.reshape(bench.sinks["o"].cycles, (10, runs, dim))
    period = planes + 3 if code.feedback else 1
    bench.check(np.unique(np.diff(sent, axis=-1)).tolist(), [period], "cycles of an element")
    begins = np.concatenate([taken[:, -1:], sent[:, :-1, -1]], -1)
    scales = (sent[..., 0] - begins).flatten()
    if scales.min() <= 0 or scales.max() > bench.component.scale_latency(planes):
        raise AssertionError(f"{scales.min()} to {scales.max()} cycles for a scale")
    # all but the last element come in one cycle after the element before has been read
    bench.check((taken[1:, -1] - sent[:-1, -1, -1]).tolist(), [1] * 9, "cycles to the last element")
    bench.check(bool((taken[1:, -2] < sent[:-1, -1, -1]).all()), True, "loading during digits")


@cocotb.test()
async def a_scale_that_waits(dut: HierarchyObject) -> None:
    """Check that the next vector goes on up to its last run while a scale waits to be taken."""
    bench = await Bench.start(dut, "quantizer")
    dim, digits = bench.config.head_dim, bench.config.max_planes
    code = random_code(bench.rng, bench.config, digits, ("residual", "max", False))
    scales = begin(bench, random_vectors(bench, 2), [code] * 2, "none", "none")
    await ClockCycles(dut.clk, 2 * digits * (dim + bench.component.scale_latency(1)) + 100)
    bench.check(len(bench.sinks["o"].payloads), (2 * digits - 1) * dim, "elements before the scale")
    bench.expect("scale", scales)
    await bench.finish()
