"""Bench of the quantizer: both codes, every number of planes, vectors of every size and kind."""

from __future__ import annotations

from typing import Any

import cocotb
import numpy as np
import torch
from cocotb.handle import HierarchyObject

from golden.quantizer import BALANCED_RATIOS, RESIDUAL_RATIOS, absmean_constant, quantize
from kvtq_hw.codes import CodeKind, ScaleChoice
from sim.bench import STALL_MIXES, Bench
from sim.stimulus import plain_trit_payloads

#: What the hardware computes: kind of code and choice of the scale.
RULES: tuple[tuple[CodeKind, ScaleChoice], ...] = (
    ("balanced", "absmean"),
    ("residual", "absmean"),
    ("residual", "max"),
)


def corner_vectors(bench: Bench) -> np.ndarray:
    """Zero, small, largest, one-hot and tied vectors: [N, D]."""
    dim, top = bench.config.head_dim, bench.config.conditioned_max
    one_hot = np.eye(dim)[bench.rng.integers(dim)]
    corners = [np.zeros(dim), np.ones(dim), -np.ones(dim), one_hot, -one_hot]
    corners += [np.full(dim, top), np.full(dim, -top), top * one_hot, -top * one_hot]
    corners += [np.arange(dim) - dim // 2, 3 * (np.arange(dim) % 3 - 1), np.arange(dim) % 2 * top]
    return np.stack(corners).astype(np.int64)


def random_vectors(bench: Bench, count: int) -> np.ndarray:
    """Gaussian vectors and vectors of few different elements, of any size: [N, D]."""
    rng, dim, top = bench.rng, bench.config.head_dim, bench.config.conditioned_max
    sizes = 2.0 ** rng.uniform(0, np.log2(top), (count, 1))
    gaussian = rng.normal(0, 0.5, (count, dim))
    few = rng.integers(-3, 4, (count, dim)) / 3
    shapes = np.where(rng.random((count, 1)) < 0.6, gaussian, few)
    return np.clip(np.round(sizes * shapes), -top, top).astype(np.int64)


def coded(
    bench: Bench, vectors: np.ndarray, kind: CodeKind, digits: int, scale: ScaleChoice
) -> list[dict[str, Any]]:
    """The golden quantizer's planes of vectors [N, D], in the order that the block sends."""
    planes = quantize(bench.config, torch.from_numpy(vectors), kind, digits, scale)
    order = list(range(digits) if kind == "residual" else reversed(range(digits)))
    trits = plain_trit_payloads(planes.trits[:, order].numpy())
    unit = planes.unit[:, order].long()
    fraction, exponent = planes.fraction[:, order] * unit, planes.exponent[:, order] * unit
    return [
        {
            "trits": trits[vector][place],
            "fraction": int(fraction[vector, place]),
            "exponent": int(exponent[vector, place]),
            "unit": int(unit[vector, place]),
            "last": int(place == digits - 1),
        }
        for vector in range(len(vectors))
        for place in range(digits)
    ]


async def run(
    bench: Bench,
    vectors: np.ndarray,
    kind: CodeKind,
    digits: int,
    scale: ScaleChoice,
    source: str = "none",
    sink: str = "none",
) -> None:
    """Quantize vectors [N, D] with one code."""
    config = bench.config
    ratios = RESIDUAL_RATIOS if kind == "residual" else [BALANCED_RATIOS[digits - 1]] * 5
    constants = [absmean_constant(config, ratio) for ratio in ratios[: config.max_planes]]
    code = {"planes": digits, "residual": kind == "residual", "absmean": scale == "absmean"}
    bench.set("code", {**code, "constants": constants})
    bench.drive("i", [{"value": value} for value in vectors.flatten().tolist()], source)
    bench.expect("o", coded(bench, vectors, kind, digits, scale), sink)
    await bench.finish(cycles_per_transfer=200)


@cocotb.test()
@cocotb.parametrize(rule=RULES, digits=(1, 2, 3, 4, 5))
async def corner_data(
    dut: HierarchyObject, rule: tuple[CodeKind, ScaleChoice], digits: int
) -> None:
    """Zero vectors, saturating scales, ties, and vectors of every size, in every code."""
    bench = await Bench.start(dut, "quantizer")
    vectors = np.concatenate([corner_vectors(bench), random_vectors(bench, 12)])
    kind, scale = rule
    await run(bench, vectors, kind, min(digits, bench.config.max_planes), scale)


@cocotb.test()
@cocotb.parametrize(source=STALL_MIXES, sink=STALL_MIXES)
async def random_data(dut: HierarchyObject, source: str, sink: str) -> None:
    """Random vectors in a random code, under gaps and back-pressure."""
    bench = await Bench.start(dut, "quantizer")
    kind, scale = RULES[bench.rng.integers(len(RULES))]
    digits = int(bench.rng.integers(1, bench.config.max_planes + 1))
    await run(bench, random_vectors(bench, 6), kind, digits, scale, source, sink)


@cocotb.test()
async def cycles_of_a_vector(dut: HierarchyObject) -> None:
    """D cycles to load, at most `scale_latency` for the scale, D a digit, one a plane."""
    bench = await Bench.start(dut, "quantizer")
    dim, digits = bench.config.head_dim, bench.config.max_planes
    await run(bench, random_vectors(bench, 10), "balanced", digits, "absmean")
    taken, sent = bench.drivers["i"].cycles, bench.sinks["o"].cycles
    for vector in range(10):
        first, last = taken[vector * dim], taken[vector * dim + dim - 1]
        planes = sent[vector * digits : (vector + 1) * digits]
        bench.check(last - first, dim - 1, "cycles to load")
        bench.check(planes, list(range(planes[0], planes[0] + digits)), "cycles of the planes")
        between = planes[0] - last - digits * dim
        if not 0 < between <= bench.component.scale_latency:
            raise AssertionError(f"{between} cycles for a scale")
